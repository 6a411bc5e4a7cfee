package front

import "testing"

// How many dials a pool wants, and why.
func TestDemand(t *testing.T) {
	for _, c := range []struct {
		why                    string
		h1                     bool
		open, doubted, waiting int
		want                   need
	}{
		{"nobody waits", false, 0, 0, 0, need{}},
		{"the first connection shows which version it is", false, 0, 0, 9, need{1, maxDials}},
		{"one connection carries all over HTTP/2", false, 1, 0, 9, need{}},
		{"a doubted one in use wants another beside it", false, 0, 1, 0, need{1, maxDials}},
		{"the other one is there", false, 1, 1, 0, need{}},
		{"nobody waits, over HTTP/1.1", true, 2, 0, 0, need{0, maxConns - 2}},
		{"one for each that waits", true, 2, 0, 3, need{3, maxConns - 2}},
		{"no more than a browser has", true, 2, 0, 9, need{maxConns - 2, maxConns - 2}},
		{"doubted ones are connections, too", true, 1, 2, 9, need{maxConns - 3, maxConns - 3}},
		{"all are there", true, maxConns, 0, 9, need{}},
		{"more than all, as one is ending", true, maxConns, 1, 9, need{0, -1}},
	} {
		if got := needFor(c.h1, c.open, c.doubted, c.waiting, maxDials); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.why, got, c.want)
		}
	}
}
