// Package cdn is a CDN on loopback that can be used for domain fronting: it
// ends TLS under the front's name and routes by the Host header, whatever the
// name in the TLS handshake was.
package cdn

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"
)

// The names of front and origin that tests use.
const (
	Front  = "front.example"
	Origin = "origin.example"
)

// Forged is an address that the CDN's clients claim to come from. It stands
// left of what the CDN itself says in X-Forwarded-For, as with CDNs that add to
// what they get, and must not be believed.
const Forged = "203.0.113.66"

// headTimeout bounds the wait for a request's head.
const headTimeout = time.Minute

// Config says what a CDN does.
type Config struct {
	// Origin is the host:port to which requests for [Origin] go, over
	// HTTP/1.1.
	Origin string

	// Client is the address that the CDN gives as its clients'.
	Client string

	// CAFile is written: the certificate of the authority that clients have
	// to trust. Empty: the CDN speaks HTTP/1.1 without TLS, and takes any Host
	// header.
	CAFile string
}

// A Request is what a CDN saw of one.
type Request struct {
	SNI   string // empty without TLS
	Host  string
	Proto string // HTTP/1.1 or HTTP/2.0
	Path  string
}

// A CDN listens on a free port of 127.0.0.1. It is safe for concurrent use.
type CDN struct {
	addr      string
	server    *http.Server
	transport *http.Transport
	done      chan struct{}

	mu   sync.Mutex
	seen []Request // guarded by mu
}

// seenLimit bounds the memory that Seen costs: some megabytes.
const seenLimit = 20_000

// Start starts a CDN.
func Start(config Config) (*CDN, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &CDN{
		addr:      l.Addr().String(),
		transport: &http.Transport{MaxIdleConnsPerHost: 100},
		done:      make(chan struct{}),
	}
	quiet := log.New(io.Discard, "", 0) // what clients break off is not worth a line
	proxy := &httputil.ReverseProxy{
		Transport: c.transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", config.Origin
			r.Out.Header.Set("X-Forwarded-For", Forged+", "+config.Client)
		},
		FlushInterval: -1, // what the origin writes goes on at once
		ErrorLog:      quiet,
	}
	c.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c.note(r)
			if config.CAFile != "" && r.Host != Origin {
				http.NotFound(w, r)
				return
			}
			proxy.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: headTimeout,
		ErrorLog:          quiet,
	}
	if config.CAFile != "" {
		cert, err := WriteCA(config.CAFile)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		c.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
	}
	go func() {
		defer close(c.done)
		if config.CAFile != "" {
			c.server.ServeTLS(l, "", "")
		} else {
			c.server.Serve(l)
		}
	}()
	return c, nil
}

func (c *CDN) note(r *http.Request) {
	request := Request{Host: r.Host, Proto: r.Proto, Path: r.URL.Path}
	if r.TLS != nil {
		request.SNI = r.TLS.ServerName
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.seen) < seenLimit {
		c.seen = append(c.seen, request)
	}
}

// Addr is the CDN's host:port.
func (c *CDN) Addr() string { return c.addr }

// Seen returns the CDN's first requests, some thousands at most.
func (c *CDN) Seen() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Request(nil), c.seen...)
}

// Close ends the CDN and every connection of it.
func (c *CDN) Close() error {
	err := c.server.Close()
	<-c.done
	c.transport.CloseIdleConnections()
	return err
}
