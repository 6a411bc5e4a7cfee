package main

import (
	"context"
	"crypto/tls"
	"io"
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

	// maxFields is how many fields the head of a request may have (that is the
	// default of Apache's LimitRequestFields). However short they are, each takes
	// some 80 bytes: heads of 36 KB, which is what net/http reads for maxHeader,
	// took 520 KB each, for as long as their bodies did not come.
	maxFields = 100

	// usualHead is how many bytes of a head requestCost has, and fieldCost what a
	// field takes besides what it says: its place in a map, and three small buffers.
	usualHead = 2 << 10
	fieldCost = 128
)

// newWebServer returns the HTTP server: HTTP/1.0, HTTP/1.1 and HTTP/2, this one
// without TLS too where the other side knows. A nil config means no TLS.
//
// Bodies have no deadline here. h sets its own, since the two kinds of request
// that it serves differ in them.
func newWebServer(h http.Handler, config *tls.Config, log *slog.Logger) *http.Server {
	s := &http.Server{
		Handler:           withFewFields(oneOfMany(h)),
		ConnContext:       knowVisitor,
		ConnState:         rested,
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
	if v := visitorBelow(c); v != nil {
		ctx = context.WithValue(ctx, visitorKey{}, v)
	}
	return ctx
}

// rested says that what is left of a request over HTTP/1 has been read, too.
func rested(c net.Conn, state http.ConnState) {
	if v := visitorBelow(c); v != nil && state == http.StateIdle {
		v.begins(false)
	}
}

// visitorBelow is whose connection c is, or nil where there is no door.
func visitorBelow(c net.Conn) *visitor {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	v, _ := c.(*visitor)
	return v
}

// withFewFields refuses requests with too many fields at once, whatever their path,
// as net/http does those whose heads are too long.
func withFewFields(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := 0
		for _, values := range r.Header {
			n += len(values)
		}
		if n <= maxFields {
			h.ServeHTTP(w, r)
			return
		}
		http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // else net/http would wait for the body
		if r.ProtoMajor == 1 {
			w.Header().Set("Connection", "close") // over HTTP/2 it would be everybody's behind a proxy
		} else {
			forgetHead(r)
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusRequestHeaderFieldsTooLarge)
		io.WriteString(w, "431 Request Header Fields Too Large") //nolint:errcheck // a peer that is gone has no use for it
	})
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
			v.begins(true)
			defer v.begins(false)
			h.ServeHTTP(w, r)
			return
		}
		head := largeHead(r)
		c.hold(head)
		defer func() {
			forgetHead(r)
			c.hold(-head)
		}()
		if !v.known.Load() {
			leave := c.enter(r.Context())
			if leave == nil {
				return
			}
			defer leave()
		}
		claim := &claim{on: c}
		defer claim.end()
		if v.exempt.Load() {
			claim.leave = v.door.guests.enter(w, requestCost+head)
		}
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), claimKey{}, claim)))
	})
}

// largeHead is how many bytes the head of a request takes, with what Go's heap loses,
// beyond what is counted for every request (requestCost).
func largeHead(r *http.Request) int64 {
	n := 3*len(r.RequestURI) + len(r.Host) // as it came, and what was made of it
	for name, values := range r.Header {
		for _, value := range values {
			n += fieldCost + len(name) + len(value)
		}
	}
	return int64(max(n+n/8-usualHead, 0))
}

// forgetHead gives the head of a request free that is needed no more: package http2
// keeps the request until its answer has been taken.
func forgetHead(r *http.Request) {
	r.Header, r.URL, r.RequestURI, r.Host = nil, nil, "", ""
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
