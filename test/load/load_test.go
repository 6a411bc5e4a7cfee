package main

import (
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/test/programs"
)

func TestMain(m *testing.M) {
	if code, ok := runHelper(os.Args[1:]); ok {
		os.Exit(code)
	}
	os.Exit(programs.Main(m))
}

// TestLoads: every load in a small form. make load runs them at full size.
func TestLoads(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	defer group.Wait()
	for _, l := range loads(small) {
		// All at the same time: they mostly wait.
		group.Go(func() {
			t.Run(l.name, func(t *testing.T) {
				rows, err := l.try(t.Context(), binaries{programs.Server, self}, engines.Default)
				for _, row := range rows {
					t.Log(strings.TrimRight(row.line(), " \n"))
					if !row.held() {
						t.Errorf("%s: %.4g %s; the limit is %.4g", row.name, row.value, row.unit, row.limit)
					}
				}
				if err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A plain server answers as often as it is asked to, and what it takes can be seen.
func TestPlain(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{dir: t.TempDir(), self: self}
	defer func() {
		for _, p := range r.helpers {
			p.Kill() //nolint:errcheck // nothing is to be kept
		}
	}()
	// 2000 requests in a second: so many cost more than the kernel's unit of time.
	cores, err := r.plain(t.Context(), 2*plainStreams, 200*time.Millisecond, time.Second)
	if err != nil || cores <= 0 {
		t.Errorf("%v cores, %v", cores, err)
	}
}
