package mux

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/bits"
	"slices"

	"turbotunnel/common/engine/internal/half"
)

const (
	version    = 2
	headerSize = 8

	cmdSYN = 0
	cmdFIN = 1
	cmdPSH = 2
	cmdNOP = 3
	cmdUPD = 4

	maxFrame   = math.MaxUint16 // the largest body of any smux, in bytes
	updateSize = 8
	noticeSize = 5

	noticeStop  = 0
	noticeReset = 1
	noticeNone  = 2 // is not sent
)

// bodySize is the length in bytes of each frame that is not data; a PSH is a
// notice here.
var bodySize = map[byte]int{cmdSYN: 0, cmdFIN: 0, cmdPSH: noticeSize, cmdNOP: 0, cmdUPD: updateSize}

// noLimit is the window that smux is told of, in place of the real one, so that no
// Write waits in it (doc/engines.md, smux).
const noLimit = math.MaxInt32

func frame(cmd byte, id uint32, body ...byte) []byte {
	p := binary.LittleEndian.AppendUint16([]byte{version, cmd}, uint16(len(body)))
	return append(binary.LittleEndian.AppendUint32(p, id), body...)
}

func notice(what byte, id uint32) []byte {
	return frame(cmdPSH, 0, binary.LittleEndian.AppendUint32([]byte{what}, id)...)
}

func update(id, consumed uint32, window int) []byte {
	p := binary.LittleEndian.AppendUint32(nil, consumed)
	return frame(cmdUPD, id, binary.LittleEndian.AppendUint32(p, uint32(window))...)
}

// errRests is what smux reads that is let go.
var errRests = errors.New("smux: the session rests")

// A tap is what smux takes for its connection: the channel, and an eye on every
// frame that passes. It refuses what smux would take from a peer that breaks the
// rules, and never blocks a frame that smux sends.
type tap struct {
	s         *Session
	io.Writer // nil: smux does not call it where there is WriteBuffers

	// For the one goroutine of smux that reads:
	buf   [headerSize + updateSize]byte // a head, and the body of what is not data
	ready []byte                        // of buf, or from watch: what smux has not read yet
	left  int                           // bytes of data that have not come
}

// Read implements io.Reader for smux, which is given no part of a head before
// all of it was looked at. The end of the channel's stream is the end of the
// session, also where the channel itself would live on.
func (t *tap) Read(p []byte) (n int, err error) {
	if len(t.ready) == 0 && t.left == 0 {
		err = t.next()
	}
	switch {
	case err != nil:
	case len(t.ready) > 0:
		n = copy(p, t.ready)
		t.ready = t.ready[n:]
	default:
		n, err = t.s.channel.Read(p[:min(t.left, len(p))])
		if t.left -= n; t.left == 0 {
			t.s.came(binary.LittleEndian.Uint32(t.buf[4:]), int(binary.LittleEndian.Uint16(t.buf[2:])))
		}
	}
	if err != nil && err != errRests {
		t.s.channel.Fail(err)
		t.s.wake()
	}
	return n, err
}

// next reads the next frame, but for data only its head.
func (t *tap) next() error {
	s := t.s
	wait(s.room, s.channel.Done(), nil)
	for !wait(s.channel.Comes, s.nudge, nil) {
		if s.rest() {
			return errRests
		}
	}
	s.busy.Store(true)
	head := t.buf[:headerSize]
	if _, err := io.ReadFull(s.channel, head); err != nil {
		return err
	}
	cmd, size, id := head[1], int(binary.LittleEndian.Uint16(head[2:])), binary.LittleEndian.Uint32(head[4:])
	isData := cmd == cmdPSH && id != 0
	if want, ok := bodySize[cmd]; head[0] != version || !ok || !isData && size != want {
		return errFormat
	}
	if isData {
		t.left, size = size, 0
	}
	body := t.buf[headerSize : headerSize+size]
	if _, err := io.ReadFull(s.channel, body); err != nil {
		return err
	}
	t.ready = t.buf[:headerSize+size]
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.look(cmd, id, body)
}

// room tells whether the session may read another frame.
func (s *Session) room() (<-chan struct{}, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drained, s.held < maxHeld
}

// look takes note of a frame, whose data have not come, and hides from smux what it
// shall not see. The Session's mutex is held.
func (t *tap) look(cmd byte, id uint32, body []byte) error {
	s := t.s
	switch st := s.streams[id]; {
	case cmd == cmdSYN:
		return t.open(id)
	case cmd == cmdPSH && id == 0 && body[0] > noticeReset:
		return errFormat
	case cmd == cmdPSH && id == 0:
		if st := s.streams[binary.LittleEndian.Uint32(body[1:])]; st != nil {
			st.stopped, st.reset = true, st.reset || body[0] == noticeReset
			half.Signal(st.Reads.Changed)
			half.Signal(st.Writes.Changed)
		}
	case st == nil || st.closed || st.fin && cmd == cmdPSH:
		binary.LittleEndian.PutUint32(t.buf[4:], 0) // there is no such stream
	case cmd == cmdPSH && st.unread+t.left > streamWindow+maxFrame: // a frame beyond the window is let pass
		return errWindow
	case cmd == cmdFIN:
		st.fin = true
		half.Signal(st.Reads.Changed)
	case cmd == cmdUPD:
		return st.updated(body)
	}
	return nil
}

// updated heeds an UPD, and makes of it what this smux shall know: what it counts
// itself, and no window.
func (st *Stream) updated(body []byte) error {
	consumed, window := binary.LittleEndian.Uint32(body), binary.LittleEndian.Uint32(body[4:])
	switch {
	case int32(consumed-st.consumed) < 0: // two Reads at once on a plain smux may tell in the wrong order
	case st.sent-consumed > st.sent-st.consumed:
		return errWindow
	default:
		st.consumed, st.window = consumed, min(window, math.MaxInt32)
		half.Signal(st.Writes.Changed)
	}
	binary.LittleEndian.PutUint32(body, st.consumed-st.sentBefore) // never less than before: smux would wait
	binary.LittleEndian.PutUint32(body[4:], noLimit)
	return nil
}

// open handles a SYN: there is a stream to accept, and its window is told; or it
// is refused, and smux, which would take it in, reads a NOP in its place. The
// Session's mutex is held.
func (t *tap) open(id uint32) error {
	s := t.s
	switch {
	case s.client || id%2 == 0 || s.streams[id] != nil:
		return errFormat
	case len(s.streams) >= maxStreams:
		t.buf[1] = cmdNOP
		return s.put(notice(noticeReset, id), frame(cmdFIN, id))
	}
	s.arrivals <- struct{}{} // there is room: it is one of maxStreams
	return s.put(s.add(id))
}

// came takes note of data that has come whole.
func (s *Session) came(id uint32, size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[id]; st != nil && !st.closed {
		st.unread += size
		st.frames = append(st.frames, uint16(size))
		st.cost += cost(size)
		s.hold(cost(size))
		s.promise(cost(size) - size)
		half.Signal(st.Reads.Changed)
	}
}

// cost is the memory in bytes that an unread frame takes: smux's buffers have
// the size of a power of two.
func cost(size int) int { return 1<<bits.Len(uint(size-1)) + frameCost }

// WriteBuffers implements what smux prefers to Write: v is a frame, its head
// and its body. Its own SYN and UPD end here: Open and grant say ours.
func (t *tap) WriteBuffers(v [][]byte) (int, error) {
	t.s.busy.Store(true)
	if cmd := v[0][1]; cmd == cmdPSH || cmd == cmdFIN {
		if err := t.s.put(v...); err != nil {
			return 0, err
		}
	}
	return headerSize + len(v[1]), nil
}

// put appends frames to the channel.
func (s *Session) put(parts ...[]byte) error {
	s.putting.Lock()
	defer s.putting.Unlock()
	if len(s.opening) > 0 {
		parts = slices.Insert(parts, 0, s.opening)
		s.opening = nil
	}
	waiting, err := s.channel.Append(parts...)
	if waiting > maxAnswers {
		err = errFlood
	}
	if err != nil {
		s.channel.Fail(err) // it may take no more and live on: a session is both ways
	}
	return err
}

// Close implements io.Closer. The channel lives longer than a smux.
func (t *tap) Close() error { return nil }
