package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// defaultPorts are the kinds of proxy that there are, with the port of one whose URL
// names none. Those are what other programs take (net/http, curl for SOCKS): HTTP's
// own (RFC 9110 section 4.2.1), and the one that is registered for SOCKS (RFC 1928
// section 3).
var defaultPorts = map[string]string{"http": "80", "socks4a": "1080", "socks5": "1080"}

// Check tells whether u names a proxy that can be used: http, socks4a or socks5,
// a host, perhaps a port, and credentials that the kind of proxy can be given. The
// error does not repeat the credentials.
func Check(u *url.URL) error {
	if defaultPorts[u.Scheme] == "" {
		return fmt.Errorf("proxy type %q is not supported; use http, socks4a or socks5", u.Scheme)
	}
	if u.Hostname() == "" {
		return errors.New("the proxy's address has no host")
	}
	if err := CheckHost(u.Hostname()); err != nil {
		return fmt.Errorf("the proxy's host %q is none: %w", u.Hostname(), err)
	}
	if _, _, err := SplitHostPort(addrOf(u)); err != nil {
		return fmt.Errorf("the proxy's port %q is not a number from 1 to 65535", u.Port())
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("the proxy's address goes on after the port; it must end there")
	}
	if u.User == nil {
		return nil
	}
	return checkCredentials(u.Scheme, u.User)
}

// addrOf is the host:port of the proxy u.
func addrOf(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), defaultPorts[u.Scheme])
}

// checkCredentials tells whether a proxy of a kind can be given these.
func checkCredentials(scheme string, user *url.Userinfo) error {
	name := user.Username()
	password, hasPassword := user.Password()
	switch scheme {
	case "socks5":
		// RFC 1929 gives each one byte of length, and no way to say nothing.
		if name == "" || len(name) > 255 || password == "" || len(password) > 255 {
			return errors.New("a socks5 proxy takes a name and a password of 1 to 255 bytes each, or none at all")
		}
	case "socks4a":
		// The name ends at the first zero byte, and there is no password.
		if hasPassword || strings.ContainsRune(name, 0) {
			return errors.New("a socks4a proxy takes a name and no password")
		}
	case "http":
		// RFC 7617: a colon ends the name, control characters are forbidden.
		if strings.Contains(name, ":") || strings.ContainsFunc(name+password, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return errors.New("an http proxy takes a name without colon, and no control characters")
		}
	}
	return nil
}

// CheckHost returns nil for an IP address and for a host name in ASCII, which is
// what a proxy, like DNS, can be asked for.
func CheckHost(host string) error {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if host == "" || len(host) > 253 {
		return errors.New("a host name has 1 to 253 characters")
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		if label == "" || len(label) > 63 {
			return errors.New("each part of a host name has 1 to 63 characters")
		}
		for _, c := range label {
			if (c < 'a' || 'z' < c) && (c < 'A' || 'Z' < c) && (c < '0' || '9' < c) && c != '-' && c != '_' {
				return fmt.Errorf("a host name cannot hold %q", c)
			}
		}
	}
	return nil
}

// SplitHostPort splits an address to dial, host:port, and checks its port. It
// does not look at the host.
func SplitHostPort(addr string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port", addr)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q: the port is a number from 1 to 65535", addr)
	}
	return host, uint16(n), nil
}
