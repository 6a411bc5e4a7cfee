package sctp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

const (
	// A round trip divided by ackShare lies between two packets that only
	// acknowledge, minAckPause at least and maxAckPause at most: far less than the two round trips after
	// which the other side sends again. The library writes one for each second
	// packet that arrives: in TestAcknowledgements 773 in a round trip, and now 8.
	// Over HTTP each is a request, which all else that the client has to say
	// would wait for.
	ackShare    = 8
	minAckPause = time.Millisecond
	maxAckPause = 25 * time.Millisecond
)

// packets is what the library takes for its connection. It keeps account of what
// is sent, and keeps from the library what it could not stand: it was made for
// peers that mean well. All else is the carrier's.
type packets struct {
	engine.Carrier
	c *conn
}

// waitingAck is an acknowledgement that was not written yet. The conn's mutex
// guards it.
type waitingAck struct {
	packet []byte      // empty: none waits
	last   time.Time   // when one was written last
	timer  *time.Timer // ends the wait
}

// Read implements net.Conn. It fails when the session has ended.
func (p packets) Read(b []byte) (int, error) {
	for len(p.c.parts) == 0 {
		n, _, err := p.ReadFrom(b)
		ok, err := p.c.arrived(b[:max(n, 0)], err)
		if err != nil {
			return 0, err
		}
		if ok && len(p.c.parts) == 0 {
			return n, nil
		}
	}
	_, rest := nextChunk(p.c.parts)
	n := copy(b, farewell[:packetHeaderSize]) // the header of any packet
	n += copy(b[n:], p.c.parts[:len(p.c.parts)-len(rest)])
	p.c.parts = rest
	return n, p.c.Err()
}

// Write implements net.Conn. The library's writer alone calls it.
func (p packets) Write(b []byte) (int, error) {
	if kept := p.c.depart(b); len(kept) > 0 {
		p.c.acknowledge()
		p.c.write(kept)
		p.c.departed()
	}
	return len(b), nil
}

// write writes p to the carrier, unless the session has ended, which it has if
// that fails.
func (c *conn) write(p []byte) {
	c.writing <- struct{}{}
	defer func() { <-c.writing }()
	if half.IsClosed(c.done) {
		return
	}
	if _, err := c.pc.WriteTo(p, c.pc.RemoteAddr()); err != nil {
		c.Fail(fmt.Errorf("carrier: %w", err))
	}
}

// acknowledge writes the acknowledgement that waits. Where data goes the same
// way, that is before it.
func (c *conn) acknowledge() {
	c.mu.Lock()
	p := c.ack.packet
	if len(p) > 0 {
		c.ack.packet, c.ack.last = nil, time.Now()
	}
	c.mu.Unlock()
	if len(p) > 0 {
		c.write(p)
	}
}

// arrived looks at what ReadFrom has returned and tells whether it is a packet
// for the library.
func (c *conn) arrived(p []byte, err error) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.fail(fmt.Errorf("carrier: %w", err))
	}
	if c.err != nil || !c.admit(p) {
		return false, c.err
	}
	c.file(p)
	return true, nil
}

// depart takes note of what is in a packet that the library wants to write, and
// returns what shall be written, if anything.
func (c *conn) depart(p []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil
	}
	kept := p[:packetHeaderSize]
	for rest := p[packetHeaderSize:]; len(rest) > 0; {
		chunk, after := nextChunk(rest)
		if chunk[0] != chunkData || c.departs(chunk) {
			kept = append(kept, rest[:len(rest)-len(after)]...) // in place
		}
		rest = after
	}
	if len(kept) == packetHeaderSize || c.holds(kept) {
		return nil
	}
	return kept
}

// departed takes note of the fact that the carrier has taken a packet.
func (c *conn) departed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.unsent -= c.out.batch
	c.out.batch = 0
	c.pump()
}

// What follows needs mu held.

// admit tells whether p is a packet that the library can stand: one SACK, or
// messages. It takes note of what the packet says.
func (c *conn) admit(p []byte) bool {
	if len(p) < packetHeaderSize+chunkHeaderSize || len(p)%4 != 0 {
		return false
	}
	for rest := p[packetHeaderSize:]; len(rest) > 0; {
		var chunk []byte
		chunk, rest = nextChunk(rest)
		switch {
		case chunk == nil:
			return false
		case chunk[0] == chunkAbort:
			c.fail(errPeerClosed)
			return false
		case chunk[0] == chunkSack:
			return len(rest) == 0 && p[packetHeaderSize] == chunkSack && c.admitSack(chunk)
		case !c.admitData(chunk):
			return false
		}
	}
	return true
}

// nextChunk cuts the first chunk off p, whose length is a multiple of 4. The chunk
// is nil if it is malformed.
func nextChunk(p []byte) (chunk, rest []byte) {
	size := int(binary.BigEndian.Uint16(p[2:]))
	padded := (size + 3) &^ 3
	if size < chunkHeaderSize || padded > len(p) {
		return nil, nil
	}
	return p[:size], p[padded:]
}

// admitData tells whether a chunk is a message of the one stream, in its place,
// and not too far ahead.
func (c *conn) admitData(chunk []byte) bool {
	if len(chunk) <= dataHeaderSize || len(chunk) > dataHeaderSize+maxMessage {
		return false
	}
	number := binary.BigEndian.Uint32(chunk[4:]) - firstTSN
	return chunk[0] == chunkData && chunk[1]&^answerAtOnce == wholeMessage &&
		binary.BigEndian.Uint32(chunk[8:]) == number&0xffff && // stream 0 and sequence number
		binary.BigEndian.Uint32(chunk[12:]) == 0 && int32(number-c.read) < maxAhead
}

// file takes note of the messages in a packet that is admitted. The library keeps
// the whole packet until the last of them was read. So if they do not follow one
// on the other, it is given them one by one, or a byte far ahead would keep what
// was read in its place.
func (c *conn) file(p []byte) {
	scattered, last := false, uint32(0)
	for rest := p[packetHeaderSize:]; len(rest) > 0; {
		var chunk []byte
		if chunk, rest = nextChunk(rest); chunk[0] != chunkData {
			return
		}
		number := binary.BigEndian.Uint32(chunk[4:]) - firstTSN
		scattered = scattered || last != 0 && number != last+1
		last = number
		word, bit := &c.came[number%seen/64], uint64(1)<<(number%64)
		if int32(number-c.read) >= 0 && *word&bit == 0 {
			*word |= bit
			c.pc.Hold(inCost(len(chunk) - dataHeaderSize))
		}
	}
	half.Signal(c.readable)
	if scattered {
		c.parts = bytes.Clone(p[packetHeaderSize:])
	}
}

// took takes note of a message that Read has taken.
func (c *conn) took(size int) {
	c.came[c.read%seen/64] &^= 1 << (c.read % 64)
	c.read++
	c.pc.Hold(-inCost(size))
}

// acknowledged takes note of the fact that all before una have arrived.
func (o *outgoing) acknowledged(una uint32) (freed int) {
	n := una - o.una
	for _, size := range o.sizes[:n] {
		freed += outCost(int(size))
	}
	if o.una, o.sizes = una, o.sizes[n:]; len(o.sizes) == 0 {
		o.sizes = nil
	}
	return freed
}

// admitSack tells whether a SACK speaks of what was sent, and of each at most
// once, because the library goes through all of it. If so it takes note.
func (c *conn) admitSack(chunk []byte) bool {
	if len(chunk) < sackHeaderSize {
		return false
	}
	o := &c.out
	cumulative := binary.BigEndian.Uint32(chunk[4:])
	gaps := int(binary.BigEndian.Uint16(chunk[12:]))
	duplicates := int(binary.BigEndian.Uint16(chunk[14:]))
	if len(chunk) != sackHeaderSize+4*(gaps+duplicates) {
		return false
	}
	top := uint32(0) // above cumulative
	for g := chunk[sackHeaderSize:]; gaps > 0; gaps, g = gaps-1, g[4:] {
		start, end := uint32(binary.BigEndian.Uint16(g)), uint32(binary.BigEndian.Uint16(g[2:]))
		if start <= top || end < start {
			return false
		}
		top = end
	}
	if int32(o.sent-cumulative-top) <= 0 {
		return false
	}
	if top > 0 && int32(cumulative+top-o.reported) > 0 {
		o.reported = cumulative + top
	}
	if int32(cumulative+1-o.una) > 0 {
		c.pc.Hold(-o.acknowledged(cumulative + 1))
		c.pump()
	}
	return true
}

// departs takes note of a DATA chunk and tells whether it shall be sent. The
// library wants to send all that is outstanding again when nothing was
// acknowledged for a second or two. A carrier that repairs what it loses may take
// longer, and then delivers everything. So a message goes again if one sent after
// it has arrived, and the newest in any case, whose arrival is evidence for all
// the others. In TestOutage 1 message goes in vain in place of 516.
func (c *conn) departs(chunk []byte) bool {
	o := &c.out
	tsn := binary.BigEndian.Uint32(chunk[4:])
	if tsn == o.sent {
		o.batch += len(chunk) - dataHeaderSize
		if o.sent++; o.sent == o.next && len(chunk) < dataHeaderSize+maxMessage {
			// Nothing follows. An odd packet would be acknowledged after 200 ms, and
			// sent again before: without this in 11 of 30 runs of TestNothingTwice.
			chunk[1] |= answerAtOnce
		}
		return true
	}
	c.wake() // the next may go
	return tsn+1 == o.sent || int32(o.reported-tsn) > 0
}

// holds tells whether p shall wait, because it only acknowledges, and that
// without a gap, and another such packet was written just before.
func (c *conn) holds(p []byte) bool {
	if len(p) != packetHeaderSize+sackHeaderSize || p[packetHeaderSize] != chunkSack {
		return false
	}
	now := time.Now()
	rtt := time.Duration(c.assoc.SRTT() * float64(time.Millisecond)) // 0: there is none yet
	wait := c.ack.last.Add(min(max(rtt/ackShare, minAckPause), maxAckPause)).Sub(now)
	if wait <= 0 {
		c.ack.packet, c.ack.last = nil, now // what waits is in p, too
		return false
	}
	if len(c.ack.packet) == 0 {
		c.ack.timer.Reset(wait)
	}
	c.ack.packet = append(c.ack.packet[:0], p...)
	return true
}
