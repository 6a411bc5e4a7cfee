package handshake

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// named is a name that differs for each n.
func named(n int) (name Name) {
	binary.BigEndian.PutUint64(name[:], uint64(n))
	return name
}

// A fakeClock is a computer's: its time can be set, and it can be restarted.
type fakeClock struct {
	wall time.Time
	up   time.Duration
}

func (c *fakeClock) now() (time.Time, time.Duration) { return c.wall, c.up }

func (c *fakeClock) pass(d time.Duration) {
	c.wall = c.wall.Add(d)
	c.up += d
}

// fakeMarks are Marks in memory, which may fail.
type fakeMarks struct {
	text  []byte
	err   error
	saved int
}

func (m *fakeMarks) Load() ([]byte, error) { return m.text, m.err }

func (m *fakeMarks) Save(text []byte) error {
	if m.err == nil {
		m.text = text
		m.saved++
	}
	return m.err
}

func newGuard(t *testing.T, marks Marks, clock *fakeClock) *Guard {
	t.Helper()
	g, err := NewGuard(marks, clock.now)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

var noon = time.UnixMilli(1700000000123).Add(456 * time.Microsecond)

func TestGuard(t *testing.T) {
	for _, c := range []struct {
		name string
		up   time.Duration
		made time.Duration // after now
		want error
	}{
		{"now", time.Hour, 0, nil},
		{"as old as may be", time.Hour, -Skew, nil},
		{"too old", time.Hour, -Skew - time.Millisecond, ErrClock},
		{"as far ahead as may be", time.Hour, Skew, nil},
		{"from the future", time.Hour, Skew + time.Millisecond, ErrClock},
		{"in the millisecond of the start", 0, -456 * time.Microsecond, nil},
		{"before the start", time.Second, -time.Second - time.Millisecond, ErrClock},
		{"after the start", time.Second, -time.Second, nil},
		{"the least time", time.Hour, -1 << 63, ErrClock},
		{"the greatest time", time.Hour, 1<<63 - 1, ErrClock},
	} {
		for _, way := range []string{"by the clock", "by the count"} {
			clock := &fakeClock{wall: noon}
			g := newGuard(t, nil, clock)
			clock.pass(c.up)
			now, epoch := clock.wall, Epoch{}
			want := c.want
			if way == "by the count" {
				epoch = g.epoch
			}
			if way == "by the count" && c.name == "before the start" {
				want = nil // its epoch is of after the start
			}
			made := now.Add(c.made)
			if err := g.Admit(made, epoch, named(1)); err != want {
				t.Errorf("%s, %s: %v, want %v", c.name, way, err, want)
			}
			again := want
			if want == nil {
				again = ErrSeen
			}
			if err := g.Admit(made, epoch, named(1)); err != again {
				t.Errorf("%s, %s: again: %v, want %v", c.name, way, err, again)
			}
			if err := g.Admit(made, epoch, named(2)); err != want {
				t.Errorf("%s, %s: another message: %v, want %v", c.name, way, err, want)
			}
		}
	}
}

// What a process keeps at its end takes nothing from the next, which already runs: one
// that drains its sessions ends half a minute after the other has begun.
func TestGuardsOverlap(t *testing.T) {
	clock, marks := &fakeClock{wall: noon}, &fakeMarks{}
	old := newGuard(t, marks, clock)
	if err := old.Admit(noon, Epoch{}, named(1)); err != nil {
		t.Fatal(err)
	}
	next := newGuard(t, marks, clock)
	clock.pass(time.Hour)
	made := clock.wall
	if err := next.Admit(made, Epoch{}, named(2)); err != nil {
		t.Fatal(err)
	}
	if err := old.Admit(made.Add(-time.Second), Epoch{}, named(3)); err != nil { // it writes twice in a row
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	// next crashes, and its successor's clock is behind.
	clock.pass(time.Second)
	clock.wall = noon.Add(-time.Hour)
	third := newGuard(t, marks, clock)
	clock.wall = made
	for _, m := range []message{{made, Epoch{}, named(2)}, {noon, Epoch{}, named(1)}} {
		if err := third.Admit(m.made, m.epoch, m.name); err != ErrClock {
			t.Errorf("what was admitted before: %v", err)
		}
	}
}

// A life is what a server goes through in TestClocks.
type life struct {
	t      *testing.T
	clock  *fakeClock
	marks  *fakeMarks
	guard  *Guard
	honest time.Time // what the right time is
	names  int
	old    []message // all that were admitted
}

type message struct {
	made  time.Time
	epoch Epoch
	name  Name
}

func (l *life) pass(d time.Duration) {
	l.clock.pass(d)
	l.honest = l.honest.Add(d)
}

// set sets the server's clock, to so much ahead of the right time.
func (l *life) set(off time.Duration) { l.clock.wall = l.honest.Add(off) }

// restart ends the server, with or without a word, and starts it again with its
// clock so far ahead of the right time, after it was down for a while.
func (l *life) restart(crash bool, down, off time.Duration) {
	l.t.Helper()
	if !crash {
		if err := l.guard.Close(); err != nil {
			l.t.Fatal(err)
		}
	}
	l.honest = l.honest.Add(down)
	l.clock = &fakeClock{l.honest.Add(off), 0}
	l.guard = newGuard(l.t, l.marks, l.clock)
}

func (l *life) admit(m message) error {
	err := l.guard.Admit(m.made, m.epoch, m.name)
	if err == nil {
		l.old = append(l.old, m)
	}
	return err
}

// message is one that an honest client makes.
func (l *life) message(made time.Time, epoch Epoch) message {
	l.names++
	return message{made, epoch, named(l.names)}
}

// expect has a client with the right time and one with the server's go through,
// and expects of the first that it does so at once, or not. Nothing that has gone
// through before may do so again.
func (l *life) expect(name string, atOnce bool) {
	l.t.Helper()
	if err := l.admit(l.message(l.honest, Epoch{})); (err == nil) != atOnce || err != nil && err != ErrClock {
		l.t.Errorf("%s: a client with the right time: %v", name, err)
	}
	now, epoch := l.guard.Time()
	if err := l.admit(l.message(now, epoch)); err != nil {
		l.t.Errorf("%s: a client with the server's time: %v", name, err)
	}
	for _, m := range l.old {
		if l.guard.Admit(m.made, m.epoch, m.name) == nil {
			l.t.Errorf("%s: a message made %v ago is admitted again", name, l.honest.Sub(m.made))
		}
	}
}

// Whatever a server's clock does, nobody is kept out, and nothing goes through twice.
func TestClocks(t *testing.T) {
	const atOnce, later = true, false
	year1970 := time.Unix(30, 0).Sub(noon)
	for _, off := range []time.Duration{
		-24 * time.Hour, -time.Hour, -Skew - time.Second, Skew + time.Second, time.Hour, 24 * time.Hour, 3650 * 24 * time.Hour, year1970,
	} {
		start := func(t *testing.T, off time.Duration) *life {
			l := &life{t: t, honest: noon, clock: &fakeClock{wall: noon.Add(off)}, marks: new(fakeMarks)}
			l.guard = newGuard(t, l.marks, l.clock)
			return l
		}
		t.Run(fmt.Sprintf("wrong at start by %v", off), func(t *testing.T) {
			l := start(t, off)
			l.expect("at the start", later)
			l.pass(time.Minute)
			l.expect("after a minute", later)
			l.set(0)
			l.expect("when the clock is right", atOnce)
			l.pass(5 * time.Minute)
			l.expect("later", atOnce)
		})
		t.Run(fmt.Sprintf("stepped by %v and back", off), func(t *testing.T) {
			l := start(t, 0)
			l.expect("at the start", atOnce)
			l.pass(time.Hour)
			l.expect("while it is right", atOnce)
			l.set(off)
			l.expect("when it is wrong", later)
			l.pass(10 * time.Minute)
			l.expect("later", later)
			l.set(0)
			l.expect("when it is right again", atOnce)
		})
		t.Run(fmt.Sprintf("stepped by %v for good", off), func(t *testing.T) {
			// What is right afterwards is the clock's new time.
			l := start(t, 0)
			for range 70 {
				l.pass(time.Minute)
				l.expect("before", atOnce)
			}
			before := l.honest
			l.set(off)
			l.honest = l.clock.wall
			for off == -time.Hour && !l.honest.After(before) {
				l.expect("in times that are spent", later)
				l.pass(time.Minute)
			}
			l.expect("in times that are not", atOnce)
		})
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprintf("wrong by %v after a restart, crash %v", off, crash), func(t *testing.T) {
				l := start(t, 0)
				l.pass(time.Hour)
				l.expect("before", atOnce)
				l.restart(crash, time.Second, off)
				l.expect("after it", later)
				l.pass(5 * time.Minute)
				l.expect("later", later)
				l.set(0)
				l.expect("when it is right", atOnce)
				l.restart(crash, 10*time.Minute, 0)
				l.expect("after another restart", atOnce)
			})
			t.Run(fmt.Sprintf("right after it was wrong by %v before a restart, crash %v", off, crash), func(t *testing.T) {
				l := start(t, off)
				l.admit(l.message(l.clock.wall, Epoch{})) // from a client that is wrong, too
				l.expect("before", later)
				l.pass(time.Hour)
				l.admit(l.message(l.clock.wall, Epoch{}))
				l.restart(crash, time.Second, 0)
				if off.Abs() > Skew+2*reserve {
					l.expect("after it", atOnce)
				}
				l.pass(Skew + 2*reserve)
				l.expect("later", atOnce)
			})
		}
	}
}

// After a restart what is younger than the last message is admitted at once, and
// after a crash what is younger by the reserve.
func TestRestart(t *testing.T) {
	for _, c := range []struct {
		name  string
		crash bool
		ahead time.Duration // of a client's clock, before
		wait  time.Duration // until all go through at once
	}{
		{"a restart", false, 0, time.Millisecond},
		{"a restart after a client that was ahead", false, Skew, Skew + time.Millisecond},
		{"a crash", true, 0, reserve},
		{"a crash after a client that was ahead", true, Skew, Skew + reserve},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &life{t: t, honest: noon, clock: &fakeClock{wall: noon}, marks: new(fakeMarks)}
			l.guard = newGuard(t, l.marks, l.clock)
			l.pass(time.Hour)
			for _, ahead := range []time.Duration{0, c.ahead} {
				if err := l.admit(l.message(l.honest.Add(ahead), Epoch{})); err != nil {
					t.Fatal(err)
				}
			}
			l.restart(c.crash, 0, 0)
			l.expect("at once", false)
			l.pass(c.wait - time.Millisecond)
			l.expect("just before", false)
			l.pass(time.Millisecond)
			l.expect("afterwards", true)
		})
	}
}

// What reservations cost: one write in about a minute, and none when nobody comes.
func TestMarksAreWrittenRarely(t *testing.T) {
	marks, clock := new(fakeMarks), &fakeClock{wall: noon}
	g := newGuard(t, marks, clock)
	if g.Close(); marks.saved > 0 {
		t.Error("written although nobody came")
	}
	clock.pass(time.Hour)
	for i := range 6000 { // ten minutes
		clock.pass(100 * time.Millisecond)
		ahead := time.Duration(i%241-120) * time.Second
		if err := g.Admit(clock.wall.Add(ahead), Epoch{}, named(i)); err != nil {
			t.Fatal(err)
		}
	}
	if marks.saved < 5 || marks.saved > 15 {
		t.Errorf("written %d times in ten minutes", marks.saved)
	}
	if n := strings.Count(string(marks.text), "\n"); n != 1 {
		t.Errorf("%d stretches:\n%s", n, marks.text)
	}
}

// Marks that fail keep nobody out.
func TestMarksFail(t *testing.T) {
	damaged := &fakeMarks{text: []byte("nonsense")}
	unreadable := &fakeMarks{err: errors.New("no")}
	for name, marks := range map[string]*fakeMarks{"damaged": damaged, "unreadable": unreadable} {
		g, err := NewGuard(marks, (&fakeClock{wall: noon}).now)
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if err := g.Admit(noon, Epoch{}, named(1)); err != ErrClock {
			t.Errorf("%s: by the clock: %v", name, err)
		}
		now, epoch := g.Time()
		if err := g.Admit(now, epoch, named(1)); err != nil {
			t.Errorf("%s: by the count: %v", name, err)
		}
		if g.Close(); marks.saved != 0 {
			t.Errorf("%s: overwritten", name)
		}
	}
	// An epoch that was another life's is none that counts.
	if g := newGuard(t, nil, &fakeClock{wall: noon}); g.Admit(noon, Epoch{1}, named(1)) != ErrClock {
		t.Error("a message for another life of the server is admitted")
	}
	// A disk that is full for a while.
	marks, clock := new(fakeMarks), &fakeClock{wall: noon}
	g := newGuard(t, marks, clock)
	clock.pass(time.Hour)
	marks.err = errors.New("full")
	if err := g.Admit(clock.wall, Epoch{}, named(1)); err != ErrClock {
		t.Errorf("admitted although that cannot be kept: %v", err)
	}
	marks.err = nil
	if err := g.Admit(clock.wall, Epoch{}, named(1)); err != ErrClock || marks.saved != 0 {
		t.Errorf("tried again at once: %v", err)
	}
	clock.pass(reserve)
	if err := g.Admit(clock.wall, Epoch{}, named(1)); err != nil {
		t.Errorf("later: %v", err)
	}
}

// Without marks it is the process's start that counts, by the clock as it is now.
func TestClockStepsAtStart(t *testing.T) {
	// The clock was ahead when the server started, then it was set right.
	clock := &fakeClock{wall: noon.Add(2 * time.Hour)}
	g := newGuard(t, nil, clock)
	clock.wall = noon
	if err := g.Admit(noon, Epoch{}, Name{1}); err != nil {
		t.Errorf("after a step back: %v", err)
	}
	// It was behind: a message from before the restart.
	clock = &fakeClock{wall: noon.Add(-time.Hour)}
	g = newGuard(t, nil, clock)
	clock.wall = noon
	if err := g.Admit(noon.Add(-90*time.Second), Epoch{}, Name{1}); err != ErrClock {
		t.Errorf("a message from before a step forward: %v", err)
	}
}

// A tag is good by the clock's days and by the count's.
func TestExpects(t *testing.T) {
	pub := GenerateKey().Public()
	clock := &fakeClock{wall: time.Unix(30, 0)}
	g := newGuard(t, nil, clock)
	old, today := NewID(pub, 0), NewID(pub, DayOf(noon))
	if !g.Expects(old, pub) || g.Expects(today, pub) {
		t.Error("in 1970 another day's tag is good")
	}
	clock.wall = noon
	if !g.Expects(old, pub) || !g.Expects(today, pub) || g.Expects(NewID(pub, DayOf(noon)+2), pub) {
		t.Error("after the clock was set only one day's tag is good, or any")
	}
}

// A tag of a day to come says that the clock is behind, and is expected from then on;
// one of a day that has been may be from a log.
func TestLearn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := GenerateKey()
		pub, today := key.Public(), DayOf(noon)
		for _, off := range []time.Duration{time.Unix(30, 0).Sub(noon), -1000 * time.Hour, -10 * 24 * time.Hour} {
			g := newGuard(t, nil, &fakeClock{wall: noon.Add(off)})
			if id := NewID(GenerateKey().Public(), today); g.Learn(t.Context(), id, pub) != 0 || g.Expects(id, pub) {
				t.Errorf("off by %v: another server's tag is expected", off)
			}
			if days := g.Learn(t.Context(), NewID(pub, today), pub); days != int(today-DayOf(noon.Add(off))) {
				t.Errorf("off by %v: %d days ahead", off, days)
			}
			for ahead, want := range map[Day]bool{0: true, 1: true, 2: false} {
				if g.Expects(NewID(pub, today+ahead), pub) != want || g.Expects(NewID(pub, today-ahead), pub) != want {
					t.Errorf("off by %v: expected within %d days: %v", off, ahead, !want)
				}
			}
		}
		g := newGuard(t, nil, &fakeClock{wall: noon})
		if id := NewID(pub, today-2); g.Learn(t.Context(), id, pub) != -2 || g.Expects(id, pub) {
			t.Error("a tag that may be from a log is expected")
		}
		if g.Learn(t.Context(), NewID(pub, lastDay+1), pub) != 0 {
			t.Error("a day is found that is not looked for")
		}
	})
}

// Days are looked at a few at a time, so that nobody is answered later for it, and no
// further when the server ends.
func TestLearnRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pub := GenerateKey().Public()
		g := newGuard(t, nil, &fakeClock{wall: noon})
		start := time.Now()
		g.Learn(t.Context(), NewID(pub, lastDay), pub)
		if rested := time.Since(start); rested != dayRest*time.Duration(lastDay/restEvery) {
			t.Errorf("it rested for %v", rested)
		}
		ended, end := context.WithCancel(t.Context())
		end()
		if days := g.Learn(ended, NewID(pub, lastDay), pub); days != 0 {
			t.Errorf("%d days ahead were found when the server had ended", days)
		}
	})
}

// A message is refused a second time for as long as its time would let it in,
// and what the Guard remembers does not grow.
func TestGuardForgetsNothingTooEarly(t *testing.T) {
	clock := &fakeClock{wall: time.UnixMilli(1700000000000)}
	g := newGuard(t, nil, clock)
	clock.pass(time.Hour)
	others := 0
	for _, ahead := range []time.Duration{-Skew, 0, Skew} {
		begin := clock.wall
		made := begin.Add(ahead)
		others++
		name := named(others)
		if err := g.Admit(made, Epoch{}, name); err != nil {
			t.Fatal(err)
		}
		for ; clock.wall.Sub(made) <= Skew; clock.pass(7 * time.Second) {
			if g.Admit(made, Epoch{}, name) == nil {
				t.Fatalf("%v ahead: admitted again after %v", ahead, clock.wall.Sub(begin))
			}
			others++
			if err := g.Admit(clock.wall, Epoch{}, named(others)); err != nil {
				t.Fatal(err)
			}
			if len(g.others.buckets) > int(2*Skew/bucketSpan)+2 || len(g.others.spent) > 1 {
				t.Fatalf("%d seconds and %d stretches are remembered", len(g.others.buckets), len(g.others.spent))
			}
		}
	}
}

// A newcomer is refused only when the messages of a few seconds are too many.
func TestGuardIsBounded(t *testing.T) {
	clock := &fakeClock{wall: noon}
	g := newGuard(t, nil, clock)
	clock.pass(time.Hour)
	const most = 1000
	g.Bound(bucketCost+most*nameCost, func(int) {})
	for n := range most {
		if err := g.Admit(clock.wall, Epoch{}, named(n)); err != nil {
			t.Fatal(n, err)
		}
	}
	if err := g.Admit(clock.wall, Epoch{}, named(most)); err != ErrCrowded {
		t.Errorf("more than fit into a second: %v", err)
	}
	if n := g.Forgotten(); n != 0 {
		t.Errorf("%d were forgotten", n)
	}
	clock.pass(near + 2*bucketSpan)
	if err := g.Admit(clock.wall, Epoch{}, named(most)); err != nil {
		t.Errorf("seconds later: %v", err)
	}
	if n := g.Forgotten(); n != most {
		t.Errorf("%d were forgotten, want %d", n, most)
	}
	if err := g.Admit(clock.wall.Add(-near-2*bucketSpan), Epoch{}, named(0)); err != ErrClock {
		t.Errorf("one that was forgotten: %v", err)
	}
}

// A flood of first messages, of whatever times, keeps nobody out and lets nothing in
// twice: who has the right time comes in at once, others when they have learned it.
func TestFlood(t *testing.T) {
	const perSecond, least = 300, 32 << 20 / 8 / 8 // as 2400 in a second at the smallest server
	floods := map[string]func(n int, now time.Time) time.Time{
		"of now":     func(_ int, now time.Time) time.Time { return now },
		"of before":  func(_ int, now time.Time) time.Time { return now.Add(-Skew) },
		"of later":   func(_ int, now time.Time) time.Time { return now.Add(Skew) },
		"just later": func(_ int, now time.Time) time.Time { return now.Add(near) },
		"of any":     func(n int, now time.Time) time.Time { return now.Add(time.Duration(n*7919%240-120) * time.Second) },
		"of two":     func(n int, now time.Time) time.Time { return now.Add(time.Duration(n%2) * Skew) },
	}
	for name, madeAt := range floods {
		t.Run(name, func(t *testing.T) {
			l := &life{t: t, honest: noon, clock: &fakeClock{wall: noon}, marks: new(fakeMarks)}
			l.guard = newGuard(t, l.marks, l.clock)
			held, most := 0, 0
			l.guard.Bound(least, func(n int) {
				held += n
				most = max(most, held)
			})
			l.pass(time.Hour)
			flooding := func(second int) {
				epoch := Epoch{}
				if second%3 == 0 {
					epoch = l.guard.epoch
				}
				for n := range perSecond {
					m := l.message(madeAt(n, l.honest), epoch)
					if l.guard.Admit(m.made, m.epoch, m.name) == nil && n%(perSecond/2) == 0 {
						l.old = append(l.old, m)
					}
				}
			}
			newcomer := func(off time.Duration) {
				made := l.honest.Add(off)
				l.pass(time.Second) // on its way
				switch err := l.admit(l.message(made, Epoch{})); {
				case err != nil && (off == 0 || err != ErrClock):
					t.Fatalf("a client that is off by %v: %v", off, err)
				case err == nil:
					return
				}
				now, epoch := l.guard.Time()
				l.pass(time.Second)
				if err := l.admit(l.message(now, epoch)); err != nil {
					t.Fatalf("a client that has learned the time: %v", err)
				}
			}
			for second := range 400 {
				flooding(second)
				newcomer([]time.Duration{0, -time.Minute, time.Minute, -time.Hour}[second%4])
				if second%20 == 0 {
					for _, m := range l.old {
						if l.guard.Admit(m.made, m.epoch, m.name) == nil {
							t.Fatalf("a message made %v ago is admitted again", l.honest.Sub(m.made))
						}
					}
				}
			}
			if most >= least+bucketCost+nameCost {
				t.Errorf("%d bytes were held of %d", most, least)
			}
			if l.guard.Forgotten() == 0 && name == "of now" {
				t.Error("that was no flood")
			}
			for range 5 * 60 {
				l.pass(time.Second)
				l.expect("afterwards", true)
				l.old = l.old[max(0, len(l.old)-2000):]
			}
			l.restart(true, 0, 0)
			l.expect("after a crash", false)
		})
	}
}

// What is remembered is counted, and has a bound in bytes.
func TestGuardIsCounted(t *testing.T) {
	clock := &fakeClock{wall: noon}
	g := newGuard(t, nil, clock)
	const bound = 1 << 18
	held, most := 0, 0
	g.Bound(bound, func(n int) {
		held += n
		most = max(most, held)
	})
	n := 0
	for range 400 {
		for _, ahead := range []time.Duration{0, Skew / 2, Skew} {
			for _, epoch := range []Epoch{{}, g.epoch} {
				for range 20 {
					n++
					g.Admit(clock.wall.Add(ahead), epoch, named(n)) //nolint:errcheck // some are too many
				}
			}
		}
		clock.pass(time.Second)
	}
	if most >= bound+bucketCost+nameCost || most < bound*9/10 {
		t.Errorf("%d bytes were held of %d", most, bound)
	}
	clock.pass(time.Hour)
	if err := g.Admit(clock.wall, Epoch{}, named(n+1)); err != nil || held != nameCost+bucketCost {
		t.Errorf("%v, and %d bytes are held for one message", err, held)
	}
}

// Of many copies of a message at once one is admitted.
func TestGuardConcurrent(t *testing.T) {
	g := newGuard(t, nil, &fakeClock{wall: noon})
	var admitted atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if g.Admit(noon, Epoch{}, named(1)) == nil {
				admitted.Add(1)
			}
		})
	}
	wg.Wait()
	if n := admitted.Load(); n != 1 {
		t.Errorf("admitted %d times", n)
	}
}

// Of clocks that are set again and again a bounded list remains, in which all is.
func TestStretches(t *testing.T) {
	var ss stretches
	var all []time.Time
	for i := range 100 {
		at := noon.Add(time.Duration(i*i*7919%1000) * time.Hour)
		all = append(all, at)
		ss.add(moment(at))
		for _, at := range all {
			if !ss.has(at) {
				t.Fatalf("%v is forgotten", at)
			}
		}
		for j := 1; j < len(ss); j++ {
			if ss[j].from.Sub(ss[j-1].to) <= joined {
				t.Fatalf("not in order, or not joined: %v", ss)
			}
		}
		if len(ss) > maxStretches {
			t.Fatalf("%d of them", len(ss))
		}
	}
	ss = nil
	ss.add(moment(noon))
	if at := noon.Truncate(time.Millisecond); ss.has(at.Add(-1)) || ss.has(at.Add(time.Millisecond)) || !ss.has(at) {
		t.Error("a moment is more or less than its millisecond")
	}
}

func FuzzStretches(f *testing.F) {
	f.Add([]byte("2023-11-14T22:13:20.123Z 2023-11-14T22:13:20.124Z\n"))
	f.Add([]byte("2023-11-14T22:13:20.123Z 2023-11-14T22:13:20.124Z\n2024-11-14T22:13:20.123Z 2025-11-14T22:13:20.124Z\n"))
	f.Add([]byte(""))
	f.Add([]byte("x y\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var ss, again stretches
		if ss.UnmarshalText(text) != nil {
			return
		}
		b, err := ss.MarshalText()
		if err == nil {
			err = again.UnmarshalText(b)
		}
		if b2, _ := again.MarshalText(); err != nil || string(b2) != string(b) || len(ss) > maxStretches {
			t.Fatalf("%q became %q, which became %q: %v", text, b, b2, err)
		}
	})
}
