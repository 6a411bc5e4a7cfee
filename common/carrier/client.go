package carrier

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/url"
	"sync"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

const (
	// maxUploads and maxDownloads bound the exchanges in flight in each
	// direction where many are possible: 16 answers of 1 MB fill 500 Mbit/s at
	// 200 ms, and engines want acknowledgements to leave at once.
	maxUploads   = 32
	maxDownloads = 16

	// maxSending bounds the uploads whose bodies are being written: what more of
	// them would do is to come to their ends, and be acknowledged, all at once
	// and late. Two keep a connection busy.
	maxSending = 2

	// maxAnswers is the size in bytes of all answers together that a client
	// asks for at once, unless they are streamed: enough to fill 200 ms at 500
	// Mbit/s with the four of HTTP/1.1, and no more in each where there are
	// many, because they reach the end of a full path together. maxAnswer is
	// what a server takes one to be of which nothing is said.
	maxAnswers = 16 << 20
	maxAnswer  = 1 << 20

	// maxStream is the size in bytes of the largest streamed answer.
	maxStream = 256 << 20

	// probeAge is how long the answer stays open that shows whether a path
	// streams.
	probeAge = 2 * time.Second

	// manyBytes in an answer say that there is more to come.
	manyBytes = 32 << 10

	// foreignAnswers in a row, from a path that was good, say that the server
	// does not know the session any more.
	foreignAnswers = 3

	// farewellTime bounds the attempt to tell the server that a session ended.
	farewellTime = 3 * time.Second

	// minBackoff is how long after a failure a path is tried again, and each time
	// after twice as long: up to maxBackoff, because an outage may end any moment, or,
	// when it has failed for lateAfter, up to lateBackoff.
	minBackoff  = 100 * time.Millisecond
	maxBackoff  = 700 * time.Millisecond
	lateBackoff = 10 * time.Second
	lateAfter   = time.Minute
)

// ClientConfig says how a Client reaches its server.
type ClientConfig struct {
	Transport Transport
	URL       *url.URL // of the server; requests go to paths below its path
	Key       handshake.PublicKey
	Engine    string // the engine's name, told to the server
	Mode      Mode
	Path      *Path        // shared with other sessions; nil: the session's own
	Memory    *Memory      // the same
	Log       *slog.Logger // nil: nothing is logged
}

// A Client is the client's side of one session. Safe for concurrent use.
//
// One goroutine, run, makes plans (plan.go) from what its detectors have learned
// (detect.go) and starts exchanges (exchange.go), each in a goroutine of its own,
// whose end comes back as a result.
type Client struct {
	cfg    ClientConfig // constant, like what follows up to cancel
	log    *slog.Logger
	blur   *blur
	link   *link
	conn   *Conn
	ctx    context.Context
	cancel context.CancelFunc

	milestones
	attempts attempts
	hurry    *time.Timer // ends the session; set when the link is closed
	results  chan *result
	wg       sync.WaitGroup // exchanges

	// Owned by run.
	last      situation // that a plan was made from; zero before the first
	target    string    // URL of the session's requests; constant once the server has answered
	flights   flights   // exchanges under way
	exchanges uint64    // number of the next
	spoke     time.Time // when records were sent last
	combined  time.Time // when a combined exchange was started last, or somewhat before
	carrying  carrying
	receiving receiving
	serial    serial
	up, down  bodies
	polling   polling
	feeding   feeding
}

// NewClient starts a session. It does not wait for the server.
func NewClient(cfg ClientConfig) *Client {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Path == nil {
		cfg.Path = new(Path)
	}
	if cfg.Memory == nil {
		cfg.Memory = NewMemory(0)
	}
	l := newLink(nil)
	l.share(cfg.Memory)
	binding := make([]byte, handshake.BindingSize)
	rand.Read(binding) // never fails (crypto/rand)
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		cfg:       cfg,
		log:       log,
		blur:      newBlur(),
		link:      l,
		conn:      newConn(l, "server", binding),
		ctx:       ctx,
		cancel:    cancel,
		results:   make(chan *result, maxUploads+maxDownloads), // so that few wait for run
		exchanges: 1,                                           // 0 is the handshake
		flights:   make(flights),
		receiving: receiving{mode: cfg.Mode, streams: cfg.Mode == Stream},
	}
	c.feeding.nudge = make(chan struct{}, 1)
	for _, g := range []*gate{&c.ready, &c.ending, &c.done} {
		g.c = make(chan struct{})
	}
	l.onClose = func() { c.hurry = time.AfterFunc(farewellTime, cancel) }
	go c.run()
	return c
}

// Conn is the engine's pipe. Closing it ends the session after what was
// written has been sent, or farewellTime.
func (c *Client) Conn() *Conn { return c.conn }

// Pending tells whether something may not have arrived yet that the engine has said, or
// may say again.
func (c *Client) Pending() bool { return c.link.pending() }

// Close ends the session without telling the server more than Conn.Close has
// begun to, and returns when nothing of it is left.
func (c *Client) Close() {
	c.link.close()
	c.cancel()
	<-c.Done()
}

// run is the goroutine of the session, from its first message to its end.
func (c *Client) run() {
	defer c.done.open()
	err := c.handshake()
	if err == nil {
		err = c.carry()
	}
	c.end(err)
	c.cancel()
	c.link.drop()
	c.hurry.Stop() // drop has closed the link
	c.wg.Wait()
}

// pause waits d, and tells whether neither channel was closed meanwhile.
func pause(d time.Duration, stop, orStop <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
		return false
	case <-orStop:
		return false
	}
}

// backoff is how long to wait after n failures in a row, the first of them
// age ago.
func backoff(n int, age time.Duration) time.Duration {
	most := maxBackoff
	if age > lateAfter {
		most = lateBackoff
	}
	d := min(minBackoff<<min(max(n-1, 0), 10), most)
	return d/2 + mathrand.N(d/2+1)
}

// carry makes exchanges until the session ends.
func (c *Client) carry() error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	c.receiving.begin(c.way())
	c.feeding.begin(c.way())
	c.up.limit, c.down.limit = c.way().up.known(MaxBody), c.way().down.known(largestBody)
	var closed time.Time // when the server said that it has ended the session
	for {
		wait := c.launch(time.Now())
		if !closed.IsZero() {
			wait = min(wait, farewellTime)
		}
		timer.Reset(wait)
		wake := c.link.wake
		if c.feeding.leads {
			wake = nil
		}
		select {
		case <-c.ctx.Done():
			return nil
		case <-c.link.closed:
			c.sayFarewell()
			return nil
		case <-wake:
		case <-c.feeding.nudge:
		case <-timer.C:
		case res := <-c.results:
			c.observe(res)
			if res.closed && closed.IsZero() {
				closed = time.Now()
			}
		}
		if !closed.IsZero() && (c.link.complete() || time.Since(closed) > farewellTime) {
			return c.endedByServer()
		}
		if idle, err := c.carrying.muted(time.Now()); err != nil {
			c.log.Warn("nothing comes through to the server, large or small", "for", idle.Round(time.Second), "err", err)
		}
		if idle, err := c.carrying.lost(time.Now()); err != nil {
			return fmt.Errorf("%w: nothing came through for %v: %w", ErrLost, idle.Round(time.Second), err)
		}
	}
}

// endedByServer lets the engine read what the server has said before it has
// ended the session, and returns the session's error.
func (c *Client) endedByServer() error {
	lost := fmt.Errorf("%w: ended by the server", ErrLost)
	c.end(lost)
	c.link.finish(0)
	select { // the engine reads the rest and closes
	case <-c.link.closed:
	case <-c.ctx.Done():
	case <-time.After(farewellTime):
		c.link.close()
	}
	c.sayFarewell() // so that the server need not remember the session
	return lost
}

// way is what is known of the way that exchanges take now.
func (c *Client) way() *way { return c.cfg.Path.way(c.cfg.Transport.Name()) }

// launch does what is to be done now and says how long to wait before it is
// called again, unless something happens.
func (c *Client) launch(now time.Time) time.Duration {
	c.say(c.feeding.heardOf(now, c.way()))
	for {
		s := c.situation(now)
		if s.feed.heard {
			c.serial.parallel(now.Add(-s.feed.told), c.way())
		}
		p := decide(&s)
		c.last = s
		c.act(&p, now)
		if !p.starts() {
			return p.again
		}
	}
}

// situation is what is known now.
func (c *Client) situation(now time.Time) situation {
	way, t := c.way(), c.cfg.Transport
	s := situation{
		rest:     c.carrying.next(now, t.Rest()),
		failing:  c.carrying.failing(),
		hopeless: c.serial.hopeless(now, way),
		serial:   way.oneAtATime(now),
		streams:  c.receiving.streams,
		probing:  c.cfg.Mode != Poll,
		probeIn:  way.streams.probeIn(now),
		polls:    c.polling.next(),
		silent:   now.Sub(c.spoke),
		combined: now.Sub(c.combined),
		flights:  make([]glance, 0, len(c.flights)),
	}
	if c.down.open {
		s.polls = min(s.polls, livelyPolls) // each turn waits for those that were asked for before
	}
	s.slots, s.crowded = t.Slots()
	s.suspended, s.suspendedFor = c.serial.next(now)
	s.answered, s.moved = now.Sub(c.serial.answered), now.Sub(c.serial.moved)
	s.feed = c.feeding.glance(now, c.cfg.Mode != Poll && t.Feeds() && c.up.next(&way.up) >= MaxBody, way)
	if b := c.feeding.current.Load(); b != nil {
		if spoke := b.spoke.Load(); spoke > 0 {
			s.silent = min(s.silent, now.Sub(b.flight.started)-time.Duration(spoke))
		}
	}
	for _, f := range c.flights {
		s.flights = append(s.flights, f.glance(now))
	}
	s.demand = c.link.demand(now, s.lanes())
	s.moved = min(s.moved, s.acked)
	if s.due < 0 {
		s.due = s.news
	}
	return s
}

// act does what a plan says.
func (c *Client) act(p *plan, now time.Time) {
	if p.heldBack != "" {
		c.say(c.receiving.heldBack(now, p.heldBack, c.way()))
	}
	if p.swallow {
		c.flights.cancelSwallowed(swallowed * c.last.late())
	}
	if p.silent {
		c.flights.cancelSilent()
	}
	if p.suspend {
		c.serial.suspend(now, c.last.failing)
	}
	if p.resume {
		c.serial.resume()
	}
	c.actFeed(p, now)
	c.polling.settle(p.polls)
	if p.cancelHeld {
		c.flights.cancelHeld(now)
	}
	for k := range kinds {
		if p.cancel[k] {
			c.flights.cancel(k)
		}
		for range p.start[k] {
			c.start(k, p.little)
		}
	}
}

// actFeed does what a plan says of feeds.
func (c *Client) actFeed(p *plan, now time.Time) {
	b := c.feeding.open()
	c.feeding.leads = p.leads && b != nil
	if b == nil {
		return
	}
	b.take(p.feeds)
	if p.leads {
		signal(b.told) // run may have taken a token of wake until now that was meant for it
	}
	b.unit.Store(int64(unitField(c.down.unit(&c.way().down))))
	if p.feeds {
		c.link.setUnit(c.up.unit(&c.way().up))
		if now.Sub(c.feeding.learned) > feedLearned { // others need not wait for the end of the feed
			c.feeding.learned = now
			c.cfg.Path.paces.learn(c.cfg.Transport.Name(), c.link, feed, false) // recall
		}
	}
	switch {
	case p.feedBack != "":
		c.say(c.feeding.heldBack(now, p.feedBack, c.way()))
		b.flight.cancel(errUnneeded)
	case p.endFeed:
		b.end()
	}
}

// unitField is a size of units as a head asks for it.
func unitField(size int) int {
	if size == wire.MaxUnit {
		return 0
	}
	return size
}

// say logs what a detector reports, if it reports anything.
func (c *Client) say(report string) {
	if report != "" {
		c.log.Info(report)
	}
}

// newFlight prepares an exchange.
func (c *Client) newFlight(number uint64, k kind) *flight {
	f := &flight{number: number, kind: k, started: time.Now()}
	f.ctx, f.cancel = context.WithCancelCause(c.ctx)
	return f
}

// start makes an exchange in a goroutine of its own, which run waits for.
func (c *Client) start(k kind, little bool) {
	c.link.telling()
	f := c.newFlight(c.exchanges, k)
	c.exchanges++
	hold, quiet, age := c.way().lengths()
	_, downloads := room(c.last.slots, 0)
	way := c.way()
	most := c.down.next(&way.down)
	f.asked.Limit, f.asked.Unit = bodyBelow(min(maxAnswers/downloads, most)), unitField(c.down.unit(&way.down))
	if f.most = c.up.next(&way.up); little {
		f.most = smallBody
	}
	c.link.setUnit(c.up.unit(&way.up))
	switch k {
	case upload:
		if c.down.failed > 0 {
			f.asked.Limit = smallBody // if it is refused it is not for its answer
		}
	case poll:
		if f.asked.Hold = hold; c.down.doubtful(&way.down) {
			f.asked.Hold = 0 // it has no room for a large record, and shows what it shows at once
		}
	case stream:
		f.asked.Stream, f.asked.Quiet = age, quiet
		if f.asked.Limit = bodyBelow(maxStream); c.down.limited(&way.down) {
			f.asked.Limit = bodyBelow(most)
		}
		if !c.receiving.streams {
			// No room for records: they would come late if the path holds back.
			f.probe, f.asked.Stream, f.asked.Limit = true, below(probeAge, probeAge/4), minBody/2
			if f.asked.Unit > 0 {
				f.asked.Limit = f.asked.Unit / 2
			}
		}
	case combined:
		c.combined = f.started.Add(-mathrand.N(crowdPause / 4)) // no period
		if f.started.Sub(c.spoke) < lively {
			f.asked.Hold = below(combinedHold, combinedHold/4)
		} else if !c.last.crowded {
			f.asked.Hold = hold
		}
	case feed:
		limit, age := way.feedBounds()
		f.asked.Limit, f.asked.Tell = smallBody, tellWithin(c.last.trip)
		f.probe = !c.feeding.passes
		f.feed = c.newFeed(f, limit, age)
		f.feed.unit.Store(int64(f.asked.Unit))
		c.feeding.current.Store(f.feed)
	case farewell:
		f.asked.Close = wire.CloseDone
	}
	if k == upload || k == combined || k == farewell {
		f.records = c.link.take(f.number, roomFor(bodyBelow(f.most), c.up.unit(&way.up)), c.last.lanes())
		f.size = sizeOf(f.records)
		if len(f.records) > 0 {
			c.spoke = f.started
		}
	}
	f.alone = len(c.flights) == 0
	c.flights[f.number] = f
	c.wg.Go(func() { c.exchange(f) })
}

// observe learns from how an exchange ended.
func (c *Client) observe(res *result) {
	f, now, way := res.flight, time.Now(), c.way()
	slots, _ := c.cfg.Transport.Slots()
	most, _ := room(slots, c.flights.count(poll)+c.flights.count(stream))
	uploads := c.flights.count(upload)
	delete(c.flights, f.number)
	res.beside = res.good && c.flights.holdBeside(f, c.last.trip.smoothed)
	c.cfg.Path.paces.learn(c.cfg.Transport.Name(), c.link, f.kind, res.good && c.carrying.failing()) // recall
	c.say(c.serial.observe(now, res, way))
	c.say(c.feeding.observe(now, res, c.last.late(), way))
	if f.kind == feed && !res.good {
		return // it is not the way to send, which says nothing of others
	}
	shaken, back := c.carrying.observe(now, res)
	if shaken {
		c.log.Info("an exchange failed", "err", res.err)
	}
	if back > 0 {
		c.log.Info("carrying again", "after", back.Round(time.Millisecond))
		way.streams.soon(now)
		way.feeds.soon(now)
	}
	c.doubts(c.carrying.forgotten())
	end, report := c.receiving.observe(now, res, way)
	if c.say(report); end {
		c.flights.cancel(stream) // what the server says on them would come when they end
	}
	c.polling.observe(res)
	if !c.carrying.failing() {
		way.observe(now, res) // what ends where nothing comes through was not cut for its silence
	}
	if s, shows := res.request(c.up.limit); shows {
		s.full = s.full && (c.up.limit < MaxBody || uploads >= most)
		if c.up.observe(now, f.started, s, &way.up) {
			c.log.Info("the path refuses large requests: sending smaller ones", "bytes", c.up.limit)
		}
	}
	if s, shows := res.answer(now); shows && c.down.observe(now, f.started, s, &way.down) {
		c.log.Info("the path refuses large answers: asking for smaller ones", "bytes", c.down.limit)
	}
}

// sayFarewell sends what the engine has left behind and tells the server that
// the session has ended, as far as farewellTime allows.
func (c *Client) sayFarewell() {
	ctx, cancel := context.WithTimeout(c.ctx, farewellTime)
	defer cancel()
	if b := c.feeding.open(); b != nil {
		b.end()
	}
	c.start(farewell, false)
	said := false
	for {
		select {
		case res := <-c.results:
			delete(c.flights, res.flight.number)
			if res.flight.kind == farewell {
				said = said || res.err == nil
				if res.foreign || res.err != nil && !pause(minBackoff, ctx.Done(), nil) {
					return
				}
			}
			if said && !c.link.unfinished() {
				return
			}
			if c.flights.carry() {
				continue
			}
			if said && c.link.demand(time.Now(), c.last.lanes()).due < 0 {
				return // the server has no room for the rest
			}
			c.start(farewell, false)
		case <-ctx.Done():
			return
		}
	}
}
