package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// eventList is what Events has told.
type eventList struct {
	mu     sync.Mutex
	events []Event
}

func (l *eventList) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

func (l *eventList) kinds() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var words []string
	for _, e := range l.events {
		words = append(words, e.Kind.String())
		if (e.Err == nil) != (e.Kind == Connected) {
			words = append(words, "with a wrong error")
		}
	}
	return strings.Join(words, " ")
}

// Each thing that can become of a session is told once.
func TestEvents(t *testing.T) {
	s := newSite(t)
	var told eventList
	d, err := NewDialer(s.config(""), Options{Log: testLog(), Events: told.add})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c := dial(t, d)
	until(t, "connected", func() bool { return told.kinds() == "connected" })
	dial(t, d)
	s.start().Close() // a new server, which knows no session; the old one says goodbye
	io.Copy(io.Discard, c)
	until(t, "lost", func() bool { return told.kinds() == "connected lost" })
	s.foreign.Store(1 << 30)
	if _, err := d.Dial(t.Context()); !errors.Is(err, ErrNotServer) {
		t.Fatal(err)
	}
	until(t, "failed", func() bool { return told.kinds() == "connected lost failed" })
}

// A session that never came to be has failed, and was not lost, also where the end of
// its engine is what is noticed first.
func TestEventsOfFailures(t *testing.T) {
	s := newSite(t)
	s.foreign.Store(1 << 30)
	var told eventList
	d, err := NewDialer(s.config(""), Options{Log: testLog(), Events: told.add})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c, err := d.DialEarly(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, c)
	until(t, "failed", func() bool { return told.kinds() == "failed" })
	d.tellEngineEnd(c.(*clientStream).session, false)
	if got := told.kinds(); got != "failed failed" {
		t.Errorf("told: %s", got)
	}
}

// What is lost was connected, also where the end of the engine is noticed before that
// is.
func TestEventsOfAnEngineThatEnds(t *testing.T) {
	s := newSite(t)
	d := s.dialer(s.config("kcp-smux"))
	c := dial(t, d)
	var told eventList
	d = &Dialer{engine: d.engine, events: told.add}
	d.tellEngineEnd(c.(*clientStream).session, false)
	if got := told.kinds(); got != "connected lost" {
		t.Errorf("told: %s", got)
	}
}

// Options turn what they say they turn.
func TestOptionsOfSockets(t *testing.T) {
	server := NewServer(ServerConfig{})
	web := httptest.NewUnstartedServer(server)
	web.EnableHTTP2 = true
	web.StartTLS()
	defer web.Close()
	defer server.Close()
	go func() {
		for {
			st, err := server.Accept()
			if err != nil {
				return
			}
			st.Close()
		}
	}()
	cfg := Config{URL: strings.Replace(web.URL, "127.0.0.1", "example.com", 1)} // as httptest's certificate has it
	roots := web.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	var dialed, controlled atomic.Int64
	ownDial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialed.Add(1)
		if !strings.HasPrefix(addr, "example.com:") {
			t.Errorf("dials %s", addr)
		}
		var d net.Dialer
		return d.DialContext(ctx, network, web.Listener.Addr().String())
	}
	control := func(_, _ string, _ syscall.RawConn) error {
		controlled.Add(1)
		return nil
	}
	for _, c := range []struct {
		name string
		opts Options
		cfg  Config
		want string // in the error; empty: none
	}{
		{"own sockets", Options{Dial: ownDial, RootCAs: roots}, cfg, ""},
		{"no roots", Options{Dial: ownDial}, cfg, "x509"},
		{"control", Options{Control: control, RootCAs: roots}, cfg, ""},
	} {
		if c.opts.Dial == nil {
			c.cfg.Addr = web.Listener.Addr().String()
		}
		d, err := NewDialer(c.cfg, c.opts)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := d.DialContext(t.Context(), "tcp", "nowhere.example:1")
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || conn != nil) {
			t.Errorf("%s: %v, %v, want %q", c.name, conn, err, c.want)
		}
		d.Close()
	}
	if dialed.Load() == 0 || controlled.Load() == 0 {
		t.Errorf("Dial was called %d times and Control %d times", dialed.Load(), controlled.Load())
	}
}

// HTTP through a tunnel in HTTP: what takes a net.Listener and a net.Dialer's
// method takes ours.
func TestListenerAndDialContext(t *testing.T) {
	s := newSite(t)
	ln := s.server.Load().Listener()
	inner := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello "+r.URL.Path[1:])
	})}
	served := make(chan error)
	go func() { served <- inner.Serve(ln) }()
	d := s.dialer(s.config(""))
	transport := &http.Transport{DialContext: d.DialContext}
	resp, err := (&http.Client{Transport: transport}).Get("http://inner.example/world")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the client", resp.Body, "hello world")
	resp.Body.Close()
	transport.CloseIdleConnections()
	d.Close()
	inner.Close()
	if err := <-served; err != http.ErrServerClosed {
		t.Error(err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener accepts: %v", err)
	}
	if ln.Addr().Network() == "" {
		t.Error("the listener's address has no network")
	}
}

// Whoever starts and stops a tunnel again and again keeps nothing of it.
func TestStartAndStopLeaveNothing(t *testing.T) {
	once := func() {
		key := NewKey()
		server := NewServer(ServerConfig{Key: key})
		web := httptest.NewServer(server)
		d, err := NewDialer(Config{URL: web.URL, Key: key.Public()}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, d)
		remote, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		remote.Write([]byte("x"))
		expect(t, "the client", c, "x")
		d.Close()
		server.Close()
		web.Close()
	}
	once() // what is made once for all stays
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for range 100 {
		once()
	}
	// net/http's goroutines end a moment after their connections.
	until(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
	until(t, "no descriptor is left", func() bool { return openFiles(t) <= files })
}

// openFiles is how many descriptors this process has, where that can be told.
func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
