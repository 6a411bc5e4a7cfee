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
// Each type knows one thing, and what stands below it knows nothing of what
// stands above:
//
//	Set            which of several fronts to the same server carries
//	 ├ race        connects fronts side by side, and the first one carries
//	 ├ health      whether one front works, and since when it does not: the only judge of that
//	 └ Front       exchanges through one front, dressed as a browser's
//	    ├ bodyTypes   of which type the bodies are said to be, so that they pass
//	    └ pool     connections and who waits for one
//	       ├ dials the dials under way: how many, how often another one beside them
//	       │  ├ addresses   to which address, and which have failed
//	       │  └ connector   makes a connection: [proxy], [TLS], wire
//	       │     └ looks    which browser it imitates, and which get through
//	       └ conn  one connection: a sock that counts, a wire that speaks HTTP,
//	          │    and how many exchanges are on it
//	          ├ life        whether it is alive, found out by a watch
//	          └ wire1 (net/http) -> h1Mask, or wire2 (x/net/http2) -> h2Mask
//
// A Set, a health, a pool, a life, looks and the streams of an h2Mask have a lock each,
// taken in this order and never held while the network is waited for. A
// request's body is lent to one connection after another by lend, which alone
// decides whether it is lent again.
//
// A Front has up to six connections over HTTP/1.1 and one over HTTP/2, like a
// browser to one host, and another one beside that when it may be dead. The
// first one decides which it is, and carries the first exchange.
//
// A Front does not follow redirects, keep cookies, cache, read the
// environment's proxy settings, or know what the bodies mean.
package front

import (
	"context"
	"io"
	"net/http"
	"net/url"
)

// Front exchanges HTTP requests and responses with one server through one
// front. It is safe for concurrent use. It must be closed.
type Front struct {
	origin *url.URL // scheme and host, the host without a default port
	pool   *pool
	types  bodyTypes
}

// New checks cfg, with the errors of Config.Check, and returns a Front. It does
// not use the network yet.
func New(cfg Config) (*Front, error) {
	r, err := cfg.route()
	if err != nil {
		return nil, err
	}
	c, err := newConnector(cfg, r)
	if err != nil {
		return nil, err
	}
	return &Front{origin: r.origin, pool: newPool(r.name, c), types: newBodyTypes()}, nil
}

// Name is the front's domain, for logs and errors.
func (f *Front) Name() string { return f.pool.name }

// MaxInFlight is how many exchanges may usefully be in flight at once: six
// over HTTP/1.1, over HTTP/2 the server's limit or 100, whichever is less.
// Before the first response it is six. More than that wait in RoundTrip.
func (f *Front) MaxInFlight() int { return f.pool.maxInFlight() }

// Feeds tells whether a request whose body has no known length, because it is
// written bit by bit, looks like one of the browser's: of those imitated only Chrome
// sends such, and only over HTTP/2. Where nothing is imitated it does. It is that of
// the newest connection, and false before there is one. On a connection where it does
// not, as another one may be that was made meanwhile, RoundTrip sends no such request.
func (f *Front) Feeds() bool { return f.pool.takesFeeds() }

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
// ContentLength it is sent as it is, else in chunks over HTTP/1.1. A request
// without a body is sent as one whose body is empty, which over HTTP/1.1 is
// chunked, too.
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
	ctx := req.Context()
	return lend(req.Body,
		func(body io.ReadCloser) (*http.Response, error) { return f.exchange(ctx, req, body) },
		func(e *Error) bool { return goesAgain(ctx, e) })
}

// goesAgain tells whether a request that failed goes out once more by the same
// front, at once: its connection had ended before anything of it was sent.
func goesAgain(ctx context.Context, e *Error) bool {
	return e.Unsent && e.Reused && ctx.Err() == nil
}

// exchange sends req with another context and body on one connection, once.
func (f *Front) exchange(ctx context.Context, req *http.Request, body io.ReadCloser) (*http.Response, error) {
	if !f.pool.enter() {
		return nil, closedError(f.Name())
	}
	defer f.pool.running.Done()
	u := *req.URL
	u.Scheme, u.Host, u.User = f.origin.Scheme, f.origin.Host, nil
	out := req.Clone(ctx)
	out.URL, out.Host, out.Trailer, out.Body = &u, f.origin.Host, nil, body
	if out.Header == nil {
		out.Header = make(http.Header)
	}
	p, err := f.pool.take(ctx)
	if err != nil {
		return nil, err
	}
	if out.ContentLength < 0 && !p.conn.feeds {
		p.leave(nil)
		return nil, newError(f.Name(), OpWait, errNoFeed)
	}
	p.conn.browser.dress(out.Header, f.origin, f.types.current())
	resp, err := p.roundTrip(out)
	if err == nil {
		f.types.answered(out.Header.Get("Content-Type"), resp.StatusCode)
	}
	return resp, err
}

// Close ends every connection, with the exchanges on it and the dials under
// way, and waits for them. Every call then fails with an error that matches
// net.ErrClosed. Closing twice is allowed.
func (f *Front) Close() error {
	f.pool.close()
	return nil
}
