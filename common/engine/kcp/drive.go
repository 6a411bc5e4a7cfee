package kcp

import (
	"fmt"
	"math"
	"time"

	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

const (
	// flushPause is the least time between two flushes for each segment in flight. A
	// flush looks at all of them, some ten nanoseconds each, and so takes a tenth of a
	// core at most. An upload with 100 ms and 100 Mbit/s uses 0.94 of the path so, and
	// 0.90 without.
	flushPause = 100 * time.Nanosecond

	// ackDelay is how long acknowledgements wait for data that goes the same
	// way. KCP puts one out for each 62 segments (an MTU of acknowledgements),
	// which would be a request for each 90 KB of a download: those wait as well.
	ackDelay = 25 * time.Millisecond

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
		n, _, err := c.pc.ReadFrom(p[:])
		more = c.receive(p[:n], err)
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
	case c.packed.bytes <= maxPacked: // else it is lost, as if on the way
		c.input(p)
	}
	return c.Err() == nil
}

// What follows needs the mutex held, but for drive.

// input handles one datagram. It takes note of the marks of its messages without
// waiting for Read, which may be long in coming.
func (c *Conn) input(p []byte) {
	sum, ok := c.scan(p)
	if !ok {
		return
	}
	now := time.Now()
	c.flight.acknowledged(sum, now)
	c.came, c.fresh = sum.came, c.fresh+sum.fresh
	c.control().Input(p, kcp.IKCP_PACKET_REGULAR, false)
	if !sum.asks {
		return
	}
	if c.owes.IsZero() {
		c.owes = now
	}
	if sum.marks&markOpen != 0 && !c.client && !half.IsClosed(c.opened) {
		close(c.opened)
	}
	if sum.marks&(markStop|markReset) != 0 && !c.out.stopped {
		c.out.stopped = true
		half.Signal(c.Writes.Changed)
	}
	if c.in.closed || c.in.ate {
		c.discard()
	}
	half.Signal(c.Reads.Changed)
}

// output receives what KCP wants to send, whole segments at a time.
func (c *Conn) output(buf []byte, size int) {
	for p := buf[:size]; len(p) > 0; {
		var s segment
		s, p = cut(p)
		s.shift(c.sentBefore, c.takenBefore)
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
		now := time.Now()
		switch {
		case c.wait(now) > 0:
			c.runs = false
			c.unlock()
			return
		case c.packed.urgent:
			c.write()
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
	o.urgent = len(o.list) > 0
	c.count()
	c.mu.Unlock()
	_, err := c.pc.WriteTo(d, c.pc.RemoteAddr())
	c.mu.Lock()
	if err != nil {
		c.fail(fmt.Errorf("carrier: %w", err))
	}
	o.bytes -= len(d)
	datagrams.Put((*datagram)(d[:engine.MaxDatagram]))
	if c.waiting()+o.bytes <= c.flight.backlog()/2 {
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
	switch {
	case c.packed.urgent:
		return 0
	case c.isStill() && c.over() && !c.client:
		return c.flushed.Add(2 * restAfter).Sub(now) // a client that hears of the end takes it for a loss
	case c.isStill():
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

// over tells whether neither side reads any more.
func (c *Conn) over() bool { return c.out.stopped && (c.in.ate || c.in.closed) }

// poke has a goroutine write, now or when something is due.
func (c *Conn) poke() {
	if c.runs {
		return
	}
	now := time.Now()
	wait := c.wait(now)
	switch due := now.Add(wait); {
	case wait <= 0:
		c.runs = true
		c.group.Go(c.drive)
	case due.Before(c.alarm): // to move the timer each time costs 6 % where writes are small
		c.alarm = due
		c.timer.Reset(wait)
	}
}
