package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"sync/atomic"
	"time"
)

// A front is this program, started again as
//
//	load front LISTEN ORIGIN CERTIFICATE KEY FIRST
//
// It does what a CDN does: it ends TLS and HTTP/2 of thousands of clients, and
// passes their requests on over few connections to the server, HTTP/2 in the
// clear. It says in X-Forwarded-For that each connection is another client, by
// addresses of 10.0.0.0/8 from FIRST on. It ends with its stdin.
const frontCommand = "front"

// headTimeout bounds the wait for a request's head.
const headTimeout = time.Minute

func runFront(args []string, in io.Reader) error {
	if len(args) != 5 {
		return fmt.Errorf("%d arguments", len(args))
	}
	cert, err := tls.LoadX509KeyPair(args[2], args[3])
	if err != nil {
		return err
	}
	first, err := netip.ParseAddr(args[4])
	if err != nil {
		return err
	}
	return serve(newFront(args[1], cert, first), args[0], in)
}

// serve has s serve at addr until in ends, by TLS if it has a configuration of that.
func serve(s *http.Server, addr string, in io.Reader) error {
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return err
	}
	go func() {
		io.Copy(io.Discard, in) //nolint:errcheck // its end is what is waited for
		s.Close()
	}()
	if s.TLSConfig != nil {
		err = s.ServeTLS(l, "", "")
	} else {
		err = s.Serve(l)
	}
	if err != http.ErrServerClosed {
		return err
	}
	return nil
}

// clientKey is where a request's context has the address of its client.
type clientKey struct{}

func newFront(origin string, cert tls.Certificate, first netip.Addr) *http.Server {
	transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	transport.Protocols.SetUnencryptedHTTP2(true)
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", origin
			r.Out.Header.Set("X-Forwarded-For", r.In.Context().Value(clientKey{}).(string))
		},
		FlushInterval: -1, // what the server writes goes on at once
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil { // the client has not broken it off
				log.Print(err)
			}
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	var clients atomic.Uint32
	base := first.As4()
	return &http.Server{
		Handler:   proxy,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			n := clients.Add(1)
			addr := netip.AddrFrom4([4]byte{base[0], base[1] + byte(n>>16), base[2] + byte(n>>8), base[3] + byte(n)})
			return context.WithValue(ctx, clientKey{}, addr.String())
		},
		ReadHeaderTimeout: headTimeout,
		ErrorLog:          log.New(io.Discard, "", 0), // what clients break off is not worth a line
	}
}
