package carrier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
	"turbotunnel/internal/logtest"
)

const ms = time.Millisecond

// bubble runs f in a synctest bubble: its time passes when all wait, and f
// fails if a goroutine is left in the end.
func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.end()
		f(t, w)
	})
}

// say sends a datagram and expects it at the other end.
func say(t *testing.T, from, to *Conn, text string) {
	t.Helper()
	if _, err := from.WriteTo([]byte(text), nil); err != nil {
		t.Errorf("%q is not taken: %v", text, err)
		return
	}
	buf := make([]byte, wire.RecordRoom)
	if n, _, err := to.ReadFrom(buf); err != nil || string(buf[:n]) != text {
		t.Errorf("instead of %q came %q, %v", text, buf[:n], err)
	}
}

// TestHandshakeFailures is about servers that cannot be had.
func TestHandshakeFailures(t *testing.T) {
	for _, c := range []struct {
		name   string
		fate   fate
		config func(*ClientConfig)
		want   error
		text   string // in the error
		least  int    // requests
		most   int
	}{
		{"refused connections", fate{refuse: true}, nil, ErrUnreachable, "connection refused", 3, 3},
		{"silence", fate{vanish: true}, nil, ErrUnreachable, "no answer within", 3, 3},
		{"a silent proxy", fate{}, func(c *ClientConfig) { c.Transport = stranded{c.Transport.(*network)} }, ErrUnreachable, "the proxy is silent: no answer within", 0, 0},
		{"a gateway in trouble", fate{instead: page(http.StatusBadGateway)}, nil, ErrUnreachable, "status 502", 3, 3},
		{"a page", fate{instead: page(http.StatusOK)}, nil, ErrNotServer, `"text/html"`, 3, 3},
		{"a page before the request is read", fate{instead: page(http.StatusOK), readHeaders: true}, nil, ErrNotServer, `"text/html"`, 3, 3},
		{"a redirection", fate{instead: page(http.StatusFound)}, nil, ErrNotServer, "status 302", 3, 3},
		{"an empty answer", fate{cutAnswer: true, back: ms}, nil, ErrUnreachable, "cut short", 3, 3},
		{"half an answer", fate{cutAnswer: true, cutAt: 40, back: ms}, nil, ErrUnreachable, "cut short", 3, 3},
		{"a front with a clock of its own", fate{instead: func(r *request) *http.Response {
			return page(http.StatusNotFound, "Date", time.Now().Add(time.Duration(r.number+1)*time.Hour).UTC().Format(http.TimeFormat))(r)
		}}, nil, ErrNotServer, "status 404", 3, 3},
		{"a front with days of its own", fate{instead: func(r *request) *http.Response {
			return page(http.StatusNotFound, "Date", time.Now().AddDate(0, 0, 2*r.number+2).UTC().Format(http.TimeFormat))(r)
		}}, func(c *ClientConfig) { c.Transport = connecting{c.Transport.(*network)} }, ErrClock, "status 404", 1, 1},
		{"another key", fate{}, func(c *ClientConfig) { c.Key = handshake.GenerateKey().Public() }, ErrNotServer, "status 404", 3, 3},
		{"no such engine", fate{}, func(c *ClientConfig) { c.Engine = "steam" }, ErrRefused, `no engine "steam", but "raw,other"`, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.net.set(always(c.fate))
				var more []func(*ClientConfig)
				if c.config != nil {
					more = append(more, c.config)
				}
				client := w.dial(Poll, more...)
				client.Conn().WriteTo([]byte("early"), nil)
				<-client.Done()
				if err := client.Err(); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
					t.Errorf("error %v, want %v and %s", err, c.want, c.text)
				}
				if _, err := client.Conn().WriteTo([]byte("late"), nil); !errors.Is(err, net.ErrClosed) {
					t.Errorf("WriteTo: %v", err)
				}
				if _, _, err := client.Conn().ReadFrom(make([]byte, 10)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("ReadFrom: %v", err)
				}
				if isClosed(client.Ready()) {
					t.Error("ready")
				}
				if n := w.net.count(); n < c.least || n > c.most {
					t.Errorf("%d requests, want %d to %d", n, c.least, c.most)
				}
				if n := w.server.Stats().Opened; n != 0 && !c.fate.cutAnswer {
					t.Errorf("%d sessions were opened", n)
				}
			})
		})
	}
}

// A rest that the fronts ask for puts off the end of a handshake no further than
// to the time that there is for it.
func TestHandshakeRests(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(fate{there: ms, back: ms, instead: page(http.StatusServiceUnavailable, "Retry-After", "40")}))
		begin := time.Now()
		client := w.dial(Poll)
		<-client.Done()
		if d := time.Since(begin); d < 40*time.Second || d > handshakeTime+time.Second || !strings.Contains(client.Err().Error(), "status 503") {
			t.Errorf("after %v: %v", d, client.Err())
		}
	})
}

// A version that the server does not know is refused with an error that says
// which ones there are.
func TestRefusal(t *testing.T) {
	for _, c := range []struct {
		answer handshake.Answer
		text   string
	}{
		{handshake.Answer{Status: handshake.UnknownVersion, Version: 7}, "speaks version 1 of the protocol, the server up to 7"},
		{handshake.Answer{Status: handshake.UnknownEngine, Text: "\x1b[31m"}, `\x1b[31m`},
		{handshake.Answer{Status: 200}, "status 200"},
	} {
		if err := refusal(c.answer, "raw"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: %q", c.answer, err)
		}
	}
	if err := refusal(handshake.Answer{}, "raw"); err != nil {
		t.Error(err)
	}
}

// The first message's datagrams come before all others, and only once, however
// often the message is made or sent.
func TestEarlyData(t *testing.T) {
	for name, bad := range map[string]fate{
		"good network":          {},
		"request lost":          {refuse: true},
		"answer lost":           {loseAnswer: true},
		"answer cut":            {cutAnswer: true, cutAt: 30},
		"answer cut after keys": {cutAnswer: true, cutAt: 700},
		"doubled":               {again: true, after: ms},
		"doubled at once":       {again: true},
		"second answer":         {again: true, second: true, after: ms},
		"request cut":           {cutRequest: true, cutAt: 500},
		"page":                  {instead: page(http.StatusOK)},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.net.set(func(r *request) fate {
					if r.number == 0 {
						return bad
					}
					return fate{there: 10 * ms, back: 10 * ms}
				})
				client := w.dial(Poll)
				// More than a first message takes: the rest are records.
				const n = 20
				done := transfer(t, "up", client.Conn(), (<-w.accepted).Conn(), n)
				<-client.Ready()
				<-done
				quiet(t, "the server", w.remote[0].Conn())
				if n := w.server.Stats().Opened; n != 1 {
					t.Errorf("%d sessions were opened", n)
				}
			})
		})
	}
}

// connecting is a network whose connections take 10 ms to be made.
type connecting struct{ *network }

func (c connecting) RoundTrip(req *http.Request) (*http.Response, error) {
	sleep(req.Context(), 10*ms)
	return c.network.RoundTrip(req)
}

// stranded is a network to which there is no connection yet.
type stranded struct{ *network }

func (s stranded) RoundTrip(req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	req.Body.Close()
	return nil, fmt.Errorf("the proxy is silent: %w", context.Cause(req.Context()))
}

// What is written before the first connection is there travels in the first
// message; what the server's side says at once comes back in its answer.
func TestNoExtraRoundTrip(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream, Auto} {
		bubble(t, func(t *testing.T, w *world) {
			w.net.set(always(fate{there: 100 * ms, back: 100 * ms}))
			begin := time.Now()
			client := w.dial(mode, func(cfg *ClientConfig) { cfg.Transport = connecting{w.net} })
			client.Conn().WriteTo([]byte("ping"), nil)
			session := <-w.accepted
			buf := make([]byte, 10)
			if n, _, err := session.Conn().ReadFrom(buf); string(buf[:n]) != "ping" || time.Since(begin) != 110*ms {
				t.Errorf("after %v: %q, %v", time.Since(begin), buf[:n], err)
			}
			session.Conn().WriteTo([]byte("pong"), nil)
			if n, _, err := client.Conn().ReadFrom(buf); string(buf[:n]) != "pong" || time.Since(begin) > 220*ms {
				t.Errorf("after %v: %q, %v", time.Since(begin), buf[:n], err)
			}
		})
	}
}

// Where the connection is there already, the first message waits a little for what
// it can carry, and no longer.
func TestFirstWords(t *testing.T) {
	for _, test := range []struct{ after, arrives time.Duration }{
		{0, 100 * ms},
		{2 * ms, 102 * ms},
		{firstWords + ms, 300*ms + firstWords}, // with the next exchange
	} {
		bubble(t, func(t *testing.T, w *world) {
			w.net.set(always(fate{there: 100 * ms, back: 100 * ms}))
			begin := time.Now()
			client := w.dial(Poll)
			time.Sleep(test.after)
			client.Conn().WriteTo([]byte("ping"), nil)
			session := <-w.accepted
			buf := make([]byte, 10)
			if n, _, err := session.Conn().ReadFrom(buf); string(buf[:n]) != "ping" || time.Since(begin) != test.arrives {
				t.Errorf("said after %v, arrived after %v: %q, %v", test.after, time.Since(begin), buf[:n], err)
			}
		})
	}
}

// A session that nothing has come through for its lifetime ends, says how it
// failed last, and had not worn out the path before.
func TestLifetime(t *testing.T) {
	for _, c := range []struct {
		name string
		fate fate
		text string
		most int // requests in the five minutes
	}{
		{"refused connections", fate{there: ms, refuse: true}, "connection refused", 200},
		{"silence", fate{vanish: true}, "no answer within", 100},
		{"pages", fate{there: ms, instead: page(http.StatusOK)}, `"text/html"`, 200},
		{"too large, always", fate{there: ms, instead: page(http.StatusRequestEntityTooLarge)}, "status 413", 200},
		{"too many, always", fate{there: ms, instead: page(http.StatusTooManyRequests, "Retry-After", "30")}, "status 429", 20},
		{"cut answers", fate{there: ms, back: ms, cutAnswer: true, cutAt: 5}, "cut short", 200},
	} {
		for _, mode := range []Mode{Poll, Stream, Auto} {
			t.Run(c.name+"/"+string(mode), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					client, session := w.pair(mode)
					say(t, client.Conn(), session.Conn(), "hello")
					say(t, session.Conn(), client.Conn(), "hello")
					time.Sleep(time.Minute)
					begin, before := time.Now(), w.net.count()
					w.net.set(always(c.fate))
					w.net.cutAll()
					client.Conn().WriteTo([]byte("lost"), nil)
					<-client.Done()
					if took := time.Since(begin); took < Lifetime-30*time.Second || took > Lifetime+time.Minute {
						t.Errorf("ended after %v", took)
					}
					if err := client.Err(); !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), c.text) {
						t.Errorf("error %v", err)
					}
					if n := w.net.count() - before; n > c.most {
						t.Errorf("%d requests", n)
					}
				})
			})
		}
	}
}

// A path that was good and now answers like a web site makes the client
// think that it was forgotten; one that is merely bad does not.
func TestForgotten(t *testing.T) {
	for _, c := range []struct {
		name string
		fate fate
		want bool
	}{
		{"page", fate{there: ms, instead: page(http.StatusOK)}, true},
		{"not found", fate{there: ms, instead: page(http.StatusNotFound)}, true},
		{"bad gateway", fate{there: ms, instead: page(http.StatusBadGateway)}, false},
		{"unavailable", fate{there: ms, instead: page(http.StatusServiceUnavailable)}, false},
		{"too many", fate{there: ms, instead: page(http.StatusTooManyRequests)}, false},
		{"too large", fate{there: ms, instead: page(http.StatusRequestEntityTooLarge)}, false},
		{"refused connections", fate{there: ms, refuse: true}, false},
		{"answers cut", fate{there: ms, back: ms, cutAnswer: true, cutAt: 5}, false},
		{"answers cut at once", fate{there: ms, back: ms, cutAnswer: true}, false},
		{"silence", fate{vanish: true}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				client, session := w.pair(Poll)
				say(t, client.Conn(), session.Conn(), "before")
				w.net.set(always(c.fate))
				w.net.cutAll()
				time.Sleep(time.Minute)
				v, _ := client.Verdict()
				if v.Forgotten != c.want || client.SeemsForgotten() != c.want {
					t.Errorf("%+v, SeemsForgotten %v, want %v", v, client.SeemsForgotten(), c.want)
				}
				client.mu.Lock()
				heard := client.heard
				client.mu.Unlock()
				if v.Forgotten && !v.Since.After(heard) {
					t.Errorf("what was asked before the last answer shows nothing: %+v", v)
				}
				w.net.set(nil)
				say(t, client.Conn(), session.Conn(), "after")
				say(t, session.Conn(), client.Conn(), "after")
				time.Sleep(time.Minute)
				if client.SeemsForgotten() {
					t.Error("still seems forgotten")
				}
			})
		})
	}
}

// A computer that has slept stops one clock, and is told the time by the other.
func TestStale(t *testing.T) {
	for _, c := range []struct {
		why   string
		heard time.Time
		want  bool
	}{
		{"nothing was heard yet", time.Time{}, false},
		{"just now", time.Now(), false},
		{"somewhat less than the Lifetime ago", time.Now().Add(time.Minute - Lifetime), false},
		{"longer ago", time.Now().Add(-Lifetime - time.Second), true},
		{"longer ago by the clock that sleep does not stop", time.Now().Round(0).Add(-Lifetime - time.Second), true},
	} {
		if m := (&milestones{heard: c.heard}); m.Stale() != c.want {
			t.Errorf("%s: Stale is %v", c.why, !c.want)
		}
	}
}

// What came before the program was suspended, and is read when it goes on, does not show
// that the server still knows the session.
func TestUnreadShowsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		o, client, session := w.observe(Poll, nil)
		time.Sleep(time.Second) // the answer to the first message ends
		say(t, session.Conn(), client.Conn(), "before")
		time.Sleep(time.Second)
		var units []byte
		for _, e := range o.since(1) {
			for _, c := range e.written() {
				if n, _ := opened(t, session.link.send, c.b); n > 0 {
					units = c.b
				}
			}
		}
		if units == nil {
			t.Fatal("no answer has units")
		}
		now := time.Now()
		for _, c := range []struct {
			why     string
			started time.Time
			want    bool
		}{
			{"just asked", now, true},
			{"somewhat less than the Lifetime ago", now.Add(time.Minute - Lifetime), true},
			{"longer ago", now.Add(-Lifetime - time.Second), false},
			{"longer ago by the clock that sleep does not stop", now.Round(0).Add(-Lifetime - time.Second), false},
		} {
			client.mu.Lock()
			client.heard = now.Add(-2 * Lifetime)
			client.mu.Unlock()
			// Twice: all but the first unit are read at once.
			body := bytes.NewReader(slices.Concat(units, units))
			err := client.takeIn(body, &http.Response{}, &result{flight: &flight{started: c.started}}, func() {})
			if err != nil || body.Len() != 0 {
				t.Fatal(err, body.Len())
			}
			if got := !client.Stale(); got != c.want {
				t.Errorf("%s: the server is known to know the session: %v", c.why, got)
			}
		}
	})
}

// An idle session is quiet, and a few words cost a few requests.
func TestRequestsAreFew(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream, Auto} {
		t.Run(string(mode), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.net.set(always(fate{there: 50 * ms, back: 50 * ms}))
				client, session := w.pair(mode)
				time.Sleep(5 * time.Minute)
				spent := func(what string, most int, f func()) {
					t.Helper()
					before := w.net.count()
					f()
					if n := w.net.count() - before; n > most {
						t.Errorf("%s costs %d requests, want %d at most", what, n, most)
					}
				}
				spent("an idle minute", 3, func() { time.Sleep(time.Minute) })
				spent("a word to the server", 4, func() {
					say(t, client.Conn(), session.Conn(), "up")
					time.Sleep(time.Second)
				})
				time.Sleep(5 * time.Minute)
				spent("a word to the client", 4, func() {
					say(t, session.Conn(), client.Conn(), "down")
					time.Sleep(time.Second)
				})
			})
		})
	}
}

// What the Transport calls a rest is kept (Retry-After), although other exchanges succeed meanwhile.
func TestRest(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(fate{there: 10 * ms, back: 10 * ms}))
		client, session := w.pair(Poll)
		say(t, client.Conn(), session.Conn(), "before")
		time.Sleep(time.Minute)
		w.net.set(always(fate{there: ms, back: ms, instead: page(http.StatusTooManyRequests, "Retry-After", "20")}))
		begin := time.Now()
		client.Conn().WriteTo([]byte("during"), nil)
		time.Sleep(time.Second)
		w.net.set(nil)
		// The poll that is open ends well.
		session.Conn().WriteTo([]byte("answer"), nil)
		buf := make([]byte, 20)
		if n, _, err := client.Conn().ReadFrom(buf); string(buf[:n]) != "answer" {
			t.Errorf("%q, %v", buf[:n], err)
		}
		if n, _, err := session.Conn().ReadFrom(buf); string(buf[:n]) != "during" || time.Since(begin) < 20*time.Second || time.Since(begin) > 25*time.Second {
			t.Errorf("after %v: %q, %v", time.Since(begin), buf[:n], err)
		}
	})
}

// A body that is too large for the path makes bodies smaller by what was
// refused, not by how often.
func TestBodyLimit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		client, session := w.pair(Poll)
		var largest int64
		w.net.set(func(r *request) fate {
			f := bodyLimit(fate{there: 50 * ms, back: 50 * ms}, 200<<10)(r)
			if f.instead == nil {
				largest = max(largest, r.ContentLength)
			}
			return f
		})
		<-transfer(t, "up", client.Conn(), session.Conn(), 2000)
		w.net.mu.Lock()
		defer w.net.mu.Unlock()
		if largest < 50<<10 {
			t.Errorf("on a path that takes 200 KB bodies are of %d bytes at most", largest)
		}
	})
}

// A gateway that answers in place of large answers is learned, whatever it says, and
// although the client sends, too: requests are not blamed for their answers.
func TestAnswerLimit(t *testing.T) {
	for _, status := range []int{http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusTooManyRequests} {
		for _, c := range []struct {
			limit int
			trip  time.Duration // a path that is near carries much until the limit is learned
		}{{8000, 300 * ms}, {20000, 300 * ms}, {100000, 300 * ms}, {500000, 30 * ms}} {
			if testing.Short() && c.limit != 20000 {
				continue
			}
			for _, mode := range []Mode{Poll, Stream, Auto} {
				t.Run(fmt.Sprint(status, " above ", c.limit, ", ", mode), func(t *testing.T) {
					bubble(t, func(t *testing.T, w *world) {
						w.net.set(answersAbove(fate{there: c.trip / 2, back: c.trip / 2}, c.limit, status))
						client, session := w.pair(mode)
						down := fill(session.Conn(), client.Conn(), 0)
						up := fill(client.Conn(), session.Conn(), 5*ms)
						way := client.way()
						begin := time.Now()
						for way.down.known(largestBody) >= 3*c.limit && time.Since(begin) < time.Minute {
							time.Sleep(c.trip)
						}
						if got := way.down.known(largestBody); got >= 3*c.limit {
							t.Errorf("after %v answers of %d bytes are taken to pass", time.Since(begin), got)
						}
						if way.up.limited() {
							t.Error("requests are taken to be refused for their size")
						}
						client.Conn().Close()
						session.Conn().Close()
						<-down
						<-up
					})
				})
			}
		}
	}
}

// The limit is learned as fast where nothing waits at the server, since all that there is
// to say is in answers that are refused. Until it is, each of them carries the same again.
func TestAnswerLimitNothingWaits(t *testing.T) {
	const sessions = 8 // which of them are lucky is chance
	var again uint64
	for range sessions {
		bubble(t, func(t *testing.T, w *world) {
			w.net.set(answersAbove(fate{there: 100 * ms, back: 100 * ms}, 8000, http.StatusServiceUnavailable))
			client, session := w.pair(Poll)
			both(t, client, session, 800)
			again += session.link.out.resent.Load()
		})
	}
	if again > sessions*12<<20 {
		t.Errorf("%d bytes were sent again in each session", again/sessions)
	}
}

// Where one exchange gets through at a time its answer measures no round trip, and an
// upload grows all the same.
func TestOneAtATimeGrows(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.atMost(1)
		w.net.set(always(fate{there: 150 * ms, back: 150 * ms}))
		client, session := w.pair(Poll)
		done := fill(client.Conn(), session.Conn(), 0)
		time.Sleep(20 * time.Second)
		client.link.mu.Lock()
		size := client.link.out.window.size
		client.link.mu.Unlock()
		if size < 4*firstFlight {
			t.Errorf("a window of %d bytes after 20 s of uploading, as at first", size)
		}
		client.Conn().Close()
		session.Conn().Close()
		<-done
	})
}

// fill writes to one Conn, with pauses, and reads from another until both are closed.
func fill(from, to *Conn, every time.Duration) (done chan struct{}) {
	done = make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			if _, err := from.WriteTo(datagram(i), nil); err != nil {
				return
			}
			time.Sleep(every)
		}
	})
	wg.Go(func() {
		buf := make([]byte, wire.RecordRoom)
		for {
			if _, _, err := to.ReadFrom(buf); err != nil {
				return
			}
		}
	})
	go func() {
		wg.Wait()
		close(done)
	}()
	return done
}

// Closing the Conn ends the session soon, whatever the network does, and sends
// what was written before if that is possible.
func TestClientClose(t *testing.T) {
	for name, f := range map[string]fate{
		"good network":        {there: 10 * ms, back: 10 * ms},
		"lossy network":       {there: 10 * ms, back: 10 * ms},
		"silence":             {vanish: true},
		"refused connections": {refuse: true},
		"pages":               {there: 10 * ms, instead: page(http.StatusOK)},
	} {
		t.Run(name+"/established", func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				client, session := w.pair(Poll)
				w.net.set(always(f))
				if name == "lossy network" {
					w.net.set(lossy(w.net))
				}
				for i := range 100 {
					client.Conn().WriteTo(datagram(i), nil)
					if i%10 == 0 {
						time.Sleep(5 * ms) // so that there are several exchanges
					}
				}
				begin := time.Now()
				client.Conn().Close()
				<-client.Done()
				if took := time.Since(begin); took > farewellTime+time.Second {
					t.Errorf("took %v", took)
				}
				if err := client.Err(); err != nil {
					t.Errorf("error %v", err)
				}
				if name != "good network" && name != "lossy network" {
					return
				}
				buf := make([]byte, wire.RecordRoom)
				for i := range 100 {
					if n, _, err := session.Conn().ReadFrom(buf); err != nil || !bytes.Equal(buf[:n], datagram(i)) {
						t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
					}
				}
				if _, _, err := session.Conn().ReadFrom(buf); !errors.Is(err, net.ErrClosed) {
					t.Errorf("after the farewell: %v", err)
				}
				session.Conn().Close()
				synctest.Wait()
				w.empty("after the farewell")
			})
		})
		t.Run(name+"/before", func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.net.set(always(f))
				client := w.dial(Poll)
				client.Conn().WriteTo([]byte("early"), nil)
				time.Sleep(ms)
				begin := time.Now()
				client.Conn().Close()
				<-client.Done()
				if took := time.Since(begin); took > farewellTime+time.Second {
					t.Errorf("took %v", took)
				}
			})
		})
		t.Run(name+"/at once", func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.net.set(always(f))
				client := w.dial(Poll)
				client.Conn().WriteTo([]byte("early"), nil)
				time.Sleep(ms)
				begin := time.Now()
				client.Close()
				if took := time.Since(begin); took > 0 {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// lossy loses, cuts and reorders.
func lossy(n *network) func(*request) fate {
	return func(*request) fate {
		f := fate{there: time.Duration(n.random.IntN(50)) * ms, back: time.Duration(n.random.IntN(50)) * ms}
		switch n.random.IntN(10) {
		case 0:
			f.refuse = true
		case 1:
			f.cutRequest, f.cutAt = true, n.random.IntN(1000)
		case 2:
			f.cutAnswer, f.cutAt = true, n.random.IntN(1000)
		}
		return f
	}
}

// A server that ends the session is believed, after what it had said before.
func TestServerEnds(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream, Auto} {
		t.Run(string(mode), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				client, session := w.pair(mode)
				w.net.set(lossy(w.net))
				w.net.cutAll()
				say(t, session.Conn(), client.Conn(), "before")
				for i := range 100 {
					session.Conn().WriteTo(datagram(i), nil)
					if i%10 == 0 {
						time.Sleep(5 * ms) // so that there are several exchanges
					}
				}
				session.Conn().Close()
				buf := make([]byte, wire.RecordRoom)
				for i := range 100 {
					if n, _, err := client.Conn().ReadFrom(buf); err != nil || !bytes.Equal(buf[:n], datagram(i)) {
						t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
					}
				}
				if _, _, err := client.Conn().ReadFrom(buf); !errors.Is(err, net.ErrClosed) {
					t.Errorf("after the end: %v", err)
				}
				if err := client.Err(); !errors.Is(err, ErrLost) {
					t.Errorf("the Conn has failed, and the error is %v", err)
				}
				w.net.set(nil)
				client.Conn().Close()
				<-client.Done()
				if err := client.Err(); !errors.Is(err, ErrLost) {
					t.Errorf("error %v", err)
				}
				w.empty("after both have said good-bye")
			})
		})
	}
}

func TestConnDeadlines(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		client, session := w.pair(Poll)
		conn := client.Conn()
		buf := make([]byte, 100)
		read := func() error {
			_, _, err := conn.ReadFrom(buf)
			return err
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		begin := time.Now()
		if err := read(); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		if err := read(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a passed deadline: %v", err)
		}
		if err := net.Error(nil); errors.As(read(), &err) && !err.Timeout() {
			t.Error("a timeout that says that it is none")
		}
		// Moved while a reader waits: away, and near.
		conn.SetReadDeadline(time.Now().Add(time.Second))
		done := make(chan error)
		go func() { done <- read() }()
		time.Sleep(time.Second / 2)
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		time.Sleep(10 * time.Second)
		select {
		case err := <-done:
			t.Errorf("a deadline that was moved away: %v", err)
		default:
		}
		conn.SetDeadline(time.Now())
		if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a deadline that was moved near: %v", err)
		}
		if _, err := conn.WriteTo([]byte("x"), nil); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("WriteTo after the deadline: %v", err)
		}
		conn.SetDeadline(time.Time{})
		say(t, client.Conn(), session.Conn(), "without a deadline")
		say(t, session.Conn(), client.Conn(), "without a deadline")
		if _, err := conn.WriteTo(make([]byte, wire.RecordRoom+1), nil); err == nil {
			t.Error("a datagram that is too large is taken")
		}
	})
}

// WriteTo blocks at the bound of the queue; room, a deadline and Close unblock
// it.
func TestWriteToBlocks(t *testing.T) {
	for name, unblock := range map[string]struct {
		do   func(w *world, c *Conn)
		want error
	}{
		"room":     {func(w *world, c *Conn) { w.net.set(nil) }, nil},
		"deadline": {func(w *world, c *Conn) { c.SetWriteDeadline(time.Now()) }, os.ErrDeadlineExceeded},
		"close":    {func(w *world, c *Conn) { c.Close() }, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				client, session := w.pair(Poll)
				say(t, client.Conn(), session.Conn(), "confirmed") // else it is forgotten within the minute
				go io.Copy(io.Discard, readerOf(session.Conn()))
				w.net.set(always(fate{there: time.Second, refuse: true}))
				w.net.cutAll()
				conn := client.Conn()
				written := make(chan error)
				taken := 0
				go func() {
					for {
						if _, err := conn.WriteTo(make([]byte, 1000), nil); err != nil {
							written <- err
							return
						}
						if taken += 1000; taken >= flightLimit+5*queueLimit {
							written <- nil
							return
						}
					}
				}()
				time.Sleep(time.Minute)
				synctest.Wait()
				if taken < queueLimit || taken > flightLimit+2*queueLimit {
					t.Errorf("%d bytes were taken, and no exchange succeeds", taken)
				}
				unblock.do(w, conn)
				if err := <-written; !errors.Is(err, unblock.want) {
					t.Errorf("%v, want %v", err, unblock.want)
				}
			})
		})
	}
}

// An engine that pauses until the window is used up, and goes on, holds nothing
// up longer than that: the other side hears of the new room at once.
func TestPause(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream, Auto} {
		for name, up := range map[string]bool{"up": true, "down": false} {
			t.Run(string(mode)+"/"+name, func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					w.net.set(always(fate{there: 10 * ms, back: 10 * ms}))
					client, session := w.pair(mode)
					from, to := client.Conn(), session.Conn()
					if !up {
						from, to = to, from
					}
					const size, n = 9000, windowRecords * 5 / 4 // one fits into a record
					go func() {
						for range n {
							from.WriteTo(make([]byte, size), nil)
						}
					}()
					buf := make([]byte, size)
					to.ReadFrom(buf)
					time.Sleep(time.Minute)
					begin := time.Now()
					for range n - 1 {
						if _, _, err := to.ReadFrom(buf); err != nil {
							t.Fatal(err)
						}
					}
					if took := time.Since(begin); took > 3*time.Second {
						t.Errorf("going on took %v", took)
					}
				})
			})
		}
	}
}

// readerOf reads datagrams one after the other.
func readerOf(c *Conn) io.Reader { return connReader{c} }

type connReader struct{ c *Conn }

func (r connReader) Read(p []byte) (int, error) {
	n, _, err := r.c.ReadFrom(p)
	return n, err
}

// Many readers and writers of one Conn do not hinder one another.
func TestConnIsConcurrent(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(fate{there: ms, back: ms}))
		client, session := w.pair(Poll)
		const n, each = 8, 500
		got := make(chan string, n*each)
		for range n {
			go func() {
				buf := make([]byte, 100)
				for {
					k, _, err := session.Conn().ReadFrom(buf)
					if err != nil {
						return
					}
					got <- string(buf[:k])
				}
			}()
			go func() {
				for range each {
					client.Conn().WriteTo(make([]byte, 100), nil)
				}
			}()
		}
		for range n * each {
			<-got
		}
	})
}

// TestBodyTold: the link hears when the last byte of a body was read, however
// it is read.
func TestBodyTold(t *testing.T) {
	for _, step := range []int{1, 7, 1000, 1 << 20} {
		l := newLink(nil)
		l.send = wire.NewKey([32]byte{}, wire.ChaCha20Poly1305)
		for i := range 40 {
			if !l.put(datagram(i)) {
				t.Fatal("no room")
			}
		}
		told := 0
		b := newBody([]byte("head"), l.take(1, MaxBody, lanes{}), l.send, func(last bool) {
			if last {
				told++
			}
		})
		// As net/http does: no byte more than the length.
		for left := b.size; left > 0; {
			n, err := b.Read(make([]byte, min(int64(step), left)))
			if err != nil {
				t.Fatal(err)
			}
			if left -= int64(n); (told > 0) != (left == 0) {
				t.Fatalf("by %d: told with %d bytes left", step, left)
			}
		}
		if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF || told != 1 {
			t.Errorf("by %d: at the end %d, %v, told %d times", step, n, err, told)
		}
		b.Close()
		b.Close()
		l.drop()
		if held := l.held.bytes(); held != 0 {
			t.Errorf("%d bytes held", held)
		}
	}
}

// No part of a session's ID gets into the client's log, or into its errors, whatever
// happens to its exchanges.
func TestClientNames(t *testing.T) {
	for name, c := range map[string]struct{ first, then fate }{
		"refused":     {fate{there: ms, back: ms}, fate{refuse: true}},
		"answer lost": {fate{there: ms, back: ms}, fate{there: ms, loseAnswer: true}},
		"cut":         {fate{there: ms, back: ms}, fate{there: ms, cutAnswer: true, cutAt: 10}},
		"a page":      {fate{there: ms, back: ms}, fate{there: ms, instead: page(http.StatusOK)}},
		"in trouble":  {fate{there: ms, instead: page(http.StatusBadGateway)}, fate{there: ms, instead: page(http.StatusBadGateway)}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				var mu sync.Mutex
				var log logtest.Buffer
				ids := make(map[string]bool)
				set := func(f fate) {
					w.net.set(func(r *request) fate {
						mu.Lock()
						defer mu.Unlock()
						ids[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]] = true
						return f
					})
				}
				set(c.first)
				client := w.dial(Auto, func(cfg *ClientConfig) { cfg.Log = textLog(&log) })
				time.Sleep(10 * time.Second)
				set(c.then)
				for range 20 {
					client.Conn().SetWriteDeadline(time.Now().Add(time.Second))
					client.Conn().WriteTo([]byte("hello"), nil)
					time.Sleep(2 * time.Second)
				}
				time.Sleep(2 * Lifetime)
				mu.Lock()
				defer mu.Unlock()
				fmt.Fprint(&log, client.Err(), client.Conn().LocalAddr(), client.Conn().RemoteAddr())
				if len(log.String()) < 50 {
					t.Errorf("the log is not the one that was to be looked at: %s", &log)
				}
				for id := range ids {
					for n := 0; n+8 <= len(id); n++ { // fewer are there by chance
						if strings.Contains(log.String(), id[n:n+8]) {
							t.Fatalf("%q of the ID %q is in the log:\n%s", id[n:n+8], id, &log)
						}
					}
				}
				if len(ids) == 0 {
					t.Error("no session was begun")
				}
			})
		})
	}
}

// What the engine says is pending until it is acknowledged and no engine says it again.
func TestPending(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		client, session := w.pair(Auto)
		time.Sleep(repeats)
		if client.Pending() {
			t.Error("a session that has said nothing has something pending")
		}
		w.net.set(func(*request) fate { return fate{refuse: true} })
		w.net.cutAll()
		client.Conn().WriteTo([]byte("a question"), nil)
		time.Sleep(2 * repeats)
		if !client.Pending() {
			t.Error("what cannot have arrived is not pending")
		}
		w.net.set(always(near()))
		if _, _, err := session.Conn().ReadFrom(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(repeats / 2)
		if !client.Pending() {
			t.Error("what an engine may say again is not pending")
		}
		time.Sleep(repeats)
		if client.Pending() {
			t.Error("what has arrived is pending")
		}
		if time.Since(client.Heard()) > time.Minute {
			t.Errorf("heard last at %v", client.Heard())
		}
	})
}
