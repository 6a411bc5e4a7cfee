package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engine"
	"turbotunnel/common/engines"
	"turbotunnel/common/handshake"
)

// However many answers in a row are by somebody else, a session lives that the
// server still knows, and of what was tried in its place nothing is left.
func TestForeignAnswers(t *testing.T) {
	each(t, func(t *testing.T, s *site, d *Dialer, _ string) {
		c := dial(t, d)
		remote := s.accept()
		for _, n := range []int64{3, 5, 7} {
			s.foreign.Store(n)
			s.web.CloseClientConnections()
			until(t, "the answers by somebody else", func() bool { return s.foreign.Load() <= 0 })
			text := fmt.Sprint("after ", n)
			io.WriteString(c, text)
			expect(t, "the server", remote, text)
			io.WriteString(remote, text)
			expect(t, "the client", c, text)
		}
		until(t, "the end of the other sessions", func() bool { return d.share.sessions.Load() == 1 })
	})
}

// Where many answers are by somebody else, some of them in a row are so by chance, also
// after the server has accepted another session.
func TestForeignByChance(t *testing.T) {
	each(t, func(t *testing.T, s *site, d *Dialer, _ string) {
		var last atomic.Pointer[string]
		s.before = func(_ int64, r *http.Request) { last.Store(&r.URL.Path) }
		c := dial(t, d)
		remote := s.accept()
		io.WriteString(remote, "text")
		expect(t, "the client", c, "text")
		io.WriteString(c, "text")
		expect(t, "the server", remote, "text")
		s.foreignTo.Store(last.Load())
		s.foreign.Store(3 + 3 + 2) // a doubt, what confirms it, and nearly as many again
		s.web.CloseClientConnections()
		until(t, "the answers by somebody else", func() bool { return s.foreign.Load() <= 0 })
		io.WriteString(c, "text")
		expect(t, "the server", remote, "text")
		until(t, "the end of the other sessions", func() bool { return d.share.sessions.Load() == 1 })
	})
}

// A stream that comes while a session is in doubt is not lost, whichever session
// stays.
func TestDialInDoubt(t *testing.T) {
	s := newSite(t)
	d := s.dialer(s.config("kcp-smux"))
	go func() {
		for {
			st, err := s.server.Load().Accept()
			if err != nil {
				return
			}
			go io.Copy(st, st)
		}
	}()
	old := dial(t, d)
	for range 5 {
		s.foreign.Store(4)
		s.web.CloseClientConnections()
		until(t, "the answers by somebody else", func() bool { return s.foreign.Load() <= 0 })
		st := dial(t, d)
		io.WriteString(st, "new")
		expect(t, "the new stream", st, "new")
		io.WriteString(old, "old")
		expect(t, "the old stream", old, "old")
	}
}

// Where a session has as many streams as it may have, another one is opened beside
// it.
func TestManySessions(t *testing.T) {
	for _, name := range engines.Names() {
		if e, _ := engines.Find(name); !e.Multiplexes() {
			continue
		}
		t.Run(name, func(t *testing.T) {
			const many = engine.MaxStreams + 20
			s := newSite(t)
			d := s.dialer(s.config(name))
			var wg sync.WaitGroup
			for range many {
				wg.Go(func() {
					st, err := d.DialEarly(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					io.WriteString(st, "hello")
				})
			}
			wg.Wait()
			for range many {
				expect(t, "the server", s.accept(), "hello")
			}
			if n := s.server.Load().Stats().Sessions; n != 2 {
				t.Errorf("%d sessions, want 2", n)
			}
		})
	}
}

func TestTooManySessions(t *testing.T) {
	s := newSite(t)
	d := s.dialer(s.config("kcp-smux"))
	d.sessions = make([]*session, maxSessions)
	if _, err := d.DialEarly(t.Context()); !errors.Is(err, errFull) {
		t.Errorf("one session too many: %v", err)
	}
}

// A session that new streams do not share any more ends when nobody needs it, and
// not before.
func TestSpare(t *testing.T) {
	s := newSite(t)
	d := s.dialer(s.config("kcp-smux"))
	c := dial(t, d)
	old := c.(*clientStream).session
	d.mu.Lock()
	d.begin()
	d.discard(old)
	d.discard(d.current)
	d.mu.Unlock()
	io.WriteString(c, "hello")
	expect(t, "the server", s.accept(), "hello")
	c.Close()
	c.Close()
	d.mu.Lock()
	d.discard(old)
	d.mu.Unlock()
	<-old.client.Done()
	if err := old.client.Err(); err != nil || d.current == old {
		t.Errorf("the spare session has ended with %v", err)
	}
}

// noWay is a carrier.Transport that leads nowhere.
type noWay struct{}

func (noWay) RoundTrip(*http.Request) (*http.Response, error) { return nil, carrier.ErrUnreachable }
func (noWay) Slots() (n int, crowded bool)                    { return 1, true }
func (noWay) Name() string                                    { return "" }
func (noWay) Feeds() bool                                     { return false }
func (noWay) Rest() time.Duration                             { return 0 }
func (noWay) Foreign(*http.Response)                          {}

// endedClient is the client of a session that has ended.
func endedClient(t *testing.T) *carrier.Client {
	c := carrier.NewClient(carrier.ClientConfig{
		Transport: noWay{},
		URL:       &url.URL{Scheme: "http", Host: "server.example"},
		Key:       handshake.GenerateKey().Public(),
		Engine:    "kcp-smux",
		Mode:      carrier.Auto,
	})
	c.Close()
	return c
}

// What was written is pending at first, and with it the Dialer is, which is told when
// the server was heard last; where nothing was written, nothing is.
func TestPending(t *testing.T) {
	each(t, func(t *testing.T, s *site, d *Dialer, name string) {
		if pending, heard := d.Pending(); pending || !heard.IsZero() {
			t.Errorf("before a stream: pending %v, heard at %v", pending, heard)
		}
		c := dial(t, d)
		c.Write([]byte("hello"))
		c.Close()
		if pending, heard := d.Pending(); !pending || heard.IsZero() {
			t.Errorf("after a stream: pending %v, heard at %v", pending, heard)
		}
	})
}

// A closeSession is an engine's session that can only be closed.
type closeSession struct {
	engine.Session
	closed atomic.Bool
}

func (s *closeSession) Close() error {
	s.closed.Store(true)
	return nil
}

// A spare session outlives its last stream by spareLife, also if it was without one
// before.
func TestSpareLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d Dialer
		for _, dismissed := range []bool{false, true} {
			e := new(closeSession)
			s := &session{client: endedClient(t), engine: e, streams: 1}
			d.sessions = append(d.sessions, s)
			d.release(s)
			time.Sleep(spareLife - time.Second)
			d.mu.Lock()
			s.streams++
			d.mu.Unlock()
			d.release(s)
			if dismissed {
				d.mu.Lock()
				d.dismiss(s)
				d.mu.Unlock()
			}
			time.Sleep(spareLife - time.Second)
			if e.closed.Load() {
				t.Error("a stream's last words may be on their way yet")
			}
			time.Sleep(2 * time.Second)
			if !e.closed.Load() {
				t.Error("a session that nobody needs lives on")
			}
		}
		e := new(closeSession)
		d.dismiss(&session{engine: e})
		synctest.Wait()
		if !e.closed.Load() {
			t.Error("a session that had no stream lives on")
		}
	})
}

// Who has given up when a stream is opened leaves no session of his own behind.
func TestGivenUp(t *testing.T) {
	each(t, func(t *testing.T, s *site, d *Dialer, name string) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := d.DialEarly(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if !d.engine.Multiplexes() {
			until(t, "the end of the session", func() bool { return d.share.sessions.Load() == 0 })
		}
	})
}
