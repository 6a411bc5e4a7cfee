// Package kcp is the engine of that name: KCP alone, one stream a session.
//
// Package arq carries the segments; its comment describes the datagrams. This
// package says what is in a segment.
//
// # On the wire
//
// A segment holds one or more marks, one after the other. A mark begins with
// two bytes, most significant first:
//
//	0x0000           open: the first mark of a client
//	0x0001 – 0x05DA  that many bytes of the stream follow (at most 1498)
//	0xFFFE           stop: who sends this reads no more
//	0xFFFF           end: no more bytes follow in this direction
//
// Anything else, and bytes missing at the end of a segment, end the session.
// Bytes after an end are thrown away. Flow control is KCP's: its receive window is
// InitialWindow segments on both sides at first.
//
// When each direction has ended or was stopped and all of it is acknowledged,
// the session has nothing more to do and ends on both sides after a short time
// in which a lost acknowledgement is repeated.
package kcp

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/arq"
	"turbotunnel/common/engine/internal/duplex"
)

const (
	// InitialWindow is the receive window in segments that both sides take for
	// granted at first, 16 MB: a session has one stream, so there is no time to
	// let it grow. It grows while the reader keeps up.
	InitialWindow = 16 << 20 / arq.SegmentSize

	// readLimit is how many bytes are moved out of KCP before they are read.
	// What is beyond fills KCP's window.
	readLimit = 64 << 10

	// openDelay is how long the opening of the stream waits for its first
	// bytes, so that a write which follows at once goes in the same segment.
	openDelay = 2 * time.Millisecond

	markSize = 2 // bytes
	markOpen = 0
	markStop = 0xFFFE
	markEnd  = 0xFFFF
)

var errFormat = errors.New("kcp: malformed segment")

// Engine is the engine kcp.
type Engine struct{}

// Name implements engine.Engine.
func (Engine) Name() string { return "kcp" }

// Multiplexes implements engine.Engine.
func (Engine) Multiplexes() bool { return false }

// Client implements engine.Engine.
func (Engine) Client(pc net.PacketConn) (engine.Session, error) { return newSession(pc, true), nil }

// Server implements engine.Engine.
func (Engine) Server(pc net.PacketConn) (engine.Session, error) { return newSession(pc, false), nil }

// session implements engine.Session. It is safe for concurrent use.
type session struct {
	link   *arq.Link
	client bool

	// link.Mu guards what follows.
	stream   *duplex.Stream
	window   duplex.Window         // in segments
	exists   bool                  // the client has opened the stream, and this side knows
	given    bool                  // Open or Accept has returned the stream
	openDue  bool                  // the client has yet to send its open
	changed  sync.Cond             // exists, given, or the end of the session
	receives bool                  // receive is on the stack
	buf      [arq.SegmentSize]byte // of receive
}

func newSession(pc net.PacketConn, client bool) *session {
	s := prepare(pc, client)
	s.link.Start()
	return s
}

// prepare makes a session that has not started yet.
func prepare(pc net.PacketConn, client bool) *session {
	s := &session{client: client, window: duplex.Window{Size: InitialWindow}}
	s.link = arq.New(pc, s, InitialWindow)
	s.changed.L = &s.link.Mu
	s.link.Mu.Lock()
	local, remote := s.link.Addrs()
	s.stream = duplex.New(&s.link.Mu, s, local, remote)
	s.link.Mu.Unlock()
	return s
}

// Open implements engine.Session.
func (s *session) Open(ctx context.Context) (engine.Stream, error) {
	s.link.Mu.Lock()
	defer s.link.Mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case s.link.Err() != nil:
		return nil, s.link.Err()
	case !s.client || s.given:
		return nil, engine.ErrSingleStream
	}
	s.given, s.exists, s.openDue = true, true, true
	s.link.Ready(openDelay)
	return s.stream, nil
}

// Accept implements engine.Session.
func (s *session) Accept(ctx context.Context) (engine.Stream, error) {
	stop := context.AfterFunc(ctx, func() {
		s.link.Mu.Lock()
		defer s.link.Mu.Unlock()
		s.changed.Broadcast()
	})
	defer stop()
	s.link.Mu.Lock()
	defer s.link.Mu.Unlock()
	for {
		switch {
		case s.client || s.given:
			return nil, engine.ErrSingleStream
		case s.link.Err() == engine.ErrClosed:
			return nil, engine.ErrClosed
		case s.exists:
			s.given = true
			s.changed.Broadcast()
			return s.stream, nil
		case s.link.Err() != nil:
			return nil, s.link.Err()
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		s.changed.Wait()
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

// Written implements duplex.Session.
func (s *session) Written(*duplex.Stream) { s.link.Ready(0) }

// Consumed implements duplex.Session.
func (s *session) Consumed(*duplex.Stream, int) { s.receive(readLimit) }

// Fill implements arq.User.
func (s *session) Fill(p []byte) int {
	n := 0
	mark := func(m uint16) {
		binary.BigEndian.PutUint16(p[n:], m)
		n += markSize
	}
	if s.openDue {
		s.openDue = false
		mark(markOpen)
	}
	if s.stream.TakeStop() {
		mark(markStop)
	}
	if k := s.stream.Take(p[n+markSize:]); k > 0 {
		mark(uint16(k))
		n += k
	}
	if len(p)-n >= markSize && s.stream.TakeEnd() {
		mark(markEnd)
	}
	s.settle()
	return n
}

// Arrived implements arq.User.
func (s *session) Arrived() { s.receive(readLimit) }

// Ended implements arq.User.
func (s *session) Ended(err error) {
	s.receive(arq.MaxWindow * arq.SegmentSize) // what has arrived can be read
	s.stream.Abort(err)
	s.changed.Broadcast()
}

// receive moves what has arrived to the stream until limit bytes wait there.
func (s *session) receive(limit int) {
	if s.receives {
		return // the stream has thrown bytes away
	}
	s.receives = true
	for s.stream.Buffered() < limit {
		p, ok := s.link.Recv(s.buf[:])
		if !ok {
			break
		}
		if s.window.Consumed(1, arq.MaxWindow, s.link.RTT()) {
			s.link.SetWindow(s.window.Size)
		}
		if !s.handle(p) {
			s.link.Fail(errFormat)
			break
		}
	}
	s.receives = false
	s.settle()
}

// handle handles one segment and tells whether it was well formed.
func (s *session) handle(p []byte) bool {
	for len(p) > 0 {
		if len(p) < markSize {
			return false
		}
		m := int(binary.BigEndian.Uint16(p))
		p = p[markSize:]
		if !s.client && !s.exists {
			if m != markOpen {
				return false
			}
			s.exists = true
			s.changed.Broadcast()
			continue
		}
		switch {
		case m == markStop:
			s.stream.Stopped()
		case m == markEnd:
			s.stream.End(io.EOF)
		case m == markOpen || m > len(p):
			return false
		default:
			s.stream.Deliver(p[:m])
			p = p[m:]
		}
	}
	return true
}

// settle lets the session end when its stream is over.
func (s *session) settle() {
	if s.stream.Over() {
		s.link.Linger()
	}
}
