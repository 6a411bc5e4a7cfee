// Package front is how HTTP exchanges leave the client: it dials, directly or
// through a proxy, imitates a browser's TLS handshake, and speaks the HTTP
// version that the handshake settles, in the browser's manner: the masks change
// what an HTTP implementation writes into what the browser would have written.
//
// Its one idea is domain fronting. What a censor can see, the name looked up
// in DNS and the one in the TLS handshake, is the front; what only the CDN
// behind the front can see, the Host header inside TLS, is the origin. The
// certificate is always verified, and against the front's name: the CDN proves
// who it is, and the origin proves itself in the records that the bodies carry.
//
// A Set is one or more Fronts to the same server and their health: one of them
// carries until it fails.
//
// A Front has up to six connections over HTTP/1.1 and one over HTTP/2, like a
// browser to one host, and another one beside that when it may be dead: life
// says how that shows. The first one decides which it is, and carries the first
// exchange.
//
//	Set -> Front -> pool -> wire1 (net/http)   -> h1Mask    HTTP/1.1
//	                  |  \-> wire2 (x/net/http2) -> h2Mask    HTTP/2
//	                  v
//	                 dial -> [proxy] -> [TLS]
//
// A Front does not follow redirects, keep cookies, cache, read the
// environment's proxy settings, or know what the bodies mean.
package front

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"turbotunnel/common/proxy"

	"golang.org/x/net/idna"
)

// Config says how to reach a server. Only URL is required.
type Config struct {
	// URL of the server as its CDN knows it: http or https, a host, and a
	// path or none. Its host goes into the Host header.
	URL *url.URL

	// Front is the domain to dial and to name in SNI, as host or host:port.
	// Empty: the URL's host. Without a port: the URL's.
	Front string

	// Addr is the host:port to dial instead of resolving the front.
	Addr string

	// UTLS names the browser whose TLS ClientHello and HTTP to imitate, one of
	// Hellos. Empty: chrome. "none" imitates nothing but a browser's headers.
	UTLS string

	// Proxy, of scheme http, socks4a or socks5, is used for every connection.
	// It gets names unresolved. Nil: direct.
	Proxy *url.URL

	// RootCAs verify the front's certificate. Nil: the system's, or those in
	// the file that SSL_CERT_FILE names.
	RootCAs *x509.CertPool

	// Dialer makes the connections to the front or the proxy, and resolves
	// their names. Nil: a net.Dialer.
	Dialer func(ctx context.Context, network, addr string) (net.Conn, error)
}

// keepAlive is the interval of TCP keep-alive probes, Chrome's.
const keepAlive = 45 * time.Second

// Front exchanges HTTP requests and responses with one server through one
// front. It is safe for concurrent use. It must be closed.
type Front struct {
	origin  *url.URL // scheme and host, the host without a default port
	name    string   // the front's domain
	addr    string   // host:port to dial
	browser *browser
	tls     *handshaker   // nil: in clear
	proxy   *proxy.Dialer // nil: direct
	netDial func(ctx context.Context, network, addr string) (net.Conn, error)
	wires   *wireMaker

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup // dials, pings, exchanges before their response

	mu       sync.Mutex // guards what follows
	closed   bool
	known    bool // whether h2 means something
	h2       bool // the last connection speaks HTTP/2
	inFlight int  // what MaxInFlight returns
	conns    []*conn
	waiters  []*waiter
	dialing  []*dialing  // dials under way, the oldest first
	redial   *time.Timer // looks after them
	reached  string      // address that a connection was made to last, or ""
	byName   bool        // the last dial beside others was not to it
	asks     asks        // of all connections, over HTTP/1.1, like watching
	watching bool
}

// New checks cfg and returns a Front. It does not use the network yet. Its
// errors begin with the name of the bridge line's argument that is wrong (url,
// front, addr, utls, proxy) and say what is accepted.
func New(cfg Config) (*Front, error) {
	u := cfg.URL
	switch {
	case u == nil:
		return nil, errors.New("url: missing; accepted: https://HOST/PATH or http://HOST/PATH")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("url: scheme %q; accepted: https, http", u.Scheme)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return nil, errors.New("url: more than scheme, host, port and path; accepted: https://HOST/PATH or http://HOST/PATH")
	}
	defaultPort := "443"
	if u.Scheme == "http" {
		defaultPort = "80"
	}
	host, port, err := hostAndPort(u.Host, defaultPort)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	f := &Front{
		origin:   &url.URL{Scheme: u.Scheme, Host: authority(host, port, defaultPort)},
		name:     host,
		inFlight: maxConns,
		netDial:  cfg.Dialer,
	}
	if cfg.Front != "" {
		if f.name, port, err = hostAndPort(cfg.Front, port); err != nil {
			return nil, fmt.Errorf("front: %w", err)
		}
	}
	f.addr = net.JoinHostPort(f.name, port)
	if cfg.Addr != "" {
		host, _, err := proxy.SplitHostPort(cfg.Addr)
		if err == nil {
			err = proxy.CheckHost(host)
		}
		if err != nil {
			return nil, fmt.Errorf("addr: %w; accepted: host:port", err)
		}
		f.addr = cfg.Addr
	}
	shaker, browser, err := newHandshaker(cfg.UTLS, f.name, cfg.RootCAs)
	if err != nil {
		return nil, err
	}
	f.browser = browser
	if u.Scheme == "https" {
		f.tls = shaker
	}
	if f.netDial == nil {
		f.netDial = (&net.Dialer{KeepAlive: keepAlive}).DialContext
	}
	if cfg.Proxy != nil {
		if f.proxy, err = proxy.New(cfg.Proxy, f.netDial, browser.agent); err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
	}
	look := browser
	if cfg.UTLS == ownHello {
		look = nil
	}
	if f.wires, err = wireMakerFor(look); err != nil {
		return nil, err
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f, nil
}

// hostAndPort splits and checks text, a host with or without a port. Names
// come back in ASCII.
func hostAndPort(text, defaultPort string) (host, port string, err error) {
	if text == "" {
		return "", "", errors.New("no host")
	}
	host, port = text, defaultPort
	bare := strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
	if ip, err := netip.ParseAddr(bare); err == nil {
		return ip.String(), port, nil
	}
	if strings.Contains(text, ":") {
		if _, _, err := proxy.SplitHostPort(text); err != nil {
			return "", "", err
		}
		host, port, _ = net.SplitHostPort(text)
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return host, port, nil
	}
	host, err = idna.Lookup.ToASCII(host)
	if err == nil {
		err = proxy.CheckHost(host)
	}
	if err != nil {
		return "", "", fmt.Errorf("%q is not a host name: %w", text, err)
	}
	return host, port, nil
}

// authority is the Host header's form of a host and a port.
func authority(host, port, defaultPort string) string {
	if port != defaultPort {
		return net.JoinHostPort(host, port)
	}
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// Name is the front's domain, for logs and errors.
func (f *Front) Name() string { return f.name }

// MaxInFlight is how many exchanges may usefully be in flight at once: six
// over HTTP/1.1, over HTTP/2 the server's limit or 100, whichever is less.
// Before the first response it is six. More than that wait in RoundTrip.
func (f *Front) MaxInFlight() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inFlight
}

// RoundTrip sends req and returns the head of the response, whatever its
// status: redirects and errors of the server are the caller's to judge. The
// response's body must be closed.
//
// Of req it takes the method, the URL's path and query, the headers and the
// body; scheme and host are the Config's. Headers that a browser would send
// are added where the caller has set none. The body is first read when a
// connection is ready and the request's head is on its way, never while
// RoundTrip waits for a connection; so what is known by then can be in it. It
// is closed in any case, perhaps after RoundTrip has returned. With a
// ContentLength it is sent as it is, else in chunks over HTTP/1.1.
//
// Every error is an *Error. A request goes out again, on another connection, by
// itself only if the connection had been in use before, ended, and no octet of
// the body had been read. What fails later may or may not have reached the
// server: the error says by Unsent and Reused what is known, and the caller,
// which knows whether sending twice does harm, decides.
//
// The context ends the exchange with its body. Without an end in time it may
// wait for ever. On a connection that has died without a sign the exchange ends
// when another connection has shown that the path works: see life.
func (f *Front) RoundTrip(req *http.Request) (*http.Response, error) {
	f.mu.Lock()
	closed := f.closed
	if !closed {
		f.running.Add(1)
	}
	f.mu.Unlock()
	if closed {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, f.errClosed()
	}
	defer f.running.Done()

	out := req.Clone(req.Context())
	if out.Header == nil {
		out.Header = make(http.Header)
	}
	u := *req.URL
	u.Scheme, u.Host, u.User = f.origin.Scheme, f.origin.Host, nil
	out.URL, out.Host, out.Trailer = &u, f.origin.Host, nil
	hasBody := req.Body != nil && req.Body != http.NoBody
	f.browser.dress(out.Header, f.origin, hasBody)

	if !hasBody {
		out.Body = nil
		safe := req.Method == "" || req.Method == http.MethodGet || req.Method == http.MethodHead
		for {
			resp, err := f.exchange(out)
			if err == nil {
				return resp, nil
			}
			if !safe || !err.Reused || req.Context().Err() != nil {
				return nil, err
			}
		}
	}
	body := newRequestBody(req.Body)
	for {
		lent := &attempt{req: body}
		out.Body = lent
		resp, err := f.exchange(out)
		if err == nil {
			lent.settle()
			return resp, nil
		}
		err.Unsent = lent.takeBack()
		if !err.Unsent || !err.Reused || req.Context().Err() != nil {
			body.close()
			return nil, err
		}
	}
}

// exchange sends req on one connection.
func (f *Front) exchange(req *http.Request) (*http.Response, *Error) {
	ctx := req.Context()
	g, failed := f.acquire(ctx)
	if failed != nil {
		return nil, failed
	}
	c, begun, before := g.conn, time.Now(), g.conn.sock.put.Load()
	long := req.ContentLength >= longBody
	if long {
		f.mu.Lock()
		f.longLocked(c)
		f.mu.Unlock()
	}
	var once sync.Once
	end := func(err error) {
		once.Do(func() {
			if err != nil && ctx.Err() != nil && isTimeout(context.Cause(ctx)) {
				f.doubt(c, begun)
			}
			f.release(c)
		})
	}
	resp, err := c.wire.roundTrip(req)
	if long {
		f.mu.Lock()
		c.life.long--
		f.mu.Unlock()
	}
	if err == nil {
		// An HTTP/1.1 server sees the end of a cancelled exchange, and its
		// answer to that can still come through.
		if err = context.Cause(ctx); err == nil {
			err = undoCoding(resp)
		}
		if err != nil {
			resp.Body.Close()
		}
	}
	if err != nil {
		end(err)
		wrapped := f.httpErr(ctx, c, err)
		wrapped.Reused = g.reused && ctx.Err() == nil && !c.wire.usable()
		return nil, wrapped
	}
	f.mu.Lock()
	c.served = true
	f.answeredLocked(c, begun, before)
	if n, known := c.wire.limit(); known && f.h2 {
		f.inFlight = n
	}
	f.mu.Unlock()
	resp.Body = &responseBody{
		body: resp.Body,
		wrap: func(err error) error { return f.httpErr(ctx, c, err) },
		end:  end,
	}
	return resp, nil
}

// open makes a connection to addr and tells at which step it is.
func (f *Front) open(ctx context.Context, addr string, at func(Op)) (*conn, bool, error) {
	var raw net.Conn
	var err error
	if f.proxy != nil {
		at(OpProxy)
		raw, err = f.proxy.Dial(ctx, addr)
	} else {
		at(OpConnect)
		raw, err = f.netDial(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, false, err
	}
	s := newSock(raw)
	secure, protocol := net.Conn(s), ""
	if f.tls != nil {
		at(OpTLS)
		if secure, protocol, err = f.tls.handshake(ctx, s); err != nil {
			s.Close()
			return nil, false, err
		}
	}
	at(OpHTTP)
	h2 := protocol == "h2"
	w, err := f.wires.make(ctx, secure, h2)
	if err != nil {
		s.Close()
		return nil, false, err
	}
	return &conn{wire: w, sock: s}, h2, nil
}

// CloseIdleConnections closes the connections that carry no exchange.
func (f *Front) CloseIdleConnections() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closeIdleLocked()
}

func (f *Front) closeIdleLocked() {
	kept := f.conns[:0]
	for _, c := range f.conns {
		if c.busy == 0 {
			f.dropLocked(c)
		} else {
			kept = append(kept, c)
		}
	}
	clear(f.conns[len(kept):])
	f.conns = kept
}

// Close ends every connection, with the exchanges on it and the dials under
// way, and waits for them. Every call then fails with an error that matches
// net.ErrClosed. Closing twice is allowed.
func (f *Front) Close() error {
	f.mu.Lock()
	if !f.closed {
		f.closed = true
		f.cancel()
		for _, w := range f.waiters {
			w.granted <- grant{err: f.errClosed()}
		}
		f.waiters = nil
		f.stopDialsLocked(func(*dialing) bool { return true })
		if f.redial != nil {
			f.redial.Stop()
		}
		for _, c := range f.conns {
			f.dropLocked(c)
		}
		f.conns = nil
	}
	f.mu.Unlock()
	f.running.Wait()
	return nil
}

func (f *Front) err(op Op, err error) *Error {
	return &Error{Op: op, Front: f.name, Unsent: op != OpHTTP, Err: err}
}

func (f *Front) errClosed() *Error {
	return f.err(OpWait, fmt.Errorf("front closed: %w", net.ErrClosed))
}

// httpErr is the error of an exchange that had a connection.
func (f *Front) httpErr(ctx context.Context, c *conn, err error) *Error {
	f.mu.Lock()
	gone := c.life.gone
	f.mu.Unlock()
	switch {
	case f.ctx.Err() != nil:
		err = fmt.Errorf("front closed: %w", net.ErrClosed)
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case gone != nil:
		err = gone
	}
	return f.err(OpHTTP, err)
}
