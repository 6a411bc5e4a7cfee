package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// newTLSConfig is that of a server with a certificate of its own.
func newTLSConfig(t *testing.T) *tls.Config {
	t.Helper()
	log, _ := newLog()
	dir := t.TempDir()
	certPEM, keyPEM := newPair(t, 1, time.Now().Add(time.Hour))
	replaceFile(t, filepath.Join(dir, "cert"), certPEM)
	replaceFile(t, filepath.Join(dir, "key"), keyPEM)
	cert, err := newCertificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), log)
	if err != nil {
		t.Fatal(err)
	}
	return cert.tlsConfig()
}

// Connections come out of Accept shaken hands with, and one that says nothing
// does not keep others from it.
func TestAcceptAfterHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := newPipeListener()
		h := newHandshaker(ln, newTLSConfig(t))
		defer h.Close()
		silent := ln.dial()
		defer silent.Close()
		conn := ln.dial()
		defer conn.Close()
		go tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).Handshake() //nolint:errcheck // see below
		c, err := h.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if !c.(*tls.Conn).ConnectionState().HandshakeComplete {
			t.Error("accepted before the handshake was complete")
		}
		c.Close()
	})
}

// Who fails to shake hands is treated by net/http as without a handshaker: one
// who speaks HTTP is told so, and one who says nothing is cut in time.
func TestFailedHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := newLog()
		ln := newPipeListener()
		web := newWebServer(http.NotFoundHandler(), newTLSConfig(t), log)
		done := make(chan error)
		go func() { done <- serveWeb(web, ln) }()
		defer func() {
			web.Close()
			<-done
		}()

		conn := ln.dial()
		go io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") //nolint:errcheck // the server need not read it all
		answer, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 400 ") {
			t.Errorf("HTTP without TLS got %q, %v", answer, err)
		}

		start := time.Now()
		if answer, err := io.ReadAll(ln.dial()); err != nil || len(answer) > 0 {
			t.Errorf("silence got %q, %v", answer, err)
		}
		if d := time.Since(start); d != headerTimeout {
			t.Errorf("a silent connection was cut after %v, want %v", d, headerTimeout)
		}
	})
}

// Close ends handshakes under way, and connections that nobody has accepted.
func TestCloseEndsHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := newPipeListener()
		h := newHandshaker(ln, newTLSConfig(t))
		silent := ln.dial()
		ready := tls.Client(ln.dial(), &tls.Config{InsecureSkipVerify: true})
		if err := ready.Handshake(); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		h.Close()
		if d := time.Since(start); d != 0 {
			t.Errorf("Close took %v", d)
		}
		for _, c := range []net.Conn{silent, ready} {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("a connection outlived the listener")
			}
		}
		if _, err := h.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
	})
}

// failingListener fails once as a listener does when file descriptors run out.
type failingListener struct {
	*pipeListener
	failed bool // owned by the accepting goroutine
}

var errOnce = errors.New("too many open files")

func (l *failingListener) Accept() (net.Conn, error) {
	if !l.failed {
		l.failed = true
		return nil, errOnce
	}
	return l.pipeListener.Accept()
}

// An error of the listener below is passed on and does not end it.
func TestAcceptErrorPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := &failingListener{pipeListener: newPipeListener()}
		h := newHandshaker(ln, newTLSConfig(t))
		defer h.Close()
		if _, err := h.Accept(); err != errOnce {
			t.Fatalf("Accept: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		conn := ln.dial()
		defer conn.Close()
		go tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) //nolint:errcheck // Accept tells
		c, err := h.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}
