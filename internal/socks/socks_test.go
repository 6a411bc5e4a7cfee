package socks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/logtest"
	"turbotunnel/internal/relay"
	"turbotunnel/internal/socks/sockstest"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

// testKey has the form of a server's public key.
var testKey = strings.Repeat("A", 43)

// goodArgs are the arguments of a bridge line that lacks nothing.
var goodArgs = "url=http://server.example/;key=" + testKey

// A fakeDialer lets a test decide what becomes of a Dial. Safe for concurrent
// use.
type fakeDialer struct {
	dial   func(ctx context.Context) (stream, error)
	closed chan struct{}
	once   sync.Once

	pending bool // as Pending says, set before the pool looks
	heard   time.Time
}

func newFakeDialer(dial func(ctx context.Context) (stream, error)) *fakeDialer {
	return &fakeDialer{dial: dial, closed: make(chan struct{})}
}

func (d *fakeDialer) Dial(ctx context.Context) (stream, error) { return d.dial(ctx) }

func (d *fakeDialer) Pending() (pending bool, heard time.Time) { return d.pending, d.heard }

func (d *fakeDialer) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// testPlaces is how many connections an acceptor would have a bench handle.
const testPlaces = 128

// patience is how long a test waits for what must happen before it fails.
const patience = 60 * time.Second

// A bench is a Server with fakes around it.
type bench struct {
	addr   string
	server *Server
	log    logtest.Buffer
	status logtest.Buffer
	opened chan config // one for each dialer made
	stop   context.CancelCauseFunc
	cut    context.CancelCauseFunc
	done   chan struct{} // closed when the last Handle has returned
}

// newBench starts a Server whose dialers do as dial says. It is stopped, and its end
// waited for, with the test.
func newBench(t *testing.T, dial func(ctx context.Context) (stream, error)) *bench {
	t.Helper()
	b := &bench{opened: make(chan config, 100), done: make(chan struct{})}
	var stopping, draining context.Context
	stopping, b.stop = context.WithCancelCause(context.Background())
	draining, b.cut = context.WithCancelCause(context.Background())
	srv := NewServer(Config{
		Open: func(c config) (Dialer, error) {
			b.opened <- c
			return newFakeDialer(dial), nil
		},
		Log: slog.New(slog.NewTextHandler(&b.log, nil)),
		Status: func(pairs ...string) {
			fmt.Fprintln(&b.status, strings.Join(pairs, " "))
		},
		Places:   testPlaces,
		Stopping: stopping,
		Draining: draining,
	})
	b.server = srv
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = ln.Addr().String()
	context.AfterFunc(stopping, func() { ln.Close() })
	go func() {
		defer close(b.done)
		var handlers sync.WaitGroup
		defer handlers.Wait()
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			handlers.Go(func() { srv.Handle(conn) })
		}
	}()
	t.Cleanup(func() {
		b.stop(errors.New("end of the test"))
		b.cut(errors.New("end of the test"))
		<-b.done
		srv.Close()
	})
	return b
}

// dialTCP connects to addr; the connection is closed with the test.
func dialTCP(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// request sends a SOCKS5 request with a bridge line's arguments, and returns
// before the answer.
func request(t *testing.T, addr, args string) *net.TCPConn {
	t.Helper()
	conn := dialTCP(t, addr)
	conn.SetDeadline(time.Now().Add(patience))
	if err := sockstest.Send(conn, args); err != nil {
		t.Fatal(err)
	}
	return conn
}

// answer reads the reply to a request and returns its code.
func answer(t *testing.T, conn net.Conn) byte {
	t.Helper()
	code, err := sockstest.Reply(conn)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// loopback returns the two ends of a TCP connection: the stream that a dialer
// gives away, and the server's end of it.
func loopback(t *testing.T) (client relay.TCPConn, server *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client = relay.TCPConn{TCPConn: dialTCP(t, ln.Addr().String())}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return client, conn.(*net.TCPConn)
}

func TestGrantComesAfterTheServersAnswer(t *testing.T) {
	near, far := loopback(t)
	dialing, answered := make(chan struct{}), make(chan struct{})
	b := newBench(t, func(context.Context) (stream, error) {
		close(dialing)
		<-answered
		return near, nil
	})
	conn := request(t, b.addr, goodArgs)
	<-dialing
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes and %v before the server answered", n, err)
	}
	conn.SetReadDeadline(time.Time{})
	close(answered)
	if code := answer(t, conn); code != 0 {
		t.Fatalf("reply %d", code)
	}
	// Bytes and half-closes pass.
	io.WriteString(conn, "question")
	conn.CloseWrite()
	if got, err := io.ReadAll(far); string(got) != "question" || err != nil {
		t.Errorf("the server read %q, %v", got, err)
	}
	io.WriteString(far, "answer")
	far.Close()
	if got, err := io.ReadAll(conn); string(got) != "answer" || err != nil {
		t.Errorf("tor read %q, %v", got, err)
	}
	if got, want := b.status.String(), "ADDRESS 192.0.2.1:80 CONNECT Success\n"; got != want {
		t.Errorf("status %q, want %q", got, want)
	}
}

func TestRefusalCodes(t *testing.T) {
	opErr := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for _, c := range []struct {
		err  error
		code byte
	}{
		{fmt.Errorf("front: %w: %w", tunnel.ErrUnreachable, &net.DNSError{Err: "no such host", Name: "front.example"}), pt.SocksRepHostUnreachable},
		{fmt.Errorf("%w: %w", tunnel.ErrUnreachable, opErr(syscall.ECONNREFUSED)), pt.SocksRepHostUnreachable},
		{fmt.Errorf("%w: %w", tunnel.ErrUnreachable, opErr(syscall.ENETUNREACH)), pt.SocksRepNetworkUnreachable},
		{fmt.Errorf("%w: %w", tunnel.ErrUnreachable, opErr(os.ErrDeadlineExceeded)), pt.SocksRepTTLExpired},
		{fmt.Errorf("%w: %w", tunnel.ErrUnreachable, context.DeadlineExceeded), pt.SocksRepTTLExpired},
		{fmt.Errorf("404: %w", tunnel.ErrNotServer), pt.SocksRepConnectionRefused},
		{fmt.Errorf("%w: no such engine", tunnel.ErrRefused), pt.SocksRepConnectionNotAllowed},
		{tunnel.ErrSessionLost, pt.SocksRepGeneralFailure},
		{errors.New("what nobody thought of"), pt.SocksRepGeneralFailure},
	} {
		b := newBench(t, func(context.Context) (stream, error) { return nil, c.err })
		conn := request(t, b.addr, goodArgs)
		if code := answer(t, conn); code != c.code {
			t.Errorf("%v: reply %d, want %d", c.err, code, c.code)
		}
		if rest, err := io.ReadAll(conn); len(rest) != 0 || err != nil {
			t.Errorf("after the refusal: %q, %v", rest, err)
		}
		if !strings.Contains(b.status.String(), "CONNECT Failed ERRSTR") || strings.Contains(b.status.String(), "front.example") {
			t.Errorf("status %q", b.status.String())
		}
	}
}

func TestWrongArgumentsAreNamed(t *testing.T) {
	b := newBench(t, func(context.Context) (stream, error) { return nil, errors.New("must not be dialed") })
	for _, c := range []struct{ args, log string }{
		{"colour=blue", "colour"},
		{"engine=steam", "steam"},
		{"url=server.example", "http"},
		{"url=http://a.example/", "needs key="},
		{"key=" + testKey, "needs url="},
		{goodArgs + ";front=a.example;fronts=b.example", "fronts"},
		{goodArgs + ";mode=poll;mode=auto", "2 times"},
		{goodArgs + ";key=short", "key"},
	} {
		conn := request(t, b.addr, c.args)
		if code := answer(t, conn); code != pt.SocksRepAddressNotSupported {
			t.Errorf("%s: reply %d", c.args, code)
		}
		io.ReadAll(conn)
		log := b.log.String()
		last := log[strings.LastIndex(strings.TrimSpace(log), "\n")+1:]
		if !strings.Contains(last, c.log) {
			t.Errorf("%s: the log does not say %q: %s", c.args, c.log, last)
		}
	}
	if len(b.opened) > 0 {
		t.Error("a dialer was made of wrong arguments")
	}
}

func TestSilentClientsStallNobody(t *testing.T) {
	near, _ := loopback(t)
	b := newBench(t, func(context.Context) (stream, error) { return near, nil })
	for range testPlaces/silentPart + 10 {
		dialTCP(t, b.addr)
	}
	if code := answer(t, request(t, b.addr, goodArgs)); code != 0 {
		t.Errorf("reply %d", code)
	}
}

// However many come at once, nobody has to go who had no time to speak, nor while there
// is room for others: a client of a busy machine may be silent for long.
func TestBurstIsServed(t *testing.T) {
	const burst = 128
	for _, c := range []struct{ places, gone int }{
		{places: burst, gone: burst/silentPart + 1},
		{places: burst + 2, gone: burst / silentPart},
		{places: silentPart * (burst + 1)},
	} {
		synctest.Test(t, func(t *testing.T) {
			srv := NewServer(Config{Places: c.places})
			defer srv.Close()
			q := &srv.shaking
			gone := func(c net.Conn) bool {
				c.SetReadDeadline(time.Now())
				_, err := c.Read(make([]byte, 1))
				return !errors.Is(err, os.ErrDeadlineExceeded)
			}
			var clients, conns []net.Conn
			enter := func(n int) {
				for range n {
					client, conn := net.Pipe()
					clients, conns = append(clients, client), append(conns, conn)
					q.enter(conn)
				}
			}
			defer func() {
				for _, c := range conns {
					c.Close()
				}
			}()
			enter(burst)
			for i, conn := range clients {
				if gone(conn) {
					t.Fatalf("client %d of a burst had to go", i)
				}
			}
			// Those that are still silent later make room, as many as is needed.
			time.Sleep(silentTime)
			enter(1)
			for i, conn := range clients {
				if went := i < c.gone; gone(conn) != went {
					t.Fatalf("of %d places: client %d: gone %t, want %t", c.places, i, !went, went)
				}
			}
			q.leave(conns[len(conns)-1])
			if n, want := len(q.waiting), burst-c.gone; n != want {
				t.Errorf("%d wait, want %d", n, want)
			}
		})
	}
}

func TestBrokenHandshakesAreExplained(t *testing.T) {
	notDialed := func(context.Context) (stream, error) { return nil, errors.New("must not be dialed") }
	for send, why := range map[string]string{
		"\x04\x01\x00\x50\x7f\x00\x00\x01\x00": "does not speak SOCKS5",
		"GET / HTTP/1.0\r\n\r\n":               "does not speak SOCKS5",
		"\x05":                                 "went away",
		"":                                     "went away",
	} {
		b := newBench(t, notDialed)
		conn := dialTCP(t, b.addr)
		io.WriteString(conn, send)
		conn.CloseWrite()
		io.ReadAll(conn)
		waitFor(t, &b.log, why, 1)
	}
	// A user name that is no list of arguments.
	b := newBench(t, notDialed)
	conn := dialTCP(t, b.addr)
	io.WriteString(conn, "\x05\x01\x02")
	io.ReadFull(conn, make([]byte, 2))
	io.WriteString(conn, "\x01\x05alice\x01\x00")
	if got, _ := io.ReadAll(conn); string(got) != "\x01\x01" {
		t.Errorf("answer % x", got)
	}
	waitFor(t, &b.log, "key=value", 1)
}

// However many clients ask for nothing, the log says so once.
func TestBrokenHandshakesAreToldSeldom(t *testing.T) {
	b := newBench(t, func(context.Context) (stream, error) { return nil, errors.New("must not be dialed") })
	for range 20 {
		conn := dialTCP(t, b.addr)
		conn.CloseWrite()
		io.ReadAll(conn) // which ends after the log was written
	}
	if n := strings.Count(b.log.String(), "refused a SOCKS client"); n != 1 {
		t.Errorf("%d lines", n)
	}
}

// waitFor waits until text stands in a log so many times.
func waitFor(t *testing.T, log *logtest.Buffer, text string, times int) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for strings.Count(log.String(), text) < times {
		if time.Now().After(deadline) {
			t.Fatalf("the log does not say %q %d times:\n%s", text, times, log.String())
		}
		runtime.Gosched()
	}
}

func TestClientGoneEndsTheDial(t *testing.T) {
	dialing, ended := make(chan struct{}), make(chan error, 1)
	b := newBench(t, func(ctx context.Context) (stream, error) {
		close(dialing)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil, ctx.Err()
	})
	conn := request(t, b.addr, goodArgs)
	<-dialing
	conn.Close()
	if err := <-ended; !errors.Is(err, errClientGone) {
		t.Errorf("the dial ended by %v", err)
	}
}

func TestEarlyBytesAreKept(t *testing.T) {
	near, far := loopback(t)
	dialing, answered := make(chan struct{}), make(chan struct{})
	b := newBench(t, func(context.Context) (stream, error) {
		close(dialing)
		<-answered
		return near, nil
	})
	conn := request(t, b.addr, goodArgs)
	<-dialing
	io.WriteString(conn, "too early")
	conn.CloseWrite()
	close(answered)
	if code := answer(t, conn); code != 0 {
		t.Fatalf("reply %d", code)
	}
	if got, err := io.ReadAll(far); string(got) != "too early" || err != nil {
		t.Errorf("the server read %q, %v", got, err)
	}
}

func TestDialLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, conn := net.Pipe()
		defer client.Close()
		s := NewServer(Config{Stopping: t.Context()})
		start := time.Now()
		_, _, err := s.dial(conn, newFakeDialer(func(ctx context.Context) (stream, error) {
			<-ctx.Done()
			return nil, tunnel.ErrUnreachable
		}))
		if took := time.Since(start); took != dialLimit {
			t.Errorf("took %v, want %v", took, dialLimit)
		}
		if code := replyCode(err); code != pt.SocksRepTTLExpired {
			t.Errorf("reply %d for %v", code, err)
		}
	})
}

func TestStopLetsStreamsFinish(t *testing.T) {
	near, far := loopback(t)
	b := newBench(t, func(context.Context) (stream, error) { return near, nil })
	conn := request(t, b.addr, goodArgs)
	answer(t, conn)
	b.stop(errors.New("told to"))
	for { // until the listener has gone, which takes a moment
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			break
		}
		c.Close()
	}
	io.WriteString(far, "still here")
	if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
		t.Fatalf("the stream ended with the listener: %v", err)
	}
	b.cut(errors.New("long enough"))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the cut stream ended by %v, want a reset", err)
	}
	<-b.done
}

func TestStopEndsDialsAndHandshakes(t *testing.T) {
	dialing := make(chan struct{})
	b := newBench(t, func(ctx context.Context) (stream, error) {
		close(dialing)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	silent := dialTCP(t, b.addr)
	conn := request(t, b.addr, goodArgs)
	<-dialing
	b.stop(errors.New("told to"))
	if code := answer(t, conn); code != pt.SocksRepGeneralFailure {
		t.Errorf("reply %d", code)
	}
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("the silent client got an answer")
	}
	<-b.done
}

// A Server may be closed while it serves: what waits for a dialer is refused, as is
// what comes later.
func TestCloseWhileServing(t *testing.T) {
	dialing := make(chan struct{})
	ended := make(chan struct{})
	b := newBench(t, func(context.Context) (stream, error) {
		close(dialing)
		<-ended // as by Close of a tunnel.Dialer
		return nil, net.ErrClosed
	})
	conn := request(t, b.addr, goodArgs)
	<-dialing
	b.server.Close()
	close(ended)
	b.server.Close()
	for _, c := range []net.Conn{conn, request(t, b.addr, goodArgs)} {
		if code := answer(t, c); code != pt.SocksRepGeneralFailure {
			t.Errorf("reply %d", code)
		}
	}
	if n := len(b.opened); n != 1 {
		t.Errorf("%d dialers", n)
	}
}

func TestSessionLossIsToldOnce(t *testing.T) {
	lost := make(chan struct{})
	b := newBench(t, func(context.Context) (stream, error) {
		near, _ := loopback(t)
		return &lostStream{near, lost}, nil
	})
	first, second := request(t, b.addr, goodArgs), request(t, b.addr, goodArgs)
	answer(t, first)
	answer(t, second)
	close(lost)
	io.ReadAll(first)
	io.ReadAll(second)
	b.stop(errors.New("told to"))
	<-b.done
	log := b.log.String()
	if n := strings.Count(log, "session lost; the next"); n != 1 {
		t.Errorf("the loss stands in the log %d times:\n%s", n, log)
	}
	if n := strings.Count(log, "msg=connected"); n != 1 {
		t.Errorf("the connection stands in the log %d times:\n%s", n, log)
	}
	if len(b.opened) != 1 {
		t.Errorf("%d dialers for equal arguments", len(b.opened))
	}
}

// A lostStream fails to read when its session is lost.
type lostStream struct {
	relay.TCPConn
	lost chan struct{}
}

func (s *lostStream) Read([]byte) (int, error) {
	<-s.lost
	return 0, fmt.Errorf("stream: %w", tunnel.ErrSessionLost)
}

// Whatever arguments a SOCKS client sends, it gets a configuration that is
// complete, or an error of one line.
func FuzzConfigure(f *testing.F) {
	f.Add("url", "http://a.example/", "key", testKey)
	f.Add("front", "a", "fronts", "b")
	f.Add("mode", "\x00", "é", "\n")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		args := pt.Args{}
		args.Add(k1, v1)
		args.Add(k2, v2)
		cfg, err := configure(config{}, args)
		if err == nil && (cfg.URL == "" || cfg.Key == "") {
			t.Errorf("%q gave %+v", args, cfg)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("error of several lines: %q", err)
		}
	})
}
