package mux

import (
	"io"
	"sync"

	"github.com/xtaci/smux"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

// Stream implements engine.Stream; half.Both has its Read and Write. It is safe for
// concurrent use.
type Stream struct {
	session *Session // never changes, like id
	id      uint32
	smux    *smux.Stream // set before the Stream is handed out; guarded by the session's life
	half.Both
	sending sync.Mutex // held while smux is given a frame, so that none follows the FIN

	closed bool // this side has closed the stream; the session's mutex guards what follows

	// Towards this side:
	credit
	unread int      // bytes that have come, and Read has not returned
	frames []uint16 // the bodies that they came in, in bytes, what is read of the first included
	begun  int      // bytes of the first frame that Read has returned
	cost   int      // the memory that the frames take, in bytes
	fin    bool     // the other side has ended its direction
	reset  bool     // the other side's end is a failure
	ate    bool     // Read has returned the end of file: that no failure undoes

	// And away from it:
	sent       uint32 // bytes given to smux, modulo 2^32
	sentBefore uint32 // of them before the session's last rest
	consumed   uint32 // of them read by the other side, as far as it has said
	window     uint32 // bytes that may be sent beyond consumed
	stopped    bool   // the other side reads no more
	ended      bool   // this side has ended its direction
}

// add makes a stream and returns the frame that tells its window. The mutex is held.
func (s *Session) add(id uint32) []byte {
	s.hold(streamCost)
	st := &Stream{session: s, id: id, window: firstWindow}
	st.Both = half.New(s.carrier, st.read, st.write)
	s.streams[id] = st
	return st.grant(openPart)
}

// read reads what has come, if anything has.
func (st *Stream) read(p []byte, _ <-chan struct{}) (int, error) {
	s := st.session
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case st.closed:
		return 0, engine.ErrClosed
	case len(p) == 0:
		return 0, nil
	case st.unread > 0:
	case st.reset && !st.ate:
		return 0, engine.ErrReset
	case st.fin:
		st.ate = true
		return 0, io.EOF
	case s.over:
		return 0, s.channel.Err()
	default:
		return 0, nil
	}
	s.mu.Unlock()
	s.use()
	n, err := st.smux.Read(p) // has it, or is about to: the goroutine that called the tap puts it there
	s.life.RUnlock()
	s.mu.Lock()
	switch {
	case st.closed:
		return 0, engine.ErrClosed
	case n == 0:
		return 0, s.fail(err)
	}
	st.unread -= n
	st.taken += uint32(n)
	if st.begun += n; st.begun == int(st.frames[0]) { // smux returns no more than the rest of a frame
		freed := cost(st.begun)
		st.frames, st.begun, st.cost = st.frames[1:], 0, st.cost-freed
		s.hold(-freed)
		s.promise(-freed)
	}
	if len(st.frames) == 0 {
		st.frames = nil
	}
	if read := st.taken - st.told; !st.fin && read >= min(updateEvery, (st.edge-st.told)/2) {
		s.put(st.grant(growPart)) // fails with the session only
	}
	return n, nil // an error that comes with bytes comes again
}

// write has smux send a frame of p, with its turn among the session's streams and when
// the channel has room.
func (st *Stream) write(p []byte, passed <-chan struct{}) (int, error) {
	s := st.session
	s.mu.Lock()
	n, err := st.allowed(len(p))
	s.mu.Unlock()
	if n == 0 {
		return 0, err
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-st.Writes.Changed:
		half.Signal(st.Writes.Changed) // put back: who calls waits for it
		return 0, nil
	case <-passed:
		return 0, nil
	}
	if !wait(s.channel.Room, st.Writes.Changed, passed) {
		half.Signal(st.Writes.Changed)
		return 0, nil
	}
	st.sending.Lock()
	defer st.sending.Unlock()
	s.use()
	defer s.life.RUnlock()
	s.mu.Lock()
	n, err = st.allowed(len(p)) // it may be less than before
	st.sent += uint32(n)        // before the other side can have read it
	s.mu.Unlock()
	if n > 0 {
		if n, err = st.smux.Write(p[:n]); err != nil {
			err = s.fail(err)
		}
	}
	return n, err
}

// allowed is how many of want bytes may be sent in a frame now, or why none may.
// The session's mutex is held.
func (st *Stream) allowed(want int) (int, error) {
	switch {
	case st.closed || st.ended:
		return 0, engine.ErrClosed
	case st.stopped:
		return 0, engine.ErrReset
	case st.session.channel.Err() != nil:
		return 0, st.session.channel.Err()
	}
	room := int64(st.window) - int64(st.sent-st.consumed)
	return int(max(min(room, int64(want), frameSize), 0)), nil
}

// CloseWrite implements engine.Stream.
func (st *Stream) CloseWrite() error { return st.end(noticeNone) }

// Close implements engine.Stream.
func (st *Stream) Close() error {
	st.end(noticeStop)
	return nil
}

// Reset implements engine.Stream.
func (st *Stream) Reset() error {
	st.end(noticeReset)
	return nil
}

// end ends this side's direction, and with a notice both, of which it tells the other
// side how.
func (st *Stream) end(how byte) error {
	st.sending.Lock()
	defer st.sending.Unlock()
	s := st.session
	s.mu.Lock()
	if st.closed {
		s.mu.Unlock()
		return engine.ErrClosed
	}
	notify := how == noticeReset || !st.fin
	st.ended, st.closed = true, how != noticeNone
	if st.closed {
		s.hold(-st.cost)
		s.promise(st.unread - st.room() - st.cost)
		st.edge, st.unread, st.frames, st.cost = st.taken, 0, nil, 0
	}
	half.Signal(st.Writes.Changed)
	s.mu.Unlock()
	s.use()
	defer s.life.RUnlock()
	if how == noticeNone {
		st.smux.CloseWrite() // fails with the session, or a second time
		return nil
	}
	st.Forget()
	if notify {
		s.put(notice(how, st.id)) // before the FIN, which would be an end of file
	}
	st.smux.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st.id) // not before smux has: its number is not free yet
	s.hold(-streamCost)
	return nil
}
