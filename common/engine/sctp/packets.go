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
	// A round trip divided by ackShare lies between two packets that only acknowledge,
	// minAckPause at least and maxAckPause at most: far less than the two round trips
	// after which the other side sends again. The library writes one for each second
	// packet that arrives, which over HTTP is a request each.
	ackShare    = 8
	minAckPause = time.Millisecond
	maxAckPause = 25 * time.Millisecond
)

// packets is what the library takes for its connection. It keeps account of what is
// sent, and keeps from the library, which was made for peers that mean well, what it
// could not stand.
type packets struct {
	engine.Carrier
	c       *conn
	parts   []byte        // chunks that the library is to be given one by one; its reader's
	writing chan struct{} // held while WriteTo is called, but for the farewell

	ack   []byte      // an acknowledgement that waits; empty: none does; the conn's mutex guards it, like what follows
	acked time.Time   // when one was written last
	timer *time.Timer // ends the wait
}

// Read implements net.Conn. It fails when the session has ended.
func (p *packets) Read(b []byte) (int, error) {
	for len(p.parts) == 0 {
		n, _, err := p.ReadFrom(b)
		if n, err = p.arrived(b[:n], err); n > 0 || err != nil {
			return n, err
		}
	}
	_, rest := nextChunk(p.parts)
	n := copy(b, farewell[:packetHeaderSize]) // the header of any packet
	n += copy(b[n:], p.parts[:len(p.parts)-len(rest)])
	p.parts = rest
	return n, p.c.Err()
}

// Write implements net.Conn. The library's writer alone calls it.
func (p *packets) Write(b []byte) (int, error) {
	if kept := p.depart(b); len(kept) > 0 {
		p.acknowledge()
		p.write(kept)
		p.c.mu.Lock()
		defer p.c.mu.Unlock()
		p.c.out.unsent -= p.c.out.batch
		p.c.out.batch = 0
		p.c.pump()
	}
	return len(b), nil
}

// write writes p to the carrier, unless the session has ended, which it has if
// that fails.
func (p *packets) write(b []byte) {
	p.writing <- struct{}{}
	defer func() { <-p.writing }()
	if p.c.Err() != nil {
		return
	}
	if _, err := p.WriteTo(b, p.RemoteAddr()); err != nil {
		p.c.Fail(fmt.Errorf("carrier: %w", err))
	}
}

// acknowledge writes the acknowledgement that waits. Where data goes the same
// way, that is before it.
func (p *packets) acknowledge() {
	p.c.mu.Lock()
	b := p.ack
	if len(b) > 0 {
		p.ack, p.acked = nil, time.Now()
	}
	p.c.mu.Unlock()
	if len(b) > 0 {
		p.write(b)
	}
}

// arrived looks at what ReadFrom has returned and says how much of it is a packet
// for the library: nothing, or nothing yet where there are parts.
func (p *packets) arrived(b []byte, err error) (int, error) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if err != nil {
		p.c.fail(fmt.Errorf("carrier: %w", err))
	}
	if p.c.Err() == nil && p.admit(b) && p.file(b) {
		return len(b), nil
	}
	return 0, p.c.Err()
}

// depart takes note of what is in a packet that the library wants to write, and
// returns what shall be written, if anything.
func (p *packets) depart(b []byte) []byte {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	kept := b[:packetHeaderSize]
	for rest := b[packetHeaderSize:]; len(rest) > 0; {
		chunk, after := nextChunk(rest)
		if chunk[0] != chunkData || p.departs(chunk) {
			kept = append(kept, rest[:len(rest)-len(after)]...) // in place
		}
		rest = after
	}
	if len(kept) == packetHeaderSize || p.holds(kept) {
		return nil
	}
	return kept
}

// What follows needs the conn's mutex held.

// admit tells whether p is a packet that the library can stand: one SACK, or
// messages. It takes note of what the packet says.
func (p *packets) admit(b []byte) bool {
	if len(b) < packetHeaderSize+chunkHeaderSize || len(b)%4 != 0 {
		return false
	}
	for rest := b[packetHeaderSize:]; len(rest) > 0; {
		var chunk []byte
		chunk, rest = nextChunk(rest)
		switch {
		case chunk == nil:
			return false
		case chunk[0] == chunkAbort:
			p.c.fail(errPeerClosed)
			return false
		case chunk[0] == chunkSack:
			return len(rest) == 0 && b[packetHeaderSize] == chunkSack && p.admitSack(chunk)
		case !p.admitData(chunk):
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
func (p *packets) admitData(chunk []byte) bool {
	if len(chunk) <= dataHeaderSize || len(chunk) > dataHeaderSize+maxMessage {
		return false
	}
	number := binary.BigEndian.Uint32(chunk[4:]) - firstTSN
	return chunk[0] == chunkData && chunk[1]&^answerAtOnce == wholeMessage &&
		binary.BigEndian.Uint32(chunk[8:]) == number&0xffff && // stream 0 and sequence number
		binary.BigEndian.Uint32(chunk[12:]) == 0 && int32(number-p.c.read) < maxAhead
}

// file takes note of the messages in a packet that is admitted, and tells whether it
// is for the library as it is. Of several messages the library would keep all until the
// last was read, and a byte far ahead keep what was read: it is given them one by one.
func (p *packets) file(b []byte) bool {
	messages := 0
	for rest := b[packetHeaderSize:]; len(rest) > 0; messages++ {
		var chunk []byte
		if chunk, rest = nextChunk(rest); chunk[0] != chunkData {
			return true
		}
		number := binary.BigEndian.Uint32(chunk[4:]) - firstTSN
		word, bit := &p.c.came[number%seen/64], uint64(1)<<(number%64)
		if int32(number-p.c.read) >= 0 && *word&bit == 0 {
			*word |= bit
			p.Hold(inCost(len(chunk) - dataHeaderSize))
		}
	}
	half.Signal(p.c.readable)
	if messages > 1 {
		p.parts = bytes.Clone(b[packetHeaderSize:])
	}
	return messages == 1
}

// admitSack tells whether a SACK speaks of what was sent, and of each at most
// once, because the library goes through all of it. If so it takes note.
func (p *packets) admitSack(chunk []byte) bool {
	if len(chunk) < sackHeaderSize {
		return false
	}
	o := &p.c.out
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
	if int32(o.sent-cumulative) <= 0 || int32(o.sent-cumulative-top) <= 0 {
		return false
	}
	if top > 0 && int32(cumulative+top-o.reported) > 0 {
		o.reported = cumulative + top
	}
	freed := 0
	for ; int32(cumulative+1-o.una) > 0; o.una++ {
		freed += outCost(int(o.sizes[0]))
		o.sizes = o.sizes[1:]
	}
	p.Hold(-freed)
	if len(o.sizes) == 0 {
		o.sizes = nil
	}
	p.c.pump()
	return true
}

// departs takes note of a DATA chunk and tells whether it shall be sent. The library
// wants to send all that is outstanding again after a second or two, in which a carrier
// may still repair it. So a message goes again if one sent after it has arrived, and the
// newest in any case, whose arrival is evidence for all the others (TestOutage).
func (p *packets) departs(chunk []byte) bool {
	o := &p.c.out
	tsn := binary.BigEndian.Uint32(chunk[4:])
	if tsn == o.sent {
		o.batch += len(chunk) - dataHeaderSize
		if o.sent++; o.sent == o.next && len(chunk) < dataHeaderSize+maxMessage {
			chunk[1] |= answerAtOnce // or it would be acknowledged after 200 ms, and sent again before
		}
		return true
	}
	p.c.wake() // the next may go
	return tsn+1 == o.sent || int32(o.reported-tsn) > 0
}

// holds tells whether p shall wait, because it only acknowledges, and that
// without a gap, and another such packet was written just before.
func (p *packets) holds(b []byte) bool {
	if len(b) != packetHeaderSize+sackHeaderSize || b[packetHeaderSize] != chunkSack {
		return false
	}
	now := time.Now()
	rtt := time.Duration(p.c.assoc.SRTT() * float64(time.Millisecond)) // 0: there is none yet
	wait := p.acked.Add(min(max(rtt/ackShare, minAckPause), maxAckPause)).Sub(now)
	if wait <= 0 {
		p.ack, p.acked = nil, now // what waits is in b, too
		return false
	}
	if len(p.ack) == 0 {
		p.timer.Reset(wait)
	}
	p.ack = append(p.ack[:0], b...)
	return true
}
