package front

import (
	"cmp"
	"context"
	"slices"
	"time"
)

const (
	// stagger is how long a front may take to connect before the next one is
	// tried beside it, or twice as long as it took the last time, up to
	// maxStagger (RFC 8305 section 8, Connection Attempt Delay, which is for TCP
	// alone).
	stagger    = 250 * time.Millisecond
	maxStagger = 2 * time.Second
)

// A race connects fronts side by side, in a goroutine of its own, which owns the
// fields until done is closed.
type race struct {
	set      *Set
	finishes chan finish
	busy     []*member   // being connected
	tried    []*member   // these and the ones before
	again    *time.Timer // when another one is to be tried

	done   chan struct{} // closed when it is decided; then what follows is set
	winner *member
	err    error
}

// A finish is how connecting one front ended.
type finish struct {
	m    *member
	took time.Duration
	err  error
}

// run connects fronts until one of them is ready or there is none to wait for.
func (r *race) run() {
	ctx, cancel := context.WithCancel(r.set.ctx)
	r.again = time.NewTimer(stagger)
	defer r.again.Stop()
	r.start(ctx)
	for r.winner == nil && len(r.busy) > 0 {
		select {
		case <-r.again.C:
			r.start(ctx)
		case end := <-r.finishes:
			r.busy = slices.DeleteFunc(r.busy, func(m *member) bool { return m == end.m })
			switch {
			case end.err == nil:
				r.winner = end.m
				r.set.carries(end.m, end.took)
			case r.set.ctx.Err() == nil:
				end.m.health.unreachable(end.err)
				if len(r.set.members) > 1 { // a single one is not left alone
					r.start(ctx)
				}
			}
		}
	}
	cancel()
	r.decide()
}

// start begins to connect the next front, if its time has come.
func (r *race) start(ctx context.Context) {
	now := time.Now()
	m, wait := r.set.next(now, r.busy)
	switch {
	case m == nil:
		return
	case wait > 0:
		r.again.Reset(min(wait, nobodyElse)) // it can be shorter by then
		return
	}
	m.health.connecting(now)
	r.busy, r.tried = append(r.busy, m), append(r.tried, m)
	r.set.running.Go(func() {
		err := m.front.pool.connect(ctx)
		r.finishes <- finish{m, time.Since(now), err}
	})
	_, took := m.health.record()
	r.again.Reset(min(max(stagger, 2*took), maxStagger))
}

// decide ends what was begun in vain, and the race.
func (r *race) decide() {
	for range r.busy {
		<-r.finishes
	}
	for _, m := range r.tried {
		if m != r.winner {
			m.front.pool.abandon()
		}
	}
	if r.winner == nil {
		r.err = r.set.down()
	}
	r.set.mu.Lock()
	defer r.set.mu.Unlock()
	r.set.race = nil
	close(r.done)
}

// nextOf returns the member to try next, of those that are not busy, and how
// long it is to be left alone still. It returns nil if there is none. current is
// the one that carries, or did last.
func nextOf(members []*member, current *member, now time.Time, busy []*member) (next *member, wait time.Duration) {
	down := true // all have failed, or do not get anywhere
	for _, m := range members {
		if slices.Contains(busy, m) {
			down = down && m.health.stuck(now)
		} else {
			down = down && m.health.waitFor(now, false) > 0
		}
	}
	for _, m := range members {
		if slices.Contains(busy, m) {
			continue
		}
		w := m.health.waitFor(now, down)
		if c := cmp.Compare(w, wait); next == nil || c < 0 || c == 0 && better(m, next, current) {
			next, wait = m, w
		}
	}
	return next, wait
}

// better tells whether a is to be tried before b: the one that has failed less
// often, then the one that carried last, then the one that connected faster. Of
// two that are equal the one named first stays.
func better(a, b, current *member) bool {
	aFailures, aTook := a.health.record()
	bFailures, bTook := b.health.record()
	switch {
	case aFailures != bFailures:
		return aFailures < bFailures
	case b == current || a == current:
		return a == current
	}
	return aTook > 0 && bTook > 0 && aTook < bTook
}
