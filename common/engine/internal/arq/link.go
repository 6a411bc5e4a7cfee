// Package arq drives one KCP control block (github.com/xtaci/kcp-go) over a
// net.PacketConn, as the reliable channel below the streams of an engine.
//
// # Why not the library's own session
//
// kcp.UDPSession drops datagrams silently when its output queue is full, is
// scheduled by process-wide goroutines, wakes up on every interval even when
// nothing happens, and holds its lock while it writes. A Link has one goroutine
// that reads datagrams into KCP, and while something is due another one, the
// driver, that writes. Its lock is never held while a WriteTo blocks, so a
// carrier without room stops the writers and nothing else. It takes bytes from
// the streams only as fast as the carrier takes them, so that what a new stream
// says never waits behind megabytes of an old one.
//
// # On the wire
//
// A datagram holds whole KCP segments, one after the other, at most
// engine.MaxDatagram bytes. The conversation ID is always 1: each session has
// its own PacketConn, there is nothing to tell apart. Each segment carries at
// most SegmentSize bytes and is one KCP message (frg is 0). There is no forward
// error correction and no encryption. A datagram of the single byte 0 says that
// the sender has ended the session; it is sent once and may be lost.
//
// # Retransmission
//
// KCP's timeout is its smoothed round-trip time plus four deviations, and every
// queue that grows faster than that looks like a loss to it. The carrier below
// repairs losses itself. So a Link looks at every segment that KCP wants to
// send again and lets it pass only if one that was sent after it has been
// acknowledged, or if it has been on its way for at least a second and three
// round trips and the carrier has taken everything it was given.
package arq

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
)

const (
	// SegmentSize is the largest content of a segment in bytes: the size of
	// the buffers in kcp-go's pool (mtuLimit in its sess.go), from which it
	// takes the memory of each segment whatever the MTU is.
	SegmentSize = 1500

	// MinRoom is the least room in bytes that User.Fill is given.
	MinRoom = 32

	// MaxWindow is the largest send and receive window in segments: 24 MB, which
	// covers 500 Mbit/s with a round trip of 200 ms (12.5 MB), a queue and the
	// delay of acknowledgements.
	MaxWindow = 24 << 20 / SegmentSize

	// conversation is KCP's conversation ID, see the package comment.
	conversation = 1

	// flushPause is the least time between two flushes for each segment in
	// flight. A flush looks at all of them, which takes some ten nanoseconds
	// each, so that flushing takes a tenth of a core at most. With little in
	// flight a flush follows a write at once.
	flushPause = 100 * time.Nanosecond

	// ackDelay is how long acknowledgements wait for data that goes the same
	// way. KCP puts one out for each 63 segments (an MTU of acknowledgements),
	// which would be a request for each 94 KB of a download: those wait as well.
	ackDelay = 25 * time.Millisecond

	// repairInterval is the time between two flushes while only a repair, which
	// KCP times itself, can be sent; probeInterval while only its question can
	// be sent whether the other side's window has opened, for which it waits as
	// long at least (IKCP_PROBE_INIT).
	repairInterval = 50 * time.Millisecond
	probeInterval  = kcp.IKCP_PROBE_INIT * time.Millisecond

	// minTimeout and maxTimeout bound the time after which a segment is sent
	// again without evidence of its loss. A repair in the carrier takes a round
	// trip or two, which a second covers on nearly every path. The maximum is
	// how late the end of an outage may be noticed.
	minTimeout = time.Second
	maxTimeout = 10 * time.Second

	// timeoutBurst is the number of segments sent again when the timeout has
	// passed: enough to learn from their acknowledgements what else is lost.
	timeoutBurst = 32

	// defaultRTT in place of a round-trip time that has not been measured yet.
	defaultRTT = 200 * time.Millisecond

	// minBacklog and maxBacklog bound the bytes taken from the streams that the
	// carrier has not taken yet. The maximum is ten times the 94 KB after which
	// KCP acknowledges.
	minBacklog = 32 << 10
	maxBacklog = 1 << 20

	// backlogTime is how long the backlog may take to leave where the carrier
	// is the limit. It delays what a new stream says.
	backlogTime = 5 * time.Millisecond

	// slowWrite is how long a batch takes that had to wait for the carrier;
	// batchSize is the size of a batch in bytes.
	slowWrite = time.Millisecond
	batchSize = 64 << 10

	// rateSpan is the time over which the carrier's rate is measured.
	rateSpan = 50 * time.Millisecond

	// farewellTime is how long Close waits for a blocked carrier before it
	// gives up telling the other side.
	farewellTime = 100 * time.Millisecond

	// lingerTime is how long a finished session still answers: a timeout of the
	// other side, twice. lingerLimit is how long it waits in silence for the
	// last acknowledgement; on a carrier that knows when the other side is gone
	// the end comes from there.
	lingerTime  = 2 * minTimeout
	lingerLimit = 5 * time.Minute

	// trimAfter is the number of bytes after which a session that has become
	// quiet gives back what it has needed for them.
	trimAfter = 256 << 10

	headerSize = kcp.IKCP_OVERHEAD
)

// farewell is the datagram that ends a session.
var farewell = []byte{0}

// ErrPeerClosed is the reason of a session that the other side has ended.
var ErrPeerClosed = errors.New("the other side has ended the session")

// A User is what a Link carries bytes for. Its methods are called with the
// Link's mutex held.
type User interface {
	// Fill writes what is to be sent next into p, which has room for at least
	// MinRoom bytes, and returns its length; 0 if there is nothing to send.
	// What it writes stays together in one segment.
	Fill(p []byte) int

	// Arrived says that Link.Recv may have something to return.
	Arrived()

	// Ended is called once, when the session has ended; err is what its
	// streams return from now on.
	Ended(err error)
}

// Stats are counts since the start of a session.
type Stats struct {
	Datagrams     int // written
	Segments      int // with data, sent for the first time
	Retransmitted int // segments sent again
	Withheld      int // segments that KCP wanted to send again for no good reason
}

// A Link is one session of KCP. The methods that say so need Mu held; the
// others take it and are safe for concurrent use.
type Link struct {
	Mu sync.Mutex // guards everything below, the KCP control block included

	pc   net.PacketConn
	peer net.Addr // where to write to; nil until it is known
	user User
	kcp  *kcp.KCP
	lent *[]byte // kcp's memory for what a flush puts out; lend says when it has some

	err     error // why the session has ended; nil: it has not
	done    chan struct{}
	sleeps  bool // there is no driver, until sleepTo if that is not zero
	sleepTo time.Time
	timer   *time.Timer    // starts the driver at sleepTo; nil before the first one
	group   sync.WaitGroup // reader and driver

	// Sending.
	stage    []byte    // the segment being filled, from segments; nil: empty
	ready    bool      // Fill may have something
	hold     time.Time // what is ready may wait until then for more
	inKCP    int       // bytes given to KCP that it has not put out yet
	out      []*datagram
	outBytes int       // in out and in the batch being written
	acksFrom time.Time // since when out holds acknowledgements and nothing else; zero: it does not
	backlog  int       // limit for inKCP+outBytes

	rate      float64 // bytes per second that the carrier takes
	taken     int     // bytes that it has taken since takenFrom
	takenFrom time.Time
	limited   bool // the limit has kept bytes back since the last flush
	lastRun   time.Time

	// What KCP thinks, as far as it can be seen from outside.
	rmtWnd   uint32
	told     uint16   // the window that the other side was told last
	tell     bool     // KCP has a window message to send
	una      uint32   // the oldest sequence number not acknowledged
	next     uint32   // the next one never put out
	sent     []uint32 // time of the last real transmission by sequence number
	clock    time.Time
	clockSet bool // clock is the time when KCP's millisecond count was 0

	// Loss and time.
	acked    bool   // ackTime and ackSN are set:
	ackTime  uint32 // time of transmission and sequence number of the segment
	ackSN    uint32 // that was sent last among those acknowledged
	backoff  uint   // timeouts in a row
	probes   int    // segments that may still be sent again for their age now
	srtt     time.Duration
	ackSince time.Time // when the oldest unacknowledged data came; zero: none

	lingers bool
	heard   time.Time // of the last datagram while it lingers

	moved int // bytes in both directions since the last trim

	stats Stats
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

// New returns a session over pc, which it owns from now on. The receive window
// is window segments at first, the same on both sides. Nothing happens before
// Start.
func New(pc net.PacketConn, user User, window int) *Link {
	l := &Link{
		pc:      pc,
		user:    user,
		done:    make(chan struct{}),
		backlog: minBacklog,
	}
	if c, ok := pc.(interface{ RemoteAddr() net.Addr }); ok {
		l.peer = c.RemoteAddr()
	}
	l.kcp = kcp.NewKCP(conversation, l.output)
	// KCP keeps three times the MTU in memory; output makes whole datagrams.
	l.kcp.SetMtu(headerSize + SegmentSize)
	l.kcp.NoDelay(1, 0, 2, 1)
	l.kcp.WndSize(MaxWindow, window)
	l.kcp.Input(firstWindow(window), kcp.IKCP_PACKET_REGULAR, false)
	l.rmtWnd = uint32(window)
	trim(l.kcp)
	l.lent = flushMemory(l.kcp)
	*l.lent = nil
	return l
}

// Start starts the goroutines of the session.
func (l *Link) Start() {
	l.group.Go(l.read)
	l.group.Go(l.drive)
}

// Done is closed when the session has ended.
func (l *Link) Done() <-chan struct{} { return l.done }

// Err is nil while the session lives, then engine.ErrClosed if this side has
// ended it, else an error that matches engine.ErrReset. Mu must be held.
func (l *Link) Err() error { return l.err }

// Addrs are the addresses of the carrier. Mu must be held.
func (l *Link) Addrs() (local, remote net.Addr) {
	local = l.pc.LocalAddr()
	if l.peer == nil {
		return local, local
	}
	return local, l.peer
}

// Stats returns the counts so far.
func (l *Link) Stats() Stats {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	return l.stats
}

// RTT is the smoothed round-trip time, with what the two sides' delays of
// acknowledgements may add to it. Mu must be held.
func (l *Link) RTT() time.Duration {
	if l.srtt == 0 {
		return defaultRTT
	}
	return l.srtt + 2*ackDelay
}

// SetWindow sets the receive window in segments. Mu must be held.
func (l *Link) SetWindow(segments int) {
	l.kcp.WndSize(0, segments)
}

// Recv returns the content of the next segment in p, which has room for
// SegmentSize bytes, and false if there is none. Mu must be held.
func (l *Link) Recv(p []byte) ([]byte, bool) {
	n := l.kcp.Recv(p[:SegmentSize])
	if n < 0 {
		return nil, false
	}
	if l.told == 0 {
		l.tell = true // KCP announces that its full window has opened
		l.poke()
	}
	return p[:n], true
}

// Ready says that Fill has something new. It leaves at once if KCP allows, or
// after hold, if that is not zero, unless something else is ready before. Mu
// must be held.
func (l *Link) Ready(hold time.Duration) {
	if l.err != nil {
		return
	}
	switch {
	case hold == 0:
		l.hold = time.Time{}
	case !l.ready && len(l.stage) == 0:
		l.hold = time.Now().Add(hold)
	}
	l.ready = true
	l.pull()
	l.poke()
}

// unsent is the number of bytes that have not left KCP.
func (l *Link) unsent() int { return len(l.stage) + l.inKCP }

// Close ends the session, tells the other side if the carrier has room for it,
// and returns when both goroutines have ended. Closing twice is allowed.
func (l *Link) Close() {
	l.Mu.Lock()
	l.fail(engine.ErrClosed)
	l.Mu.Unlock()
	timer := time.AfterFunc(farewellTime, func() { l.pc.Close() })
	l.group.Wait()
	timer.Stop()
}

// Fail ends the session because of err without waiting. Mu must be held.
func (l *Link) Fail(err error) { l.fail(fmt.Errorf("%w: %w", engine.ErrReset, err)) }

// Linger says that the streams have nothing more to say in either direction.
// The session ends in good order when all of it has been acknowledged and the
// other side has had the time to ask for what it may have missed. Mu must be
// held.
func (l *Link) Linger() {
	if !l.lingers {
		l.lingers = true
		l.heard = time.Now()
		if l.sleeps {
			l.signal()
		}
	}
}

// lingerEnd is when a lingering session ends if nothing happens before; false
// if it does not linger.
func (l *Link) lingerEnd() (time.Time, bool) {
	if !l.lingers {
		return time.Time{}, false
	}
	if !l.ready && l.unsent() == 0 && l.una == l.next && l.outBytes == 0 && l.ackSince.IsZero() {
		return l.heard.Add(lingerTime), true
	}
	return l.heard.Add(lingerLimit), true
}

func (l *Link) fail(err error) {
	if l.err != nil {
		return
	}
	l.err = err
	l.user.Ended(err)
	for _, d := range l.out {
		datagrams.Put(d)
	}
	l.out = nil
	close(l.done)
	l.signal()
}

// read is the goroutine that receives. It ends when pc fails or is closed.
func (l *Link) read() {
	defer l.pc.Close() // a WriteTo may be blocked
	waiter, waits := l.pc.(interface{ WaitRead() })
	for {
		if waits {
			waiter.WaitRead() // without a buffer
		}
		d := datagrams.Get().(*datagram)
		n, addr, err := l.pc.ReadFrom(d.data[:])
		more := l.receive(d.data[:max(n, 0)], addr, err)
		datagrams.Put(d)
		if !more {
			return
		}
	}
}

// receive handles what ReadFrom has returned and tells whether to go on.
func (l *Link) receive(p []byte, addr net.Addr, err error) bool {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	switch {
	case l.err == engine.ErrClosed:
		// The driver says farewell and closes pc, which ends the reader.
		return err == nil
	case l.err != nil:
		return false
	case err != nil:
		l.Fail(fmt.Errorf("carrier: %w", err))
		return false
	case len(p) == len(farewell) && p[0] == farewell[0]:
		l.Fail(ErrPeerClosed)
		return false
	}
	if l.peer == nil {
		l.peer = addr
	}
	l.input(p)
	return l.err == nil || l.err == engine.ErrClosed
}

// input handles one datagram.
func (l *Link) input(p []byte) {
	l.moved += len(p)
	sum, ok := l.scan(p)
	if !ok {
		return
	}
	if int32(sum.una-l.una) > 0 {
		// KCP flushes when its window moves: give it what is waiting.
		l.una = sum.una
		l.backoff = 0
		l.beforeFlush()
	}
	l.rmtWnd = uint32(sum.wnd)
	if sum.acks {
		if !l.acked || later(sum.ackTime, sum.ackSN, l.ackTime, l.ackSN) {
			l.acked, l.ackTime, l.ackSN = true, sum.ackTime, sum.ackSN
		}
		if rtt := l.millis() - sum.ackTime; int32(rtt) >= 0 {
			l.sample(time.Duration(rtt) * time.Millisecond)
		}
	}
	if sum.data && l.ackSince.IsZero() {
		l.ackSince = time.Now() // output resets it when the acknowledgement goes
	}
	if sum.asked {
		l.tell = true
	}
	if l.lingers {
		l.heard = time.Now()
	}
	if !l.feed(p) {
		return // scan has checked all that Input checks
	}
	if sum.data {
		l.user.Arrived()
	}
	l.pull()
	l.poke()
}

// feed gives KCP what has come, and false if that is malformed.
func (l *Link) feed(p []byte) bool {
	l.lend() // it may flush
	defer l.takeBack()
	return l.kcp.Input(p, kcp.IKCP_PACKET_REGULAR, false) >= 0
}

// sample takes a measured round-trip time into account (RFC 6298, section 2).
func (l *Link) sample(rtt time.Duration) {
	rtt = max(rtt, time.Millisecond)
	if l.srtt == 0 {
		l.srtt = rtt
	}
	l.srtt += (rtt - l.srtt) / 8
}

// pull moves bytes from the user into KCP's queue as far as the backlog allows.
// The last, incomplete segment stays in stage.
func (l *Link) pull() {
	for l.ready {
		if l.unsent()+l.outBytes >= l.backlog {
			l.limited = true
			return
		}
		if l.stage == nil {
			l.stage = segments.Get().(*[SegmentSize]byte)[:0]
		}
		n := len(l.stage)
		n += l.user.Fill(l.stage[n:SegmentSize])
		l.ready = n > len(l.stage)
		l.stage = l.stage[:n]
		if n > SegmentSize-MinRoom {
			l.push()
		}
	}
	l.unstage()
}

// unstage gives back the memory of an empty stage.
func (l *Link) unstage() {
	if l.stage != nil && len(l.stage) == 0 {
		segments.Put((*[SegmentSize]byte)(l.stage[:SegmentSize]))
		l.stage = nil
	}
}

// push gives the staged segment to KCP.
func (l *Link) push() {
	if len(l.stage) > 0 {
		l.inKCP += len(l.stage)
		l.kcp.Send(l.stage)
		l.stage = l.stage[:0]
		l.unstage()
	}
}

// beforeFlush makes ready what the next flush shall send.
func (l *Link) beforeFlush() {
	if l.limited && l.outBytes == 0 {
		l.backlog = min(2*l.backlog, maxBacklog) // the carrier was waiting for us
	}
	l.limited = false
	l.pull()
	l.push()
}

// flush lets KCP send what it may.
func (l *Link) flush(now time.Time) {
	l.beforeFlush()
	l.hold = time.Time{}
	l.tell = false
	granted := 0
	if l.outBytes == 0 && l.una != l.next && now.Sub(l.sentAt(l.una)) >= l.timeout() {
		granted = timeoutBurst
	}
	l.probes = granted
	l.lend()
	flush(l.kcp, kcp.IKCP_FLUSH_FULL)
	l.takeBack()
	if l.probes < granted {
		l.backoff++
	}
	l.probes = 0
	l.ackSince = time.Time{}
	l.lastRun = now
}

// millis is KCP's clock.
func (l *Link) millis() uint32 { return uint32(time.Since(l.clock) / time.Millisecond) }

// sentAt is the time of the last transmission of segment sn.
func (l *Link) sentAt(sn uint32) time.Time {
	age := int32(l.millis() - l.sent[sn%uint32(len(l.sent))])
	return time.Now().Add(-time.Duration(age) * time.Millisecond)
}

// timeout is the age at which a segment is sent again without evidence.
func (l *Link) timeout() time.Duration {
	return min(max(minTimeout, 3*l.srtt)<<min(l.backoff, 8), maxTimeout)
}

// turn does what is due, gives back the batch that was written in took, and
// returns the next one. An empty one ends the driver, which is needed no more
// for now, or, if ended is true, because the session has ended.
func (l *Link) turn(batch []*datagram, took time.Duration) (next []*datagram, ended bool) {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	for _, d := range batch {
		l.outBytes -= d.n
		l.taken += d.n
		l.stats.Datagrams++
		datagrams.Put(d)
	}
	batch = batch[:0]
	if now := time.Now(); now.Sub(l.takenFrom) >= rateSpan {
		l.rate = float64(l.taken) / now.Sub(l.takenFrom).Seconds()
		l.taken, l.takenFrom = 0, now
	}
	if took > slowWrite {
		l.backlog = min(max(int(l.rate*backlogTime.Seconds()), minBacklog), maxBacklog)
	}
	if l.err == nil {
		l.pull()
	}
	for l.err == nil {
		now := time.Now()
		at, ok := l.due()
		if ok && !at.After(now) {
			l.flush(now)
		}
		if l.leaves(now) {
			n, bytes := 0, 0
			for n < len(l.out) && bytes < batchSize {
				bytes += l.out[n].n
				n++
			}
			batch = append(batch, l.out[:n]...)
			l.out = slices.Delete(l.out, 0, n)
			l.acksFrom = time.Time{}
			return batch, false
		}
		end, lingers := l.lingerEnd()
		if lingers && !end.After(now) {
			l.fail(engine.ErrClosed)
			break
		}
		at, ok = l.due()
		if lingers && (!ok || end.Before(at)) {
			at, ok = end, true
		}
		switch {
		case !ok:
			if l.moved > trimAfter && l.una == l.next && len(l.out) == 0 {
				l.moved, l.sent, l.out = 0, nil, nil
				trim(l.kcp)
			}
			l.sleep(time.Time{})
		case at.After(now):
			l.sleep(at)
		default:
			continue
		}
		return nil, false
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	return nil, true
}

// due returns the time at which KCP shall be flushed next, false for never.
func (l *Link) due() (at time.Time, ok bool) {
	want := func(t time.Time) {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	if !l.ackSince.IsZero() {
		want(l.ackSince.Add(ackDelay))
	}
	if !l.acksFrom.IsZero() {
		want(l.acksFrom.Add(ackDelay))
	}
	if l.tell {
		want(l.lastRun)
	}
	if l.ready && !l.limited || l.unsent() > 0 {
		switch {
		case l.next-l.una < min(MaxWindow, l.rmtWnd):
			want(l.hold)
		case l.rmtWnd == 0:
			want(l.lastRun.Add(probeInterval))
		}
	}
	if l.una != l.next && l.outBytes == 0 {
		last := l.sent[l.una%uint32(len(l.sent))]
		repair := l.lastRun.Add(repairInterval)
		if !l.acked || !later(l.ackTime, l.ackSN, last, l.una) {
			if t := l.sentAt(l.una).Add(l.timeout()); t.After(repair) {
				repair = t
			}
		}
		want(repair)
	}
	if gate := l.lastRun.Add(time.Duration(l.next-l.una) * flushPause); ok && at.Before(gate) {
		at = gate
	}
	return at, ok
}

// leaves tells whether there is something to be written now.
func (l *Link) leaves(now time.Time) bool {
	return len(l.out) > 0 && l.peer != nil && !l.acksFrom.After(now.Add(-ackDelay))
}

// poke wakes the driver if there is something to do before it would wake up
// by itself.
func (l *Link) poke() {
	if !l.sleeps {
		return
	}
	if l.leaves(time.Now()) {
		l.signal()
		return
	}
	if at, ok := l.due(); ok && (l.sleepTo.IsZero() || at.Before(l.sleepTo)) {
		l.signal()
	}
}

// signal starts the driver if there is none.
func (l *Link) signal() {
	if l.sleeps {
		l.sleeps = false
		l.group.Go(l.drive)
	}
}

// sleep notes that the driver ends, and that another one shall be started at
// the time at, or when something happens if that is zero.
func (l *Link) sleep(at time.Time) {
	l.sleeps, l.sleepTo = true, at
	switch {
	case at.IsZero():
		if l.timer != nil {
			l.timer.Stop()
		}
	case l.timer == nil:
		l.timer = time.AfterFunc(time.Until(at), func() {
			l.Mu.Lock()
			defer l.Mu.Unlock()
			l.signal()
		})
	default:
		l.timer.Reset(time.Until(at))
	}
}

// drive is the goroutine that writes and keeps the time. It ends when nothing
// is due, and with the session.
func (l *Link) drive() {
	var batch []*datagram
	var took time.Duration
	for {
		var ended bool
		if batch, ended = l.turn(batch, took); ended {
			break
		}
		if len(batch) == 0 {
			return
		}
		start := time.Now()
		for _, d := range batch {
			if _, err := l.pc.WriteTo(d.data[:d.n], l.peer); err != nil {
				l.Mu.Lock()
				l.Fail(fmt.Errorf("carrier: %w", err))
				l.Mu.Unlock()
				break
			}
		}
		took = time.Since(start)
	}
	if l.err == engine.ErrClosed && l.peer != nil { // neither changes any more
		stop := time.AfterFunc(farewellTime, func() { l.pc.Close() })
		l.pc.WriteTo(farewell, l.peer)
		stop.Stop()
	}
	l.pc.Close() // ends the reader
}
