// Package kcpsmux is the engine kcp-smux: many streams over one KCP session.
//
// Package arq carries the segments; its comment describes the datagrams. This
// package says what is in a segment: frames with the layout, the stream IDs
// and the flow control of smux version 2 (github.com/xtaci/smux). The library
// of that name is not used, doc/engines.md says why.
//
// # On the wire
//
// A segment holds one or more whole frames, one after the other; a frame never
// crosses from one segment to the next. Numbers are least significant byte
// first.
//
//	offset  size  field
//	0       1     version, 2
//	1       1     command
//	2       2     length of the body in bytes
//	4       4     stream
//	8             body
//
//	command  name  body     meaning
//	0        SYN   0        the client opens a stream
//	1        FIN   0        the sender's direction of the stream ends here
//	2        PSH   1–1492   bytes of the stream
//	3        NOP   0        nothing
//	4        UPD   8        the sender has consumed so many bytes of the stream
//	                        (4 bytes, modulo 2^32), and its window is so many
//	                        bytes (4 bytes), and what was taken for it besides
//	5        STP   0        the sender reads no more of this stream and throws
//	                        away what comes; not in smux
//	6        LND   4        on stream 0: the sender lends pieces of window, so
//	                        many since the session's start (modulo 2^32); not in
//	                        smux
//	7        TAK   0        the sender has taken a piece of what was lent to it:
//	                        the window that it has for this stream is 1 MB (2^20
//	                        bytes) larger; not in smux
//
// Streams are opened by the client, with odd IDs in ascending order, each used
// once. In each direction of each stream at most a window of bytes may be sent
// beyond what was reported consumed; before the first UPD the window is
// InitialWindow, 0 bytes consumed. A side forgets a stream when it has sent FIN
// or received STP, and received FIN or sent STP; frames for a stream that was
// forgotten are ignored. A malformed frame, a frame for a stream never opened,
// bytes beyond the window, an UPD that consumes what was never sent, a TAK of
// more than was lent, or after FIN, an LND of less than before, and more than
// 8192 streams at a time end the session.
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
package kcpsmux

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

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/arq"
	"turbotunnel/common/engine/internal/duplex"
)

const (
	version    = 2
	headerSize = 8 // bytes
	updateSize = 8 // bytes of an UPD's body
	lendSize   = 4 // bytes of an LND's body

	cmdSYN = 0
	cmdFIN = 1
	cmdPSH = 2
	cmdNOP = 3
	cmdUPD = 4
	cmdSTP = 5
	cmdLND = 6
	cmdTAK = 7
)

const (
	// InitialWindow is the receive window of every stream in bytes before the
	// first UPD, as in smux.
	InitialWindow = 256 << 10

	// maxWindow is the largest window of a stream in bytes: what KCP itself may
	// have in flight, and as the other side is told of a quarter at a time, a
	// third more.
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
	// so that a write which follows at once goes in the same segment. As long
	// waits an LND, which acknowledgements go with.
	openDelay = 2 * time.Millisecond
)

var (
	errFormat     = errors.New("kcp-smux: malformed frame")
	errStream     = errors.New("kcp-smux: frame for a stream never opened")
	errWindow     = errors.New("kcp-smux: the other side ignores flow control")
	errTooMany    = fmt.Errorf("kcp-smux: %d streams are open on this session; close some or open another session", maxStreams)
	errUsedUp     = errors.New("kcp-smux: all stream IDs of this session are used up; open another session")
	errServerOpen = errors.New("kcp-smux: only the client opens streams")
	errClient     = errors.New("kcp-smux: only the server accepts streams")
)

// Engine is the engine kcp-smux.
type Engine struct{}

// Name implements engine.Engine.
func (Engine) Name() string { return "kcp-smux" }

// Multiplexes implements engine.Engine.
func (Engine) Multiplexes() bool { return true }

// Client implements engine.Engine.
func (Engine) Client(pc net.PacketConn) (engine.Session, error) { return newSession(pc, true), nil }

// Server implements engine.Engine.
func (Engine) Server(pc net.PacketConn) (engine.Session, error) { return newSession(pc, false), nil }

// buffers are for a segment's content while it is handled.
var buffers = sync.Pool{New: func() any { return new([arq.SegmentSize]byte) }}

// session implements engine.Session. It is safe for concurrent use.
type session struct {
	link   *arq.Link
	client bool

	// link.Mu guards what follows.
	streams  map[uint32]*stream   // those not over
	lastID   uint32               // of the stream opened last; 0: none
	accepts  []*stream            // opened by the client, not yet accepted
	accepted sync.Cond            // accepts, or the end of the session
	urgent   fifo                 // streams with a SYN, STP or UPD to send
	bulk     fifo                 // streams with bytes or a FIN that may be sent
	budget   duplex.Budget        // by which windows may still grow
	loan     duplex.Loan          // of the other side's budget
	refused  map[*stream]struct{} // streams that it is too small for
	unread   int                  // bytes in all streams
}

func newSession(pc net.PacketConn, client bool) *session {
	s := prepare(pc, client)
	s.link.Start()
	return s
}

// prepare makes a session that has not started yet.
func prepare(pc net.PacketConn, client bool) *session {
	s := &session{
		client:  client,
		streams: make(map[uint32]*stream),
		budget:  duplex.Budget{Free: windowBudget},
		refused: make(map[*stream]struct{}),
	}
	s.urgent.class, s.bulk.class = urgent, bulk
	s.link = arq.New(pc, s, arq.MaxWindow)
	s.accepted.L = &s.link.Mu
	return s
}

// Open implements engine.Session.
func (s *session) Open(ctx context.Context) (engine.Stream, error) {
	s.link.Mu.Lock()
	defer s.link.Mu.Unlock()
	switch {
	case !s.client:
		return nil, errServerOpen
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case s.link.Err() != nil:
		return nil, s.link.Err()
	case len(s.streams) >= maxStreams:
		return nil, errTooMany
	}
	switch s.lastID {
	case 0:
		s.lastID = 1
	case math.MaxUint32:
		return nil, errUsedUp
	default:
		s.lastID += 2
	}
	st := s.newStream(s.lastID)
	st.synDue = true
	s.urgent.push(st)
	s.link.Ready(openDelay)
	return st, nil
}

// Accept implements engine.Session.
func (s *session) Accept(ctx context.Context) (engine.Stream, error) {
	if s.client {
		return nil, errClient
	}
	stop := context.AfterFunc(ctx, func() {
		s.link.Mu.Lock()
		defer s.link.Mu.Unlock()
		s.accepted.Broadcast()
	})
	defer stop()
	s.link.Mu.Lock()
	defer s.link.Mu.Unlock()
	for {
		switch {
		case s.link.Err() == engine.ErrClosed:
			return nil, engine.ErrClosed
		case len(s.accepts) > 0:
			st := s.accepts[0]
			s.accepts[0] = nil
			s.accepts = s.accepts[1:]
			return st, nil
		case s.link.Err() != nil:
			return nil, s.link.Err()
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		s.accepted.Wait()
	}
}

// Done implements engine.Session.
func (s *session) Done() <-chan struct{} { return s.link.Done() }

// Close implements engine.Session.
func (s *session) Close() error {
	s.link.Close()
	return nil
}

// Stats returns what the session has sent so far.
func (s *session) Stats() arq.Stats { return s.link.Stats() }

// Fill implements arq.User.
func (s *session) Fill(p []byte) int {
	n := 0
	for len(p)-n >= arq.MinRoom {
		st := s.urgent.pop()
		if st == nil {
			break
		}
		n += st.fillControl(p[n:])
		st.forgetIfOver()
	}
	if s.budget.Due() && len(p)-n >= arq.MinRoom {
		n += putHeader(p[n:], cmdLND, lendSize, 0)
		binary.LittleEndian.PutUint32(p[n:], s.budget.Tell())
		n += lendSize
	}
	for len(p)-n >= arq.MinRoom {
		st := s.bulk.pop()
		if st == nil {
			break
		}
		n += st.fillData(p[n:])
		st.submit()
		st.forgetIfOver()
	}
	return n
}

// Arrived implements arq.User.
func (s *session) Arrived() {
	buf := buffers.Get().(*[arq.SegmentSize]byte)
	defer buffers.Put(buf)
	for s.link.Err() == nil {
		p, ok := s.link.Recv(buf[:])
		if !ok {
			break
		}
		for len(p) > 0 {
			rest, err := s.handle(p)
			if err != nil {
				s.link.Fail(err)
				return
			}
			p = rest
		}
	}
	if s.budget.Due() {
		s.link.Ready(openDelay)
	}
}

// Ended implements arq.User.
func (s *session) Ended(err error) {
	for _, st := range s.streams {
		st.Abort(err)
	}
	clear(s.streams)
	clear(s.refused)
	s.urgent, s.bulk = fifo{class: urgent}, fifo{class: bulk}
	s.accepted.Broadcast()
}

// handle handles the first frame in p and returns the rest.
func (s *session) handle(p []byte) ([]byte, error) {
	if len(p) < headerSize || p[0] != version {
		return nil, errFormat
	}
	cmd := p[1]
	size := int(binary.LittleEndian.Uint16(p[2:]))
	id := binary.LittleEndian.Uint32(p[4:])
	p = p[headerSize:]
	if size > len(p) {
		return nil, errFormat
	}
	body, rest := p[:size], p[size:]

	want := 0
	switch cmd {
	case cmdPSH:
		want = max(size, 1)
	case cmdUPD:
		want = updateSize
	case cmdLND:
		want = lendSize
	case cmdSYN, cmdFIN, cmdNOP, cmdSTP, cmdTAK:
	default:
		return nil, errFormat
	}
	if size != want {
		return nil, errFormat
	}
	switch cmd {
	case cmdNOP:
		return rest, nil
	case cmdSYN:
		return rest, s.opened(id)
	case cmdLND:
		return rest, s.lent(id, binary.LittleEndian.Uint32(body))
	}
	st := s.streams[id]
	if st == nil {
		if id%2 == 0 || id > s.lastID {
			return nil, errStream
		}
		if cmd == cmdTAK { // forgotten, like all else for this stream
			return rest, s.taken(nil)
		}
		return rest, nil
	}
	var err error
	switch cmd {
	case cmdTAK:
		err = s.taken(st)
	case cmdPSH:
		err = st.received(body)
	case cmdUPD:
		err = st.update(binary.LittleEndian.Uint32(body), binary.LittleEndian.Uint32(body[4:]))
	case cmdFIN:
		st.End(io.EOF)
	case cmdSTP:
		st.Stopped()
	}
	st.forgetIfOver()
	return rest, err
}

// opened handles a SYN.
func (s *session) opened(id uint32) error {
	if s.client || id%2 == 0 || id <= s.lastID {
		return errFormat
	}
	if len(s.streams) >= 2*maxStreams || len(s.accepts) >= 2*maxStreams {
		return errTooMany
	}
	s.lastID = id
	s.accepts = append(s.accepts, s.newStream(id))
	s.accepted.Signal()
	return nil
}

func (s *session) newStream(id uint32) *stream {
	local, remote := s.link.Addrs()
	st := &stream{session: s, id: id, peerWindow: InitialWindow, window: duplex.Window{Size: InitialWindow}}
	st.Stream = duplex.New(&s.link.Mu, st, local, remote)
	s.streams[id] = st
	s.budget.Lend()
	return st
}

// lent handles an LND.
func (s *session) lent(id, limit uint32) error {
	if id != 0 {
		return errFormat
	}
	more, ok := s.loan.Raise(limit)
	if !ok {
		return errWindow
	}
	if more {
		for st := range s.refused {
			st.submit()
		}
		s.link.Ready(0)
	}
	return nil
}

// taken handles a TAK; st is nil if the stream was forgotten.
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
