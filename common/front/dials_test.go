package front

import "testing"

// How many dials a pool wants, and why.
func TestDemand(t *testing.T) {
	for _, c := range []struct {
		why                    string
		h1                     bool
		open, doubted, waiting int
		want                   demand
	}{
		{"nobody waits", false, 0, 0, 0, demand{}},
		{"the first connection shows which version it is", false, 0, 0, 9, demand{1, maxDials}},
		{"one connection carries all over HTTP/2", false, 1, 0, 9, demand{}},
		{"a doubted one in use wants another beside it", false, 0, 1, 0, demand{1, maxDials}},
		{"the other one is there", false, 1, 1, 0, demand{}},
		{"nobody waits, over HTTP/1.1", true, 2, 0, 0, demand{0, maxConns - 2}},
		{"one for each that waits", true, 2, 0, 3, demand{3, maxConns - 2}},
		{"no more than a browser has", true, 2, 0, 9, demand{maxConns - 2, maxConns - 2}},
		{"doubted ones are connections, too", true, 1, 2, 9, demand{maxConns - 3, maxConns - 3}},
		{"all are there", true, maxConns, 0, 9, demand{}},
		{"more than all, as one is ending", true, maxConns, 1, 9, demand{0, -1}},
	} {
		if got := demandFor(c.h1, c.open, c.doubted, c.waiting); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.why, got, c.want)
		}
	}
}
