package kcp

import (
	"sync"

	"turbotunnel/common/engine"
)

// What things take in memory, in bytes.
const (
	// bufferCost is a buffer of kcp-go's for a segment, however short that is: the
	// runtime rounds 1472 up. placeCost is a segment's place in one of KCP's queues
	// (64 bytes), which grow by a tenth or a quarter, and do not shrink until the
	// conversation rests. segmentCost is both, and a place in its map of what came early
	// and in ours.
	bufferCost  = 1536
	placeCost   = 64 + 64/4
	segmentCost = bufferCost + placeCost + 12 + 16

	// restCost and sessionCost are what a session takes that holds nothing, at rest
	// and else (TestSessionCost): the stack of its goroutine, a datagram to read into,
	// and then KCP's queues and what it fills in a flush.
	restCost    = 12 << 10
	sessionCost = 36 << 10

	// datagramCost is a datagram, rounded up as well.
	datagramCost = 9472
)

// datagram is one packet to be written, or that was read: then it has room for
// the segment that input adds.
type datagram struct {
	n, acks int // bytes and acknowledgements in it
	data    [engine.MaxDatagram + headerSize]byte
}

var datagrams = sync.Pool{New: func() any { return new(datagram) }}

// packed is what waits for the carrier. The driver's mutex guards it.
type packed struct {
	list   []*datagram
	bytes  int  // in list and in the datagram that is being written
	acks   int  // in list
	urgent bool // list need not wait for company
}

// add packs a segment.
func (o *packed) add(s []byte, ack bool) {
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
	if ack {
		d.acks++
		o.acks++
	} else {
		o.urgent = true
	}
}

// next takes the first datagram; when it is written, written must be called.
func (o *packed) next() *datagram {
	d := o.list[0]
	o.list[0], o.list = nil, o.list[1:]
	o.acks -= d.acks
	o.urgent = len(o.list) > 0
	return d
}

// written takes note that a datagram has left.
func (o *packed) written(d *datagram) {
	o.bytes -= d.n
	datagrams.Put(d)
}

// received is KCP's receiving side as seen from outside: which segments it holds.
// It does what kcp-go's parse_data and Recv do with their numbers.
type received struct {
	next   uint32              // the number that KCP waits for
	queued int                 // segments in order that were not read; KCP takes Window of them
	early  map[uint32]struct{} // segments behind those; nil: there are none
}

// push notes that segment sn has come, and tells whether KCP acknowledges it.
func (r *received) push(sn uint32) bool {
	switch {
	case int32(sn-r.next-Window) >= 0: // what is half of all numbers away is ahead, as for KCP
		return false
	case sn == r.next && len(r.early) == 0 && r.queued < Window:
		r.next++
		r.queued++
	case int32(sn-r.next) >= 0:
		if r.early == nil {
			r.early = make(map[uint32]struct{})
		}
		r.early[sn] = struct{}{}
		r.advance()
	}
	return true
}

// read notes that a segment was read, and tells whether KCP will say that its
// window has opened.
func (r *received) read() bool {
	full := r.queued == Window
	r.queued--
	r.advance()
	return full && r.queued < Window
}

// advance puts into the queue what has its turn.
func (r *received) advance() {
	for r.queued < Window {
		if _, ok := r.early[r.next]; !ok {
			break
		}
		delete(r.early, r.next)
		r.queued++
		r.next++
	}
	if len(r.early) == 0 {
		r.early = nil // a map does not shrink
	}
}
