package kcp

import (
	"encoding/binary"

	"github.com/xtaci/kcp-go/v5"
)

// headerSize is the size of a segment without content.
const headerSize = kcp.IKCP_OVERHEAD

// A segment is one of KCP's as it stands in a datagram. Numbers are at:
type segment []byte

const (
	cmdAt = 4
	frgAt = 5
	wndAt = 6
	tsAt  = 8
	snAt  = 12
	unaAt = 16
	lenAt = 20
)

// cut takes the first segment off p. If there is none it is nil.
func cut(p []byte) (s segment, rest []byte) {
	if len(p) < headerSize || binary.LittleEndian.Uint32(p) != conversation {
		return nil, nil
	}
	size := headerSize + int64(binary.LittleEndian.Uint32(p[lenAt:]))
	if size > int64(min(len(p), headerSize+SegmentSize)) {
		return nil, nil
	}
	return p[:size], p[size:]
}

// at is the number at an offset.
func (s segment) at(offset int) uint32 { return binary.LittleEndian.Uint32(s[offset:]) }

// add adds to the number at an offset.
func (s segment) add(offset int, n uint32) {
	binary.LittleEndian.PutUint32(s[offset:], s.at(offset)+n)
}

// shift adds to the numbers of the direction in which the segment goes, and to those
// of the other one.
func (s segment) shift(along, against uint32) {
	switch s[cmdAt] {
	case kcp.IKCP_CMD_PUSH:
		s.add(snAt, along)
	case kcp.IKCP_CMD_ACK:
		s.add(snAt, against)
	}
	s.add(unaAt, against)
}

// summary is what a datagram says to the Conn itself.
type summary struct {
	wnd   uint16 // of the last segment, as KCP believes it
	una   uint32 // what is below was acknowledged
	acked uint32 // and this one, if it is not below
	came  uint32 // one more than the highest number that has come
	fresh int    // segments with content that may be new
	marks byte   // of all messages
	asks  bool   // for an answer
}

// scan checks that p holds whole segments that KCP can take, sums them up and gives
// them KCP's numbers. kcp-go itself panics on data longer than its buffers, and
// believes acknowledgements of what was never sent.
func (b *block) scan(p []byte) (sum summary, ok bool) {
	next := b.flight.next
	sum.una, sum.acked, sum.came = b.flight.una, b.flight.una, b.came
	for ok = len(p) > 0; ok && len(p) > 0; {
		var s segment
		if s, p = cut(p); s == nil || int32(s.at(unaAt)-next) > 0 {
			return sum, false
		}
		sum.wnd = binary.LittleEndian.Uint16(s[wndAt:])
		if int32(s.at(unaAt)-sum.una) > 0 {
			sum.una = s.at(unaAt)
		}
		sn := s.at(snAt)
		switch s[cmdAt] {
		case kcp.IKCP_CMD_PUSH:
			ok = s[frgAt] == 0 && len(s) > headerSize
			sum.asks = true
			sum.marks |= s[len(s)-1]
			if ahead := sn - b.taken; ahead < 2*Window { // KCP takes as many at most
				sum.fresh++
				sum.came = b.taken + max(sum.came-b.taken, ahead+1)
			}
		case kcp.IKCP_CMD_ACK:
			ok = int32(sn-next) < 0 && len(s) == headerSize
			if int32(sn-sum.acked) > 0 {
				sum.acked = sn
			}
		case kcp.IKCP_CMD_WASK, kcp.IKCP_CMD_WINS:
			ok = len(s) == headerSize
			sum.asks = sum.asks || s[cmdAt] == kcp.IKCP_CMD_WASK
		default:
			ok = false
		}
		s.shift(-b.takenBefore, -b.sentBefore)
	}
	return sum, ok
}
