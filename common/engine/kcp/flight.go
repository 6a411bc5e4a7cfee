package kcp

import "time"

const (
	// minTimeout and maxTimeout bound the time after which something is sent again
	// without evidence of its loss. A repair in the carrier takes a round trip or
	// two, which a second covers on nearly every path. The maximum is how late the
	// end of an outage may be noticed.
	minTimeout = time.Second
	maxTimeout = 5 * time.Second

	// minBacklog and maxBacklog bound what may wait for the carrier, in bytes. With
	// 1 MB a ping beside a download on loopback takes 26 ms, with 512 KB 22, with
	// 256 KB 14, and with 128 KB 10, but then a download loses 7 % of its rate.
	minBacklog = 32 << 10
	maxBacklog = 256 << 10
)

// A flight is what is on its way, and decides what of it is sent again. KCP itself
// sends again what two later segments have overtaken, but only once for each time that
// all of it is said to be late (ResetRTO). That is said when the oldest segment was waited
// for in vain. Then it and the two newest are sent again: their acknowledgements say
// whether more is lost, and have KCP send it. What lies between others that have come is
// sent, too: for KCP their acknowledgements are too old now to say that it was overtaken.
// The Conn's mutex guards it.
type flight struct {
	una  uint32 // the oldest sequence number not acknowledged
	next uint32 // the next one never put out
	top  uint32 // what is below was sent before one that was acknowledged
	wnd  uint32 // the other side's window in segments

	since    time.Time     // when una was sent, or became the oldest
	tried    time.Time     // the same, or when it was waited for in vain
	patience time.Duration // how long it is waited for then: three round trips
	hole     bool          // something behind una was acknowledged
	late     bool          // una is sent again
}

// size is how many segments are on their way.
func (f *flight) size() uint32 { return f.next - f.una }

// backlog is how many bytes taken from the stream may wait for the carrier. What is said
// next waits behind them, an eighth of a round trip where the carrier is the limit.
func (f *flight) backlog() int {
	return min(max(int(f.size())*SegmentSize/8, minBacklog), maxBacklog)
}

// acknowledged takes note of what a datagram says.
func (f *flight) acknowledged(sum summary, now time.Time) {
	f.wnd = uint32(sum.wnd)
	if sum.una != f.una {
		f.patience = min(max(minTimeout, 3*now.Sub(f.since), f.patience/2), maxTimeout)
		f.una, f.since, f.tried = sum.una, now, now
	}
	if int32(sum.acked-f.top) > 0 {
		f.top = sum.acked
	}
	f.hole = f.hole || int32(sum.acked-f.una) > 0
}

// goes tells whether a segment that KCP puts out shall be sent: it is new, or may
// be sent again. What KCP sends for its time-outs' sake may not.
func (f *flight) goes(sn uint32) bool {
	if sn != f.next {
		return (f.hole || f.late) && int32(f.top-sn) > 0 || f.late && (sn == f.una || f.next-sn <= 2)
	}
	if sn == f.una {
		f.since = time.Now()
		f.tried = f.since
	}
	f.next++
	return true
}
