package main

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
	// memory enough; the process takes up to twice as many (Go's collector).
	defaultMemory = 1 << 30

	// leastMemory is the least that -memory-limit takes: a session or two.
	leastMemory = 32 << 20

	// muchMemory is from how many bytes on that are held Go's collector leaves less
	// garbage: usualGarbage in percent of what is in use below, as Go does by
	// itself, and lessGarbage above. A process that holds a gigabyte would take two
	// else, and memory_bytes would say half of what it takes. On loopback 25
	// percent cost a third more time of the processor where little is held (9.0 s
	// a gigabyte for 6.6), and nothing that shows where much is.
	muchMemory   = 32 << 20
	usualGarbage = 100
	lessGarbage  = 25

	// collectEvery is how often that is looked at.
	collectEvery = 250 * time.Millisecond

	// connectionCost is what a connection takes by itself, in bytes: 8300 that said
	// nothing more after a first request took 179 MB.
	connectionCost = 20 << 10

	// webPart of the same may be held by HTTP/2, besides: what has come and
	// nobody reads.
	webPart = 4
)

// sizes are the suffixes of -memory-limit.
var sizes = map[byte]int64{'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}

// parseMemory reads a number of bytes such as 512M.
func parseMemory(s string) (int64, error) {
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
	case int64(n)*unit < leastMemory:
		return 0, fmt.Errorf("-memory-limit %s is too little: %dM at least", s, leastMemory>>20)
	}
	return int64(n) * unit, nil
}

// memoryLimit is how many bytes sessions may hold: what the flag says, or half
// of what the process may have, and no more than the default.
func memoryLimit(flag string) (int64, error) {
	if flag != "" {
		return parseMemory(flag)
	}
	most := min(machineMemory(), groupMemory(os.DirFS("/")), debug.SetMemoryLimit(-1)) // -1 asks: GOMEMLIMIT, or a number without end
	return max(min(most/2, defaultMemory), leastMemory), nil
}

// held is how many bytes are held for others.
func (s *service) held() int64 {
	return s.tunnel.Stats().Memory + s.door.held.Load() + int64(s.door.open())*connectionCost
}

// collect has Go's collector follow what is held, until ctx ends. An operator who
// has set GOGC is left alone.
func collect(ctx context.Context, held func() int64) {
	if os.Getenv("GOGC") != "" {
		return
	}
	ticker := time.NewTicker(collectEvery)
	defer ticker.Stop()
	defer debug.SetGCPercent(usualGarbage)
	for now := usualGarbage; ; {
		next := usualGarbage
		if held() > muchMemory {
			next = lessGarbage
		}
		if next != now {
			debug.SetGCPercent(next)
			now = next
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
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
