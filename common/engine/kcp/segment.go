package kcp

import (
	"encoding/binary"

	"github.com/xtaci/kcp-go/v5"
)

// headerSize is the size of a segment without content.
const headerSize = kcp.IKCP_OVERHEAD

// A segment is one of KCP's as it stands in a datagram.
type segment struct {
	cmd, frg    byte
	wnd         uint16
	ts, sn, una uint32
	content     []byte
}

// cut takes the first segment off p.
func cut(p []byte) (s segment, rest []byte, ok bool) {
	if len(p) < headerSize || binary.LittleEndian.Uint32(p) != conversation {
		return s, nil, false
	}
	size := binary.LittleEndian.Uint32(p[20:])
	if int64(size) > int64(min(len(p)-headerSize, SegmentSize)) {
		return s, nil, false
	}
	s = segment{
		cmd: p[4], frg: p[5],
		wnd:     binary.LittleEndian.Uint16(p[6:]),
		ts:      binary.LittleEndian.Uint32(p[8:]),
		sn:      binary.LittleEndian.Uint32(p[12:]),
		una:     binary.LittleEndian.Uint32(p[16:]),
		content: p[headerSize:][:size],
	}
	return s, p[headerSize+size:], true
}

// summary is what a datagram says to the Conn itself.
type summary struct {
	una     uint32
	wnd     uint16
	acks    bool   // ackTime and ackSN are set:
	ackTime uint32 // the segment sent last among those acknowledged
	ackSN   uint32
	data    bool // there is a segment with data
	asked   bool // the other side asks for the window
	marks   byte // of all messages
}

// scan checks that p holds whole KCP segments that KCP can take, and sums them
// up; what was sent is below next and acknowledged below una. kcp-go itself
// panics on data longer than its buffers, and believes acknowledgements of what
// was never sent.
func scan(p []byte, una, next uint32) (sum summary, ok bool) {
	sum.una = una
	for ok = len(p) > 0; ok && len(p) > 0; {
		var s segment
		if s, p, ok = cut(p); !ok || int32(s.una-next) > 0 {
			return sum, false
		}
		sum.wnd = s.wnd
		if int32(s.una-sum.una) > 0 {
			sum.una = s.una
		}
		switch s.cmd {
		case kcp.IKCP_CMD_PUSH:
			if ok = s.frg == 0 && len(s.content) > 0; ok {
				sum.data = true
				sum.marks |= s.content[len(s.content)-1]
			}
		case kcp.IKCP_CMD_ACK:
			ok = int32(s.sn-next) < 0 && len(s.content) == 0
			if !sum.acks || later(s.ts, s.sn, sum.ackTime, sum.ackSN) {
				sum.acks, sum.ackTime, sum.ackSN = true, s.ts, s.sn
			}
		case kcp.IKCP_CMD_WASK, kcp.IKCP_CMD_WINS:
			ok = len(s.content) == 0
			sum.asked = sum.asked || s.cmd == kcp.IKCP_CMD_WASK
		default:
			ok = false
		}
	}
	return sum, ok
}

// later tells whether the transmission of segment a at time ta came after that
// of segment b at time tb.
func later(ta, a, tb, b uint32) bool {
	return int32(ta-tb) > 0 || ta == tb && int32(a-b) > 0
}
