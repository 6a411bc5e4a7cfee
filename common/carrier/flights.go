package carrier

import (
	"context"
	"sync/atomic"
	"time"

	"turbotunnel/common/wire"
)

// A flight is an exchange under way.
type flight struct {
	number  uint64 // constant, like what follows up to started
	kind    kind
	most    int // bytes of the request's body, by its limit
	asked   wire.Head
	records []*sentRecord
	size    int  // bytes of the records
	probe   bool // made to see whether the path streams, or lets feeds through
	alone   bool // nothing else was under way when it was started
	feed    *feedBody
	ctx     context.Context
	cancel  context.CancelCauseFunc
	started time.Time

	// Written by the exchange, as time since started; 0: not yet.
	begun atomic.Int64 // the request's body
	sent  atomic.Int64 // the request's last byte
	first atomic.Int64 // the first unit of the answer
	heard atomic.Int64 // the newest one

	got atomic.Int64 // bytes of records in the answer, written by the exchange
}

// isEnding tells whether the answer, a streamed one, is about to end for its size.
func (f *flight) isEnding() bool {
	return f.kind == stream && !f.probe && f.got.Load() > int64(float64(f.asked.Limit)*overlap)
}

// heardAt is when the newest unit of the answer has come, or the flight was started.
func (f *flight) heardAt() time.Time { return f.started.Add(time.Duration(f.heard.Load())) }

// mark writes down that something happens now.
func (f *flight) mark(what *atomic.Int64) { what.Store(max(1, int64(time.Since(f.started)))) }

// glance is how the flight looks now. One that was started after the moment that
// now is, as the loop in launch does, has just been.
func (f *flight) glance(now time.Time) glance {
	return glance{
		kind:   f.kind,
		probe:  f.probe,
		hold:   f.asked.Hold,
		stream: f.asked.Stream,
		ending: f.isEnding(),
		size:   f.size,
		age:    max(0, now.Sub(f.started)),
		begun:  time.Duration(f.begun.Load()),
		sent:   time.Duration(f.sent.Load()),
		first:  time.Duration(f.first.Load()),
		heard:  time.Duration(f.heard.Load()),
	}
}

// flights are exchanges under way, by number.
type flights map[uint64]*flight

// count is how many of them are of a kind.
func (fs flights) count(k kind) (n int) {
	for _, f := range fs {
		if f.kind == k {
			n++
		}
	}
	return n
}

// holdBeside tells whether the server holds an answer that was asked for a round trip
// before f was started, so that it has held it for as long as f was under way.
func (fs flights) holdBeside(f *flight, trip time.Duration) bool {
	for _, g := range fs {
		waits := (g.kind == poll || g.kind == stream) && g.ctx.Err() == nil
		if sent := time.Duration(g.sent.Load()); waits && sent > 0 && f.started.Sub(g.started.Add(sent)) > trip {
			return true
		}
	}
	return false
}

// cancel breaks off those of a kind. Their ends come as results.
func (fs flights) cancel(k kind) {
	for _, f := range fs {
		if f.kind == k {
			f.cancel(errUnneeded)
		}
	}
}

// cancelHeld breaks off those that are held. Their ends come as results.
func (fs flights) cancelHeld(now time.Time) {
	for _, f := range fs {
		if g := f.glance(now); g.held() {
			f.cancel(errUnneeded)
		}
	}
}

// cancelSwallowed breaks off the large uploads that were sent long ago. Their ends
// come as results.
func (fs flights) cancelSwallowed(ago time.Duration) {
	for _, f := range fs {
		sent := time.Duration(f.sent.Load())
		if f.kind == upload && f.size > smallBody && sent > 0 && f.first.Load() == 0 && time.Since(f.started)-sent > ago {
			f.cancel(errSwallowed)
		}
	}
}

// cancelSilent breaks off the large combined exchange that is not answered. Its end
// comes as a result.
func (fs flights) cancelSilent() {
	for _, f := range fs {
		if f.kind == combined && f.size > smallBody && f.first.Load() == 0 {
			f.cancel(errSilent)
		}
	}
}

// carry tells whether one of them carries records.
func (fs flights) carry() bool {
	for _, f := range fs {
		if len(f.records) > 0 || f.kind == feed || f.kind == farewell {
			return true
		}
	}
	return false
}
