package front

import (
	"context"
	"net"
	"net/netip"
	"slices"
)

// A Probe makes one connection to a front, step by step, for those who want to know
// which step fails. What it makes is what a Front makes. It is for one goroutine,
// and must be closed.
type Probe struct {
	cfg       Config
	route     *route
	connector *connector
	via       string   // the address that was connected to last
	raw       net.Conn // nil: not connected
}

// NewProbe checks cfg, with the errors of Config.Check.
func NewProbe(cfg Config) (*Probe, error) {
	r, err := cfg.route()
	if err != nil {
		return nil, err
	}
	c, err := newConnector(cfg, r)
	if err != nil {
		return nil, err
	}
	return &Probe{cfg: cfg, route: r, connector: c}, nil
}

// Name is the domain that is named in TLS.
func (p *Probe) Name() string { return p.route.name }

// Secure tells whether there is TLS.
func (p *Probe) Secure() bool { return p.connector.looks.all[0].tls != nil }

// Resolve returns the addresses that a Front would connect to: of the front, or of the
// proxy. asked
// is false where they are known without asking DNS.
func (p *Probe) Resolve(ctx context.Context) (addrs []string, asked bool, err error) {
	a := p.connector.addresses()
	if a.lookup == nil {
		return []string{a.known[0].text}, false, nil
	}
	ips, err := a.lookup(ctx, a.host)
	if err == nil && len(ips) == 0 {
		err = &net.DNSError{Err: "no address", Name: a.host, IsNotFound: true}
	}
	if err != nil {
		return nil, true, p.connector.lookupErr(err)
	}
	for _, ip := range interleave(ips) {
		addr := net.JoinHostPort(ip.Unmap().String(), a.port)
		if !slices.Contains(addrs, addr) && len(addrs) < maxAddresses {
			addrs = append(addrs, addr)
		}
	}
	return addrs, true, nil
}

// Connect makes a TCP connection by way of one of the addresses.
func (p *Probe) Connect(ctx context.Context, via string) (err error) {
	p.Close()
	p.via = via
	if c := p.connector; c.proxy != nil {
		p.raw, err = c.proxy.Dial(ctx, via, c.addr)
	} else {
		p.raw, err = c.dial(ctx, "tcp", via)
	}
	return err
}

// Encrypts tells whether the name in TLS is encrypted: the look has a place for it, and
// there is a key, for which DNS may be asked.
func (p *Probe) Encrypts(ctx context.Context) bool {
	tls := p.connector.looks.all[0].tls
	return tls != nil && tls.hello.encrypts() && len(tls.ech.current(ctx)) > 0
}

// Handshake does TLS on the connection, with the first look that the Config names,
// and returns the protocol that was chosen.
func (p *Probe) Handshake(ctx context.Context) (protocol string, err error) {
	tls := p.connector.looks.all[0].tls
	_, protocol, err = tls.handshake(ctx, newSock(p.raw))
	if err == nil || !tls.ech.refused(err) {
		return protocol, err
	}
	if err = p.Connect(ctx, p.via); err == nil { // with the key that the front has told
		_, protocol, err = tls.handshake(ctx, newSock(p.raw))
	}
	return protocol, err
}

// Close ends the connection, if there is one.
func (p *Probe) Close() {
	if p.raw != nil {
		p.raw.Close()
		p.raw = nil
	}
}

// As returns a Probe by another name, or with another look, or both; "" leaves what
// it is. It connects to via.
func (p *Probe) As(name, utls, via string) (*Probe, error) {
	cfg := p.cfg
	cfg.Addr = via
	if name != "" {
		cfg.Front, cfg.ECH, cfg.LookupECH = name, nil, nil // which are for the front's own name
	}
	if utls != "" {
		cfg.UTLS = utls
	}
	return NewProbe(cfg)
}

// RefusesECH tells whether a handshake failed for err because the front does not take
// the name that was encrypted.
func RefusesECH(err error) bool {
	_, rejected := rejection(err)
	return rejected
}

// IsOdd tells whether an address is one that no site of the web has: of this
// machine, of a private network, or set aside. DNS that lies often says such ones.
func IsOdd(addr netip.Addr) bool {
	addr = addr.Unmap()
	if addr.IsLoopback() || addr.IsPrivate() || addr.IsUnspecified() || addr.IsLinkLocalUnicast() || addr.IsMulticast() {
		return true
	}
	for _, p := range odd {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// odd are networks that are set aside (RFC 6890), beside those that net/netip knows.
var odd = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("100::/64"), netip.MustParsePrefix("2001:db8::/32"),
}
