package front

import (
	"context"
	"net"
	"net/netip"
	"time"

	"turbotunnel/common/proxy"
)

// keepAlive is the interval of TCP keep-alive probes, Chrome's.
const keepAlive = 45 * time.Second

// A connector makes connections to one front: TCP, directly or by a proxy, then
// TLS, then HTTP. It is safe for concurrent use, and does not count or keep what
// it has made.
type connector struct {
	addr   string // host:port of the front
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	lookup func(ctx context.Context, host string) ([]netip.Addr, error) // nil: dial looks names up
	proxy  *proxy.Dialer                                                // nil: direct
	tls    *handshaker                                                  // nil: in clear
	wires  *wireMaker
}

// newConnector returns one for the route that cfg says.
func newConnector(cfg Config, r *route) (*connector, error) {
	c := &connector{addr: r.addr, dial: cfg.Dialer, lookup: cfg.Lookup}
	if c.dial == nil {
		c.dial = (&net.Dialer{KeepAlive: keepAlive, Control: cfg.Control}).DialContext
		if c.lookup == nil {
			c.lookup = resolve
		}
	}
	if cfg.Proxy != nil {
		var err error
		if c.proxy, err = proxy.New(cfg.Proxy, c.dial, r.browser().agent); err != nil {
			return nil, err
		}
	}
	if r.origin.Scheme == "https" {
		c.tls = &handshaker{serverName: r.name, roots: cfg.RootCAs, hello: r.hello}
	}
	var look *browser // nil: connections look like Go's
	if r.hello != nil {
		look = r.hello.browser
	}
	var err error
	c.wires, err = wireMakerFor(look)
	return c, err
}

// addresses are those that connections are made to: the front's, or the proxy's.
func (c *connector) addresses() addresses {
	if c.proxy != nil {
		return newAddresses(c.proxy.Addr(), c.lookup)
	}
	return newAddresses(c.addr, c.lookup)
}

// firstStep is the one at which the addresses are looked up.
func (c *connector) firstStep() Op {
	if c.proxy != nil {
		return OpProxy
	}
	return OpResolve
}

// lookupErr is the error when the addresses could not be looked up.
func (c *connector) lookupErr(err error) error {
	if c.proxy != nil {
		return c.proxy.Err(err)
	}
	return err
}

// connect makes a connection by way of an address of the front, or of the proxy,
// and tells at which step it is. The caller owns the connection.
func (c *connector) connect(ctx context.Context, via string, at func(Op)) (*conn, error) {
	var raw net.Conn
	var err error
	if c.proxy != nil {
		at(OpProxy)
		raw, err = c.proxy.Dial(ctx, via, c.addr)
	} else {
		at(OpConnect)
		raw, err = c.dial(ctx, "tcp", via)
	}
	if err != nil {
		return nil, err
	}
	s := newSock(raw)
	secure, protocol := net.Conn(s), ""
	if c.tls != nil {
		at(OpTLS)
		if secure, protocol, err = c.tls.handshake(ctx, s); err != nil {
			s.Close()
			return nil, err
		}
	}
	at(OpHTTP)
	h2 := protocol == "h2"
	w, err := c.wires.make(ctx, secure, h2)
	if err != nil {
		s.Close()
		return nil, err
	}
	return &conn{h2: h2, wire: w, sock: s, life: life{sock: s, wire: w}}, nil
}
