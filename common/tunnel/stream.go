package tunnel

import (
	"container/list"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engine"
)

// A Stream is one byte stream through the tunnel. See engine.Stream: what was
// written before a close arrives before the end, half-close passes in both
// directions, and one stream that stalls does not stall another.
type Stream interface {
	net.Conn

	// CloseWrite ends this side's direction. The other goes on.
	CloseWrite() error

	// Reset is Close, but that the other side's Read fails instead of ending
	// with io.EOF. On a stream that was closed it does nothing.
	Reset() error
}

// clientStream is an engine's stream that knows why its session ended. If only the
// clocks are to blame, and it has said nothing yet, it goes on in another session:
// to its user nothing has happened. Safe for concurrent use.
type clientStream struct {
	dialer *Dialer
	closed atomic.Bool // by its user, or reset

	mu          sync.Mutex
	stream      engine.Stream // guarded by mu, like what follows
	session     *session
	said        bool // something was written, or that nothing will be
	moves       int
	read, write time.Time // deadlines
}

// now is what the stream is at the moment.
func (s *clientStream) now() (engine.Stream, *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream, s.session
}

// move puts a stream of another session in the place of one whose session, old, has
// ended, if that may be done, and tells whether there is another one now. mu is held.
func (s *clientStream) move(old *session) bool {
	if s.session != old {
		return true
	}
	if s.said || s.closed.Load() || s.moves == clockTries || !old.untimely() {
		return false
	}
	s.moves++
	next, err := s.dialer.session(s.dialer.ctx)
	if err != nil {
		return false
	}
	stream, next, err := s.dialer.openIn(s.dialer.ctx, next)
	if err != nil {
		return false
	}
	s.dialer.release(s.session)
	s.stream, s.session = stream, next
	stream.SetReadDeadline(s.read)   //nolint:errcheck // a stream that has failed says so when it is used
	stream.SetWriteDeadline(s.write) //nolint:errcheck // likewise
	return true
}

// goOn is move after a call has failed with err.
func (s *clientStream) goOn(old *session, err error) bool {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.move(old)
}

// speak returns what the stream is from now on: one that has said something stays
// in its session.
func (s *clientStream) speak() (engine.Stream, *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.move(s.session)
	s.said = true
	return s.stream, s.session
}

// explain turns the error of an engine whose session has ended into the reason
// for that. engine.ErrClosed is the reason only where this side has closed the
// stream, and not because its session failed.
func (s *clientStream) explain(session *session, err error) error {
	if err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) || s.closed.Load() {
		return err
	}
	return session.explain(err)
}

func (s *clientStream) Read(p []byte) (int, error) {
	for {
		stream, session := s.now()
		n, err := stream.Read(p)
		if n > 0 || !s.goOn(session, err) {
			return n, s.explain(session, err)
		}
	}
}

func (s *clientStream) Write(p []byte) (int, error) {
	stream, session := s.speak()
	n, err := stream.Write(p)
	return n, s.explain(session, err)
}

// CloseWrite ends this side's direction. See engine.Stream.
func (s *clientStream) CloseWrite() error {
	stream, session := s.speak()
	return s.explain(session, stream.CloseWrite())
}

// Close ends both directions. See engine.Stream.
func (s *clientStream) Close() error { return s.end().Close() }

// end notes that the user has ended the stream, which needs its place no more.
func (s *clientStream) end() engine.Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed.Swap(true) {
		s.dialer.release(s.session)
	}
	return s.stream
}

// Reset ends both directions by a failure. See engine.Stream.
func (s *clientStream) Reset() error { return s.end().Reset() }

func (s *clientStream) LocalAddr() net.Addr {
	stream, _ := s.now()
	return stream.LocalAddr()
}

func (s *clientStream) RemoteAddr() net.Addr {
	stream, _ := s.now()
	return stream.RemoteAddr()
}

func (s *clientStream) SetDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read, s.write = t, t
	return s.stream.SetDeadline(t)
}

func (s *clientStream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = t
	return s.stream.SetReadDeadline(t)
}

func (s *clientStream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write = t
	return s.stream.SetWriteDeadline(t)
}

// ServerStream is a Stream with what is known of its client.
type ServerStream struct {
	engine.Stream
	session *carrier.Session
	holder  holder
	shares  *shares
	moved   atomic.Int64  // when something passed, to a second, as the shares count time; written under their mu
	place   *list.Element // among its holder's; guarded by the shares' mu; nil: not counted
	once    sync.Once
	onClose func()
}

// Session is a short name of the stream's session for the log.
func (s *ServerStream) Session() string { return s.session.Name() }

func (s *ServerStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	s.shares.passed(s, time.Now())
	return n, err
}

func (s *ServerStream) Write(p []byte) (int, error) {
	n, err := s.Stream.Write(p)
	s.shares.passed(s, time.Now())
	return n, err
}

// Close ends both directions; what was written is still delivered.
func (s *ServerStream) Close() error {
	s.once.Do(s.onClose)
	return s.Stream.Close()
}

// Reset ends both directions by a failure, which the client's Read returns.
func (s *ServerStream) Reset() error {
	s.once.Do(s.onClose)
	return s.Stream.Reset()
}
