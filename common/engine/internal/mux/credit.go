package mux

const (
	// streamWindow is how many bytes of a stream may be on their way or unread.
	// 500 Mbit/s with a round trip of 200 ms are 12.5 MB; half as much again
	// waits in the bottleneck and in this machine; and the other side knows of
	// what was read only up to updateEvery ago. 12.5 + 6.25 + 1 < 20.
	streamWindow = 20 << 20

	// updateEvery is after how many bytes that were read the other side is told, or
	// after half of a smaller window.
	updateEvery = 1 << 20

	// firstWindow is the window of a stream before the first UPD, in bytes
	// (initialPeerWindow in smux). Neither side waits for the first Read with its
	// UPD, as smux does: the client's follows the SYN, and the server's answers
	// it. So a download has its window from its first byte on, and an upload
	// after a round trip, in which 256 KB go.
	firstWindow = 256 << 10

	// maxHeld is how much memory in bytes a session may take: that of a dozen streams
	// that nobody reads, and of one at full speed, in frames of 2 or 32 KB, as relay
	// makes them of what comes fast. Of frames a little longer than a power of two it
	// is half as many.
	maxHeld = 13 * streamWindow

	// maxPromised is how much it may promise to streams. Most of them say little and
	// take little of it, and beside forty that say nothing one shall be fast.
	maxPromised = 4 * maxHeld

	// A new stream is promised one openPart of what is left, all of a window at
	// first, and one that is read one growPart more each time that the other side is
	// told. So streams that nobody reads leave something to those that come after
	// them, however many they are: of 1 GB fifty leave 19 MB.
	openPart = 13
	growPart = 4

	// leastWindow is promised in any case, in bytes: a frame.
	leastWindow = frameSize
)

// A credit is what the other side may send on a stream. The session's mutex guards
// it.
type credit struct {
	edge  uint32 // bytes that it may have sent in all, modulo 2^32
	taken uint32 // of them were read
	told  uint32 // were read when it was told last
}

// room is how many bytes of a stream may be on their way or unread.
func (c *credit) room() int { return int(c.edge - c.taken) }

// promise counts n bytes more that streams may take, or fewer. The mutex is held.
func (s *Session) promise(n int) {
	s.promised += n
	s.carrier.Promise(n)
}

// left is how many bytes more may be promised. The mutex is held.
func (s *Session) left() int { return max(min(maxPromised-s.promised, s.carrier.Promise(0)), 0) }

// least is the smallest window: a client has that before the server's UPD comes.
func (s *Session) least() int {
	if s.client {
		return leastWindow
	}
	return firstWindow
}

// begin gives a new stream its window. The session's mutex is held.
func (st *Stream) begin() {
	s := st.session
	window := min(max(s.left()/openPart, s.least()), streamWindow)
	st.edge = uint32(window)
	s.promise(window)
}

// extend gives a stream more, as some of it was read, and tells whether the other
// side shall hear of that. The session's mutex is held.
func (st *Stream) extend() bool {
	s := st.session
	if read := st.taken - st.told; st.fin || read < min(updateEvery, (st.edge-st.told)/2) {
		return false
	}
	now := st.room()
	next := max(min(max(now+s.left()/growPart, s.least()), streamWindow), now) // no promise is taken back
	s.promise(next - now)
	st.edge, st.told = st.taken+uint32(next), st.taken
	return true
}
