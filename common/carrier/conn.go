package carrier

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"time"

	"turbotunnel/common/wire"
)

// Addr is the address of either end of a session. It means nothing but the
// session that it names.
type Addr string

// Network returns "turbotunnel".
func (Addr) Network() string { return "turbotunnel" }

func (a Addr) String() string { return string(a) }

// errClosed matches net.ErrClosed.
var errClosed = fmt.Errorf("carrier: %w", net.ErrClosed)

// errTimeout matches os.ErrDeadlineExceeded.
var errTimeout = fmt.Errorf("carrier: %w", os.ErrDeadlineExceeded)

// A Conn is a session's pipe of datagrams as its engine sees it. It implements
// net.PacketConn; its only peer is the session's other end. Datagrams arrive
// unaltered, once, in order, and practically always.
//
// WriteTo copies its argument, takes at most wire.RecordRoom bytes, ignores
// the address, and blocks while more waits than the window has room for
// (outgoing.allowance). ReadFrom cuts off what does not fit. Close unblocks both,
// drops what was not read, and leaves it to the session to send what was
// written. Safe for concurrent use.
type Conn struct {
	link    *link
	addr    Addr
	binding []byte
	read    deadline
	write   deadline
}

func newConn(l *link, addr Addr, binding []byte) *Conn {
	return &Conn{link: l, addr: addr, binding: bytes.Clone(binding)}
}

// Binding is a secret that only the two ends of the session know, or nil. An
// engine with a handshake of its own can bind that to the session.
func (c *Conn) Binding() []byte { return c.binding }

// Hold counts n bytes that the engine holds for the other side in the session's
// account, or takes them out of it if n is negative. What is left there leaves it
// with Close.
func (c *Conn) Hold(n int) { c.link.engine.add(n) }

// Promise counts n bytes more that the other side may have the engine hold, or
// fewer, and returns how many may be promised yet; see engine.Carrier.
func (c *Conn) Promise(n int) (left int) { return c.link.promise(n) }

// ReadFrom returns the next datagram. Its errors match net.ErrClosed after
// Close, or when the other side has ended the session and everything that came
// was read; and os.ErrDeadlineExceeded after the deadline.
func (c *Conn) ReadFrom(p []byte) (int, net.Addr, error) {
	timeout := c.read.done()
	for {
		if isClosed(c.link.closed) {
			return 0, nil, errClosed
		}
		if isClosed(timeout) {
			return 0, nil, errTimeout
		}
		finished := isClosed(c.link.finished) // asked first: what comes before the end may come now
		if n, ok := c.link.get(p); ok {
			return n, c.addr, nil
		}
		if finished {
			return 0, nil, errClosed
		}
		select {
		case <-c.link.readable:
		case <-c.link.finished:
		case <-c.link.closed:
		case <-timeout:
		}
	}
}

// WaitRead returns when ReadFrom would return at once: who waits long for a
// datagram needs no buffer meanwhile. It is for one reader.
func (c *Conn) WaitRead() {
	timeout := c.read.done()
	for !c.link.has() {
		select {
		case <-c.link.readable:
		case <-c.link.finished:
			return
		case <-c.link.closed:
			return
		case <-timeout:
			return
		}
	}
}

// WriteTo queues a datagram. Its errors match net.ErrClosed after Close, and
// os.ErrDeadlineExceeded after the deadline.
func (c *Conn) WriteTo(p []byte, _ net.Addr) (int, error) {
	if len(p) > wire.RecordRoom {
		return 0, fmt.Errorf("carrier: a datagram of %d bytes; %d at most", len(p), wire.RecordRoom)
	}
	if len(p) == 0 {
		return 0, nil // says nothing, and is not on the wire
	}
	timeout := c.write.done()
	for waited := false; ; waited = true {
		if isClosed(c.link.closed) {
			return 0, errClosed
		}
		if isClosed(timeout) {
			return 0, errTimeout
		}
		if c.link.put(p) {
			if waited {
				signal(c.link.writable) // this writer took the token of all who wait
			}
			return len(p), nil
		}
		select {
		case <-c.link.writable:
		case <-c.link.closed:
		case <-timeout:
		}
	}
}

// Close ends the engine's use of the session. It does not wait.
func (c *Conn) Close() error {
	c.link.close()
	return nil
}

// LocalAddr names the session, as RemoteAddr does.
func (c *Conn) LocalAddr() net.Addr { return c.addr }

// RemoteAddr is the address that ReadFrom returns.
func (c *Conn) RemoteAddr() net.Addr { return c.addr }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	c.read.set(t)
	c.write.set(t)
	return nil
}

// SetReadDeadline moves the moment at which ReadFrom gives up.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.read.set(t)
	return nil
}

// SetWriteDeadline moves the moment at which WriteTo gives up.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.write.set(t)
	return nil
}
