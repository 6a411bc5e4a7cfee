package kcp

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/xtaci/kcp-go/v5"
)

const (
	// minTimeout and maxTimeout bound the time after which segments are sent
	// again without evidence of their loss. A repair in the carrier takes a round
	// trip or two, which a second covers on nearly every path. The maximum is
	// how late the end of an outage may be noticed.
	minTimeout = time.Second
	maxTimeout = 10 * time.Second

	// firstBurst is the number of segments sent again when the time-out has
	// passed: enough to learn from their acknowledgements whether more is lost.
	// Then twice as many are sent again, and so on.
	firstBurst = 32

	// longRTT is the round trip that KCP is told, in milliseconds: the longest of
	// its time-outs (IKCP_RTO_MAX).
	longRTT = kcp.IKCP_RTO_MAX
)

// A flight is what is on its way, and decides what of it is sent again; see the
// package comment. The driver's mutex guards it.
type flight struct {
	una  uint32 // the oldest sequence number not acknowledged
	next uint32 // the next one never put out
	wnd  uint32 // the other side's window in segments

	newest uint32    // KCP's time of the latest transmission, in milliseconds
	sent   uint32    // not after its time when una was sent last, or became the oldest
	since  time.Time // the same by our clock
	hole   bool      // something behind una was acknowledged
	lost   bool      // and it was sent after una: una is lost
	may    int       // segments that KCP may send again now

	burst    int    // for the next repair
	repaired uint32 // what is below this was on its way at the last repair
	backoff  uint   // time-outs in a row

	timed   bool // a round trip is being measured, of segment timedSN from timedAt on
	timedSN uint32
	timedAt time.Time
	rtt     time.Duration // smoothed; 0: not known yet
}

// acknowledged takes note of what a datagram says, and tells whether una moved.
func (f *flight) acknowledged(sum summary, now time.Time) bool {
	f.wnd = uint32(sum.wnd)
	moved := sum.una != f.una
	if moved {
		f.una, f.since, f.backoff = sum.una, now, 0
		f.hole, f.lost = false, false
		if int32(f.una-f.repaired) >= 0 {
			f.sent, f.repaired, f.burst = f.newest, f.una, firstBurst
		}
		if f.timed && int32(f.una-f.timedSN) > 0 {
			f.sample(now.Sub(f.timedAt))
		}
	}
	if sum.acks && f.una != f.next && int32(f.newest-sum.ackTime) >= 0 {
		hole := int32(sum.ackSN-f.una) > 0
		f.hole = f.hole || hole
		f.lost = f.lost || int32(sum.ackTime-f.sent) > 0 && (hole || f.una != f.repaired)
	}
	f.may = 0
	if f.hole {
		f.may = math.MaxInt // KCP sees the same, and sends again once what was overtaken
	}
	return moved
}

// sample smooths round-trip times (RFC 6298, section 2).
func (f *flight) sample(rtt time.Duration) {
	f.timed = false
	if f.rtt == 0 {
		f.rtt = rtt
	}
	f.rtt += (rtt - f.rtt) / 8
}

// timeout is how long una is waited for without evidence of its loss.
func (f *flight) timeout() time.Duration {
	return min(max(minTimeout, 3*f.rtt)<<min(f.backoff, 8), maxTimeout)
}

// repairAt is when KCP is to be flushed for what is lost.
func (f *flight) repairAt() time.Time {
	if f.hole || f.lost {
		return time.Time{} // now
	}
	return f.since.Add(f.timeout())
}

// allow readies what KCP shall send again in a flush that follows.
func (f *flight) allow(k *kcp.KCP, now time.Time) {
	late := f.una != f.next && !now.Before(f.since.Add(f.timeout()))
	if late {
		f.backoff++
		f.burst = firstBurst
	}
	if late || f.lost {
		k.ResetRTO()
		f.may, f.burst = f.burst, min(2*f.burst, Window)
		f.sent, f.since, f.repaired, f.timed = f.newest, now, f.next, false
	}
	f.hole, f.lost = false, false
}

// goes tells whether a segment that KCP puts out shall be sent: it is new, or may
// be sent again.
func (f *flight) goes(s segment) bool {
	f.newest = s.ts
	if s.sn != f.next {
		if f.may == 0 {
			return false
		}
		f.may--
	} else {
		f.next++
		if !f.timed {
			f.timed, f.timedSN, f.timedAt = true, s.sn, time.Now()
		}
	}
	if s.sn == f.una {
		f.sent, f.since = s.ts-1, time.Now()
	}
	return true
}

// patience is an acknowledgement that says nothing but that the round trip takes
// a minute. KCP believes the last one of each datagram.
func (f *flight) patience() []byte {
	p := make([]byte, headerSize)
	binary.LittleEndian.PutUint32(p, conversation)
	p[4] = kcp.IKCP_CMD_ACK
	binary.LittleEndian.PutUint16(p[6:], uint16(f.wnd))
	binary.LittleEndian.PutUint32(p[8:], f.newest-longRTT)
	binary.LittleEndian.PutUint32(p[12:], f.una-1)
	binary.LittleEndian.PutUint32(p[16:], f.una)
	return p
}

// question asks for the window, so that KCP says it.
func (f *flight) question() []byte {
	p := f.patience()
	p[4] = kcp.IKCP_CMD_WASK
	return p
}

// clock is KCP's time in milliseconds, which it tells by what it sends only.
func clock() (ms uint32) {
	k := kcp.NewKCP(conversation, func(p []byte, _ int) { ms = binary.LittleEndian.Uint32(p[8:]) })
	k.Send([]byte{0})
	flush(k, kcp.IKCP_FLUSH_FULL)
	return ms
}
