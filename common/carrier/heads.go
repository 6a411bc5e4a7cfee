package carrier

import (
	"time"

	"turbotunnel/common/wire"
)

// firstTrip is assumed until a round trip is measured.
const firstTrip = 300 * time.Millisecond

// A trip is what is known of the path's round-trip time: the SRTT and RTTVAR of
// RFC 6298. The zero value is that of a path that was not measured.
type trip struct{ smoothed, variation time.Duration }

// sample takes note of a round-trip time, as RFC 6298 section 2 does.
func (t *trip) sample(rtt time.Duration) {
	if t.smoothed == 0 {
		t.smoothed, t.variation = rtt, rtt/2
		return
	}
	t.variation += ((t.smoothed - rtt).Abs() - t.variation) / 4
	t.smoothed += (rtt - t.smoothed) / 8
}

// assumed is t, or what is assumed before anything was measured.
func (t trip) assumed() trip {
	if t.smoothed == 0 {
		return trip{firstTrip, firstTrip / 2}
	}
	return t
}

// heads numbers the heads of a link, tells the newest that came from those
// that it has overtaken, and measures the round trip by the times in them. It
// knows no time but what it is told. It is not safe for concurrent use: the
// link's mu guards every field that changes.
type heads struct {
	start    time.Time // of this side's clock; constant
	next     uint64    // number of the next head
	newest   uint64    // number of the newest head received, plus one
	peerTime uint32    // the other side's clock in that head, in milliseconds
	peerAt   time.Time // when that head came
	waited   uint32    // this side's clock in the newest head that may have waited for a connection
	trip     trip
}

// clock is what this side's clock shows at now: milliseconds, modulo 2^32.
func (c *heads) clock(now time.Time) uint32 { return uint32(now.Sub(c.start).Milliseconds()) }

// stamp writes the times into a head and returns its number.
func (c *heads) stamp(h *wire.Head, now time.Time) (number uint64) {
	h.Time = c.clock(now)
	if c.newest > 0 {
		h.Echo, h.Echoes, h.Delay = c.peerTime, true, now.Sub(c.peerAt)
	}
	c.next++
	return c.next - 1
}

// waits says that a head with these times may wait before it leaves.
func (c *heads) waits(h *wire.Head) { c.waited = h.Time }

// prompt tells whether a head that has come echoes one that left at once.
func (c *heads) prompt(h *wire.Head) bool { return h.Echoes && int32(h.Echo-c.waited) > 0 }

// opened takes in the times of a head. It tells whether that is the newest so
// far, and the round-trip time that it shows: negative if it shows none.
func (c *heads) opened(number uint64, h *wire.Head, now time.Time) (newest bool, rtt time.Duration) {
	if number < c.newest {
		return false, -1
	}
	c.newest, c.peerTime, c.peerAt = number+1, h.Time, now
	if !h.Echoes {
		return true, -1
	}
	rtt = time.Duration(c.clock(now)-h.Echo)*time.Millisecond - h.Delay
	if rtt >= time.Minute { // no path: a clock that was read wrongly
		return true, -1
	}
	return true, rtt
}
