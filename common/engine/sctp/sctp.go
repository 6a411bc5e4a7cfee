// Package sctp is the engine sctp: many streams over one SCTP association
// (github.com/pion/sctp, RFC 9260).
//
// # On the wire
//
// A datagram is one SCTP packet of at most 8176 bytes. There is no handshake:
// each side behaves as if the INIT chunks of both had been exchanged before
// the first datagram, which is what SNAP (draft-hancke-tsvwg-snap) does with
// tokens that travel out of band. Here both are constants:
//
//	                      client    server
//	initiate tag          1         2
//	initial TSN           1         1
//	a_rwnd                64 MB     64 MB
//	streams, both ways    65535     65535
//	zero checksum         method 1 (RFC 9653), both
//	other extensions      none
//
// Each session has its own PacketConn and the carrier below seals what it
// moves, so there is nobody to tell apart and nobody to keep from guessing.
// Ports are 5000. All checksums are zero, the carrier has its own. Packets hold
// DATA, SACK and ABORT chunks only; one with another chunk, or with anything
// malformed, is ignored. DATA chunks are ordered and hold one whole message of
// 5 to 8148 bytes (flags 3); the payload protocol identifier is 0. A sender that
// has nothing more to say sets the I bit (8, RFC 7053), so that the
// acknowledgement is not delayed. At most 3072 DATA chunks may be outstanding:
// the receiver ignores a packet with a TSN that is 3072 or more above the number
// of messages it has delivered plus the initial TSN. An ABORT says that the
// sender has ended the session; it is sent once and may be lost.
//
// The engine's streams have 32-bit IDs of which each is used once. The messages
// of stream n travel on SCTP stream n mod 8, so that a lost datagram keeps back
// few of the others; SCTP streams are never reset, so that their 16-bit
// identifiers never have to be used again. A message concerns one stream.
// Numbers are most significant byte first, as in SCTP:
//
//	offset  size  field
//	0       1     flags
//	1       4     stream
//	5       8     with CREDIT only: the sender has consumed so many bytes of
//	              the stream (4 bytes, modulo 2^32), and its window is so many
//	              bytes (4 bytes), and what was taken for it besides
//	5|13    rest  bytes of the stream
//
//	flag  name    meaning
//	1     OPEN    the client opens the stream, with this first message of it
//	2     FIN     the sender's direction ends after this message's bytes
//	4     STOP    the sender reads no more of this stream and throws away what
//	              comes
//	8     CREDIT  consumed and window follow
//	16    TAKE    the sender has taken a piece of what was lent to it: the window
//	              that it has for this stream is 1 MB (2^20 bytes) larger, from
//	              this message's bytes on
//
// A message of stream 0 has flags 0 and 4 bytes more: the sender lends pieces of
// window, so many since the session's start (modulo 2^32).
//
// The client opens streams. On each SCTP stream their IDs ascend, from 1.
// In each direction of a stream at most a window of bytes may be sent beyond
// what was reported consumed; before the first CREDIT the window is
// InitialWindow, 0 bytes consumed. This and not SCTP's receive window, which
// all streams share, stops a sender whose bytes are not read. A side forgets a
// stream when it has sent FIN or received STP, and received FIN or sent STOP;
// messages for a stream that was forgotten are ignored. Unknown flags, a message
// without content, bytes or TAKE after FIN, a stream never opened or on the wrong
// SCTP stream, bytes beyond the window, credit for what was never sent, pieces
// that were not lent, a loan of less than before, and more than 8192 streams at a
// time end the session.
//
// So that a new stream need not wait a round trip for a window that the path
// needs, each side lends the other one window in advance, for whatever streams
// come to need it: it says so with the first stream, and again when much has been
// taken or given back. A stream takes a piece when its window is used up and it
// has more to send, as long as it has taken fewer than 16 and fewer than twice as
// many as are left. The side that lends counts a piece that was taken as part of
// that stream's window until it forgets the stream; a piece taken for a stream
// that it has forgotten is free again at once. Where a stream may take no more,
// its window grows if its reader is fast, by what is not lent.
package sctp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"

	"github.com/pion/sctp"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/duplex"
)

const (
	// mtu is the largest packet in bytes. pion/sctp reads into 8192 bytes and
	// hangs without a word on more; with 16 bytes less two packets and their
	// lengths fit into one record of the carrier (16360 bytes).
	mtu = 8176

	// maxMessage is the largest message in bytes: a packet's common header and
	// the header of a DATA chunk are what else is in the packet.
	maxMessage = mtu - packetHeaderSize - dataHeaderSize

	// lanes is the number of SCTP streams in use. The library goes through all of
	// them for every chunk that arrives, so they are few.
	lanes = 8

	// maxOutstanding is how many messages may be on their way: 25 MB of full
	// ones. 500 Mbit/s with a round trip of 200 ms are 12.5 MB, and half as much
	// again waits in the bottleneck and for an acknowledgement to leave. It
	// also bounds what the other side can make this one hold out of order, and
	// keeps the library's scans of what is outstanding short. Its own limits lie
	// far above: 40000 TSNs, and half of the 16-bit stream sequence numbers.
	maxOutstanding = 3072

	// receiveBuffer in bytes is more than maxOutstanding messages hold, so that
	// SCTP's own receive window never stops a sender or a retransmission.
	receiveBuffer = 64 << 20

	// minWindow is the floor of SCTP's congestion window in bytes. The carrier
	// below has its own congestion control and blocks; what it loses it
	// repairs. So the window is the largest there is, from the start.
	minWindow = maxOutstanding * maxMessage

	// maxTimeout is the longest time in milliseconds between two looks of SCTP
	// at what has not been acknowledged. Two of them may pass before what a
	// carrier has lost for good goes again: the first look brings the evidence,
	// the second uses it (see resend). A look that finds nothing costs little.
	maxTimeout = 2e3

	headerSize = 5 // bytes
	creditSize = 8 // bytes
	lendSize   = 4 // bytes

	flagOpen   = 1
	flagFin    = 2
	flagStop   = 4
	flagCredit = 8
	flagTake   = 16
	flagsKnown = flagOpen | flagFin | flagStop | flagCredit | flagTake
)

const (
	// InitialWindow is the receive window of every stream in bytes before the
	// first CREDIT.
	InitialWindow = 256 << 10

	// maxWindow is the largest window of a stream in bytes: what may be
	// outstanding, and as the other side is told of a quarter at a time, a third
	// more.
	maxWindow = 32 << 20

	// windowBudget is how many bytes the windows of a session may grow in
	// total: two streams at full speed at once, or more at less.
	windowBudget = 64 << 20

	// maxUnread is how many bytes the streams of a session may hold unread. A
	// thousand streams whose readers have all stopped stay below.
	maxUnread = 256 << 20

	// maxStreams is how many streams a client may have open at a time. The
	// server may learn late of those that are closed and allows twice as many.
	maxStreams = 4096

	// openDelay is how long the opening of a stream waits for its first bytes,
	// so that a write which follows at once goes in the same message.
	openDelay = 2 * time.Millisecond

	// farewellTime is how long Close waits for a blocked carrier before it
	// gives up telling the other side.
	farewellTime = 100 * time.Millisecond

	// defaultRTT in place of a round-trip time that has not been measured yet.
	defaultRTT = 200 * time.Millisecond
)

var (
	errFormat     = errors.New("sctp: malformed message")
	errStream     = errors.New("sctp: message for a stream never opened")
	errWindow     = errors.New("sctp: the other side ignores flow control")
	errPeerClosed = errors.New("the other side has ended the session")
	errTooMany    = fmt.Errorf("sctp: %d streams are open on this session; close some or open another session", maxStreams)
	errUsedUp     = errors.New("sctp: all stream IDs of this session are used up; open another session")
	errServerOpen = errors.New("sctp: only the client opens streams")
	errClient     = errors.New("sctp: only the server accepts streams")
)

// Engine is the engine sctp.
type Engine struct{}

// Name implements engine.Engine.
func (Engine) Name() string { return "sctp" }

// Multiplexes implements engine.Engine.
func (Engine) Multiplexes() bool { return true }

// Client implements engine.Engine.
func (Engine) Client(pc net.PacketConn) (engine.Session, error) { return start(pc, true) }

// Server implements engine.Engine.
func (Engine) Server(pc net.PacketConn) (engine.Session, error) { return start(pc, false) }

func start(pc net.PacketConn, client bool) (engine.Session, error) {
	s, err := newSession(pc, client)
	if err != nil {
		pc.Close()
		return nil, fmt.Errorf("sctp: %w", err)
	}
	return s, nil
}

// session implements engine.Session. It is safe for concurrent use.
type session struct {
	conn   *conn
	assoc  *sctp.Association
	sctp   [lanes]*sctp.Stream
	spare  *sctp.Stream // nothing is ever sent on it
	client bool
	done   chan struct{}
	once   sync.Once // Close

	mu       sync.Mutex // guards what follows and what conn says
	err      error      // why the session has ended; nil: it has not
	streams  map[uint32]*stream
	lastID   [lanes]uint32        // of the stream opened last on each SCTP stream; 0: none
	nextID   uint64               // of the stream to be opened next, on the client
	opening  []*stream            // not announced yet, for openDelay at most, in ascending order
	hold     *time.Timer          // ends that; nil before the first stream
	accepts  []*stream            // opened by the client, not yet accepted
	accepted sync.Cond            // accepts, or the end of the session
	urgent   fifo                 // streams with something else than bytes to say
	bulk     fifo                 // streams with bytes or a FIN that may be sent
	budget   duplex.Budget        // by which windows may still grow
	loan     duplex.Loan          // of the other side's budget
	refused  map[*stream]struct{} // streams that it is too small for
	unread   int                  // bytes in all streams
	buf      [maxMessage]byte
}

func newSession(pc net.PacketConn, client bool) (*session, error) {
	s := &session{
		client:  client,
		done:    make(chan struct{}),
		streams: make(map[uint32]*stream),
		nextID:  1,
		budget:  duplex.Budget{Free: windowBudget},
		refused: make(map[*stream]struct{}),
	}
	s.urgent.class, s.bulk.class = urgent, bulk
	s.accepted.L = &s.mu
	s.conn = newConn(pc, s)
	local, remote := clientToken, serverToken
	if !client {
		local, remote = remote, local
	}
	var err error
	s.assoc, err = sctp.ClientWithOptions( // the server's options know no tokens
		sctp.WithSNAP(local, remote),
		sctp.WithNetConn(s.conn),
		sctp.WithLoggerFactory(silence{}),
		sctp.WithEnableZeroChecksum(true),
		sctp.WithMTU(mtu),
		sctp.WithMaxMessageSize(maxMessage),
		sctp.WithMaxReceiveBufferSize(receiveBuffer),
		sctp.WithMinCwnd(minWindow),
		sctp.WithRTOMax(maxTimeout),
	)
	if err != nil {
		return nil, err
	}
	defer close(s.conn.ready)
	for i := range s.sctp {
		if s.sctp[i], err = s.assoc.OpenStream(uint16(i), sctp.PayloadTypeUnknown); err != nil {
			return nil, err
		}
		// A Read after its deadline returns what there is without blocking, so
		// that the goroutine which brought a packet can deliver it.
		s.sctp[i].SetReadDeadline(time.Unix(1, 0))
	}
	for _, st := range s.sctp {
		st.Read(nil) // returns when the deadline has taken effect
	}
	s.spare, err = s.assoc.OpenStream(lanes, sctp.PayloadTypeUnknown)
	return s, err
}

// Open implements engine.Session.
func (s *session) Open(ctx context.Context) (engine.Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.client:
		return nil, errServerOpen
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case s.err != nil:
		return nil, s.err
	case len(s.streams) >= maxStreams:
		return nil, errTooMany
	case s.nextID > math.MaxUint32:
		return nil, errUsedUp
	}
	st := s.newStream(uint32(s.nextID))
	s.nextID++
	st.openDue = true
	s.opening = append(s.opening, st)
	switch {
	case s.hold == nil:
		s.hold = time.AfterFunc(openDelay, s.announce)
	case len(s.opening) == 1:
		s.hold.Reset(openDelay)
	}
	return st, nil
}

// announce ends the time in which openings are held back. It takes mu.
func (s *session) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.opening {
		s.urgent.push(st)
	}
	s.opening = nil
	s.pump()
}

// Accept implements engine.Session.
func (s *session) Accept(ctx context.Context) (engine.Stream, error) {
	if s.client {
		return nil, errClient
	}
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.accepted.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.err == engine.ErrClosed:
			return nil, engine.ErrClosed
		case len(s.accepts) > 0:
			st := s.accepts[0]
			s.accepts[0] = nil
			s.accepts = s.accepts[1:]
			return st, nil
		case s.err != nil:
			return nil, s.err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		s.accepted.Wait()
	}
}

// Done implements engine.Session.
func (s *session) Done() <-chan struct{} { return s.done }

// Close implements engine.Session. The library has no way to wait for its
// writer and its timer; when Close returns neither touches pc again, and both
// are about to end.
func (s *session) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		tell := s.err == nil
		s.end(engine.ErrClosed)
		s.mu.Unlock()
		s.conn.close(tell)
		s.assoc.Close()
	})
	return nil
}

// Stats returns what the session has sent so far.
func (s *session) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.stats
}

// What follows needs mu held.

// fail ends the session because of err.
func (s *session) fail(err error) { s.end(fmt.Errorf("%w: %w", engine.ErrReset, err)) }

// end ends the session; err is what its streams return from now on. Only the
// first call counts.
func (s *session) end(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	for _, st := range s.streams {
		st.Abort(err)
	}
	clear(s.streams)
	clear(s.refused)
	s.opening = nil
	if s.hold != nil {
		s.hold.Stop()
	}
	if s.conn.ackTimer != nil {
		s.conn.ackTimer.Stop()
	}
	s.urgent, s.bulk = fifo{class: urgent}, fifo{class: bulk}
	s.conn.forget()
	s.accepted.Broadcast()
	close(s.done)
}

// pump gives messages to SCTP as far as the carrier keeps up.
func (s *session) pump() {
	for s.err == nil && s.conn.room() {
		st := s.urgent.pop()
		if st == nil && s.budget.Due() {
			s.lend()
			continue
		}
		if st == nil {
			if st = s.bulk.pop(); st == nil {
				return
			}
			if st.holds() {
				continue
			}
		}
		if n := st.fill(s.buf[:]); n > 0 {
			s.conn.given(st, n)
			s.give(st.id, n)
		}
		st.submit()
		st.forgetIfOver()
	}
}

// lend tells the other side how many pieces of window are lent to it.
func (s *session) lend() {
	clear(s.buf[:headerSize])
	binary.BigEndian.PutUint32(s.buf[headerSize:], s.budget.Tell())
	s.conn.given(nil, headerSize+lendSize)
	s.give(0, headerSize+lendSize)
}

// give gives SCTP the message of a stream that is in the first n bytes of buf.
func (s *session) give(id uint32, n int) {
	if _, err := s.sctp[id%lanes].WriteSCTP(s.buf[:n], sctp.PayloadTypeUnknown); err != nil {
		s.fail(err)
	}
}

// wake makes SCTP send what it was given. When an acknowledgement is late
// (twice the round-trip time) it takes the path for congested, puts out as
// little as one packet at a time and then sleeps until the next one comes.
func (s *session) wake() { s.spare.Write(nil) }

// deliver takes the messages that have arrived on the SCTP streams in which,
// one bit for each.
func (s *session) deliver(which uint32) {
	for lane := range s.sctp {
		for which&(1<<lane) != 0 && s.err == nil {
			n, err := s.sctp[lane].Read(s.buf[:])
			if err != nil {
				break // there is no more, or the association has ended
			}
			s.conn.delivered++
			if err := s.handle(uint32(lane), s.buf[:n]); err != nil {
				s.fail(err)
			}
		}
	}
	s.pump()
}

// handle handles one message of an SCTP stream.
func (s *session) handle(lane uint32, p []byte) error {
	if len(p) < headerSize || p[0]&^flagsKnown != 0 {
		return errFormat
	}
	flags, id := p[0], binary.BigEndian.Uint32(p[1:])
	p = p[headerSize:]
	if id == 0 {
		if lane != 0 || flags != 0 || len(p) != lendSize {
			return errFormat
		}
		return s.lent(binary.BigEndian.Uint32(p))
	}
	credit := p
	if flags&flagCredit != 0 {
		if len(p) < creditSize {
			return errFormat
		}
		p = p[creditSize:]
	}
	if flags == 0 && len(p) == 0 || id%lanes != lane {
		return errFormat
	}
	if flags&flagOpen != 0 {
		if err := s.opened(lane, id); err != nil {
			return err
		}
	}
	st := s.streams[id]
	if st == nil {
		if s.client && uint64(id) >= s.nextID || !s.client && id > s.lastID[lane] {
			return errStream
		}
		if flags&flagTake != 0 { // forgotten, like all else for this stream
			return s.taken(nil)
		}
		return nil
	}
	if flags&flagTake != 0 {
		if err := s.taken(st); err != nil {
			return err
		}
	}
	if flags&flagCredit != 0 {
		if err := st.credited(binary.BigEndian.Uint32(credit), binary.BigEndian.Uint32(credit[4:])); err != nil {
			return err
		}
	}
	if len(p) > 0 {
		if err := st.received(p); err != nil {
			return err
		}
	}
	if flags&flagFin != 0 {
		if st.HasEnd() {
			return errFormat
		}
		st.End(io.EOF)
	}
	if flags&flagStop != 0 {
		st.Stopped()
	}
	st.forgetIfOver()
	return nil
}

// opened handles an OPEN.
func (s *session) opened(lane, id uint32) error {
	if s.client || id <= s.lastID[lane] {
		return errFormat
	}
	if len(s.streams) >= 2*maxStreams || len(s.accepts) >= 2*maxStreams {
		return errTooMany
	}
	s.lastID[lane] = id
	s.accepts = append(s.accepts, s.newStream(id))
	s.accepted.Signal()
	return nil
}

func (s *session) newStream(id uint32) *stream {
	local, remote := s.conn.addrs()
	st := &stream{session: s, id: id, peerWindow: InitialWindow, window: duplex.Window{Size: InitialWindow}}
	st.Stream = duplex.New(&s.mu, st, local, remote)
	s.streams[id] = st
	s.budget.Lend()
	return st
}

// lent handles the message of stream 0.
func (s *session) lent(limit uint32) error {
	more, ok := s.loan.Raise(limit)
	if !ok {
		return errWindow
	}
	if more {
		for st := range s.refused {
			st.submit()
		}
	}
	return nil
}

// taken handles a TAKE; st is nil if the stream was forgotten.
func (s *session) taken(st *stream) error {
	var w *duplex.Window
	if st != nil {
		if st.HasEnd() {
			return errFormat
		}
		w = &st.window
	}
	if !s.budget.Taken(w) {
		return errWindow
	}
	return nil
}

// rtt is the smoothed round-trip time, or defaultRTT.
func (s *session) rtt() time.Duration {
	if measured := s.measuredRTT(); measured > 0 {
		return measured
	}
	return defaultRTT
}

// measuredRTT is the smoothed round-trip time; 0: there is none yet.
func (s *session) measuredRTT() time.Duration {
	return time.Duration(s.assoc.SRTT() * float64(time.Millisecond))
}
