package kcpsmux

import (
	"encoding/binary"

	"turbotunnel/common/engine/internal/duplex"
)

// stream is one stream of a session. The session's link.Mu guards it.
type stream struct {
	*duplex.Stream
	session *session
	id      uint32
	queued  [2]bool // in the fifo of that class

	synDue bool // the other side has yet to hear of the stream
	updDue bool // the other side has yet to hear of consumed and window

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
	if st.StopDue() {
		st.session.urgent.push(st)
	}
	st.submit()
	st.session.link.Ready(0)
}

// Consumed implements duplex.Session.
func (st *stream) Consumed(_ *duplex.Stream, n int) {
	st.consumed += uint32(n)
	st.session.unread -= n
	if !st.Receives() {
		return
	}
	if st.session.budget.Consumed(&st.window, n, maxWindow, st.session.link.RTT()) {
		st.updDue = true
		st.session.urgent.push(st)
		st.session.link.Ready(0)
	}
}

// sendable tells whether fillData has something to do.
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

// fillControl writes the control frames that are due into p, which has room
// for all of them.
func (st *stream) fillControl(p []byte) int {
	n := 0
	if st.synDue {
		st.synDue = false
		n += putHeader(p[n:], cmdSYN, 0, st.id)
	}
	if st.TakeStop() {
		n += putHeader(p[n:], cmdSTP, 0, st.id)
		st.updDue = false
	}
	if st.updDue {
		st.updDue = false
		n += putHeader(p[n:], cmdUPD, updateSize, st.id)
		binary.LittleEndian.PutUint32(p[n:], st.consumed)
		binary.LittleEndian.PutUint32(p[n+4:], uint32(st.window.Size-st.window.Taken))
		n += updateSize
	}
	return n
}

// fillData writes bytes of the stream and its end into p, which has room for
// arq.MinRoom bytes at least.
func (st *stream) fillData(p []byte) int {
	n := 0
	if st.Waiting() > 0 && st.room() <= 0 && st.takes() {
		st.session.loan.Take()
		st.pieces++
		n = putHeader(p, cmdTAK, 0, st.id)
	}
	if room := min(st.room(), len(p)-n-headerSize); room > 0 {
		if k := st.Take(p[n+headerSize : n+headerSize+room]); k > 0 {
			st.sent += uint32(k)
			n += putHeader(p[n:], cmdPSH, k, st.id) + k
		}
	}
	if len(p)-n >= headerSize && st.TakeEnd() {
		n += putHeader(p[n:], cmdFIN, 0, st.id)
	}
	return n
}

// received handles a PSH.
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

// update handles an UPD.
func (st *stream) update(consumed, window uint32) error {
	if consumed-st.peerConsumed > st.sent-st.peerConsumed {
		return errWindow
	}
	st.peerConsumed, st.peerWindow = consumed, window
	st.submit()
	if st.sendable() {
		st.session.link.Ready(0)
	}
	return nil
}

// forgetIfOver forgets a stream that has nothing more to send or to receive.
func (st *stream) forgetIfOver() {
	if !st.Over() || st.synDue || st.session.streams[st.id] != st {
		return
	}
	delete(st.session.streams, st.id)
	delete(st.session.refused, st)
	st.session.budget.Return(st.window.Size - InitialWindow)
}

// putHeader writes a frame's header and returns its size.
func putHeader(p []byte, cmd byte, size int, id uint32) int {
	p[0] = version
	p[1] = cmd
	binary.LittleEndian.PutUint16(p[2:], uint16(size))
	binary.LittleEndian.PutUint32(p[4:], id)
	return headerSize
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
