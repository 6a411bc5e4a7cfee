package main

import "testing"

// Local connections leave descriptors for the way out, whatever the limit is.
func TestLocalConnsLeaveAReserve(t *testing.T) {
	for limit, want := range map[uint64]int{1: 1, 3: 3, 64: 48, 256: 192, 1024: 768, 20000: 18976, 1 << 40: 1<<31 - 1 - mostOut, 0: 1<<31 - 1 - mostOut} {
		if got := localConns(limit); got != want {
			t.Errorf("of %d descriptors %d are for local connections, want %d", limit, got, want)
		}
	}
}
