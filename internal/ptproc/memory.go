package ptproc

import (
	"context"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

const (
	// defaultMemory is how many bytes sessions may hold together where there is
	// memory enough. Garbage comes on top of that: see garbageRoom.
	defaultMemory = 1 << 30

	// freePart of what a group of processes may have, one in so many and mostFree
	// bytes at most, is left free of Go's memory: for the program's own pages, the
	// kernel's buffers, and what the others of the group take.
	freePart = 4
	mostFree = 64 << 20

	// garbageRoom is how many bytes of garbage Go's collector is to leave where the
	// processor is busy, and scarceRoom else. It is told in percent of what is in use,
	// which is what is held and ownMemory: usualGarbage at most, as Go does by itself,
	// and lessGarbage at least. A process that holds a gigabyte would take two else,
	// and memory_bytes would say half of what it takes. On loopback a collection for
	// each few megabytes costs a twentieth of the rate. With 200 ms and 500 Mbit/s,
	// where a program takes a quarter of a core, it costs nothing that shows, and saves a
	// quarter of the memory.
	garbageRoom  = 32 << 20
	scarceRoom   = 4 << 20
	ownMemory    = 8 << 20
	usualGarbage = 100
	lessGarbage  = 25

	// busyCores is from how many cores on that the program itself uses the processor is
	// taken for busy, and calmCores up to how many it is not. Between them it stays what
	// it is. Where less than that is left for it, it collects more than it had to.
	busyCores = 0.5
	calmCores = 0.35

	// leastGarbage is that where more than one nearPart of the limit is held: an
	// attack that fills it has the process take a tenth more, not a quarter.
	leastGarbage = 10
	nearPart     = 2

	// collectEvery is how often that is looked at.
	collectEvery = 250 * time.Millisecond
)

// sizes are the suffixes of -memory-limit.
var sizes = map[byte]int64{'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}

// parseMemory reads a number of bytes such as 512M, which is to be least or more.
func parseMemory(s string, least int64) (int64, error) {
	digits, unit := s, int64(1)
	if s != "" {
		if u, ok := sizes[s[len(s)-1]]; ok {
			digits, unit = s[:len(s)-1], u
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	switch {
	case err != nil || int64(n) > math.MaxInt64/unit:
		return 0, fmt.Errorf("-memory-limit %q is no number of bytes such as 512M", s)
	case int64(n)*unit < least:
		return 0, fmt.Errorf("-memory-limit %s is too little: %dM at least", s, least>>20)
	}
	return int64(n) * unit, nil
}

// MemoryLimit is how many bytes sessions may hold together: what the flag
// -memory-limit says, which is to be least or more, or else half of what the
// process may have, and no more than 1 GiB. That is the least of GOMEMLIMIT, what a
// control group allows, and what the machine has.
func MemoryLimit(flag string, least int64) (int64, error) {
	if flag != "" {
		return parseMemory(flag, least)
	}
	most := min(machineMemory(), groupMemory(os.DirFS("/")), debug.SetMemoryLimit(-1)) // -1 asks: GOMEMLIMIT, or a number without end
	return max(min(most/2, defaultMemory), least), nil
}

// FitMemory has Go's collector work harder before the process takes more than its
// control group allows, of which it would be killed. Who has set GOMEMLIMIT is left
// alone.
func FitMemory() {
	group := groupMemory(os.DirFS("/"))
	if os.Getenv("GOMEMLIMIT") == "" && group < math.MaxInt64 {
		debug.SetMemoryLimit(group - min(group/freePart, mostFree))
	}
}

// CollectGarbage has Go's collector follow what is held, of limit bytes, and how much
// the program works, until ctx ends. Who has set GOGC is left alone.
func CollectGarbage(ctx context.Context, limit int64, held func() int64) {
	if os.Getenv("GOGC") == "" {
		collectGarbage(ctx, limit, held, processorTime)
	}
}

func collectGarbage(ctx context.Context, limit int64, held func() int64, used func() time.Duration) {
	ticker := time.NewTicker(collectEvery)
	defer ticker.Stop()
	defer debug.SetGCPercent(usualGarbage)
	busy, looked, before := false, time.Now(), used()
	for now := usualGarbage; ; {
		if next := garbage(held(), limit, busy); next != now {
			debug.SetGCPercent(next)
			now = next
		}
		select {
		case <-ticker.C: // late, where the machine is busy
		case <-ctx.Done():
			return
		}
		t, sum := time.Now(), used()
		switch cores := float64(sum-before) / float64(t.Sub(looked)); {
		case cores >= busyCores:
			busy = true
		case cores <= calmCores:
			busy = false
		}
		looked, before = t, sum
	}
}

// garbage is how much the collector shall leave, in percent of what is in use.
func garbage(held, limit int64, busy bool) int {
	if held > limit/nearPart {
		return leastGarbage
	}
	room := int64(scarceRoom)
	if busy {
		room = garbageRoom
	}
	return int(min(max(100*room/(held+ownMemory), lessGarbage), usualGarbage))
}

// groupMemory is the least of the limits of the control groups that the process
// is in, as Linux tells them; without any it is without end.
func groupMemory(root fs.FS) int64 {
	most := int64(math.MaxInt64)
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return most
	}
	for line := range strings.Lines(string(groups)) {
		// hierarchy:controllers:path, the first two of version 2 being 0 and nothing.
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 {
			continue
		}
		folder, file := "sys/fs/cgroup", "memory.max"
		if f[1] == "memory" {
			folder, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		} else if f[1] != "" {
			continue
		}
		// A group above may allow less.
		for at := path.Clean("/" + f[2]); ; at = path.Dir(at) {
			if text, err := fs.ReadFile(root, path.Join(folder, at, file)); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 {
					most = min(most, n)
				}
			}
			if at == "/" {
				break
			}
		}
	}
	return most
}
