// Package quic is the engine of that name: QUIC version 1 (RFC 9000) by the
// library quic-go, with nothing between its packets and the carrier. What a datagram,
// the first byte of a stream and the application's error codes say is in
// doc/protocol.md, section 6. A session has a carrier of its own and one connection,
// so there are no connection IDs, and the server refuses a second handshake.
//
// A reset overtakes what was written before it: quic-go throws away what was not
// read when RESET_STREAM arrives, as RFC 9000 (section 3.2) allows.
//
// TLS, which QUIC cannot be had without, proves that its two ends are those of the
// sealed session: both derive the same key from the carrier's Binding. Without a
// binding it authenticates nobody. That is safe only over a carrier that authenticates
// its datagrams by itself, and on a test bench.
package quic

import (
	"time"

	"github.com/quic-go/quic-go"

	"turbotunnel/common/engine"
)

const (
	// never is longer than every session: it is the carrier that knows whether
	// the other side is alive. Twice this must fit into a time.Duration.
	never = 10 * 365 * 24 * time.Hour

	// packetSize is the size in bytes of a full packet: that in which the library's
	// pacer counts (doc/engines.md, quic-go).
	packetSize = 1280

	// The receive window of a stream in bytes is initialWindow, 500 Mbit/s with a
	// round trip of 200 ms, and doubled up to maxWindow while half of it is read within
	// two: half as much again waits in the bottleneck and for an acknowledgement, and
	// a third more as the other side is told of a quarter at a time.
	initialWindow = 12 << 20
	maxWindow     = 24 << 20

	// sessionWindow is how many bytes the streams of a session may hold unread. At
	// that all stand still, so streams whose readers have stopped must not reach it:
	// 21 that were never read, or 10 that were read at full speed before.
	sessionWindow = 256 << 20

	// Where memory is short a session is promised three quarters of what is left at
	// its start, leastSession bytes in any case, and a stream one streamPart of that, for
	// good: the library tells of room when a quarter of the session's window was read, so
	// that much must be left by all the streams that nobody reads.
	// Until it is read, what came takes a third more than it says: a packet's buffer.
	leastSession = 1 << 20
	streamPart   = 96
)

// config is that of a side whose streams may hold session bytes unread.
func config(session int) *quic.Config {
	first, most := initialWindow, maxWindow
	if session < sessionWindow {
		first, most = session/streamPart, session/streamPart
	}
	return &quic.Config{
		Versions:                       []quic.Version{quic.Version1},
		HandshakeIdleTimeout:           never,
		MaxIdleTimeout:                 never,
		InitialStreamReceiveWindow:     uint64(first),
		MaxStreamReceiveWindow:         uint64(most),
		InitialConnectionReceiveWindow: uint64(session),
		MaxConnectionReceiveWindow:     uint64(session),
		MaxIncomingStreams:             engine.MaxStreams, // Open waits for the next one
		MaxIncomingUniStreams:          -1,                // none
		InitialPacketSize:              packetSize,
		DisablePathMTUDiscovery:        true,
	}
}

// Engine is the engine quic.
type Engine struct{}

func (Engine) Name() string                                     { return "quic" }
func (Engine) Multiplexes() bool                                { return true }
func (Engine) Client(pc engine.Carrier) (engine.Session, error) { return newClient(pc), nil }
func (Engine) Server(pc engine.Carrier) (engine.Session, error) { return newServer(pc), nil }
