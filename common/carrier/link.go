package carrier

import (
	"math"
	"sync"
	"time"

	"turbotunnel/common/wire"
)

// A link is one side's state of a session. It owns the lock and the timer of
// its halves and wires them: what comes in a head concerns both. Client and
// Server move what it gives to what they get. It does no I/O and owns no
// goroutine.
//
//	 engine            link                    exchanges
//	put  ------> outgoing: take, wrote -----> records
//	             heads: head, opened <------> heads
//	get  <------ incoming: receive <--------- records
//
// Lock order: nothing is locked while mu is held, but the account, which is
// atomic.
type link struct {
	send, receive *wire.Key     // set before the first exchange, constant then
	held          account       // of both halves, the engine and the requests that are being answered
	engine        account       // of what the engine holds, in held
	promised      account       // of what the engine lets the other side send
	memory        *Memory       // that the session shares; nil: what is promised has no limit
	wake          chan struct{} // holds a token when there may be something new to send
	readable      chan struct{} // holds a token when ReadFrom may go on
	writable      chan struct{} // holds a token when WriteTo may go on
	closed        chan struct{} // closed when conn is; the engine is gone then
	finished      chan struct{} // closed when nothing more will be received
	strict        bool          // what the other side does not take stops what it says; constant
	onClose       func()        // called once when closed is, with mu held; nil: nothing

	mu    sync.Mutex
	out   outgoing // guarded by mu, like what follows
	in    incoming
	heads heads
	timer *time.Timer // calls tick; nil before the first use
	shut  bool        // closed is closed
	fin   bool        // finished is closed
	last  *time.Timer // closes finished; nil before finish
	end   uint64      // no record from here on will come, if last is set
}

// newLink returns a link whose memory counts in the account above, unless that is
// nil.
func newLink(above *account) *link {
	now := time.Now()
	l := &link{
		held:     account{above: above},
		wake:     make(chan struct{}, 1),
		readable: make(chan struct{}, 1),
		writable: make(chan struct{}, 1),
		closed:   make(chan struct{}),
		finished: make(chan struct{}),
		heads:    heads{start: now},
	}
	l.engine.above = &l.held
	l.out = newOutgoing(&l.held, l.wake, l.writable, now)
	l.in = newIncoming(&l.held, l.wake, l.readable)
	return l
}

// share has a link keep to what all that share m may hold. It is called before
// anything else.
func (l *link) share(m *Memory) {
	l.memory, l.out.memory = m, m
	l.held.above, l.promised.above = &m.held, &m.promised
}

// signal leaves a token in c, unless there is one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// promise counts n bytes more that the engine lets the other side send, and returns
// how many more that may be.
func (l *link) promise(n int) (left int) {
	l.promised.add(n)
	if l.memory == nil {
		return math.MaxInt
	}
	return l.memory.left()
}

// put queues a datagram if there is room.
func (l *link) put(p []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.shut && l.out.put(p)
}

// takeHello takes datagrams for the first message, at most room bytes of them.
func (l *link) takeHello(room int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.takeHello(room)
}

// A demand is what a link asks of exchanges at one moment.
type demand struct {
	due   time.Duration // until it is worth an exchange to take records; negative: there are none
	news  time.Duration // until the client has to tell what has come; negative: nothing has
	room  bool          // the other side waits to hear that its records have room again
	owed  time.Duration // for so long records have been missing that exist
	acked time.Duration // since something was acknowledged, or there was nothing to be
	trip  trip          // as measured or assumed
}

// demand is what is asked now, if exchanges share the window in lanes.
func (l *link) demand(now time.Time, in lanes) demand {
	l.mu.Lock()
	defer l.mu.Unlock()
	return demand{
		due:   l.out.dueIn(now, in),
		news:  l.in.newsIn(now),
		room:  l.in.room,
		owed:  l.in.owedFor(now),
		acked: now.Sub(l.out.silence.lastAck),
		trip:  l.heads.trip.assumed(),
	}
}

// take gives records for exchange e to carry, of at most limit bytes. The
// caller writes them and then releases each one's buffer.
func (l *link) take(e uint64, limit int, in lanes) []*sentRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.take(e, limit, time.Now(), in)
}

// isUnheard tells whether the other side receives nothing more of exchange e. A
// gateway can keep an answer open long after the client has lost it.
func (l *link) isUnheard(e uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.unheard.Has(e)
}

// setUnit says how large a record may be from now on.
func (l *link) setUnit(size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out.setUnit(size)
}

// wrote says that all of exchange e's records have been written.
func (l *link) wrote(e uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out.wrote(e, time.Now())
	l.arm()
}

// awaits tells whether what exchange e carried is still on its way, because something
// was acknowledged in the last while.
func (l *link) awaits(e uint64, while time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.awaits(e, time.Now().Add(-while))
}

// endExchange says that exchange e has ended: of what it carried, all that is
// not acknowledged is lost, which it tells, and nothing more will be received. If it
// has ended early, before its answer did, the other side hears of that soon, also if
// nothing else is to be said: what the answer carried waits for it. owed is about how many
// bytes of records are missing that exist.
func (l *link) endExchange(e uint64, early bool) (lost bool, owed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in.ended.Add(e)
	if early {
		l.in.tellOnce(time.Now())
	}
	return l.out.endExchange(e), l.in.owed()
}

// head returns a sealed head for exchange e. fields has the values that are
// the caller's affair; pad is the number of bytes of padding.
func (l *link) head(e uint64, fields wire.Head, pad int) []byte {
	b, _ := l.seal(e, fields, pad, false)
	return b
}

// promptHead returns a sealed head that leaves at once, as head does, and its number.
func (l *link) promptHead(e uint64, fields wire.Head, pad int) (head []byte, number uint64) {
	return l.seal(e, fields, pad, true)
}

// seal makes a head of fields and of what the halves have to say. prompt says that it
// leaves at once.
func (l *link) seal(e uint64, fields wire.Head, pad int, prompt bool) (head []byte, number uint64) {
	h := fields
	h.Exchange = e
	b := make([]byte, wire.HeaderSize, 256)
	l.mu.Lock()
	now := time.Now()
	l.judge(now)
	number = l.heads.stamp(&h, now)
	if !prompt {
		l.heads.waits(&h)
	}
	l.in.stamp(&h)
	l.out.stamp(&h)
	b = h.Append(b) // copies the sets, so they may change afterwards
	l.mu.Unlock()
	if pad > 0 {
		b = wire.Pad(b, pad)
	}
	return l.send.Seal(b, wire.HeadKind, number), number
}

// opened takes in a head. If it is not the newest so far, nothing but what it
// acknowledges counts. timed says that its times measure the round trip, as those do
// that echo a prompt head.
func (l *link) opened(number uint64, h *wire.Head, timed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	newest, rtt := l.heads.opened(number, h, now)
	if (timed || l.heads.prompt(h)) && rtt >= 0 {
		// Before the acknowledgements: what they let go depends on the delay that
		// they came with.
		l.out.window.took(rtt, 0)
		l.heads.trip.sample(rtt)
	}
	l.in.owe(h.Sent, now)
	if h.Kept > 0 {
		before := l.in.gapSince
		l.in.skip(h.Kept, now)
		l.delivered(before)
	}
	if newest && l.strict {
		l.out.setUnit(unitOf(h))
	}
	l.out.opened(h, newest, now)
	l.judge(now)
	if newest {
		l.out.window.found.hear(h, &l.out.window, l.heads.trip, now) // recall
	}
	l.arm()
}

// measured takes note of the round-trip time of a body of size bytes.
func (l *link) measured(rtt time.Duration, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out.window.took(rtt, size)
	l.heads.trip.sample(rtt)
}

// received takes in record n, which has come in b. The link becomes an owner of b if
// it returns true; if not, the record is a duplicate, has no room, or was copied.
func (l *link) received(n uint64, b *buffer) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.judge(now)
	before := l.in.gapSince
	owner := l.in.receive(n, b, now)
	l.delivered(before)
	return owner
}

// delivered is called after records have come or a gap between them was given up,
// either of which may bring datagrams into order. It ends the link when all were
// delivered up to the end, and sets the timer for a gap that began with this: the
// caller says with before since when there was one until then. mu is held.
func (l *link) delivered(before time.Time) {
	if l.last != nil && l.in.delivered >= l.end {
		l.endReached()
	}
	if l.in.gapSince != before && !l.in.gapSince.IsZero() {
		l.arm()
	}
}

// feed says that the body of one streamed upload more is open, or one less, and how
// late at most the client is to be told of what comes in it.
func (l *link) feed(open int, tell time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in.feed(open, tell)
}

// fed says that a head of that number has come in the body of a streamed upload.
func (l *link) fed(head uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in.fed(head, time.Now())
}

// receivedHello takes in the datagrams of the first message.
func (l *link) receivedHello(datagrams []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in.receiveHello(datagrams)
}

// has tells whether there is a datagram to get.
func (l *link) has() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _, ok := l.in.first(time.Now())
	return ok
}

// get copies the next datagram into p.
func (l *link) get(p []byte) (n int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.judge(now)
	return l.in.get(p, now)
}

// judge has the other side get no more room as long as it takes nothing: what it
// says makes the engine say something, which has to be held. A client does not do
// that: a path may let small requests through, and with them all that comes, but
// not large ones. mu is held.
func (l *link) judge(now time.Time) {
	if l.strict {
		l.in.freeze(l.out.stands(now), now)
	}
}

// complete tells whether all records have come that the other side has spoken of.
func (l *link) complete() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.in.complete()
}

// tell has the client tell soon what it has, though nothing has come.
func (l *link) tell() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in.tell(time.Now())
}

// telling says that a head is on its way which has the news.
func (l *link) telling() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in.newsAt = time.Time{}
}

// unfinished tells whether something waits to be sent or acknowledged.
func (l *link) unfinished() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.unfinished()
}

// arm sets the timer for the first moment at which tick has something to do. mu
// is held.
func (l *link) arm() {
	t := l.heads.trip.assumed()
	at := earlier(l.in.nextTick(t), l.out.nextTick(t))
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

// earlier is the earlier of two moments, of which the zero one never comes.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// tick gives up gaps and exchanges whose time has come.
func (l *link) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return
	}
	now, t, before := time.Now(), l.heads.trip.assumed(), l.in.gapSince
	l.in.tick(now, t)
	l.delivered(before)
	l.out.tick(now, t)
	l.arm()
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
	if l.in.delivered >= number {
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
	l.in.drop()
	l.engine.close()
	l.promised.close()
	signal(l.wake)
}

// repeats is longer than any engine waits, with nothing on its way, until it says again
// what the carrier has given up (maxTimeout of kcp is 5 s).
const repeats = 15 * time.Second

// pending tells whether something may not have arrived yet that the engine has said.
func (l *link) pending() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.unfinished() || time.Since(l.out.silence.lastAck) < repeats
}

// drop gives back everything that waits or is kept. The link is unusable.
func (l *link) drop() {
	l.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out.drop()
	l.held.close()
}
