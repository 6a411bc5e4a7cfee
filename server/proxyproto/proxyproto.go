// Package proxyproto accepts connections from proxies that say for whom they
// connect, by the PROXY protocol of haproxy, versions 1 and 2
// (https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt).
//
// The header stands before everything else on a connection, TLS included. It
// is read from trusted peers only, and they must send it: a receiver that
// guesses whether there is one lets whoever is behind a proxy that sends none
// write one himself. What an untrusted peer sends is not looked at, so a header
// of his is a malformed request for whoever reads on.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// signature begins a header of version 2. A header of version 1 begins
	// with version1 and is at least as long: "PROXY UNKNOWN" and CR LF.
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	version1  = "PROXY "

	// maxLine is the size in bytes of the longest header of version 1, CR LF
	// included (section 2.1).
	maxLine = 107

	// maxPayload is the most bytes that may follow the 16 at the beginning of
	// a header of version 2. An address needs 36; what large proxies add (a
	// client certificate's name, identifiers of a cloud) some hundred.
	maxPayload = 4 << 10
)

var (
	errNone    = errors.New("no PROXY header where one must be")
	errVersion = errors.New("a PROXY header of unknown version")
	errLine    = errors.New("a malformed PROXY line")
	errBinary  = errors.New("a malformed binary PROXY header")
)

// ReadHeader reads a header from r, and no byte more. client is where the
// proxied connection comes from, or the zero AddrPort when the header does not
// say: the proxy's own connection (LOCAL), or one that is not TCP over IP.
//
// An end within the header is io.ErrUnexpectedEOF, before its first byte io.EOF.
// Errors of r come as they are.
func ReadHeader(r io.Reader) (client netip.AddrPort, err error) {
	var buf [maxLine]byte
	begin := buf[:len(signature)]
	if _, err := io.ReadFull(r, begin); err != nil {
		return client, err
	}
	if string(begin) == signature {
		return readBinary(r)
	}
	if !bytes.HasPrefix(begin, []byte(version1)) {
		return client, errNone
	}
	// Byte by byte, since what follows the line is not ours.
	line := begin
	for !bytes.HasSuffix(line, []byte("\r\n")) {
		if len(line) == maxLine {
			return client, fmt.Errorf("%w: no end after %d bytes", errLine, maxLine)
		}
		next := buf[len(line) : len(line)+1]
		if _, err := io.ReadFull(r, next); err != nil {
			return client, cut(err)
		}
		line = buf[:len(line)+1]
	}
	return parseLine(string(line[len(version1) : len(line)-2]))
}

// cut turns the end of a connection into that of a header.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseLine reads what stands between "PROXY " and the line's end.
func parseLine(line string) (netip.AddrPort, error) {
	fields := strings.Split(line, " ")
	if fields[0] == "UNKNOWN" {
		return netip.AddrPort{}, nil // whatever follows
	}
	if len(fields) != 5 || fields[0] != "TCP4" && fields[0] != "TCP6" {
		return netip.AddrPort{}, fmt.Errorf("%w: %.60q", errLine, line)
	}
	var ends [2]netip.AddrPort // source, destination
	for i := range ends {
		addr, err := netip.ParseAddr(fields[1+i])
		if err != nil || addr.Zone() != "" || addr.Is4() != (fields[0] == "TCP4") {
			return netip.AddrPort{}, fmt.Errorf("%w: %q is no %s address", errLine, fields[1+i], fields[0])
		}
		port, err := strconv.ParseUint(fields[3+i], 10, 16)
		if err != nil || strconv.FormatUint(port, 10) != fields[3+i] {
			return netip.AddrPort{}, fmt.Errorf("%w: %q is no port", errLine, fields[3+i])
		}
		ends[i] = netip.AddrPortFrom(addr.Unmap(), uint16(port))
	}
	return ends[0], nil
}

// readBinary reads a header of version 2 after its signature: a byte of
// version and command, a byte of family and protocol, two of the payload's
// size, and the payload: source, destination, their ports, and fields that
// nobody here needs.
func readBinary(r io.Reader) (client netip.AddrPort, err error) {
	var fixed [4]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return client, cut(err)
	}
	if fixed[0]>>4 != 2 {
		return client, fmt.Errorf("%w: %d", errVersion, fixed[0]>>4)
	}
	size := int(binary.BigEndian.Uint16(fixed[2:]))
	if size > maxPayload {
		return client, fmt.Errorf("%w: %d bytes, of which %d are taken", errBinary, size, maxPayload)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(r, payload); err != nil {
		return client, cut(err)
	}
	const local, proxy = 0, 1
	switch fixed[0] & 0xf {
	case local:
		return client, nil
	case proxy:
	default:
		return client, fmt.Errorf("%w: unknown command %d", errBinary, fixed[0]&0xf)
	}
	const tcp4, tcp6 = 0x11, 0x21
	width := 0 // of an address
	switch fixed[1] {
	case tcp4:
		width = 4
	case tcp6:
		width = 16
	default:
		return client, nil
	}
	if size < 2*width+4 {
		return client, fmt.Errorf("%w: %d bytes do not hold two addresses", errBinary, size)
	}
	addr, _ := netip.AddrFromSlice(payload[:width])
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(payload[2*width:])), nil
}

// A Listener accepts connections whose RemoteAddr is the client's, where a
// trusted peer names it. It is safe for concurrent use. Its fields do not
// change after the first Accept.
type Listener struct {
	net.Listener

	// Trusted peers must send a header on each connection.
	Trusted []netip.Prefix

	// Timeout is how long a header may take.
	Timeout time.Duration

	// Refused is called with why a trusted peer's connection was closed, from
	// the goroutine that uses it.
	Refused func(error)
}

// Accept does not wait for the header: a peer that sends none delays nobody.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	peer, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return c, nil // not IP, so in no network
	}
	addr := peer.Addr().Unmap().WithZone("")
	if !slices.ContainsFunc(l.Trusted, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return c, nil
	}
	return &conn{Conn: c, listener: l}, nil
}

// A conn reads the header at the first call of Read or RemoteAddr. Meanwhile
// the sooner of two read deadlines holds, the header's and the one that was set.
type conn struct {
	net.Conn
	listener *Listener

	mu     sync.Mutex
	set    time.Time // the read deadline that was set; guarded by mu
	header time.Time // until when the header may take; guarded by mu, zero when it has come

	once   sync.Once // guards the writing of what follows
	client net.Addr
	err    error
}

// SetDeadline sets both deadlines.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets when Read fails. Nothing takes the header's own deadline
// from it.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set = t
	return c.applyDeadline()
}

// limitHeader sets until when the header may take; zero: it has come.
func (c *conn) limitHeader(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.header = t
	return c.applyDeadline()
}

// applyDeadline has the sooner deadline hold. mu is held.
func (c *conn) applyDeadline() error {
	t := c.set
	if t.IsZero() || !c.header.IsZero() && c.header.Before(t) {
		t = c.header
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) readHeader() {
	c.once.Do(func() {
		// No address at all, rather than the proxy's: that one is trusted, and
		// who it does not name must not be.
		c.client = new(net.TCPAddr)
		var client netip.AddrPort
		if c.err = c.limitHeader(time.Now().Add(c.listener.Timeout)); c.err == nil {
			client, c.err = ReadHeader(c.Conn)
		}
		if c.err == nil {
			c.err = c.limitHeader(time.Time{})
		}
		if c.err != nil {
			c.Conn.Close()
			// A proxy that only looks whether somebody listens is no news.
			if c.err != io.EOF && !errors.Is(c.err, net.ErrClosed) {
				c.listener.Refused(c.err)
			}
			return
		}
		if client.IsValid() {
			c.client = net.TCPAddrFromAddrPort(client)
		}
	})
}

// RemoteAddr is the client's address, or one without an IP when the proxy has
// not said it.
func (c *conn) RemoteAddr() net.Addr {
	c.readHeader()
	return c.client
}

// Read reads what follows the header. Without a proper header it fails with
// what was wrong.
func (c *conn) Read(p []byte) (int, error) {
	c.readHeader()
	if c.err != nil {
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: c.err}
	}
	return c.Conn.Read(p)
}
