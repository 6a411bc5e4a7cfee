package handshake

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// named is a name that differs for each n.
func named(n int) (name Name) {
	binary.BigEndian.PutUint64(name[:], uint64(n))
	return name
}

func TestGuard(t *testing.T) {
	start := time.UnixMilli(1700000000123).Add(456 * time.Microsecond)
	now := start.Add(time.Hour)
	for _, c := range []struct {
		name string
		now  time.Time
		made time.Time
		ok   bool
	}{
		{"now", now, now, true},
		{"as old as may be", now, now.Add(-Skew), true},
		{"too old", now, now.Add(-Skew - time.Millisecond), false},
		{"as far ahead as may be", now, now.Add(Ahead), true},
		{"from the future", now, now.Add(Ahead + time.Millisecond), false},
		{"in the millisecond of the start", start, start.Truncate(time.Millisecond), true},
		{"before the start", start.Add(time.Second), start.Add(-time.Millisecond), false},
		{"the least time", now, time.UnixMilli(-1 << 63), false},
		{"the greatest time", now, time.UnixMilli(1<<63 - 1), false},
		{"zero", now, time.UnixMilli(0), false},
	} {
		g := NewGuard(start)
		if err := g.Admit(c.now, c.made, named(1)); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := g.Admit(c.now, c.made, named(1)); err == nil {
			t.Errorf("%s: admitted twice", c.name)
		}
		if err := g.Admit(c.now, c.made, named(2)); (err == nil) != c.ok {
			t.Errorf("%s: another message: %v", c.name, err)
		}
	}
}

// A message is refused a second time for as long as its time would let it in,
// and what the Guard remembers does not grow.
func TestGuardForgetsNothingTooEarly(t *testing.T) {
	start := time.UnixMilli(1700000000000)
	g := NewGuard(start)
	others := 0
	for _, ahead := range []time.Duration{-Skew, 0, Ahead} {
		at := start.Add(time.Hour)
		made := at.Add(ahead)
		others++
		name := named(others)
		if err := g.Admit(at, made, name); err != nil {
			t.Fatal(err)
		}
		for now := at; now.Sub(made) <= Skew; now = now.Add(7 * time.Second) {
			if g.Admit(now, made, name) == nil {
				t.Fatalf("%v ahead: admitted again after %v", ahead, now.Sub(at))
			}
			others++
			if err := g.Admit(now, now, named(others)); err != nil {
				t.Fatal(err)
			}
			if len(g.buckets) > 5 {
				t.Fatalf("%d minutes are remembered", len(g.buckets))
			}
		}
	}
}

func TestGuardIsBounded(t *testing.T) {
	start := time.UnixMilli(1700000000000)
	g := NewGuard(start)
	made := start.Add(time.Minute)
	for n := range maxBucket {
		if err := g.Admit(made, made, named(n)); err != nil {
			t.Fatal(n, err)
		}
	}
	if g.Admit(made, made, named(maxBucket)) == nil {
		t.Error("more than fit into a minute")
	}
	if err := g.Admit(made.Add(bucketSpan), made.Add(bucketSpan), named(maxBucket)); err != nil {
		t.Errorf("the next minute: %v", err)
	}
}

// Of many copies of a message at once one is admitted.
func TestGuardConcurrent(t *testing.T) {
	now := time.UnixMilli(1700000000000)
	g := NewGuard(now)
	var admitted atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if g.Admit(now, now, named(1)) == nil {
				admitted.Add(1)
			}
		})
	}
	wg.Wait()
	if n := admitted.Load(); n != 1 {
		t.Errorf("admitted %d times", n)
	}
}
