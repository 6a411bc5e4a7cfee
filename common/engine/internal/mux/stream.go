package mux

import (
	"io"
	"os"
	"sync"

	"github.com/xtaci/smux"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

const (
	// Writes of at most smallWrite bytes gather, gatherSize at most. A frame costs
	// some 3 µs in smux, however small it is: gathered, a write of 100 bytes takes
	// 0.29 µs of the processors where it took 4.6 (BenchmarkWrites, both ends). Twice
	// as much would save a quarter of that, and may wait when streams are closed.
	smallWrite = 2 << 10
	gatherSize = 8 << 10
)

// stages are buffers for small writes.
var stages = sync.Pool{New: func() any { return new([gatherSize]byte) }}

// Stream implements engine.Stream. It is safe for concurrent use.
type Stream struct {
	session *Session // never changes, like id
	id      uint32
	smux    *smux.Stream // set before the Stream is handed out; guarded by the session's life

	half.Both
	sending sync.Mutex // held while smux is given a frame, so that none follows the FIN

	incoming // the session's mutex guards what follows
	outgoing
	closed bool // this side has closed the stream
}

// incoming is what is known of the direction towards this side.
type incoming struct {
	credit
	unread int      // bytes that have come, and Read has not returned
	frames []uint16 // the bodies that they came in, in bytes, what is read of the first included
	begun  int      // bytes of the first frame that Read has returned
	cost   int      // the memory that the frames take, in bytes
	fin    bool     // the other side has ended its direction
	reset  bool     // the other side's end is a failure
	ate    bool     // Read has returned the end of file: that no failure undoes
}

// outgoing is what is known of the direction away from this side.
type outgoing struct {
	sent       uint32 // bytes given to smux, modulo 2^32
	sentBefore uint32 // of them before the session's last rest
	consumed   uint32 // of them read by the other side, as far as it has said
	window     uint32 // bytes that may be sent beyond consumed
	staged     []byte // small writes that have not been given to smux, from the pool; nil: none
	flushing   bool   // flush runs
	answers    bool   // Read has returned bytes, and nothing was written since
	stopped    bool   // the other side reads no more
	ended      bool   // this side has ended its direction
}

// add makes a stream and returns its window. The mutex is held.
func (s *Session) add(id uint32) (window int) {
	s.hold(streamCost)
	st := &Stream{
		session:  s,
		id:       id,
		Both:     half.Both{Addresses: s.carrier, Reads: half.New(make(chan struct{}, 1)), Writes: half.New(make(chan struct{}, 1))},
		outgoing: outgoing{window: firstWindow},
	}
	st.begin()
	s.streams[id] = st
	return st.room()
}

// Read implements net.Conn.
func (st *Stream) Read(p []byte) (int, error) {
	st.Reads.Enter()
	defer st.Reads.Leave()
	for {
		passed := st.Reads.Passed()
		ready, err := st.look(passed, len(p))
		if err != nil || len(p) == 0 {
			return 0, err
		}
		if ready {
			return st.read(p)
		}
		st.Reads.Wait(passed)
	}
}

// look tells whether bytes wait to be read, or why none will.
func (st *Stream) look(passed <-chan struct{}, want int) (ready bool, err error) {
	st.session.mu.Lock()
	defer st.session.mu.Unlock()
	switch {
	case st.closed:
		return false, engine.ErrClosed
	case half.IsClosed(passed):
		return false, os.ErrDeadlineExceeded
	case want == 0:
		return false, nil
	case st.unread > 0:
		return true, nil
	case st.reset && !st.ate:
		return false, engine.ErrReset
	case st.fin:
		st.ate = true
		return false, io.EOF
	case st.session.over:
		return false, st.session.channel.Err()
	}
	return false, nil
}

// read reads what has come. smux has it, or is about to: the goroutine that
// called the tap puts it there.
func (st *Stream) read(p []byte) (int, error) {
	s := st.session
	s.use()
	n, err := st.smux.Read(p)
	s.life.RUnlock()
	read, window, err := st.took(n, err)
	if window > 0 {
		s.put(update(st.id, read, window)) // fails with the session only
	}
	if err != nil {
		return 0, err
	}
	return n, nil // an error that comes with bytes comes again
}

// took takes note of what smux has returned to a Read. It returns what Read fails
// with, if it does, and what the other side shall hear of it, unless window is 0.
func (st *Stream) took(n int, err error) (read uint32, window int, failure error) {
	s := st.session
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case st.closed:
		return 0, 0, engine.ErrClosed
	case n == 0 && st.fin: // smux has dropped what a plain smux sent behind its end
		st.dismiss()
		return 0, 0, io.EOF
	case n == 0:
		return 0, 0, s.failure(err)
	}
	st.answers = true
	st.unread -= n
	st.taken += uint32(n)
	for st.begun += n; len(st.frames) > 0 && st.begun >= int(st.frames[0]); st.frames = st.frames[1:] {
		st.begun -= int(st.frames[0])
		freed := cost(int(st.frames[0]))
		st.cost -= freed
		s.hold(-freed)
		s.promise(-freed)
	}
	if len(st.frames) == 0 {
		st.frames = nil
	}
	if st.extend() {
		return st.taken, st.room(), nil
	}
	return 0, 0, nil
}

// dismiss takes off the account what will not be read. The session's mutex is held.
func (st *Stream) dismiss() {
	st.session.hold(-st.cost)
	st.session.promise(st.unread - st.room() - st.cost)
	st.edge = st.taken
	st.unread, st.frames, st.begun, st.cost = 0, nil, 0, 0
}

// Write implements net.Conn. What is small it leaves to flush, if there is room
// where that gathers. Else, and if it may be an answer that somebody waits for, it
// returns when the channel has taken all of p: a frame at a time waits for the
// other side's window, for its turn among the session's streams, and for the
// carrier.
func (st *Stream) Write(p []byte) (int, error) {
	st.Writes.Enter()
	defer st.Writes.Leave()
	for total := 0; ; {
		passed := st.Writes.Passed()
		taken, size, err := st.offer(passed, p[total:])
		total += taken
		if err != nil || total == len(p) {
			return total, err
		}
		if size == 0 {
			st.Writes.Wait(passed)
			continue
		}
		n, err := st.send(p[total:total+size], st.Writes.Changed, passed)
		total += n
		if err != nil {
			return total, err
		}
	}
}

// offer takes p if it is small and there is room for it. Else it says how many
// bytes of p may be sent in a frame now, or why none may.
func (st *Stream) offer(passed <-chan struct{}, p []byte) (taken, size int, err error) {
	st.session.mu.Lock()
	defer st.session.mu.Unlock()
	size, err = st.allowed(passed, len(p))
	if err != nil || size == 0 || size < len(p) || size > smallWrite || len(st.staged)+size > gatherSize {
		return 0, size, err
	}
	if st.answers {
		st.answers = false
		return 0, size, nil // without the goroutine: 12 µs there and back in place of 22
	}
	if st.staged == nil {
		st.staged = stages.Get().(*[gatherSize]byte)[:0]
		st.session.hold(gatherSize)
	}
	st.staged = append(st.staged, p...)
	if !st.flushing {
		st.flushing = true
		go st.flush()
	}
	return size, 0, nil
}

// allowed is how many of want bytes may be sent in a frame now, or why none may.
// The session's mutex is held.
func (st *Stream) allowed(passed <-chan struct{}, want int) (int, error) {
	switch {
	case st.closed || st.ended:
		return 0, engine.ErrClosed
	case st.stopped:
		return 0, engine.ErrReset
	case st.session.channel.Err() != nil:
		return 0, st.session.channel.Err()
	case half.IsClosed(passed):
		return 0, os.ErrDeadlineExceeded
	}
	room := int64(st.window) - int64(st.sent-st.consumed) - int64(len(st.staged))
	return int(max(min(room, int64(want), frameSize), 0)), nil
}

// flush gives smux what is staged until nothing is: what is written meanwhile goes
// in one frame.
func (st *Stream) flush() {
	for st.flushes() {
		st.send(nil, nil, nil)
	}
}

// flushes tells whether flush has something to do.
func (st *Stream) flushes() bool {
	st.session.mu.Lock()
	defer st.session.mu.Unlock()
	st.flushing = len(st.staged) > 0
	return st.flushing
}

// send gives smux what is staged, and then p in a frame, as soon as it has the turn
// and the channel has room. It returns early, having sent nothing of p, when
// something has changed or the deadline has passed.
func (st *Stream) send(p []byte, changed, passed <-chan struct{}) (int, error) {
	s := st.session
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-changed:
		return 0, nil
	case <-passed:
		return 0, nil
	}
	for room, ok := s.channel.Room(); !ok; room, ok = s.channel.Room() {
		select {
		case <-room:
		case <-changed:
		case <-passed:
		}
		if _, _, err := st.offer(passed, nil); err != nil && len(p) > 0 {
			return 0, err
		}
	}
	st.sending.Lock()
	defer st.sending.Unlock()
	s.use()
	defer s.life.RUnlock()
	if st.push() && len(p) <= smallWrite {
		return 0, nil // it can gather again
	}
	s.mu.Lock()
	size, err := st.allowed(nil, len(p))
	st.sent += uint32(size) // before the other side can have read it
	s.mu.Unlock()
	if err != nil || size == 0 {
		return 0, err
	}
	n, err := st.smux.Write(p[:size])
	if err != nil {
		err = s.failure(err)
	}
	return n, err
}

// push gives smux what is staged, if anything is. sending and life are held.
func (st *Stream) push() bool {
	s := st.session
	s.mu.Lock()
	staged := st.staged
	st.staged = nil
	st.sent += uint32(len(staged))
	s.mu.Unlock()
	if staged == nil {
		return false
	}
	if _, err := st.smux.Write(staged); err != nil {
		s.channel.Fail(err) // it was said to be written
	}
	stages.Put((*[gatherSize]byte)(staged[:gatherSize]))
	s.mu.Lock()
	s.hold(-gatherSize)
	s.mu.Unlock()
	return true
}

// CloseWrite implements engine.Stream.
func (st *Stream) CloseWrite() error {
	st.sending.Lock()
	defer st.sending.Unlock()
	s := st.session
	s.mu.Lock()
	closed, ended := st.closed, st.ended
	st.ended = true
	half.Signal(st.Writes.Changed)
	s.mu.Unlock()
	switch {
	case closed:
		return engine.ErrClosed
	case !ended:
		s.use()
		defer s.life.RUnlock()
		st.push()
		st.smux.CloseWrite() // fails with the session only
	}
	return nil
}

// Close implements engine.Stream.
func (st *Stream) Close() error { return st.close(noticeStop) }

// Reset implements engine.Stream.
func (st *Stream) Reset() error { return st.close(noticeReset) }

// close ends both directions, and tells the other side how.
func (st *Stream) close(how byte) error {
	st.sending.Lock()
	defer st.sending.Unlock()
	s := st.session
	s.mu.Lock()
	if st.closed {
		s.mu.Unlock()
		return nil
	}
	notify := how == noticeReset || !st.fin
	if how == noticeReset && st.staged != nil {
		st.staged = nil // to be thrown away
		s.hold(-gatherSize)
	}
	st.closed, st.ended = true, true
	st.dismiss()
	s.mu.Unlock()
	st.Forget()
	s.use()
	defer s.life.RUnlock()
	st.push()
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
