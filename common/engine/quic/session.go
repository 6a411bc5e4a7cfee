package quic

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"turbotunnel/common/engine"
)

// session implements engine.Session. It is safe for concurrent use.
//
// The library's connection outlives the session until Close, and does not hear of
// its end from the pipe: what it has received can be read.
type session struct {
	client    bool
	pipe      *pipe
	account   *account
	transport *quic.Transport
	ctx       context.Context // ends with the session; its cause is why
	cancel    context.CancelCauseFunc
	group     sync.WaitGroup // the goroutine that waits for the handshake
	ready     chan struct{}  // closed when the handshake is done
	conn      *quic.Conn     // set before that
	window    atomic.Pointer[window]
	close     sync.Once
}

func newSession(pc engine.Carrier, client bool) *session {
	s := &session{client: client, account: newAccount(pc), ready: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.pipe = &pipe{Carrier: pc, session: s, closed: make(chan struct{})}
	s.transport = &quic.Transport{
		Conn:                             s.pipe,
		ConnectionIDGenerator:            noConnectionID{},
		DisableVersionNegotiationPackets: true,
	}
	return s
}

// noConnectionID implements quic.ConnectionIDGenerator.
type noConnectionID struct{}

func (noConnectionID) GenerateConnectionID() (id quic.ConnectionID, err error) { return id, nil }
func (noConnectionID) ConnectionIDLen() int                                    { return 0 }

func newClient(pc engine.Carrier) *session {
	s := newSession(pc, true)
	config, promised := within(pc.Promise(0))
	pc.Promise(promised)
	s.start(func() (*quic.Conn, error) { return s.transport.Dial(s.ctx, pc.RemoteAddr(), tlsConfig(pc), config) })
	return s
}

func newServer(pc engine.Carrier) *session {
	s := newSession(pc, false)
	var begun atomic.Bool
	s.transport.ConnContext = func(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
		if begun.Swap(true) {
			return nil, errors.New("quic: a session has one connection")
		}
		s.watch(ctx) // Accept says nothing of a handshake that fails
		return ctx, nil
	}
	counted := config.Clone()
	counted.Tracer = s.account.tracer
	s.start(func() (*quic.Conn, error) {
		l, err := s.transport.Listen(tlsConfig(pc), counted)
		if err != nil {
			return nil, err
		}
		defer l.Close() // one connection a session; and it holds 100 KB
		return l.Accept(s.ctx)
	})
	return s
}

// start has connect wait for the handshake.
func (s *session) start(connect func() (*quic.Conn, error)) {
	s.group.Go(func() {
		conn, err := connect()
		if err != nil {
			s.lost(err)
			return
		}
		s.watch(conn.Context())
		s.conn = conn
		close(s.ready)
	})
}

// watch ends the session with ctx, which is the connection's.
func (s *session) watch(ctx context.Context) {
	context.AfterFunc(ctx, func() { s.lost(context.Cause(ctx)) })
}

// err is nil while the session lives, then engine.ErrClosed if this side has
// ended it, else an error that matches engine.ErrReset.
func (s *session) err() error { return context.Cause(s.ctx) }

// lost ends the session because of err.
func (s *session) lost(err error) { s.cancel(fmt.Errorf("%w: quic: %w", engine.ErrReset, err)) }

// Open implements engine.Session. Where the server allows no more streams, it
// waits until one is over.
func (s *session) Open(ctx context.Context) (engine.Stream, error) {
	return s.next(ctx, true, (*quic.Conn).OpenStreamSync)
}

func (s *session) Accept(ctx context.Context) (engine.Stream, error) {
	return s.next(ctx, false, (*quic.Conn).AcceptStream)
}

// next asks the library of the client, or of the server, for a stream.
func (s *session) next(ctx context.Context, client bool, ask func(*quic.Conn, context.Context) (*quic.Stream, error)) (engine.Stream, error) {
	if s.client != client {
		return nil, engine.ErrRole
	}
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	var str *quic.Stream
	var err error
	select {
	case <-s.ready:
		str, err = ask(s.conn, both)
	case <-both.Done():
		err = both.Err()
	}
	switch ended := s.err(); {
	case ended != nil:
		return nil, ended
	case err == nil:
		return newStream(s, str), nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	s.lost(err)
	return nil, s.err()
}

func (s *session) Done() <-chan struct{} { return s.ctx.Done() }

func (s *session) Close() error {
	s.close.Do(func() {
		s.cancel(engine.ErrClosed)
		s.pipe.Carrier.SetWriteDeadline(time.Now().Add(engine.FarewellTime))
		s.pipe.Carrier.WriteTo(farewell, s.pipe.RemoteAddr()) // if there is no room, the carrier's end says it
		close(s.pipe.closed)
		s.pipe.Carrier.Close()
		s.transport.Close()
		s.group.Wait()
	})
	return nil
}
