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
	looks  *looks
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
	var err error
	if cfg.Proxy != nil {
		if c.proxy, err = proxy.New(cfg.Proxy, c.dial, r.hellos[0].http().agent); err != nil {
			return nil, err
		}
	}
	c.looks, err = newLooks(cfg, r)
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

// connectAs makes a connection by way of an address of the front, or of the proxy,
// that looks like one browser's, and tells at which step it is. last says that no
// other look is left. The caller owns the connection.
func (c *connector) connectAs(ctx context.Context, via string, as *look, last bool, at func(Op)) (*conn, error) {
	var raw net.Conn
	var err error
	began := time.Now()
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
	if as.tls != nil {
		at(OpTLS)
	}
	secure, protocol, err := as.secure(ctx, s, time.Since(began), last)
	if err != nil {
		s.Close()
		return nil, err
	}
	at(OpHTTP)
	h2 := protocol == "h2"
	w, err := as.wires.make(ctx, secure, h2)
	if err != nil {
		s.Close()
		return nil, err
	}
	feeds := as.wires.look == nil || h2 && as.browser.feeds
	return &conn{h2: h2, browser: as.browser, feeds: feeds, wire: w, sock: s, life: life{sock: s, wire: w}}, nil
}
