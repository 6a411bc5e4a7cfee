package front

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	utls "github.com/refraction-networking/utls"
)

// helloPatience is how long a server may be silent at a ClientHello beyond four
// round trips, where there is another one to try: a censor who knows a hello
// swallows it or resets the connection. Three lost packets in a row cost as much.
const helloPatience = 3 * time.Second

// A look is a browser to imitate in one front's connections: its TLS, and the
// HTTP that fits it.
type look struct {
	browser *browser
	tls     *handshaker // nil: in clear
	wires   *wireMaker
	standing
}

// looks are those that may be tried, in the order of preference. Which of them
// gets through is learned: one that failed where another got through comes last
// for a while, as an address does. Safe for concurrent use.
type looks struct {
	all []*look // constant, at least one

	mu sync.Mutex // guards their standings
}

// newLooks returns those that r names for connections to its front.
func newLooks(cfg Config, r *route) (*looks, error) {
	l := new(looks)
	ech := newECHKey(cfg, r.name)
	for _, hello := range r.hellos {
		one := &look{browser: hello.http()}
		var shown *browser // nil: connections look like Go's
		if hello != nil {
			shown = hello.browser
		}
		var err error
		if one.wires, err = wireMakerFor(shown); err != nil {
			return nil, err
		}
		if r.origin.Scheme == "https" {
			one.tls = &handshaker{serverName: r.name, roots: cfg.RootCAs, hello: hello, ech: ech}
		}
		l.all = append(l.all, one)
		if one.tls == nil {
			break // nothing fails for its ClientHello
		}
	}
	return l, nil
}

// next returns the look to try after those tried: the first that works as far as
// known, else the one that may be tried again first. It returns nil after all.
func (l *looks) next(tried []*look) *look {
	l.mu.Lock()
	defer l.mu.Unlock()
	var best *look
	for _, o := range l.all {
		switch {
		case slices.Contains(tried, o):
		case best == nil, !best.works() && (o.works() || o.bad.Before(best.bad)):
			best = o
		}
	}
	return best
}

// decided is told that one look has got through where the others failed.
func (l *looks) decided(through *look, failed []*look) {
	l.mu.Lock()
	defer l.mu.Unlock()
	through.standing = standing{}
	for _, o := range failed {
		o.fails()
	}
}

// blamesHello tells whether a handshake that failed for err may succeed with another
// ClientHello. Who shows a certificate has accepted this one.
func blamesHello(err error) bool {
	var bad *tls.CertificateVerificationError
	var ubad *utls.CertificateVerificationError
	return !errors.As(err, &bad) && !errors.As(err, &ubad)
}

// connect makes a connection by way of an address with each of the looks in turn
// until one gets through TLS, and tells at which step it is.
func (c *connector) connect(ctx context.Context, via string, at func(Op)) (*conn, error) {
	var tried []*look
	for {
		look := c.looks.next(tried)
		tried = append(tried, look)
		last := len(tried) == len(c.looks.all)
		made, err := c.connectAs(ctx, via, look, last, at)
		if err != nil && look.tls != nil && look.tls.ech.refused(err) {
			made, err = c.connectAs(ctx, via, look, last, at)
		}
		if err == nil {
			c.looks.decided(look, tried[:len(tried)-1])
			return made, nil
		}
		if last || !errors.As(err, new(*helloError)) || ctx.Err() != nil {
			return nil, err
		}
	}
}

// A helloError is an error of a handshake for which the ClientHello may be to blame.
type helloError struct{ error }

func (e *helloError) Unwrap() error { return e.error }

// secure does the TLS handshake on raw, which took so long to connect. The last
// look has as much time as ctx leaves.
func (l *look) secure(ctx context.Context, raw net.Conn, took time.Duration, last bool) (net.Conn, string, error) {
	if l.tls == nil {
		return raw, "", nil
	}
	if !last {
		patience := helloPatience + 4*took
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, patience, errors.New("no answer to this ClientHello after "+patience.Round(time.Millisecond).String()))
		defer cancel()
	}
	c, protocol, err := l.tls.handshake(ctx, raw)
	if err == nil {
		return c, protocol, nil
	}
	if blamesHello(err) {
		err = &helloError{err}
	}
	return nil, "", err
}
