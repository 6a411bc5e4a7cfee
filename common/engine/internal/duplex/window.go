package duplex

import "time"

// Window is a receive window that grows while its reader keeps up with it and
// it is what limits the transfer. It is not safe for concurrent use.
type Window struct {
	Size  int // now, in any unit
	Taken int // what of it the other side has added by itself, see Budget

	untold int       // consumed since the other side was told
	used   int       // consumed since since
	since  time.Time // when the last measurement began; zero: never
}

// windowGrowth is the factor by which a window grows. Four steps of it lie
// between the smallest and the largest, so that a fast transfer is limited for
// a few round trips only.
const windowGrowth = 4

// Consumed takes n into account, which the reader has taken. It returns true
// when it is time to tell the other side: when a quarter of the window was
// consumed since it returned true last, so that three quarters can be on their
// way, or when the window has grown, up to limit, because half of it was
// consumed in less than two round trips.
func (w *Window) Consumed(n, limit int, rtt time.Duration) bool {
	if w.since.IsZero() {
		w.since = time.Now()
	}
	w.used += n
	w.untold += n
	before := w.Size
	if w.used >= w.Size/2 {
		now := time.Now()
		if now.Sub(w.since) < 2*rtt {
			w.Size = max(w.Size, min(w.Size*windowGrowth, limit))
		}
		w.used, w.since = 0, now
	}
	if w.Size == before && w.untold < w.Size/4 {
		return false
	}
	w.untold = 0
	return true
}
