package arq

import (
	"encoding/binary"
	"time"

	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
)

// summary is what a datagram says to the Link itself.
type summary struct {
	una     uint32
	wnd     uint16
	acks    bool   // ackTime and ackSN are set:
	ackTime uint32 // the segment sent last among those acknowledged
	ackSN   uint32
	data    bool // there is a segment with data
	asked   bool // the other side asks for the window
}

// scan checks that p holds whole KCP segments that KCP can take, and sums them
// up. kcp-go itself panics on data longer than its buffers, and believes
// acknowledgements of what was never sent.
func (l *Link) scan(p []byte) (summary, bool) {
	sum := summary{una: l.una}
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
		if int32(una-l.next) > 0 || int64(size) > int64(min(len(p), SegmentSize)) {
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
		case kcp.IKCP_CMD_ACK:
			if int32(sn-l.next) >= 0 || size != 0 {
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

// output receives what KCP wants to send, whole segments at a time.
func (l *Link) output(buf []byte, size int) {
	for p := buf[:size]; len(p) > 0; {
		n := headerSize + int(binary.LittleEndian.Uint32(p[20:]))
		segment := p[:n]
		p = p[n:]
		since := l.ackSince
		if !l.pass(segment) {
			continue
		}
		switch {
		case segment[4] != kcp.IKCP_CMD_ACK:
			l.acksFrom = time.Time{}
		case len(l.out) > 0: // as it is
		case since.IsZero():
			l.acksFrom = time.Now()
		default:
			l.acksFrom = since
		}
		last := len(l.out) - 1
		if last < 0 || l.out[last].n+n > engine.MaxDatagram {
			d := datagrams.Get().(*datagram)
			d.n = 0
			l.out = append(l.out, d)
			last++
		}
		d := l.out[last]
		d.n += copy(d.data[d.n:], segment)
		l.outBytes += n
		l.moved += n
	}
}

// pass tells whether a segment that KCP wants to send shall be sent.
func (l *Link) pass(segment []byte) bool {
	l.told = binary.LittleEndian.Uint16(segment[6:])
	switch segment[4] {
	case kcp.IKCP_CMD_ACK:
		l.ackSince = time.Time{}
		return true
	case kcp.IKCP_CMD_PUSH:
	default:
		return true
	}
	ts := binary.LittleEndian.Uint32(segment[8:])
	sn := binary.LittleEndian.Uint32(segment[12:])
	if sn == l.next {
		if !l.clockSet {
			l.clockSet = true
			l.clock = time.Now().Add(-time.Duration(ts) * time.Millisecond)
		}
		l.next++
		if len(l.sent) < int(l.next-l.una) {
			l.growSent()
		}
		l.inKCP -= len(segment) - headerSize
		l.stats.Segments++
	} else {
		last := l.sent[sn%uint32(len(l.sent))]
		age := time.Duration(ts-last) * time.Millisecond
		switch {
		case l.acked && later(l.ackTime, l.ackSN, last, sn):
		case l.probes > 0 && age >= l.timeout():
			l.probes--
		default:
			l.stats.Withheld++
			return false
		}
		l.stats.Retransmitted++
	}
	l.sent[sn%uint32(len(l.sent))] = ts
	return true
}

// growSent doubles the table of transmission times. Its length is a power of
// two, so that sequence numbers may wrap.
func (l *Link) growSent() {
	old := l.sent
	l.sent = make([]uint32, max(64, 2*len(old)))
	for sn := l.una; len(old) > 0 && sn != l.next-1; sn++ {
		l.sent[sn%uint32(len(l.sent))] = old[sn%uint32(len(old))]
	}
}

// firstWindow is the window message that the other side would have sent if it
// had spoken first. KCP believes in 32 segments before it hears anything.
func firstWindow(segments int) []byte {
	p := make([]byte, headerSize)
	binary.LittleEndian.PutUint32(p, conversation)
	p[4] = kcp.IKCP_CMD_WINS
	binary.LittleEndian.PutUint16(p[6:], uint16(segments))
	return p
}
