// Package quic is the engine of that name: QUIC version 1 (RFC 9000) by the
// library quic-go, with nothing between its packets and the carrier. What a datagram,
// the first byte of a stream and the application's error codes say is in
// doc/protocol.md, section 6. A session has a carrier of its own and one connection,
// so there are no connection IDs, and the server refuses a second handshake.
//
// A reset overtakes what was written before it: quic-go v0.65.0 throws away what
// has arrived and was not read yet as soon as RESET_STREAM arrives, and sends
// nothing of the stream again that was lost, as RFC 9000 (sections 3.1 and 3.2)
// allows.
//
// QUIC cannot be had without TLS, and the carrier has sealed the session already. So
// TLS proves one thing: both sides derive the same Ed25519 key from the carrier's
// Binding, and QUIC's two ends are then the sealed session's two ends. Without a
// binding the key is the same for everybody, and TLS authenticates nobody: that is
// safe only over a carrier that authenticates its datagrams by itself, and on a test
// bench.
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

	// packetSize is the size in bytes of a full packet. The library's buffers hold
	// 1452, but its pacer counts in packets of 1280 whatever it is told
	// (newPacer in its internal/congestion), and spins between two larger ones.
	packetSize = 1280

	// initialWindow is the receive window of every stream in bytes before its
	// reader has shown to be fast: 500 Mbit/s with a round trip of 200 ms. It is
	// doubled while half of it is read within two round trips.
	initialWindow = 12 << 20

	// maxWindow is the largest window of a stream in bytes: what is on its way
	// at 500 Mbit/s and 200 ms while half as much again waits in the bottleneck
	// and for an acknowledgement, and a third more, because the other side is
	// told of a quarter at a time.
	maxWindow = 24 << 20

	// sessionWindow is how many bytes the streams of a session may hold unread.
	// When it is used up every stream stands still, so it must not be reached
	// by streams whose readers have stopped: 21 that were never read, or 10
	// that were read at full speed before.
	sessionWindow = 256 << 20

	// Where memory is short a session is promised three quarters of what is left at
	// its start, leastSession bytes in any case, and a stream one streamPart of that,
	// for good: what nobody reads must not use up three quarters of what the library
	// shares among all, since it tells of room when one quarter was read.
	// Until it is read, what came takes a third more than it says: a packet's buffer.
	leastSession = 1 << 20
	streamPart   = 96
)

// config is the same on both sides. The library does not change it.
var config = &quic.Config{
	Versions:                       []quic.Version{quic.Version1},
	HandshakeIdleTimeout:           never,
	MaxIdleTimeout:                 never,
	InitialStreamReceiveWindow:     initialWindow,
	MaxStreamReceiveWindow:         maxWindow,
	InitialConnectionReceiveWindow: sessionWindow,
	MaxConnectionReceiveWindow:     sessionWindow,
	MaxIncomingStreams:             engine.MaxStreams, // Open waits for the next one
	MaxIncomingUniStreams:          -1,                // none
	InitialPacketSize:              packetSize,
	DisablePathMTUDiscovery:        true,
}

// within returns the configuration of a session that may have left bytes promised,
// and how many of them it takes.
func within(left int) (c *quic.Config, promised int) {
	c = config.Clone()
	session := max(left/16*9, leastSession)
	if session < sessionWindow {
		c.InitialConnectionReceiveWindow, c.MaxConnectionReceiveWindow = uint64(session), uint64(session)
		c.InitialStreamReceiveWindow = uint64(session / streamPart)
		c.MaxStreamReceiveWindow = c.InitialStreamReceiveWindow
	}
	return c, min(session, sessionWindow) / 3 * 4
}

// Engine is the engine quic.
type Engine struct{}

func (Engine) Name() string                                     { return "quic" }
func (Engine) Multiplexes() bool                                { return true }
func (Engine) Client(pc engine.Carrier) (engine.Session, error) { return newClient(pc), nil }
func (Engine) Server(pc engine.Carrier) (engine.Session, error) { return newServer(pc), nil }
