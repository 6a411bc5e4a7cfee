package kcp

import (
	"testing"
	"time"
)

// TestBacklogOfLumps: a carrier that takes bytes in lumps takes them no faster than
// they come, however fast it takes a lump.
func TestBacklogOfLumps(t *testing.T) {
	const (
		size  = 8 << 10 // of a datagram
		pause = 28 * time.Millisecond
		lump  = 350 << 10 // 12.5 MB/s
	)
	rate := float64(lump) / pause.Seconds()
	b, now := backlog{limit: minBacklog}, time.Now()
	for round := range 100 {
		took := pause
		for range lump / size {
			b.limited = true
			b.grow(now)
			now = now.Add(took)
			b.left(size, took, now)
			took = 0
		}
		if wait := time.Duration(float64(b.limit) / rate * float64(time.Second)); round > 1 && wait > 3*backlogTime/2 {
			t.Fatalf("lump %d: %d bytes may wait, which take %v", round, b.limit, wait)
		}
	}
}

// TestBacklogGrows: as much as may waits for a carrier that takes all at once.
func TestBacklogGrows(t *testing.T) {
	b, now := backlog{limit: minBacklog}, time.Now()
	for range 10 {
		b.limited = true
		b.grow(now)
		now = now.Add(100 * time.Microsecond)
		b.left(b.limit, 0, now)
	}
	if b.limit != maxBacklog {
		t.Errorf("%d bytes may wait, and not %d", b.limit, maxBacklog)
	}
}
