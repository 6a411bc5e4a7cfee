package main

import "math"

// outParts and mostOut say how many descriptors are kept for the way out, to
// which local connections never get: a part of all, and at most so many. A
// session over HTTP/1.1 wants six, and as many again while it asks DNS and
// tries the addresses of a front.
const (
	outParts = 4
	mostOut  = 1024
)

// localConns is how many of the descriptors that the process may have are for
// local connections; 0 is no limit. Without one for the way out no connection is
// worth anything: when there are as many as there may be, others wait.
func localConns(limit uint64) int {
	if limit == 0 {
		limit = math.MaxInt32
	}
	n := int(min(limit, math.MaxInt32))
	return max(n-min(n/outParts, mostOut), 1)
}
