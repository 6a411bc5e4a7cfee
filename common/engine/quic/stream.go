package quic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
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

	// grace is how long a call goes on when the session has ended. It is ended by a
	// deadline, after which the library returns nothing, not even what has come.
	grace = time.Millisecond
)

var errOpening = errors.New("a stream does not begin with its opening")

// stream implements engine.Stream on one of the library's streams, whose deadlines
// unblock Read and Write.
type stream struct {
	half.Addresses
	session *session
	str     *quic.Stream
	inbox   *inbox
	unwatch func() bool // has the session's end wake nobody

	reading sync.Mutex
	opening bool // the opening is the next byte; guarded by reading
	writing sync.Mutex

	deadlines sync.Mutex  // held while they are moved
	ended     atomic.Bool // CloseWrite, Close or Reset was called
	closed    atomic.Bool // Close or Reset was called
}

func newStream(s *session, str *quic.Stream) *stream {
	st := &stream{Addresses: s, session: s, str: str, inbox: s.account.opened(str.StreamID()), opening: !s.client}
	if s.client {
		str.Write([]byte{opening}) // does not block; an error comes again
	}
	st.unwatch = context.AfterFunc(s.ctx, func() { st.last(st.str.SetDeadline) })
	return st
}

// Read implements net.Conn. An error that matches engine.ErrReset may come before
// the last byte: the other side has reset the stream, or the session has ended.
func (st *stream) Read(p []byte) (int, error) {
	st.reading.Lock()
	defer st.reading.Unlock()
	if st.opening {
		var b [1]byte
		switch n, err := st.read(b[:]); {
		case n == 0 && err == io.EOF, n == 1 && b[0] != opening:
			return 0, st.session.lost(errOpening)
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
		st.last(st.str.SetReadDeadline)
		n, err = st.str.Read(p)
	}
	if n > 0 {
		st.session.account.read(st.inbox, n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil // the library looks at the deadline between two frames, too; it comes again
		}
	}
	return n, st.failure(err, &st.closed)
}

// failure says what an error of the library means for Read or Write, which this side
// may have ended.
func (st *stream) failure(err error, over *atomic.Bool) error {
	switch ended := st.session.err(); {
	case err != nil && (over.Load() || ended == engine.ErrClosed):
		return engine.ErrClosed
	case err != nil && err != io.EOF && ended != nil:
		return ended
	case err == nil, err == io.EOF, errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	return fmt.Errorf("%w: quic: %w", engine.ErrReset, err)
}

// Write implements net.Conn. It returns when all but the last packet of p has
// been sent, and blocks while the path or the other side has no room.
func (st *stream) Write(p []byte) (n int, err error) {
	st.writing.Lock()
	defer st.writing.Unlock()
	if err = st.session.err(); err == nil {
		n, err = st.session.write(st.str, p)
	}
	return n, st.failure(err, &st.ended)
}

func (st *stream) CloseWrite() error {
	if st.closed.Load() || st.session.err() == engine.ErrClosed {
		return engine.ErrClosed
	}
	st.ended.Store(true)
	st.finish()
	return nil
}

// finish ends this side's direction. The library allows its Close neither during a
// Write nor to unblock one.
func (st *stream) finish() {
	st.deadlines.Lock()
	defer st.deadlines.Unlock()
	st.str.SetWriteDeadline(time.Now())
	st.writing.Lock()
	defer st.writing.Unlock()
	st.str.Close()
}

func (st *stream) Close() error { return st.leave(stopCode, st.finish) }

func (st *stream) Reset() error { return st.leave(resetCode, func() { st.str.CancelWrite(resetCode) }) }

// leave ends both directions, this side's by end, if that was not done before.
func (st *stream) leave(code quic.StreamErrorCode, end func()) error {
	if !st.closed.Swap(true) {
		st.ended.Store(true)
		st.unwatch()
		st.str.CancelRead(code)
		end()
		st.session.account.closed(st.inbox, st.str)
	}
	return nil
}

func (st *stream) SetDeadline(t time.Time) error      { return st.move(st.str.SetDeadline, t) }
func (st *stream) SetReadDeadline(t time.Time) error  { return st.move(st.str.SetReadDeadline, t) }
func (st *stream) SetWriteDeadline(t time.Time) error { return st.move(st.str.SetWriteDeadline, t) }

// move moves a deadline. When the session has ended there is the last one, or it comes:
// who moves it over and over would else have a call go on for ever.
func (st *stream) move(set func(time.Time) error, t time.Time) error {
	st.deadlines.Lock()
	defer st.deadlines.Unlock()
	switch {
	case st.closed.Load():
		return engine.ErrClosed
	case st.session.err() != nil:
		return nil
	}
	return set(t)
}

// last sets the deadline of a call that goes on when the session has ended.
func (st *stream) last(set func(time.Time) error) {
	st.deadlines.Lock()
	defer st.deadlines.Unlock()
	set(time.Now().Add(grace))
}
