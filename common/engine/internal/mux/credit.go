package mux

const (
	streamWindow = 20 << 20  // bytes of a stream that may be on their way or unread (doc/engines.md, Windows)
	updateEvery  = 1 << 20   // after so many that were read the other side is told, or after half of a smaller window
	firstWindow  = 256 << 10 // the window before the first UPD, which is said at once (initialPeerWindow in smux)

	// maxHeld is how much memory in bytes a session may take: that of a dozen streams
	// that nobody reads, and of one at full speed, in frames of 2 or 32 KB, as relay
	// makes them of what comes fast.
	maxHeld = 13 * streamWindow

	maxPromised = 4 * maxHeld // to streams, most of which take little of it

	// A new stream is promised one openPart of what is left, all of a window at
	// first, and one that is read one growPart more each time that the other side is
	// told (doc/engines.md, Windows).
	openPart = 13
	growPart = 4
)

// A credit is what the other side may send on a stream. The session's mutex guards
// it.
type credit struct {
	edge  uint32 // bytes that it may have sent in all, modulo 2^32
	taken uint32 // of them were read
	told  uint32 // were read when it was told last
}

// room is how many bytes of a stream may be on their way or unread. It is negative if a
// peer that ignores its window has sent more, and that was read.
func (c *credit) room() int { return int(int32(c.edge - c.taken)) }

// promise counts n bytes more that streams may take, or fewer, and returns how many
// more may be promised. The mutex is held.
func (s *Session) promise(n int) (left int) {
	s.promised += n
	return max(min(maxPromised-s.promised, s.carrier.Promise(n)), 0)
}

// grant gives a stream a part of what is left, a frame in any case, or, as a client
// has that before the server's UPD comes, firstWindow. It returns the frame that tells
// the other side. The session's mutex is held.
func (st *Stream) grant(part int) []byte {
	least := firstWindow
	if st.session.client {
		least = frameSize
	}
	now := st.room()
	window := min(max(now+st.session.promise(0)/part, least), streamWindow) // now at least: no promise is taken back
	st.session.promise(window - now)
	st.edge, st.told = st.taken+uint32(window), st.taken
	return update(st.id, st.taken, window)
}
