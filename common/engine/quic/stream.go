package quic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
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

	// lateTime is how long a Read after the session's end waits for what may
	// lie in the library, which can only be asked by waiting.
	lateTime = time.Millisecond
)

var errOpening = errors.New("a stream does not begin with its opening")

// stream implements engine.Stream on one of the library's streams, which it
// has to wait for while the handshake is not done. The library allows Close neither
// during a Write nor to unblock one; so whoever ends this side's direction sets a
// write deadline and waits for the Write in progress.
type stream struct {
	half.Both
	session *session
	opening bool        // the opening is the next byte; for the Read in progress
	unwatch func() bool // ends that wake is called at the session's end

	mu     sync.Mutex // guards what follows; taken after the session's
	str    *quic.Stream
	early  []byte // what the library has not been given; nil: it has everything
	ended  bool   // CloseWrite, Close or Reset was called
	closed bool   // Close or Reset was called
	reset  bool   // Reset was called, and Close was not before
}

// newStream returns a stream. str is nil before the handshake is done.
func newStream(s *session, str *quic.Stream) *stream {
	st := &stream{session: s, str: str}
	st.Both = half.Both{
		Addresses: s.pipe,
		Reads:     half.New(make(chan struct{}, 1)),
		Writes:    half.New(make(chan struct{}, 1)),
		Moved:     st.passDeadlines,
	}
	if s.client {
		st.early = []byte{opening}
		s.pipe.Hold(streamCost)
	} else {
		st.opening = true
		s.account.opened(str.StreamID())
	}
	st.unwatch = context.AfterFunc(s.ctx, st.wake)
	return st
}

// forget says that the stream is closed, if it was not before. mu is held.
func (st *stream) forget() {
	if st.closed {
		return
	}
	st.closed = true
	st.unwatch()
	if st.session.client {
		st.session.pipe.Hold(-streamCost)
	} else {
		st.session.account.closed(st.str)
	}
}

// attach gives a stream that was opened early what the library has made for it.
func (st *stream) attach(str *quic.Stream) {
	defer st.passDeadlines()
	st.mu.Lock()
	defer st.mu.Unlock()
	st.str = str
	st.signal()
	if st.reset {
		st.abandon()
		return
	}
	st.flush()
	if st.ended {
		str.Close()
	}
	if st.closed {
		str.CancelRead(stopCode)
	}
}

// wake makes Read and Write look at the session, which has ended.
func (st *stream) wake() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.str != nil {
		st.str.SetDeadline(time.Now())
	}
	st.signal()
}

// signal makes Read and Write look whether they still have to wait for str.
func (st *stream) signal() {
	half.Signal(st.Reads.Changed)
	half.Signal(st.Writes.Changed)
}

// announce lets the other side know of a stream on which nothing was written.
func (st *stream) announce() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.session.err() == nil {
		st.flush()
	}
}

// flush gives the library the early bytes. mu is held, and str is set.
func (st *stream) flush() {
	if st.early == nil {
		return
	}
	st.str.SetWriteDeadline(time.Time{})
	st.str.Write(st.early) // does not block; an error comes again
	st.early = nil
	st.str.SetWriteDeadline(st.Writes.By())
}

// abandon has the library reset the stream. mu is held, and str is set. It does
// not wait for the Write in progress, which the library ends.
func (st *stream) abandon() {
	st.str.CancelWrite(resetCode)
	st.str.CancelRead(resetCode)
}

// readable is nil unless Read must not ask the library. mu is held.
func (st *stream) readable() error {
	err := st.session.err()
	switch {
	case st.closed || err == engine.ErrClosed:
		return engine.ErrClosed
	case st.str != nil:
		return nil // it may have something that came before the session's end
	}
	return err
}

// writable is nil unless Write must not begin. mu is held.
func (st *stream) writable() error {
	switch {
	case st.ended:
		return engine.ErrClosed
	case st.session.err() != nil:
		return st.session.err()
	case half.IsClosed(st.Writes.Passed()):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// await waits for str, not longer than h may, and as long as able returns no error.
// mu is held.
func (st *stream) await(h *half.Half, able func() error) error {
	for {
		if err := able(); err != nil || st.str != nil {
			return err
		}
		passed := h.Passed()
		if half.IsClosed(passed) {
			return os.ErrDeadlineExceeded
		}
		st.mu.Unlock()
		h.Wait(passed)
		st.mu.Lock()
	}
}

// Read implements net.Conn. An error that matches engine.ErrReset may come before
// the last byte: the other side has reset the stream, or the session has ended.
func (st *stream) Read(p []byte) (int, error) {
	st.Reads.Enter()
	defer st.Reads.Leave()
	st.mu.Lock()
	err := st.await(&st.Reads, st.readable)
	st.mu.Unlock()
	if err != nil {
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

func (st *stream) read(p []byte) (int, error) {
	n, err := st.str.Read(p)
	if n == 0 && st.session.err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		st.str.SetReadDeadline(time.Now().Add(lateTime))
		n, err = st.str.Read(p)
	}
	if n > 0 && !st.session.client {
		st.session.account.read(st.str.StreamID(), n)
	}
	if n > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil // the library looks at the deadline between two frames, too; it comes again
	}
	return n, st.failure(err, false)
}

// failure says what an error of the library means for Read or Write.
func (st *stream) failure(err error, writing bool) error {
	if err == nil || err == io.EOF {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	ended := st.session.err()
	switch {
	case st.closed || ended == engine.ErrClosed || writing && st.ended:
		return engine.ErrClosed
	case ended != nil:
		return ended
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	return fmt.Errorf("%w: quic: %w", engine.ErrReset, err)
}

// Write implements net.Conn. It returns when all but the last packet of p has
// been sent, and blocks while the path or the other side has no room.
func (st *stream) Write(p []byte) (int, error) {
	st.Writes.Enter()
	defer st.Writes.Leave()
	n, err := st.writeEarly(p)
	if err != nil || n == len(p) {
		return n, err
	}
	m, err := st.session.write(st.str, p[n:])
	return n + m, st.failure(err, true)
}

// writeEarly writes as much of p as goes with the opening, and waits until the
// rest can go to the library.
func (st *stream) writeEarly(p []byte) (int, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.writable(); err != nil || st.early == nil {
		return 0, err
	}
	n := min(len(p), earlyLimit-len(st.early))
	st.early = append(st.early, p[:n]...)
	if st.str != nil {
		st.flush()
	} else if n < len(p) {
		return n, st.await(&st.Writes, st.writable)
	}
	return n, nil
}

func (st *stream) CloseWrite() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed || st.session.err() == engine.ErrClosed {
		return engine.ErrClosed
	}
	st.finish()
	return nil
}

func (st *stream) Close() error {
	defer st.Forget()
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.closed && st.str != nil {
		st.str.CancelRead(stopCode)
	}
	st.forget()
	st.finish()
	return nil
}

func (st *stream) Reset() error {
	defer st.Forget()
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return nil
	}
	st.forget()
	st.ended, st.reset = true, true
	st.early = nil // nobody is to read it, and RESET_STREAM announces the stream
	if st.str != nil {
		st.abandon()
	} // else attach does it
	st.signal()
	return nil
}

// finish ends this side's direction. mu is held, but while it waits for the
// Write in progress.
func (st *stream) finish() {
	ended := st.ended
	st.ended = true
	st.signal()
	if ended || st.str == nil {
		return // attach does the rest
	}
	st.str.SetWriteDeadline(time.Now())
	st.mu.Unlock()
	st.Writes.Enter()
	defer st.Writes.Leave()
	st.mu.Lock()
	st.flush()
	st.str.Close()
}

// passDeadlines gives the library the deadlines, but those that wake or finish
// has set for good.
func (st *stream) passDeadlines() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.str == nil || st.session.err() != nil {
		return
	}
	st.str.SetReadDeadline(st.Reads.By())
	if !st.ended {
		st.str.SetWriteDeadline(st.Writes.By())
	}
}
