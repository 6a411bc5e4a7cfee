package kcp

import (
	"encoding/binary"
	"math"

	"github.com/xtaci/kcp-go/v5"
)

// A conversation at rest has no control block of KCP's. Its rings take 12 KB at
// first, and 1 MB after a transfer at full speed, and never shrink; what it fills in a
// flush takes 4.5 KB. When nothing is under way in either direction, all that it
// knows is known here, too, and what the next segments' numbers are. The next block
// counts from 0 again, and scan and output translate its numbers. The other side
// sees nothing of that. An idle session takes 21 KB less so; a rest costs 12 µs of the
// processor, its garbage included (BenchmarkRest).

// restAfter is how long nothing must have been said. Shorter than the pauses of tor's
// padding (1.5 to 9.5 s), most of which shall find the rings of a transfer gone. And how
// long a finished session still answers: a time-out of the other side, twice.
const restAfter = 2 * minTimeout

// longRTT is the round trip that KCP is told, in milliseconds: the longest of
// its time-outs (IKCP_RTO_MAX).
const longRTT = kcp.IKCP_RTO_MAX

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
	came   received
	window int    // segments that the other side may have this one hold
	grown  uint32 // came.read when it has grown last
	most   int    // segments that KCP has held at once
	held   int    // bytes that the carrier was told of

	sentBefore, cameBefore uint32 // segments each way before kcp was made
}

// control is KCP's control block, which is made if the conversation rests.
func (b *block) control() *kcp.KCP {
	if b.kcp == resting {
		b.most, b.buf = 0, make([]byte, SegmentSize)
		b.kcp = kcp.NewKCP(conversation, b.output)
		b.kcp.SetMtu(headerSize + SegmentSize) // output makes whole datagrams
		b.kcp.NoDelay(1, 0, 2, 1)
		b.kcp.WndSize(Window, b.window)
		// It is told the window, and that a round trip takes days. KCP's clock is not
		// known, so one of these four times is that long ago, whatever it shows.
		for ts := range uint32(4) {
			p := make([]byte, headerSize)
			p[0], p[cmdAt] = conversation, kcp.IKCP_CMD_ACK
			binary.LittleEndian.PutUint16(p[wndAt:], uint16(b.flight.wnd))
			binary.LittleEndian.PutUint32(p[tsAt:], ts<<30)
			binary.LittleEndian.PutUint32(p[snAt:], math.MaxUint32) // long acknowledged
			b.kcp.Input(p, kcp.IKCP_PACKET_REGULAR, false)
		}
	}
	return b.kcp
}

// waiting is how many bytes KCP has not sent for the first time, at most.
func (b *block) waiting() int {
	return (b.kcp.WaitSnd() - int(b.flight.size())) * SegmentSize
}

// What follows needs the mutex held.

// isStill tells whether nothing is under way or waits to be read.
func (c *Conn) isStill() bool {
	return c.kcp != resting && c.kcp.WaitSnd()+c.came.held()+c.packed.bytes+len(c.in.rest) == 0 &&
		!c.out.staged() && c.owes.IsZero()
}

// rest lets go of what a conversation does not need that is still.
func (c *Conn) rest() {
	c.sentBefore, c.cameBefore = c.flight.next, c.came.read
	c.kcp = resting
	c.buf, c.in.rest, c.packed.list, c.out.stage = nil, nil, nil, nil
}
