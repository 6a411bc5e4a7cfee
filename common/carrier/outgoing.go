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

	// minProbe is the least time after which a record whose exchange has said
	// everything, and which nobody acknowledges, is sent again.
	minProbe = time.Second

	// standing is how long the other side may take nothing of what there is for it,
	// or acknowledge nothing, before a server takes no more from it.
	standing = 5 * time.Second
)

// lanes says into how many exchanges at once a window has to fit. Whoever asks
// whether something is due knows, and so decides what is worth an exchange. The
// zero value says: any number.
type lanes struct {
	slots int // exchanges that can carry records at once; 0: any number
	polls int // answers that are complete when they are sent, each of which comes once in a round trip; 0: any number
}

// share is how many bytes of a window one exchange shall carry where slots are
// few: there, each is taken for a round trip by little as by much. 0: they are
// not few.
func (l lanes) share(window int) int {
	if l.slots == 0 || l.slots >= fewSlots {
		return 0
	}
	return window / l.slots
}

// A sentRecord is a record that has a number.
type sentRecord struct {
	number  uint64 // constant, like what follows up to sealing
	size    int    // of the unit, in bytes
	buf     *buffer
	sealing sync.Once

	exchange uint64    // that carried it last; guarded by the link's mu, like what follows
	at       time.Time // when it was given to that exchange
	acked    bool
	lost     bool // waits to be sent again
}

// unit returns the sealed record. The first caller seals it.
func (r *sentRecord) unit(k *wire.Key) []byte {
	r.sealing.Do(func() { r.buf.b = k.Seal(r.buf.b, wire.RecordKind, r.number) })
	return r.buf.b
}

// sizeOf is how many bytes records have.
func sizeOf(records []*sentRecord) (n int) {
	for _, r := range records {
		n += r.size
	}
	return n
}

// A cargo is what one exchange has carried to the other side.
type cargo struct {
	exchange uint64    // constant
	records  []uint64  // in order; those at the front that are done with are cut off
	size     int64     // of all it ever had, in bytes
	written  time.Time // when the last of it was written; zero before
}

// outgoing is the half of a link that sends. What the engine writes waits in
// the queue; an exchange that takes it makes it a record with a number; a record
// is kept until it is acknowledged, and is lost, to be sent again, when its
// exchange has ended or what left after it has arrived without it.
//
//	put -> queue -> take: in flight -> acknowledge: given back
//	                  ^       |
//	                  +- lost <- endExchange, acknowledge, tick
//
// It does no I/O and knows no time but what it is told. It is not safe for
// concurrent use: the link's mu guards every field that changes.
type outgoing struct {
	held     *account        // of the buffers below
	memory   *Memory         // that bounds them, too; nil: nothing does
	wake     chan<- struct{} // the link's, like writable
	writable chan<- struct{}
	resent   atomic.Uint64 // bytes sent again

	// Not numbered yet.
	queue   queue
	taken   time.Time // when some were taken last
	blocked bool      // a WriteTo waits for room
	short   bool      // it does because memory has none
	kept    int       // bytes that these buffers and those of sent take

	unit int // size of the largest record that is made, in bytes

	// Numbered.
	next     uint64        // number of the next record
	base     uint64        // the lowest number that is not acknowledged
	sent     []*sentRecord // from base on
	missing  numbers       // those of them that are not acknowledged
	retained int           // bytes sent and not acknowledged
	flying   int           // bytes of these that are not lost
	lost     []uint64      // in order; some may be acknowledged meanwhile
	givenUp  uint64        // one more than the highest that was given up, until the other side knows; 0: none
	cargoes  cargoes       // what exchanges carried that is not acknowledged
	unheard  wire.Set      // exchanges of which the other side will receive no more
	grant    uint64        // records below this number have room at the other side
	window   window
	silence  silence
	steps    uint64 // that heads have cost, for tests to count
}

// silence is what is known of a path from which nothing comes back.
type silence struct {
	lastAck    time.Time // when something was acknowledged last
	newestSent time.Time // when the newest record that is acknowledged was sent
	probes     uint      // probes since something was acknowledged
	probedAt   time.Time // when the last of them was
	part       float64   // of the time until the next one that is waited; drawn for each
}

// drawPart draws a part of a time, so that no two sessions keep the same.
func drawPart() float64 { return 0.75 + rand.Float64()/4 }

func newOutgoing(held *account, wake, writable chan<- struct{}, now time.Time) outgoing {
	return outgoing{
		held:     held,
		wake:     wake,
		writable: writable,
		unit:     wire.MaxUnit,
		grant:    windowRecords,
		window:   newWindow(),
		silence:  silence{lastAck: now, part: drawPart()},
	}
}

// put queues a copy of a datagram if there is room.
func (o *outgoing) put(p []byte) bool {
	signal(o.wake)
	if !o.unfinished() {
		o.silence.lastAck = time.Now() // nothing was to be acknowledged until now
	}
	if o.memory != nil && !o.memory.mayKeep(o.kept) {
		o.blocked, o.short = true, true
		return false
	}
	if o.queue.bytes > 0 && o.queue.bytes+len(p) > o.allowance() {
		o.blocked = true
		if o.flying+o.queue.bytes+len(p) > o.window.size {
			o.window.limited = true
		}
		return false
	}
	o.keep(o.queue.put(p))
	return true
}

// allowance is how many bytes of datagrams may wait: what the window has room for,
// so that few exchanges can fill it, and a little in any case.
func (o *outgoing) allowance() int {
	return max(o.window.queue(), min(o.window.size-o.flying, maxQueue))
}

// takeHello takes datagrams out of the queue, at most room bytes of them, for
// the session's first message.
func (o *outgoing) takeHello(room int) []byte {
	hello, less := o.queue.takeHello(room)
	o.keep(-less)
	signal(o.writable)
	return hello
}

// dueIn says how long to wait before it is worth to take something for an
// exchange: 0 if now, and negative if there is nothing.
func (o *outgoing) dueIn(now time.Time, in lanes) time.Duration {
	switch {
	case len(o.lost) > 0:
		return 0
	case o.queue.bytes == 0 || !o.mayGrow():
		return -1
	case o.blocked:
		return 0
	}
	w := &o.window
	enough, batch := w.queue()/2, min(w.base/batchShare, batchDelay)
	if in.polls > 0 && !w.starting {
		enough, batch = max(enough, w.size/in.polls), w.base/time.Duration(in.polls)
	}
	if share := in.share(w.size); share > 0 {
		enough, batch = max(enough, share), w.base/time.Duration(in.slots)
	}
	if o.queue.bytes >= enough || batch < minBatch {
		return 0
	}
	return max(0, batch-now.Sub(o.taken))
}

// take gives records for exchange e to carry: lost ones first, then new ones,
// in all at most limit bytes, and none if the other side receives nothing more
// of exchange e. The caller writes them and then releases each one's buffer.
func (o *outgoing) take(e uint64, limit int, now time.Time, in lanes) (taken []*sentRecord) {
	if o.unheard.Has(e) {
		signal(o.wake)
		return nil
	}
	if share := in.share(o.window.size); share > 0 {
		limit = min(limit, max(share, minBody))
	}
	for len(o.lost) > 0 {
		r := o.record(o.lost[0])
		if r != nil && r.lost { // else it was acknowledged meanwhile
			if r.size > limit {
				return taken
			}
			r.lost = false
			o.resent.Add(uint64(r.size))
			limit -= r.size
			taken = append(taken, o.load(r, e, now))
		}
		o.lost = o.lost[1:]
	}
	for o.queue.bytes > 0 && o.mayGrow() {
		size := min(o.queue.next(), o.unit)
		if size > limit {
			break
		}
		b, more := o.queue.take(size)
		o.keep(more)
		r := &sentRecord{number: o.next, size: unitSize(b), buf: b}
		if small := b.fitting(wire.SealRoom); small != nil {
			r.buf = small
			o.keep(small.cost() - b.cost())
			b.release()
		}
		o.next++
		o.sent = append(o.sent, r)
		o.missing.add(r.number)
		o.retained += r.size
		limit -= r.size
		taken = append(taken, o.load(r, e, now))
	}
	if len(taken) > 0 {
		o.taken = now
	}
	o.blocked = false
	signal(o.writable)
	if len(o.lost) > 0 || o.queue.bytes > 0 {
		signal(o.wake)
	}
	return taken
}

// setUnit says how large a record may be from now on. Larger ones that exist are
// sent no more when they are lost: a number never seals two plaintexts. The other
// side is told not to wait for them, and the engine repairs that.
func (o *outgoing) setUnit(size int) {
	if size < o.unit {
		for _, r := range o.sent {
			if r != nil && !r.acked && r.lost && r.size > size {
				o.abandon(r)
			}
		}
	}
	o.unit = size
}

// abandon gives up a lost record.
func (o *outgoing) abandon(r *sentRecord) {
	r.acked = true
	o.givenUp = max(o.givenUp, r.number+1)
	o.missing.remove(r.number)
	o.retained -= r.size
	o.giveBack(r.buf)
}

// load puts a record on exchange e, which becomes an owner of its buffer.
func (o *outgoing) load(r *sentRecord, e uint64, now time.Time) *sentRecord {
	r.exchange, r.at = e, now
	r.buf.retain()
	o.flying += r.size
	c := o.cargoes.add(e)
	c.records = append(c.records, r.number)
	c.size += int64(r.size)
	return r
}

// mayGrow tells whether a record more may be sent. windowRecords bounds how
// many there are, whatever the other side grants.
func (o *outgoing) mayGrow() bool {
	if o.flying >= o.window.size || o.retained >= flightLimit {
		o.window.limited = true
		return false
	}
	return o.next < o.grant && o.next-o.base < windowRecords
}

// record returns the record with number n if it is not acknowledged.
func (o *outgoing) record(n uint64) *sentRecord {
	if n < o.base || n >= o.next {
		return nil
	}
	if r := o.sent[n-o.base]; !r.acked {
		return r
	}
	return nil
}

// wrote notes that all of exchange e's records so far have been written.
func (o *outgoing) wrote(e uint64, now time.Time) {
	if c := o.cargoes.of(e); c != nil {
		c.written = now
	}
}

// endExchange notes that what exchange e carried and was not acknowledged is
// lost, and tells whether there was anything.
func (o *outgoing) endExchange(e uint64) (lost bool) {
	c := o.cargoes.of(e)
	if c == nil {
		return false
	}
	o.cargoes.remove(e)
	for _, n := range c.records {
		o.lose(n, e)
	}
	return len(c.records) > 0
}

// lose has record n sent again, if exchange e was the last that carried it.
func (o *outgoing) lose(n, e uint64) {
	r := o.record(n)
	if r == nil || r.lost || r.exchange != e {
		return
	}
	r.lost = true
	o.flying -= r.size
	if r.size > o.unit {
		o.abandon(r)
		signal(o.wake)
		return
	}
	i, _ := slices.BinarySearch(o.lost, n)
	o.lost = slices.Insert(o.lost, i, n)
	signal(o.wake)
}

// opened takes in what a head says of this half: the records that the other
// side has, the exchanges that have ended there, and, if it is the newest head
// so far, the grant.
func (o *outgoing) opened(h *wire.Head, newest bool, now time.Time) {
	o.acknowledge(&h.Acks, now)
	o.endThose(wire.Span{End: h.Ended.Low})
	for _, s := range h.Ended.Spans {
		o.endThose(s)
	}
	if newest {
		room := cap(o.unheard.Spans)
		o.unheard.Low, o.unheard.Spans = h.Ended.Low, append(o.unheard.Spans[:0], h.Ended.Spans...)
		o.held.addSpans(&o.unheard, room)
		o.grant = max(o.grant, h.Window)
		signal(o.wake) // for an answer that waits, of an exchange that has ended, too
	}
}

// awaits tells whether what exchange e carried is still on its way: it was written and
// does not count as lost, and something was acknowledged since a time.
func (o *outgoing) awaits(e uint64, since time.Time) bool {
	c := o.cargoes.of(e)
	return c != nil && !c.written.IsZero() && o.silence.lastAck.After(since)
}

// endThose notes that the exchanges of a span have ended at the other side.
func (o *outgoing) endThose(s wire.Span) {
	o.steps++
	for i := o.cargoes.from(s.First); i < len(o.cargoes) && o.cargoes[i].exchange < s.End; o.steps++ {
		o.endExchange(o.cargoes[i].exchange)
	}
}

// acknowledge takes note of the records that the other side has.
func (o *outgoing) acknowledge(acks *wire.Set, now time.Time) {
	bytes, newest := 0, time.Time{}
	ack := func(n uint64) {
		if r := o.ack(n); r != nil {
			bytes += r.size
			if r.at.After(newest) {
				newest = r.at
			}
		}
	}
	o.steps += o.missing.each(o.base, min(acks.Low, o.next), ack)
	for _, s := range acks.Spans {
		o.steps += 1 + o.missing.each(max(s.First, o.base), min(s.End, o.next), ack)
	}
	o.advance()
	if acks.Low >= o.givenUp {
		o.givenUp = 0
	}
	if bytes == 0 {
		return
	}
	if newest.After(o.silence.newestSent) {
		o.silence.newestSent = newest
	}
	o.silence.lastAck, o.silence.probes = now, 0
	o.window.ack(now, newest, bytes)
	signal(o.wake) // the window may have been what sending waited for
}

// advance moves base to the first record that is not acknowledged.
func (o *outgoing) advance() {
	cut := 0
	for cut < len(o.sent) && o.sent[cut].acked {
		o.sent[cut] = nil
		cut++
	}
	o.sent = o.sent[cut:]
	o.base += uint64(cut)
}

// ack returns record n if it was not acknowledged before.
func (o *outgoing) ack(n uint64) *sentRecord {
	r := o.sent[n-o.base]
	if r.acked {
		return nil
	}
	r.acked = true
	o.missing.remove(n)
	if !r.lost {
		o.flying -= r.size
	}
	o.retained -= r.size
	o.giveBack(r.buf)
	// An exchange keeps its order: what it carried before r and did not bring
	// is lost.
	c := o.cargoes.of(r.exchange)
	if c == nil {
		return r
	}
	for len(c.records) > 0 && c.records[0] != n {
		o.lose(c.records[0], r.exchange)
		c.records = c.records[1:]
	}
	if len(c.records) > 0 {
		c.records = c.records[1:]
	}
	if len(c.records) == 0 {
		o.cargoes.remove(r.exchange)
	}
	return r
}

// stamp writes into a head what this half has to say: which records exist, which
// of them will not come, and how much waits.
func (o *outgoing) stamp(h *wire.Head) {
	if o.givenUp > 0 {
		o.advance()
		h.Kept = o.base
	}
	h.Sent = o.next
	h.Backlog = o.queue.bytes + o.retained - o.flying // and what is lost
}

// lossAt is when a cargo that was written and not acknowledged counts as lost
// although nobody says so: some round trips after it was written if later
// records were acknowledged meanwhile, or else when nothing at all has been
// acknowledged for longer than that, and each time twice as long.
func (o *outgoing) lossAt(c *cargo, t trip) time.Time {
	s := &o.silence
	if s.newestSent.After(c.written) {
		// A streamed answer has had far more than is on its way.
		size := min(c.size, int64(o.window.size))
		// The queue may have grown faster than the average follows.
		return c.written.Add(2*max(t.smoothed, o.window.latest) + 4*t.variation + 2*o.window.taking(size) + 100*time.Millisecond)
	}
	since := c.written
	for _, at := range [...]time.Time{s.lastAck, s.probedAt} {
		if at.After(since) {
			since = at
		}
	}
	wait := max(minProbe, 3*t.smoothed+4*t.variation) << min(max(s.probes, 1)-1, 6)
	return since.Add(time.Duration(float64(wait) * s.part))
}

// nextTick is when tick has something to do; zero: never.
func (o *outgoing) nextTick(t trip) (at time.Time) {
	for _, c := range o.cargoes.watched() {
		o.steps++
		if !c.written.IsZero() {
			at = earlier(at, o.lossAt(c, t))
		}
	}
	return at
}

// tick gives up the cargoes whose time has come. Of those after which nothing
// was acknowledged, so that nothing is known of them, only one record is sent
// again.
func (o *outgoing) tick(now time.Time, t trip) {
	var oldest *cargo
	for _, c := range slices.Clone(o.cargoes.watched()) {
		switch {
		case c.written.IsZero() || now.Before(o.lossAt(c, t)):
		case o.silence.newestSent.After(c.written):
			o.endExchange(c.exchange)
		case oldest == nil || c.records[0] < oldest.records[0]:
			oldest = c
		}
	}
	if oldest != nil {
		o.probe(oldest, now)
	}
}

// probe sends one record of a cargo again. If that arrives and the others do not,
// they are lost; after an outage, most of them arrive.
func (o *outgoing) probe(c *cargo, now time.Time) {
	o.silence.probes++
	o.silence.probedAt = now
	o.silence.part = drawPart()
	for len(o.lost) == 0 && len(c.records) > 0 {
		o.lose(c.records[0], c.exchange)
		c.records = c.records[1:]
	}
	if len(c.records) == 0 {
		o.cargoes.remove(c.exchange)
	}
}

// giveBack gives back a buffer that was counted.
func (o *outgoing) giveBack(b *buffer) {
	o.keep(-b.cost() - outgoingCost)
	b.release()
}

// keep counts n bytes more that are kept, or fewer: then there is memory again.
func (o *outgoing) keep(n int) {
	o.kept += n
	o.held.add(n)
	if o.memory != nil {
		o.memory.sending.Add(int64(n))
	}
	if n < 0 && o.short {
		o.short = false
		signal(o.writable)
	}
}

// stands tells whether the other side has taken nothing for a while of what it has
// room for, or acknowledged nothing. What waits only for room says nothing: were
// both sides to wait so for each other, they would for ever.
func (o *outgoing) stands(now time.Time) bool {
	waits := o.retained > 0 || o.queue.bytes > 0 && o.next < o.grant
	return waits && now.Sub(o.silence.lastAck) > standing
}

// unfinished tells whether something waits to be sent or acknowledged.
func (o *outgoing) unfinished() bool { return o.queue.bytes > 0 || o.retained > 0 }

// drop gives back everything that waits or is kept.
func (o *outgoing) drop() {
	o.keep(-o.queue.drop())
	for _, r := range o.sent {
		if !r.acked {
			r.acked = true
			o.giveBack(r.buf)
		}
	}
	o.base, o.sent, o.lost = o.next, nil, nil
	o.flying, o.retained = 0, 0
	o.cargoes, o.missing = nil, numbers{}
	o.held.dropSpans(&o.unheard)
}
