package quic

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

const (
	// batch is how many packets the library is given before the pipe looks
	// whether it keeps up, and how many may wait in it. It drops the 257th
	// (MaxConnUnprocessedPackets in its internal/protocol).
	batch = 64

	// paceStep is how long the pipe waits before it looks again, and paceLimit
	// how long in all: packets that the library does not count must not stop
	// the session.
	paceStep  = 20 * time.Microsecond
	paceLimit = 5 * time.Millisecond
)

var (
	errPeerClosed = errors.New("the other side has ended the session")
	errPipeClosed = fmt.Errorf("quic: pipe: %w", net.ErrClosed)
)

// farewell is the datagram that ends a session.
var farewell = []byte{0}

// pipe is the carrier as the library sees it. It never fails: when the carrier
// does, or when the other side ends the session, it tells the session and is
// silent, so that what the library has received can still be read.
type pipe struct {
	engine.Carrier
	fail   func(error)               // ends the session
	conn   atomic.Pointer[quic.Conn] // nil before the handshake is done
	ended  <-chan struct{}           // closed when the session has ended
	closed chan struct{}

	// For the library's one reader:
	given   uint64 // packets, minus those that never came to be counted
	counted uint64 // packets of those that the library had processed when asked last
}

func (p *pipe) ReadFrom(b []byte) (int, net.Addr, error) {
	p.pace()
	n, from, err := p.Carrier.ReadFrom(b)
	switch {
	case err == nil && n == len(farewell) && b[0] == farewell[0]:
		p.fail(errPeerClosed)
	case err == nil:
		p.given++
		return n, from, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, nil, err // the library has set it
	default:
		p.fail(fmt.Errorf("reading from the carrier: %w", err))
	}
	<-p.closed
	return 0, nil, errPipeClosed
}

func (p *pipe) WriteTo(b []byte, to net.Addr) (int, error) {
	if half.IsClosed(p.ended) {
		return len(b), nil
	}
	if _, err := p.Carrier.WriteTo(b, to); err != nil {
		p.fail(fmt.Errorf("writing to the carrier: %w", err))
	}
	return len(b), nil
}

// SetReadBuffer and SetWriteBuffer do nothing: a carrier has its own bounds. The
// library complains in the process' log about a PacketConn without them.
func (*pipe) SetReadBuffer(int) error  { return nil }
func (*pipe) SetWriteBuffer(int) error { return nil }

// close ends the carrier and unblocks all callers. It is called once.
func (p *pipe) close() {
	close(p.closed)
	p.Carrier.Close()
}

// pace waits while the library has more packets than it should keep.
func (p *pipe) pace() {
	conn := p.conn.Load()
	if conn == nil {
		return // a handshake is a few packets
	}
	for waited := time.Duration(0); p.given-p.counted >= batch; waited += paceStep {
		p.counted = min(conn.ConnectionStats().PacketsReceived, p.given)
		switch {
		case p.given-p.counted < batch:
		case waited >= paceLimit:
			p.given = p.counted
		case waited == 0:
			runtime.Gosched()
		default:
			time.Sleep(paceStep)
		}
	}
}
