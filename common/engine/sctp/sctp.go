// Package sctp is the engine sctp: the library smux over one ordered stream of
// one SCTP association (github.com/pion/sctp, RFC 9260). The messages of a direction,
// one after the other, are a byte stream, where they begin means nothing, and in it
// are the frames of package mux. A packet with anything else than doc/protocol.md
// allows (section 6) is ignored.
//
// There is no handshake: each side behaves as if the INIT chunks of both had been
// exchanged before, as SNAP (draft-hancke-tsvwg-snap) does with tokens that travel
// out of band. Here both are constants.
package sctp

import (
	"encoding/binary"
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
	maxMessage = mtu - packetHeaderSize - dataHeaderSize

	// maxOutstanding is how many full messages may be on their way: 25 MB. 500
	// Mbit/s with a round trip of 200 ms are 12.5 MB, and half as much again waits
	// in the bottleneck and for an acknowledgement to leave. The library goes
	// through all that is outstanding for every batch it sends.
	maxOutstanding = 3072

	// maxAhead is how many messages the other side may be ahead of what was read: as
	// many as a well-behaved side has on their way, full ones and others. The library
	// counts bytes only.
	maxAhead = 2 * maxOutstanding

	// seen is a power of two above maxAhead: a bit for each message that may be held.
	seen = 8192

	// receiveBuffer in bytes is SCTP's own receive window, which stops a side whose
	// session is not read. It holds more than maxOutstanding messages, so that it
	// stops no retransmission, and fewer than maxAhead.
	receiveBuffer = 32 << 20

	// sessionCost is what a session takes in bytes, beside what it does in package
	// mux: three goroutines, a buffer for packets, and timers (TestSessionCost).
	sessionCost = 38 << 10

	// minWindow is the floor of SCTP's congestion window in bytes: the largest there
	// is, as congestion is the carrier's affair (TestLostOutage).
	minWindow = maxOutstanding * maxMessage

	// maxTimeout is the longest time in milliseconds between two looks of SCTP
	// at what has not been acknowledged. Two of them may pass before what a
	// carrier has lost for good goes again: the first brings the evidence, the
	// second uses it (see departs).
	maxTimeout = 2e3

	// What this package knows of SCTP's format (RFC 9260, section 3).
	packetHeaderSize = 12
	chunkHeaderSize  = 4
	dataHeaderSize   = chunkHeaderSize + 12
	sackHeaderSize   = chunkHeaderSize + 12
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
	// error with bytes that the other side has chosen, is silent. Checksums would cost
	// 1.3 s/GB of 6.0.
	options = []sctp.ClientOption{
		sctp.WithLoggerFactory(&logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}),
		sctp.WithEnableZeroChecksum(true),
		sctp.WithMTU(mtu),
		sctp.WithMaxMessageSize(maxMessage),
		sctp.WithMaxReceiveBufferSize(receiveBuffer),
		sctp.WithMinCwnd(minWindow),
		sctp.WithRTOMax(maxTimeout),
	}
)

// inCost is what the library takes for a message that was not read, in bytes, and
// outCost for one that was not acknowledged, of which it has two copies
// (TestHeldIsMemory, TestHeldUnacknowledged, TestHeldBehindGap). It drops what was
// read a little late: a quarter as many messages as wait, and 192, may be held beyond
// that.
func inCost(size int) int  { return size + 275 }
func outCost(size int) int { return 2*size + 230 }

func token(tag uint32) []byte {
	p := []byte{1, 0, 0, 28} // INIT, 28 bytes
	p = binary.BigEndian.AppendUint32(p, tag)
	p = binary.BigEndian.AppendUint32(p, receiveBuffer)
	p = append(p, 0, 1, 0, 1) // streams, outbound and inbound
	p = binary.BigEndian.AppendUint32(p, firstTSN)
	return append(p, 0x80, 0x01, 0, 8, 0, 0, 0, 1) // zero checksum acceptable (RFC 9653)
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
