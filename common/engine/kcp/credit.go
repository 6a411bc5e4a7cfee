package kcp

import "encoding/binary"

const (
	// A conversation is promised one openPart of what is left for all at first, and
	// one growPart more each time that the other side is told of what was read, which
	// is after updateEvery segments, or half of a smaller window. So those that nobody
	// reads leave something to those that come after them.
	openPart    = 13
	growPart    = 4
	updateEvery = 1 << 20 / SegmentSize

	// leastWindow is promised in any case, in segments: 32 KB.
	leastWindow = 32 << 10 / SegmentSize
)

// A credit is how far the other side may go. KCP itself says to it how much of
// Window is not taken by what is unread, and takes that much; what is said in its
// place is never more. So where memory is short the other side has less, and what
// it has been told it may send is taken even so. The driver's mutex guards it.
type credit struct {
	bound    bool   // there is one; else the window is KCP's own
	edge     uint32 // segments below this number have room
	told     uint32 // how many were read when it was moved last
	held     int    // bytes that the carrier was told of, like promised
	promised int
}

// wasRead is how many segments were read.
func (r *received) wasRead() uint32 { return r.next - uint32(r.queued) }

// bind has the other side promised no more than the carrier has left. It is called
// before anything else.
func (d *driver) bind() {
	d.credit.bound = true
	d.credit.edge = uint32(d.window(0, openPart))
	d.count()
}

// window is a window in segments, of which so many are promised already.
func (d *driver) window(now, part int) int {
	more := d.pc.Promise(0) / segmentCost / part
	return max(min(max(now+more, leastWindow), Window), now) // no promise is taken back
}

// extend promises more, as some was read. The other side hears of it with the next
// acknowledgement, and at once if it may be waiting for it.
func (d *driver) extend() {
	c, read := &d.credit, d.came.wasRead()
	before := c.edge - c.told
	if !c.bound || read-c.told < min(updateEvery, before/2) {
		return
	}
	waits := c.edge-d.came.next < before/2
	c.edge, c.told = read+uint32(d.window(int(c.edge-read), growPart)), read
	if waits {
		d.inform(d.flight.question())
		d.tell = true
		d.poke()
	}
}

// limit writes into a segment of KCP's what the other side may send.
func (d *driver) limit(p []byte) {
	if d.credit.bound {
		left := int32(d.credit.edge - d.came.next)
		told := binary.LittleEndian.Uint16(p[6:])
		binary.LittleEndian.PutUint16(p[6:], uint16(min(int32(told), max(left, 0))))
	}
}

// count tells the carrier what KCP and this package hold now, and what they may
// have to hold.
func (d *driver) count() {
	c := &d.credit
	if held := d.held() + len(d.packed.list)*datagramCost; held != c.held {
		d.pc.Hold(held - c.held)
		c.held = held
	}
	if !c.bound {
		return
	}
	if promised := int(c.edge-d.came.wasRead()) * segmentCost; promised != c.promised {
		d.pc.Promise(promised - c.promised)
		c.promised = promised
	}
}
