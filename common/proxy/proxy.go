// Package proxy reaches addresses by way of the proxy that a client has been told
// to use: by HTTP's CONNECT, by SOCKS 4A or by SOCKS 5.
//
// Check is the one place that says which proxy URLs can be used. Whoever is
// given one asks it, so that what the program tells its operator at the start is
// what happens when a connection is made.
//
// A name that is to be reached is given to the proxy as a name and never
// resolved here. The package knows no HTTP beyond the answer to CONNECT, no TLS,
// and no UDP.
package proxy

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"time"
)

// maxHead is the most that an HTTP proxy's answer to CONNECT may hold, in
// bytes. Real ones stay under 1 KB; an error page comes after the head and is
// not read.
const maxHead = 16 << 10

// Error is a proxy's refusal, in its own words.
type Error struct {
	Scheme string // http, socks4a, socks5
	Answer string // what it answered: octets of the proxy are quoted

	// Unreachable says that the proxy would have let the client through, and has
	// not reached the address. SOCKS 4A has no answer for that.
	Unreachable bool
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s proxy answered %s", e.Scheme, e.Answer)
}

// A Dialer reaches addresses through one proxy. It is safe for concurrent use.
type Dialer struct {
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	scheme string // http, socks4a, socks5
	addr   string // host:port of the proxy
	user   string
	pass   string
	auth   bool   // credentials were given
	agent  string // User-Agent for CONNECT
}

// New returns a Dialer for the proxy u, or Check's error. It reaches the proxy by
// dial, and tells an HTTP proxy agent as its User-Agent.
func New(u *url.URL, dial func(ctx context.Context, network, addr string) (net.Conn, error), agent string) (*Dialer, error) {
	if err := Check(u); err != nil {
		return nil, err
	}
	d := &Dialer{dial: dial, scheme: u.Scheme, addr: addrOf(u), auth: u.User != nil, agent: agent}
	if d.auth {
		d.user = u.User.Username()
		d.pass, _ = u.User.Password()
	}
	return d, nil
}

// Addr is the proxy's host:port, as its URL says it, with the default port if that
// names none.
func (d *Dialer) Addr() string { return d.addr }

// Err is an error for what keeps the proxy from being reached.
func (d *Dialer) Err(err error) error { return fmt.Errorf("%s proxy: %w", d.scheme, err) }

// Dial returns a connection to addr, host:port, through the proxy, which it
// reaches by way of via: Addr, or an address of that host. ctx bounds
// the proxy's answer, not the connection. When the proxy has refused, the error
// matches *Error; an end of the stream before its answer is io.ErrUnexpectedEOF.
func (d *Dialer) Dial(ctx context.Context, via, addr string) (net.Conn, error) {
	conn, err := d.dial(ctx, "tcp", via)
	if err != nil {
		return nil, d.Err(err)
	}
	// A deadline in the past ends a blocked Read or Write when ctx ends.
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		conn.SetDeadline(time.Unix(1, 0))
		close(expired)
	})
	err = d.handshake(conn, addr)
	if !stop() {
		<-expired
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		if refused := (*Error)(nil); errors.As(err, &refused) {
			return nil, err
		}
		return nil, d.Err(err)
	}
	return conn, nil
}

// handshake asks the proxy at the other end of conn for a tunnel to addr.
func (d *Dialer) handshake(conn io.ReadWriter, addr string) error {
	host, port, err := SplitHostPort(addr)
	if err != nil {
		return err
	}
	switch d.scheme {
	case "http":
		return d.connectHTTP(conn, addr)
	case "socks4a":
		return d.connectSOCKS4a(conn, host, port)
	default:
		return d.connectSOCKS5(conn, host, port)
	}
}

// connectHTTP asks for a tunnel by CONNECT (RFC 9110 section 9.3.6).
func (d *Dialer) connectHTTP(conn io.ReadWriter, addr string) error {
	req := fmt.Appendf(nil, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Connection: keep-alive\r\nUser-Agent: %s\r\n", addr, addr, d.agent)
	if d.auth {
		req = fmt.Appendf(req, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(d.user+":"+d.pass)))
	}
	if _, err := conn.Write(append(req, "\r\n"...)); err != nil {
		return err
	}
	for left := maxHead; ; {
		head, err := readHead(conn, left)
		if err != nil {
			return err
		}
		if left -= len(head); !isInterim(head) {
			return checkHead(head)
		}
	}
}

// readHead reads up to and including the empty line that ends the head of
// an HTTP response. It takes one byte at a time because what follows belongs
// to the tunnel. The end of the stream before that is io.ErrUnexpectedEOF.
func readHead(r io.Reader, most int) ([]byte, error) {
	var head []byte
	var one [1]byte
	for len(head) < most {
		if _, err := io.ReadFull(r, one[:]); err != nil {
			return nil, fmt.Errorf("reading the answer to CONNECT: %w", noEOF(err))
		}
		head = append(head, one[0])
		if bytes.HasSuffix(head, []byte("\r\n\r\n")) || bytes.HasSuffix(head, []byte("\n\n")) {
			return head, nil
		}
	}
	return nil, &Error{Scheme: "http", Answer: fmt.Sprintf("with a head of more than %d bytes", maxHead)}
}

// splitStatus splits the first line of a head, without its end. It returns "" for
// the code of what is not HTTP/1 or has no code of three digits.
func splitStatus(head []byte) (line []byte, code string) {
	line, _, _ = bytes.Cut(head, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	version, rest, _ := bytes.Cut(line, []byte(" "))
	digits, _, _ := bytes.Cut(rest, []byte(" "))
	if v := string(version); v != "HTTP/1.0" && v != "HTTP/1.1" || len(digits) != 3 {
		return line, ""
	}
	for _, d := range digits {
		if !isDigit(d) {
			return line, ""
		}
	}
	return line, string(digits)
}

// isInterim tells whether head is one that another one follows (RFC 9110 section
// 15.2). 101 is not: nobody has asked for another protocol.
func isInterim(head []byte) bool {
	_, code := splitStatus(head)
	return code != "" && code[0] == '1' && code != "101"
}

// checkHead returns nil when head is that of a 2xx response, else a
// *Error that quotes the status line.
func checkHead(head []byte) error {
	line, code := splitStatus(head)
	if code != "" && code[0] == '2' {
		return nil
	}
	if len(line) == 0 {
		return &Error{Scheme: "http", Answer: "with an empty line"}
	}
	const enough = 200 // bytes of a status line that a log can use
	return &Error{
		Scheme: "http", Answer: fmt.Sprintf("%q", line[:min(len(line), enough)]),
		// RFC 9110 section 15.6. Squid and privoxy say 503 where others say 502.
		Unreachable: code == "502" || code == "503" || code == "504",
	}
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// connectSOCKS4a asks for a connection by SOCKS 4A. IPv6 addresses have no
// place in that protocol.
func (d *Dialer) connectSOCKS4a(conn io.ReadWriter, host string, port uint16) error {
	req := []byte{4, 1}
	req = binary.BigEndian.AppendUint16(req, port)
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		// An address 0.0.0.x with x not 0 says that a name follows.
		req = append(req, 0, 0, 0, 1)
	case ip.Unmap().Is4():
		ip4 := ip.Unmap().As4()
		req = append(req, ip4[:]...)
	default:
		return errors.New("SOCKS4a has no IPv6 addresses; use a name, or a SOCKS5 or HTTP proxy")
	}
	req = append(append(req, d.user...), 0)
	if err != nil {
		req = append(append(req, host...), 0)
	}
	if _, err := conn.Write(req); err != nil {
		return err
	}
	var reply [8]byte
	if _, err := io.ReadFull(conn, reply[:]); err != nil {
		return fmt.Errorf("reading the SOCKS4a reply: %w", noEOF(err))
	}
	return checkSOCKS4a(reply)
}

// checkSOCKS4a returns nil when reply grants the request, else an *Error.
func checkSOCKS4a(reply [8]byte) error {
	if reply[0] != 0 {
		return &Error{Scheme: "socks4a", Answer: fmt.Sprintf("something that is not SOCKS4a: %q", reply)}
	}
	var why string
	switch reply[1] {
	case 90:
		return nil
	case 91:
		why = "request rejected or failed"
	case 92:
		why = "no identd on the client"
	case 93:
		why = "identd and user id differ"
	default:
		why = "unknown"
	}
	return &Error{Scheme: "socks4a", Answer: fmt.Sprintf("%d (%s)", reply[1], why)}
}

// socks5Replies are what the codes of a reply mean (RFC 1928 section 6).
var socks5Replies = [...]string{
	1: "general failure",
	2: "not allowed by its rules",
	3: "network unreachable",
	4: "host unreachable",
	5: "connection refused",
	6: "TTL expired",
	7: "command not supported",
	8: "address type not supported",
}

// The codes from network unreachable to TTL expired say that the proxy has tried.
const (
	firstUnreachable = 3
	lastUnreachable  = 6
)

// connectSOCKS5 asks for a connection by SOCKS 5 (RFC 1928), with user name and
// password (RFC 1929) if there are any.
func (d *Dialer) connectSOCKS5(conn io.ReadWriter, host string, port uint16) error {
	const (
		version      = 5
		noAuth       = 0
		userPass     = 2
		noneAccepted = 0xff
	)
	refused := func(format string, args ...any) error {
		return &Error{Scheme: "socks5", Answer: fmt.Sprintf(format, args...)}
	}

	hello := []byte{version, 1, noAuth}
	if d.auth {
		hello = []byte{version, 2, noAuth, userPass}
	}
	if _, err := conn.Write(hello); err != nil {
		return err
	}
	var two [2]byte
	if _, err := io.ReadFull(conn, two[:]); err != nil {
		return fmt.Errorf("reading the SOCKS5 method: %w", noEOF(err))
	}
	switch {
	case two[0] != version:
		return refused("something that is not SOCKS5: %q", two)
	case two[1] == noAuth:
	case two[1] == userPass && d.auth:
		req := []byte{1, byte(len(d.user))}
		req = append(req, d.user...)
		req = append(req, byte(len(d.pass)))
		req = append(req, d.pass...)
		if _, err := conn.Write(req); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, two[:]); err != nil {
			return fmt.Errorf("reading the SOCKS5 authentication status: %w", noEOF(err))
		}
		if two[1] != 0 {
			return refused("%d (user name or password wrong)", two[1])
		}
	case two[1] == noneAccepted && d.auth:
		return refused("that it accepts neither no authentication nor a password")
	case two[1] == noneAccepted:
		return refused("that it wants credentials; none were given")
	default:
		return refused("with a method that was not offered: %d", two[1])
	}

	req := []byte{version, 1, 0}
	if ip, err := netip.ParseAddr(host); err != nil {
		if len(host) > 255 {
			return errors.New("SOCKS5 takes names of at most 255 bytes")
		}
		req = append(req, 3, byte(len(host)))
		req = append(req, host...)
	} else if ip = ip.Unmap(); ip.Is4() {
		req = append(append(req, 1), ip.AsSlice()...)
	} else {
		req = append(append(req, 4), ip.AsSlice()...)
	}
	req = binary.BigEndian.AppendUint16(req, port)
	if _, err := conn.Write(req); err != nil {
		return err
	}
	return readSOCKS5Reply(conn)
}

// readSOCKS5Reply reads a reply to CONNECT to its end. The bound address in it
// is of no use here.
func readSOCKS5Reply(r io.Reader) error {
	refused := func(format string, args ...any) error {
		return &Error{Scheme: "socks5", Answer: fmt.Sprintf(format, args...)}
	}
	// The shortest reply that can be one has this many octets before its
	// address: version, reply, reserved, address type, and the first octet of
	// the address, which is its length when it is a name.
	var head [5]byte
	if _, err := io.ReadFull(r, head[:4]); err != nil {
		return fmt.Errorf("reading the SOCKS5 reply: %w", noEOF(err))
	}
	if head[0] != 5 {
		return refused("something that is not SOCKS5: %q", head[:4])
	}
	if code := head[1]; code != 0 {
		why := "unknown"
		if int(code) < len(socks5Replies) {
			why = socks5Replies[code]
		}
		return &Error{
			Scheme: "socks5", Answer: fmt.Sprintf("%d (%s)", code, why),
			Unreachable: firstUnreachable <= code && code <= lastUnreachable,
		}
	}
	var rest int64
	switch head[3] {
	case 1:
		rest = 4 + 2
	case 4:
		rest = 16 + 2
	case 3:
		if _, err := io.ReadFull(r, head[4:]); err != nil {
			return fmt.Errorf("reading the SOCKS5 reply: %w", noEOF(err))
		}
		rest = int64(head[4]) + 2
	default:
		return refused("with an address of unknown type %d", head[3])
	}
	if _, err := io.CopyN(io.Discard, r, rest); err != nil {
		return fmt.Errorf("reading the SOCKS5 reply: %w", noEOF(err))
	}
	return nil
}

// noEOF turns the end of the stream, where an answer was due, into
// io.ErrUnexpectedEOF.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
