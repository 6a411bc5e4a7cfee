package ptproc

import (
	"context"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"
)

func TestParseMemory(t *testing.T) {
	for s, want := range map[string]int64{
		"33554432": 32 << 20, "64M": 64 << 20, "2G": 2 << 30, "1T": 1 << 40, "65536K": 64 << 20,
		"": 0, "M": 0, "1.5G": 0, "-1G": 0, "64MB": 0, "31M": 0, "9000000T": 0, "99999999999999999999": 0, "64m": 0,
	} {
		if got, err := parseMemory(s, 32<<20); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestGroupMemory(t *testing.T) {
	const gib = 1 << 30
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for name, c := range map[string]struct {
		root fstest.MapFS
		want int64
	}{
		"no Linux": {fstest.MapFS{}, math.MaxInt64},
		"no limit": {fstest.MapFS{
			"proc/self/cgroup":                    file("0::/user.slice\n"),
			"sys/fs/cgroup/user.slice/memory.max": file("max\n"),
		}, math.MaxInt64},
		"version 2, a group above allows less": {fstest.MapFS{
			"proc/self/cgroup":                                     file("0::/system.slice/bridge.service\n"),
			"sys/fs/cgroup/system.slice/memory.max":                file("1073741824\n"),
			"sys/fs/cgroup/system.slice/bridge.service/memory.max": file("max\n"),
		}, gib},
		"version 1": {fstest.MapFS{
			"proc/self/cgroup": file("5:cpu,cpuacct:/x\n4:memory:/box\n"),
			"sys/fs/cgroup/memory/box/memory.limit_in_bytes": file("1073741824\n"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes":     file("9223372036854771712\n"),
		}, gib},
	} {
		if got := groupMemory(c.root); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if n, err := MemoryLimit("", 32<<20); err != nil || n < 32<<20 || n > defaultMemory {
		t.Errorf("without a flag: %d, %v", n, err)
	}
}

// The collector leaves less garbage while much is held, or while the processor is not
// busy, and as usual afterwards.
func TestCollect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		percent := func() int {
			now := debug.SetGCPercent(usualGarbage)
			debug.SetGCPercent(now)
			return now
		}
		before := percent()
		defer debug.SetGCPercent(before)
		var held atomic.Int64
		var millicores, used atomic.Int64
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			collectGarbage(ctx, 1<<30, held.Load, func() time.Duration {
				return time.Duration(used.Add(millicores.Load() * int64(collectEvery) / 1000))
			})
		})
		const calm, between, busy = 350, 450, 500
		for _, c := range []struct {
			held       int64
			millicores int64
			want       int
		}{
			{0, calm, 50},
			{0, between, 50},
			{0, busy, usualGarbage},
			{0, between, usualGarbage},
			{2*garbageRoom - ownMemory, between, 50},
			{8 * garbageRoom, busy, lessGarbage},
			{1<<29 + 1, busy, leastGarbage},
			{2 * scarceRoom, calm, lessGarbage},
			{1<<29 + 1, calm, leastGarbage},
		} {
			held.Store(c.held)
			millicores.Store(c.millicores)
			time.Sleep(3 * collectEvery)
			synctest.Wait()
			if got := percent(); got != c.want {
				t.Errorf("%d held, %d millicores: %d percent, want %d", c.held, c.millicores, got, c.want)
			}
		}
		stop()
		running.Wait()
		if got := percent(); got != usualGarbage {
			t.Errorf("%d percent afterwards", got)
		}
	})
}
