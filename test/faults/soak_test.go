package faults

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/test/middlebox"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
)

var soak = flag.Duration("soak", 0, "how long TestSoak takes; 0: some seconds")

// probe is added to both programs: a signal has them say what they hold, after the
// collector has run.
const probe = `package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"syscall"
)

func init() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR2)
	go func() {
		for range c {
			runtime.GC() // twice, for what pools keep
			debug.FreeOSMemory()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			name := os.Getenv("PROBE")
			if f, err := os.Create(name + ".goroutines"); err == nil {
				pprof.Lookup("goroutine").WriteTo(f, 1) // for whoever looks for what has grown
				f.Close()
			}
			os.WriteFile(name+".new", fmt.Appendf(nil, "%d %d", runtime.NumGoroutine(), m.HeapAlloc), 0o600)
			os.Rename(name+".new", name)
		}
	}()
}
`

// A holding is what a program holds.
type holding struct{ goroutines, heap, descriptors int }

// beyond tells whether h is more than was, by more than chance: connections are
// given back after a minute, and pools and maps keep what they had at most. Of some
// 300 clients at rest nearly all held 1 to 2 MB, and one 3.4 MB.
func (h holding) beyond(was holding) bool {
	return h.goroutines > was.goroutines+15 || h.descriptors > was.descriptors+10 || h.heap > was.heap+was.heap/4+3<<20
}

func (h holding) String() string {
	return fmt.Sprintf("%d goroutines, %d KB, %d descriptors", h.goroutines, h.heap>>10, h.descriptors)
}

// A soaked is a program that is watched.
type soaked struct {
	name string
	proc *proc.Process
	file string // where it says what it holds
}

// holds asks the program.
func (s *soaked) holds(t *testing.T) (h holding) {
	t.Helper()
	os.Remove(s.file)
	signal(t, s.proc, syscall.SIGUSR2)
	programs.Await(t, "what the "+s.name+" holds", func() error {
		text, err := os.ReadFile(s.file)
		if err != nil {
			return err
		}
		_, err = fmt.Sscan(string(text), &h.goroutines, &h.heap)
		return err
	})
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.proc.ID()))
	if err != nil {
		t.Fatal(err)
	}
	h.descriptors = len(fds)
	return h
}

func signal(t *testing.T, p *proc.Process, sig syscall.Signal) {
	t.Helper()
	if err := p.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// TestSoak: faults at random, streams without end, and what both programs hold at
// rest does not grow.
func TestSoak(t *testing.T) {
	t.Parallel()
	server, client := programs.WithFile(t, "server", probe), programs.WithFile(t, "client", probe)
	for i, engine := range engines.Names() {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			testSoak(t, engine, server, client, *seed+uint64(i))
		})
	}
}

func testSoak(t *testing.T, engine, server, client string, seed uint64) {
	dir := programs.Folder(t)
	start := func(name, program string) (*soaked, *exec.Cmd) {
		s := &soaked{name: name, file: filepath.Join(dir, name)}
		cmd := exec.Command(program)
		cmd.Env = append(os.Environ(), "PROBE="+s.file)
		return s, cmd
	}
	far, serverCmd := start("server", server)
	near, clientCmd := start("client", client)
	r := newRig(t, engine, serverCmd, clientCmd)
	far.proc, near.proc = r.server, r.client
	scenes := []*scene{r.newScene(t, variant{mode: "auto"}), r.newScene(t, variant{mode: "poll", old: true})}

	rounds, round, rest := 2, 4*time.Second, 2*time.Second
	if *soak > 0 {
		rounds, rest = 3, 6*time.Minute // sessions end of which nothing is heard for five
		round = max(*soak/time.Duration(rounds)-rest, 10*time.Second)
	}
	dice := middlebox.NewDice(seed)
	first := make(map[*soaked]holding)
	for n := range rounds {
		streams, faults := soakRound(t, scenes, dice, round)
		time.Sleep(rest)
		for _, p := range []*soaked{near, far} {
			h := atRest(t, p, scenes)
			for end := time.Now().Add(programs.WaitLimit / 3); n > 0 && h.beyond(first[p]) && time.Now().Before(end); h = atRest(t, p, scenes) {
				time.Sleep(time.Second)
			}
			t.Logf("after %d streams and %d faults more the %s holds %v", streams, faults, p.name, h)
			if n == 0 {
				first[p] = h
			} else if h.beyond(first[p]) {
				t.Errorf("the %s has grown: %v, at first %v; see %s.goroutines", p.name, h, first[p], p.file)
			}
		}
	}
}

// soakRound has streams and faults for d.
func soakRound(t *testing.T, scenes []*scene, dice *middlebox.Dice, d time.Duration) (streams, faults int) {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, s := range scenes {
		all.Go(func() {
			n := s.misbehave(ctx, dice)
			mu.Lock()
			defer mu.Unlock()
			faults += n
		})
		for range 2 {
			all.Go(func() {
				for ctx.Err() == nil {
					p, err := s.open()
					if err != nil {
						time.Sleep(100 * time.Millisecond) // nothing gets through: it is made again
						continue
					}
					run := p.start(int64(dice.Below(100 << 10)))
					time.Sleep(time.Duration(dice.Below(2000)) * time.Millisecond)
					if err := run.whole(); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					streams++
					mu.Unlock()
				}
			})
		}
	}
	all.Wait()
	return streams, faults
}

// atRest asks p what it holds. The middleboxes first close what they keep of
// connections that nobody uses, at each time anew, because those of requests that
// ended since the last time would count for the server's.
func atRest(t *testing.T, p *soaked, scenes []*scene) holding {
	t.Helper()
	for _, s := range scenes {
		s.box.Close()
	}
	return p.holds(t)
}

// misbehave has one fault after the other happen until ctx ends, each for a
// moment, with a moment between. It returns how many those were.
func (s *scene) misbehave(ctx context.Context, dice *middlebox.Dice) (n int) {
	wait := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	speaks := s.old.Load()
	for ; ctx.Err() == nil; n++ {
		f := table[dice.Below(len(table))]
		s.box.Set(f.do(s))
		wait(min(max(f.ends, time.Duration(dice.Below(3000))*time.Millisecond), 5*time.Second))
		s.box.Set(nil)
		wait(time.Duration(dice.Below(1000)) * time.Millisecond)
		s.old.Store(speaks)
	}
	s.path.SetDown(false)
	return n
}
