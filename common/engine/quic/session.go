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

var errSecond = errors.New("quic: a session has one connection")

// session implements engine.Session. It is safe for concurrent use.
//
// The library's connection outlives the session until Close: what it has
// received can be read, while the pipe keeps everything else from it.
type session struct {
	client    bool
	pipe      *pipe
	account   *account
	transport *quic.Transport
	ctx       context.Context // ends with the session; its cause is why
	cancel    context.CancelCauseFunc
	group     sync.WaitGroup        // the goroutine that waits for the handshake
	ready     chan struct{}         // closed when conn is set
	grant     atomic.Pointer[grant] // the last; nil: none yet
	close     sync.Once

	mu      sync.Mutex // guards what follows
	conn    *quic.Conn // nil before the handshake is done
	pending []*stream  // opened before the handshake is done, in order
}

func newSession(pc engine.Carrier, client bool) *session {
	s := &session{
		client:  client,
		account: newAccount(pc),
		ready:   make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.pipe = &pipe{Carrier: pc, fail: s.lost, ended: s.ctx.Done(), closed: make(chan struct{})}
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
	s.group.Go(func() {
		conn, err := s.transport.Dial(s.ctx, pc.RemoteAddr(), tlsConfig(pc), config)
		if err != nil {
			s.lost(err)
			return
		}
		s.watch(conn.Context())
		s.established(conn)
	})
	return s
}

func newServer(pc engine.Carrier) (*session, error) {
	s := newSession(pc, false)
	var begun atomic.Bool
	s.transport.ConnContext = func(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
		if begun.Swap(true) {
			return nil, errSecond
		}
		s.watch(ctx) // Accept says nothing of a handshake that fails
		return ctx, nil
	}
	counted := config.Clone()
	counted.Tracer = s.account.tracer
	l, err := s.transport.Listen(tlsConfig(pc), counted)
	if err != nil {
		pc.Close()
		return nil, fmt.Errorf("quic: %w", err)
	}
	s.group.Go(func() {
		conn, err := l.Accept(s.ctx)
		l.Close() // one connection a session; and it holds 100 KB
		if err != nil {
			s.lost(err)
			return
		}
		s.established(conn)
	})
	return s, nil
}

// watch ends the session with ctx, which is the connection's.
func (s *session) watch(ctx context.Context) {
	context.AfterFunc(ctx, func() { s.lost(context.Cause(ctx)) })
}

// established says that the handshake is done.
func (s *session) established(conn *quic.Conn) {
	s.pipe.conn.Store(conn)
	var refused error
	s.mu.Lock()
	s.conn = conn
	for _, st := range s.pending {
		str, err := conn.OpenStream()
		if err != nil { // a server allows engine.MaxStreams
			refused = err
			break
		}
		st.attach(str)
	}
	s.pending = nil
	s.mu.Unlock()
	close(s.ready)
	if refused != nil {
		s.lost(refused)
	}
}

// write writes to str, and has openWindow called first when it is time.
func (s *session) write(str *quic.Stream, p []byte) (int, error) {
	last := s.grant.Load()
	next := last.next(s.conn.ConnectionStats(), time.Now())
	if next == nil {
		return str.Write(p)
	}
	return str.WriteWithLimit(p, func(n int) int {
		if s.grant.CompareAndSwap(last, next) {
			openWindow(s.conn, next.size) // it is the goroutine of the connection that asks
		}
		return n
	})
}

// err is nil while the session lives, then engine.ErrClosed if this side has
// ended it, else an error that matches engine.ErrReset.
func (s *session) err() error { return context.Cause(s.ctx) }

// lost ends the session because of err.
func (s *session) lost(err error) { s.cancel(fmt.Errorf("%w: quic: %w", engine.ErrReset, err)) }

// Open implements engine.Session. Where the server allows no more streams, it
// waits until one is over.
func (s *session) Open(ctx context.Context) (engine.Stream, error) {
	if !s.client {
		return nil, engine.ErrRole
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if st, err := s.openEarly(); st != nil || err != nil {
		return st, err
	}
	str, err := s.next(ctx, (*quic.Conn).OpenStreamSync)
	if err != nil {
		return nil, err
	}
	st := newStream(s, str)
	time.AfterFunc(engine.OpenDelay, st.announce)
	return st, nil
}

// openEarly opens a stream before the handshake is done. It returns nothing when
// that is over, or when there are as many as a server allows.
func (s *session) openEarly() (engine.Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.err(); err != nil {
		return nil, err
	}
	if s.conn != nil || len(s.pending) == engine.MaxStreams {
		return nil, nil
	}
	st := newStream(s, nil)
	s.pending = append(s.pending, st)
	return st, nil
}

func (s *session) Accept(ctx context.Context) (engine.Stream, error) {
	if s.client {
		return nil, engine.ErrRole
	}
	str, err := s.next(ctx, (*quic.Conn).AcceptStream)
	if err != nil {
		return nil, err
	}
	return newStream(s, str), nil
}

// next asks the library for a stream when the handshake is done.
func (s *session) next(ctx context.Context, ask func(*quic.Conn, context.Context) (*quic.Stream, error)) (*quic.Stream, error) {
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
	case err == nil && ended != engine.ErrClosed:
		return str, nil
	case ended != nil:
		return nil, ended
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
		if s.err() == engine.ErrClosed {
			s.pipe.Carrier.SetWriteDeadline(time.Now().Add(engine.FarewellTime))
			s.pipe.Carrier.WriteTo(farewell, s.pipe.RemoteAddr()) // if there is no room, the carrier's end says it
		}
		s.pipe.close()
		s.transport.Close()
		s.group.Wait()
	})
	return nil
}
