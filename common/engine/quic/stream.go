package quic

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"turbotunnel/common/engine"
)

const (
	// opening is the first byte of each client's direction.
	opening = 0

	// stopCode and resetCode are the error codes of the package comment.
	stopCode  quic.StreamErrorCode = 0
	resetCode quic.StreamErrorCode = 1

	// earlyLimit is how many bytes a stream takes, the opening included, before
	// the library has it. The library takes as much at once whatever the
	// other side's window is (canBufferStreamFrame in its send_stream.go).
	earlyLimit = packetSize

	// openDelay is how long the opening of a stream waits for its first bytes,
	// so that a write which follows at once goes in the same packet.
	openDelay = 2 * time.Millisecond

	// lateTime is how long a Read after the session's end waits for what may
	// lie in the library, which can only be asked by waiting.
	lateTime = time.Millisecond
)

var errOpening = errors.New("a stream does not begin with its opening")

// stream implements engine.Stream on one of the library's streams, which it
// has to wait for while the handshake is not done.
//
// The library allows Close neither during a Write nor to unblock one; so
// whoever ends this side's direction sets a write deadline and waits for the
// Write in progress.
type stream struct {
	session *session
	reading chan struct{} // held by the Read in progress
	writing chan struct{} // held by the Write in progress
	opening bool          // the opening is the next byte; for the holder of reading

	mu        sync.Mutex // guards what follows; taken after the session's
	cond      sync.Cond  // any change
	str       *quic.Stream
	err       error       // why there will be no str
	early     []byte      // what the library has not been given; nil: it has everything
	announcer *time.Timer // gives early to the library; nil if str is
	ended     bool        // CloseWrite, Close or Reset was called
	closed    bool        // Close or Reset was called
	reset     bool        // Reset was called, and Close was not before
	readBy    time.Time
	writeBy   time.Time
}

// newStream returns a stream as the client opens it.
func newStream(s *session) *stream {
	st := &stream{
		session: s,
		reading: make(chan struct{}, 1),
		writing: make(chan struct{}, 1),
		early:   []byte{opening},
	}
	st.cond.L = &st.mu
	return st
}

// attach gives a stream that was opened early what the library has made for it.
func (st *stream) attach(str *quic.Stream) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.str = str
	defer st.cond.Broadcast()
	if st.reset {
		st.abandon()
		return
	}
	st.flush()
	str.SetReadDeadline(st.readBy)
	if st.ended {
		str.Close()
	}
	if st.closed {
		str.CancelRead(stopCode)
	}
}

// refuse says that there will be no str.
func (st *stream) refuse(err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.err = err
	st.cond.Broadcast()
}

// wake makes Read and Write look at the session, which has ended.
func (st *stream) wake() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.announcer != nil {
		st.announcer.Stop()
	}
	if st.str != nil {
		st.str.SetDeadline(time.Now())
	}
	st.cond.Broadcast()
}

// announce lets the other side know of a stream on which nothing was written.
func (st *stream) announce() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.flush()
}

// flush gives the library the early bytes. mu is held, and str is set.
func (st *stream) flush() {
	if st.early == nil {
		return
	}
	st.str.SetWriteDeadline(time.Time{})
	st.str.Write(st.early) // does not block; an error comes again
	st.early = nil
	st.str.SetWriteDeadline(st.writeBy)
}

// abandon has the library reset the stream. mu is held, and str is set. It does
// not wait for the Write in progress, which the library ends.
func (st *stream) abandon() {
	st.str.CancelWrite(resetCode)
	st.str.CancelRead(resetCode)
}

// over is the error of every call on a stream that was closed or whose session
// this side has closed. mu is held.
func (st *stream) over() error {
	if st.closed || st.session.err() == engine.ErrClosed {
		return engine.ErrClosed
	}
	return nil
}

// await waits for a change that is not later than by. mu is held.
func (st *stream) await(by time.Time) error {
	switch {
	case st.err != nil:
		return st.err
	case st.session.err() != nil:
		return st.session.err()
	case by.IsZero():
		st.cond.Wait()
		return nil
	}
	wait := time.Until(by)
	if wait <= 0 {
		return os.ErrDeadlineExceeded
	}
	timer := time.AfterFunc(wait, func() {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.cond.Broadcast()
	})
	st.cond.Wait()
	timer.Stop()
	return nil
}

// Read implements net.Conn. After the last byte it returns io.EOF if the other
// side has ended its direction, and engine.ErrClosed after Close or Reset. An
// error that matches engine.ErrReset may come before the last byte: the other
// side has reset the stream, or the session has ended.
func (st *stream) Read(p []byte) (int, error) {
	st.reading <- struct{}{}
	defer func() { <-st.reading }()
	if err := st.readable(); err != nil {
		return 0, err
	}
	if st.opening {
		var b [1]byte
		switch n, err := st.read(b[:]); {
		case n == 0 && err == io.EOF, n == 1 && b[0] != opening:
			st.session.lost(errOpening)
			return 0, st.session.err()
		case n == 0:
			return 0, err
		}
		st.opening = false
	}
	return st.read(p)
}

// readable waits for str.
func (st *stream) readable() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	for {
		if err := st.over(); err != nil {
			return err
		}
		if st.str != nil {
			return nil
		}
		if err := st.await(st.readBy); err != nil {
			return err
		}
	}
}

func (st *stream) read(p []byte) (int, error) {
	n, err := st.str.Read(p)
	if n == 0 && st.session.err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		st.str.SetReadDeadline(time.Now().Add(lateTime))
		n, err = st.str.Read(p)
	}
	return n, st.failure(err)
}

// failure says what an error of the library means.
func (st *stream) failure(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if over := st.over(); over != nil {
		return over
	}
	var reset *quic.StreamError
	switch ended := st.session.err(); {
	case ended != nil:
		return ended
	case errors.As(err, &reset):
		return fmt.Errorf("%w: quic: %w", engine.ErrReset, err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	return fmt.Errorf("%w: quic: %w", engine.ErrReset, err) // the session's end, which is about to be known
}

// Write implements net.Conn. It returns when all but the last packet of p has
// been sent, and blocks while the path or the other side has no room.
func (st *stream) Write(p []byte) (int, error) {
	st.writing <- struct{}{}
	defer func() { <-st.writing }()
	n, err := st.writeEarly(p)
	if err != nil || n == len(p) && n > 0 {
		return n, err
	}
	m, err := st.session.write(st.str, p[n:])
	if err != nil {
		err = st.failure(err)
		st.mu.Lock()
		if st.ended {
			err = engine.ErrClosed
		}
		st.mu.Unlock()
	}
	return n + m, err
}

// writeEarly writes as much of p as goes with the opening, and waits until the
// rest can go to the library.
func (st *stream) writeEarly(p []byte) (int, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	n := 0
	for {
		if err := st.over(); err != nil {
			return n, err
		}
		switch {
		case st.ended:
			return n, engine.ErrClosed
		case st.session.err() != nil:
			return n, st.session.err()
		case !st.writeBy.IsZero() && !time.Now().Before(st.writeBy):
			return n, os.ErrDeadlineExceeded
		case st.early == nil:
			return n, nil
		}
		k := min(len(p)-n, earlyLimit-len(st.early))
		st.early = append(st.early, p[n:n+k]...)
		n += k
		switch {
		case st.str != nil && k > 0:
			st.flush()
		case n == len(p):
			return n, nil
		default:
			if err := st.await(st.writeBy); err != nil {
				return n, err
			}
		}
	}
}

// CloseWrite implements engine.Stream.
func (st *stream) CloseWrite() error {
	st.mu.Lock()
	if err := st.over(); err != nil {
		st.mu.Unlock()
		return err
	}
	st.mu.Unlock()
	st.finish(false)
	return nil
}

// Close implements engine.Stream. Closing twice is allowed.
func (st *stream) Close() error {
	st.finish(true)
	st.session.forget(st)
	return nil
}

// Reset implements engine.Stream. What the other side has not read is lost.
func (st *stream) Reset() error {
	st.mu.Lock()
	if !st.closed {
		st.ended, st.closed, st.reset = true, true, true
		st.early = nil // nobody is to read it, and RESET_STREAM announces the stream
		if st.str != nil {
			st.abandon()
		} // else attach does it
		st.cond.Broadcast()
	}
	st.mu.Unlock()
	st.session.forget(st)
	return nil
}

// finish ends this side's direction, and the other one if closed is set.
func (st *stream) finish(closed bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	ended := st.ended
	st.ended = true
	if closed && !st.closed {
		st.closed = true
		if st.str != nil {
			st.str.CancelRead(stopCode)
		}
	}
	st.cond.Broadcast()
	if ended || st.str == nil {
		return // attach does the rest
	}
	st.str.SetWriteDeadline(time.Now())
	st.mu.Unlock()
	st.writing <- struct{}{}
	st.mu.Lock()
	st.flush()
	st.str.Close()
	<-st.writing
}

// LocalAddr implements net.Conn. The address belongs to the carrier.
func (st *stream) LocalAddr() net.Addr { return st.session.pipe.LocalAddr() }

// RemoteAddr implements net.Conn. The address belongs to the carrier.
func (st *stream) RemoteAddr() net.Addr {
	if a := st.session.pipe.remote(); a != nil {
		return a
	}
	return st.LocalAddr()
}

// SetDeadline implements net.Conn.
func (st *stream) SetDeadline(t time.Time) error { return st.setDeadline(&t, &t) }

// SetReadDeadline implements net.Conn.
func (st *stream) SetReadDeadline(t time.Time) error { return st.setDeadline(&t, nil) }

// SetWriteDeadline implements net.Conn.
func (st *stream) SetWriteDeadline(t time.Time) error { return st.setDeadline(nil, &t) }

func (st *stream) setDeadline(readBy, writeBy *time.Time) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return engine.ErrClosed
	}
	passOn := st.str != nil && st.session.err() == nil // else wake has set it for good
	if readBy != nil {
		st.readBy = *readBy
		if passOn {
			st.str.SetReadDeadline(*readBy)
		}
	}
	if writeBy != nil {
		st.writeBy = *writeBy
		if passOn && !st.ended { // else finish has set it for good
			st.str.SetWriteDeadline(*writeBy)
		}
	}
	st.cond.Broadcast()
	return nil
}
