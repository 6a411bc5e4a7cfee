package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
	"turbotunnel/common/engines"
)

// kcp-go has goroutines of its own from the start on.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

func testLog() *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// A site is a web server on loopback with a tunnel's server behind it.
type site struct {
	t      testing.TB
	key    *Key
	web    *httptest.Server
	server atomic.Pointer[Server]

	// before, if not nil, is called for each request, which is the n-th, from
	// 1. The request waits for it.
	before   func(n int64, r *http.Request)
	requests atomic.Int64

	foreign   atomic.Int64           // so many requests from now on are answered by somebody else
	foreignTo atomic.Pointer[string] // only to this path; nil: to all
}

func newSite(t testing.TB) *site {
	key := NewKey()
	s := &site{t: t, key: key}
	s.start()
	s.web = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := s.requests.Add(1)
		if s.before != nil {
			s.before(n, r)
		}
		if to := s.foreignTo.Load(); (to == nil || *to == r.URL.Path) && s.foreign.Add(-1) >= 0 {
			http.NotFound(w, r)
			return
		}
		s.server.Load().ServeHTTP(w, r)
	}))
	s.web.EnableHTTP2 = true
	s.web.Config.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 16 << 20, MaxReceiveBufferPerConnection: 32 << 20, MaxConcurrentStreams: 250}
	s.web.Start()
	t.Cleanup(func() {
		s.server.Load().Close()
		s.web.Close()
	})
	return s
}

// start puts a new server in place of the one that there is, which it returns.
func (s *site) start(more ...func(*ServerConfig)) (before *Server) {
	cfg := ServerConfig{Key: s.key, Log: testLog()}
	for _, f := range more {
		f(&cfg)
	}
	server := NewServer(cfg)
	return s.server.Swap(server)
}

func (s *site) config(engine string) Config {
	return Config{URL: s.web.URL + "/x", Key: s.key.Public(), Engine: engine}
}

func (s *site) dialer(cfg Config) *Dialer {
	d, err := NewDialer(cfg, Options{Log: testLog()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { d.Close() })
	return d
}

func (s *site) accept() *ServerStream {
	st, err := s.server.Load().Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// each runs a test for every engine.
func each(t *testing.T, f func(t *testing.T, s *site, d *Dialer, name string)) {
	t.Helper()
	for _, name := range engines.Names() {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			f(t, s, s.dialer(s.config(name)), name)
		})
	}
}

func dial(t *testing.T, d *Dialer) Stream {
	t.Helper()
	st, err := d.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// expect reads exactly text.
func expect(t *testing.T, who string, r io.Reader, text string) {
	t.Helper()
	b := make([]byte, len(text))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != text {
		t.Fatalf("%s reads %q, %v, want %q", who, b, err, text)
	}
}

func expectEnd(t *testing.T, who string, r io.Reader) {
	t.Helper()
	if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
		t.Fatalf("%s reads %q, %v, want the end", who, b, err)
	}
}

// until waits for something that goes on elsewhere.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// Half-close passes in both directions, whichever side is first.
func TestHalfClose(t *testing.T) {
	each(t, func(t *testing.T, s *site, d *Dialer, _ string) {
		c := dial(t, d)
		c.Write([]byte("question"))
		c.CloseWrite()
		remote := s.accept()
		expect(t, "the server", remote, "question")
		expectEnd(t, "the server", remote)
		remote.Write([]byte("answer"))
		remote.CloseWrite()
		expect(t, "the client", c, "answer")
		expectEnd(t, "the client", c)
		if _, err := c.Write([]byte("more")); err == nil {
			t.Error("the client writes after CloseWrite")
		}
		c.Close()
		remote.Close()
	})
}

// A server that speaks first, to a client that never says a word.
func TestServerFirst(t *testing.T) {
	each(t, func(t *testing.T, s *site, d *Dialer, _ string) {
		c := dial(t, d)
		remote := s.accept()
		remote.Write([]byte("220 ready"))
		expect(t, "the client", c, "220 ready")
		remote.CloseWrite()
		expectEnd(t, "the client", c)
		c.CloseWrite()
		expectEnd(t, "the server", remote)
	})
}

// What was written before Close arrives, and then the end. The other side
// cannot write for ever.
func TestClose(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	for _, fromClient := range []bool{true, false} {
		each(t, func(t *testing.T, s *site, d *Dialer, _ string) {
			c := dial(t, d)
			c.Write([]byte("x"))
			remote := s.accept()
			expect(t, "the server", remote, "x")
			var closes, other Stream = c, remote
			if !fromClient {
				closes, other = remote, c
			}
			go func() {
				closes.Write(data)
				closes.Close()
				closes.Close()
			}()
			got, err := io.ReadAll(other)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
			}
			if _, err := closes.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read on the closed side: %v", err)
			}
			if _, err := closes.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write on the closed side: %v", err)
			}
			for err = nil; err == nil; {
				_, err = other.Write(data)
			}
			other.Close()
			until(t, "the server has no stream", func() bool { return !fromClient || s.server.Load().Stats().Streams <= 1 })
		})
	}
}

// A reset is told from an end at the other side, and both sides' calls fail as
// engine.Stream says. The server counts the stream no more.
func TestReset(t *testing.T) {
	for _, fromClient := range []bool{true, false} {
		each(t, func(t *testing.T, s *site, d *Dialer, _ string) {
			c := dial(t, d)
			c.Write([]byte("x"))
			remote := s.accept()
			expect(t, "the server", remote, "x")
			var resets, other Stream = c, remote
			if !fromClient {
				resets, other = remote, c
			}
			for range 2 {
				if err := resets.Reset(); err != nil {
					t.Error(err)
				}
			}
			if b, err := io.ReadAll(other); len(b) > 0 || !errors.Is(err, engine.ErrReset) {
				t.Errorf("the other side reads %q, %v; want a reset", b, err)
			}
			if _, err := other.Write([]byte("x")); !errors.Is(err, engine.ErrReset) {
				t.Errorf("Write on the other side: %v; want a reset", err)
			}
			if _, err := resets.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read on the side that resets: %v", err)
			}
			if _, err := resets.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write on the side that resets: %v", err)
			}
			other.Close()
			if n := s.server.Load().Stats().Streams; n > 0 {
				t.Errorf("the server counts %d streams", n)
			}
		})
	}
}

// A hundred streams at once, each byte-exact in both directions.
func TestManyStreams(t *testing.T) {
	each(t, func(t *testing.T, s *site, d *Dialer, name string) {
		n, session := 100, 1
		if e, _ := engines.Find(name); !e.Multiplexes() {
			n, session = 12, 12
		}
		server := s.server.Load()
		var wg sync.WaitGroup
		wg.Go(func() {
			for range n {
				st, err := server.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				wg.Go(func() {
					io.Copy(st, st)
					st.CloseWrite()
				})
			}
		})
		for i := range n {
			wg.Go(func() {
				c, err := d.Dial(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				data := bytes.Repeat([]byte(fmt.Sprintf("stream %d,", i)), 3000+i*10)
				go func() {
					c.Write(data)
					c.CloseWrite()
				}()
				got, err := io.ReadAll(c)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("stream %d: %d bytes of %d, %v", i, len(got), len(data), err)
				}
			})
		}
		wg.Wait()
		if st := server.Stats(); st.Opened != uint64(session) || st.Accepted != n {
			t.Errorf("%d sessions and %d streams, want %d and %d", st.Opened, st.Accepted, session, n)
		}
	})
}

// A stream that is not read does not stall another, nor does one that is not
// accepted.
func TestStalledStream(t *testing.T) {
	each(t, func(t *testing.T, s *site, d *Dialer, _ string) {
		stalled := dial(t, d)
		written := make(chan struct{})
		go func() {
			defer close(written)
			for {
				if _, err := stalled.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}()
		s.accept()
		c := dial(t, d)
		c.Write([]byte("hello"))
		remote := s.accept()
		expect(t, "the server", remote, "hello")
		go io.Copy(remote, remote)
		data := make([]byte, 1<<20)
		go c.Write(data)
		if _, err := io.ReadFull(c, data); err != nil {
			t.Error(err)
		}
		stalled.Close()
		<-written
	})
}

// slowProxy is an HTTP proxy that lets a connection through when gate is closed.
func slowProxy(t *testing.T, gate chan struct{}) *url.URL {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-gate
		there, err := net.Dial("tcp", r.Host)
		if err != nil {
			t.Error(err)
			return
		}
		defer there.Close()
		here, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer here.Close()
		io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			io.Copy(there, here)
			there.Close()
		}()
		io.Copy(here, there)
	}))
	t.Cleanup(proxy.Close)
	u, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// What is written to a stream of DialEarly while there is no connection yet is
// with the server before any second request is.
func TestDialEarly(t *testing.T) {
	for _, name := range engines.Names() {
		if name == "quic" {
			continue // a stream of QUIC begins after a round trip
		}
		t.Run(name, func(t *testing.T) {
			enginetest.Bubble(t, func(t *testing.T) { testDialEarly(t, name) })
		})
	}
}

func testDialEarly(t *testing.T, name string) {
	key := NewKey()
	server := NewServer(ServerConfig{Key: key, Log: testLog()})
	connect, more := make(chan struct{}), make(chan struct{})
	var requests atomic.Int64
	network := &pipes{make(chan net.Conn), make(chan struct{})}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) > 1 {
			<-more
		}
		server.ServeHTTP(w, r)
	})}
	served := make(chan error)
	go func() { served <- web.Serve(network) }()
	d, err := NewDialer(Config{URL: "http://server.example/x", Key: key.Public(), Engine: name}, Options{
		Dial: func(ctx context.Context, kind, addr string) (net.Conn, error) {
			<-connect
			return network.dial(ctx, kind, addr)
		},
		Log: testLog(),
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.DialEarly(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("early"))
	time.Sleep(time.Second) // the engine says it
	close(connect)
	far, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the server", far, "early")
	close(more)
	d.Close()
	server.Close()
	close(network.cut)
	web.Close()
	<-served
}

// Dial says why there is no server, and the streams of DialEarly say the same, or
// DialEarly itself where it waits.
func TestErrors(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	other := NewKey()
	for i, c := range []struct {
		name   string
		change func(*Config, *site)
		want   error
		text   string
	}{
		{"nobody listens", func(c *Config, _ *site) { c.URL = "http://" + closed.Addr().String() }, ErrUnreachable, "refused"},
		{"a name that does not exist", func(c *Config, _ *site) { c.URL = "http://nowhere.invalid/" }, ErrUnreachable, "nowhere.invalid"},
		{"another key", func(c *Config, _ *site) { c.Key = other.Public() }, ErrNotServer, "404"},
		{"no key", func(c *Config, _ *site) { c.Key = "" }, ErrNotServer, "404"},
		{"a gateway in trouble", func(_ *Config, s *site) {
			s.web.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
		}, ErrUnreachable, "502"},
		{"a page", func(_ *Config, s *site) {
			s.web.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>Hello") })
		}, ErrNotServer, "text/html"},
		{"a connection that is cut", func(_ *Config, s *site) {
			s.web.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		}, ErrUnreachable, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // fronts that fail are left alone for seconds
			s := newSite(t)
			cfg := s.config(engines.Names()[i%len(engines.Names())])
			c.change(&cfg, s)
			d := s.dialer(cfg)
			check := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
					t.Errorf("%s: %v, want %v and %q", what, err, c.want, c.text)
				}
			}
			early, err := d.DialEarly(t.Context())
			if cfg.Engine == "quic" {
				check("DialEarly", err)
			} else if err != nil {
				t.Fatal(err)
			} else {
				early.Write([]byte("early"))
			}
			_, err = d.Dial(t.Context())
			check("Dial", err)
			if early != nil {
				_, err = early.Read(make([]byte, 1))
				check("Read", err)
				for err = nil; err == nil; {
					_, err = early.Write(make([]byte, 1000))
				}
				check("Write", err)
			}
			if n := s.server.Load().Stats().Opened; n != 0 {
				t.Errorf("%d sessions were opened", n)
			}
		})
	}
}

// Dial ends with its context, and with the Dialer, though nobody answers.
func TestDialEnds(t *testing.T) {
	t.Parallel() // a farewell to nobody takes seconds
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, name := range []string{"kcp", "quic"} {
		d, err := NewDialer(Config{URL: "http://" + silent.Addr().String(), Key: testKey, Engine: name}, Options{Log: testLog()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("tired of waiting")
		cancel(why)
		if _, err := d.Dial(ctx); !errors.Is(err, ErrUnreachable) || !errors.Is(err, why) {
			t.Errorf("%s: %v", name, err)
		}
		early := func(ctx context.Context, by time.Time) error {
			st, err := d.DialEarly(ctx) // that of quic waits for the server
			if err == nil {
				st.SetReadDeadline(by)
				_, err = st.Read(make([]byte, 1))
			}
			return err
		}
		within, want := t.Context(), os.ErrDeadlineExceeded
		if name == "quic" {
			within, want = ctx, context.Canceled
		}
		if err := early(within, time.Now()); !errors.Is(err, want) {
			t.Errorf("%s: an early stream: %v; want %v", name, err, want)
		}
		failed := make(chan error, 2)
		go func() {
			_, err := d.Dial(context.Background())
			failed <- err
		}()
		go func() { failed <- early(context.Background(), time.Time{}) }()
		d.Close()
		for range 2 {
			if err := <-failed; err == nil {
				t.Errorf("%s: a call outlived the Dialer", name)
			}
		}
		if _, err := d.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: Dial after Close: %v", name, err)
		}
		if _, err := d.DialEarly(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: DialEarly after Close: %v", name, err)
		}
		d.Close()
	}
}

// A server that was restarted does not know the session. The Dialer starts a
// new one, and the streams of the old one end with an error that says so.
func TestRestart(t *testing.T) {
	each(t, func(t *testing.T, s *site, d *Dialer, _ string) {
		c := dial(t, d)
		c.Write([]byte("before"))
		expect(t, "the server", s.accept(), "before")

		// As after a crash: connections break, and nobody says good-bye.
		before := s.start()
		s.web.CloseClientConnections()
		defer before.Close()

		if _, err := io.Copy(io.Discard, c); !errors.Is(err, ErrSessionLost) && !errors.Is(err, engine.ErrReset) {
			t.Errorf("the old stream ends with %v", err)
		}
		for err := error(nil); err == nil; {
			_, err = c.Write(make([]byte, 1000))
		}
		again := dial(t, d)
		again.Write([]byte("after"))
		expect(t, "the new server", s.accept(), "after")
	})
}

// A server that ends takes its streams with it, and Accept says so.
func TestServerClose(t *testing.T) {
	each(t, func(t *testing.T, s *site, d *Dialer, _ string) {
		c := dial(t, d)
		c.Write([]byte("hello"))
		remote := s.accept()
		expect(t, "the server", remote, "hello")
		server := s.server.Load()
		accepted := make(chan error)
		go func() {
			_, err := server.Accept()
			accepted <- err
		}()
		server.Close()
		server.Close()
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
		if _, err := remote.Write([]byte("x")); err == nil {
			t.Error("a stream outlives its server")
		}
		if _, err := io.Copy(io.Discard, c); err == nil || errors.Is(err, net.ErrClosed) {
			t.Errorf("the client's stream ends with %v", err)
		}
		if st := server.Stats(); st.Sessions != 0 || st.Memory != 0 {
			t.Errorf("left over: %+v", st)
		}
	})
}

// A Dialer that is closed leaves nothing behind at the server.
func TestDialerClose(t *testing.T) {
	each(t, func(t *testing.T, s *site, d *Dialer, _ string) {
		c := dial(t, d)
		c.Write([]byte("hello"))
		remote := s.accept()
		expect(t, "the server", remote, "hello")
		ended := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, c)
			ended <- err
		}()
		d.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("a stream of a closed Dialer: %v", err)
		}
		if _, err := io.Copy(io.Discard, remote); err == nil {
			t.Error("the server's stream ends as if all had been said")
		}
		remote.Close()
		server := s.server.Load()
		const name = 256 // bytes, at most, that it remembers of the first message for some minutes: its name and a second's bucket
		until(t, "the server has forgotten the session", func() bool {
			st := server.Stats()
			return st.Sessions == 0 && st.Memory <= name
		})
		if n := server.Stats().Streams; n != 0 {
			t.Errorf("%d streams are left over", n)
		}
	})
}

// Streams come with the address of the client as a trusted proxy tells it.
func TestStreamClient(t *testing.T) {
	s := newSite(t)
	s.start(func(c *ServerConfig) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} }).Close()
	s.before = func(_ int64, r *http.Request) { r.Header.Set("X-Forwarded-For", "203.0.113.1, 2001:db8::7") }
	d := s.dialer(s.config(""))
	c := dial(t, d)
	c.Write([]byte("x"))
	st := s.accept()
	if got := st.Client().String(); got != "2001:db8::7" {
		t.Errorf("client %v", got)
	}
	if st.Session() == "" || strings.Contains(st.Session(), "2001") {
		t.Errorf("session %q", st.Session())
	}
}

// Without a decoy a stranger gets an empty 404.
func TestStranger(t *testing.T) {
	s := newSite(t)
	for _, path := range []string{"/", "/x", "/x/index.html"} {
		resp, err := s.web.Client().Post(s.web.URL+path, "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound || len(b) != 0 {
			t.Errorf("%s: status %d, %q", path, resp.StatusCode, b)
		}
	}
	s.web.Client().CloseIdleConnections()
}

// Data goes through byte-exact in both modes.
func TestEcho(t *testing.T) {
	for _, mode := range []string{"poll", "stream", "auto"} {
		t.Run(mode, func(t *testing.T) {
			each(t, func(t *testing.T, s *site, _ *Dialer, name string) {
				cfg := s.config(name)
				cfg.Mode = mode
				c := dial(t, s.dialer(cfg))
				const size = 3 << 20
				sent := sha256.New()
				go func() {
					remote, err := s.server.Load().Accept()
					if err != nil {
						return
					}
					io.Copy(remote, remote)
					remote.CloseWrite()
				}()
				go func() {
					for i := range size / 1024 {
						b := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 512)
						sent.Write(b)
						c.Write(b)
					}
					c.CloseWrite()
				}()
				got := sha256.New()
				n, err := io.Copy(got, c)
				if err != nil || n != size || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
					t.Errorf("%d bytes of %d, %v", n, size, err)
				}
			})
		})
	}
}

func BenchmarkThroughput(b *testing.B) {
	for _, e := range engines.Names() {
		for _, mode := range []string{"poll", "stream"} {
			for _, down := range []bool{true, false} {
				b.Run(fmt.Sprintf("%s/%s/down=%v", e, mode, down), func(b *testing.B) {
					s := newSite(b)
					cfg := s.config(e)
					cfg.Mode = mode
					c, err := s.dialer(cfg).Dial(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					c.Write([]byte("x"))
					st := s.accept()
					st.Read(make([]byte, 1))
					var from, to Stream = c, st
					if down {
						from, to = st, c
					}
					buf := make([]byte, 64<<10)
					b.SetBytes(int64(len(buf)))
					b.ReportAllocs()
					b.ResetTimer()
					done := make(chan struct{})
					go func() {
						io.CopyN(io.Discard, to, int64(b.N*len(buf)))
						close(done)
					}()
					for range b.N {
						from.Write(buf)
					}
					<-done
				})
			}
		}
	}
}
