package quic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

// batch is how many packets may wait in the library, which drops the 257th
// (MaxConnUnprocessedPackets in its internal/protocol).
const batch = 64

// farewell is the datagram that ends a session.
var farewell = []byte{0}

// session implements engine.Session, and is the carrier as the library sees it. It is
// safe for concurrent use.
//
// The library's connection outlives the session until Close, and does not hear of
// its end: when the carrier fails, or the other side ends the session, ReadFrom says
// nothing more, so that what the library has received can still be read.
type session struct {
	engine.Carrier
	client    bool
	account   *account
	transport *quic.Transport
	ctx       context.Context // ends with the session; its cause is why
	cancel    context.CancelCauseFunc
	group     sync.WaitGroup // the goroutine that waits for the handshake
	ready     chan struct{}  // closed when the handshake is done
	conn      *quic.Conn     // set before that
	given     uint64         // packets that the library was given, but for those that it never counted (pace)
	window    atomic.Pointer[window]
	close     sync.Once
	closed    chan struct{} // by Close
}

func newSession(pc engine.Carrier, client bool) *session {
	s := &session{Carrier: pc, client: client, account: newAccount(pc), ready: make(chan struct{}), closed: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.transport = &quic.Transport{
		Conn:                             s,
		ConnectionIDGenerator:            s,
		DisableVersionNegotiationPackets: true,
	}
	return s
}

func newClient(pc engine.Carrier) *session {
	s := newSession(pc, true)
	unread := min(max(pc.Promise(0)/16*9, leastSession), sessionWindow)
	pc.Promise(unread / 3 * 4)
	s.group.Go(func() { s.begin(s.transport.Dial(s.ctx, pc.RemoteAddr(), tlsConfig(pc), config(unread))) })
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
	counted := config(sessionWindow)
	counted.Tracer = s.account.tracer
	s.group.Go(func() {
		l, err := s.transport.Listen(tlsConfig(pc), counted)
		if err != nil {
			s.lost(err)
			return
		}
		defer l.Close() // one connection a session; and it holds 100 KB
		s.begin(l.Accept(s.ctx))
	})
	return s
}

// begin takes what came of the handshake.
func (s *session) begin(conn *quic.Conn, err error) {
	if err != nil {
		s.lost(err)
		return
	}
	s.watch(conn.Context())
	s.conn = conn
	close(s.ready)
}

// watch ends the session with ctx, which is the connection's.
func (s *session) watch(ctx context.Context) {
	context.AfterFunc(ctx, func() { s.lost(context.Cause(ctx)) })
}

// err is nil while the session lives, then engine.ErrClosed if this side has
// ended it, else an error that matches engine.ErrReset.
func (s *session) err() error { return context.Cause(s.ctx) }

// lost ends the session because of err, and returns the session's.
func (s *session) lost(err error) error {
	s.cancel(fmt.Errorf("%w: quic: %w", engine.ErrReset, err))
	return s.err()
}

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
	return nil, s.lost(err)
}

func (s *session) Done() <-chan struct{} { return s.ctx.Done() }

func (s *session) Close() error {
	s.close.Do(func() {
		s.cancel(engine.ErrClosed)
		s.Carrier.SetWriteDeadline(time.Now().Add(engine.FarewellTime))
		s.Carrier.WriteTo(farewell, s.RemoteAddr()) // if there is no room, the carrier's end says it
		close(s.closed)
		s.Carrier.Close()
		s.transport.Close()
		s.group.Wait()
	})
	return nil
}

// ReadFrom is for the library, as is what follows.
func (s *session) ReadFrom(b []byte) (int, net.Addr, error) {
	s.pace()
	n, from, err := s.Carrier.ReadFrom(b)
	switch {
	case err != nil:
		s.lost(fmt.Errorf("reading from the carrier: %w", err))
	case bytes.Equal(b[:n], farewell):
		s.lost(errors.New("the other side has ended the session"))
	default:
		s.given++
		return n, from, nil
	}
	<-s.closed
	return 0, nil, net.ErrClosed
}

// pace waits while the library has more packets than it should keep, some 5 ms at
// most: packets that it does not count must not stop the session.
func (s *session) pace() {
	for range 250 {
		if !half.IsClosed(s.ready) || s.given < s.conn.ConnectionStats().PacketsReceived+batch {
			return // a handshake is a few packets
		}
		time.Sleep(20 * time.Microsecond)
	}
	s.given -= batch
}

func (s *session) WriteTo(b []byte, to net.Addr) (int, error) {
	if _, err := s.Carrier.WriteTo(b, to); err != nil {
		s.lost(fmt.Errorf("writing to the carrier: %w", err))
	}
	return len(b), nil
}

// The library complains in the process' log about a PacketConn without these.
func (*session) SetReadBuffer(int) error  { return nil }
func (*session) SetWriteBuffer(int) error { return nil }

// There are no connection IDs.
func (*session) GenerateConnectionID() (id quic.ConnectionID, err error) { return id, nil }
func (*session) ConnectionIDLen() int                                    { return 0 }
