//go:build !race

package faults

import (
	"os"
	"strings"
	"testing"
	"time"

	"turbotunnel/common/engines"
)

// TestFaults: whatever of the table happens, a stream goes on, and what comes out
// of it is what was written, to the byte. So does the next one, while it happens
// and afterwards.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, engine := range engines.Names() {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			r := startRig(t, engine)
			variants := []variant{{mode: "auto"}}
			if engine == engines.Default {
				variants = append(variants, variant{mode: "poll", old: true, start: true})
			}
			if *long {
				variants = append(variants, variant{mode: "poll"}, variant{mode: "auto", old: true, start: true}, variant{mode: "auto", start: true})
			}
			t.Run("faults", func(t *testing.T) {
				for _, f := range table {
					for _, v := range variants {
						if v.start && f.late {
							continue
						}
						t.Run(f.name+"/"+v.String(), func(t *testing.T) {
							t.Parallel()
							f.check(t, r.newScene(t, v), v)
						})
					}
				}
			})
		})
	}
}

// Every fault of the table stands in the document's.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../doc/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range table[1:] { // the first one is none
		if !strings.Contains(string(text), f.name+"`") {
			t.Errorf("doc/reliability.md lacks %q", f.name)
		}
	}
}

// small is how many bytes move in each direction on a stream before a fault, and
// on one after it.
const small = 10 << 10

// check lets a fault happen to a session.
func (f fault) check(t *testing.T, s *scene, v variant) {
	size := f.size
	if size == 0 {
		size = usual
	}
	if v.start {
		s.box.Set(f.do(s))
		if f.ends > 0 {
			time.AfterFunc(f.ends, func() { s.box.Set(nil) })
		}
	}
	begun := time.Now()
	old := s.start(t, size, v.start)
	for !v.start && (old.up.came.Load() < small || old.down.came.Load() < small) {
		if time.Since(begun) > limit {
			t.Fatal(old.whole())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !v.start {
		s.box.Set(f.do(s))
	}
	happens := time.Now()
	if f.ends > 0 {
		time.Sleep(f.ends)
		s.box.Set(nil)
	} else if err := s.start(t, small, f.full || s.engine == "kcp").whole(); err != nil {
		t.Errorf("another stream meanwhile: %v", err)
	}
	if err := old.whole(); err != nil {
		t.Fatalf("the stream to which it happens: %v", err)
	}
	took := time.Since(happens)
	s.box.Set(nil)
	if err := s.start(t, small, false).whole(); err != nil {
		t.Errorf("a stream afterwards: %v", err)
	}
	all, _ := s.box.Requests()
	t.Logf("%v, and %v afterwards; %d requests", took.Round(time.Millisecond), (time.Since(happens) - took).Round(time.Millisecond), all)
}

// start makes a stream, and moves at least size bytes in each direction.
func (s *scene) start(t *testing.T, size int64, patient bool) *run {
	t.Helper()
	for begun := time.Now(); ; {
		p, err := s.open()
		if err == nil {
			return p.start(size)
		}
		// Where a session begins while nothing gets through, the request is refused,
		// and whoever made it makes it again, as tor does. With kcp each stream begins
		// one, of which three in a hundred have three answers by somebody else where a
		// third of all are such.
		if !patient || time.Since(begun) > limit {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
