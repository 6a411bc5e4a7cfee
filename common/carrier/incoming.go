package carrier

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"turbotunnel/common/wire"
)

const (
	// windowRecords is how many records past the last one that the engine has
	// read have room. Records are full when it matters: 32 MB, a third
	// more than flightLimit.
	windowRecords = 2048

	// gapRounds and minGap bound the wait for a missing record: longer than
	// one round of repair takes, so that the engine repairs only what the carrier
	// cannot.
	gapRounds = 8
	minGap    = 5 * time.Second

	// ackDelay is how long at most the client may keep the news that records
	// came. Three quarters of it at least, so that the uploads beside a download
	// have no period.
	ackDelay = 28 * time.Millisecond
)

// incoming is the half of a link that receives. A record that comes is filed by
// its number; as soon as none before it is missing it is ready for the engine.
// A gap that nothing fills is given up after a while. What has come is news that
// the other side wants to hear.
//
//	receive -> early -> deliver: ready -> get: the engine
//	                       ^
//	                     tick (a gap is given up)
//
// It does no I/O and knows no time but what it is told. It is not safe for
// concurrent use: the link's mu guards every field that changes.
type incoming struct {
	held     *account        // of the buffers below
	wake     chan<- struct{} // the link's, like readable
	readable chan<- struct{}
	givenUp  atomic.Uint64 // records whose gap was given up

	// Order.
	got       wire.Set           // records received or given up
	early     map[uint64]*buffer // records behind a gap, by number; plaintext
	delivered uint64             // number of the record that ready waits for
	gapSince  time.Time          // when the gap before the early ones began; zero: there is none
	cameAt    time.Time          // when a record came last
	part      *buffer            // what has come of a datagram that goes on in the next record, after room for its length; nil: nothing
	ready     []*buffer          // records in order, to be read by the engine; plaintext
	hello     bool               // the first of them is no record but the first message's
	offset    int                // bytes of ready[0] that were read
	closed    bool               // nobody reads any more

	// What is owed to this side.
	size      int       // bytes of a record, on average of those that came of late
	existing  uint64    // records below this exist, as the other side says
	owedSince time.Time // since when one of them has been missing; zero: none is

	// What the other side is to hear.
	granted uint64        // what the grant has been at most
	frozen  bool          // it does not grow
	told    uint64        // the newest grant that it was told
	newsAt  time.Time     // since when there is news to tell, or somewhat before, so that it is told after no period; zero: there is none
	room    bool          // part of the news is that the grant has moved
	delay   time.Duration // how long at most news may be kept; 0: what has brought it is answered, and that tells it
	ended   wire.Set      // exchanges of which no more will be received
	feeds   feeds
}

// feeds are the bodies of streamed uploads that are open, at a server: what comes in
// them is told by other answers. The zero value is none.
type feeds struct {
	open   int
	newest uint64 // one more than the number of the newest head that has come in one
}

func newIncoming(held *account, wake, readable chan<- struct{}) incoming {
	return incoming{held: held, wake: wake, readable: readable, early: make(map[uint64]*buffer), granted: windowRecords, told: windowRecords, delay: ackDelay, size: smallUnit}
}

// receive files record n, which has come in b. This half becomes an owner of b if it
// returns true; if not, the record is a duplicate, has no room, or was copied into
// a smaller buffer.
func (i *incoming) receive(n uint64, b *buffer, now time.Time) bool {
	i.cameAt = now
	i.tellOnce(now)
	if i.closed || n >= i.grant() {
		return false
	}
	room := cap(i.got.Spans)
	isNew := i.got.Add(n)
	i.held.addSpans(&i.got, room)
	if !isNew {
		return false
	}
	i.size = (7*i.size + len(b.b)) / 8
	kept := b.fitting(0)
	owner := kept == nil
	if owner {
		kept = b
	}
	i.held.add(kept.cost() + incomingCost)
	i.early[n] = kept
	i.deliver(now)
	return owner
}

// receiveHello files the datagrams of the first message, which come before
// record 0.
func (i *incoming) receiveHello(datagrams []byte) {
	if len(datagrams) == 0 {
		return
	}
	b := newBufferOf(len(datagrams))
	b.b = append(b.b, datagrams...)
	i.held.add(b.cost() + incomingCost)
	i.ready = append(i.ready, b)
	i.hello = true
	signal(i.readable)
}

// skip gives up the gaps below number, which the other side will not fill.
func (i *incoming) skip(number uint64, now time.Time) {
	if i.closed || number <= i.got.Low {
		return
	}
	i.got.FillBelow(min(number, i.existing, i.grant()))
	i.deliver(now)
}

// deliver hands over what is in order and watches the gap before the rest.
func (i *incoming) deliver(now time.Time) {
	moved := false
	for i.delivered < i.got.Low {
		if b := i.early[i.delivered]; b != nil {
			delete(i.early, i.delivered)
			i.ready = append(i.ready, i.join(b))
		} else {
			i.givenUp.Add(1)
			i.dropPart() // what follows would not fit
		}
		i.delivered++
		moved = true
	}
	if moved {
		i.gapSince = time.Time{}
		signal(i.readable)
	}
	if len(i.got.Spans) > 0 && i.gapSince.IsZero() {
		i.gapSince = now
	}
}

// join puts a datagram together whose parts stand in several records, of which b is
// the next one, and returns what the engine shall read in b's place: b without what
// is not complete, or the datagram with what follows it in b.
func (i *incoming) join(b *buffer) *buffer {
	p, rest, err := wire.CutPart(b.b)
	if err != nil || !p.Continues {
		i.dropPart()
	}
	if err != nil || !p.Continues && !p.GoesOn {
		return b
	}
	if !p.Continues {
		i.part = newBuffer()
		i.part.b = i.part.b[:2]
		i.held.add(i.part.cost() + incomingCost)
	}
	if i.part != nil && len(i.part.b)+len(p.Bytes)+len(rest) > 2+wire.RecordRoom {
		i.dropPart() // larger than any datagram
	}
	if i.part != nil {
		i.part.b = append(i.part.b, p.Bytes...)
	}
	if p.GoesOn || i.part == nil {
		b.b = b.b[:copy(b.b, rest)]
		return b
	}
	whole := i.part
	i.part = nil
	binary.BigEndian.PutUint16(whole.b, uint16(len(whole.b)-2))
	whole.b = append(whole.b, rest...)
	i.giveBack(b)
	return whole
}

// dropPart gives up a datagram of which the rest does not come.
func (i *incoming) dropPart() {
	if i.part != nil {
		i.giveBack(i.part)
		i.part = nil
	}
}

// get copies the next datagram into p.
func (i *incoming) get(p []byte, now time.Time) (n int, ok bool) {
	d, rest, ok := i.first(now)
	if !ok {
		return 0, false
	}
	i.offset = len(i.ready[0].b) - len(rest)
	if len(i.ready) > 1 || len(rest) > 0 {
		signal(i.readable) // for another reader
	}
	return copy(p, d), true
}

// first returns the next datagram and what follows it in its record. Records
// without one are given back.
func (i *incoming) first(now time.Time) (d, rest []byte, ok bool) {
	for len(i.ready) > 0 {
		b := i.ready[0]
		d, rest, err := wire.CutDatagram(b.b[i.offset:])
		if err == nil {
			return d, rest, true
		}
		// The end of the record. A malformed rest came from the other side's
		// own hand; its engine will miss what it meant to say.
		i.giveBack(b)
		i.ready[0] = nil
		i.ready = i.ready[1:]
		i.hello = false
		i.offset = 0
		// Tell of new room before the other side has used up the old.
		if i.grant() >= i.told+windowRecords/2 && !i.room {
			i.room, i.newsAt = true, now
			signal(i.wake)
		}
	}
	return nil, nil, false
}

// giveBack gives back a buffer that was filed.
func (i *incoming) giveBack(b *buffer) {
	i.held.add(-b.cost() - incomingCost)
	b.release()
}

// grant is the number of the first record that has no room. It never shrinks.
func (i *incoming) grant() uint64 {
	if i.frozen {
		return i.granted
	}
	unread := len(i.ready)
	if i.hello {
		unread--
	}
	i.granted = max(i.granted, i.delivered-uint64(unread)+windowRecords)
	return i.granted
}

// freeze has the grant grow no more, or again, which is news.
func (i *incoming) freeze(frozen bool, now time.Time) {
	thaws := i.frozen && !frozen
	if i.frozen = frozen; thaws && i.grant() > i.told {
		i.room, i.newsAt = true, now
		signal(i.wake)
	}
}

// owe notes that records below number exist.
func (i *incoming) owe(number uint64, now time.Time) {
	i.existing = max(i.existing, number)
	if i.complete() {
		i.owedSince = time.Time{}
	} else if i.owedSince.IsZero() {
		i.owedSince = now
	}
}

// owedFor says for how long records have been missing that exist.
func (i *incoming) owedFor(now time.Time) time.Duration {
	if i.complete() {
		i.owedSince = time.Time{}
	}
	if i.owedSince.IsZero() {
		return 0
	}
	return now.Sub(i.owedSince)
}

// complete tells whether all records have come that the other side has spoken of.
func (i *incoming) complete() bool { return i.got.Low >= i.existing }

// owed is about how many bytes of records are missing that exist: as if they were as
// large as those that have come of late.
func (i *incoming) owed() int {
	if i.complete() {
		return 0
	}
	missing := int(min(i.existing-i.got.Low, windowRecords)) - len(i.early)
	return max(missing, 1) * i.size // more may have come early than was spoken of
}

// tell has the other side told soon what this one has.
func (i *incoming) tell(now time.Time) { i.newsAt = now.Add(-rand.N(i.delay/4 + 1)) }

// tellOnce has the other side told soon what this one has, unless that is to happen
// anyway.
func (i *incoming) tellOnce(now time.Time) {
	if i.newsAt.IsZero() && i.delay > 0 {
		i.tell(now)
		signal(i.wake)
	}
}

// newsIn says how long news may still be kept; negative if there is none.
func (i *incoming) newsIn(now time.Time) time.Duration {
	if i.newsAt.IsZero() || i.delay == 0 {
		return -1
	}
	return max(0, i.delay-now.Sub(i.newsAt))
}

// feed says that the body of a streamed upload is open, or, if none is left, that
// what comes is told by what it comes in.
func (i *incoming) feed(open int, delay time.Duration) {
	if i.feeds.open += open; i.feeds.open == 0 {
		i.feeds, delay = feeds{}, 0
	}
	i.delay = delay
}

// fed says that a head has come in the body of a streamed upload.
func (i *incoming) fed(head uint64, now time.Time) {
	i.feeds.newest = max(i.feeds.newest, head+1)
	i.tellOnce(now)
}

// stamp writes into a head what this half has to say, which is no news then.
func (i *incoming) stamp(h *wire.Head) {
	h.Acks, h.Ended = i.got, i.ended
	i.told = i.grant()
	h.Window, h.Told = i.told, i.feeds.newest
	i.newsAt, i.room = time.Time{}, false
}

func gapPatience(t trip) time.Duration { return max(minGap, gapRounds*t.smoothed) }

// nextTick is when tick has something to do; zero: never.
func (i *incoming) nextTick(t trip) time.Time {
	if i.gapSince.IsZero() {
		return time.Time{}
	}
	return i.gapSince.Add(gapPatience(t))
}

// tick gives up the gap if its time has come.
func (i *incoming) tick(now time.Time, t trip) {
	patience := gapPatience(t)
	switch {
	case i.gapSince.IsZero() || now.Sub(i.gapSince) < patience || len(i.got.Spans) == 0:
	case now.Sub(i.cameAt) < patience/2:
		i.got.Fill()
		i.deliver(now)
	default:
		// In an outage nothing is repaired: the wait begins anew when something
		// comes.
		i.gapSince = time.Time{}
	}
}

// drop gives back what waits to be read, and takes no more.
func (i *incoming) drop() {
	for _, b := range i.ready {
		i.giveBack(b)
	}
	for _, b := range i.early {
		i.giveBack(b)
	}
	i.dropPart()
	i.ready, i.early, i.hello = nil, nil, false
	i.held.dropSpans(&i.got)
	i.closed = true
}
