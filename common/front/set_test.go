package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/internal/logtest"
)

// A site is a front in memory, which can be up, refuse connections, or take
// packets and say nothing. Its handler answers with its name.
type site struct {
	*memory
	name    string
	posesAs *site // that gets the connections; set before the first
	refuses atomic.Bool
	hangs   atomic.Bool
	status  atomic.Int32 // 0: 200
	retry   atomic.Value // Retry-After, a string
	served  atomic.Int32 // exchanges
	server  *server
}

func (s *site) dial(ctx context.Context) (net.Conn, error) {
	switch {
	case s.refuses.Load():
		s.dials.Add(1)
		return nil, errors.New("connection refused")
	case s.hangs.Load():
		s.dials.Add(1)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if s.posesAs != nil {
		return s.posesAs.memory.dial(ctx, "", "")
	}
	return s.memory.dial(ctx, "", "")
}

// fails lets everything of the site be silent: what is under way, too.
func (s *site) fails() {
	s.hangs.Store(true)
	s.goDark()
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	s.served.Add(1)
	if after, _ := s.retry.Load().(string); after != "" {
		w.Header().Set("Retry-After", after)
	}
	if status := s.status.Load(); status != 0 {
		w.WriteHeader(int(status))
	}
	io.WriteString(w, s.name)
}

// A setTest is a Set with its sites, in a bubble.
type setTest struct {
	t     *testing.T
	set   *Set
	sites map[string]*site
	log   *logtest.Buffer
}

// inSet runs a test with the sites named.
func inSet(t *testing.T, names string, test func(t *testing.T, x *setTest)) {
	authorityOf()
	synctest.Test(t, func(t *testing.T) {
		x := &setTest{t: t, sites: make(map[string]*site), log: new(logtest.Buffer)}
		var cfgs []Config
		for name := range strings.SplitSeq(names, " ") {
			s := &site{memory: newMemory(), name: name}
			cert := certFor(false, name+".example")
			s.server = serve(t, serverOptions{listener: s, cert: &cert}, s.serve)
			x.sites[name] = s
			cfgs = append(cfgs, Config{
				URL:     &url.URL{Scheme: "https", Host: originName, Path: "/path"},
				Front:   name + ".example",
				UTLS:    "none", // costs less time
				RootCAs: roots(),
				Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return s.dial(ctx)
				},
			})
		}
		var err error
		if x.set, err = NewSet(cfgs, slog.New(slog.NewTextHandler(x.log, nil))); err != nil {
			t.Fatal(err)
		}
		defer func() {
			x.set.Close()
			for _, s := range x.sites {
				s.server.http.Close()
			}
			time.Sleep(time.Minute) // what is on the way arrives
		}()
		test(t, x)
	})
}

// ask makes an exchange and returns who answered and how long it took.
func (x *setTest) ask() (string, time.Duration, error) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), 20*time.Second)
	defer cancel()
	begun := time.Now()
	resp, err := x.set.RoundTrip(post(ctx, "x"))
	if err != nil {
		return "", time.Since(begun), err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), time.Since(begun), err
}

// by makes an exchange that the site named has to answer, within most.
func (x *setTest) by(name string, most time.Duration) {
	x.t.Helper()
	got, took, err := x.ask()
	if err != nil || got != name {
		x.t.Fatalf("answered by %q after %v, %v; want %q\n%s", got, took, err, name, x.log)
	}
	if took > most {
		x.t.Errorf("answered by %q after %v, want %v at most", got, took, most)
	}
	if x.set.Name() != name+".example" {
		x.t.Errorf("Name is %q", x.set.Name())
	}
}

func (x *setTest) logged(text string) {
	x.t.Helper()
	if !strings.Contains(x.log.String(), text) {
		x.t.Errorf("not in the log: %q\n%s", text, x.log)
	}
}

func TestSetPrefersFirst(t *testing.T) {
	inSet(t, "a b c", func(t *testing.T, x *setTest) {
		for range 3 {
			x.by("a", 0)
		}
		if n := x.sites["a"].dials.Load() + 10*x.sites["b"].dials.Load() + 10*x.sites["c"].dials.Load(); n != 1 {
			t.Errorf("dials %d", n)
		}
		if n, _ := x.set.Slots(1); n != maxStreams {
			t.Errorf("room for %d exchanges", n)
		}
		x.logged(`msg="using a front" front=a.example number=1/3`)
	})
}

// A front that is dead at the start costs the stagger, not the time of a dial.
func TestSetDeadAtStart(t *testing.T) {
	inSet(t, "a b c", func(t *testing.T, x *setTest) {
		x.sites["a"].hangs.Store(true)
		x.by("b", stagger)
		synctest.Wait()
		if n := x.sites["c"].dials.Load(); n != 0 {
			t.Errorf("%d dials to the third", n)
		}
		// The dial that lost was ended: nothing comes of it.
		if f := x.set.members[0].front; f.pool.connected() || len(f.pool.dials.underWay) != 0 {
			t.Error("the loser is still being connected")
		}
	})
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		x.sites["a"].refuses.Store(true)
		x.by("b", 0)
		x.logged(`msg="leaving a front" front=a.example number=1/2`)
		x.logged("connection refused")
		x.logged(`msg="using a front" front=b.example number=2/2`)
	})
}

// A certificate that is not the front's is a reason to go elsewhere.
func TestSetBadCertificate(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		x.sites["a"].posesAs = x.sites["b"]
		x.by("b", 0)
		x.logged("certificate")
	})
}

// Concurrent first exchanges share one race.
func TestSetConcurrentStart(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		x.sites["a"].hangs.Store(true)
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if got, took, err := x.ask(); got != "b" || took > stagger {
					t.Errorf("%q after %v, %v", got, took, err)
				}
			})
		}
		all.Wait()
		if a, b := x.sites["a"].dials.Load(), x.sites["b"].dials.Load(); a != 1 || b != 1 {
			t.Errorf("%d and %d dials", a, b)
		}
	})
}

// A front that falls silent in the middle costs the exchange that noticed; the
// next one goes elsewhere at once.
func TestSetSilentInTheMiddle(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		x.by("a", 0)
		x.sites["a"].fails()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := x.set.RoundTrip(post(ctx, "x"))
		var e *Error
		if !errors.As(err, &e) || e.Front != "a.example" || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("error %v", err)
		}
		x.by("b", 0)
		x.logged(`msg="leaving a front" front=a.example`)
	})
}

// A cause that says that time ran out counts like a deadline.
func TestSetTimeoutByCause(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		x.by("a", 0)
		x.sites["a"].fails()
		for _, c := range []struct {
			cause error
			next  string
		}{
			{errors.New("not needed any more"), "a.example"},
			{fmt.Errorf("no answer: %w", os.ErrDeadlineExceeded), "b.example"},
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(5*time.Second, func() { cancel(c.cause) })
			if _, err := x.set.RoundTrip(post(ctx, "x")); !errors.Is(err, c.cause) {
				t.Errorf("error %v", err)
			}
			if c.next == "b.example" {
				x.by("b", 0)
			}
			if got := x.set.Name(); got != c.next {
				t.Errorf("after %q the front is %s", c.cause, got)
			}
			cancel(nil)
		}
	})
}

// An exchange whose connection had ended, and whose front cannot be reached
// again, goes elsewhere by itself when its body was not read.
func TestSetMovesUnsent(t *testing.T) {
	for _, how := range []string{"refuses", "hangs"} {
		inSet(t, "a b", func(t *testing.T, x *setTest) {
			x.by("a", 0)
			if how == "refuses" {
				x.sites["a"].refuses.Store(true)
			} else {
				x.sites["a"].hangs.Store(true)
			}
			x.sites["a"].last.Close()
			synctest.Wait()
			x.by("b", stagger)
			if n := x.sites["a"].served.Load(); n != 1 {
				t.Errorf("%s: %d exchanges by the first", how, n)
			}
		})
	}
}

// One exchange that fails while others succeed says nothing about the front.
func TestSetKeepsWorkingFront(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		x.by("a", 0)
		x.sites["a"].server.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if b, _ := io.ReadAll(r.Body); string(b) == "hold" {
				<-r.Context().Done()
				return
			}
			io.WriteString(w, "a")
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		time.AfterFunc(time.Second, func() {
			if got, _, err := x.ask(); got != "a" {
				t.Errorf("%q, %v", got, err)
			}
		})
		if _, err := x.set.RoundTrip(post(ctx, "hold")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		x.by("a", 0)
	})
}

// When all are dead the error names each, and one that comes back is found
// within seconds.
func TestSetAllDead(t *testing.T) {
	inSet(t, "a b c", func(t *testing.T, x *setTest) {
		for _, s := range x.sites {
			s.refuses.Store(true)
		}
		_, took, err := x.ask()
		if took != 0 || err == nil {
			t.Errorf("after %v: %v", took, err)
		}
		for name := range x.sites {
			if !strings.Contains(err.Error(), fmt.Sprintf("front %q: connect: connection refused", name+".example")) {
				t.Errorf("%s is not in: %v", name, err)
			}
		}
		var e *Error
		if !errors.As(err, &e) || e.Op != OpConnect {
			t.Errorf("error %#v", err)
		}

		// An outage of an hour is not an hour of dials, and whoever asks waits
		// a little rather than for nothing.
		before := x.sites["c"].dials.Load()
		for begun := time.Now(); time.Since(begun) < time.Hour; {
			if _, took, err := x.ask(); err == nil || took > nobodyElse {
				t.Fatalf("after %v: %v", took, err)
			}
		}
		dials := x.sites["c"].dials.Load() - before
		if most := int32(time.Hour/nobodyElse) + 10; dials < 100 || dials > most {
			t.Errorf("%d dials in an hour, want %d at most", dials, most)
		}

		x.sites["b"].refuses.Store(false)
		for begun := time.Now(); ; {
			got, _, err := x.ask()
			if took := time.Since(begun); took > nobodyElse {
				t.Fatalf("%q after %v, %v", got, took, err)
			}
			if err == nil {
				break
			}
		}
		x.by("b", 0)
	})
}

// The same where one of the dead fronts is silent: it does not keep others from
// being tried again.
func TestSetRevivedBesideSilent(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		x.sites["a"].hangs.Store(true)
		x.sites["b"].refuses.Store(true)
		time.AfterFunc(5*time.Second, func() { x.sites["b"].refuses.Store(false) })
		x.by("b", 5*time.Second+nobodyElse)
	})
}

// A dead front is tried again after a time that grows, when one is wanted: here
// beside one that is slow to connect, every two minutes, as its connection is
// closed when it is idle.
func TestSetBackOff(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		a, b := x.sites["a"], x.sites["b"]
		a.refuses.Store(true)
		b.memory.delay = 1500 * time.Millisecond // slower than maxStagger
		x.by("b", 10*time.Second)
		tries := a.dials.Load()
		last := time.Now()
		for range 100 {
			time.Sleep(2 * time.Minute)
			x.by("b", 10*time.Second)
			if n := a.dials.Load(); n != tries {
				if n != tries+1 {
					t.Errorf("%d dials at once", n-tries)
				}
				if gap, least := time.Since(last), min(minAside<<(tries-1), maxAside)/2; gap < least {
					t.Errorf("try %d after %v, want %v at least", n, gap, least)
				}
				tries, last = n, time.Now()
			}
		}
		if tries < 20 {
			t.Errorf("%d tries in 200 minutes", tries)
		}
		// When it is back, it is as good as any.
		a.refuses.Store(false)
		for range 10 {
			time.Sleep(2 * time.Minute)
			if got, _, err := x.ask(); err != nil {
				t.Fatal(err)
			} else if got == "a" {
				x.logged(`msg="using a front" front=a.example`)
				return
			}
		}
		t.Error("never tried again")
	})
}

// How long a front is left alone doubles, with jitter, up to a limit.
func TestSetAsideGrows(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		h := x.set.members[0].health
		seen := make(map[time.Duration]bool)
		for i := range 40 {
			h.unreachable(errors.New("test"))
			aside := time.Until(h.aside)
			most := min(minAside<<min(i, 20), maxAside)
			if aside < most/2 || aside > most {
				t.Errorf("after %d failures aside for %v", i+1, aside)
			}
			seen[aside] = true
		}
		if len(seen) < 20 {
			t.Error("no jitter")
		}
	})
}

// 421 says that this CDN refuses fronting: a typed error, and another front for
// the minutes that follow.
func TestSetMisdirected(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		x.sites["a"].status.Store(http.StatusMisdirectedRequest)
		_, _, err := x.ask()
		var e *Error
		if !errors.Is(err, ErrFrontingRefused) || !errors.As(err, &e) || e.Front != "a.example" || e.Unsent {
			t.Fatalf("error %v", err)
		}
		x.by("b", 0)
		x.logged("refuses domain fronting")
		for range 9 {
			time.Sleep(time.Minute)
			x.sites["b"].last.Close()
			synctest.Wait()
			x.by("b", 0)
		}
		if n := x.sites["a"].served.Load(); n != 1 {
			t.Errorf("%d exchanges by the one that refuses", n)
		}
	})
	inSet(t, "a", func(t *testing.T, x *setTest) {
		x.sites["a"].status.Store(http.StatusMisdirectedRequest)
		for range 2 {
			if _, took, err := x.ask(); !errors.Is(err, ErrFrontingRefused) || took != 0 {
				t.Errorf("after %v: %v", took, err)
			}
		}
	})
}

// What a front says by its status, and how many times it has to say it.
func TestSetStatus(t *testing.T) {
	for status, times := range map[int]int{
		http.StatusForbidden:                  1,
		http.StatusUnavailableForLegalReasons: 1,
		http.StatusTooManyRequests:            maxStrikes,
		http.StatusBadGateway:                 maxStrikes,
		http.StatusGatewayTimeout:             maxStrikes,
		http.StatusNotFound:                   0, // the server's decoy may say so
		http.StatusRequestEntityTooLarge:      0, // it says nothing about the front
	} {
		inSet(t, "a b", func(t *testing.T, x *setTest) {
			x.sites["a"].status.Store(int32(status))
			for range max(times, 10*(1-min(times, 1))) {
				x.by("a", 0)
			}
			if times > 0 {
				x.by("b", 0)
				x.logged(fmt.Sprint("status ", status))
			}
		})
	}
	// Answers between them are a new beginning.
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		for range 5 {
			x.sites["a"].status.Store(http.StatusBadGateway)
			x.by("a", 0)
			x.by("a", 0)
			x.sites["a"].status.Store(0)
			x.by("a", 0)
		}
	})
}

// A front that asks to be left alone is, while another one carries; the caller
// is to stay away only when there is no other.
func TestSetRetryAfter(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		x.sites["a"].status.Store(http.StatusServiceUnavailable)
		x.sites["a"].retry.Store("120")
		x.sites["b"].status.Store(http.StatusServiceUnavailable)
		x.sites["b"].retry.Store(time.Now().Add(time.Minute).UTC().Format(http.TimeFormat))
		for i, name := range []string{"a", "b"} {
			if d := x.set.Rest(); d != 0 {
				t.Errorf("stay away for %v before answer %d", d, i)
			}
			x.by(name, 0)
		}
		if d := x.set.Rest(); d != time.Minute {
			t.Errorf("stay away for %v, want as long as the less strict one says", d)
		}
		// Both want to be left alone, which holds although nothing else works.
		if _, took, err := x.ask(); took != 0 || err == nil || !strings.Contains(err.Error(), "status 503") {
			t.Errorf("after %v: %v", took, err)
		}
		x.sites["b"].status.Store(0)
		x.sites["b"].retry.Store("")
		time.Sleep(time.Minute)
		x.by("b", 0)
	})
}

// The only front carries on when it asks to be left alone, for whoever does not
// ask the Set, and asks for no more than maxAsked.
func TestSetRetryAfterAlone(t *testing.T) {
	inSet(t, "a", func(t *testing.T, x *setTest) {
		x.sites["a"].status.Store(http.StatusTooManyRequests)
		for asked, want := range map[string]time.Duration{"20": 20 * time.Second, "3600": maxAsked, "soon": 0, "-1": 0} {
			time.Sleep(time.Hour)
			x.sites["a"].retry.Store(asked)
			x.by("a", 0)
			if d := x.set.Rest(); d != want {
				t.Errorf("Retry-After %s: stay away for %v, want %v", asked, d, want)
			}
			x.by("a", 0)
		}
	})
}

// A time to stay away until is that of the clock which wrote it, not this one's.
func TestRetryAfter(t *testing.T) {
	const written = "Tue, 03 Mar 2026 10:00:00 GMT"
	soon := time.Now().Add(30 * time.Second).UTC().Format(http.TimeFormat)
	for _, c := range []struct {
		why, value, date string
		want             time.Duration
	}{
		{"seconds", "7", written, 7 * time.Second},
		{"seconds between spaces", " 7 ", "", 7 * time.Second},
		{"more seconds than anybody waits", "999999999", "", maxAside},
		{"less than none", "-1", written, 0},
		{"a time after the answer's", "Tue, 03 Mar 2026 10:00:05 GMT", written, 5 * time.Second},
		{"a time before the answer's", "Tue, 03 Mar 2026 09:00:00 GMT", written, 0},
		{"the formats of old", "Tuesday, 03-Mar-26 10:00:05 GMT", "Tue Mar  3 10:00:00 2026", 5 * time.Second},
		{"neither", "soon", written, 0},
		{"nothing", "", written, 0},
	} {
		if d := retryAfter(http.Header{"Retry-After": {c.value}, "Date": {c.date}}); d != c.want {
			t.Errorf("%s: %v, want %v", c.why, d, c.want)
		}
	}
	for _, date := range []string{"", "now"} {
		if d := retryAfter(http.Header{"Retry-After": {soon}, "Date": {date}}); d < 20*time.Second || d > 30*time.Second {
			t.Errorf("without a Date: %v", d)
		}
	}
}

// The only front may close its connection when it asks to be left alone. Who
// comes meanwhile is told why there is no other.
func TestSetRestAloneUnconnected(t *testing.T) {
	inSet(t, "a", func(t *testing.T, x *setTest) {
		x.sites["a"].status.Store(http.StatusServiceUnavailable)
		x.sites["a"].retry.Store("30")
		x.by("a", 0)
		x.set.members[0].front.pool.abandon()
		_, took, err := x.ask()
		if e, ok := err.(*Error); !ok || e.Front != "a.example" || took != 0 || !strings.Contains(err.Error(), "status 503") {
			t.Errorf("after %v: %T %v", took, err, err)
		}
		x.sites["a"].status.Store(0)
		x.sites["a"].retry.Store("")
		time.Sleep(30 * time.Second)
		x.by("a", 0)
	})
}

// There is no rest while one front has not asked for it, though nobody reaches it.
func TestSetRestUnreachable(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		x.sites["a"].refuses.Store(true)
		x.sites["b"].status.Store(http.StatusServiceUnavailable)
		x.sites["b"].retry.Store("120")
		x.by("b", time.Second)
		if d := x.set.Rest(); d != 0 {
			t.Errorf("stay away for %v", d)
		}
	})
}

// Users share the exchanges that there may be.
func TestSlots(t *testing.T) {
	inSet(t, "a", func(t *testing.T, x *setTest) {
		for users, want := range map[int]struct {
			each    int
			crowded bool
		}{0: {maxConns, false}, 1: {maxConns, false}, 3: {2, false}, 4: {1, true}, 100: {1, true}} {
			if each, crowded := x.set.Slots(users); each != want.each || crowded != want.crowded {
				t.Errorf("%d users: %d each, crowded %t, want %+v", users, each, crowded, want)
			}
		}
	})
}

// Answers that are not the server's are reported by who can tell.
func TestSetForeign(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		report := func() {
			t.Helper()
			resp, err := x.set.RoundTrip(post(t.Context(), "x"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			x.set.Foreign(resp)
		}
		// One now and then is no reason to go.
		for range 3 {
			report()
			for range foreignApart + 1 {
				x.by("a", 0)
			}
		}
		for range foreignStrikes {
			x.by("a", 0)
			report()
		}
		x.by("b", 0)
		x.logged("not the server's")
		if err, ok := x.set.members[0].health.failure().(*Error); !ok || err.Front != "a.example" {
			t.Errorf("it is left for %v", err)
		}
		x.set.Foreign(&http.Response{}) // of nobody
	})
}

func TestSetClose(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		for _, s := range x.sites {
			s.hangs.Store(true)
		}
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				body := &watchedBody{Reader: strings.NewReader("x")}
				_, err := x.set.RoundTrip(postBody(t.Context(), body, 1))
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("error %v", err)
				}
				if body.read.Load() || body.closed.Load() != 1 {
					t.Errorf("body read: %t, closed %d times", body.read.Load(), body.closed.Load())
				}
			})
		}
		time.Sleep(time.Second)
		x.set.Close()
		all.Wait()
		if _, _, err := x.ask(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v", err)
		}
		x.set.Close()
	})
}

// An exchange that gives up while fronts are being connected leaves them to the
// next one.
func TestSetImpatientExchange(t *testing.T) {
	inSet(t, "a b", func(t *testing.T, x *setTest) {
		x.sites["a"].hangs.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), stagger/2)
		defer cancel()
		_, err := x.set.RoundTrip(post(ctx, "x"))
		var e *Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &e) || !e.Unsent {
			t.Errorf("error %v", err)
		}
		x.by("b", stagger/2)
	})
}

func TestNewSetRefuses(t *testing.T) {
	if _, err := NewSet(nil, nil); err == nil {
		t.Error("no front accepted")
	}
	good := Config{URL: &url.URL{Scheme: "https", Host: originName}}
	bad := good
	bad.Front = "a..b"
	if _, err := NewSet([]Config{good, bad}, nil); err == nil || !strings.HasPrefix(err.Error(), "front: ") {
		t.Errorf("error %v", err)
	}
	s, err := NewSet([]Config{good}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := s.Slots(1); s.Name() != originName || n != maxConns {
		t.Errorf("%s, %d", s.Name(), n)
	}
	s.Close()
}

// A single front that refuses connections fails at once, and each time.
func TestSetSingleRefused(t *testing.T) {
	dials := 0
	s, err := NewSet([]Config{{
		URL: &url.URL{Scheme: "http", Host: "origin.example", Path: "/"},
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			dials++
			return nil, syscall.ECONNREFUSED
		},
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for want := range 3 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://origin.example/x", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.RoundTrip(req); !errors.Is(err, syscall.ECONNREFUSED) || dials != want+1 {
			t.Fatalf("%v after %d dials, want %d", err, dials, want+1)
		}
	}
}
