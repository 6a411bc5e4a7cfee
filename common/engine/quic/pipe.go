package quic

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

// batch is how many packets may wait in the library, which drops the 257th
// (MaxConnUnprocessedPackets in its internal/protocol).
const batch = 64

// farewell is the datagram that ends a session.
var farewell = []byte{0}

// pipe is the carrier as the library sees it. It never fails: when the carrier
// does, or when the other side ends the session, it tells the session and says
// nothing more, so that what the library has received can still be read.
type pipe struct {
	engine.Carrier
	session *session
	closed  chan struct{} // by the session's Close

	given uint64 // packets, minus those that were never counted; for the library's one reader
}

func (p *pipe) ReadFrom(b []byte) (int, net.Addr, error) {
	p.pace()
	n, from, err := p.Carrier.ReadFrom(b)
	switch {
	case err != nil:
		p.session.lost(fmt.Errorf("reading from the carrier: %w", err))
	case bytes.Equal(b[:n], farewell):
		p.session.lost(errors.New("the other side has ended the session"))
	default:
		p.given++
		return n, from, nil
	}
	<-p.closed
	return 0, nil, net.ErrClosed
}

func (p *pipe) WriteTo(b []byte, to net.Addr) (int, error) {
	if _, err := p.Carrier.WriteTo(b, to); err != nil {
		p.session.lost(fmt.Errorf("writing to the carrier: %w", err))
	}
	return len(b), nil
}

// SetReadBuffer and SetWriteBuffer do nothing: a carrier has its own bounds. The
// library complains in the process' log about a PacketConn without them.
func (*pipe) SetReadBuffer(int) error  { return nil }
func (*pipe) SetWriteBuffer(int) error { return nil }

// pace waits while the library has more packets than it should keep, some 5 ms at
// most: packets that it does not count must not stop the session.
func (p *pipe) pace() {
	for range 250 {
		if !half.IsClosed(p.session.ready) || p.given < p.session.conn.ConnectionStats().PacketsReceived+batch {
			return // a handshake is a few packets
		}
		time.Sleep(20 * time.Microsecond)
	}
	p.given -= batch
}
