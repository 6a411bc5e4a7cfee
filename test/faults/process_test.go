//go:build !race

package faults

import (
	"fmt"
	"io"
	"syscall"
	"testing"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
	"turbotunnel/test/target"
)

// each runs a test of programs of its own for each engine.
func each(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Parallel()
	for _, engine := range engines.Names() {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			r := startRig(t, engine)
			if *long {
				r.limit = longLimit
			}
			test(t, r)
		})
	}
}

const (
	// brokenWithin is how soon a stream must end that cannot go on, once both
	// programs run and the path carries. It is mostly a second or two.
	brokenWithin = 30 * time.Second

	// pause is how long a program stands still, or a path does: a session
	// outlives it. longPause is longer than its lifetime.
	pause     = 8 * time.Second
	longPause = 10 * time.Minute
	longLimit = 20 * time.Minute
)

// under starts a stream that is in the middle of its bytes.
func (s *scene) under(t *testing.T) *run {
	t.Helper()
	r := s.start(t, usual, false)
	programs.Await(t, "bytes of the stream", func() error {
		if up, down := r.up.came.Load(), r.down.came.Load(); up < small || down < small {
			return fmt.Errorf("%d up, %d down", up, down)
		}
		return nil
	})
	return r
}

// goesOn checks that a stream is whole, and the next one, too.
func (s *scene) goesOn(t *testing.T, r *run) {
	t.Helper()
	if err := r.whole(); err != nil {
		t.Errorf("the stream to which it happens: %v", err)
	}
	s.works(t)
}

func (s *scene) works(t *testing.T) {
	t.Helper()
	if err := s.start(t, small, false).whole(); err != nil {
		t.Errorf("a stream afterwards: %v", err)
	}
}

// ends checks that a stream ends in time, and that the next one works.
func (s *scene) ends(t *testing.T, r *run, since time.Time) {
	t.Helper()
	at, err := r.broken()
	switch took := at.Sub(since); {
	case err != nil:
		t.Error(err)
	case took > brokenWithin:
		t.Errorf("the stream ended after %v", took)
	default:
		t.Logf("the stream ended after %v", took.Round(time.Millisecond))
	}
	s.works(t)
	t.Logf("the next one was over %v after that", time.Since(at).Round(time.Millisecond))
}

// TestServerDies: the server is killed in the middle of streams, and another one
// started in its place. They end, and the next ones work.
func TestServerDies(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		s := r.newScene(t, variant{mode: "auto"})
		run := s.under(t)
		if err := r.server.Kill(); err != nil {
			t.Fatal(err)
		}
		since := time.Now()
		r.server = programs.StartServer(t, r.serverAddr, r.target.Addr().String(), r.serverArgs...)
		s.ends(t, run, since)
	})
}

// TestSuspended: a program that stands still for some seconds goes on with all its
// streams. After ten minutes, which only make faults waits for, they end, and the
// next ones work.
func TestSuspended(t *testing.T) {
	for name, which := range map[string]func(*rig) *proc.Process{
		"client": func(r *rig) *proc.Process { return r.client },
		"server": func(r *rig) *proc.Process { return r.server },
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, r *rig) {
				s := r.newScene(t, variant{mode: "auto"})
				run := s.under(t)
				p, d := which(r), pause
				if *long {
					d = longPause
				}
				signal(t, p, syscall.SIGSTOP)
				time.Sleep(d)
				signal(t, p, syscall.SIGCONT)
				if *long {
					s.ends(t, run, time.Now())
				} else {
					s.goesOn(t, run)
				}
			})
		})
	}
}

// TestOutages: after a minute without a path all goes on. After ten minutes streams
// have ended, and the next ones work.
func TestOutages(t *testing.T) {
	if !*long {
		t.Skip("make faults runs it")
	}
	for _, d := range []time.Duration{time.Minute, longPause} {
		t.Run(d.String(), func(t *testing.T) {
			each(t, func(t *testing.T, r *rig) {
				s := r.newScene(t, variant{mode: "auto"})
				run := s.under(t)
				s.path.SetDown(true)
				time.Sleep(d)
				s.path.SetDown(false)
				if d < longPause {
					s.goesOn(t, run)
				} else {
					s.ends(t, run, time.Now())
				}
			})
		})
	}
}

// TestFourGigabytes: more bytes than 32 bits count pass in both directions of one
// stream.
func TestFourGigabytes(t *testing.T) {
	if !*long {
		t.Skip("make faults runs it")
	}
	const size = 4<<30 + 64<<20
	for _, engine := range engines.Names() { // one after the other: they need the processor
		t.Run(engine, func(t *testing.T) {
			r := startRig(t, engine)
			r.limit = longLimit
			s := r.newScene(t, variant{mode: "auto"})
			s.args[0], s.args[1] = "url=http://"+r.serverAddr+"/", "utls=none" // nothing between
			p, err := s.open()
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			begun := time.Now()
			errs := make(chan error, 4)
			for i, f := range []*flow{{from: p.near, to: p.far, seed: 1}, {from: p.far, to: p.near, seed: 2}} {
				go func() {
					n, err := io.CopyN(f.from, target.Data(f.seed), size)
					f.sent.Store(n)
					f.ended.Store(true)
					if err == nil {
						err = f.from.CloseWrite()
					}
					errs <- wrap(fmt.Sprint("writing in direction ", i), err)
				}()
				go func() { errs <- wrap(fmt.Sprint("direction ", i), f.read()) }()
			}
			for range cap(errs) {
				if err := <-errs; err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d bytes each way in %v", int64(size), time.Since(begun).Round(time.Second))
		})
	}
}
