// Package measure finds out what a path carries, with nothing behind the server: a
// session whose "engine" is Name leads to no stream, but to a server that sends
// back, throws away or makes up what it is asked for. The carrier below does what
// it does for any session, so that its rates are those of one.
//
// A datagram begins with a byte that says what it is:
//
//	E  echo     the server sends the datagram back
//	D  discard  it only counts the bytes
//	C  count    it answers C and the bytes that it has thrown away (8, big endian)
//	S  source   the next 4 bytes (big endian) say how many bytes of datagrams it
//	            makes up, each beginning with D
//
// Anything else ends the session, and so does who asks for more than Most: a
// measurement must not be worth more to anybody than the traffic that it stands
// for.
package measure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// Name is what a client says in place of an engine's.
const Name = "check"

const (
	// Most is how many bytes a session may have made up for it: a hundred times
	// what tells a slow path from a fast one.
	Most = 64 << 20

	// piece is the size in bytes of the datagrams that carry nothing: as large as
	// every carrier takes.
	piece = 8 << 10

	// patience is how long a server writes to a client that takes nothing.
	patience = time.Minute
)

// What a datagram is.
const (
	echo    = 'E'
	discard = 'D'
	count   = 'C'
	source  = 'S'
)

var errMalformed = errors.New("measure: not a datagram of this protocol")

// Serve answers what comes on pc until its session ends, and closes it. The error
// says why; it matches net.ErrClosed where the client has done.
func Serve(pc net.PacketConn) error {
	defer pc.Close()
	var thrown uint64
	room := int64(Most)
	buf := make([]byte, piece)
	for {
		n, peer, err := pc.ReadFrom(buf)
		if err != nil {
			return err
		}
		switch p := buf[:n]; {
		case n == 0:
			continue
		case p[0] == echo:
			err = write(pc, p, peer)
		case p[0] == discard:
			thrown += uint64(n)
		case p[0] == count && n == 1:
			err = write(pc, binary.BigEndian.AppendUint64([]byte{count}, thrown), peer)
		case p[0] == source && n == 5:
			asked := int64(binary.BigEndian.Uint32(p[1:]))
			if room -= asked; room < 0 {
				return fmt.Errorf("measure: more than %d bytes asked for", Most)
			}
			err = makeUp(pc, asked, peer)
		default:
			err = errMalformed
		}
		if err != nil {
			return err
		}
	}
}

func write(pc net.PacketConn, p []byte, peer net.Addr) error {
	if err := pc.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := pc.WriteTo(p, peer)
	return err
}

// makeUp writes so many bytes of datagrams.
func makeUp(pc net.PacketConn, bytes int64, peer net.Addr) error {
	p := make([]byte, piece)
	p[0] = discard
	for bytes > 0 {
		n := min(bytes, piece)
		if err := write(pc, p[:n], peer); err != nil {
			return err
		}
		bytes -= n
	}
	return nil
}

// A Client asks such a server. One method at a time may be called.
type Client struct {
	pc   net.PacketConn
	peer net.Addr
	sent uint64 // bytes to be thrown away
}

// NewClient returns a Client on a session's pipe, which it does not close.
func NewClient(pc net.PacketConn, peer net.Addr) *Client { return &Client{pc: pc, peer: peer} }

// Trip is how long an echo takes, within limit.
func (c *Client) Trip(limit time.Duration) (time.Duration, error) {
	begun := time.Now()
	if err := c.ask([]byte{echo}, limit); err != nil {
		return 0, err
	}
	_, err := c.await(echo)
	return time.Since(begun), err
}

// Download has at most so many bytes sent, for limit at most. It returns how many
// have come, and how long after the first ones the last ones came, or where some are
// missing the time has ended.
func (c *Client) Download(bytes int, limit time.Duration) (got int, took time.Duration, err error) {
	if err := c.ask(binary.BigEndian.AppendUint32([]byte{source}, uint32(bytes)), limit); err != nil {
		return 0, 0, err
	}
	var first time.Time
	buf := make([]byte, piece)
	for got < bytes {
		n, _, err := c.pc.ReadFrom(buf)
		if err != nil {
			if got == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				return got, took, err
			}
			return got, time.Since(first), nil
		}
		if first.IsZero() {
			first = time.Now()
		}
		got += n
		took = time.Since(first)
	}
	return got, took, nil
}

// Upload sends at most so many bytes, for limit at most, and returns how many have
// arrived, and how long that took with a round trip.
func (c *Client) Upload(bytes int, limit time.Duration) (sent int, took time.Duration, err error) {
	begun := time.Now()
	if err := c.pc.SetDeadline(begun.Add(limit)); err != nil {
		return 0, 0, err
	}
	p := make([]byte, piece)
	p[0] = discard
	for sent < bytes {
		if _, err := c.pc.WriteTo(p, c.peer); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return 0, 0, err
			}
			break
		}
		sent += len(p)
	}
	c.sent += uint64(sent)
	// What waits on the way has as long again to arrive.
	if err := c.ask([]byte{count}, limit+patience/4); err != nil {
		return 0, 0, err
	}
	answer, err := c.await(count)
	if err != nil {
		return 0, 0, err
	}
	if len(answer) != 9 || binary.BigEndian.Uint64(answer[1:]) > c.sent {
		return 0, 0, errMalformed
	}
	missing := c.sent - binary.BigEndian.Uint64(answer[1:])
	return sent - int(min(missing, uint64(sent))), time.Since(begun), nil
}

// ask writes p, and gives what follows so much time.
func (c *Client) ask(p []byte, limit time.Duration) error {
	if err := c.pc.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, err := c.pc.WriteTo(p, c.peer)
	return err
}

// await reads until a datagram of a kind comes.
func (c *Client) await(kind byte) ([]byte, error) {
	buf := make([]byte, piece)
	for {
		n, _, err := c.pc.ReadFrom(buf)
		if err != nil {
			return nil, err
		}
		if n > 0 && buf[0] == kind {
			return buf[:n], nil
		}
	}
}
