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

// farewellTime is how long Close waits for a blocked carrier before it gives
// up telling the other side.
const farewellTime = 100 * time.Millisecond

// reopenAfter is how long the window stays small after a loss. On the carrier
// losses are rare and long over then; a bare network that loses all the time
// gets the library's congestion control for most of it.
const reopenAfter = time.Second

// proof is how many packets are sent without a loss before firstWindow becomes
// congestionWindow: half of them have arrived by then.
const proof = 2 * firstWindow / packetSize

var (
	errServerOpen = errors.New("quic: only the client opens streams")
	errClient     = errors.New("quic: only the server accepts streams")
	errTooMany    = fmt.Errorf("quic: %d streams are open on this session; close some or open another session", maxStreams)
)

// session implements engine.Session. It is safe for concurrent use.
//
// The library's connection outlives the session until Close: what it has
// received can be read, while the pipe keeps everything else from it.
type session struct {
	client    bool
	pipe      *pipe
	transport *quic.Transport
	ctx       context.Context // ends with the session; its cause is why
	cancel    context.CancelCauseFunc
	group     sync.WaitGroup            // the goroutine that waits for the handshake
	ready     chan struct{}             // closed when conn is set
	gone      chan struct{}             // closed when Close has done its work
	seen      atomic.Uint64             // packets lost when openWindow was called, plus 1; 0: never
	opened    atomic.Pointer[time.Time] // when that was
	sent      atomic.Uint64             // packets by then
	wide      atomic.Bool               // it was for congestionWindow

	mu      sync.Mutex           // guards what follows
	conn    *quic.Conn           // nil before the handshake is done
	unwatch func() bool          // ends watch; nil before it began
	pending []*stream            // opened before the handshake is done, in order
	streams map[*stream]struct{} // those not closed
	closing bool
}

func newSession(pc engine.Carrier, client bool) *session {
	s := &session{
		client:  client,
		ready:   make(chan struct{}),
		gone:    make(chan struct{}),
		streams: make(map[*stream]struct{}),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.pipe = &pipe{Carrier: pc, fail: s.lost, ended: s.ctx.Done(), closed: make(chan struct{})}
	if a := pc.RemoteAddr(); a != nil {
		s.pipe.peer.Store(&a)
	}
	s.transport = &quic.Transport{
		Conn:                             s.pipe,
		ConnectionIDGenerator:            noConnectionID{},
		DisableVersionNegotiationPackets: true,
	}
	return s
}

// noConnectionID implements quic.ConnectionIDGenerator.
type noConnectionID struct{}

func (noConnectionID) GenerateConnectionID() (quic.ConnectionID, error) {
	return quic.ConnectionID{}, nil
}
func (noConnectionID) ConnectionIDLen() int { return 0 }

func newClient(pc engine.Carrier) *session {
	s := newSession(pc, true)
	s.group.Go(func() {
		remote := s.pipe.remote()
		if remote == nil {
			remote = pc.LocalAddr() // the carrier does not care
		}
		conn, err := s.transport.Dial(s.ctx, remote, tlsConfig(pc), config())
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
	s.transport.ConnContext = func(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
		s.watch(ctx) // Accept says nothing of a handshake that fails
		return ctx, nil
	}
	l, err := s.transport.Listen(tlsConfig(pc), config())
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
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unwatch = context.AfterFunc(ctx, func() { s.lost(context.Cause(ctx)) })
}

// established says that the handshake is done.
func (s *session) established(conn *quic.Conn) {
	s.pipe.conn.Store(conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = conn
	for _, st := range s.pending {
		str, err := conn.OpenStream()
		if err != nil { // a server allows maxStreams
			st.refuse(fmt.Errorf("%w: quic: %w", engine.ErrReset, err))
			continue
		}
		st.attach(str)
	}
	s.pending = nil
	close(s.ready)
}

// write writes to str. Before the session's first bytes and after losses it has
// openWindow called, and again when no loss has followed.
func (s *session) write(str *quic.Stream, p []byte) (int, error) {
	stats := s.conn.ConnectionStats()
	lost, seen := stats.PacketsLost+1, s.seen.Load()
	wide, size := lost == seen, int64(firstWindow)
	switch {
	case wide && (s.wide.Load() || stats.PacketsSent-s.sent.Load() < proof),
		!wide && seen > 0 && time.Since(*s.opened.Load()) < reopenAfter:
		return str.Write(p)
	case wide:
		size = congestionWindow
	case seen > 0:
		size = congestionWindow / 2
	}
	now := time.Now()
	s.opened.Store(&now)
	return str.WriteWithLimit(p, func(n int) int {
		if s.seen.CompareAndSwap(seen, lost) {
			openWindow(s.conn, size) // it is the goroutine of the connection that asks
			s.sent.Store(stats.PacketsSent)
			s.wide.Store(wide)
		}
		return n
	})
}

// err is nil while the session lives, then engine.ErrClosed if this side has
// ended it, else an error that matches engine.ErrReset.
func (s *session) err() error { return context.Cause(s.ctx) }

// lost ends the session because of err.
func (s *session) lost(err error) { s.end(fmt.Errorf("%w: quic: %w", engine.ErrReset, err)) }

// end ends the session; only its first reason counts.
func (s *session) end(err error) {
	s.cancel(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		st.wake()
	}
	s.pending = nil
}

// Open implements engine.Session.
func (s *session) Open(ctx context.Context) (engine.Stream, error) {
	if !s.client {
		return nil, errServerOpen
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.err(); err != nil {
		return nil, err
	}
	st := newStream(s)
	if s.conn == nil {
		if len(s.pending) >= maxStreams {
			return nil, errTooMany
		}
		s.pending = append(s.pending, st)
	} else {
		str, err := s.conn.OpenStream()
		if limit := (*quic.StreamLimitReachedError)(nil); errors.As(err, &limit) {
			return nil, errTooMany
		}
		if err != nil {
			return nil, fmt.Errorf("%w: quic: %w", engine.ErrReset, err)
		}
		st.str = str
		st.announcer = time.AfterFunc(openDelay, st.announce)
	}
	s.streams[st] = struct{}{}
	return st, nil
}

// Accept implements engine.Session.
func (s *session) Accept(ctx context.Context) (engine.Stream, error) {
	if s.client {
		return nil, errClient
	}
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	var str *quic.Stream
	var err error
	select {
	case <-s.ready:
		str, err = s.conn.AcceptStream(both)
	case <-both.Done():
		err = both.Err()
	}
	if ended := s.err(); err != nil || ended == engine.ErrClosed {
		switch {
		case ended != nil:
			return nil, ended
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		s.lost(err)
		return nil, s.err()
	}
	st := newStream(s)
	st.str, st.early, st.opening = str, nil, true
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[st] = struct{}{}
	if s.err() != nil {
		st.wake()
	}
	return st, nil
}

// forget says that st needs no waking any more.
func (s *session) forget(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
}

// Done implements engine.Session.
func (s *session) Done() <-chan struct{} { return s.ctx.Done() }

// Close implements engine.Session.
func (s *session) Close() error {
	s.end(engine.ErrClosed)
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	unwatch := s.unwatch
	s.mu.Unlock()
	if !first {
		<-s.gone
		return nil
	}
	if unwatch != nil {
		unwatch()
	}
	if remote := s.pipe.remote(); remote != nil && s.err() == engine.ErrClosed {
		s.pipe.Carrier.SetWriteDeadline(time.Now().Add(farewellTime))
		s.pipe.Carrier.WriteTo(farewell, remote) // if there is no room, the carrier's end says it
	}
	s.pipe.close()
	s.transport.Close()
	s.group.Wait()
	close(s.gone)
	return nil
}
