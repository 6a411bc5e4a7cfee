package main

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/relay"
)

// quietLog is for proxies, which complain about clients that have gone.
var quietLog = log.New(io.Discard, "", 0)

// dialer returns a client of the server at addr.
func dialer(t *testing.T, addr, key string) *tunnel.Dialer {
	t.Helper()
	d, err := tunnel.NewDialer(tunnel.Config{URL: "http://" + addr + "/", Key: key}, tunnel.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func dial(t *testing.T, d *tunnel.Dialer) tunnel.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := d.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { s.Close() })
	return s
}

// proxyTo returns the address of a reverse proxy in front of origin, whose
// clients come from 192.0.2.7 and claim another address.
func proxyTo(t *testing.T, origin string, transport http.RoundTripper) string {
	front := httptest.NewServer(&httputil.ReverseProxy{
		FlushInterval: -1,
		Transport:     transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: origin})
			r.Out.Header.Set("X-Forwarded-For", "198.51.100.9, 192.0.2.7")
		},
		ErrorLog: quietLog,
	})
	t.Cleanup(front.Close)
	return front.Listener.Addr().String()
}

// From a client through the tunnel to tor's ExtORPort: the address of the
// client and the bytes arrive, and a refusal costs only its own stream.
func TestTunnelToExtORPort(t *testing.T) {
	dir := t.TempDir()
	cookieFile := filepath.Join(dir, "cookie")
	cookie := writeCookie(t, cookieFile)
	reports := make(chan orReport, 8)
	behaviour := make(chan int, 8)
	address := destination(t, func(c *net.TCPConn) {
		r, ok := extORServe(c, cookie, <-behaviour)
		reports <- r
		if ok {
			io.Copy(c, c)
		}
	})
	env := append(torEnv(dir, "127.0.0.1:1"), "TOR_PT_EXTENDED_SERVER_PORT="+address, "TOR_PT_AUTH_COOKIE_FILE="+cookieFile)
	p := start(t, env, "-disable-tls", "-trusted-proxies", "127.0.0.1")
	m := smethod.FindStringSubmatch(p.line("SMETHOD "))
	d := dialer(t, proxyTo(t, m[1], http.DefaultTransport), m[2])
	echo := func() {
		t.Helper()
		behaviour <- orAccepts
		s := dial(t, d)
		want := bytes.Repeat([]byte("turbo"), 10_000)
		go func() {
			s.Write(want)
			s.CloseWrite()
		}()
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes came back of %d: %v", len(got), len(want), err)
		}
		if r := <-reports; r.userAddr != "192.0.2.7:1" || r.transport != "turbo" {
			t.Errorf("tor was told %+v", r)
		}
	}
	echo()
	behaviour <- orDenies
	s := dial(t, d)
	if n, err := s.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes came from nowhere", n)
	}
	<-reports
	echo()
	p.said("a stream was refused .*DENY")
}

// A stream that runs when the server is told to stop goes on to its end, and
// what was sent last arrives.
func TestStopWaitsForStreams(t *testing.T) {
	last := bytes.Repeat([]byte("the end "), 1<<16)
	ended := make(chan struct{})
	address := destination(t, func(c *net.TCPConn) {
		io.WriteString(c, "go")
		io.Copy(io.Discard, c) // until the client has ended its direction
		c.Write(last)
		close(ended)
	})
	dir := t.TempDir()
	p := start(t, nil, "-state-dir", dir, "127.0.0.1:0", address)
	key := p.said(`clients need -key (\S+)`)
	addr := p.said(`serving on (127\.0\.0\.1:\d+)`)
	s := dial(t, dialer(t, addr, key))
	if _, err := io.ReadFull(s, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	p.said("stopping")
	s.CloseWrite()
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, last) {
		t.Errorf("%d bytes came of %d: %v", len(got), len(last), err)
	}
	<-ended
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d; stderr:\n%s", code, p.stderr)
	}
}

// FORWARD that refuses resets the stream; the server goes on.
func TestTunnelForwardRefuses(t *testing.T) {
	forward := closedAddress(t)
	p := start(t, nil, "-state-dir", t.TempDir(), "127.0.0.1:0", forward)
	key := p.said(`clients need -key (\S+)`)
	d := dialer(t, p.said(`serving on (127\.0\.0\.1:\d+)`), key)
	for range 3 {
		s := dial(t, d)
		if n, err := s.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d bytes came from nowhere", n)
		}
	}
	p.said("a stream was refused .*refused")
	if text := p.stderr.String(); strings.Contains(strings.SplitAfter(text, "streams go to")[1], forward+" ") {
		t.Errorf("the log shows the address:\n%s", text)
	}
}

// The server behind proxies of each kind: HTTP/1.1, and HTTP/2 without TLS.
// HTTP/1.0 is what nginx does by default; see test/deploy.
func TestTunnelBehindProxies(t *testing.T) {
	address := destination(t, func(c *net.TCPConn) { io.Copy(c, c) })
	p := start(t, nil, "-state-dir", t.TempDir(), "127.0.0.1:0", address)
	key := p.said(`clients need -key (\S+)`)
	origin := p.said(`serving on (127\.0\.0\.1:\d+)`)
	for name, set := range map[string]func(*http.Protocols){
		"HTTP/1.1": func(p *http.Protocols) { p.SetHTTP1(true) },
		"HTTP/2":   func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) },
	} {
		tr := &http.Transport{Protocols: new(http.Protocols)}
		set(tr.Protocols)
		front := proxyTo(t, origin, tr)
		s := dial(t, dialer(t, front, key))
		want := strings.Repeat("turbo", 100_000)
		go func() {
			io.WriteString(s, want)
			s.CloseWrite()
		}()
		if got, err := io.ReadAll(s); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes came back of %d: %v", name, len(got), len(want), err)
		}
	}
}

// headerProxy returns the address of a TCP proxy in front of origin that
// begins each connection with header.
func headerProxy(t *testing.T, origin, header string) string {
	t.Helper()
	return destination(t, func(c *net.TCPConn) {
		conn, err := net.Dial("tcp", origin)
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(conn, header)
		relay.Join(t.Context(), relay.TCPConn{TCPConn: c}, relay.TCPConn{TCPConn: conn.(*net.TCPConn)})
	})
}

// A PROXY header from a trusted proxy says who the client is, and
// X-Forwarded-For from that client says nothing.
func TestProxyProtocolToExtORPort(t *testing.T) {
	dir := t.TempDir()
	cookieFile := filepath.Join(dir, "cookie")
	cookie := writeCookie(t, cookieFile)
	reports := make(chan orReport, 8)
	extOR := destination(t, func(c *net.TCPConn) {
		r, ok := extORServe(c, cookie, orAccepts)
		reports <- r
		if ok {
			io.Copy(c, c)
		}
	})
	env := append(torEnv(dir, "127.0.0.1:1"), "TOR_PT_EXTENDED_SERVER_PORT="+extOR, "TOR_PT_AUTH_COOKIE_FILE="+cookieFile)
	p := start(t, env, "-disable-tls", "-trusted-proxies", "127.0.0.1", "-proxy-protocol")
	m := smethod.FindStringSubmatch(p.line("SMETHOD "))
	for header, want := range map[string]string{
		"PROXY TCP4 192.0.2.9 127.0.0.1 4096 80\r\n":                                             "192.0.2.9:1",
		"PROXY TCP6 2001:db8::9 ::1 4096 80\r\n":                                                 "[2001:db8::9]:1",
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x0a\x7f\x00\x00\x01\x10\x00\x00\x50": "192.0.2.10:1",
		// The proxy does not know: then nobody does.
		"PROXY UNKNOWN\r\n": "",
	} {
		// Behind the TCP proxy stands a client that claims another address.
		front := proxyTo(t, headerProxy(t, m[1], header), new(http.Transport))
		s := dial(t, dialer(t, front, m[2]))
		io.WriteString(s, "hello")
		if _, err := io.ReadFull(s, make([]byte, 5)); err != nil {
			t.Fatalf("%q: %v", header, err)
		}
		if r := <-reports; r.userAddr != want {
			t.Errorf("%q: tor was told %q, want %q", header, r.userAddr, want)
		}
	}
	// A trusted proxy that sends none is refused, and the log says so.
	c, err := net.Dial("tcp", m[1])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if answer, err := io.ReadAll(c); len(answer) > 0 {
		t.Errorf("an answer without a PROXY header: %q, %v", answer, err)
	}
	p.said("refused: let the proxy send PROXY headers")
}
