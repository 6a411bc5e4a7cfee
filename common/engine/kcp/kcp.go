// Package kcp is the engine of that name: one conversation of KCP
// (github.com/xtaci/kcp-go), which is one stream.
//
// A Conn drives the library's control block; why not its session is told in
// doc/engines.md. One goroutine reads datagrams into it, and while something is
// due another one writes. The lock is never held while a WriteTo blocks, so a
// carrier without room stops the writers and nothing else. A Conn takes bytes only
// as fast as the carrier takes them, so that what is said next never waits behind
// megabytes. What stands on the wire, and what a message's last byte says, the
// marks, is in doc/protocol.md, section 6. When each direction has ended or was
// stopped and all of it is acknowledged, the session ends on both sides after a
// short time in which a lost acknowledgement is repeated.
//
// # Retransmission
//
// KCP's time-out is its smoothed round-trip time plus four deviations, and every
// queue that grows faster than that looks like a loss to it. The carrier below
// repairs losses itself. So KCP is told that the round trip takes a minute, and
// sends again by itself only what was overtaken. A flight looks after the rest:
// if what is oldest was lost again, or was waited for as long as a second and
// three round trips while the carrier had taken everything, some of it is sent
// again, and as that arrives, more.
package kcp

import (
	"context"
	"sync/atomic"
	"time"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

// Engine is the engine kcp.
type Engine struct{}

func (Engine) Name() string                                     { return "kcp" }
func (Engine) Multiplexes() bool                                { return false }
func (Engine) Client(pc engine.Carrier) (engine.Session, error) { return newSession(pc, true), nil }
func (Engine) Server(pc engine.Carrier) (engine.Session, error) { return newSession(pc, false), nil }

// session implements engine.Session. It is safe for concurrent use.
type session struct {
	conn   *Conn
	stream *stream
	given  atomic.Bool // the stream is somebody's, or an Accept waits for it
}

func newSession(pc engine.Carrier, client bool) *session {
	c := prepare(pc, client)
	c.bind()
	c.start()
	return &session{conn: c, stream: newStream(c)}
}

func (s *session) Open(ctx context.Context) (engine.Stream, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err := s.conn.Err(); err != nil {
		return nil, err
	}
	if !s.conn.client || s.given.Swap(true) {
		return nil, engine.ErrSingleStream
	}
	time.AfterFunc(engine.OpenDelay, func() { s.conn.Append() }) // if nothing was said by then
	return s.stream, nil
}

// Accept returns as well a stream that was opened before the other side ended the
// session.
func (s *session) Accept(ctx context.Context) (engine.Stream, error) {
	if s.conn.client || s.given.Swap(true) {
		return nil, engine.ErrSingleStream
	}
	select {
	case <-s.conn.opened:
	case <-s.conn.done:
	case <-ctx.Done():
	}
	err := s.conn.Err()
	if half.IsClosed(s.conn.opened) && err != engine.ErrClosed {
		return s.stream, nil
	}
	s.given.Store(false)
	if err == nil {
		err = ctx.Err()
	}
	return nil, err
}

func (s *session) Done() <-chan struct{} { return s.conn.Done() }
func (s *session) Close() error          { return s.conn.Close() }
