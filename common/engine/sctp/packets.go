package sctp

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

// packets is what the library takes for its connection.
type packets struct {
	engine.Carrier
	c *conn
}

// Read implements net.Conn. It fails when the session has ended.
func (p packets) Read(b []byte) (int, error) {
	for {
		n, _, err := p.ReadFrom(b)
		if err != nil {
			p.c.Fail(fmt.Errorf("carrier: %w", err))
		}
		if n = p.c.arrived(b[:n]); n > packetHeaderSize || p.c.Err() != nil {
			return n, p.c.Err()
		}
	}
}

// Write implements net.Conn. The library's writer alone calls it.
func (p packets) Write(b []byte) (int, error) {
	for rest := b[packetHeaderSize:]; len(rest) > 0; {
		var chunk []byte
		chunk, rest = nextChunk(rest)
		if packet, fresh := p.c.departs(chunk); packet != nil {
			p.c.write(packet, fresh)
		}
	}
	return len(b), nil
}

// write gives the carrier a packet, in which so many bytes of content go for the first
// time, unless the session has ended, which it has if that fails.
func (c *conn) write(packet []byte, fresh int) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.Err() != nil {
		return
	}
	_, err := c.pc.WriteTo(packet, c.pc.RemoteAddr())
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.fail(fmt.Errorf("carrier: %w", err))
	}
	c.out.unsent -= fresh
	c.pump()
}

// arrived takes note of what is in a packet that has come, and leaves in it what the
// library is to see, of which it returns the length.
func (c *conn) arrived(b []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(b) < packetHeaderSize || len(b)%4 != 0 {
		return 0
	}
	kept := append(b[:0], farewell[:packetHeaderSize]...)
	for rest := b[packetHeaderSize:]; len(rest) > 0; {
		var chunk []byte
		switch chunk, rest = nextChunk(rest); {
		case chunk == nil: // neither is there a rest
		case chunk[0] == chunkAbort:
			c.fail(errPeerClosed)
		case chunk[0] == chunkSack && c.acknowledged(chunk):
			kept = append(kept, chunk...)
		case chunk[0] == chunkData && c.keep(chunk):
			kept = append(kept, chunk[:dataHeaderSize]...)
		}
	}
	return len(kept)
}

// departs takes note of a chunk that the library wants to send, and returns the packet
// for it if it shall go, and how many bytes of content go with it for the first time.
//
// The library wants to send all that is outstanding again after a second or two, in
// which a carrier may still repair it. So a message goes again if one sent after it has
// arrived, and the newest in any case, whose arrival is evidence for all the others
// (TestOutage). When an acknowledgement is late it puts out a part of that at a time, and
// sleeps until the next one comes (TestLostOutage): to be asked for a heartbeat, which
// does not go either, wakes it.
func (c *conn) departs(chunk []byte) (packet []byte, fresh int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if chunk[0] == chunkSack {
		return c.acknowledges(chunk), 0
	}
	if chunk[0] != chunkData {
		return nil, 0 // a heartbeat
	}
	o, tsn := &c.out, binary.BigEndian.Uint32(chunk[4:])
	if int32(tsn-o.una) < 0 {
		return nil, 0 // it was acknowledged meanwhile
	}
	packet = o.packets[tsn-o.una]
	switch size := len(packet) - packetHeaderSize; {
	case tsn == o.sent:
		o.sent++
		fresh = size - dataHeaderSize
		copy(packet, farewell[:packetHeaderSize])
		copy(packet[packetHeaderSize:], chunk[:dataHeaderSize])
		binary.BigEndian.PutUint16(packet[packetHeaderSize+2:], uint16(size))
		if o.sent-o.una == uint32(len(o.packets)) {
			packet[packetHeaderSize+1] |= answerAtOnce // or it would be acknowledged after 200 ms, and sent again before
		}
	case tsn+1 != o.sent && int32(o.reported-tsn) <= 0:
		c.assoc.ActiveHeartbeat()
		return nil, 0
	}
	return append(packet, make([]byte, -len(packet)&3)...), fresh
}

// What follows needs mu held.

// acknowledges is departs for a SACK: one without a gap waits for others.
func (c *conn) acknowledges(chunk []byte) []byte {
	i, cumulative, gaps := &c.in, binary.BigEndian.Uint32(chunk[4:]), len(chunk) > sackHeaderSize
	if !gaps && cumulative != i.asked && cumulative-i.acked < ackEvery {
		return nil
	}
	if i.acked = cumulative; gaps {
		i.acked -= ackEvery // the next one goes, too
	}
	binary.BigEndian.PutUint32(chunk[8:], uint32(max(receiveBuffer-i.unread, 0)))
	return slices.Concat(farewell[:packetHeaderSize], chunk)
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

// keep tells whether a DATA chunk is a message of the one stream, in its place, and not
// too far ahead. If so it keeps the content and makes the head what the library sees.
func (c *conn) keep(chunk []byte) bool {
	if len(chunk) <= dataHeaderSize || len(chunk) > dataHeaderSize+maxMessage {
		return false
	}
	i, content := &c.in, chunk[dataHeaderSize:]
	number := binary.BigEndian.Uint32(chunk[4:]) - firstTSN
	ahead := int32(number - i.read)
	if chunk[1]&^answerAtOnce != wholeMessage || binary.BigEndian.Uint32(chunk[8:]) != number&0xffff || // stream 0 and sequence number
		binary.BigEndian.Uint32(chunk[12:]) != 0 || ahead >= maxAhead {
		return false
	}
	at, again := slices.BinarySearchFunc(i.came, ahead, func(m message, ahead int32) int {
		return cmp.Compare(int32(m.number-i.read), ahead)
	})
	switch {
	case ahead < 0 || again:
		i.acked -= ackEvery // the other side lacks an acknowledgement
	case i.unread >= receiveBuffer:
		return false
	default:
		i.came = slices.Insert(i.came, at, message{number, bytes.Clone(content)})
		i.unread += len(content)
		c.pc.Hold(len(content) + inCost)
		half.Signal(c.readable)
	}
	if chunk[1]&answerAtOnce != 0 {
		i.asked = number + firstTSN
	}
	binary.BigEndian.PutUint16(chunk[2:], dataHeaderSize)
	binary.BigEndian.PutUint16(chunk[10:], 0xffff) // as if it had been read
	return true
}

// acknowledged tells whether a SACK speaks of what was sent, and of each at most
// once, because the library goes through all of it. If so it takes note, of the window
// in whole messages, and hides that from the library, which counts stand-ins.
func (c *conn) acknowledged(chunk []byte) bool {
	if len(chunk) < sackHeaderSize {
		return false
	}
	o := &c.out
	cumulative := binary.BigEndian.Uint32(chunk[4:])
	window := binary.BigEndian.Uint32(chunk[8:]) / maxMessage
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
		window += end - start + 1 // the other side has counted them
	}
	if int32(o.sent-cumulative) <= 0 || int32(o.sent-cumulative-top) <= 0 {
		return false
	}
	if top > 0 && int32(cumulative+top-o.reported) > 0 {
		o.reported = cumulative + top
	}
	freed := 0
	for ; int32(cumulative+1-o.una) > 0; o.una++ {
		freed += cap(o.packets[0]) + outCost
		o.packets = pop(o.packets, &o.taken)
	}
	c.pc.Hold(-freed)
	if cumulative+1 == o.una {
		o.window = min(window, maxOutstanding)
	}
	binary.BigEndian.PutUint32(chunk[8:], receiveBuffer)
	c.pump()
	return true
}

// pop takes the first off a queue, from whose array so many were taken, at most. An
// array of which less than half is in use goes, or who leaves one behind keeps it all.
func pop[T any](queue []T, taken *int) []T {
	clear(queue[:1])
	queue = queue[1:]
	if *taken++; *taken > len(queue) {
		*taken = 0
		return append([]T(nil), queue...)
	}
	return queue
}
