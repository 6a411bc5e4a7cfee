package tunnel

import (
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

// clientStream is an engine's stream that knows why its session ended.
type clientStream struct {
	engine.Stream
	session *session
	closed  atomic.Bool // by its user, or reset
}

// explain turns the error of an engine whose session has ended into the reason
// for that. engine.ErrClosed is the reason only where this side has closed the
// stream, and not because its session failed.
func (s *clientStream) explain(err error) error {
	if err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) || s.closed.Load() {
		return err
	}
	if s.session.replaced.Load() {
		return errForgotten
	}
	if cause := s.session.client.Err(); cause != nil {
		return cause
	}
	return err
}

// Close ends both directions. See engine.Stream.
func (s *clientStream) Close() error {
	s.closed.Store(true)
	return s.Stream.Close()
}

// Reset ends both directions by a failure. See engine.Stream.
func (s *clientStream) Reset() error {
	s.closed.Store(true)
	return s.Stream.Reset()
}

func (s *clientStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	return n, s.explain(err)
}

func (s *clientStream) Write(p []byte) (int, error) {
	n, err := s.Stream.Write(p)
	return n, s.explain(err)
}

// ServerStream is a Stream with what is known of its client.
type ServerStream struct {
	engine.Stream
	session *carrier.Session
	holder  holder
	moved   atomic.Int64 // when something passed, in nanoseconds since 1970
	once    sync.Once
	onClose func()
}

// Session is a short name of the stream's session for the log.
func (s *ServerStream) Session() string { return s.session.Name() }

func (s *ServerStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	s.moved.Store(time.Now().UnixNano())
	return n, err
}

func (s *ServerStream) Write(p []byte) (int, error) {
	n, err := s.Stream.Write(p)
	s.moved.Store(time.Now().UnixNano())
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
