package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/internal/logtest"
	"turbotunnel/internal/relay"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

// A fakeStream is the server's end of a stream that is a TCP connection.
type fakeStream struct {
	relay.TCPConn
	client netip.Addr
}

func (s fakeStream) Client() netip.Addr { return s.client }
func (s fakeStream) Session() string    { return "test" }

// tcpPair returns both ends of a TCP connection.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, b = c.(*net.TCPConn), d.(*net.TCPConn)
	for _, conn := range []net.Conn{a, b} {
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second)) // no test waits longer
		t.Cleanup(func() { conn.Close() })
	}
	return a, b
}

// A fakeTunnel is where a forwarder accepts streams.
type fakeTunnel struct {
	forwarder *forwarder
	streams   chan stream
	log       *logtest.Buffer
	cut       context.CancelFunc
}

// newFakeTunnel runs a forwarder until the end of the test.
func newFakeTunnel(t *testing.T, dial dialFunc) *fakeTunnel {
	log, text := newLog()
	f := &fakeTunnel{streams: make(chan stream), log: text}
	f.forwarder = newForwarder(func() (stream, error) {
		s, ok := <-f.streams
		if !ok {
			return nil, net.ErrClosed
		}
		return s, nil
	}, dial, newBudget(0), log)
	ctx, cut := context.WithCancel(context.Background())
	f.cut = cut
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.forwarder.run(ctx)
	}()
	t.Cleanup(func() {
		cut()
		close(f.streams)
		<-done
	})
	return f
}

// open returns the client's end of a new stream.
func (f *fakeTunnel) open(t *testing.T, client netip.Addr) *net.TCPConn {
	t.Helper()
	near, far := tcpPair(t)
	f.streams <- fakeStream{relay.TCPConn{TCPConn: far}, client}
	return near
}

// destination accepts connections and hands each to serve.
func destination(t *testing.T, serve func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			serving.Go(func() {
				serve(c.(*net.TCPConn))
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

// The server speaks first, and each direction ends by itself.
func TestForwardKeepsHalfClose(t *testing.T) {
	up := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	var got []byte
	address := destination(t, func(c *net.TCPConn) {
		io.WriteString(c, "hello ")
		got, _ = io.ReadAll(c)
		io.WriteString(c, "bye")
	})
	near := newFakeTunnel(t, dialForward(address)).open(t, netip.Addr{})
	hello := make([]byte, 6)
	if _, err := io.ReadFull(near, hello); err != nil {
		t.Fatal(err)
	}
	if _, err := near.Write(up); err != nil {
		t.Fatal(err)
	}
	near.CloseWrite()
	rest, err := io.ReadAll(near)
	if err != nil || string(hello)+string(rest) != "hello bye" {
		t.Errorf("got %q%q, %v", hello, rest, err)
	}
	if !bytes.Equal(got, up) {
		t.Errorf("the destination got %d bytes, want %d", len(got), len(up))
	}
}

// expectReset checks that conn ends by a reset, without a byte before it.
func expectReset(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %d, %v; want a reset", n, err)
	}
}

// A destination that resets is not taken for one that ends, and neither is a
// stream.
func TestForwardPassesReset(t *testing.T) {
	ended := make(chan error, 1)
	address := destination(t, func(c *net.TCPConn) {
		io.WriteString(c, "cut")
		word := make([]byte, 2)
		io.ReadFull(c, word)
		if string(word) == "go" {
			c.SetLinger(0)
			return
		}
		_, err := c.Read(word)
		ended <- err
	})
	f := newFakeTunnel(t, dialForward(address))
	for _, word := range []string{"go", "me"} {
		near := f.open(t, netip.Addr{})
		if _, err := io.ReadFull(near, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		io.WriteString(near, word)
		if word == "go" {
			expectReset(t, near)
			continue
		}
		near.SetLinger(0)
		near.Close()
		if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the destination read %v, want a reset", err)
		}
	}
}

// A destination that refuses costs that stream, and the next one is tried.
func TestForwardRefused(t *testing.T) {
	good := destination(t, func(c *net.TCPConn) { io.Copy(c, c) })
	var works atomic.Bool
	bad, fine := dialForward(closedAddress(t)), dialForward(good)
	f := newFakeTunnel(t, func(ctx context.Context, a netip.Addr) (relay.Conn, error) {
		if works.Load() {
			return fine(ctx, a)
		}
		return bad(ctx, a)
	})
	const many = 3 * complaintsFirst
	for range many {
		expectReset(t, f.open(t, netip.Addr{}))
	}
	works.Store(true)
	near := f.open(t, netip.Addr{})
	io.WriteString(near, "echo")
	near.CloseWrite()
	if echo, err := io.ReadAll(near); string(echo) != "echo" {
		t.Errorf("got %q, %v", echo, err)
	}
	text := f.log.String()
	if n := strings.Count(text, "cannot be reached"); n < 1 || n >= many {
		t.Errorf("%d log lines for %d refusals:\n%s", n, many, text)
	}
	if !strings.Contains(text, "refused") || !strings.Contains(text, "session=test") {
		t.Errorf("the log does not say what happened:\n%s", text)
	}
}

// idleStream is a stream that nothing comes from.
type idleStream struct {
	relay.Conn
	session string
	closed  chan struct{}
}

func newIdleStream() *idleStream                  { return &idleStream{closed: make(chan struct{})} }
func (s *idleStream) Read([]byte) (int, error)    { <-s.closed; return 0, net.ErrClosed }
func (s *idleStream) Write(p []byte) (int, error) { return len(p), nil }
func (s *idleStream) CloseWrite() error           { return nil }
func (s *idleStream) Client() netip.Addr          { return netip.Addr{} }
func (s *idleStream) Session() string             { return s.session }
func (s *idleStream) Reset() error                { return s.Close() }
func (s *idleStream) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}

// Dials that hang are bounded in all and for each session, and those that wait
// wait for their own session's.
func TestDialsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		each := newBudget(0).ofSession()
		release := make(chan struct{})
		var now atomic.Int64
		f := newFakeTunnel(t, func(context.Context, netip.Addr) (relay.Conn, error) {
			now.Add(1)
			<-release
			now.Add(-1)
			return nil, errors.New("no")
		})
		var streams []*idleStream
		open := func(session string, n int) {
			for range n {
				s := newIdleStream()
				s.session = session
				streams = append(streams, s)
				f.streams <- s
			}
			synctest.Wait()
		}
		open("one", 2*each)
		if n := now.Load(); n != int64(each) {
			t.Errorf("a session has %d dials at once, want %d", n, each)
		}
		open("another", 1)
		if n := now.Load(); n != int64(each+1) {
			t.Error("a session whose dials hang keeps another's from beginning")
		}
		for i := range 2 * dialsParts {
			open(strconv.Itoa(i), each)
		}
		if n := now.Load(); n != maxDials {
			t.Errorf("%d dials at once, want %d", n, maxDials)
		}
		close(release)
		synctest.Wait()
		for i, s := range streams {
			select {
			case <-s.closed:
			default:
				t.Fatalf("stream %d stays open", i)
			}
		}
		if n := f.forwarder.openStreams(); n != 0 {
			t.Errorf("%d streams are counted as open", n)
		}
	})
}

// After drain the streams at hand go on, and others are refused.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := newIdleStream()
		f := newFakeTunnel(t, func(context.Context, netip.Addr) (relay.Conn, error) { return conn, nil })
		old := newIdleStream()
		f.streams <- old
		synctest.Wait()
		idle := f.forwarder.drain()
		late := newIdleStream()
		f.streams <- late
		<-late.closed
		synctest.Wait()
		select {
		case <-old.closed:
			t.Error("a running stream was closed")
		case <-idle:
			t.Error("a running stream was forgotten")
		default:
		}
		f.cut()
		<-idle
		<-old.closed
		<-conn.closed
		if f.forwarder.drain() != idle {
			t.Error("draining twice is not the same as once")
		}
	})
}

// Where the next server waits already, streams are accepted until there are none.
func TestDrainOnceIdle(t *testing.T) {
	f := newForwarder(nil, nil, newBudget(0), slog.New(slog.DiscardHandler))
	for range 2 {
		if !f.begin() {
			t.Fatal("refused before the end")
		}
	}
	idle := f.drainOnceIdle()
	f.end()
	if !f.begin() {
		t.Error("refused while there was a stream")
	}
	f.end()
	select {
	case <-idle:
		t.Error("idle with a stream")
	default:
	}
	f.end()
	<-idle
	if f.begin() {
		t.Error("accepted after the end")
	}
}

// orReport is what an ORPort was told of one connection.
type orReport struct {
	userAddr, transport string
	authenticated       bool
}

// What a fakeExtOR does after the handshake.
const (
	orAccepts = iota
	orDenies
	orHangs
	orCloses
	orSendsJunk
	orDigresses // says what nobody knows before it accepts
)

// extORServe speaks the server's side of the Extended ORPort protocol
// (ext-orport-spec sections 2 and 3) on c. If it returns true, c carries the
// stream from there on.
func extORServe(c net.Conn, cookie []byte, behaviour int) (r orReport, ok bool) {
	switch behaviour {
	case orHangs:
		io.Copy(io.Discard, c)
		return r, false
	case orCloses:
		return r, false
	case orSendsJunk:
		c.Write(bytes.Repeat([]byte{7}, 300))
		return r, false
	}
	c.Write([]byte{1, 0}) // authentication types: SAFE_COOKIE, end
	hello := make([]byte, 1+32)
	if _, err := io.ReadFull(c, hello); err != nil {
		return r, false
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	hash := func(what string) []byte {
		h := hmac.New(sha256.New, cookie)
		io.WriteString(h, "ExtORPort authentication "+what)
		h.Write(hello[1:])
		h.Write(nonce)
		return h.Sum(nil)
	}
	c.Write(append(hash("server-to-client hash"), nonce...))
	answer := make([]byte, 32)
	if _, err := io.ReadFull(c, answer); err != nil {
		return r, false
	}
	if r.authenticated = hmac.Equal(answer, hash("client-to-server hash")); !r.authenticated {
		c.Write([]byte{0})
		return r, false
	}
	c.Write([]byte{1})
	for {
		head := make([]byte, 4)
		if _, err := io.ReadFull(c, head); err != nil {
			return r, false
		}
		body := make([]byte, binary.BigEndian.Uint16(head[2:]))
		if _, err := io.ReadFull(c, body); err != nil {
			return r, false
		}
		switch binary.BigEndian.Uint16(head) {
		case 1:
			r.userAddr = string(body)
		case 2:
			r.transport = string(body)
		case 0:
			if behaviour == orDenies {
				c.Write([]byte{0x10, 0x01, 0, 0})
				return r, false
			}
			if behaviour == orDigresses {
				c.Write([]byte{0x77, 0x77, 0, 3, 'a', 'b', 'c', 0x10, 0x02, 0, 0})
			}
			c.Write([]byte{0x10, 0x00, 0, 0})
			return r, true
		}
	}
}

func writeCookie(t *testing.T, path string) []byte {
	t.Helper()
	cookie := make([]byte, 32)
	rand.Read(cookie)
	if err := os.WriteFile(path, append([]byte("! Extended ORPort Auth Cookie !\x0a"), cookie...), 0o600); err != nil {
		t.Fatal(err)
	}
	return cookie
}

func tcpAddr(t *testing.T, s string) *net.TCPAddr {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestExtORPort(t *testing.T) {
	cookieFile := filepath.Join(t.TempDir(), "cookie")
	cookie := writeCookie(t, cookieFile)
	reports := make(chan orReport, 1)
	var behaviour atomic.Int64
	var current atomic.Pointer[[]byte]
	current.Store(&cookie)
	address := destination(t, func(c *net.TCPConn) {
		r, ok := extORServe(c, *current.Load(), int(behaviour.Load()))
		reports <- r
		if ok {
			io.Copy(c, c)
		}
	})
	f := newFakeTunnel(t, dialOR(pt.ServerInfo{ExtendedOrAddr: tcpAddr(t, address), AuthCookiePath: cookieFile}))
	accepting := int64(orAccepts)
	works := func(client, want string) {
		t.Helper()
		behaviour.Store(accepting)
		var addr netip.Addr
		if client != "" {
			addr = netip.MustParseAddr(client)
		}
		near := f.open(t, addr)
		if r := <-reports; r.userAddr != want || r.transport != "turbo" || !r.authenticated {
			t.Errorf("client %q: tor was told %+v, want %q", client, r, want)
		}
		io.WriteString(near, "echo")
		near.CloseWrite()
		if echo, err := io.ReadAll(near); string(echo) != "echo" {
			t.Errorf("client %q: got %q, %v", client, echo, err)
		}
	}
	works("192.0.2.1", "192.0.2.1:1")
	works("2001:db8::1", "[2001:db8::1]:1")
	works("::ffff:192.0.2.1", "192.0.2.1:1")
	works("fe80::1%eth0", "[fe80::1]:1")
	works("", "")
	accepting = orDigresses
	works("192.0.2.1", "192.0.2.1:1")

	// tor writes a new cookie when it is started again.
	fresh := writeCookie(t, cookieFile)
	current.Store(&fresh)
	works("192.0.2.2", "192.0.2.2:1")

	for b, want := range map[int]string{
		orDenies:    "DENY",
		orCloses:    "EOF",
		orSendsJunk: "auth types",
		orHangs:     "timeout",
	} {
		behaviour.Store(int64(b))
		expectReset(t, f.open(t, netip.Addr{}))
		<-reports
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, f.log)
		}
		works("192.0.2.3", "192.0.2.3:1")
	}
}

// The cookie file may be gone or foreign: that stream ends, and the log says so.
func TestExtORPortWithoutCookie(t *testing.T) {
	cookieFile := filepath.Join(t.TempDir(), "cookie")
	cookie := make([]byte, 32)
	address := destination(t, func(c *net.TCPConn) { extORServe(c, cookie, orAccepts) })
	f := newFakeTunnel(t, dialOR(pt.ServerInfo{ExtendedOrAddr: tcpAddr(t, address), AuthCookiePath: cookieFile}))
	for _, want := range []string{"no such file", "mismatch in server hash"} {
		expectReset(t, f.open(t, netip.Addr{}))
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, f.log)
		}
		writeCookie(t, cookieFile)
	}
}

func TestPlainORPort(t *testing.T) {
	address := destination(t, func(c *net.TCPConn) { io.Copy(c, c) })
	f := newFakeTunnel(t, dialOR(pt.ServerInfo{OrAddr: tcpAddr(t, address)}))
	near := f.open(t, netip.MustParseAddr("192.0.2.1"))
	io.WriteString(near, "echo")
	near.CloseWrite()
	if echo, err := io.ReadAll(near); string(echo) != "echo" {
		t.Errorf("got %q, %v", echo, err)
	}
}
