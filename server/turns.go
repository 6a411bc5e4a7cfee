package main

import (
	"context"
	"sync"
)

// turns decide who may begin a dial: many at a time, of one session a few, and
// of those who wait, sessions in turn. So dials that hang, and sessions that
// open many streams, keep nobody else from his. Safe for concurrent use.
type turns struct {
	each int // dials that one session may have under way

	mu      sync.Mutex
	free    int            // dials that may begin; guarded by mu, like what follows
	under   map[string]int // dials under way, by session
	waiting map[string][]chan struct{}
	order   []string // sessions that wait, the next one first
}

func newTurns(dials, each int) *turns {
	return &turns{
		each:    each,
		free:    dials,
		under:   make(map[string]int),
		waiting: make(map[string][]chan struct{}),
	}
}

// take waits for the session's turn, for which give is due afterwards. It
// returns false when ctx ends first.
func (t *turns) take(ctx context.Context, session string) bool {
	turn := make(chan struct{})
	t.mu.Lock()
	if len(t.waiting[session]) == 0 {
		t.order = append(t.order, session)
	}
	t.waiting[session] = append(t.waiting[session], turn)
	t.next()
	t.mu.Unlock()
	select {
	case <-turn:
		return true
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-turn:
		t.done(session) // it came at the same time
	default:
		t.leave(session, turn)
	}
	return false
}

// give ends a turn.
func (t *turns) give(session string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done(session)
}

// done is give. mu is held, here and below.
func (t *turns) done(session string) {
	t.free++
	if t.under[session]--; t.under[session] == 0 {
		delete(t.under, session)
	}
	t.next()
}

// next gives turns to those who wait.
func (t *turns) next() {
	for i := 0; i < len(t.order) && t.free > 0; {
		session := t.order[i]
		if t.under[session] >= t.each {
			i++
			continue
		}
		t.free--
		t.under[session]++
		close(t.waiting[session][0])
		t.order = append(t.order[:i], t.order[i+1:]...)
		if t.waiting[session] = t.waiting[session][1:]; len(t.waiting[session]) > 0 {
			t.order = append(t.order, session)
		} else {
			delete(t.waiting, session)
		}
	}
}

// leave takes one who waits out of the line.
func (t *turns) leave(session string, turn chan struct{}) {
	line := t.waiting[session]
	for i := range line {
		if line[i] == turn {
			line = append(line[:i], line[i+1:]...)
			break
		}
	}
	if t.waiting[session] = line; len(line) > 0 {
		return
	}
	delete(t.waiting, session)
	for i := range t.order {
		if t.order[i] == session {
			t.order = append(t.order[:i], t.order[i+1:]...)
			return
		}
	}
}
