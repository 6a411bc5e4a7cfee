package front

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"

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

	// UTLS names the browsers whose TLS ClientHello and HTTP to imitate: some of
	// Hellos, with commas between them. The next one is tried where TLS fails with
	// the one before. Empty: chrome. "none" imitates nothing but a browser's headers,
	// and "file:PATH" the browser of a Recording in a file of this computer.
	UTLS string

	// Proxy, of scheme http, socks4a or socks5, is used for every connection.
	// It gets names unresolved. Nil: direct.
	Proxy *url.URL

	// RootCAs verify the front's certificate. Nil: the system's, or those in
	// the file that SSL_CERT_FILE names.
	RootCAs *x509.CertPool

	// Dialer makes the connections to the front or the proxy, and resolves
	// their names. Nil: a net.Dialer, which gets the addresses that the system's
	// resolver gives for them, each in its turn.
	Dialer func(ctx context.Context, network, addr string) (net.Conn, error)

	// Lookup gives the addresses of a name. Nil: the system's resolver does, or
	// the Dialer where there is one.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)

	// ECH is an ECHConfigList (RFC 9849 section 4): the front's name is encrypted, and
	// what a censor sees is the public name that stands there. Where the key is not the
	// front's any more, it says so under that name's certificate, and its new one is
	// used. Only what imitates browsers with ECH takes it. Nil: LookupECH is asked,
	// before each connection, but once a minute at most, and nothing is encrypted where
	// that has none, fails or is nil, too.
	ECH       []byte
	LookupECH func(ctx context.Context, host string) ([]byte, error)

	// Control is called for each socket before it connects, as in net.Dialer,
	// unless there is a Dialer.
	Control func(network, addr string, c syscall.RawConn) error
}

// Check tells whether New would make a Front of c. Its error begins with the
// name of the bridge line's argument that is wrong (url, front, addr, utls, ech,
// proxy) and says what is accepted.
func (c Config) Check() error {
	_, err := c.route()
	return err
}

// A route is what a Config says, checked and spelled out.
type route struct {
	origin *url.URL // scheme and host, the host without a default port
	name   string   // the front's domain
	addr   string   // host:port to dial
	hellos []*hello // in the order of preference; nil: Go's own
}

// route checks c and returns what it says.
func (c Config) route() (*route, error) {
	u := c.URL
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
	r := &route{name: host, origin: &url.URL{Scheme: u.Scheme, Host: authority(host, port, defaultPort)}}
	if c.Front != "" {
		if r.name, port, err = hostAndPort(c.Front, port); err != nil {
			return nil, fmt.Errorf("front: %w", err)
		}
	}
	r.addr = net.JoinHostPort(r.name, port)
	if c.Addr != "" {
		host, _, err := proxy.SplitHostPort(c.Addr)
		if err == nil {
			err = proxy.CheckHost(host)
		}
		if err != nil {
			return nil, fmt.Errorf("addr: %w; accepted: host:port", err)
		}
		r.addr = c.Addr
	}
	if r.hellos, err = hellosNamed(c.UTLS); err != nil {
		return nil, err
	}
	if err := checkECH(c.ECH); err != nil {
		return nil, err
	}
	if (c.ECH != nil || c.LookupECH != nil) && slices.ContainsFunc(r.hellos, func(h *hello) bool { return !h.encrypts() }) {
		return nil, fmt.Errorf("ech: utls=%.40s does not encrypt a name; take chrome, firefox or none", c.UTLS)
	}
	if c.Proxy != nil {
		if err := proxy.Check(c.Proxy); err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
	}
	return r, nil
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
