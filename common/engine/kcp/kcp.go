// Package kcp is the engine of that name: one conversation of KCP
// (github.com/xtaci/kcp-go), which is one stream.
//
// A Conn drives the library's control block; why not its session is told in
// doc/engines.md. One goroutine reads datagrams into it, and while something is
// due another one writes. The lock is never held while a WriteTo blocks, so a
// carrier without room stops the writers and nothing else. A Conn takes bytes only
// as fast as the carrier takes them, so that what is said next never waits behind
// megabytes. What stands on the wire, and what a message's last byte says, the
// marks, is in doc/protocol.md, section 6. When neither side reads any more, as it
// has read the end or closed the stream, and has said so, the session ends on both
// sides after a short time in which a lost acknowledgement is repeated.
//
// To KCP's time-out every queue that grows looks like a loss. The carrier repairs
// losses itself, so KCP's is as long as may be, and a flight decides what is sent again.
package kcp

import (
	"cmp"
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
	*Conn
	given atomic.Bool // the stream is somebody's, or an Accept waits for it
}

func newSession(pc engine.Carrier, client bool) *session {
	c := prepare(pc, client)
	c.window = 0
	c.promise(openPart)
	c.start()
	return &session{Conn: c}
}

func (s *session) Open(ctx context.Context) (engine.Stream, error) {
	if err := cmp.Or(ctx.Err(), s.Err()); err != nil {
		return nil, err
	}
	if !s.client || s.given.Swap(true) {
		return nil, engine.ErrSingleStream
	}
	time.AfterFunc(engine.OpenDelay, func() { s.Append() }) // if nothing was said by then
	return stream{s.Conn}, nil
}

// Accept returns as well a stream that was opened before the other side ended the
// session.
func (s *session) Accept(ctx context.Context) (engine.Stream, error) {
	if s.client || s.given.Swap(true) {
		return nil, engine.ErrSingleStream
	}
	select {
	case <-s.opened:
	case <-s.Done():
	case <-ctx.Done():
	}
	err := s.Err()
	if half.IsClosed(s.opened) && err != engine.ErrClosed {
		return stream{s.Conn}, nil
	}
	s.given.Store(false)
	return nil, cmp.Or(err, ctx.Err())
}

// stream is a Conn as an application sees it: with half-close, a Write that waits, and
// a Close that lets what was written arrive. It is safe for concurrent use.
type stream struct{ *Conn }

func (s stream) CloseWrite() error { return s.end(markEnd) }
func (s stream) Close() error      { return s.close(markEnd | markStop) }
func (s stream) Reset() error      { return s.close(markReset) }

func (s stream) close(mark byte) error {
	if s.end(mark) == nil {
		s.Forget()
	}
	return nil
}
