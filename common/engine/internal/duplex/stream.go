// Package duplex is the half of a stream that applications see: two byte
// queues with blocking reads and writes, deadlines, half-close and close. An
// engine whose library does not offer that with the right semantics moves
// bytes between these queues and its protocol.
//
// A Stream shares one mutex with its session. The methods of engine.Stream take
// it; the others are the session's and are called with it held.
package duplex

import (
	"net"
	"os"
	"sync"
	"time"

	"turbotunnel/common/engine"
)

// sendLimit is how many bytes written may wait for the session to take them.
// It covers the moment between two turns of the session; what is in flight is
// held elsewhere.
const sendLimit = 128 << 10

// Session is what a Stream needs of the session that it belongs to. Its
// methods are called with the session's mutex held.
type Session interface {
	// Written says that s has something new to send: bytes, its end, or its
	// stop.
	Written(s *Stream)

	// Consumed says that the application has taken n bytes out of s, or that
	// they were thrown away because the application has closed s.
	Consumed(s *Stream, n int)
}

// A Stream implements engine.Stream. It is safe for concurrent use.
type Stream struct {
	mu            *sync.Mutex // the session's; guards everything below
	session       Session
	local, remote net.Addr

	in       queue
	inEnd    error // what Read returns after the last byte of in; nil: more may come
	readable sync.Cond
	readBy   deadline

	out      queue
	outErr   error // what Write returns; nil: it may write
	ended    bool  // Close or CloseWrite: the end follows the last byte of out
	outOver  bool  // nothing is left to send: the end was taken, or nobody reads it
	writable sync.Cond
	writeBy  deadline
	writing  bool // a Write is in progress: its bytes stay together

	closed bool // Close was called
	inOver bool // nothing is left to receive: it has ended, or the stop was taken
}

// New returns a stream of session, whose mutex is mu.
func New(mu *sync.Mutex, session Session, local, remote net.Addr) *Stream {
	s := &Stream{mu: mu, session: session, local: local, remote: remote}
	s.readable.L = mu
	s.writable.L = mu
	return s
}

// Read implements net.Conn. After the last byte it returns io.EOF if the other
// side has ended its direction, an error that matches engine.ErrReset if the
// stream ended otherwise, and engine.ErrClosed after Close.
func (s *Stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, engine.ErrClosed
		case s.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case s.in.n > 0:
			n := s.in.read(p)
			if s.in.n > 0 {
				s.readable.Signal() // another reader may be waiting
			}
			s.session.Consumed(s, n)
			return n, nil
		case s.inEnd != nil:
			return 0, s.inEnd
		}
		s.readable.Wait()
	}
}

// Write implements net.Conn. It returns when p is queued, and blocks while
// more than a small queue waits for the session.
func (s *Stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := false
	total := 0
	for {
		switch {
		case s.outErr != nil:
			return total, s.release(mine, s.outErr)
		case s.writeBy.passed():
			return total, s.release(mine, os.ErrDeadlineExceeded)
		case len(p) == 0:
			return total, s.release(mine, nil)
		case mine || !s.writing:
			mine, s.writing = true, true
			if room := sendLimit - s.out.n; room > 0 {
				n := min(room, len(p))
				s.out.write(p[:n])
				p = p[n:]
				total += n
				s.session.Written(s)
				continue
			}
		}
		s.writable.Wait()
	}
}

// release ends a Write: the next one may begin.
func (s *Stream) release(mine bool, err error) error {
	if mine {
		s.writing = false
		s.writable.Broadcast()
	}
	return err
}

// CloseWrite implements engine.Stream.
func (s *Stream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return engine.ErrClosed
	}
	s.end()
	return nil
}

// Close implements engine.Stream. Closing twice is allowed.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.readBy.stop()
	s.writeBy.stop()
	s.end()
	s.outErr = engine.ErrClosed
	n := s.in.n
	s.in.clear()
	s.readable.Broadcast()
	s.writable.Broadcast()
	if n > 0 {
		s.session.Consumed(s, n)
	}
	s.session.Written(s)
	return nil
}

// end closes the outgoing direction.
func (s *Stream) end() {
	if s.ended {
		return
	}
	s.ended = true
	if s.outErr == nil {
		s.outErr = engine.ErrClosed
	}
	s.writable.Broadcast()
	s.session.Written(s)
}

// LocalAddr implements net.Conn. The address belongs to the carrier.
func (s *Stream) LocalAddr() net.Addr { return s.local }

// RemoteAddr implements net.Conn. The address belongs to the carrier.
func (s *Stream) RemoteAddr() net.Addr { return s.remote }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error {
	return s.setDeadline(&s.readBy, &s.readable, t)
}

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	return s.setDeadline(&s.writeBy, &s.writable, t)
}

func (s *Stream) setDeadline(d *deadline, c *sync.Cond, t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return engine.ErrClosed
	}
	d.set(c, t)
	return nil
}

// What follows is for the session and needs its mutex held.

// Deliver appends bytes that the other side sent. They are thrown away when
// the application has closed the stream, or when the direction has ended.
func (s *Stream) Deliver(p []byte) {
	if len(p) == 0 || s.inEnd != nil {
		return
	}
	if s.closed {
		s.session.Consumed(s, len(p))
		return
	}
	s.in.write(p)
	s.readable.Signal()
}

// End says that no more will be delivered; after the last byte Read returns
// err. Only the first call counts.
func (s *Stream) End(err error) {
	if s.inEnd == nil {
		s.inEnd = err
		s.inOver = true
		s.readable.Broadcast()
	}
}

// Stopped says that the other side reads no more: what waits to be sent is
// thrown away and Write fails with engine.ErrReset.
func (s *Stream) Stopped() { s.stopped(engine.ErrReset) }

func (s *Stream) stopped(err error) {
	if s.outErr == nil {
		s.outErr = err
	}
	s.outOver = true
	s.out.clear()
	s.writable.Broadcast()
}

// Abort ends both directions with err because the session has ended. What the
// other side had sent completely can still be read.
func (s *Stream) Abort(err error) {
	s.End(err)
	s.stopped(err)
}

// Buffered is how many bytes wait for Read.
func (s *Stream) Buffered() int { return s.in.n }

// Waiting is how many written bytes have not been taken.
func (s *Stream) Waiting() int { return s.out.n }

// Take moves written bytes into p.
func (s *Stream) Take(p []byte) int {
	n := s.out.read(p)
	if n > 0 && s.out.n <= sendLimit/2 {
		s.writable.Broadcast() // to all: only one of them is the Write in progress
	}
	return n
}

// EndDue tells whether this side's end is the next thing to send.
func (s *Stream) EndDue() bool { return s.ended && !s.outOver && s.out.n == 0 }

// TakeEnd tells whether this side's end is due, and takes it for sent.
func (s *Stream) TakeEnd() bool {
	due := s.EndDue()
	s.outOver = s.outOver || due
	return due
}

// StopDue tells whether the other side must be told that nobody reads what it
// sends.
func (s *Stream) StopDue() bool { return s.closed && !s.inOver }

// TakeStop tells whether the stop is due, and takes it for sent.
func (s *Stream) TakeStop() bool {
	due := s.StopDue()
	s.inOver = s.inOver || due
	return due
}

// HasEnd tells whether End was called.
func (s *Stream) HasEnd() bool { return s.inEnd != nil }

// Receives tells whether more may come that somebody wants.
func (s *Stream) Receives() bool { return !s.inOver }

// Over tells whether the session has nothing more to do for the stream: each
// direction has been sent or received to its end, or was given up.
func (s *Stream) Over() bool { return s.outOver && s.inOver }

// deadline is one of a stream's two. The session's mutex guards it.
type deadline struct {
	at    time.Time
	timer *time.Timer // wakes the waiters at that time; nil if none is needed
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) set(c *sync.Cond, t time.Time) {
	d.stop()
	d.at = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			c.L.Lock()
			defer c.L.Unlock()
			c.Broadcast()
		})
	}
	c.Broadcast()
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}
