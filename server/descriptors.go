package main

import "math"

const (
	// Bounds where there are descriptors enough. An idle connection with TLS and
	// HTTP/2 costs some 40 KB (measured); a client needs one over HTTP/2 and six
	// over HTTP/1.1. Streams all lead to one address, for which Linux has 28 232
	// ports.
	maxConns   = 8192
	maxStreams = 16384

	// maxDials bounds the connections that are being made at once, of which a
	// session may have an eighth.
	maxDials   = 128
	dialsParts = 8

	// reserved is how many descriptors are kept for everything else: listeners,
	// files, the metrics' readers, who comes to port 80, the decoy's site (64 of each).
	reserved = 256
)

// A budget divides the descriptors that the process may have: the listener
// never waits for one, whatever clients and strangers do.
type budget struct {
	conns   int // that were accepted
	streams int // connections to where streams go
	dials   int // of these, being made
}

// newBudget divides limit descriptors; 0 is no limit. A dial that is under way
// may have three more than its own: two addresses of a name are tried at once,
// and two questions asked.
func newBudget(limit uint64) budget {
	if limit == 0 {
		limit = math.MaxInt32
	}
	n := int(min(limit, math.MaxInt32))
	b := budget{dials: min(max(n/32, 2), maxDials)}
	rest := max(n-min(reserved, n/8)-3*b.dials, 2)
	b.conns = min(rest/2, maxConns)
	b.streams = min(rest-b.conns, maxStreams)
	return b
}

// isSmall tells whether a bridge of some size would meet its limits, as with
// the 1024 descriptors that many systems give.
func (b budget) isSmall() bool { return b.conns < maxConns/8 }

// ofSession is how many dials a session may have under way.
func (b budget) ofSession() int { return max(b.dials/dialsParts, 1) }
