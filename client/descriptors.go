package main

import (
	"math"
	"net"

	"turbotunnel/internal/accept"
	"turbotunnel/internal/ptproc"
)

// outParts and mostOut say how many descriptors are kept for the way out, to
// which local connections never get: a part of all, and at most so many. A
// session over HTTP/1.1 wants six, and as many again while it asks DNS and
// tries the addresses of a front.
const (
	outParts = 4
	mostOut  = 1024
)

// newAcceptor returns what has handle serve a listener's connections. Without a
// descriptor for the way out no connection is worth anything: when there are as
// many as there may be, others wait.
func newAcceptor(ln net.Listener, p *ptproc.Process, handle func(net.Conn)) *accept.Acceptor {
	return accept.New(ln, localConns(ptproc.DescriptorLimit()), p.Log(), handle)
}

// localConns is how many of the descriptors that the process may have are for
// local connections; 0 is no limit.
func localConns(limit uint64) int {
	if limit == 0 {
		limit = math.MaxInt32
	}
	n := int(min(limit, math.MaxInt32))
	return max(n-min(n/outParts, mostOut), 1)
}
