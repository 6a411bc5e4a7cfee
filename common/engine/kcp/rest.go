package kcp

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/xtaci/kcp-go/v5"
)

// A conversation at rest has no control block of KCP's, whose rings never shrink
// (doc/engines.md). When nothing is under way in either direction, all that it knows is
// known here, too. The next block counts from 0 again, and scan and output translate
// its numbers, so that the other side sees nothing of that.

// restAfter is how long nothing must have been said until the block goes. Shorter than
// most pauses of tor's padding (1.5 to 9.5 s), which shall find the rings of a transfer
// gone. A session that is over lasts as long, to acknowledge again what the other side
// repeats: two of its time-outs; the server's twice as long, so that the client ends it if it can.
const restAfter = 2 * minTimeout

// resting stands for the control block of a conversation that rests: nothing waits in
// it. It is only asked, and never changes.
var resting = kcp.NewKCP(conversation, nil)

// A block is KCP's control block, and what is known here of what it knows. The
// Conn's mutex guards it.
type block struct {
	kcp    *kcp.KCP
	buf    []byte // for a message that the caller has no room for; made with kcp
	output func(p []byte, size int)
	flight flight
	taken  uint32 // segments that were read
	came   uint32 // one more than the highest number that has come
	fresh  int    // segments that came since nothing was held, and were not read
	window int    // segments that the other side may have this one hold
	most   int    // segments that KCP has held at once
	told   int    // bytes that the carrier was told of

	sentBefore, takenBefore uint32 // segments each way before kcp was made
}

// control is KCP's control block, which is made if the conversation rests.
func (b *block) control() *kcp.KCP {
	if b.kcp == resting {
		b.most, b.buf = 0, make([]byte, SegmentSize)
		b.kcp = kcp.NewKCP(conversation, b.output)
		b.kcp.SetMtu(headerSize + SegmentSize) // output makes whole datagrams
		b.kcp.NoDelay(1, int(maxTimeout/time.Millisecond), 2, 1)
		b.kcp.WndSize(Window, b.window)
		// It is told the window, and a round trip, after which its time-out is not less
		// than the interval. It believes a time that is not in its future: of 0 and 2^31
		// that is one at least, whatever its clock shows.
		for ts := range uint32(2) {
			s := make(segment, headerSize)
			s[0], s[cmdAt] = conversation, kcp.IKCP_CMD_ACK
			binary.LittleEndian.PutUint16(s[wndAt:], uint16(b.flight.wnd))
			s.add(tsAt, ts<<31)
			s.add(snAt, math.MaxUint32) // long acknowledged
			b.kcp.Input(s, kcp.IKCP_PACKET_REGULAR, false)
		}
	}
	return b.kcp
}

// waiting is how many bytes KCP has not sent for the first time, at most.
func (b *block) waiting() int {
	return (b.kcp.WaitSnd() - int(b.flight.size())) * SegmentSize
}

// held is how many segments KCP has received and still holds, at most: less only if
// something is missing and something came twice.
func (b *block) held() int { return min(b.fresh, int(b.came-b.taken)) }

// read takes note that a segment was read.
func (b *block) read() {
	b.taken++
	if b.fresh--; b.taken == b.came {
		b.fresh = 0
	}
}

// What follows needs the mutex held.

// isStill tells whether nothing is under way or waits to be read.
func (c *Conn) isStill() bool {
	return c.kcp != resting && c.kcp.WaitSnd()+c.held()+c.packed.bytes+len(c.in.rest) == 0 &&
		!c.out.staged() && c.owes.IsZero()
}

// rest lets go of what a conversation does not need that is still.
func (c *Conn) rest() {
	c.sentBefore, c.takenBefore = c.flight.next, c.taken
	c.kcp = resting
	c.buf, c.in.rest, c.packed.list, c.out.stage = nil, nil, nil, nil
}
