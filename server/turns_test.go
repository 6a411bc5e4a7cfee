package main

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
)

// Sessions that wait come in turn, however many dials each of them wants.
func TestTurnsGoRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1, 1)
		if !turns.take(t.Context(), "x") {
			t.Fatal("no turn")
		}
		var came []string
		begun := make(chan string)
		for _, session := range []string{"a", "a", "a", "b", "c", "c"} {
			go func() {
				if turns.take(t.Context(), session) {
					begun <- session
				}
			}()
			synctest.Wait()
		}
		gone, cancel := context.WithCancel(t.Context())
		left := make(chan bool)
		for _, session := range []string{"d", "c"} { // one who gives up first
			go func() { left <- turns.take(gone, session) }()
			synctest.Wait()
		}
		cancel()
		one, other := <-left, <-left
		if one || other {
			t.Error("a turn for one who has gone")
		}
		last := "x"
		for range 6 {
			turns.give(last)
			last = <-begun
			came = append(came, last)
		}
		turns.give(last)
		if got := strings.Join(came, ""); got != "abcaca" {
			t.Errorf("the order is %s", got)
		}
		if turns.free != 1 || len(turns.under)+len(turns.waiting)+len(turns.order) != 0 {
			t.Errorf("what is left: %+v", turns)
		}
	})
}

func TestBudget(t *testing.T) {
	for _, c := range []struct {
		limit uint64
		want  budget
	}{
		{0, budget{maxConns, maxStreams, maxDials}},
		{1 << 63, budget{maxConns, maxStreams, maxDials}},
		{20000, budget{8192, 11168, 128}},
		{1024, budget{400, 400, 32}},
		{64, budget{25, 25, 2}},
	} {
		if got := newBudget(c.limit); got != c.want {
			t.Errorf("%d descriptors: %+v, want %+v", c.limit, got, c.want)
		}
	}
	for limit := uint64(32); limit < 1<<16; limit += 7 {
		b := newBudget(limit)
		if used := b.conns + b.streams + 3*b.dials; uint64(used) >= limit || b.conns < 1 || b.streams < 1 || b.ofSession() < 1 {
			t.Fatalf("%d descriptors: %+v", limit, b)
		}
	}
}
