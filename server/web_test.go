package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/server/proxyproto"

	"golang.org/x/net/http2"
)

func TestProtocols(t *testing.T) {
	log, _ := newLog()
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.Proto, body)
	})
	dir := t.TempDir()
	certPEM, keyPEM := newPair(t, 1, time.Now().Add(time.Hour))
	replaceFile(t, filepath.Join(dir, "cert"), certPEM)
	replaceFile(t, filepath.Join(dir, "key"), keyPEM)
	cert, err := newCertificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), log)
	if err != nil {
		t.Fatal(err)
	}
	plain := "http://" + startWeb(t, echo, nil, log)
	secure := "https://" + startWeb(t, echo, cert.tlsConfig(), log)
	for _, c := range []struct {
		url, want string
		protocol  func(*http.Protocols)
	}{
		{plain, "HTTP/1.1 body", func(p *http.Protocols) { p.SetHTTP1(true) }},
		{plain, "HTTP/2.0 body", func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }},
		{secure, "HTTP/1.1 body", func(p *http.Protocols) { p.SetHTTP1(true) }},
		{secure, "HTTP/2.0 body", func(p *http.Protocols) { p.SetHTTP2(true) }},
	} {
		tr := &http.Transport{Protocols: new(http.Protocols), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		c.protocol(tr.Protocols)
		resp, err := (&http.Client{Transport: tr}).Post(c.url, "text/plain", strings.NewReader("body"))
		if err != nil {
			t.Errorf("%s, %s: %v", c.url, c.want, err)
			continue
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		tr.CloseIdleConnections()
		if string(got) != c.want {
			t.Errorf("%s: got %q, want %q", c.url, got, c.want)
		}
	}

	// HTTP/1.0, as nginx speaks it to an origin by default.
	conn, err := net.Dial("tcp", strings.TrimPrefix(plain, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(conn, "POST / HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody")
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasSuffix(string(answer), "\r\n\r\nHTTP/1.0 body") {
		t.Errorf("HTTP/1.0: %q, %v", answer, err)
	}
}

func TestLargeHeadIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := newLog()
		ln := newPipeListener()
		web := newWebServer(http.NotFoundHandler(), nil, log)
		done := make(chan error)
		go func() { done <- serveWeb(web, ln) }()
		conn := ln.dial()
		go io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("x", 2*maxHeader)+"\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("got %s", resp.Status)
		}
		conn.Close()
		time.Sleep(time.Second) // of the bubble's clock: net/http waits for the other side to close
		web.Close()
		<-done
	})
}

// Heads of many fields, which take far more memory than they have bytes, are
// refused before their bodies come; those of as many as browsers and proxies send
// are not.
func TestManyFieldsAreRefused(t *testing.T) {
	for fields, want := range map[int]int{maxFields: http.StatusNotFound, maxFields + 1: http.StatusRequestHeaderFieldsTooLarge, 6000: http.StatusRequestHeaderFieldsTooLarge} {
		t.Run(fmt.Sprint(fields), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, _ := newLog()
				ln := newPipeListener()
				web := newWebServer(http.NotFoundHandler(), nil, log)
				done := make(chan error)
				go func() { done <- serveWeb(web, ln) }()
				conn := ln.dial()
				head := "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
				for i := range fields - 1 { // beside Content-Length; Host is none of them
					head += fmt.Sprintf("%x:\r\n", i)
				}
				if head += "\r\n"; want == http.StatusNotFound {
					head += strings.Repeat("x", 1000)
				}
				go io.WriteString(conn, head)
				start := time.Now()
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				if resp.StatusCode != want {
					t.Errorf("got %s for %d fields", resp.Status, fields)
				}
				if want != http.StatusNotFound && (time.Since(start) > 0 || !resp.Close) {
					t.Errorf("refused after %v, and the connection goes on: %v", time.Since(start), !resp.Close)
				}
				conn.Close()
				time.Sleep(time.Second) // net/http waits for the other side to close
				web.Close()
				<-done
			})
		})
	}
}

// A pipeListener accepts the server's ends of in-memory connections.
type pipeListener struct {
	conns  chan net.Conn
	closed context.Context
	close  context.CancelFunc
}

func newPipeListener() *pipeListener {
	ctx, cancel := context.WithCancel(context.Background())
	return &pipeListener{make(chan net.Conn), ctx, cancel}
}

func (l *pipeListener) dial() net.Conn {
	near, far := net.Pipe()
	l.conns <- far
	return near
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed.Done():
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.close(); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// Whoever sends a head slowly, or no further request, is cut; whoever sends a
// body slowly is not, since that is for the handler to decide.
func TestSlowPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := newLog()
		ln := newPipeListener()
		web := newWebServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
		}), nil, log)
		done := make(chan error)
		go func() { done <- serveWeb(web, ln) }()
		defer func() {
			web.Close()
			<-done
		}()

		start := time.Now()
		conn := ln.dial()
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n")
		if _, err := io.ReadAll(conn); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d != headerTimeout {
			t.Errorf("a slow head was cut after %v, want %v", d, headerTimeout)
		}

		conn = ln.dial()
		io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na")
		time.Sleep(time.Hour) // of the bubble's clock
		io.WriteString(conn, "b")
		br := bufio.NewReader(conn)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("a slow body: %v, %v", resp, err)
		}
		start = time.Now()
		if _, err := io.ReadAll(br); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d != idleTimeout {
			t.Errorf("an idle connection was closed after %v, want %v", d, idleTimeout)
		}
	})
}

// An HTTP/2 connection of which nothing is taken ends; one of which a little is goes on.
func TestStuckConnection(t *testing.T) {
	for name, c := range map[string]struct{ every, ends time.Duration }{
		"takes nothing":         {time.Hour, stuckTimeout},
		"takes a byte at times": {stuckTimeout * 3 / 4, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, _ := newLog()
				ln := newPipeListener()
				web := newWebServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Write(make([]byte, 1<<20))
				}), nil, log)
				done := make(chan error)
				go func() { done <- serveWeb(web, ln) }()
				defer func() {
					web.Close()
					<-done
				}()
				conn := ln.dial()
				start := time.Now()
				ended := make(chan time.Duration, 1)
				go func() { // writes until the connection ends
					io.WriteString(conn, http2.ClientPreface)
					framer := http2.NewFramer(conn, conn)
					framer.WriteSettings()
					for framer.WritePing(false, [8]byte{}) == nil {
						time.Sleep(time.Second)
					}
					ended <- time.Since(start).Truncate(time.Second)
				}()
				if c.ends == 0 {
					io.ReadFull(conn, make([]byte, 500)) // what the server says first of all
				}
				for range 10 {
					time.Sleep(c.every)
					conn.Read(make([]byte, 1))
				}
				var after time.Duration
				select {
				case after = <-ended:
				default:
				}
				if after < c.ends || after > c.ends+2*time.Second {
					t.Errorf("ended after %v, want %v", after, c.ends)
				}
				conn.Close()
				if after == 0 {
					<-ended
				}
			})
		})
	}
}

// Before TLS comes the PROXY header, and it is what the handler hears of the
// client.
func TestProxyHeaderBeforeTLS(t *testing.T) {
	log, _ := newLog()
	dir := t.TempDir()
	certPEM, keyPEM := newPair(t, 1, time.Now().Add(time.Hour))
	replaceFile(t, filepath.Join(dir, "cert"), certPEM)
	replaceFile(t, filepath.Join(dir, "key"), keyPEM)
	cert, err := newCertificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), log)
	if err != nil {
		t.Fatal(err)
	}
	below, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := &proxyproto.Listener{
		Listener: below,
		Trusted:  []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Timeout:  headerTimeout,
		Refused:  func(err error) { t.Errorf("refused: %v", err) },
	}
	web := newWebServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Proto+" "+r.RemoteAddr)
	}), cert.tlsConfig(), log)
	done := make(chan error)
	go func() { done <- serveWeb(web, ln) }()
	defer func() {
		web.Close()
		<-done
	}()
	tr := &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err == nil {
				_, err = io.WriteString(c, "PROXY TCP6 2001:db8::7 2001:db8::1 4096 443\r\n")
			}
			return c, err
		},
	}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("https://" + below.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "HTTP/2.0 [2001:db8::7]:4096" {
		t.Errorf("the handler heard of %q, %v", got, err)
	}
}
