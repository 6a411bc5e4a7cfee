package kcp

import (
	"sync"

	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
)

// What things take in memory, in bytes.
const (
	// bufferCost is a buffer of kcp-go's for a segment, however short that is.
	// placeCost is a place in one of KCP's queues (64 bytes), which grow by a tenth or
	// a quarter. segmentCost is both, and a place in its map of what came early.
	bufferCost  = 1536
	placeCost   = 64 + 64/4
	segmentCost = bufferCost + placeCost + 12

	// restCost and sessionCost are what a session takes that holds nothing, at rest
	// and else (TestSessionCost).
	restCost    = 12 << 10
	sessionCost = 36 << 10
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

// maxPacked is how many bytes may wait for the carrier until nothing is listened to:
// what comes is lost, as if the carrier had lost it. It is more than a window that is
// sent again and the acknowledgements of another.
const maxPacked = 32 << 20

// A datagram is room for one that is written or was read.
type datagram = [engine.MaxDatagram]byte

var datagrams = sync.Pool{New: func() any { return new(datagram) }}

// packed is what waits for the carrier. The Conn's mutex guards it.
type packed struct {
	list   [][]byte // each in a datagram
	bytes  int      // in list and in the datagram that is being written
	urgent bool     // list need not wait for company
}

// add packs a segment.
func (o *packed) add(s segment) {
	last := len(o.list) - 1
	if last < 0 || len(o.list[last])+len(s) > engine.MaxDatagram {
		o.list = append(o.list, datagrams.Get().(*datagram)[:0])
		last++
	}
	o.list[last] = append(o.list[last], s...)
	o.bytes += len(s)
	o.urgent = o.urgent || s[cmdAt] != kcp.IKCP_CMD_ACK
}

// promise has the other side send more, but no more than a part of what the carrier has
// left. KCP tells it with the next acknowledgement.
func (c *Conn) promise(part int) {
	now := c.window
	c.window = min(max(now+c.pc.Promise(0)/segmentCost/part, leastWindow), Window)
	c.pc.Promise((c.window - now) * segmentCost)
	c.kcp.WndSize(Window, c.window)
}

// count tells the carrier what KCP and this package hold now.
func (c *Conn) count() {
	now := restCost
	if c.kcp != resting {
		segments := c.kcp.WaitSnd() + c.held()
		c.most = max(c.most, segments)
		now = sessionCost + segments*segmentCost + (c.most-segments)*placeCost
	}
	if now += len(c.packed.list) * engine.MaxDatagram; now != c.told {
		c.pc.Hold(now - c.told)
		c.told = now
	}
}
