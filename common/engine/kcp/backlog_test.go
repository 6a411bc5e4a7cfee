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
		now = now.Add(pause)
		for range lump / size {
			b.left(size, now)
		}
		if wait := time.Duration(float64(b.limit) / rate * float64(time.Second)); round > 1 && wait > 2*backlogTime {
			t.Fatalf("lump %d: %d bytes may wait, which take %v", round, b.limit, wait)
		}
	}
}

// TestBacklogGrows: what waits for a carrier that takes all at once is what two
// processors carry in a millisecond at most, and not much less.
func TestBacklogGrows(t *testing.T) {
	const fast = 300e6 // bytes a second
	b, now := backlog{limit: minBacklog}, time.Now()
	for range 3000 {
		now = now.Add(100 * time.Microsecond)
		b.left(b.limit, now)
	}
	wait := time.Duration(float64(b.limit) / fast * float64(time.Second))
	if wait > time.Millisecond || wait < time.Millisecond/2 {
		t.Errorf("%d bytes may wait, which take %v", b.limit, wait)
	}
}
