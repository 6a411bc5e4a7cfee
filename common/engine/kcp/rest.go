package kcp

import (
	"encoding/binary"
	"time"

	"github.com/xtaci/kcp-go/v5"
)

// A conversation at rest has no control block of KCP's. Its rings take 12 KB at
// first, and 1 MB after a transfer at full speed, and never shrink; what it fills in a
// flush takes 4.5 KB. When nothing is under way in either direction, all that it
// knows is known here, too, and what the next segments' numbers are. The next block
// counts from 0 again, and input and output translate its numbers. The other side
// sees nothing of that. An idle session takes 21 KB less so; a rest costs 12 µs of the
// processor, its garbage included (BenchmarkRest).

// restAfter is how long nothing must have been said. Shorter than the pauses of tor's
// padding (1.5 to 9.5 s), most of which shall find the rings of a transfer gone.
const restAfter = 2 * time.Second

// A block is KCP's control block, and what is known here of what it knows. The
// driver's mutex guards it.
type block struct {
	kcp    *kcp.KCP // nil: the conversation rests
	output func(p []byte, size int)
	flight flight
	came   received
	given  uint32 // messages that KCP was given
	most   int    // segments that KCP has held at once

	sentBefore, cameBefore uint32 // segments each way before kcp was made
}

// control is KCP's control block, which is made if the conversation rests.
func (b *block) control() *kcp.KCP {
	if b.kcp == nil {
		b.sentBefore, b.cameBefore = b.flight.next, b.came.next
		b.most = 0
		b.kcp = kcp.NewKCP(conversation, b.output)
		b.kcp.SetMtu(headerSize + SegmentSize) // output makes whole datagrams
		b.kcp.NoDelay(1, 0, 2, 1)
		b.kcp.WndSize(Window, Window)
		b.inform(b.flight.patience())
	}
	return b.kcp
}

// send gives KCP a message.
func (b *block) send(message []byte) {
	b.control().Send(message)
	b.given++
}

// inform gives KCP segments, in place.
func (b *block) inform(p []byte) {
	translate(p, -b.cameBefore, -b.sentBefore)
	b.kcp.Input(p, kcp.IKCP_PACKET_REGULAR, false)
}

// translate adds to the numbers in p: push to those of the direction in which p goes,
// and ack to those of the other one.
func translate(p []byte, push, ack uint32) {
	add := func(field []byte, n uint32) {
		binary.LittleEndian.PutUint32(field, binary.LittleEndian.Uint32(field)+n)
	}
	for push|ack != 0 && len(p) > 0 {
		s, rest, ok := cut(p)
		if !ok {
			return
		}
		switch s.cmd {
		case kcp.IKCP_CMD_PUSH:
			add(p[12:], push)
		case kcp.IKCP_CMD_ACK:
			add(p[12:], ack)
		}
		add(p[16:], ack) // una
		p = rest
	}
}

// ready is the size of the next message that KCP has for Read, or -1.
func (b *block) ready() int {
	if b.kcp == nil {
		return -1
	}
	return b.kcp.PeekSize()
}

// held is how many bytes KCP takes.
func (b *block) held() int {
	if b.kcp == nil {
		return restCost
	}
	segments := int(b.given-b.flight.una) + b.came.queued + len(b.came.early)
	b.most = max(b.most, segments)
	return sessionCost + segments*segmentCost + (b.most-segments)*placeCost
}

// What follows needs the mutex held.

// isStill tells whether nothing is under way, and nothing is known that KCP alone
// knows.
func (d *driver) isStill() bool {
	return d.kcp != nil && d.flight.wnd > 0 &&
		d.given == d.flight.una && d.came.queued+len(d.came.early) == 0 &&
		d.owed+d.packed.bytes == 0 && !d.tell && d.conn.isStill()
}

// restAt is when a conversation that is still rests.
func (d *driver) restAt() time.Time {
	if d.lastRun.After(d.heard) {
		return d.lastRun.Add(restAfter)
	}
	return d.heard.Add(restAfter)
}

// rest lets go of what a conversation does not need that is still.
func (d *driver) rest() {
	d.kcp = nil
	d.packed.list = nil
	d.conn.in.buf, d.conn.out.stage = nil, nil
}
