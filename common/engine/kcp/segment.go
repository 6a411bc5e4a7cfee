package kcp

import (
	"encoding/binary"
	"time"

	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
)

const (
	// minTimeout and maxTimeout bound the time after which a segment is sent
	// again without evidence of its loss. A repair in the carrier takes a round
	// trip or two, which a second covers on nearly every path. The maximum is
	// how late the end of an outage may be noticed.
	minTimeout = time.Second
	maxTimeout = 10 * time.Second

	// timeoutBurst is the number of segments sent again when the timeout has
	// passed: enough to learn from their acknowledgements what else is lost.
	timeoutBurst = 32
)

// flight is what KCP thinks of the segments on their way, as far as it can be
// seen from outside. The Conn's mutex guards it.
type flight struct {
	rmtWnd uint32   // the other side's window in segments
	told   uint16   // the window that the other side was told last
	una    uint32   // the oldest sequence number not acknowledged
	next   uint32   // the next one never put out
	sent   []uint32 // time of the last real transmission by sequence number
	origin time.Time
	timed  bool // origin is set: the time when KCP's millisecond count was 0

	acked   bool   // ackTime and ackSN are set:
	ackTime uint32 // time of transmission and sequence number of the segment
	ackSN   uint32 // that was sent last among those acknowledged
	backoff uint   // timeouts in a row
	probes  int    // segments that may still be sent again for their age now
	srtt    time.Duration
}

// millis is KCP's clock.
func (f *flight) millis() uint32 { return uint32(time.Since(f.origin) / time.Millisecond) }

// sentAt is the time of the last transmission of segment sn.
func (f *flight) sentAt(sn uint32) time.Time {
	age := int32(f.millis() - f.sent[sn%uint32(len(f.sent))])
	return time.Now().Add(-time.Duration(age) * time.Millisecond)
}

// timeout is the age at which a segment is sent again without evidence.
func (f *flight) timeout() time.Duration {
	return min(max(minTimeout, 3*f.srtt)<<min(f.backoff, 8), maxTimeout)
}

// sample takes a measured round-trip time into account (RFC 6298, section 2).
func (f *flight) sample(rtt time.Duration) {
	rtt = max(rtt, time.Millisecond)
	if f.srtt == 0 {
		f.srtt = rtt
	}
	f.srtt += (rtt - f.srtt) / 8
}

// first notes that the segment at next goes for the first time.
func (f *flight) first(ts uint32) {
	if !f.timed {
		f.timed = true
		f.origin = time.Now().Add(-time.Duration(ts) * time.Millisecond)
	}
	f.next++
	if len(f.sent) >= int(f.next-f.una) {
		return
	}
	// The table's length is a power of two, so that sequence numbers may wrap.
	old := f.sent
	f.sent = make([]uint32, max(64, 2*len(old)))
	for sn := f.una; len(old) > 0 && sn != f.next-1; sn++ {
		f.sent[sn%uint32(len(f.sent))] = old[sn%uint32(len(old))]
	}
}

// again tells whether a segment that KCP wants to send again may go, see the
// package comment.
func (f *flight) again(sn, ts uint32) bool {
	last := f.sent[sn%uint32(len(f.sent))]
	age := time.Duration(ts-last) * time.Millisecond
	switch {
	case f.acked && later(f.ackTime, f.ackSN, last, sn):
		return true
	case f.probes > 0 && age >= f.timeout():
		f.probes--
		return true
	}
	return false
}

// summary is what a datagram says to the Conn itself.
type summary struct {
	una     uint32
	wnd     uint16
	acks    bool   // ackTime and ackSN are set:
	ackTime uint32 // the segment sent last among those acknowledged
	ackSN   uint32
	data    bool   // there is a segment with data
	asked   bool   // the other side asks for the window
	marks   byte   // of all messages
	ended   bool   // one of them has the END, and the number endSN
	endSN   uint32 // or a RESET
}

// scan checks that p holds whole KCP segments that KCP can take, and sums them
// up. kcp-go itself panics on data longer than its buffers, and believes
// acknowledgements of what was never sent.
func (c *Conn) scan(p []byte) (summary, bool) {
	sum := summary{una: c.flight.una}
	if len(p) < headerSize {
		return sum, false
	}
	for len(p) > 0 {
		if len(p) < headerSize || binary.LittleEndian.Uint32(p) != conversation {
			return sum, false
		}
		cmd, frg := p[4], p[5]
		sum.wnd = binary.LittleEndian.Uint16(p[6:])
		ts := binary.LittleEndian.Uint32(p[8:])
		sn := binary.LittleEndian.Uint32(p[12:])
		una := binary.LittleEndian.Uint32(p[16:])
		size := binary.LittleEndian.Uint32(p[20:])
		p = p[headerSize:]
		if int32(una-c.flight.next) > 0 || int64(size) > int64(min(len(p), SegmentSize)) {
			return sum, false
		}
		if int32(una-sum.una) > 0 {
			sum.una = una
		}
		switch cmd {
		case kcp.IKCP_CMD_PUSH:
			if frg != 0 || size == 0 {
				return sum, false
			}
			sum.data = true
			mark := p[size-1]
			sum.marks |= mark
			if mark&(markEnd|markReset) != 0 {
				sum.ended, sum.endSN = true, sn
			}
		case kcp.IKCP_CMD_ACK:
			if int32(sn-c.flight.next) >= 0 || size != 0 {
				return sum, false
			}
			if !sum.acks || later(ts, sn, sum.ackTime, sum.ackSN) {
				sum.acks, sum.ackTime, sum.ackSN = true, ts, sn
			}
		case kcp.IKCP_CMD_WASK:
			if size != 0 {
				return sum, false
			}
			sum.asked = true
		case kcp.IKCP_CMD_WINS:
			if size != 0 {
				return sum, false
			}
		default:
			return sum, false
		}
		p = p[size:]
	}
	return sum, true
}

// later tells whether the transmission of segment a at time ta came after that
// of segment b at time tb.
func later(ta, a, tb, b uint32) bool {
	return int32(ta-tb) > 0 || ta == tb && int32(a-b) > 0
}

// input handles one datagram.
func (c *Conn) input(p []byte) {
	sum, ok := c.scan(p)
	if !ok {
		return
	}
	if sum.data && c.out.bytes > 2*maxBacklog {
		return // who takes no acknowledgements sends again; they would pile up
	}
	f := &c.flight
	if int32(sum.una-f.una) > 0 {
		// KCP flushes when its window moves: give it what is waiting.
		f.una = sum.una
		f.backoff = 0
		c.beforeFlush()
	}
	f.rmtWnd = uint32(sum.wnd)
	if sum.acks {
		if !f.acked || later(sum.ackTime, sum.ackSN, f.ackTime, f.ackSN) {
			f.acked, f.ackTime, f.ackSN = true, sum.ackTime, sum.ackSN
		}
		if rtt := f.millis() - sum.ackTime; int32(rtt) >= 0 {
			f.sample(time.Duration(rtt) * time.Millisecond)
		}
	}
	if sum.data && c.clock.ackSince.IsZero() {
		c.clock.ackSince = time.Now() // output resets it when the acknowledgement goes
	}
	if sum.asked {
		c.clock.tell = true
	}
	if c.clock.lingers {
		c.clock.heard = time.Now()
	}
	if c.kcp.Input(p, kcp.IKCP_PACKET_REGULAR, false) < 0 {
		return // scan has checked all that Input checks
	}
	if sum.data {
		c.arrived(sum)
	}
	c.poke()
}

// arrived takes note of what messages say without waiting for Read, which may
// be long in coming.
func (c *Conn) arrived(sum summary) {
	if sum.marks&markOpen != 0 && !c.client && !isClosed(c.opened) {
		close(c.opened)
	}
	c.in.reset = c.in.reset || sum.marks&markReset != 0
	if sum.marks&(markStop|markReset) != 0 && !c.in.stopped {
		c.in.stopped = true
		signal(c.writable)
		c.settle()
	}
	if sum.ended {
		c.in.ended, c.in.endSN = true, sum.endSN
	}
	if c.in.closed {
		c.discard()
	}
	signal(c.readable)
}

// output receives what KCP wants to send, whole segments at a time.
func (c *Conn) output(buf []byte, size int) {
	o := &c.out
	for p := buf[:size]; len(p) > 0; {
		n := headerSize + int(binary.LittleEndian.Uint32(p[20:]))
		segment := p[:n]
		p = p[n:]
		since := c.clock.ackSince
		if !c.pass(segment) {
			continue
		}
		switch {
		case segment[4] != kcp.IKCP_CMD_ACK:
			o.acksFrom = time.Time{}
		case len(o.list) > 0: // as it is
		case since.IsZero():
			o.acksFrom = time.Now()
		default:
			o.acksFrom = since
		}
		last := len(o.list) - 1
		if last < 0 || o.list[last].n+n > engine.MaxDatagram {
			d := datagrams.Get().(*datagram)
			d.n = 0
			o.list = append(o.list, d)
			last++
		}
		d := o.list[last]
		d.n += copy(d.data[d.n:], segment)
		o.bytes += n
	}
}

// pass tells whether a segment that KCP wants to send shall be sent.
func (c *Conn) pass(segment []byte) bool {
	c.flight.told = binary.LittleEndian.Uint16(segment[6:])
	una := binary.LittleEndian.Uint32(segment[16:]) // what KCP waits for
	if c.in.ended && !c.in.whole && int32(una-c.in.endSN) > 0 {
		c.in.whole = true
		c.settle()
	}
	switch segment[4] {
	case kcp.IKCP_CMD_ACK:
		c.clock.ackSince = time.Time{}
		return true
	case kcp.IKCP_CMD_PUSH:
	default:
		return true
	}
	ts := binary.LittleEndian.Uint32(segment[8:])
	sn := binary.LittleEndian.Uint32(segment[12:])
	if sn == c.flight.next {
		c.flight.first(ts)
		c.out.inKCP -= len(segment) - headerSize
		c.stats.Segments++
	} else {
		if !c.flight.again(sn, ts) {
			c.stats.Withheld++
			return false
		}
		c.stats.Retransmitted++
	}
	c.flight.sent[sn%uint32(len(c.flight.sent))] = ts
	return true
}

// firstWindow is the window message that the other side would have sent if it
// had spoken first. KCP believes in 32 segments before it hears anything.
func firstWindow() []byte {
	p := make([]byte, headerSize)
	binary.LittleEndian.PutUint32(p, conversation)
	p[4] = kcp.IKCP_CMD_WINS
	binary.LittleEndian.PutUint16(p[6:], Window)
	return p
}
