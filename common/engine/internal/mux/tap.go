package mux

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/bits"
	"slices"
	"time"

	"turbotunnel/common/engine"
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
)

// bodySize is the length in bytes of each frame that is not data; a PSH is a
// notice here.
var bodySize = map[byte]int{cmdSYN: 0, cmdFIN: 0, cmdPSH: noticeSize, cmdNOP: 0, cmdUPD: updateSize}

// noLimit is the window that smux is told of, in place of the real one: its own
// arithmetic is signed, and with a window of 2^31 or one that has shrunk a Write
// would wait in it, where no deadline and no end of the session reaches it.
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
	s     *Session
	quit  chan struct{} // closed when it is dismissed
	ended chan struct{} // closed when its reader does not look at the channel any more

	// For the one goroutine of smux that reads:
	buf   [headerSize + updateSize]byte // a head, and the body of what is not data
	ready []byte                        // of buf, or from resume: what smux has not read yet
	left  int                           // bytes of data that have not come

	waits     bool // for the first byte of a frame; guarded by the session's mutex, like what follows
	dismissed bool // smux is let go
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
	switch err {
	case nil:
	case errRests:
		close(t.ended)
	default:
		t.s.channel.Fail(err)
		t.s.wake()
	}
	return n, err
}

// next reads the next frame, but for data only its head.
func (t *tap) next() error {
	t.s.wait()
	if !t.comes() {
		return errRests
	}
	t.s.frames.Add(1)
	head := t.buf[:headerSize]
	if _, err := io.ReadFull(t.s.channel, head); err != nil {
		return err
	}
	cmd, size, id := head[1], int(binary.LittleEndian.Uint16(head[2:])), binary.LittleEndian.Uint32(head[4:])
	t.ready = head
	if cmd == cmdPSH && id != 0 && head[0] == version {
		t.left = size
		return t.s.announced(id, size)
	}
	if want, ok := bodySize[cmd]; head[0] != version || !ok || size != want {
		return errFormat
	}
	t.ready = t.buf[:headerSize+size]
	body := t.ready[headerSize:]
	if _, err := io.ReadFull(t.s.channel, body); err != nil {
		return err
	}
	return t.frame(cmd, id, body)
}

// comes waits for a frame, or the channel's end. It returns false when there is
// nothing more to wait for, because smux is let go.
func (t *tap) comes() bool {
	t.setWaits(true)
	t.s.comes(t.quit)
	return t.setWaits(false)
}

// setWaits tells whether the tap is not dismissed.
func (t *tap) setWaits(waits bool) bool {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.waits = waits
	return !t.dismissed
}

// frame handles a frame that is not data.
func (t *tap) frame(cmd byte, id uint32, body []byte) error {
	if cmd == cmdSYN {
		return t.open(id)
	}
	s := t.s
	s.mu.Lock()
	defer s.mu.Unlock()
	var consumed, window uint32
	switch cmd {
	case cmdPSH:
		return s.noticed(body[0], binary.LittleEndian.Uint32(body[1:]))
	case cmdUPD:
		consumed, window = binary.LittleEndian.Uint32(body), binary.LittleEndian.Uint32(body[4:])
		binary.LittleEndian.PutUint32(body[4:], noLimit)
	}
	st := s.streams[id]
	if st == nil || st.closed {
		return nil // it was closed here, and smux ignores the frame
	}
	if cmd == cmdUPD {
		binary.LittleEndian.PutUint32(body, consumed-st.sentBefore) // as this smux counts
	}
	switch cmd {
	case cmdFIN:
		st.fin = true
		half.Signal(st.Reads.Changed)
	case cmdUPD:
		if int32(consumed-st.consumed) < 0 {
			return nil // two Reads at once on a plain smux may tell in the wrong order
		}
		if st.sent-consumed > st.sent-st.consumed {
			return errWindow
		}
		st.consumed, st.window = consumed, min(window, math.MaxInt32)
		half.Signal(st.Writes.Changed)
	}
	return nil
}

// came takes note of data that has come whole.
func (s *Session) came(id uint32, size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	if st == nil || st.closed || size == 0 {
		return
	}
	st.unread += size
	st.frames = append(st.frames, uint16(size))
	st.cost += cost(size)
	s.hold(cost(size))
	s.promise(cost(size) - size)
	half.Signal(st.Reads.Changed)
}

// wait returns when the session may read another frame.
func (s *Session) wait() {
	for s.full() {
		select {
		case <-s.drained:
		case <-s.channel.Done():
			return
		}
	}
}

func (s *Session) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held >= maxHeld
}

// cost is the memory in bytes that an unread frame takes: smux's buffers have
// the size of a power of two.
func cost(size int) int { return 1<<bits.Len(uint(size-1)) + frameCost }

// announced tells whether a frame of size bytes may come on a stream.
func (s *Session) announced(id uint32, size int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch st := s.streams[id]; {
	case st == nil || st.closed:
		return nil
	case st.unread+size > streamWindow+maxFrame: // smux tells of a Read before that has returned
		return errWindow
	}
	return nil
}

// open handles a SYN: there is a stream to accept, and its window is told; or it
// is refused, and smux, which would take it in, reads a NOP in its place.
func (t *tap) open(id uint32) error {
	window, err := t.s.register(id)
	if err != nil {
		return err
	}
	if window == 0 {
		t.buf[1] = cmdNOP
		return t.s.put(notice(noticeReset, id), frame(cmdFIN, id))
	}
	t.s.arrivals <- struct{}{} // there is room: it is one of maxStreams
	return t.s.put(update(id, 0, window))
}

// register makes the stream of a SYN and returns its window, which is 0 if there is
// no room for it.
func (s *Session) register(id uint32) (window int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.client || id%2 == 0 || s.streams[id] != nil:
		return 0, errFormat
	case len(s.streams) >= maxStreams && s.refused >= maxRefused:
		return 0, errRefused
	case len(s.streams) >= maxStreams:
		s.refused++
		return 0, nil
	}
	s.refused = 0
	return s.add(id), nil
}

// noticed handles a notice. The Session's mutex is held.
func (s *Session) noticed(what byte, id uint32) error {
	if what > noticeReset {
		return errFormat
	}
	if st := s.streams[id]; st != nil {
		st.stopped = true
		st.reset = st.reset || what == noticeReset
		half.Signal(st.Reads.Changed)
		half.Signal(st.Writes.Changed)
	}
	return nil
}

// WriteBuffers implements what smux prefers to Write: v is a frame, its head
// and its body.
func (t *tap) WriteBuffers(v [][]byte) (int, error) {
	head, body := v[0], v[1]
	id := binary.LittleEndian.Uint32(head[4:])
	t.s.frames.Add(1)
	var err error
	switch head[1] {
	case cmdSYN:
		t.s.mu.Lock()
		window := t.s.add(id)
		t.s.mu.Unlock()
		t.s.open(head, update(id, 0, window))
	case cmdUPD: // a Stream sends its own
	default:
		err = t.s.put(head, body)
	}
	if err != nil {
		return 0, err
	}
	return len(head) + len(body), nil
}

// open puts frames before what is put next, or after engine.OpenDelay.
func (s *Session) open(parts ...[]byte) {
	s.putting.Lock()
	defer s.putting.Unlock()
	s.opening = append(s.opening, slices.Concat(parts...)...)
	time.AfterFunc(engine.OpenDelay, func() { s.put() })
}

// put appends frames to the channel.
func (s *Session) put(parts ...[]byte) error {
	s.putting.Lock()
	defer s.putting.Unlock()
	if s.channel.Waiting() > maxAnswers {
		s.channel.Fail(errFlood)
	}
	if len(s.opening) > 0 {
		parts = slices.Insert(parts, 0, s.opening)
		s.opening = nil
	}
	err := s.channel.Append(parts...)
	if err != nil {
		s.channel.Fail(err) // it may take no more and live on: a session is both ways
	}
	return err
}

// Write implements io.Writer. smux does not call it where there is WriteBuffers.
func (t *tap) Write(p []byte) (int, error) {
	if err := t.s.put(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close implements io.Closer. A session at rest lives on.
func (t *tap) Close() error {
	if half.IsClosed(t.quit) {
		return nil
	}
	return t.s.channel.Close()
}
