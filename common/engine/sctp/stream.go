package sctp

import (
	"encoding/binary"

	"turbotunnel/common/engine/internal/duplex"
)

// stream is one stream of a session, whose mutex guards it.
type stream struct {
	*duplex.Stream
	session *session
	id      uint32
	queued  [2]bool // in the fifo of that class

	openDue   bool // the other side has yet to hear of the stream
	creditDue bool // the other side has yet to hear of consumed and window

	spoken bool   // last is set:
	last   uint32 // TSN of the stream's last message
	held   bool   // has little to say and waits until the carrier has taken last

	sent         uint32 // bytes, modulo 2^32
	peerConsumed uint32 // bytes of them, modulo 2^32
	peerWindow   uint32 // bytes, without pieces
	pieces       int    // taken from the session's loan

	arrived  uint32        // bytes, modulo 2^32
	consumed uint32        // bytes of them, modulo 2^32
	window   duplex.Window // in bytes
}

// Written implements duplex.Session.
func (st *stream) Written(*duplex.Stream) {
	st.announce()
	if st.StopDue() {
		st.session.urgent.push(st)
	}
	st.submit()
	st.session.pump()
}

// Consumed implements duplex.Session.
func (st *stream) Consumed(_ *duplex.Stream, n int) {
	s := st.session
	st.consumed += uint32(n)
	s.unread -= n
	if !st.Receives() {
		return
	}
	if s.budget.Consumed(&st.window, n, maxWindow, s.rtt()) {
		st.creditDue = true
		s.urgent.push(st)
		s.pump()
	}
}

// announce ends the wait of an opening that is held back, and of those before
// it: the other side expects ascending IDs.
func (st *stream) announce() {
	s := st.session
	for st.openDue && len(s.opening) > 0 && s.opening[0].id <= st.id {
		s.urgent.push(s.opening[0])
		s.opening = s.opening[1:]
	}
}

// sendable tells whether there are bytes or an end to send.
func (st *stream) sendable() bool {
	return st.EndDue() || st.Waiting() > 0 && (st.room() > 0 || st.takes())
}

// submit queues the stream if it is sendable. If a larger loan would make it so,
// the stream waits for that in refused.
func (st *stream) submit() {
	s := st.session
	switch {
	case st.sendable():
		s.bulk.push(st)
		delete(s.refused, st)
	case st.Waiting() > 0 && st.pieces < duplex.MaxPieces:
		s.refused[st] = struct{}{}
	default:
		delete(s.refused, st)
	}
}

// takes tells whether the stream may take a piece of window.
func (st *stream) takes() bool { return st.session.loan.Allows(st.pieces) }

// room is how many bytes the other side's window has left.
func (st *stream) room() int {
	return int(st.peerWindow) + st.pieces*duplex.Piece - int(st.sent-st.peerConsumed)
}

// holds tells whether the stream shall wait with what it has to send, because
// it is little and the carrier has not taken its last message. It is released
// when that has happened. So small writes gather while the carrier is busy.
func (st *stream) holds() bool {
	little := st.Waiting() < maxMessage-headerSize && st.room() > st.Waiting()
	st.held = little && st.spoken && !st.session.conn.hasTaken(st.last)
	return st.held
}

// release ends the wait of a stream that holds.
func (st *stream) release() {
	if st.held {
		st.held = false
		st.submit()
	}
}

// fill writes the stream's next message into p, which has room for maxMessage
// bytes, and returns its length, 0 if there is nothing to say.
func (st *stream) fill(p []byte) int {
	flags, n := byte(0), headerSize
	if st.openDue {
		st.openDue = false
		flags |= flagOpen
	}
	if st.TakeStop() {
		st.creditDue = false
		flags |= flagStop
	}
	if st.creditDue {
		st.creditDue = false
		flags |= flagCredit
		binary.BigEndian.PutUint32(p[n:], st.consumed)
		binary.BigEndian.PutUint32(p[n+4:], uint32(st.window.Size-st.window.Taken))
		n += creditSize
	}
	if st.Waiting() > 0 && st.room() <= 0 && st.takes() {
		st.session.loan.Take()
		st.pieces++
		flags |= flagTake
	}
	if room := min(st.room(), maxMessage-n); room > 0 {
		k := st.Take(p[n : n+room])
		st.sent += uint32(k)
		n += k
	}
	if st.TakeEnd() {
		flags |= flagFin
	}
	if flags == 0 && n == headerSize {
		return 0
	}
	p[0] = flags
	binary.BigEndian.PutUint32(p[1:], st.id)
	return n
}

// received handles bytes of the stream.
func (st *stream) received(p []byte) error {
	if st.HasEnd() {
		return errFormat
	}
	st.arrived += uint32(len(p))
	st.session.unread += len(p)
	if int(st.arrived-st.consumed) > st.window.Size || st.session.unread > maxUnread {
		return errWindow
	}
	st.Deliver(p)
	return nil
}

// credited handles a CREDIT.
func (st *stream) credited(consumed, window uint32) error {
	if consumed-st.peerConsumed > st.sent-st.peerConsumed {
		return errWindow
	}
	st.peerConsumed, st.peerWindow = consumed, window
	st.submit()
	return nil
}

// forgetIfOver forgets a stream that has nothing more to send or to receive.
func (st *stream) forgetIfOver() {
	if !st.Over() || st.openDue || st.session.streams[st.id] != st {
		return
	}
	delete(st.session.streams, st.id)
	delete(st.session.refused, st)
	st.creditDue = false
	st.session.budget.Return(st.window.Size - InitialWindow)
}

// The classes of streams that wait to send.
const (
	urgent = iota
	bulk
)

// fifo is a queue of streams that holds each of them once.
type fifo struct {
	class int
	list  []*stream // list[head:] waits
	head  int
}

func (f *fifo) push(st *stream) {
	if st.queued[f.class] {
		return
	}
	st.queued[f.class] = true
	if f.head > len(f.list)/2 {
		n := copy(f.list, f.list[f.head:])
		clear(f.list[n:])
		f.list, f.head = f.list[:n], 0
	}
	f.list = append(f.list, st)
}

// pop returns nil if the queue is empty.
func (f *fifo) pop() *stream {
	if f.head == len(f.list) {
		return nil
	}
	st := f.list[f.head]
	f.list[f.head] = nil
	f.head++
	st.queued[f.class] = false
	return st
}
