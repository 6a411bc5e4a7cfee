package kcp

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

const (
	// flushPause is the least time between two flushes for each segment in
	// flight. A flush looks at all of them, which takes some ten nanoseconds
	// each, so that flushing takes a tenth of a core at most. With little in
	// flight a flush follows a write at once. An upload with 100 ms and 100 Mbit/s
	// uses 0.94 of the path so, and 0.90 without.
	flushPause = 100 * time.Nanosecond

	// ackDelay is how long acknowledgements wait for data that goes the same
	// way. KCP puts one out for each 62 segments (an MTU of acknowledgements),
	// which would be a request for each 90 KB of a download: those wait as well.
	ackDelay = 25 * time.Millisecond

	// maxAcks is how many acknowledgements may wait for the carrier until nothing is
	// listened to (0.8 MB): what comes is lost, as if the carrier had lost it. Of an
	// honest side's, two windows wait at most: one that has come, and one that was
	// repeated.
	maxAcks = 2 * Window

	never = time.Duration(math.MaxInt64 / 2)
)

// farewell is the datagram that ends a session.
var farewell = []byte{0}

// readDatagrams is the goroutine that receives. It ends when pc fails or is
// closed.
func (c *Conn) readDatagrams() {
	defer c.pc.Close() // a WriteTo may be blocked
	for more := true; more; {
		c.pc.WaitRead() // without a buffer
		p := datagrams.Get().(*datagram)
		n, _, err := c.pc.ReadFrom(p.data[:engine.MaxDatagram])
		more = c.receive(p.data[:n], err)
		datagrams.Put(p)
	}
}

// receive handles what ReadFrom has returned and tells whether to go on.
func (c *Conn) receive(p []byte, err error) bool {
	c.mu.Lock()
	defer c.unlock()
	switch {
	case c.Err() == engine.ErrClosed:
		return err == nil // the writer says farewell and closes pc
	case c.Err() != nil:
	case err != nil:
		c.fail(fmt.Errorf("carrier: %w", err))
	case len(p) == len(farewell) && p[0] == farewell[0]:
		c.fail(errPeerClosed)
	case c.packed.acks <= maxAcks:
		c.input(p)
	}
	return c.Err() == nil
}

// What follows needs the mutex held.

// input handles one datagram.
func (c *Conn) input(p []byte) {
	sum, ok := c.scan(p)
	if !ok {
		return
	}
	now := time.Now()
	c.flight.acknowledged(sum, now)
	if sum.asks && c.owes.IsZero() {
		c.owes = now
	}
	c.came.add(sum)
	if sum.ack != nil {
		// Once more, as if it were of long ago: KCP times the last one. It also believes
		// the last segment's window, as acknowledged does: if they believed different
		// ones, drive would flush for ever what KCP does not send.
		p = append(p, sum.ack...)
		again := segment(p[len(p)-headerSize:])
		again.add(tsAt, math.MaxUint32-longRTT+1)
		binary.LittleEndian.PutUint16(again[wndAt:], sum.wnd)
	}
	c.control().Input(p, kcp.IKCP_PACKET_REGULAR, false)
	if sum.asks {
		c.arrived(sum.marks)
	}
}

// take takes a message from KCP into p, which is large enough.
func (c *Conn) take(p []byte) {
	full := c.came.held() >= c.window
	c.kcp.Recv(p)
	c.came.take()
	if full && c.owes.IsZero() {
		c.owes = time.Now() // KCP says that its window has opened
	}
	if c.window < Window && int(c.came.read-c.grown) >= min(updateEvery, c.window/2) {
		c.promise(growPart)
	}
}

// output receives what KCP wants to send, whole segments at a time.
func (c *Conn) output(buf []byte, size int) {
	for p := buf[:size]; len(p) > 0; {
		var s segment
		s, p = cut(p)
		s.shift(c.sentBefore, c.cameBefore)
		if s[cmdAt] != kcp.IKCP_CMD_PUSH || c.flight.goes(s.at(snAt)) {
			c.packed.add(s)
		}
	}
}

// drive is the goroutine that writes. It ends when nothing is due, and with the
// session.
func (c *Conn) drive() {
	c.mu.Lock()
	for c.Err() == nil {
		if c.packed.urgent {
			c.write()
			continue
		}
		now := time.Now()
		wait := c.wait(now)
		switch {
		case wait > 0:
			c.runs, c.sleepTo = false, now.Add(wait)
			c.timer.Reset(wait)
			c.count()
			c.mu.Unlock()
			return
		case !c.isStill():
			c.flush(now)
		case c.over():
			c.finish(engine.ErrClosed)
		default:
			c.rest()
		}
	}
	c.timer.Stop()
	c.count()
	c.mu.Unlock()
	if c.Err() == engine.ErrClosed {
		c.pc.WriteTo(farewell, c.pc.RemoteAddr())
	}
	c.pc.Close() // ends the reader
}

// write has the carrier take the first datagram that waits, and releases the mutex
// until it has.
func (c *Conn) write() {
	o := &c.packed
	d := o.list[0]
	o.list[0], o.list = nil, o.list[1:]
	o.acks -= d.acks
	o.urgent = len(o.list) > 0
	c.count()
	c.mu.Unlock()
	_, err := c.pc.WriteTo(d.data[:d.n], c.pc.RemoteAddr())
	c.mu.Lock()
	if err != nil {
		c.fail(fmt.Errorf("carrier: %w", err))
	}
	o.bytes -= d.n
	c.backlog.left(d.n, time.Now())
	datagrams.Put(d)
	if c.waiting()+o.bytes <= c.backlog.most(&c.flight)/2 {
		half.Signal(c.Writes.Changed)
	}
}

// flush lets KCP send what it may.
func (c *Conn) flush(now time.Time) {
	c.push()
	f := &c.flight
	if f.late = f.size() > 0 && now.Sub(f.tried) >= f.patience; f.late {
		f.tried, f.patience = now, min(2*f.patience, maxTimeout)
		c.kcp.ResetRTO()
	}
	flush(c.control(), kcp.IKCP_FLUSH_FULL)
	f.hole, f.late = false, false
	c.flushed, c.owes = now, time.Time{}
	c.packed.urgent = len(c.packed.list) > 0
}

// wait is how long nothing is due.
func (c *Conn) wait(now time.Time) time.Duration {
	f := &c.flight
	if c.isStill() {
		return c.flushed.Add(restAfter).Sub(now)
	}
	wait := never
	if !c.owes.IsZero() {
		wait = c.owes.Add(ackDelay).Sub(now)
	}
	if c.out.staged() || c.waiting() > 0 {
		switch {
		case f.size() < min(Window, f.wnd):
			wait = 0
		case f.wnd == 0: // KCP asks now and then whether it has opened
			wait = min(wait, c.flushed.Add(minTimeout).Sub(now))
		}
	}
	switch {
	case f.hole:
		wait = 0
	case f.size() > 0:
		wait = min(wait, f.tried.Add(f.patience).Sub(now))
	}
	return max(wait, c.flushed.Add(time.Duration(f.size())*flushPause).Sub(now))
}

// poke has a goroutine write if there is something to do before it would wake up
// by itself.
func (c *Conn) poke() {
	if c.runs {
		return
	}
	now := time.Now()
	if c.packed.urgent || now.Add(c.wait(now)).Before(c.sleepTo) {
		c.wake()
	}
}

// wake starts the goroutine that writes if there is none.
func (c *Conn) wake() {
	if !c.runs {
		c.runs = true
		c.group.Go(c.drive)
	}
}
