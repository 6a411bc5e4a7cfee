package kcp

import (
	"sync"

	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
)

// What things take in memory, in bytes.
const (
	// bufferCost is a buffer of kcp-go's for a segment, however short that is: the
	// runtime rounds 1472 up. placeCost is a segment's place in one of KCP's queues
	// (64 bytes), which grow by a tenth or a quarter, and do not shrink until the
	// conversation rests. segmentCost is both, and a place in its map of what came early.
	bufferCost  = 1536
	placeCost   = 64 + 64/4
	segmentCost = bufferCost + placeCost + 12

	// restCost and sessionCost are what a session takes that holds nothing, at rest
	// and else (TestSessionCost): the stack of its goroutine, a datagram to read into,
	// and then KCP's queues and what it fills in a flush.
	restCost    = 12 << 10
	sessionCost = 36 << 10

	// datagramCost is a datagram, rounded up as well.
	datagramCost = 9472
)

// A conversation is promised one openPart of what is left for all at first, and one
// growPart more each time that updateEvery segments were read, or half of a smaller
// window. So those that nobody reads leave something to those that come after them.
const (
	openPart    = 13
	growPart    = 4
	updateEvery = 1 << 20 / SegmentSize
	leastWindow = 32 << 10 / SegmentSize // is promised in any case
)

// datagram is one packet to be written, or that was read: then it has room for
// the segment that input adds.
type datagram struct {
	n, acks int // bytes and acknowledgements in it
	data    [engine.MaxDatagram + headerSize]byte
}

var datagrams = sync.Pool{New: func() any { return new(datagram) }}

// packed is what waits for the carrier. The Conn's mutex guards it.
type packed struct {
	list   []*datagram
	bytes  int  // in list and in the datagram that is being written
	acks   int  // in list
	urgent bool // list need not wait for company
}

// add packs a segment.
func (o *packed) add(s segment) {
	last := len(o.list) - 1
	if last < 0 || o.list[last].n+len(s) > engine.MaxDatagram {
		d := datagrams.Get().(*datagram)
		d.n, d.acks = 0, 0
		o.list = append(o.list, d)
		last++
	}
	d := o.list[last]
	d.n += copy(d.data[d.n:], s)
	o.bytes += len(s)
	if s[cmdAt] == kcp.IKCP_CMD_ACK {
		d.acks++
		o.acks++
	} else {
		o.urgent = true
	}
}

// received is what is known of KCP's receiving side. What it holds is at most what has
// come and was not read, and at most the numbers between what was read and the highest
// that has come: less only if something is missing or came twice.
type received struct {
	read  uint32 // segments
	top   uint32 // one more than the highest number
	count int    // of segments that came, since nothing was held
}

// held is how many segments KCP holds, at most.
func (r *received) held() int { return min(r.count, int(r.top-r.read)) }

// add takes note of the segments of a datagram.
func (r *received) add(sum summary) {
	r.count += sum.pushes
	r.top = r.read + max(r.top-r.read, sum.top)
}

// take takes note that one was read.
func (r *received) take() {
	r.read++
	if r.count--; r.read == r.top {
		r.count = 0
	}
}

// promise has the other side send more, but no more than a part of what the carrier has
// left. KCP tells it with the next acknowledgement.
func (c *Conn) promise(part int) {
	now := c.window
	c.window = min(max(now+c.pc.Promise(0)/segmentCost/part, leastWindow), Window)
	c.pc.Promise((c.window - now) * segmentCost)
	c.kcp.WndSize(Window, c.window)
	c.grown = c.came.read
}

// count tells the carrier what KCP and this package hold now.
func (c *Conn) count() {
	held := restCost
	if c.kcp != resting {
		segments := c.kcp.WaitSnd() + c.came.held()
		c.most = max(c.most, segments)
		held = sessionCost + segments*segmentCost + (c.most-segments)*placeCost
	}
	if held += len(c.packed.list) * datagramCost; held != c.held {
		c.pc.Hold(held - c.held)
		c.held = held
	}
}
