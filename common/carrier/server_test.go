package carrier

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

// A raw client makes what a Client makes by hand, and what a Client would not.
type raw struct {
	w         *world
	id        handshake.ID
	first     []byte // message 1
	initiator *handshake.Initiator
	keys      handshake.Keys
	exchange  uint64
	heads     uint64
	records   uint64
}

// raw makes a first message and does not send it.
func (w *world) raw(hello handshake.Hello) *raw {
	w.t.Helper()
	c := &raw{w: w, id: handshake.NewID(w.key.Public(), handshake.DayOf(time.Now())), exchange: 1}
	var err error
	if c.first, c.initiator, err = handshake.Initiate(w.key.Public(), c.id, hello, 1500); err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) hello() handshake.Hello {
	return handshake.Hello{Version: handshake.Version, Time: time.Now(), Engine: "raw"}
}

// post sends a body to the session's path.
func (c *raw) post(body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/any/path/"+c.id.String(), bytes.NewReader(body))
	w := httptest.NewRecorder()
	c.w.server.ServeHTTP(w, r)
	return w
}

// greet sends the first message.
func (c *raw) greet() handshake.Answer {
	c.w.t.Helper()
	rec := c.post(c.first)
	answer, keys, err := c.initiator.Finish(rec.Body)
	if err != nil {
		c.w.t.Fatalf("status %d, %v", rec.Code, err)
	}
	c.keys = keys
	return answer
}

// body is that of a request: a head and records, each of one datagram.
func (c *raw) body(h wire.Head, datagrams ...string) []byte {
	h.Exchange = c.exchange
	c.exchange++
	b := h.Append(make([]byte, wire.HeaderSize))
	b = c.keys.Send.Seal(b, wire.HeadKind, c.heads)
	c.heads++
	for _, d := range datagrams {
		b = append(b, c.keys.Send.Seal(wire.AppendDatagram(make([]byte, wire.HeaderSize), []byte(d)), wire.RecordKind, c.records)...)
		c.records++
	}
	return b
}

// isDecoy fails the test if an answer is not exactly the decoy's.
func isDecoy(t *testing.T, name string, got *httptest.ResponseRecorder) {
	t.Helper()
	want := httptest.NewRecorder()
	decoy(want, nil)
	if got.Code != want.Code || !maps.EqualFunc(got.Header(), want.Header(), slices.Equal) || got.Body.String() != want.Body.String() || got.Flushed {
		t.Errorf("%s: status %d, %v, %q is not the decoy's answer", name, got.Code, got.Header(), got.Body)
	}
}

// isOurs fails the test if an answer does not begin with a head.
func (c *raw) isOurs(name string, rec *httptest.ResponseRecorder) (h wire.Head) {
	c.w.t.Helper()
	u, err := c.keys.Receive.Next(rec.Body, make([]byte, wire.BufferSize))
	if err == nil {
		err = h.Parse(u.Payload)
	}
	if err != nil || u.Kind != wire.HeadKind {
		c.w.t.Errorf("%s: status %d, %v", name, rec.Code, err)
	}
	return h
}

// Whoever is not a client gets the decoy's answer, and leaves nothing behind.
func TestDecoy(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		c := w.raw(w.hello())
		stranger := func(name string, body []byte) {
			t.Helper()
			s := *c
			s.id = handshake.NewID(w.key.Public(), handshake.DayOf(time.Now()))
			isDecoy(t, name, s.post(body))
		}
		noise := make([]byte, 200<<10)
		rand.Read(noise)
		for _, n := range []int{0, 1, 31, 127, 128, 5000, 8192, 8193, len(noise)} {
			stranger("noise", noise[:n])
		}
		stranger("a first message of another session", c.first)
		old := w.hello()
		old.Time = old.Time.Add(-handshake.Skew - time.Second)
		early := w.hello()
		early.Time = early.Time.Add(handshake.Skew + time.Second)
		for _, hello := range []handshake.Hello{old, early} {
			// That is no stranger's.
			if a := w.raw(hello).greet(); a.Status != handshake.WrongTime || time.Since(a.Time) > time.Second || time.Since(a.Time) < 0 || a.Epoch != (handshake.Epoch{}) {
				t.Errorf("the answer to a first message of another time: %+v", a)
			}
		}
		bad := w.raw(w.hello())
		bad.first[100] ^= 1
		isDecoy(t, "an altered first message", bad.post(bad.first))
		isDecoy(t, "half a first message", bad.post(bad.first[:700]))
		w.empty("after strangers")

		if a := c.greet(); a.Status != handshake.Accepted {
			t.Fatalf("answer %+v", a)
		}
		request := c.body(wire.Head{}, "hello")
		stranger("a request of another session", request)
		other := w.raw(w.hello())
		other.greet()
		isDecoy(t, "noise for an open session", c.post(noise[:3000]))
		isDecoy(t, "the first message of another open session", c.post(other.first))
		isDecoy(t, "the body of another open session", other.post(request))
		isDecoy(t, "an empty body for an open session", c.post(nil))
		if n := w.server.Stats().Sessions; n != 2 {
			t.Errorf("%d sessions, want 2", n)
		}
		// None of this has harmed the session.
		c.isOurs("a request", c.post(request))
		s := <-w.accepted
		buf := make([]byte, 100)
		if n, _, err := s.Conn().ReadFrom(buf); string(buf[:n]) != "hello" {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		isDecoy(t, "the first message again after a request", c.post(c.first))

		// Nor has a request that is repeated an effect.
		c.isOurs("a repeated request", c.post(request))
		quiet(t, "the session", s.Conn())

		// After its end nothing of the session is known.
		c.isOurs("a farewell", c.post(c.body(wire.Head{Close: wire.CloseDone})))
		s.Conn().Close()
		synctest.Wait()
		for name, body := range map[string][]byte{"first message": c.first, "request": request} {
			isDecoy(t, name+" after the end", c.post(body))
		}
		other.post(other.body(wire.Head{Close: wire.CloseDone}))
		for range 2 { // both sessions' engines
			select {
			case s := <-w.accepted:
				s.Conn().Close()
			default:
			}
		}
		synctest.Wait()
		w.empty("after the sessions")

		fresh := w.raw(w.hello())
		time.Sleep(time.Millisecond)
		w.restart(limits{maxUnconfirmed, maxSessions, defaultMemory})
		isDecoy(t, "a request after a restart", c.post(request))
		if a := fresh.greet(); a.Status != handshake.WrongTime {
			t.Errorf("the answer to a first message made before a restart: %+v", a)
		}
		w.empty("after the restart")
	})
}

// A path that was logged is nothing after two days, and a session that began with
// it goes on.
func TestTagsAge(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		client, session := w.pair(Poll)
		logged := w.raw(w.hello())
		time.Sleep(48 * time.Hour)
		say(t, client.Conn(), session.Conn(), "hello")
		c := w.raw(w.hello())
		c.id = logged.id
		var err error
		if c.first, c.initiator, err = handshake.Initiate(w.key.Public(), c.id, w.hello(), 1500); err != nil {
			t.Fatal(err)
		}
		isDecoy(t, "a new message on an old path", c.post(c.first))
		fresh := w.raw(w.hello())
		fresh.greet()
	})
}

// FuzzServeHTTP: nobody without the key gets anything but the decoy.
func FuzzServeHTTP(f *testing.F) {
	key := handshake.GenerateKey()
	server := NewServer(ServerConfig{Key: key, Decoy: http.HandlerFunc(decoy), Engines: []string{"raw"}, Serve: func(*Session) {}})
	f.Cleanup(func() { server.Close() })
	id := handshake.NewID(key.Public(), handshake.DayOf(time.Now())).String()
	f.Add("POST", "/", []byte("hello"), false)
	f.Add("GET", "/x", []byte{}, true)
	f.Add("POST", "/a/b", bytes.Repeat([]byte{1}, 200), true)
	f.Add("POST", "/a\n/", bytes.Repeat([]byte{1}, 9000), true)
	f.Fuzz(func(t *testing.T, method, path string, body []byte, known bool) {
		r := httptest.NewRequest(http.MethodPost, "http://server.example/", bytes.NewReader(body))
		r.Method, r.URL.Path = method, path
		if known {
			r.URL.Path += "/" + id
		}
		rec := httptest.NewRecorder()
		synctest.Test(t, func(*testing.T) { server.ServeHTTP(rec, r) }) // in no time
		isDecoy(t, path, rec)
		if s := server.Stats(); s.Sessions != 0 || s.Memory != 0 || s.Opened != 0 {
			t.Fatalf("%+v", s)
		}
	})
}

// The answer to a first message is the same whenever the message comes, until
// the client has shown that it has the answer.
func TestRepeatedFirstMessage(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		c := w.raw(w.hello())
		c.greet()
		want := (<-w.accepted).answer
		for range 3 {
			time.Sleep(10 * time.Second)
			if rec := c.post(c.first); !bytes.HasPrefix(rec.Body.Bytes(), want) {
				t.Error("another answer")
			}
		}
		if s := w.server.Stats(); s.Sessions != 1 || s.Opened != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// What the server does not know it refuses under its key; nothing is opened.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		hello func(*handshake.Hello)
		want  handshake.Answer
	}{
		"engine":                     {func(h *handshake.Hello) { h.Engine = "steam" }, handshake.Answer{Status: handshake.UnknownEngine, Version: handshake.Version, Text: "raw,other"}},
		"no engine":                  {func(h *handshake.Hello) { h.Engine = "" }, handshake.Answer{Status: handshake.UnknownEngine, Version: handshake.Version, Text: "raw,other"}},
		"version from the future":    {func(h *handshake.Hello) { h.Version = 2 }, handshake.Answer{Status: handshake.UnknownVersion, Version: handshake.Version}},
		"version before the first":   {func(h *handshake.Hello) { h.Version = 0 }, handshake.Answer{Status: handshake.UnknownVersion, Version: handshake.Version}},
		"version and engine at once": {func(h *handshake.Hello) { h.Version, h.Engine = 9, "?" }, handshake.Answer{Status: handshake.UnknownVersion, Version: handshake.Version}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				hello := w.hello()
				c.hello(&hello)
				r := w.raw(hello)
				if a := r.greet(); a != c.want {
					t.Errorf("answer %+v, want %+v", a, c.want)
				}
				isDecoy(t, "a request all the same", r.post(r.body(wire.Head{}, "hello")))
				if s := w.server.Stats(); s.Opened != 0 || s.Refused != 1 || s.Memory != sessionCost+w.server.admission.held.bytes() {
					t.Errorf("%+v", s)
				}
				time.Sleep(unconfirmedLife + 2*janitorEvery)
				w.empty("a minute later")
			})
		})
	}
}

// Sessions whose client is gone end when their time has come.
func TestExpiry(t *testing.T) {
	for _, c := range []struct {
		name    string
		confirm bool
		life    time.Duration
	}{{"unconfirmed", false, unconfirmedLife}, {"confirmed", true, Lifetime}} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				r := w.raw(w.hello())
				r.greet()
				if c.confirm {
					r.isOurs("a request", r.post(r.body(wire.Head{}, "hello")))
				}
				s := <-w.accepted
				s.Conn().WriteTo([]byte("to nobody"), nil)
				time.Sleep(c.life - 2*janitorEvery)
				if n := w.server.Stats().Sessions; n != 1 {
					t.Errorf("%d sessions before the time", n)
				}
				time.Sleep(4 * janitorEvery)
				w.empty("after the time")
				if n := w.server.Stats().Expired; n != 1 {
					t.Errorf("%d sessions expired", n)
				}
				if _, _, err := s.Conn().ReadFrom(make([]byte, 10)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("ReadFrom: %v", err)
				}
				if _, err := s.Conn().WriteTo([]byte("x"), nil); !errors.Is(err, net.ErrClosed) {
					t.Errorf("WriteTo: %v", err)
				}
			})
		})
	}
}

// Close ends sessions whose polls wait, and returns when they are over.
func TestServerClose(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream, Auto} {
		bubble(t, func(t *testing.T, w *world) {
			for range 5 {
				client, session := w.pair(mode)
				say(t, client.Conn(), session.Conn(), "hello")
				session.Conn().WriteTo(make([]byte, 1000), nil)
			}
			late := w.raw(w.hello())
			begin := time.Now()
			w.server.Close()
			if took := time.Since(begin); took > 0 {
				t.Errorf("Close took %v", took)
			}
			w.empty("after Close")
			isDecoy(t, "a first message after Close", late.post(late.first))
			w.server.Close()
		})
	}
}

// Beyond a number of sessions of which nothing is known but that somebody has
// the server's public key, no engine is started before a client has shown that
// it read the answer.
func TestUnconfirmed(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.restart(limits{unconfirmed: 3, sessions: 6, memory: defaultMemory})
		time.Sleep(time.Second)
		var all []*raw
		for range 6 {
			r := w.raw(w.hello())
			r.greet()
			all = append(all, r)
		}
		synctest.Wait()
		if n := len(w.accepted); n != 3 {
			t.Errorf("%d engines for 6 sessions, want 3", n)
		}
		all[5].isOurs("a request", all[5].post(all[5].body(wire.Head{}, "hello")))
		synctest.Wait()
		if n := len(w.accepted); n != 4 {
			t.Errorf("%d engines after a session was confirmed, want 4", n)
		}
		for range 3 {
			<-w.accepted
		}
		s := <-w.accepted
		buf := make([]byte, 100)
		if n, _, err := s.Conn().ReadFrom(buf); string(buf[:n]) != "hello" {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		// Those who had an engine make room for others when they are confirmed.
		all[0].isOurs("a request", all[0].post(all[0].body(wire.Head{})))
		time.Sleep(unconfirmedLife + 2*janitorEvery)
		if n := w.server.Stats().Sessions; n != 2 {
			t.Errorf("%d sessions are left, want the 2 that were confirmed", n)
		}
		for range 4 {
			r := w.raw(w.hello())
			r.greet()
		}
		synctest.Wait()
		if n := len(w.accepted); n != 3 {
			t.Errorf("%d engines for 4 more sessions, want 3", n)
		}
	})
}

// A session whose engine does not read, or whose client does not acknowledge,
// holds a bounded number of bytes and stands in nobody's way.
func TestStalledSession(t *testing.T) {
	const bound = (windowRecords + 4*queueLimit/wire.MaxUnit) * (unitCost + outgoingCost)
	t.Run("engine that does not read", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			w.net.set(always(fate{there: ms, back: ms}))
			stalled, session := w.pair(Poll)
			go func() {
				for {
					if _, err := stalled.Conn().WriteTo(make([]byte, wire.RecordRoom), nil); err != nil {
						return
					}
				}
			}()
			time.Sleep(time.Minute)
			if held := session.link.held.bytes(); held > bound || held < bound/2 {
				t.Errorf("the server holds %d bytes, want up to %d", held, bound)
			}
			if held := stalled.link.held.bytes(); held > bound {
				t.Errorf("the client holds %d bytes, want up to %d", held, bound)
			}
			client, other := w.pair(Poll)
			begin := time.Now()
			up := transfer(t, "up", client.Conn(), other.Conn(), 400)
			down := transfer(t, "down", other.Conn(), client.Conn(), 400)
			<-up
			<-down
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("another session took %v", took)
			}
			say(t, session.Conn(), stalled.Conn(), "the other direction")
		})
	})
	t.Run("client that does not acknowledge", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			r := w.raw(w.hello())
			r.greet()
			s := <-w.accepted
			go func() {
				for {
					if _, err := s.Conn().WriteTo(make([]byte, 600), nil); err != nil {
						return
					}
				}
			}()
			for range 400 {
				r.isOurs("a poll", r.post(r.body(wire.Head{Hold: time.Second, Limit: 1 << 20, Window: 1 << 40})))
			}
			if held := s.link.held.bytes(); held > bound {
				t.Errorf("the server holds %d bytes, want up to %d", held, bound)
			}
		})
	})
}

// A server that was restarted is noticed at once.
func TestRestart(t *testing.T) {
	for _, mode := range []Mode{Poll, Stream, Auto} {
		bubble(t, func(t *testing.T, w *world) {
			w.net.set(always(fate{there: 10 * ms, back: 10 * ms}))
			client, session := w.pair(mode)
			say(t, client.Conn(), session.Conn(), "before")
			// A crash: nobody says good-bye.
			before := w.server
			w.server = NewServer(w.config())
			w.net.connect(w.server)
			w.net.cutAll()
			begin := time.Now()
			for v, news := client.Verdict(); !v.Forgotten; v, news = client.Verdict() {
				<-news
			}
			before.Close()
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("noticed after %v", took)
			}
			// A new session can be had.
			again, session := w.pair(mode)
			say(t, again.Conn(), session.Conn(), "after")
		})
	}
}

// slowly is a body of which nothing more comes after its beginning, on a
// connection whose read deadline is obeyed.
type slowly struct {
	*httptest.ResponseRecorder
	begin io.Reader
	limit deadline
}

func (s *slowly) SetReadDeadline(t time.Time) error {
	s.limit.set(t)
	return nil
}

func (s *slowly) Read(p []byte) (int, error) {
	if n, _ := s.begin.Read(p); n > 0 {
		return n, nil
	}
	<-s.limit.done()
	return 0, os.ErrDeadlineExceeded
}

// A body that stands still is given up.
func TestSlowBody(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		c := w.raw(w.hello())
		post := func(begin []byte) (*httptest.ResponseRecorder, time.Duration) {
			s := &slowly{ResponseRecorder: httptest.NewRecorder(), begin: bytes.NewReader(begin)}
			r := httptest.NewRequest(http.MethodPost, "/"+c.id.String(), s)
			start := time.Now()
			w.server.ServeHTTP(s, r)
			return s.ResponseRecorder, time.Since(start)
		}
		rec, took := post(c.first[:1000])
		isDecoy(t, "half a first message", rec)
		if took != bodyPatience+judgement {
			t.Errorf("half a first message took %v", took)
		}
		c = w.raw(w.hello())
		c.greet()
		rec, took = post(c.body(wire.Head{}, "hello"))
		c.isOurs("a request without an end", rec)
		if took != bodyPatience {
			t.Errorf("a request without an end took %v", took)
		}
		rec, took = post(c.body(wire.Head{Tell: 10 * ms}, "hello"))
		c.isOurs("a streamed upload without an end", rec)
		if took != bodyPatience {
			t.Errorf("a streamed upload without an end took %v", took)
		}
		if n := w.server.Stats().BodiesCut; n != 2 {
			t.Errorf("%d bodies are counted as cut, want 2", n)
		}
		rec, took = post(c.first[:20])
		isDecoy(t, "less than a first message for an open session", rec)
		if took != bodyPatience+judgement {
			t.Errorf("less than a first message took %v", took)
		}
	})
}

// A farewell counts although a head that was made later has overtaken it.
func TestOvertakenFarewell(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		c := w.raw(w.hello())
		c.greet()
		farewell := c.body(wire.Head{Close: wire.CloseDone, Sent: 1}, "last words")
		c.isOurs("a later request", c.post(c.body(wire.Head{})))
		c.isOurs("a farewell", c.post(farewell))
		s := <-w.accepted
		buf := make([]byte, 100)
		if n, _, err := s.Conn().ReadFrom(buf); string(buf[:n]) != "last words" {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		if _, _, err := s.Conn().ReadFrom(buf); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after the farewell: %v", err)
		}
		s.Conn().Close()
		synctest.Wait()
		w.empty("after the farewell")
	})
}

// The client's address is the newest that was known for sure.
func TestClientAddr(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		addr := netip.MustParseAddr("192.0.2.7")
		w.server.cfg.ClientAddr = func(*http.Request) netip.Addr { return addr }
		c := w.raw(w.hello())
		c.greet()
		s := <-w.accepted
		if got := s.Client(); got != addr {
			t.Errorf("client %v", got)
		}
		addr = netip.Addr{}
		c.post(c.body(wire.Head{}))
		if got := s.Client(); got.String() != "192.0.2.7" {
			t.Errorf("client %v after a request of unknown origin", got)
		}
		addr = netip.MustParseAddr("2001:db8::1")
		c.post([]byte(strings.Repeat("noise", 100)))
		if got := s.Client(); got == addr {
			t.Error("a stranger's address became the client's")
		}
		c.post(c.body(wire.Head{}))
		if got := s.Client(); got != addr {
			t.Errorf("client %v", got)
		}
	})
}

// textLog writes everything to w.
func textLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// No part of a session's ID gets into the log or the names of its ends, whatever
// happens to the session.
func TestNames(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var log bytes.Buffer
		cfg := w.config()
		cfg.Log = textLog(&log)
		w.server.Close()
		w.server = NewServer(cfg)
		w.net.connect(w.server)
		time.Sleep(time.Second)

		c := w.raw(w.hello())
		said := c.body
		c.post(c.first[:700])
		c.greet()
		s := <-w.accepted
		request := said(wire.Head{}, "hello")
		c.isOurs("a request that is cut short", c.post(request[:len(request)-3]))
		broken := append(c.keys.Send.Seal([]byte("01234567\xff\xff"), wire.HeadKind, 77), 1, 2, 3)
		isDecoy(t, "a head that is none", c.post(broken))
		c.post(c.first)
		s.end(wire.CloseRoom)
		fmt.Fprint(&log, s.Name(), " ", s.Conn().LocalAddr(), s.Conn().RemoteAddr())

		if log.Len() < 100 {
			t.Errorf("the log has %d bytes: it is not the one that was to be looked at", log.Len())
		}
		for id, n := c.id.String(), 0; n+5 <= len(id); n++ {
			if strings.Contains(log.String(), id[n:n+5]) {
				t.Errorf("%q of the ID %q is in the log:\n%s", id[n:n+5], id, &log)
			}
		}
	})
}
