package front

import (
	"context"
	"time"
)

// A watch takes one life through its steps, over HTTP/2, in a goroutine of its
// own. There is one at a time for each life.
type watch struct {
	life  *life
	after time.Duration // the silence before a ping
	wait  time.Duration // the silence after it before there is a doubt
	got   int64         // octets that had come when the silence began
}

// run watches until something has come or the connection is closed, and begins
// anew, each time later, while a long body is under way. It calls changed, which
// may close the connection, when the life has reached another step. ctx ends
// with the pool.
func (w *watch) run(ctx context.Context, changed func()) {
	sock := w.life.sock
	silence := w.after
	for again := true; again; w.got = sock.got.Load() {
		if !pause(ctx, silence) {
			return
		}
		if sock.got.Load() == w.got {
			w.ping(ctx, changed)
			silence = min(max(2*silence, w.wait), maxDue)
		} else {
			silence = max(w.after, w.wait)
		}
		again = w.life.settle()
		changed()
	}
}

// ping returns when something has come, or the connection is closed.
func (w *watch) ping(ctx context.Context, changed func()) {
	begun := time.Now()
	if w.answered(ctx, w.wait) {
		return
	}
	room := w.life.suspect(w.got)
	changed()
	if room > 0 && w.answered(ctx, min(room, lost-w.wait)) {
		return
	}
	w.life.condemn()
	changed()
	if left := lost - time.Since(begun); left > 0 && w.answered(ctx, left) {
		return
	}
	w.life.die()
	changed()
}

// answered tells whether something has come before a time has passed, or the
// connection has ended.
func (w *watch) answered(ctx context.Context, in time.Duration) bool {
	bounded, cancel := context.WithTimeout(ctx, in)
	defer cancel()
	err := w.life.wire.ping(bounded)
	return err == nil || bounded.Err() == nil || ctx.Err() != nil || w.life.sock.got.Load() != w.got
}

// pause waits, and tells whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
