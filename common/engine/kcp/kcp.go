// Package kcp is the engine of that name: one conversation of KCP
// (github.com/xtaci/kcp-go), which is one stream.
//
// # Why not the library's own session
//
// kcp.UDPSession drops datagrams silently when its output queue is full, is
// scheduled by process-wide goroutines, wakes up on every interval even when
// nothing happens, and holds its lock while it writes. A Conn drives the
// library's control block instead: one goroutine reads datagrams into it, and
// while something is due another one, the driver, writes. The lock is never held
// while a WriteTo blocks, so a carrier without room stops the writers and
// nothing else. A Conn takes bytes only as fast as the carrier takes them, so
// that what is said next never waits behind megabytes.
//
// # On the wire
//
// A datagram holds whole KCP segments, one after the other, at most
// engine.MaxDatagram bytes. The conversation ID is always 1: each session has
// its own PacketConn, there is nothing to tell apart. Each segment with data is
// one KCP message (frg is 0) of at most SegmentSize bytes. There is no forward
// error correction and no encryption. Both sides take a receive window of Window
// segments for announced before the first datagram. A datagram of the single
// byte 0 says that the sender has ended the session; it is sent once and may be
// lost.
//
// The last byte of a message says what else it means, by these bits; what is in
// front of it is content of the stream:
//
//	1  OPEN   the client opens the stream: in its first message, and no other
//	2  END    no more content follows in this direction
//	4  STOP   the sender reads no more, and throws away what comes
//	8  RESET  END and STOP, because something has failed
//
// Another bit, and an OPEN that is missing or in the wrong place, end the
// session. Content after an END is thrown away. Datagrams that are malformed
// otherwise are ignored. When each direction has ended or was stopped and all of
// it is acknowledged, the session has nothing more to do and ends on both sides
// after a short time in which a lost acknowledgement is repeated.
//
// # Retransmission
//
// KCP's timeout is its smoothed round-trip time plus four deviations, and every
// queue that grows faster than that looks like a loss to it. The carrier below
// repairs losses itself. So a Conn looks at every segment that KCP wants to send
// again and lets it pass only if one that was sent after it has been
// acknowledged, or if it has been on its way for at least a second and three
// round trips and the carrier has taken everything it was given.
package kcp

import (
	"context"
	"sync"

	"turbotunnel/common/engine"
)

// Engine is the engine kcp.
type Engine struct{}

// Name implements engine.Engine.
func (Engine) Name() string { return "kcp" }

// Multiplexes implements engine.Engine.
func (Engine) Multiplexes() bool { return false }

// Client implements engine.Engine.
func (Engine) Client(pc engine.Carrier) (engine.Session, error) {
	return newSession(NewConn(pc, true)), nil
}

// Server implements engine.Engine.
func (Engine) Server(pc engine.Carrier) (engine.Session, error) {
	return newSession(NewConn(pc, false)), nil
}

// session implements engine.Session. It is safe for concurrent use.
type session struct {
	conn   *Conn
	stream *stream

	mu    sync.Mutex
	given bool          // Open or Accept has returned the stream; guarded by mu
	taken chan struct{} // closed when given is set
}

func newSession(c *Conn) *session {
	return &session{conn: c, stream: newStream(c), taken: make(chan struct{})}
}

// Open implements engine.Session.
func (s *session) Open(ctx context.Context) (engine.Stream, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err := s.conn.Err(); err != nil {
		return nil, err
	}
	if !s.conn.client || !s.give() {
		return nil, engine.ErrSingleStream
	}
	s.conn.Append(openDelay) // the opening alone
	return s.stream, nil
}

// Accept implements engine.Session. A stream that was opened before the other
// side ended the session can still be accepted.
func (s *session) Accept(ctx context.Context) (engine.Stream, error) {
	if s.conn.client {
		return nil, engine.ErrSingleStream
	}
	select {
	case <-s.taken:
		return nil, engine.ErrSingleStream
	case <-s.conn.opened:
	case <-s.conn.done:
	case <-ctx.Done():
	}
	select {
	case <-s.conn.opened:
	default:
		if err := s.conn.Err(); err != nil {
			return nil, err
		}
		return nil, ctx.Err()
	}
	if s.conn.Err() == engine.ErrClosed {
		return nil, engine.ErrClosed
	}
	if !s.give() {
		return nil, engine.ErrSingleStream
	}
	return s.stream, nil
}

// give tells whether the stream is the caller's: it was not given before.
func (s *session) give() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given {
		return false
	}
	s.given = true
	close(s.taken)
	return true
}

// Done implements engine.Session.
func (s *session) Done() <-chan struct{} { return s.conn.Done() }

// Close implements engine.Session.
func (s *session) Close() error { return s.conn.Close() }
