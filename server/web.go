package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"time"
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
)

// newWebServer returns the HTTP server: HTTP/1.0, HTTP/1.1 and HTTP/2, this one
// without TLS too where the other side knows. A nil config means no TLS.
//
// Bodies have no deadline here. h sets its own, since the two kinds of request
// that it serves differ in them.
func newWebServer(h http.Handler, config *tls.Config, log *slog.Logger) *http.Server {
	s := &http.Server{
		Handler:           oneOfMany(h),
		ConnContext:       knowVisitor,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
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
	if err := serveHTTP2(s); err != nil {
		log.Error("no HTTP/2", "err", err) // with ciphers of its own a config may lack HTTP/2's
	}
	return s
}

// knowVisitor puts into the context of a connection's requests whose they are.
func knowVisitor(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if v, ok := c.(*visitor); ok {
		ctx = context.WithValue(ctx, visitorKey{}, v)
	}
	return ctx
}

// oneOfMany has a request of a stranger's HTTP/2 connection wait while too many
// others are being answered on it, and a session's pay for itself.
func oneOfMany(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := visitorOf(r)
		if v == nil {
			h.ServeHTTP(w, r)
			return
		}
		c := v.http2.Load()
		if c == nil {
			h.ServeHTTP(w, r)
			return
		}
		if !v.known.Load() {
			leave := c.enter(r.Context())
			if leave == nil {
				return
			}
			defer leave()
		}
		claim := &claim{on: c}
		defer claim.end()
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), claimKey{}, claim)))
	})
}

// isClients says that a client has made a request.
func isClients(r *http.Request) {
	if v := visitorOf(r); v != nil {
		v.isKnown()
	}
	if c := claimOf(r); c != nil {
		c.pay()
	}
}

// serveWeb serves until s is closed. ln is a door where strangers come.
func serveWeb(s *http.Server, ln net.Listener) error {
	if s.Protocols.HTTP2() {
		// A copy, because net/http changes its own.
		ln = newHandshaker(ln, s.TLSConfig.Clone())
	}
	return s.Serve(ln)
}
