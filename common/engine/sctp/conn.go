package sctp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/pion/logging"

	"turbotunnel/common/engine"
)

// What this package knows of SCTP's format (RFC 9260, section 3): a packet is a
// common header and chunks, each padded to a multiple of 4 bytes.
const (
	packetHeaderSize = 12
	chunkHeaderSize  = 4
	dataHeaderSize   = chunkHeaderSize + 12
	sackHeaderSize   = chunkHeaderSize + 12

	chunkData  = 0
	chunkSack  = 3
	chunkAbort = 6

	wholeMessage = 3 // flags of a DATA chunk that is ordered and not a fragment
	answerAtOnce = 8 // flag of a DATA chunk whose SACK shall not be delayed (RFC 7053)

	firstTSN = 1
)

// clientToken and serverToken are the INIT chunks that both sides take for
// exchanged.
var (
	clientToken = token(1)
	serverToken = token(2)
)

func token(tag uint32) []byte {
	p := []byte{1, 0, 0, 28} // INIT, 28 bytes
	p = binary.BigEndian.AppendUint32(p, tag)
	p = binary.BigEndian.AppendUint32(p, receiveBuffer)
	p = append(p, 0xff, 0xff, 0xff, 0xff) // streams, outbound and inbound
	p = binary.BigEndian.AppendUint32(p, firstTSN)
	return append(p, 0x80, 0x01, 0, 8, 0, 0, 0, 1) // zero checksum acceptable (RFC 9653)
}

// farewell is the packet that ends a session. Nobody looks at its tag.
var farewell = []byte{0x13, 0x88, 0x13, 0x88, 0, 0, 0, 0, 0, 0, 0, 0, chunkAbort, 0, 0, 4}

const (
	// minBacklog and maxBacklog bound the bytes given to SCTP that the carrier
	// has not taken yet: what a new stream has to wait for. SCTP goes through
	// all that is outstanding once for each batch, so a fast carrier is given
	// larger ones.
	minBacklog = 64 << 10
	maxBacklog = 512 << 10

	// A round trip divided by ackShare lies between two packets that only
	// acknowledge, and ackPause at most: far less than the two round trips after
	// which the other side sends again. SCTP writes one for each second packet
	// that arrives. Over HTTP each is a request; a fast download would have as
	// many of them on their way as there may be, and all else that the client
	// has to say would wait for them.
	ackShare = 8
	ackPause = 25 * time.Millisecond

	// probes is how many of the oldest outstanding messages SCTP may send again
	// without evidence that they are lost: 64 KB at most.
	probes = 8

	// slowWrite is how long the carrier may take for minBacklog bytes before
	// the backlog is made smaller.
	slowWrite = 20 * time.Millisecond
)

// Stats are counts since the start of a session.
type Stats struct {
	Datagrams     int // written
	Messages      int // sent for the first time
	Retransmitted int // messages sent again
	Withheld      int // messages that SCTP wanted to send again for no good reason
}

// conn is the net.Conn below the association. It keeps account of what SCTP
// sends, and keeps from it what it could not stand: the library was made for
// peers that mean well. The session's mutex guards all of it but what says
// otherwise.
type conn struct {
	pc    net.PacketConn // never changes
	s     *session       // never changes
	ready chan struct{}  // closed when the session is complete
	peer  net.Addr       // where to write to; nil until it is known

	// Sending. TSNs below una have been acknowledged, those below taken were
	// taken by the carrier, those below sent were put out by SCTP, and those
	// below next were given to it.
	una, taken, sent, next uint32
	messages               []message     // by TSN, from una to next; the length is a power of two
	batch                  []message     // in the packet that is being written
	unsent                 int           // bytes in messages from taken to next
	backlog                int           // limit for unsent
	limited                bool          // the limit has kept bytes back since SCTP ran dry
	measured               int           // bytes that the carrier has taken
	took                   time.Duration // to take them

	reported uint32 // the highest TSN that is known to have arrived before its turn
	probed   uint32 // una when the newest message was sent again last; 0: never

	// Receiving.
	ack       []byte      // a packet that only acknowledges, and has to wait; empty: none
	acked     time.Time   // when one was written last
	ackTimer  *time.Timer // ends the wait; nil: never needed so far
	delivered uint32      // messages
	touched   uint32      // SCTP streams of the last packet, one bit for each; the reader's

	writing chan struct{} // held while pc.WriteTo is called, but for the farewell
	stats   Stats
}

// message is one that was given to SCTP.
type message struct {
	stream *stream // nil: of stream 0
	size   int
}

func newConn(pc net.PacketConn, s *session) *conn {
	c := &conn{
		pc: pc, s: s,
		ready: make(chan struct{}), writing: make(chan struct{}, 1),
		una: firstTSN, taken: firstTSN, sent: firstTSN, next: firstTSN,
		backlog: minBacklog,
	}
	if r, ok := pc.(interface{ RemoteAddr() net.Addr }); ok {
		c.peer = r.RemoteAddr()
	}
	return c
}

// Read implements net.Conn for the association, which calls it again when it
// has handled a packet: so it is also where messages are delivered.
func (c *conn) Read(p []byte) (int, error) {
	<-c.ready
	for {
		if err := c.deliver(); err != nil {
			c.close(!errors.Is(err, errPeerClosed))
			return 0, err
		}
		n, addr, err := c.pc.ReadFrom(p)
		ok, err := c.receive(p[:max(n, 0)], addr, err)
		if err != nil {
			c.pc.Close() // the writer may be blocked
			return 0, err
		}
		if ok {
			return n, nil
		}
	}
}

// deliver delivers what the last packet has brought. It fails when the session
// has ended otherwise than by Close, which says farewell before it closes pc.
func (c *conn) deliver() error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.err == nil {
		c.s.deliver(c.touched)
		c.touched = 0
	}
	if c.s.err != engine.ErrClosed {
		return c.s.err
	}
	return nil
}

// receive looks at what ReadFrom has returned and tells whether it is a packet
// for SCTP.
func (c *conn) receive(p []byte, addr net.Addr, err error) (bool, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if err != nil {
		c.s.fail(fmt.Errorf("carrier: %w", err))
		return false, err
	}
	if c.s.err != nil {
		return false, nil
	}
	if c.peer == nil {
		c.peer = addr
	}
	return c.admit(p), nil
}

// admit tells whether p is a packet that SCTP can stand, and takes note of what
// it says.
func (c *conn) admit(p []byte) bool {
	if len(p) < packetHeaderSize || len(p)%4 != 0 {
		return false
	}
	una, reported, touched := c.una, c.reported, uint32(0)
	for rest := p[packetHeaderSize:]; len(rest) > 0; {
		chunk, after, ok := nextChunk(rest)
		if !ok {
			return false
		}
		rest = after
		switch chunk[0] {
		case chunkData:
			if len(chunk) <= dataHeaderSize || chunk[1]&^answerAtOnce != wholeMessage {
				return false
			}
			lane := binary.BigEndian.Uint16(chunk[8:])
			ahead := binary.BigEndian.Uint32(chunk[4:]) - firstTSN - c.delivered
			if lane >= lanes || int32(ahead) >= maxOutstanding {
				return false
			}
			touched |= 1 << lane
		case chunkSack:
			if !c.admitSack(chunk) {
				return false
			}
			cumulative := binary.BigEndian.Uint32(chunk[4:])
			if int32(cumulative+1-una) > 0 {
				una = cumulative + 1
			}
			if n := 4 * int(binary.BigEndian.Uint16(chunk[12:])); n > 0 {
				top := cumulative + uint32(binary.BigEndian.Uint16(chunk[sackHeaderSize+n-2:]))
				if int32(top-reported) > 0 {
					reported = top
				}
			}
		case chunkAbort:
			c.s.fail(errPeerClosed)
			return false
		default:
			return false
		}
	}
	c.touched |= touched
	c.reported = reported
	c.acknowledged(una)
	return true
}

// admitSack tells whether a SACK speaks of what was sent, and of each at most
// once.
func (c *conn) admitSack(chunk []byte) bool {
	if len(chunk) < sackHeaderSize {
		return false
	}
	cumulative := binary.BigEndian.Uint32(chunk[4:])
	gaps := int(binary.BigEndian.Uint16(chunk[12:]))
	duplicates := int(binary.BigEndian.Uint16(chunk[14:]))
	if len(chunk) != sackHeaderSize+4*(gaps+duplicates) || int32(c.sent-cumulative) <= 0 {
		return false
	}
	last := uint16(0)
	for g := chunk[sackHeaderSize:]; gaps > 0; gaps-- {
		start, end := binary.BigEndian.Uint16(g), binary.BigEndian.Uint16(g[2:])
		if start <= last || end < start || int32(c.sent-cumulative-uint32(end)) <= 0 {
			return false
		}
		last, g = end, g[4:]
	}
	return true
}

// nextChunk cuts the first chunk off p, whose length is a multiple of 4.
func nextChunk(p []byte) (chunk, rest []byte, ok bool) {
	size := int(binary.BigEndian.Uint16(p[2:]))
	padded := (size + 3) &^ 3
	if size < chunkHeaderSize || padded > len(p) {
		return nil, nil, false
	}
	return p[:size], p[padded:], true
}

// Write implements net.Conn for the association, whose writer alone calls it.
func (c *conn) Write(p []byte) (int, error) {
	size := len(p)
	p, to, err := c.depart(p)
	if err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return size, nil
	}
	c.acknowledge()
	start := time.Now()
	err = c.write(p, to)
	if err := c.departed(len(p), time.Since(start), err); err != nil {
		return 0, err
	}
	return size, nil
}

// depart takes note of what is in a packet that SCTP wants to write, and
// returns what shall be written and to whom.
func (c *conn) depart(p []byte) ([]byte, net.Addr, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	switch {
	case c.s.err == engine.ErrClosed:
		return nil, nil, nil // Close writes the last packet and closes pc
	case c.s.err != nil:
		return nil, nil, c.s.err
	case c.peer == nil:
		return nil, nil, nil // nothing has come that could be answered
	}
	kept := p[:packetHeaderSize]
	for rest := p[packetHeaderSize:]; len(rest) >= chunkHeaderSize; {
		chunk, after, ok := nextChunk(rest)
		if !ok {
			break
		}
		if chunk[0] != chunkData || c.departs(chunk) {
			kept = append(kept, rest[:len(rest)-len(after)]...) // in place
		}
		rest = after
	}
	if len(kept) == packetHeaderSize || c.holds(kept) {
		return nil, nil, nil
	}
	return kept, c.peer, nil
}

// holds tells whether p shall wait, because it only acknowledges, and that
// without a gap, and another such packet was written just before.
func (c *conn) holds(p []byte) bool {
	plain := len(p) == packetHeaderSize+sackHeaderSize && p[packetHeaderSize] == chunkSack
	if !plain {
		return false
	}
	now := time.Now()
	wait := c.acked.Add(min(c.s.measuredRTT()/ackShare, ackPause)).Sub(now)
	if wait <= 0 {
		c.acked, c.ack = now, c.ack[:0] // what it says is in p
		return false
	}
	switch waits := len(c.ack) > 0; {
	case waits:
	case c.ackTimer == nil:
		c.ackTimer = time.AfterFunc(wait, c.acknowledge)
	default:
		c.ackTimer.Reset(wait)
	}
	c.ack = append(c.ack[:0], p...)
	return true
}

// acknowledge writes the acknowledgement that waits. Where data goes the same
// way, that is before it.
func (c *conn) acknowledge() {
	c.s.mu.Lock()
	p, to := c.ack, c.peer
	c.ack = nil
	if len(p) == 0 || c.s.err != nil {
		c.s.mu.Unlock()
		return
	}
	c.acked = time.Now()
	c.stats.Datagrams++
	c.s.mu.Unlock()
	if err := c.write(p, to); err != nil {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		c.s.fail(fmt.Errorf("carrier: %w", err))
	}
}

// write writes p to the carrier, unless the session has ended.
func (c *conn) write(p []byte, to net.Addr) error {
	c.writing <- struct{}{}
	defer func() { <-c.writing }()
	select {
	case <-c.s.done:
		return nil
	default:
	}
	_, err := c.pc.WriteTo(p, to)
	return err
}

// departs takes note of a DATA chunk and tells whether it shall be sent.
func (c *conn) departs(chunk []byte) bool {
	tsn := binary.BigEndian.Uint32(chunk[4:])
	if tsn != c.sent {
		return c.resend(chunk)
	}
	c.batch = append(c.batch, *c.message(tsn))
	c.sent++
	c.stats.Messages++
	if c.sent == c.next {
		// Nothing follows. SCTP would wait 200 ms before it acknowledges an odd
		// packet, longer than the other side's probe timer.
		chunk[1] |= answerAtOnce
	}
	return true
}

// resend tells whether a message shall be sent again. SCTP wants to send all
// that is outstanding when nothing was acknowledged for a second or two. A
// carrier that repairs what it loses may take longer, and then delivers
// everything. So a message goes if one sent after it has arrived; without that
// evidence only the oldest few go and the newest, whose arrival is evidence for
// all the others, and while that does not help only the oldest and the newest.
func (c *conn) resend(chunk []byte) bool {
	c.s.wake() // the next may go
	tsn := binary.BigEndian.Uint32(chunk[4:])
	most := uint32(probes)
	if c.probed == c.una {
		most = 1
	}
	if int32(c.reported-tsn) <= 0 && tsn-c.una >= most && tsn+1 != c.sent {
		c.stats.Withheld++
		return false
	}
	if tsn+1 == c.sent {
		c.probed = c.una
	}
	c.stats.Retransmitted++
	chunk[1] |= answerAtOnce
	return true
}

// departed takes note of how the carrier has taken a packet of size bytes.
func (c *conn) departed(size int, took time.Duration, err error) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if err != nil && c.s.err != engine.ErrClosed {
		c.s.fail(fmt.Errorf("carrier: %w", err))
		return err
	}
	if c.s.err != nil {
		return nil
	}
	c.stats.Datagrams++
	c.taken = c.sent
	for i := range c.batch {
		c.unsent -= c.batch[i].size
		if st := c.batch[i].stream; st != nil {
			st.release()
		}
	}
	clear(c.batch)
	c.batch = c.batch[:0]
	if c.measured, c.took = c.measured+size, c.took+took; c.measured >= minBacklog {
		if c.took > slowWrite {
			c.backlog = max(c.backlog/2, minBacklog)
		}
		c.measured, c.took = 0, 0
	}
	if c.unsent == 0 && c.limited {
		c.backlog = min(2*c.backlog, maxBacklog) // the carrier was waiting for us
		c.limited = false
	}
	c.s.pump()
	if c.sent != c.next {
		c.s.wake()
	}
	return nil
}

// close closes pc, after a word to the other side if tell is set, and returns
// when nothing is written any more. The session's mutex must not be held.
func (c *conn) close(tell bool) {
	c.s.mu.Lock()
	peer := c.peer
	c.s.mu.Unlock()
	if tell && peer != nil {
		stop := time.AfterFunc(farewellTime, func() { c.pc.Close() })
		c.pc.WriteTo(farewell, peer)
		stop.Stop()
	}
	c.pc.Close()
	c.writing <- struct{}{}
	<-c.writing
}

// room tells whether SCTP may be given another message.
func (c *conn) room() bool {
	if c.unsent >= c.backlog {
		c.limited = true
		return false
	}
	return c.next-c.una < maxOutstanding
}

// given takes note of a message of size bytes that SCTP is about to be given; st
// is nil for stream 0.
func (c *conn) given(st *stream, size int) {
	if int(c.next-c.una) >= len(c.messages) {
		old := c.messages
		c.messages = make([]message, max(16, 2*len(old)))
		for tsn := c.una; tsn != c.next; tsn++ {
			*c.message(tsn) = old[int(tsn)%len(old)]
		}
	}
	*c.message(c.next) = message{stream: st, size: size}
	if st != nil {
		st.spoken, st.last = true, c.next
	}
	c.next++
	c.unsent += size
}

// acknowledged takes note that everything below una has arrived.
func (c *conn) acknowledged(una uint32) {
	for ; c.una != una; c.una++ {
		c.message(c.una).stream = nil
	}
	if c.una == c.next {
		c.forget()
	}
}

// forget gives back the memory of what is outstanding.
func (c *conn) forget() {
	c.messages = nil
}

func (c *conn) message(tsn uint32) *message { return &c.messages[int(tsn)%len(c.messages)] }

// hasTaken tells whether the carrier has taken the message.
func (c *conn) hasTaken(tsn uint32) bool { return int32(tsn-c.taken) < 0 }

func (c *conn) addrs() (local, remote net.Addr) {
	local = c.pc.LocalAddr()
	if c.peer == nil {
		return local, local
	}
	return local, c.peer
}

// Close implements net.Conn. The mutex is not needed.
func (c *conn) Close() error { return c.pc.Close() }

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.pc.LocalAddr() }

// RemoteAddr implements net.Conn. The association does not ask.
func (c *conn) RemoteAddr() net.Addr { return c.pc.LocalAddr() }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error { return c.pc.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error { return c.pc.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.pc.SetWriteDeadline(t) }

// silence is the library's log. What matters comes back as an error; the rest
// would go to standard error, with bytes that the other side has chosen.
type silence struct{}

func (silence) NewLogger(string) logging.LeveledLogger { return silence{} }

func (silence) Trace(string)          {}
func (silence) Tracef(string, ...any) {}
func (silence) Debug(string)          {}
func (silence) Debugf(string, ...any) {}
func (silence) Info(string)           {}
func (silence) Infof(string, ...any)  {}
func (silence) Warn(string)           {}
func (silence) Warnf(string, ...any)  {}
func (silence) Error(string)          {}
func (silence) Errorf(string, ...any) {}
