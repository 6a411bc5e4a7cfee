package carrier

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

// setClock has the world's server begin anew, with a clock that is ahead of the
// client's by so much.
func (w *world) setClock(off time.Duration) {
	w.restart(limits{maxUnconfirmed, maxSessions, defaultMemory})
	system := handshake.SystemClock()
	var err error
	w.server.admission.guard, err = handshake.NewGuard(w.config().Marks, func() (time.Time, time.Duration) {
		wall, up := system()
		return wall.Add(off), up
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// datedDecoy answers as a web server by the clock of the world's server does.
func (w *world) datedDecoy(off time.Duration) {
	w.server.cfg.Decoy = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
		decoy(rw, r)
	})
}

// A client whose clock is wrong, or whose server's is, learns the server's. If it
// has said something before, the session ends, and the next one begins at once.
func TestWrongClock(t *testing.T) {
	for _, off := range []time.Duration{
		-1000 * time.Hour, -24 * time.Hour, -handshake.Skew - time.Second, handshake.Skew + time.Second, 36 * time.Hour, 1000 * time.Hour,
		time.Unix(1000, 0).Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)), // of a bubble
	} {
		for _, early := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, early %v", off, early), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					time.Sleep(time.Hour)
					w.setClock(off)
					w.datedDecoy(off)
					var known Path
					share := func(c *ClientConfig) { c.Path, c.Transport = &known, connecting{w.net} }
					days := off.Abs() > 48*time.Hour // the tag is refused first
					client := w.dial(Poll, share)
					if early {
						client.Conn().WriteTo([]byte("lost"), nil)
						<-client.Done()
						if err := client.Err(); !errors.Is(err, ErrClock) {
							t.Fatalf("%v, want ErrClock", err)
						}
						if _, _, err := client.Conn().ReadFrom(make([]byte, 10)); err == nil {
							t.Error("something is read")
						}
						client = w.dial(Poll, share)
					}
					client.Conn().WriteTo([]byte("first"), nil)
					if days && early {
						// What is written before the server has answered waits: the day
						// is anybody's word.
						<-client.Ready()
					} else {
						select {
						case <-client.Done():
							// It was written before the message was made.
							if !errors.Is(client.Err(), ErrClock) || early {
								t.Fatal(client.Err())
							}
							client = w.dial(Poll, share)
							client.Conn().WriteTo([]byte("first"), nil)
							<-client.Ready()
						case <-client.Ready():
						}
					}
					session := <-w.accepted
					buf := make([]byte, 100)
					if n, _, err := session.Conn().ReadFrom(buf); string(buf[:n]) != "first" {
						t.Errorf("%q, %v", buf[:n], err)
					}
					say(t, session.Conn(), client.Conn(), "welcome")

					// From then on nothing is lost, and no round trip.
					before := w.server.Stats().Untimely
					next := w.dial(Poll, share)
					next.Conn().WriteTo([]byte("next"), nil)
					session = <-w.accepted
					if n, _, err := session.Conn().ReadFrom(buf); string(buf[:n]) != "next" {
						t.Errorf("%q, %v", buf[:n], err)
					}
					if n := w.server.Stats().Untimely - before; n > 0 {
						t.Errorf("the next session's first messages were refused %d times", n)
					}
					if n := len(w.accepted); n > 0 {
						t.Errorf("%d sessions more", n)
					}
				})
			})
		}
	}
}

// A server whose clock is behind by days, or began in 1970, is found by its clients,
// though a proxy writes the right Date into its answers, and says that something is
// wrong with a clock.
func TestServerBehindByDays(t *testing.T) {
	for _, off := range []time.Duration{
		-72 * time.Hour, -10_000 * time.Hour,
		time.Unix(1000, 0).Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)), // of a bubble
	} {
		t.Run(off.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				time.Sleep(time.Hour)
				w.setClock(off)
				w.datedDecoy(0)
				var known Path
				share := func(c *ClientConfig) { c.Path, c.Transport = &known, connecting{w.net} }
				client := w.dial(Poll, share)
				for refused := false; ; refused = true {
					select {
					case <-client.Ready():
					case <-client.Done():
						if refused {
							t.Fatal(client.Err())
						}
						time.Sleep(time.Second) // which the server takes to learn of it
						client = w.dial(Poll, share)
						continue
					}
					break
				}
				session := <-w.accepted
				say(t, session.Conn(), client.Conn(), "welcome")
				if n := w.server.Stats().Untimely; n == 0 {
					t.Error("nothing was counted")
				}
			})
		})
	}
}

// A client with the right time says something with its first message.
func TestRightClockLosesNothing(t *testing.T) {
	for _, off := range []time.Duration{0, -handshake.Skew + time.Second, handshake.Skew - time.Second} {
		bubble(t, func(t *testing.T, w *world) {
			w.setClock(off)
			time.Sleep(time.Hour)
			w.net.set(always(fate{there: 50 * ms, back: 50 * ms}))
			begin := time.Now()
			client := w.dial(Poll, func(c *ClientConfig) { c.Transport = connecting{w.net} })
			client.Conn().WriteTo([]byte("ping"), nil)
			session := <-w.accepted
			buf := make([]byte, 10)
			if n, _, err := session.Conn().ReadFrom(buf); string(buf[:n]) != "ping" || time.Since(begin) != 60*ms {
				t.Errorf("off by %v: after %v: %q, %v", off, time.Since(begin), buf[:n], err)
			}
			if n := w.server.Stats().Untimely; n != 0 {
				t.Errorf("off by %v: %d first messages were refused", off, n)
			}
		})
	}
}

// A hostile is a CDN that keeps what it likes, and says what it likes.
type hostile struct {
	w    *world
	mu   sync.Mutex
	kept []*request // first messages; guarded by mu
}

// keep notes a request whose body is no session's.
func (h *hostile) keep(r *request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept = append(h.kept, r)
}

// deliver sends everything that was kept to the server.
func (h *hostile) deliver() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.kept {
		again, err := http.NewRequest(http.MethodPost, r.URL.String(), bytes.NewReader(r.body))
		if err != nil {
			h.w.t.Error(err)
			continue
		}
		a := &answer{header: make(http.Header), ctx: h.w.t.Context(), cancel: func(error) {}, began: make(chan struct{}), ended: make(chan struct{}), news: make(chan struct{}, 1)}
		h.w.server.ServeHTTP(a, again)
	}
}

// What an application says once arrives once at most, whatever a CDN keeps, repeats
// and invents: in this session or, after the first has ended, in another one.
func TestSaidOnce(t *testing.T) {
	const ahead = 40 * time.Minute
	for _, c := range []struct {
		name  string
		clock time.Duration                     // of the server, ahead of the client's
		fate  func(h *hostile, r *request) fate // of the first messages
		dates time.Duration
	}{
		{"the answer is kept, and a date is told", 0, func(h *hostile, r *request) fate {
			if r.number == 0 {
				h.keep(r)
				h.deliver()
				return fate{instead: page(http.StatusNotFound, "Date", time.Now().Add(3*time.Second).UTC().Format(http.TimeFormat))}
			}
			return fate{}
		}, 0},
		{"the answer is kept, and another day is told", 0, func(h *hostile, r *request) fate {
			if r.number == 0 {
				h.keep(r)
				h.deliver()
				return fate{instead: page(http.StatusNotFound, "Date", time.Now().Add(72*time.Hour).UTC().Format(http.TimeFormat))}
			}
			return fate{}
		}, 72 * time.Hour},
		{"a later time is told, and what was made for it is kept", 0, func(h *hostile, r *request) fate {
			if r.number < 2 {
				h.keep(r)
				return fate{instead: page(http.StatusNotFound, "Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))}
			}
			return fate{}
		}, 0},
		{"a message from a clock that is ahead is kept", -ahead, func(h *hostile, r *request) fate {
			h.keep(r)
			return fate{}
		}, 0},
		{"all is repeated at once", 0, func(h *hostile, r *request) fate {
			h.keep(r)
			return fate{again: true}
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				time.Sleep(time.Hour)
				w.setClock(c.clock)
				time.Sleep(time.Hour)
				heard := new(ear)
				go heard.listen(w)
				h := &hostile{w: w}
				w.net.set(func(r *request) fate {
					r.body, _ = io.ReadAll(r.Body)
					r.Body = io.NopCloser(bytes.NewReader(r.body))
					return c.fate(h, r)
				})
				var known Path
				for i := range 5 { // as the streams' owner does, with new words each time
					client := w.dial(Poll, func(c *ClientConfig) { c.Path, c.Transport = &known, connecting{w.net} })
					client.Conn().WriteTo(fmt.Appendf(nil, "line %d", i), nil)
					select {
					case <-client.Ready():
						time.Sleep(time.Second)
					case <-client.Done():
					}
				}
				if heard.most("line ") != 1 || len(heard.lines()) == 0 {
					t.Errorf("after the sessions: %v", heard.lines())
				}
				for range 3 {
					w.net.set(nil)
					h.deliver()
					time.Sleep(ahead / 2)
					h.deliver()
				}
				time.Sleep(time.Minute)
				if heard.most("line ") != 1 {
					t.Errorf("after repetitions: %v", heard.lines())
				}
				w.setClock(c.clock)
				h.deliver()
				time.Sleep(time.Minute)
				if heard.most("line ") != 1 {
					t.Errorf("after a restart: %v", heard.lines())
				}
			})
		})
	}
}

// An ear hears what sessions of a world bring.
type ear struct {
	mu    sync.Mutex
	heard map[string]int // guarded by mu
}

func (e *ear) listen(w *world) {
	for {
		select {
		case s := <-w.accepted:
			go func() {
				buf := make([]byte, wire.RecordRoom)
				for {
					n, _, err := s.Conn().ReadFrom(buf)
					if err != nil {
						return
					}
					e.mu.Lock()
					if e.heard == nil {
						e.heard = make(map[string]int)
					}
					e.heard[string(buf[:n])]++
					e.mu.Unlock()
				}
			}()
		case <-w.t.Context().Done():
			return
		}
	}
}

// most is how often the line was heard that was heard most often.
func (e *ear) most(prefix string) (most int) {
	for line, n := range e.lines() {
		if strings.HasPrefix(line, prefix) {
			most = max(most, n)
		}
	}
	return most
}

func (e *ear) lines() map[string]int {
	synctest.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.heard
}

// First messages that come at a wrong time are counted, and told of seldom.
func TestUntimely(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		old := w.hello()
		old.Time = old.Time.Add(-time.Hour)
		var out bytes.Buffer
		w.server.admission.log = slog.New(slog.NewTextHandler(&out, nil))
		for range 3 {
			w.raw(old).greet()
		}
		if n := w.server.Stats().Untimely; n != 3 {
			t.Errorf("%d counted", n)
		}
		if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "level=WARN") {
			t.Errorf("the log says %q", text)
		}
	})
}

// When more sessions begin than can be remembered, the log says so once, and who comes
// a little later comes in.
func TestCrowdOfFirstMessages(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var out bytes.Buffer
		w.server.admission.log = slog.New(slog.NewTextHandler(&out, nil))
		w.server.admission.guard.Bound(2000, w.server.admission.held.add)
		time.Sleep(time.Minute)
		for range 60 {
			c := w.raw(w.hello())
			c.post(c.first)
		}
		n := w.server.Stats()
		if n.Excess == 0 {
			t.Error("that was no crowd")
		}
		for range 3 {
			time.Sleep(6 * time.Second)
			for range 5 {
				c := w.raw(w.hello())
				c.greet()
			}
		}
		if is := w.server.Stats(); is.Excess != n.Excess || is.Forgotten < n.Forgotten+10 {
			t.Errorf("later %d were refused, %d forgotten", is.Excess-n.Excess, is.Forgotten)
		}
		if text := out.String(); strings.Count(text, "more sessions begin than can be remembered") != 1 {
			t.Errorf("the log says %q", text)
		}
	})
}

// A clock that is right is not said to be wrong: a message that waits while a server is
// restarted, as in a socket of systemd's, is refused for its time, too.
func TestWhyAMessageIsUntimely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Client{cfg: ClientConfig{Path: new(Path)}, log: slog.New(slog.DiscardHandler)}
		for _, tt := range []struct {
			off  time.Duration
			want string
		}{
			{0, "before the server was started"},
			{-100 * time.Millisecond, "before the server was started"},
			{3 * time.Hour, "this clock is off by -3h"},
			{-time.Minute, "this clock is off by 1m"},
		} {
			if err := c.told(handshake.Answer{Time: time.Now().Add(tt.off)}); !errors.Is(err, errTime) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("a clock that is off by %v: %v, want %q", -tt.off, err, tt.want)
			}
		}
	})
}
