package carrier

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/common/wire"
)

// Feeds are uploads whose body stays open: a request without a length, whose body is
// a head and then records, and more heads, written as there is something to say. The
// server tells of what has come in heads of the other direction's streamed answer.
// So one request carries what else takes one every few milliseconds. There is one at
// a time, and the next begins when its body ends.

const (
	// defaultFeed is how long the body of a feed stays open at most, unless the path
	// has ended some sooner: gateways allow a request less time than an answer.
	defaultFeed = 30 * time.Second

	// feedIdle is how long it stays open with nothing to say, a quarter less at least:
	// a session that has become idle shall look like one that was idle always. On a
	// long way it is as long as it takes until the server should have told of it: then
	// it is seen whether it has.
	feedIdle = 3 * time.Second

	// maxFeed is the size in bytes of the largest body of a feed. Cloudflare takes
	// 100 MB. The first is as large as any upload (MaxBody), and each that was full and
	// has passed allows one of twice the size.
	maxFeed = 64 << 20

	// minFeed is the size of the largest that is worth its request where the path
	// refuses larger ones.
	minFeed = 64 << 10

	// feedsShare of the exchanges that uploads may be, one in so many, may be feeds:
	// where their answers are late, single uploads go on beside those that wait for
	// them.
	feedsShare = 2

	// feedTake is how many bytes of records a feed takes at once: little waits in it
	// if it stands still.
	feedTake = 4 * wire.MaxUnit

	// feedPause is the least time between two heads of a feed. Beside records there
	// is one after feedHead, so that the round trip is measured and it is noticed that
	// a feed is held back.
	feedPause = 8 * time.Millisecond
	feedHead  = 20 * time.Millisecond

	// tellShare of the round trip, at least tellSoon and at most tellLate, is how long
	// the server may keep the news of what has come in a feed. Each costs it a write,
	// and the client a wake-up; a client keeps its own as long (ackDelay). With a
	// sixteenth an upload with 100 ms and 100 Mbit/s takes 22 s of the processors for a
	// gigabyte, and so 16 to 21.
	tellShare = 4
	tellSoon  = 2 * time.Millisecond
	tellLate  = 20 * time.Millisecond

	// stuckShare of the round trip and stuck is how long a feed may be at writing what
	// it has until it counts as stuck: what is in front of it has windows that are
	// small for the path, and single uploads go beside it.
	stuckShare = 2
	stuck      = 10 * time.Millisecond

	// feedLearned is how often at most other sessions are told what the path carries
	// while a feed is open.
	feedLearned = time.Second

	// feedCuts in a row show that the path does not let bodies of that size, or so
	// open, pass.
	feedCuts = 2
)

// tellWithin is how long the server may keep news on a path.
func tellWithin(t trip) time.Duration {
	return min(max(t.smoothed/tellShare, tellSoon), tellLate)
}

// A feedBody is the body of a feed. Client.run owns it; whoever makes the exchange
// reads it.
type feedBody struct {
	flight *flight // constant, like what follows up to closed
	link   *link
	blur   *blur
	limit  int             // bytes
	until  time.Time       // then it ends
	idle   time.Duration   // if so long there was nothing to say, too
	nudge  chan<- struct{} // gets a token when run should make a plan
	moved  func()          // called when bytes were read
	told   chan struct{}   // holds a token when run has said something else by takes or over
	closed chan struct{}   // closed by Close
	once   sync.Once       // Close

	takes atomic.Bool  // it carries what is due; else it says nothing but its first head
	unit  atomic.Int64 // as heads have it
	over  atomic.Bool  // it ends
	full  atomic.Bool  // it has ended for its size
	sent  atomic.Int64 // bytes so far
	busy  atomic.Int64 // when it was read last, as time since the flight started; 0: it waits for something to say
	spoke atomic.Int64 // when it had records last, likewise; 0: it had none
	heard hearing

	mu     sync.Mutex
	timer  *time.Timer // of a wait; nil before the first; guarded by mu, like what follows
	units  units       // what is ready to be read
	saidAt time.Time   // when it had a head last
	hadAt  time.Time   // when it had anything last
}

// newFeed returns the body of a feed that carries records from the beginning, or, if
// it is a probe, not before it is told to.
func (c *Client) newFeed(f *flight, limit int, age time.Duration) *feedBody {
	b := &feedBody{
		flight: f,
		link:   c.link,
		blur:   c.blur,
		limit:  below(limit, limit/8),
		until:  f.started.Add(age),
		idle:   max(below(feedIdle, feedIdle/4), c.last.late()),
		nudge:  c.feeding.nudge,
		told:   make(chan struct{}, 1),
		closed: make(chan struct{}),
	}
	b.takes.Store(!f.probe)
	return b
}

// take says whether it carries what is due.
func (b *feedBody) take(takes bool) {
	if b.takes.Swap(takes) != takes {
		signal(b.told)
	}
}

// end ends it when all it has was read.
func (b *feedBody) end() {
	b.over.Store(true)
	signal(b.told)
}

// Read returns what there is to say, and waits until there is something. io.EOF is
// the end for one of the reasons that the feed has.
func (b *feedBody) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.busy.Store(0)
	if isClosed(b.closed) {
		return 0, http.ErrBodyReadAfterClose
	}
	if b.units.empty() && !b.await() {
		b.moved()
		b.flight.mark(&b.flight.sent)
		signal(b.nudge)
		return 0, io.EOF
	}
	n = b.units.read(p, b.link.send)
	if b.units.empty() {
		b.link.wrote(b.flight.number)
	}
	b.sent.Add(int64(n))
	b.moved()
	b.flight.mark(&b.busy)
	return n, nil
}

// await waits for something to say, and makes it ready. It returns false at the end.
// mu is held.
func (b *feedBody) await() bool {
	for {
		now := time.Now()
		if b.saidAt.IsZero() {
			b.say(now, nil, true)
			return true
		}
		left := min(b.until.Sub(now), b.hadAt.Add(b.idle).Sub(now))
		room := b.limit - int(b.sent.Load())
		if room < minBody {
			b.full.Store(true)
			return false
		}
		if left <= 0 || b.over.Load() || isClosed(b.closed) {
			return false
		}
		var wake <-chan struct{}
		if b.takes.Load() {
			d := b.link.demand(now, lanes{})
			news := d.news
			if pause := b.saidAt.Add(feedPause).Sub(now); news >= 0 && pause > news {
				news = pause
			}
			var records []*sentRecord
			if d.due == 0 {
				records = b.link.take(b.flight.number, min(feedTake, room-headRoom), lanes{})
			}
			if len(records) > 0 || news == 0 {
				b.say(now, records, news == 0)
				return true
			}
			if d.due == 0 {
				if b.link.isUnheard(b.flight.number) {
					return false
				}
				continue // what was lost has come
			}
			for _, in := range [...]time.Duration{d.due, news} {
				if in > 0 {
					left = min(left, in)
				}
			}
			wake = b.link.wake
		}
		b.sleep(left, wake)
	}
}

// sleep waits for a while, or until something may be due.
func (b *feedBody) sleep(d time.Duration, wake <-chan struct{}) {
	if b.timer == nil {
		b.timer = time.NewTimer(d)
	} else {
		b.timer.Reset(d)
	}
	select {
	case <-wake:
		if !b.takes.Load() {
			signal(b.link.wake) // for run
		}
	case <-b.told:
	case <-b.closed:
	case <-b.timer.C:
	}
}

// say makes records ready to be read, and before them a head: if there is news, if
// padding shall hide how small they are, or if the last one was long ago.
func (b *feedBody) say(now time.Time, records []*sentRecord, news bool) {
	size, since := sizeOf(records), now.Sub(b.saidAt)
	pad := 0
	small := size <= maxPadded && since >= feedPause
	if small || size > maxPadded {
		pad = b.blur.pad(size) // none for what is large, but that earns it
	}
	if news || small || since >= feedHead {
		asked := wire.Head{Unit: int(b.unit.Load())}
		if b.saidAt.IsZero() {
			asked = b.flight.asked
		}
		head, number := b.link.promptHead(b.flight.number, asked, pad)
		b.units.part = head
		b.saidAt = now
		b.heard.said(number, b.sent.Load(), now)
	}
	if b.units.records = records; len(records) > 0 {
		b.flight.mark(&b.spoke)
	}
	b.hadAt = now
}

// Close ends a Read that waits, and gives back what was not read.
func (b *feedBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer != nil {
		b.timer.Stop()
	}
	b.units.drop()
	return nil
}

// A saying is a head of a feed.
type saying struct {
	number uint64    // of the head, plus one; 0: none
	at     time.Time // when it was said
	before int64     // bytes that the feed had before
}

// hearing is which heads of a feed the server has told of. The zero value has none.
// Safe for concurrent use.
type hearing struct {
	mu     sync.Mutex
	first  uint64    // number of the first head, plus one; 0: there was none; guarded by mu, like what follows
	oldest saying    // one of which the server has not told: the first, or the newest that there was when it told of the one before
	newest saying    // of all
	toldAt time.Time // when the server has told of one last; zero: never
	bytes  int64     // bytes of which the server's telling shows that they have come
}

// said is told that a head has been said, after so many bytes.
func (h *hearing) said(number uint64, before int64, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.newest = saying{number + 1, now, before}
	if h.first == 0 {
		h.first = h.newest.number
	}
	if h.oldest.number == 0 {
		h.oldest = h.newest
	}
}

// told is told what the server has told, and returns whether that is news of a kind:
// the first of this feed, or that a large body passes.
func (h *hearing) told(number uint64, now time.Time) (news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.first == 0 || number < h.first {
		return false
	}
	news = h.toldAt.IsZero()
	h.toldAt = now
	for h.oldest.number > 0 && number >= h.oldest.number {
		news = news || h.bytes < minBody && h.oldest.before >= minBody
		h.bytes = h.oldest.before
		if h.oldest.number == h.newest.number {
			h.oldest = saying{}
		} else {
			h.oldest = h.newest
		}
	}
	return news
}

// large tells whether a large body has passed.
func (h *hearing) large() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.bytes >= minBody
}

// waits is for how long the server has not told of a head, since when it has told of
// none, and whether it ever has.
func (h *hearing) waits(now time.Time) (waits, told time.Duration, ever bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.oldest.number > 0 {
		waits = max(1, now.Sub(h.oldest.at))
	}
	return waits, now.Sub(h.toldAt), !h.toldAt.IsZero()
}

// feeding is what a client has found of feeds, and the one whose body is open.
//
//	                 the server tells of a feed whose body is open
//	single uploads -------------------------------------------------> feeds
//	and a probe now and then, each time                                 |
//	after twice as long                                                 |
//	      ^                                                             |
//	      +-------------------------------------------------------------+
//	        the server tells nothing while single uploads are answered; or
//	        the path refuses it, or cuts each
type feeding struct {
	current atomic.Pointer[feedBody] // the newest; nil: none. What follows is run's
	nudge   chan struct{}            // holds a token when run should make a plan
	passes  bool                     // see the drawing
	leads   bool                     // the current one takes what is due: run need not wake for that
	cuts    int                      // that were cut in a row
	learned time.Time                // when others were told last what the path carries
}

// begin takes in what other sessions have found.
func (c *feeding) begin(w *way) {
	c.passes = w.feeds.has()
}

// observe learns from how an exchange ended, and reports what is new of the path. A
// feed whose body has been open for a while should have been told of when late has
// passed since it began.
func (c *feeding) observe(now time.Time, res *result, late time.Duration, w *way) (report string) {
	f := res.flight
	if f.kind != feed {
		return ""
	}
	size, begun, sent := int(res.size), time.Duration(f.begun.Load()), time.Duration(f.sent.Load())
	_, _, heard := f.feed.heard.waits(now)
	var foreign *errForeign
	switch {
	case errors.Is(res.err, errUnneeded): // something else has been learned of it, or the session ends
	case res.err == nil && f.probe && !c.passes, res.err == nil && !heard && sent-begun > slack && now.Sub(f.started)-begun > late:
		return c.heldBack(now, "requests come when they are complete", w)
	case res.err == nil && !res.lost:
		c.cuts = 0
		w.up.passed(min(size, minBody))
		w.fed(now, size, f.feed.full.Load())
	case res.tooLarge && w.feedRefused(now, size):
	case !c.passes, res.tooLarge, errors.As(res.err, &foreign) && foreign.status < 500:
		return c.heldBack(now, "a request that was written bit by bit failed", w)
	default:
		if w.feedCut(now.Sub(f.started)) {
			c.cuts = 0 // the next one ends before that
			break
		}
		if c.cuts++; c.cuts < feedCuts {
			break
		}
		if c.cuts = 0; size < 2*minFeed || !w.feedRefused(now, size) {
			return c.heldBack(now, "requests that are written bit by bit are cut", w)
		}
	}
	return ""
}

// heardOf notes that the server has told of the current feed, if that is news, and
// reports it.
func (c *feeding) heardOf(now time.Time, w *way) (report string) {
	b := c.open()
	if b == nil {
		return ""
	}
	if b.heard.large() {
		w.up.passed(minBody)
	}
	if _, _, heard := b.heard.waits(now); !heard || c.passes {
		return ""
	}
	c.passes = true
	if w.feeds.saw(now, true) {
		report = "sending by streamed uploads: requests come as they are written"
	}
	return report
}

// heldBack notes that feeds do not come as they are written.
func (c *feeding) heldBack(now time.Time, why string, w *way) (report string) {
	if w.feeds.saw(now, false) && c.passes {
		report = "sending by single uploads: " + why
	}
	c.passes, c.cuts = false, 0
	return report
}

// open returns the feed whose body is open, or nil.
func (c *feeding) open() *feedBody {
	if b := c.current.Load(); b != nil && b.flight.sent.Load() == 0 && b.flight.ctx.Err() == nil {
		return b
	}
	return nil
}

// told is told what a head of the server's says of feeds.
func (c *feeding) told(h *wire.Head) {
	b := c.current.Load()
	if h.Told == 0 || b == nil || !b.heard.told(h.Told, time.Now()) {
		return
	}
	b.flight.mark(&b.flight.first)
	signal(c.nudge)
}

// A feedGlance is what a plan knows of feeds.
type feedGlance struct {
	may     bool          // they look like what a browser does
	passes  bool          // the path lets them through as they are written
	probeIn time.Duration // when whether it does is worth a probe
	open    bool          // the body of one is open
	heard   bool          // the server has told of it
	busy    time.Duration // for so long it has been writing what it has; 0: it waits for something to say
	waits   time.Duration // for so long the server has not told of something that it has said; 0: of nothing
	told    time.Duration // since the server told something of it, if it was heard
}

// glance is how feeds look now.
func (c *feeding) glance(now time.Time, may bool, w *way) feedGlance {
	g := feedGlance{may: may, passes: c.passes, probeIn: w.feeds.probeIn(now)}
	b := c.open()
	if b == nil {
		return g
	}
	g.open = true
	if busy := time.Duration(b.busy.Load()); busy > 0 {
		g.busy = max(1, now.Sub(b.flight.started)-busy)
	}
	g.waits, g.told, g.heard = b.heard.waits(now)
	if b.flight.begun.Load() == 0 {
		g.waits = max(1, now.Sub(b.flight.started)) // for a connection
	}
	return g
}
