package main

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
)

const (
	// headerTimeout is how long the head of a request and a TLS handshake may
	// take. It ends those who hold connections by sending a byte at a time. A
	// proxy that opens connections before it needs them opens others.
	headerTimeout = 20 * time.Second

	// idleTimeout is how long a connection may wait for the next request. It
	// is longer than that of common proxies (nginx 60 s, haproxy and AWS's
	// load balancer 60 s), so that they close first and no request is lost on
	// a connection that has just been closed.
	idleTimeout = 3 * time.Minute

	// stuckTimeout is how long an HTTP/2 connection may take not a single
	// byte of what is to be sent.
	stuckTimeout = 2 * time.Minute

	// maxHeader is the size in bytes of the head of a request. It is what
	// nginx takes (4 buffers of 8 KB).
	maxHeader = 32 << 10

	// HTTP/2 windows in bytes, for uploads: a path of 500 Mbit/s and 200 ms
	// holds 12.5 MB, and a queue: what has no room here waits in the client, in
	// front of what is said next. net/http's 1 MB held such a path at 5 MB/s. The
	// server stores as much only while the tunnel does not read.
	streamWindow = 8 << 20
	connWindow   = 32 << 20

	// readFrame is the size in bytes of the largest HTTP/2 frame that is taken:
	// the protocol's default, and what browsers and this project's client
	// send. A connection keeps a buffer for the largest frame it has got, which
	// net/http would let grow to 1 MB.
	readFrame = 16 << 10

	// maxRequests is the number of requests in flight on one HTTP/2 connection
	// (net/http's own default, and more than the 100 that RFC 9113 wants).
	maxRequests = 250
)

// newWebServer returns the HTTP server: HTTP/1.0, HTTP/1.1 and HTTP/2, this one
// without TLS too where the other side knows. A nil config means no TLS.
//
// Bodies have no deadline here. h sets its own, since the two kinds of request
// that it serves differ in them.
func newWebServer(h http.Handler, config *tls.Config, log *slog.Logger) *http.Server {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxRequests,
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			MaxReadFrameSize:              readFrame,
			WriteByteTimeout:              stuckTimeout,
		},
		Protocols: new(http.Protocols),
		ErrorLog:  slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// net/http would answer "OPTIONS *" in a way of its own.
		DisableGeneralOptionsHandler: true,
	}
	s.Protocols.SetHTTP1(true)
	if config == nil {
		s.Protocols.SetUnencryptedHTTP2(true)
	} else {
		s.Protocols.SetHTTP2(true)
		s.TLSConfig = config
	}
	return s
}

// serveWeb serves until s is closed.
func serveWeb(s *http.Server, ln net.Listener) error {
	ln = netutil.LimitListener(ln, maxConns)
	if s.TLSConfig != nil {
		// A copy, because net/http changes its own.
		ln = newHandshaker(ln, s.TLSConfig.Clone())
	}
	return s.Serve(ln)
}
