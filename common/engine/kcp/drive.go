package kcp

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
)

const (
	// flushPause is the least time between two flushes for each segment in
	// flight. A flush looks at all of them, which takes some ten nanoseconds
	// each, so that flushing takes a tenth of a core at most. With little in
	// flight a flush follows a write at once.
	flushPause = 100 * time.Nanosecond

	// ackDelay is how long acknowledgements wait for data that goes the same
	// way. KCP puts one out for each 62 segments (an MTU of acknowledgements),
	// which would be a request for each 90 KB of a download: those wait as well.
	ackDelay = 25 * time.Millisecond

	// repairInterval is the time between two flushes while only a repair, which
	// KCP times itself, can be sent; probeInterval while only its question can
	// be sent whether the other side's window has opened, for which it waits as
	// long at least (IKCP_PROBE_INIT).
	repairInterval = 50 * time.Millisecond
	probeInterval  = kcp.IKCP_PROBE_INIT * time.Millisecond

	// minBacklog and maxBacklog bound the bytes taken from the stream that the
	// carrier has not taken yet. The maximum is ten times the 90 KB after which
	// KCP acknowledges. That it follows the carrier pays: with 256 KB all the time
	// a transfer without delay takes two and a half times as long.
	minBacklog = 32 << 10
	maxBacklog = 1 << 20

	// backlogTime is how long the backlog may take to leave where the carrier
	// is the limit. It delays what is said next.
	backlogTime = 5 * time.Millisecond

	// slowWrite is how long a batch takes that had to wait for the carrier;
	// batchSize is the size of a batch in bytes.
	slowWrite = time.Millisecond
	batchSize = 64 << 10

	// rateSpan is the time over which the carrier's rate is measured.
	rateSpan = 50 * time.Millisecond
)

// outgoing is what waits in the direction away from this side. The Conn's mutex
// guards it.
type outgoing struct {
	stage []byte // the message being filled, from the pool; nil: empty
	marks byte   // that go with the next message
	began bool   // the first message was staged
	ended bool   // nothing more will be written
	inKCP int    // bytes given to KCP that it has not put out yet

	list     []*datagram
	bytes    int       // in list and in the batch being written
	acksFrom time.Time // since when list holds acknowledgements and nothing else; zero: it does not

	limit     int     // of unsent and bytes together
	limited   bool    // it has kept bytes back since the last flush
	waits     bool    // somebody was refused and has not been told of room
	rate      float64 // bytes per second that the carrier takes
	taken     int     // bytes that it has taken since takenFrom
	takenFrom time.Time
}

// clock says when the driver has something to do. The Conn's mutex guards it.
type clock struct {
	sleeps   bool // there is no driver, until sleepTo if that is not zero
	sleepTo  time.Time
	timer    *time.Timer // starts the driver at sleepTo; nil before the first one
	lastRun  time.Time   // of KCP's flush
	hold     time.Time   // what is written may wait until then for more
	ackSince time.Time   // when the oldest unacknowledged data came; zero: none
	tell     bool        // KCP has a window message to send
	lingers  bool        // the stream is over
	heard    time.Time   // of the last datagram while it lingers
}

// datagram is one packet to be written.
type datagram struct {
	n    int
	data [engine.MaxDatagram]byte
}

var (
	datagrams = sync.Pool{New: func() any { return new(datagram) }}
	segments  = sync.Pool{New: func() any { return new([SegmentSize]byte) }}
)

// pending tells whether something waits to be given to KCP.
func (o *outgoing) pending() bool { return len(o.stage) > 0 || o.marks != 0 }

// clear throws away what has not left, at the end of the session.
func (o *outgoing) clear() {
	for _, d := range o.list {
		datagrams.Put(d)
	}
	o.list = nil
}

// readDatagrams is the goroutine that receives. It ends when pc fails or is
// closed.
func (c *Conn) readDatagrams() {
	defer c.pc.Close() // a WriteTo may be blocked
	for {
		c.pc.WaitRead() // without a buffer
		d := datagrams.Get().(*datagram)
		n, addr, err := c.pc.ReadFrom(d.data[:])
		more := c.receive(d.data[:max(n, 0)], addr, err)
		datagrams.Put(d)
		if !more {
			return
		}
	}
}

// receive handles what ReadFrom has returned and tells whether to go on.
func (c *Conn) receive(p []byte, addr net.Addr, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err == engine.ErrClosed:
		// The driver says farewell and closes pc, which ends the reader.
		return err == nil
	case c.err != nil:
		return false
	case err != nil:
		c.fail(fmt.Errorf("carrier: %w", err))
		return false
	case len(p) == len(farewell) && p[0] == farewell[0]:
		c.fail(errPeerClosed)
		return false
	}
	if c.peer == nil {
		c.peer = addr
	}
	c.input(p)
	return c.err == nil || c.err == engine.ErrClosed
}

// drive is the goroutine that writes and keeps the time. It ends when nothing
// is due, and with the session.
func (c *Conn) drive() {
	var batch []*datagram
	var took time.Duration
	for {
		var ended bool
		if batch, ended = c.step(batch, took); ended {
			break
		}
		if len(batch) == 0 {
			return
		}
		start := time.Now()
		for _, d := range batch {
			if _, err := c.pc.WriteTo(d.data[:d.n], c.peer); err != nil {
				c.Fail(fmt.Errorf("carrier: %w", err))
				break
			}
		}
		took = time.Since(start)
	}
	if c.err == engine.ErrClosed && c.peer != nil { // neither changes any more
		stop := time.AfterFunc(farewellTime, func() { c.pc.Close() })
		c.pc.WriteTo(farewell, c.peer)
		stop.Stop()
	}
	c.pc.Close() // ends the reader
}

// step does what is due, gives back the batch that was written in took, and
// returns the next one. An empty one ends the driver, which is needed no more
// for now, or, if ended is true, because the session has ended.
func (c *Conn) step(batch []*datagram, took time.Duration) (next []*datagram, ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written(batch, took)
	batch = batch[:0]
	for c.err == nil {
		now := time.Now()
		if at, ok := c.due(); ok && !at.After(now) {
			c.flush(now)
		}
		if c.leaves(now) {
			n, bytes := 0, 0
			for n < len(c.out.list) && bytes < batchSize {
				bytes += c.out.list[n].n
				n++
			}
			batch = append(batch, c.out.list[:n]...)
			c.out.list = slices.Delete(c.out.list, 0, n)
			c.out.acksFrom = time.Time{}
			return batch, false
		}
		end, lingers := c.lingerEnd()
		if lingers && !end.After(now) {
			c.finish(engine.ErrClosed)
			break
		}
		at, ok := c.due()
		if lingers && (!ok || end.Before(at)) {
			at, ok = end, true
		}
		switch {
		case !ok:
			if c.flight.una == c.flight.next {
				c.flight.sent, c.out.list = nil, nil
			}
			c.sleep(time.Time{})
		case at.After(now):
			c.sleep(at)
		default:
			continue
		}
		return nil, false
	}
	if c.clock.timer != nil {
		c.clock.timer.Stop()
	}
	return nil, true
}

// What follows needs the mutex held.

// written takes note of a batch that the carrier has taken.
func (c *Conn) written(batch []*datagram, took time.Duration) {
	o := &c.out
	for _, d := range batch {
		o.bytes -= d.n
		o.taken += d.n
		c.stats.Datagrams++
		datagrams.Put(d)
	}
	if now := time.Now(); now.Sub(o.takenFrom) >= rateSpan {
		o.rate = float64(o.taken) / now.Sub(o.takenFrom).Seconds()
		o.taken, o.takenFrom = 0, now
	}
	if took > slowWrite {
		o.limit = min(max(int(o.rate*backlogTime.Seconds()), minBacklog), maxBacklog)
	}
	c.offer()
}

// unsent is the number of bytes that have not left KCP.
func (c *Conn) unsent() int { return len(c.out.stage) + c.out.inKCP }

// full tells whether as much waits as may.
func (c *Conn) full() bool { return c.unsent()+c.out.bytes >= c.out.limit }

// refuses is full for one who has more: offer tells it when there is room.
func (c *Conn) refuses() bool {
	full := c.full()
	c.out.waits = full
	c.out.limited = c.out.limited || full
	return full
}

// offer wakes who was refused and would not be now.
func (c *Conn) offer() {
	if c.out.waits && !c.full() {
		c.out.waits = false
		signal(c.writable)
	}
}

// flush lets KCP send what it may.
func (c *Conn) flush(now time.Time) {
	c.beforeFlush()
	c.clock.hold = time.Time{}
	c.clock.tell = false
	granted := 0
	if f := &c.flight; c.out.bytes == 0 && f.una != f.next && now.Sub(f.sentAt(f.una)) >= f.timeout() {
		granted = timeoutBurst
	}
	c.flight.probes = granted
	flush(c.kcp, kcp.IKCP_FLUSH_FULL)
	if c.flight.probes < granted {
		c.flight.backoff++
	}
	c.flight.probes = 0
	c.clock.ackSince = time.Time{}
	c.clock.lastRun = now
	c.offer()
}

// beforeFlush makes ready what the next flush shall send.
func (c *Conn) beforeFlush() {
	if c.out.limited && c.out.bytes == 0 {
		c.out.limit = min(2*c.out.limit, maxBacklog) // the carrier was waiting for us
		c.offer()
	}
	c.out.limited = false
	c.push()
}

// due returns the time at which KCP shall be flushed next, false for never.
func (c *Conn) due() (at time.Time, ok bool) {
	want := func(t time.Time) {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	f := &c.flight
	if !c.clock.ackSince.IsZero() {
		want(c.clock.ackSince.Add(ackDelay))
	}
	if !c.out.acksFrom.IsZero() {
		want(c.out.acksFrom.Add(ackDelay))
	}
	if c.clock.tell {
		want(c.clock.lastRun)
	}
	if c.out.pending() || c.out.inKCP > 0 {
		switch {
		case f.next-f.una < min(Window, f.rmtWnd):
			want(c.clock.hold)
		case f.rmtWnd == 0:
			want(c.clock.lastRun.Add(probeInterval))
		}
	}
	if f.una != f.next && c.out.bytes == 0 {
		last := f.sent[f.una%uint32(len(f.sent))]
		repair := c.clock.lastRun.Add(repairInterval)
		if !f.acked || !later(f.ackTime, f.ackSN, last, f.una) {
			if t := f.sentAt(f.una).Add(f.timeout()); t.After(repair) {
				repair = t
			}
		}
		want(repair)
	}
	if gate := c.clock.lastRun.Add(time.Duration(f.next-f.una) * flushPause); ok && at.Before(gate) {
		at = gate
	}
	return at, ok
}

// leaves tells whether there is something to be written now.
func (c *Conn) leaves(now time.Time) bool {
	return len(c.out.list) > 0 && c.peer != nil && !c.out.acksFrom.After(now.Add(-ackDelay))
}

// lingerEnd is when a lingering session ends if nothing happens before; false
// if it does not linger.
func (c *Conn) lingerEnd() (time.Time, bool) {
	if !c.clock.lingers {
		return time.Time{}, false
	}
	quiet := !c.out.pending() && c.out.inKCP == 0 && c.out.bytes == 0
	if quiet && c.flight.una == c.flight.next && c.clock.ackSince.IsZero() {
		return c.clock.heard.Add(lingerTime), true
	}
	return c.clock.heard.Add(lingerLimit), true
}

// poke wakes the driver if there is something to do before it would wake up
// by itself.
func (c *Conn) poke() {
	if !c.clock.sleeps {
		return
	}
	if c.leaves(time.Now()) {
		c.wake()
		return
	}
	if at, ok := c.due(); ok && (c.clock.sleepTo.IsZero() || at.Before(c.clock.sleepTo)) {
		c.wake()
	}
}

// wake starts the driver if there is none.
func (c *Conn) wake() {
	if c.clock.sleeps {
		c.clock.sleeps = false
		c.group.Go(c.drive)
	}
}

// sleep notes that the driver ends, and that another one shall be started at
// the time at, or when something happens if that is zero.
func (c *Conn) sleep(at time.Time) {
	c.clock.sleeps, c.clock.sleepTo = true, at
	switch {
	case at.IsZero():
		if c.clock.timer != nil {
			c.clock.timer.Stop()
		}
	case c.clock.timer == nil:
		c.clock.timer = time.AfterFunc(time.Until(at), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.wake()
		})
	default:
		c.clock.timer.Reset(time.Until(at))
	}
}
