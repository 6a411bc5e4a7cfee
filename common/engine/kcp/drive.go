package kcp

import (
	"fmt"
	"math"
	"sync"
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

	// probeInterval is the time between two flushes while only KCP's question can
	// be sent whether the other side's window has opened, for which it waits as
	// long at least (IKCP_PROBE_INIT).
	probeInterval = kcp.IKCP_PROBE_INIT * time.Millisecond

	// maxAcks is how many acknowledgements may wait for the carrier until the
	// Conn reads no more (0.8 MB). Who never takes them is not listened to, and the
	// carrier below stops it.
	//
	// Two honest sides cannot wait for each other so. One has at most Window
	// segments on their way of which it has heard nothing, and each is
	// acknowledged once for each time that it comes. So one of the two owes twice
	// as many only if the other has repeated a whole window of them, blindly,
	// timeoutBurst in a time-out. That one does so only while its own carrier
	// takes all that it says: it owes nothing then, and reads. What the first one
	// owes is therefore taken as soon as its carrier moves.
	maxAcks = 2 * Window

	// lingerTime is how long a finished session still answers: a time-out of the
	// other side, twice. lingerLimit is how long it waits in silence for the
	// last acknowledgement; on a carrier that knows when the other side is gone
	// the end comes from there.
	lingerTime  = 2 * minTimeout
	lingerLimit = 5 * time.Minute
)

// farewell is the datagram that ends a session.
var farewell = []byte{0}

// A driver moves datagrams between KCP and the carrier, and keeps the time. One
// goroutine reads, and while something is due another one writes. It knows of the
// Conn above it that it has something to send (staged, push), takes note of marks
// that come (arrived), may wait for room, is still (isStill), and will end (over).
type driver struct {
	conn  *Conn // never changes, like what follows
	pc    engine.Carrier
	done  chan struct{} // closed when the session has ended
	group sync.WaitGroup

	mu  sync.Mutex // guards what follows, and all of the Conn that says so
	err error      // why the session has ended; nil: it has not
	block
	packed  packed
	backlog backlog
	credit  credit
	taken   sync.Cond // the carrier has taken acknowledgements

	owed     int       // acknowledgements that KCP has not put out
	ackSince time.Time // when the first of those came that the carrier has not taken
	tell     bool      // KCP has a window to tell
	lastRun  time.Time // of flush
	heard    time.Time // of the last datagram
	runs     bool      // there is a goroutine that writes
	sleepTo  time.Time // if not: when the timer starts one; zero: never
	timer    *time.Timer
}

// init readies d to carry c's stream over pc. Its two goroutines are yet to be
// started.
func (d *driver) init(c *Conn, pc engine.Carrier) {
	d.conn, d.pc = c, pc
	d.done = make(chan struct{})
	d.taken.L = &d.mu
	d.backlog.limit = minBacklog
	d.heard = time.Now()
	d.runs = true
	d.timer = time.AfterFunc(math.MaxInt64, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.wake()
	})
	d.block = block{output: d.output, flight: flight{newest: clock(), wnd: Window, burst: firstBurst}}
	d.control()
	d.count()
}

// readDatagrams is the goroutine that receives. It ends when pc fails or is
// closed.
func (d *driver) readDatagrams() {
	defer d.pc.Close() // a WriteTo may be blocked
	for {
		d.pc.WaitRead() // without a buffer
		p := datagrams.Get().(*datagram)
		n, _, err := d.pc.ReadFrom(p.data[:engine.MaxDatagram])
		more := d.receive(p.data[:max(n, 0)], err)
		datagrams.Put(p)
		if !more {
			return
		}
	}
}

// receive handles what ReadFrom has returned and tells whether to go on, when
// that is allowed.
func (d *driver) receive(p []byte, err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.err == engine.ErrClosed:
		// The writer says farewell and closes pc, which ends the reader.
		return err == nil
	case d.err != nil:
		return false
	case err != nil:
		d.fail(fmt.Errorf("carrier: %w", err))
	case len(p) == len(farewell) && p[0] == farewell[0]:
		d.fail(errPeerClosed)
	default:
		d.input(p)
		d.count()
	}
	for d.packed.acks > maxAcks && d.err == nil {
		d.taken.Wait()
	}
	return d.err == nil || d.err == engine.ErrClosed
}

// input handles one datagram. What follows needs the mutex held.
func (d *driver) input(p []byte) {
	sum, ok := scan(p, d.flight.una, d.flight.next)
	if !ok {
		return
	}
	d.heard = time.Now()
	d.control()
	if d.flight.acknowledged(sum, d.heard) {
		d.conn.push() // KCP flushes when its window moves
	}
	if sum.data && d.owed+d.packed.acks == 0 {
		d.ackSince = d.heard
	}
	for rest := p; sum.data && len(rest) > 0; {
		var s segment
		if s, rest, _ = cut(rest); s.cmd == kcp.IKCP_CMD_PUSH && d.came.push(s.sn) {
			d.owed++ // output forgets it when KCP has put it out
		}
	}
	d.tell = d.tell || sum.asked
	if sum.acks {
		p = append(p, d.flight.patience()...)
	}
	d.inform(p)
	if sum.data {
		d.conn.arrived(sum.marks)
	}
	d.poke()
}

// take takes a message from KCP into p, which is large enough.
func (d *driver) take(p []byte) {
	d.kcp.Recv(p)
	if d.came.read() {
		d.tell = true
		d.poke()
	}
	d.extend()
}

// output receives what KCP wants to send, whole segments at a time.
func (d *driver) output(buf []byte, size int) {
	translate(buf[:size], d.sentBefore, d.cameBefore)
	for p := buf[:size]; len(p) > 0; {
		s, rest, _ := cut(p)
		if s.cmd == kcp.IKCP_CMD_ACK {
			d.owed = 0
		}
		if s.cmd != kcp.IKCP_CMD_PUSH || d.flight.goes(s) {
			d.limit(p)
			d.packed.add(p[:len(p)-len(rest)], s.cmd == kcp.IKCP_CMD_ACK)
		}
		p = rest
	}
}

// drive is the goroutine that writes. It ends when nothing is due, and with the
// session.
func (d *driver) drive() {
	var p *datagram
	var took time.Duration
	for {
		var ended bool
		if p, ended = d.step(p, took); ended {
			break
		}
		if p == nil {
			return
		}
		start := time.Now()
		if _, err := d.pc.WriteTo(p.data[:p.n], d.pc.RemoteAddr()); err != nil {
			d.conn.Fail(fmt.Errorf("carrier: %w", err))
		}
		took = time.Since(start)
	}
	if d.err == engine.ErrClosed { // it does not change any more
		d.pc.WriteTo(farewell, d.pc.RemoteAddr())
	}
	d.pc.Close() // ends the reader
}

// step takes note that p was written, which took so long, does what is due, and
// returns what to write next. If that is nil the goroutine ends: it is not needed
// for now, or, if ended is true, the session has ended.
func (d *driver) step(p *datagram, took time.Duration) (next *datagram, ended bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p != nil {
		d.backlog.left(p.n, took, time.Now())
		d.packed.written(p)
		if d.packed.acks <= maxAcks {
			d.taken.Broadcast()
		}
	}
	defer d.count()
	for d.err == nil {
		d.offer()
		if d.packed.urgent {
			return d.packed.next(), false
		}
		now := time.Now()
		at, ok := d.due()
		if !ok || at.After(now) {
			d.runs, d.sleepTo = false, at
			if ok {
				d.timer.Reset(at.Sub(now))
			}
			return nil, false
		}
		if d.conn.over() && !d.lingerEnd().After(now) {
			d.finish(engine.ErrClosed)
			break
		}
		if d.isStill() && !d.restAt().After(now) {
			d.rest()
			continue
		}
		d.flush(now)
	}
	d.timer.Stop()
	return nil, true
}

// flush lets KCP send what it may.
func (d *driver) flush(now time.Time) {
	d.backlog.grow(now)
	d.conn.push()
	d.tell = false
	d.flight.allow(d.control(), now)
	flush(d.kcp, kcp.IKCP_FLUSH_FULL)
	d.lastRun = now
	d.packed.urgent = len(d.packed.list) > 0
}

// due returns the time at which something is to be done next, false for never.
func (d *driver) due() (at time.Time, ok bool) {
	want := func(t time.Time) {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	f := &d.flight
	if d.owed+d.packed.acks > 0 {
		want(d.ackSince.Add(ackDelay))
	}
	if d.tell {
		want(time.Time{}) // now
	}
	if d.conn.staged() || d.given != f.next {
		switch {
		case f.next-f.una < min(Window, f.wnd):
			want(time.Time{})
		case f.wnd == 0:
			want(d.lastRun.Add(probeInterval))
		}
	}
	if f.una != f.next {
		want(f.repairAt())
	}
	if gate := d.lastRun.Add(time.Duration(f.next-f.una) * flushPause); ok && at.Before(gate) {
		at = gate
	}
	if d.conn.over() {
		want(d.lingerEnd())
	}
	if d.isStill() {
		want(d.restAt())
	}
	return at, ok
}

// lingerEnd is when a session that is over ends if nothing comes before.
func (d *driver) lingerEnd() time.Time {
	if d.conn.staged() || d.given != d.flight.una || d.owed > 0 || d.packed.bytes > 0 {
		return d.heard.Add(lingerLimit)
	}
	return d.heard.Add(lingerTime)
}

// poke has a goroutine write if there is something to do before it would wake up
// by itself.
func (d *driver) poke() {
	if d.runs {
		return
	}
	if at, ok := d.due(); d.packed.urgent || ok && (d.sleepTo.IsZero() || at.Before(d.sleepTo)) {
		d.wake()
	}
}

// wake starts the goroutine that writes if there is none.
func (d *driver) wake() {
	if !d.runs {
		d.runs = true
		d.group.Go(d.drive)
	}
}

// waiting is how many bytes KCP has not sent for the first time, at most.
func (d *driver) waiting() int { return int(d.given-d.flight.next) * SegmentSize }

// refuses tells whether as much waits as may. Who is refused hears of it when
// half of that has gone.
func (d *driver) refuses() bool {
	b := &d.backlog
	b.waits = d.waiting()+d.packed.bytes >= b.limit
	b.limited = b.limited || b.waits
	return b.waits
}

// offer tells who was refused that there is room.
func (d *driver) offer() {
	if b := &d.backlog; b.waits && d.waiting()+d.packed.bytes <= b.limit/2 {
		b.waits = false
		half.Signal(d.conn.writable)
	}
}

// fail ends the session because of err and returns what its stream says of that.
func (d *driver) fail(err error) error {
	d.finish(fmt.Errorf("%w: %w", engine.ErrReset, err))
	return d.err
}

// finish ends the session; only the first reason counts. What has arrived can
// still be read unless this side has closed the session.
func (d *driver) finish(err error) {
	if d.err == nil {
		d.err = err
		close(d.done)
		d.taken.Broadcast()
		d.wake()
	}
	d.conn.ended()
}
