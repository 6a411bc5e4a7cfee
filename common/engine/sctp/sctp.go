// Package sctp is the engine sctp: the library smux over one ordered stream of
// one SCTP association (github.com/pion/sctp, RFC 9260). The messages of a direction,
// one after the other, are a byte stream, where they begin means nothing, and in it
// are the frames of package mux. A chunk that is not as doc/protocol.md says (section
// 6) is ignored.
//
// The library was made for peers that mean well, and copies each packet several times.
// So it is given no content: it sends a byte in place of each message, and of one that
// has come it sees the head, as if it had been delivered before. It says what is
// acknowledged and what was lost; order, windows and buffers are this package's.
//
// There is no handshake: each side behaves as if the INIT chunks of both had been
// exchanged before, as SNAP (draft-hancke-tsvwg-snap) does with tokens that travel
// out of band. Here both are constants.
package sctp

import (
	"fmt"
	"io"

	"github.com/pion/logging"
	"github.com/pion/sctp"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/mux"
)

const (
	// mtu is the largest packet in bytes. pion/sctp reads into 8192 bytes; with 16
	// less two packets and their lengths fit into one record of the carrier (16360).
	mtu        = 8176
	maxMessage = mtu - messageAt

	// maxOutstanding is how many messages may be on their way: 25 MB. 500 Mbit/s with
	// a round trip of 200 ms are 12.5 MB, and half as much again waits in the
	// bottleneck and for an acknowledgement to leave. The library goes through all
	// that is outstanding for every batch it sends.
	maxOutstanding = 3072

	// A side that is not read stops the other one after receiveBuffer bytes, SCTP's
	// window, which is more than may be on their way, so that it stops no
	// retransmission. Small messages it has at most maxAhead of: twice as many as may
	// be on their way.
	receiveBuffer = 32 << 20
	maxAhead      = 2 * maxOutstanding

	// An acknowledgement waits for ackEvery messages, unless there is a gap, or the last
	// one asks for it, or one comes again: over HTTP each may be a request.
	ackEvery = 16

	// What a session takes in bytes, beside what it does in package mux, and what a
	// message takes besides its content that was not read, and one that was not
	// acknowledged, of which the library has a note (TestSessionCost, TestHeldIsMemory,
	// TestHeldUnacknowledged).
	sessionCost = 29 << 10
	inCost      = 50
	outCost     = 260

	// maxTimeout is the longest time in milliseconds between two looks of SCTP at what
	// has not been acknowledged. Two of them may pass before what a carrier has lost
	// for good goes again: the first brings the evidence, the second uses it.
	maxTimeout = 2e3

	// What this package knows of SCTP's format (RFC 9260, section 3).
	packetHeaderSize = 12
	chunkHeaderSize  = 4
	dataHeaderSize   = chunkHeaderSize + 12
	sackHeaderSize   = chunkHeaderSize + 12
	messageAt        = packetHeaderSize + dataHeaderSize // in a packet
	chunkData        = 0
	chunkSack        = 3
	chunkAbort       = 6
	wholeMessage     = 3 // flags of a DATA chunk that is ordered and not a fragment
	answerAtOnce     = 8 // flag of one whose SACK shall not wait for another (RFC 7053)
	firstTSN         = 1
)

var (
	// clientToken and serverToken are the INIT chunks taken for exchanged.
	clientToken, serverToken = token(1), token(2)

	// farewell is the packet that ends a session.
	farewell = []byte{0x13, 0x88, 0x13, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, chunkAbort, 0, 0, 4}

	// options are those of every association. The log, which would go to standard
	// error with bytes that the other side has chosen, is silent.
	options = []sctp.ClientOption{
		sctp.WithLoggerFactory(&logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}),
		sctp.WithEnableZeroChecksum(true),
		sctp.WithMTU(mtu),
		sctp.WithRTOMax(maxTimeout),
	}
)

func token(tag byte) []byte {
	return []byte{
		1, 0, 0, 28, 0, 0, 0, tag, // INIT, 28 bytes
		receiveBuffer >> 24, 0, 0, 0, 0, 1, 0, 1, // one stream each way
		0, 0, 0, firstTSN, 0x80, 0x01, 0, 8, 0, 0, 0, 1, // zero checksum acceptable (RFC 9653)
	}
}

// Engine is the engine sctp.
type Engine struct{}

func (Engine) Name() string                                     { return "sctp" }
func (Engine) Multiplexes() bool                                { return true }
func (Engine) Client(pc engine.Carrier) (engine.Session, error) { return start(pc, true) }
func (Engine) Server(pc engine.Carrier) (engine.Session, error) { return start(pc, false) }

func start(pc engine.Carrier, client bool) (engine.Session, error) {
	c, err := newConn(pc, client)
	if err != nil {
		pc.Close()
		return nil, fmt.Errorf("sctp: %w", err)
	}
	return mux.New(pc, c, client), nil
}
