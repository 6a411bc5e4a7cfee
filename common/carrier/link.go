package carrier

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/common/wire"
)

const (
	// windowRecords is how many records past the last one that the engine has
	// read have room. Records are full when it matters: 32 MB, a third
	// more than flightLimit.
	windowRecords = 2048

	// batchShare of the path's round trip, and at most batchDelay, is the least
	// time between two exchanges that carry less than half of what may be
	// queued: many small ones cost time that nobody would notice to be saved.
	// What is said after a pause leaves at once, and on a path shorter than
	// timers are good for, everything does.
	batchShare = 16
	batchDelay = 2 * time.Millisecond
	minBatch   = 250 * time.Microsecond

	// fewSlots exchanges at once, or more, are as good as any number.
	fewSlots = 16

	// gapRounds and minGap bound the wait for a missing record: longer than
	// one round of repair takes, so that the engine repairs only what the carrier
	// cannot.
	gapRounds = 8
	minGap    = 5 * time.Second

	// firstRTT is assumed until one is measured.
	firstRTT = 300 * time.Millisecond

	// minProbe is the least time after which a record whose exchange has said
	// everything, and which nobody acknowledges, is sent again.
	minProbe = time.Second

	// ackDelay is how long at most the client may keep the news that records
	// came. Three quarters of it at least, so that the uploads beside a download
	// have no period.
	ackDelay = 28 * time.Millisecond
)

// A sentRecord is a record that the other side has not acknowledged.
type sentRecord struct {
	number   uint64
	size     int // of the unit, in bytes
	buf      *buffer
	sealing  sync.Once
	exchange uint64    // that carried it last; guarded by link.mu, like what follows
	at       time.Time // when it was put there
	acked    bool
	lost     bool // waits to be sent again
}

// unit returns the sealed record. The first caller seals it.
func (r *sentRecord) unit(k *wire.Key) []byte {
	r.sealing.Do(func() { r.buf.b = k.Seal(r.buf.b, wire.RecordKind, r.number) })
	return r.buf.b
}

// outgoing is what one exchange has carried to the other side.
type outgoing struct {
	records []uint64  // in order; those at the front that are done with are cut off
	size    int64     // of all it ever had, in bytes
	written time.Time // when the last of it was written; zero before
}

// link is one side's state of a session: it numbers, acknowledges, repairs and
// puts into order. It does no I/O and owns no goroutine. Client and Server
// move what it gives to what they get.
//
// Lock order: nothing is locked while mu is held, but sessions' memory
// accounting, which is atomic.
type link struct {
	send, receive *wire.Key     // set before the first exchange, constant then
	start         time.Time     // of the clock in heads
	wake          chan struct{} // holds a token when there may be something new to send
	readable      chan struct{} // holds a token when ReadFrom may go on
	writable      chan struct{} // holds a token when WriteTo may go on
	closed        chan struct{} // closed when conn is; the engine is gone then
	finished      chan struct{} // closed when nothing more will be received
	memory        *atomic.Int64 // bytes held by all sessions of a server; nil for a client
	held          atomic.Int64  // bytes held by this one
	onClose       func()        // called once when closed is, with mu held; nil: nothing

	mu         sync.Mutex
	shut       bool        // closed is closed
	fin        bool        // finished is closed
	last       *time.Timer // closes it; nil before finish
	end        uint64      // no record from here on will come, if last is set
	timer      *time.Timer // calls tick
	queue      []*buffer   // records not yet numbered, header room first; the last is open
	queued     int         // bytes in them
	taken      time.Time   // when some were taken last
	blocked    bool        // a WriteTo waits for room
	slots      int         // how many exchanges can carry records at once; 0: any number
	polls      int         // how many answers that are complete at once carry them; 0: any number
	next       uint64      // number of the next record
	base       uint64      // the lowest number not acknowledged
	sent       []*sentRecord
	flying     int // bytes sent, neither acknowledged nor lost
	flight     window
	retained   int // bytes sent and not acknowledged
	lost       []uint64
	out        map[uint64]*outgoing // by exchange
	peerWindow uint64
	lastAck    time.Time // when something was acknowledged last
	newestSent time.Time // when the newest record that is acknowledged was sent
	probes     uint      // probes since something was acknowledged
	probedAt   time.Time // when the last of them was
	patience   float64   // share of the time until the next one that is waited; drawn for each

	ready     []*buffer // records in order, to be read by the engine; plaintext
	hello     bool      // the first of them is no record but the first message's
	offset    int       // bytes of ready[0] that were read
	early     map[uint64]*buffer
	delivered uint64   // number of the record that ready waits for
	got       wire.Set // records received or given up
	gapSince  time.Time
	existing  uint64    // records below this exist, as the other side says
	owedSince time.Time // since when one of them has been missing
	cameAt    time.Time // when a record came last
	window    uint64    // the newest window told
	newsAt    time.Time
	room      bool // part of the news is that the window moved

	heads        uint64 // number of the next head
	newest       uint64 // number of the newest head received, plus one
	peerTime     uint32 // in that head
	peerAt       time.Time
	srtt, rttvar time.Duration
	ended        wire.Set  // exchanges of which no more will be received
	unheard      wire.Set  // exchanges of which the other side will receive no more
	down         pace      // what the server says that it has found; at a client
	toldRate     time.Time // when the client was told; at a server

	givenUp atomic.Uint64 // records whose gap was given up
	resent  atomic.Uint64 // bytes sent again
}

func newLink(memory *atomic.Int64) *link {
	now := time.Now()
	return &link{
		start:      now,
		wake:       make(chan struct{}, 1),
		readable:   make(chan struct{}, 1),
		writable:   make(chan struct{}, 1),
		closed:     make(chan struct{}),
		finished:   make(chan struct{}),
		memory:     memory,
		out:        make(map[uint64]*outgoing),
		early:      make(map[uint64]*buffer),
		peerWindow: windowRecords,
		window:     windowRecords,
		flight:     newWindow(),
		patience:   drawPatience(),
		lastAck:    now,
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// hold counts n buffers more (or, negative, less) as held by this session.
func (l *link) hold(n int) {
	l.held.Add(int64(n) * wire.BufferSize)
	if l.memory != nil {
		l.memory.Add(int64(n) * wire.BufferSize)
	}
}

// put queues a datagram if there is room.
func (l *link) put(p []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return false
	}
	if l.queued > 0 && l.queued+len(p) > l.allowance() {
		l.blocked = true
		if l.flying+l.queued+len(p) > l.flight.size {
			l.flight.limited = true
		}
		signal(l.wake)
		return false
	}
	need := 2 + len(p)
	var tail *buffer
	if n := len(l.queue); n > 0 && len(l.queue[n-1].b)+need <= wire.HeaderSize+wire.MaxPlaintext {
		tail = l.queue[n-1]
	} else {
		tail = newBuffer()
		tail.b = tail.b[:wire.HeaderSize]
		l.queue = append(l.queue, tail)
		l.hold(1)
	}
	tail.b = wire.AppendDatagram(tail.b, p)
	l.queued += need
	signal(l.wake)
	return true
}

// allowance is how many bytes of datagrams may wait: what the window has room for,
// so that few exchanges can fill it, and a little in any case.
func (l *link) allowance() int {
	return max(l.flight.queue(), min(l.flight.size-l.flying, maxQueue))
}

// takeHello takes datagrams out of the queue, at most room bytes of them, for
// the session's first message.
func (l *link) takeHello(room int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	var hello []byte
	for len(l.queue) > 0 {
		b := l.queue[0]
		p, rest, err := wire.CutDatagram(b.b[wire.HeaderSize:])
		if err != nil { // the end of this record
			l.queue = slices.Delete(l.queue, 0, 1)
			b.release()
			l.hold(-1)
			continue
		}
		if len(hello)+2+len(p) > room {
			break
		}
		hello = wire.AppendDatagram(hello, p)
		l.queued -= 2 + len(p)
		b.b = b.b[:wire.HeaderSize+copy(b.b[wire.HeaderSize:], rest)]
	}
	signal(l.writable)
	return hello
}

// setSlots says how many exchanges can carry records at once.
func (l *link) setSlots(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slots = n
}

// setPolls says how many answers there are that are complete when they are
// sent: each of them comes once in a round trip.
func (l *link) setPolls(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.polls = n
}

// share is how many bytes one exchange shall carry where slots are few: there,
// each is taken for a round trip by little as by much. 0: they are not.
func (l *link) share() int {
	if l.slots == 0 || l.slots >= fewSlots {
		return 0
	}
	return l.flight.size / l.slots
}

// dueIn says how long to wait before it is worth to take something for an
// exchange: 0 if now, and negative if there is nothing.
func (l *link) dueIn(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case len(l.lost) > 0:
		return 0
	case l.queued == 0 || !l.mayGrow():
		return -1
	case l.blocked:
		return 0
	}
	enough, batch := l.flight.queue()/2, min(l.flight.base/batchShare, batchDelay)
	if l.polls > 0 && !l.flight.starting {
		enough, batch = max(enough, l.flight.size/l.polls), l.flight.base/time.Duration(l.polls)
	}
	if share := l.share(); share > 0 {
		enough, batch = max(enough, share), l.flight.base/time.Duration(l.slots)
	}
	if l.queued >= enough {
		return 0
	}
	if batch < minBatch {
		return 0
	}
	return max(0, batch-now.Sub(l.taken))
}

// take gives records for exchange e to carry: lost ones first, then new ones,
// in all at most limit bytes, and none if nobody hears e any more. The caller
// writes them and then releases each one's buffer.
func (l *link) take(e uint64, limit int) []*sentRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unheard.Has(e) {
		signal(l.wake)
		return nil
	}
	if share := l.share(); share > 0 {
		limit = min(limit, max(share, minBody))
	}
	now := time.Now()
	var taken []*sentRecord
	put := func(r *sentRecord) {
		r.exchange, r.at = e, now
		r.buf.retain()
		limit -= r.size
		l.flying += r.size
		taken = append(taken, r)
		o := l.out[e]
		if o == nil {
			o = new(outgoing)
			l.out[e] = o
		}
		o.records = append(o.records, r.number)
		o.size += int64(r.size)
	}
	for len(l.lost) > 0 {
		r := l.record(l.lost[0])
		if r != nil && r.lost { // else it was acknowledged meanwhile
			if r.size > limit {
				return taken
			}
			r.lost = false
			l.resent.Add(uint64(r.size))
			put(r)
		}
		l.lost = l.lost[1:]
	}
	for len(l.queue) > 0 && l.mayGrow() {
		b := l.queue[0]
		size := len(b.b) + wire.Overhead - wire.HeaderSize
		if size > limit {
			break
		}
		r := &sentRecord{number: l.next, size: size, buf: b}
		l.next++
		l.sent = append(l.sent, r)
		l.retained += size
		l.queued -= len(b.b) - wire.HeaderSize
		l.queue[0] = nil
		l.queue = l.queue[1:]
		put(r)
	}
	if len(taken) > 0 {
		l.taken = now
	}
	l.blocked = false
	signal(l.writable)
	if len(l.lost) > 0 || l.queued > 0 {
		signal(l.wake)
	}
	return taken
}

// isOver tells whether nobody hears any more what exchange e says. A gateway
// can keep an answer open long after the client has lost it.
func (l *link) isOver(e uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unheard.Has(e)
}

// mayGrow tells whether another record may be sent. It is so many at most,
// whatever the other side grants: small ones take as much memory as large ones.
func (l *link) mayGrow() bool {
	if l.flying >= l.flight.size || l.retained >= flightLimit {
		l.flight.limited = true
		return false
	}
	return l.next < l.peerWindow && l.next-l.base < windowRecords
}

// record returns the record with number n if it is not acknowledged.
func (l *link) record(n uint64) *sentRecord {
	if n < l.base || n >= l.next {
		return nil
	}
	if r := l.sent[n-l.base]; !r.acked {
		return r
	}
	return nil
}

// wrote says that all of exchange e's records have been written.
func (l *link) wrote(e uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.out[e]; o != nil {
		o.written = time.Now()
		l.arm()
	}
}

// over says that what exchange e carried and was not acknowledged is lost.
func (l *link) over(e uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loseExchange(e)
}

func (l *link) loseExchange(e uint64) {
	o := l.out[e]
	if o == nil {
		return
	}
	delete(l.out, e)
	for _, n := range o.records {
		l.lose(n, e)
	}
}

func (l *link) lose(n, e uint64) {
	r := l.record(n)
	if r == nil || r.lost || r.exchange != e {
		return
	}
	r.lost = true
	l.flying -= r.size
	i, _ := slices.BinarySearch(l.lost, n)
	l.lost = slices.Insert(l.lost, i, n)
	signal(l.wake)
}

// acknowledge takes note of the records that the other side has.
func (l *link) acknowledge(acks *wire.Set, now time.Time) {
	before := l.base
	bytes, newest := 0, time.Time{}
	ack := func(n uint64) {
		if r := l.ack(n); r != nil {
			bytes += r.size
			if r.at.After(newest) {
				newest = r.at
			}
		}
	}
	for n := l.base; n < min(acks.Low, l.next); n++ {
		ack(n)
	}
	for _, s := range acks.Spans {
		for n := max(s.First, l.base); n < min(s.End, l.next); n++ {
			ack(n)
		}
	}
	cut := 0
	for cut < len(l.sent) && l.sent[cut].acked {
		l.sent[cut] = nil
		cut++
	}
	l.sent = l.sent[cut:]
	l.base = before + uint64(cut)
	if bytes > 0 {
		if newest.After(l.newestSent) {
			l.newestSent = newest
		}
		l.flight.ack(now, bytes)
		l.lastAck, l.probes = now, 0
		signal(l.wake) // the flight may have been what sending waited for
	}
}

// ack returns record n if it was not acknowledged before.
func (l *link) ack(n uint64) *sentRecord {
	r := l.sent[n-l.base]
	if r.acked {
		return nil
	}
	r.acked = true
	if !r.lost {
		l.flying -= r.size
	}
	l.retained -= r.size
	r.buf.release()
	l.hold(-1)
	// An exchange keeps its order: what it carried before r and did not bring
	// is lost.
	o := l.out[r.exchange]
	if o == nil {
		return r
	}
	for len(o.records) > 0 && o.records[0] != n {
		l.lose(o.records[0], r.exchange)
		o.records = o.records[1:]
	}
	if len(o.records) > 0 {
		o.records = o.records[1:]
	}
	if len(o.records) == 0 {
		delete(l.out, r.exchange)
	}
	return r
}

// head returns a sealed head for exchange e. fields has the values that are
// the caller's affair; pad is the number of bytes of padding.
func (l *link) head(e uint64, fields wire.Head, pad int) []byte {
	l.mu.Lock()
	now := time.Now()
	h := fields
	h.Exchange = e
	h.Time = uint32(now.Sub(l.start).Milliseconds())
	if l.newest > 0 {
		h.Echo, h.Echoes, h.Delay = l.peerTime, true, now.Sub(l.peerAt)
	}
	h.Acks, h.Ended = l.got, l.ended
	l.window = l.granted()
	h.Window = l.window
	h.Sent = l.next
	h.Backlog = l.queued
	for _, n := range l.lost {
		if r := l.record(n); r != nil {
			h.Backlog += r.size
		}
	}
	l.newsAt, l.room = time.Time{}, false
	number := l.heads
	l.heads++
	b := make([]byte, wire.HeaderSize, 256)
	b = h.Append(b) // copies the sets, so they may change afterwards
	l.mu.Unlock()
	if pad > 0 {
		b = wire.Pad(b, pad)
	}
	return l.send.Seal(b, wire.HeadKind, number)
}

// opened takes in a head. If it is not the newest so far, nothing but what it
// acknowledges counts. timed says that its times measure the round trip.
func (l *link) opened(number uint64, h *wire.Head, timed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	newest := number+1 > l.newest
	if newest && timed && h.Echoes {
		// Before the acknowledgements: what they let go depends on the delay that
		// they came with.
		rtt := time.Duration(uint32(now.Sub(l.start).Milliseconds())-h.Echo)*time.Millisecond - h.Delay
		if rtt >= 0 && rtt < time.Minute {
			l.sample(rtt, 0)
		}
	}
	l.acknowledge(&h.Acks, now)
	for e := range l.out {
		if h.Ended.Has(e) {
			l.loseExchange(e)
		}
	}
	if !newest {
		l.arm()
		return
	}
	l.newest = number + 1
	l.unheard.Low, l.unheard.Spans = h.Ended.Low, append(l.unheard.Spans[:0], h.Ended.Spans...)
	signal(l.wake) // an answer may be among them that waits for something to say
	l.peerTime, l.peerAt = h.Time, now
	if h.Rate > 0 {
		l.down = pace{float64(h.Rate), h.More, l.srtt, now}
		if l.flight.base > 0 {
			l.down.trip = l.flight.base
		}
	}
	if h.Window > l.peerWindow {
		l.peerWindow = h.Window
		signal(l.wake)
	}
	l.arm()
}

// recall begins with what another session has found, and returns how many bytes
// more than usual the window has: at most most, or it begins as usual.
func (l *link) recall(p pace, most int) (more int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := newWindow()
	w.recall(p)
	if more = max(0, w.size-firstFlight); more > most {
		return 0
	}
	l.flight = w
	return more
}

// finds is what this session has found the path to carry: zero if nothing.
func (l *link) finds() (up, down pace) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flight.finds(), l.down
}

// forget has finds say nothing until something is found again: it was of
// another way.
func (l *link) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flight.forget()
	l.down = pace{}
}

// news is what this session has found since news was called last: zero if
// nothing.
func (l *link) news() pace {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.flight.found.After(l.toldRate) {
		return pace{}
	}
	l.toldRate = time.Now()
	return l.flight.finds()
}

// measured takes note of the round-trip time of a body of size bytes.
func (l *link) measured(rtt time.Duration, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sample(rtt, size)
}

// sample takes note of a round-trip time, as RFC 6298 section 2 does.
func (l *link) sample(rtt time.Duration, size int64) {
	l.flight.took(rtt, size)
	if l.srtt == 0 {
		l.srtt, l.rttvar = rtt, rtt/2
		return
	}
	l.rttvar += ((l.srtt - rtt).Abs() - l.rttvar) / 4
	l.srtt += (rtt - l.srtt) / 8
}

// rtt returns the smoothed round-trip time and its variation. mu is held.
func (l *link) rtt() (srtt, rttvar time.Duration) {
	if l.srtt == 0 {
		return firstRTT, firstRTT / 2
	}
	return l.srtt, l.rttvar
}

func (l *link) roundTrip() (srtt, rttvar time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rtt()
}

// record n has come, in b, of which the link becomes an owner if it returns
// true; if not, it is a duplicate or there is no room for it.
func (l *link) received(n uint64, b *buffer) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.cameAt = now
	if l.newsAt.IsZero() {
		l.newsAt = now.Add(-rand.N(ackDelay / 4))
		signal(l.wake)
	}
	if l.shut || n >= l.granted() || !l.got.Add(n) {
		return false
	}
	l.hold(1)
	l.early[n] = b
	l.deliver(now)
	return true
}

// deliver hands over what is in order and watches the gap before the rest.
func (l *link) deliver(now time.Time) {
	moved := false
	for l.delivered < l.got.Low {
		if b := l.early[l.delivered]; b != nil {
			delete(l.early, l.delivered)
			l.ready = append(l.ready, b)
		} else {
			l.givenUp.Add(1)
		}
		l.delivered++
		moved = true
	}
	if moved {
		l.gapSince = time.Time{}
		signal(l.readable)
	}
	if l.last != nil && l.delivered >= l.end {
		l.endReached()
	}
	if len(l.got.Spans) > 0 && l.gapSince.IsZero() {
		l.gapSince = now
		l.arm()
	}
}

// has tells whether there is a datagram to get.
func (l *link) has() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _, ok := l.first()
	return ok
}

// get copies the next datagram into p.
func (l *link) get(p []byte) (n int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, rest, ok := l.first()
	if !ok {
		return 0, false
	}
	l.offset = len(l.ready[0].b) - len(rest)
	if len(l.ready) > 1 || len(rest) > 0 {
		signal(l.readable) // for another reader
	}
	return copy(p, d), true
}

// first returns the next datagram and what follows it in its record. Records
// without one are given back. mu is held.
func (l *link) first() (d, rest []byte, ok bool) {
	for len(l.ready) > 0 {
		b := l.ready[0]
		d, rest, err := wire.CutDatagram(b.b[l.offset:])
		if err == nil {
			return d, rest, true
		}
		// The end of the record. A malformed rest came from the other side's
		// own hand; its engine will miss what it meant to say.
		b.release()
		l.hold(-1)
		l.ready[0] = nil
		l.ready = l.ready[1:]
		l.hello = false
		l.offset = 0
		// Tell of new room before the other side has used up the old.
		if l.granted() >= l.window+windowRecords/2 && !l.room {
			l.room, l.newsAt = true, time.Now()
			signal(l.wake)
		}
	}
	return nil, nil, false
}

// early datagrams, those of the first message, come before record 0.
func (l *link) receivedHello(datagrams []byte) {
	if len(datagrams) == 0 {
		return
	}
	b := newBuffer()
	b.b = append(b.b, datagrams...)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hold(1)
	l.ready = append(l.ready, b)
	l.hello = true
	signal(l.readable)
}

// granted is the number of the first record that has no room. It never
// shrinks. mu is held.
func (l *link) granted() uint64 {
	unread := len(l.ready)
	if l.hello {
		unread--
	}
	return l.delivered - uint64(unread) + windowRecords
}

// owed notes that records below number exist.
func (l *link) owed(number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.existing = max(l.existing, number)
	if l.got.Low >= l.existing {
		l.owedSince = time.Time{}
	} else if l.owedSince.IsZero() {
		l.owedSince = time.Now()
	}
}

// owedFor says for how long records have been missing that exist.
func (l *link) owedFor(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.got.Low >= l.existing {
		l.owedSince = time.Time{}
	}
	if l.owedSince.IsZero() {
		return 0
	}
	return now.Sub(l.owedSince)
}

// complete tells whether all records have come that the other side has spoken of.
func (l *link) complete() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.got.Low >= l.existing
}

// newsIn says how long the client may still keep the news that records came;
// negative if there is none.
func (l *link) newsIn(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.newsAt.IsZero() {
		return -1
	}
	return max(0, ackDelay-now.Sub(l.newsAt))
}

// tell has the client tell soon what it has, though nothing has come.
func (l *link) tell() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.newsAt = time.Now().Add(-rand.N(ackDelay / 4))
}

// told says that a head is on its way which has the news.
func (l *link) told() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.newsAt = time.Time{}
}

// hasRoom tells whether the other side waits to hear that its records have
// room again.
func (l *link) hasRoom() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.room
}

// endedExchange says that of exchange e no more will be received.
func (l *link) endedExchange(e uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended.Add(e)
}

// arm sets the timer for the first moment at which tick has something to do.
func (l *link) arm() {
	at := l.nextTick()
	switch {
	case l.shut || at.IsZero():
		if l.timer != nil {
			l.timer.Stop()
		}
	case l.timer == nil:
		l.timer = time.AfterFunc(time.Until(at), l.tick)
	default:
		l.timer.Reset(time.Until(at))
	}
}

func (l *link) nextTick() time.Time {
	var at time.Time
	earlier := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	if !l.gapSince.IsZero() {
		earlier(l.gapSince.Add(l.gapPatience()))
	}
	for _, o := range l.out {
		if !o.written.IsZero() {
			earlier(l.lossAt(o))
		}
	}
	return at
}

func (l *link) gapPatience() time.Duration {
	srtt, _ := l.rtt()
	return max(minGap, gapRounds*srtt)
}

// lossAt is when an exchange that was written and not acknowledged counts as
// lost although nobody says so: some round trips after it was written if later
// records were acknowledged meanwhile, or else when nothing at all has been
// acknowledged for longer than that, and each time twice as long.
func (l *link) lossAt(o *outgoing) time.Time {
	srtt, variation := l.rtt()
	if l.newestSent.After(o.written) {
		// A streamed answer has had far more than is on its way.
		size := min(o.size, int64(l.flight.size))
		// The queue may have grown faster than the average follows.
		return o.written.Add(2*max(srtt, l.flight.latest) + 4*variation + 2*l.flight.taking(size) + 100*time.Millisecond)
	}
	since := o.written
	if l.lastAck.After(since) {
		since = l.lastAck
	}
	if l.probedAt.After(since) {
		since = l.probedAt
	}
	wait := max(minProbe, 3*srtt+4*variation) << min(max(l.probes, 1)-1, 6)
	return since.Add(time.Duration(float64(wait) * l.patience))
}

// tick gives up gaps and exchanges whose time has come.
func (l *link) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return
	}
	now := time.Now()
	if !l.gapSince.IsZero() && now.Sub(l.gapSince) >= l.gapPatience() && len(l.got.Spans) > 0 {
		if now.Sub(l.cameAt) < l.gapPatience()/2 {
			l.got.Fill()
			l.deliver(now)
		} else {
			// In an outage nothing is repaired: the wait begins anew when
			// something comes.
			l.gapSince = time.Time{}
		}
	}
	var oldest *outgoing // of those of which nothing is known
	var which uint64
	for e, o := range l.out {
		switch {
		case o.written.IsZero() || now.Before(l.lossAt(o)):
		case l.newestSent.After(o.written):
			l.loseExchange(e)
		case oldest == nil || o.records[0] < oldest.records[0]:
			oldest, which = o, e
		}
	}
	if oldest != nil {
		l.probe(which, oldest)
	}
	l.arm()
}

// drawPatience draws a share of a time, so that no two sessions keep the same.
func drawPatience() float64 { return 0.75 + rand.Float64()/4 }

// probe sends one record of exchange e, which is o, again. If that arrives and
// the others do not, they are lost; after an outage, most of them arrive.
func (l *link) probe(e uint64, o *outgoing) {
	l.probes++
	l.probedAt = time.Now()
	l.patience = drawPatience()
	for len(l.lost) == 0 && len(o.records) > 0 {
		l.lose(o.records[0], e)
		o.records = o.records[1:]
	}
	if len(o.records) == 0 {
		delete(l.out, e)
	}
}

// finish says that no record from number on will be received: the engine reads
// those before it, for which finish waits farewellTime, and then an error.
func (l *link) finish(number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil && !l.shut {
		l.end = number
		l.last = time.AfterFunc(farewellTime, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.endReached()
		})
	}
	if l.delivered >= number {
		l.endReached()
	}
}

// endReached closes finished. mu is held.
func (l *link) endReached() {
	if !l.fin {
		l.fin = true
		close(l.finished)
	}
}

// close ends the engine's side: what waits to be read is dropped, what waits
// to be sent can still be taken.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return
	}
	l.shut = true
	close(l.closed)
	if l.onClose != nil {
		l.onClose()
	}
	l.arm()
	if l.last != nil {
		l.last.Stop()
	}
	for _, b := range l.ready {
		b.release()
		l.hold(-1)
	}
	for _, b := range l.early {
		b.release()
		l.hold(-1)
	}
	l.ready, l.early, l.hello = nil, nil, false
	signal(l.wake)
}

// unfinished tells whether something waits to be sent or acknowledged.
func (l *link) unfinished() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queued > 0 || l.retained > 0
}

// drop gives back everything that waits or is kept. The link is unusable.
func (l *link) drop() {
	l.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.queue {
		b.release()
		l.hold(-1)
	}
	for _, r := range l.sent {
		if !r.acked {
			r.acked = true
			r.buf.release()
			l.hold(-1)
		}
	}
	l.queue, l.queued = nil, 0
	l.base, l.sent, l.lost = l.next, nil, nil
	l.flying, l.retained = 0, 0
	clear(l.out)
}
