package carrier

import "time"

const (
	// overlap is the share of a stream's age, and of its size, after which the next
	// one is asked for, so that one is always open.
	overlap = 0.9

	// slack is what an answer may take beyond some round trips before it means
	// something.
	slack = 500 * time.Millisecond

	// combinedHold is how long the server may wait for something to say, on a
	// path that lets one exchange through at a time, while there is a
	// conversation: what the client wants to say waits meanwhile.
	combinedHold = 50 * time.Millisecond

	// swallowed is how many times as late as it may be an answer is that is not
	// waited for any more, if smaller requests are answered.
	swallowed = 2

	// slowest is the rate in bytes a second of the slowest path on which a large body
	// that is under way alone has the time that it takes before it counts as swallowed.
	// One of which smaller ones are answered meanwhile has less: gaps are given up soon.
	slowest = 32 << 10

	// crowdPause is how long a session that has nothing to say keeps out of the
	// way where sessions share too few exchanges.
	crowdPause = 2 * time.Second

	// lively is how long after something was said livelyPolls wait at the
	// server: one for the engine's acknowledgement, one for the reply.
	lively      = 5 * time.Second
	livelyPolls = 2

	// longest is how long a client waits at most before it plans anew.
	longest = 30 * time.Second
)

// A glance is an exchange under way as it is seen at one moment.
type glance struct {
	kind   kind
	probe  bool          // see flight
	size   int           // bytes of its records
	hold   time.Duration // as asked
	stream time.Duration // likewise
	ending bool          // it is about to end for its size
	age    time.Duration // since it was started

	// The age at which something was seen, or 0: not yet. See flight.
	begun, sent, first, heard time.Duration
}

// since is how long ago something was seen at an age, or how long ago the
// exchange was started.
func (g *glance) since(age time.Duration) time.Duration { return g.age - age }

// held tells whether the server waits for something to say on the exchange, and
// nothing of its answer has come. One whose answer is arriving is not held.
func (g *glance) held() bool {
	waits := g.kind == poll || g.kind == stream || g.kind == combined && g.hold > combinedHold
	return waits && g.sent > 0 && g.first == 0
}

// A situation is all that a plan is made from.
type situation struct {
	flights []glance // under way, in no order

	// What the Transport allows.
	slots   int
	crowded bool

	// What the detectors have found of the path.
	rest         time.Duration // until something may be started
	failing      bool          // it does not carry
	hopeless     bool          // uploads have failed for long
	serial       bool          // it lets one exchange through at a time
	suspended    bool          // answers were ended to see whether it does
	suspendedFor time.Duration
	streams      bool          // it delivers answers as they are written
	probing      bool          // whether it does is worth a probe
	probeIn      time.Duration // when it is
	polls        int           // answers that it is worth to wait for in silence; see polling
	answered     time.Duration // since the upload was started that was answered last
	moved        time.Duration // since an upload was answered, or something that one carried acknowledged
	feed         feedGlance

	// What there is to say and to hear.
	demand                 // of which due counts the news, too
	silent   time.Duration // since records were sent
	combined time.Duration // since a combined exchange was started
}

// late is the age at which an answer that was to come at once is late.
func (s *situation) late() time.Duration { return 2*s.trip.smoothed + 4*s.trip.variation + slack }

// count is how many exchanges of a kind are under way.
func (s *situation) count(k kind) (n int) {
	for i := range s.flights {
		if s.flights[i].kind == k {
			n++
		}
	}
	return n
}

// sending is how many uploads have yet to hand their last byte to a connection.
// One that takes long may be on a connection that is dead, and does not count.
func (s *situation) sending() (n int) {
	for i := range s.flights {
		if f := &s.flights[i]; f.kind == upload && f.sent == 0 && f.age < 2*s.trip.smoothed+slack {
			n++
		}
	}
	return n
}

// room says how many exchanges may be under way in each direction. A third of
// all is kept for uploads, which may also have all but one of those that no
// download uses, as over HTTP/1.1, where there are few.
func room(slots, downloading int) (uploads, downloads int) {
	if slots < 2 {
		return 1, 1
	}
	third := max(1, slots/3)
	return min(maxUploads, max(third, slots-1-downloading)), min(maxDownloads, slots-third)
}

// lanes says what an exchange that carries records is worth.
func (s *situation) lanes() lanes {
	if s.crowded || s.serial {
		return lanes{} // one exchange carries all there is
	}
	uploads, _ := room(s.slots, s.count(poll)+s.count(stream))
	return lanes{slots: uploads}
}

// A plan is what a client does in a situation.
type plan struct {
	start      [kinds]int    // exchanges, by kind
	little     bool          // an upload that is started is to be small
	cancel     [kinds]bool   // exchanges under way, by kind
	cancelHeld bool          // those that are held, whatever their kind
	feeds      bool          // the feed that is open takes what is due
	leads      bool          // and nothing else does
	endFeed    bool          // it is to end
	polls      int           // so many are wanted to be under way; 0: polls are not the way to receive now
	again      time.Duration // when to plan anew, if nothing happens before

	// What the exchanges under way show of the path.
	heldBack string // why answers do not come as they are written; empty: it does not show
	feedBack string // why feeds do not; empty: it does not show
	swallow  bool   // large uploads are not answered while smaller ones are
	silent   bool   // the large exchange that is under way alone is not answered
	suspend  bool   // uploads may wait for the answers that are open, or fail because of them
	resume   bool   // they do not
}

// starts tells whether the plan starts anything. Then it is not all: what is
// started changes what is due.
func (p *plan) starts() bool { return p.start != [kinds]int{} }

// within has the next plan made after a time, or before.
func (p *plan) within(d time.Duration) { p.again = min(p.again, max(d, time.Millisecond)) }

// waitDue has the next plan made when something is due.
func (p *plan) waitDue(s *situation) {
	if s.due > 0 {
		p.again = min(p.again, s.due)
	}
}

// decide makes a plan. It is a pure function: what it knows is s, and it starts
// one upload at a time, after which there is another plan.
func decide(s *situation) (p plan) {
	p.again = longest
	switch {
	case s.rest > 0:
		p.again = s.rest
	case s.failing:
		s.tryPath(&p)
	case s.serial || s.crowded:
		s.combine(&p)
	default:
		if s.say(&p); p.starts() {
			return p
		}
		s.judgeStreams(&p)
		if !s.judgeSizes(&p) {
			s.judgeUploads(&p)
		}
		s.hear(&p)
	}
	return p
}

// tryPath asks a path that fails, by one exchange that is answered at once, whether
// it is back. Where it has failed for long the answers that are open may be why:
// they are ended, and the next one is asked when the path has had time to notice.
func (s *situation) tryPath(p *plan) {
	switch {
	case s.count(upload) > 0:
		s.judgeSizes(p) // it may be its size that is not answered
	case s.hopeless && !s.suspended && len(s.flights) > 0:
		p.suspendAll()
		p.within(minBackoff)
	case s.suspended && s.suspendedFor < minBackoff:
		p.within(minBackoff - s.suspendedFor)
	default:
		p.start[upload] = 1
		p.little = s.serial || s.crowded // nothing could be sent beside a large one that is not answered
	}
}

// suspendAll ends the answers that are open.
func (p *plan) suspendAll() {
	p.suspend = true
	p.cancel[poll], p.cancel[stream], p.cancel[combined] = true, true, true
}

// combine keeps one exchange under way, which carries both directions. When
// there is something to say while the server has nothing to say, it is broken
// off. In a crowd an idle session is silent now and then.
func (s *situation) combine(p *plan) {
	p.endFeed = s.feed.open
	if len(s.flights) == 0 {
		if s.crowded && s.silent >= lively && s.due < 0 && s.combined < crowdPause {
			p.within(crowdPause - s.combined)
		} else {
			p.start[combined] = 1
		}
		return
	}
	s.judgeCombined(p)
	if s.due != 0 {
		p.waitDue(s)
		return
	}
	for i := range s.flights {
		f := &s.flights[i]
		p.cancelHeld = p.cancelHeld || f.held()
		p.cancel[stream] = p.cancel[stream] || f.kind == stream
	}
}

// say has a feed say what is due, or starts an upload for it.
func (s *situation) say(p *plan) {
	writing := maxSending
	if s.feed.may && s.streams {
		if s.sayByFeed(p); p.leads || p.starts() {
			return
		}
		if p.feeds {
			writing = 1 // beside the feed
		}
	} else {
		p.endFeed = s.feed.open
	}
	most, _ := room(s.slots, s.count(poll)+s.count(stream))
	switch {
	case s.due != 0:
		p.waitDue(s)
	case s.count(upload) >= most: // the end of one is a result
	case s.sending() < writing:
		p.start[upload] = 1
	default:
		p.within(slack) // then one of them may count no more
	}
}

// sayByFeed has a feed say what is due where the path lets feeds through, and finds out
// whether it does.
func (s *situation) sayByFeed(p *plan) {
	f, late, stuckAt := &s.feed, s.late(), s.trip.smoothed/stuckShare+stuck
	uploads, _ := room(s.slots, s.count(poll)+s.count(stream))
	switch {
	case f.open && f.waits > late && s.answered < f.waits:
		// The server tells at once, and others got through.
		p.feedBack = "a request did not come as it was written"
	case f.open && f.waits > late && s.count(upload) == 0:
		p.start[upload] = 1 // to see whether others get through
	case f.open && f.waits > late: // they carry what is due
	case f.passes && !f.open && s.count(feed) >= max(1, uploads/feedsShare): // the end of one is a result
	case f.passes && !f.open && s.due == 0:
		p.start[feed] = 1
	case f.passes && !f.open:
		p.leads = true // what is due will start one
		p.waitDue(s)
	case f.passes:
		p.feeds, p.leads = true, f.busy <= stuckAt
		if p.within(late - f.waits); s.silent < slack {
			p.within(stuckAt - f.busy)
		}
	case f.open:
		p.within(late - f.waits)
	case s.silent >= lively:
	case f.probeIn <= 0 && s.count(feed) > 0: // a probe, whose answer is to come
	case f.probeIn <= 0:
		p.start[feed] = 1 // a probe
	default:
		p.within(f.probeIn)
	}
}

// judgeStreams draws from the streams under way whether they come as they are
// written.
func (s *situation) judgeStreams(p *plan) {
	late := s.late()
	for i := range s.flights {
		f := &s.flights[i]
		if f.kind != stream {
			continue
		}
		if in := f.renewal() - f.age; in >= 0 {
			p.within(in)
		}
		silent := f.since(f.heard)
		missing := min(s.owed, silent)
		switch {
		case f.probe: // its end shows it
		case f.first == 0 && silent <= late:
			p.within(late - silent)
		case f.first == 0 && s.answered < f.age:
			// The server says something at once, and others got through.
			p.heldBack = "an answer did not come as it was written"
		case f.first == 0 && s.count(upload) == 0:
			p.start[upload] = 1 // to see whether others get through
		case f.first == 0:
		case missing > late:
			p.heldBack = "an answer stopped coming as it was written"
		case s.owed > 0:
			p.within(late - missing)
		}
	}
	p.cancel[stream] = p.heldBack != ""
}

// renewal is the age at which the stream that follows this one is asked for.
func (g *glance) renewal() time.Duration { return time.Duration(float64(g.stream) * overlap) }

// judgeSizes draws from the large uploads that wait for their answers whether they
// are swallowed for their size: smaller ones that were started later are answered.
// It tells whether that is to be waited for.
func (s *situation) judgeSizes(p *plan) (wait bool) {
	late := s.late()
	var oldest, little *glance // little: the small one that was started first
	for i := range s.flights {
		switch f := &s.flights[i]; {
		case f.kind != upload || f.first > 0:
		case f.size <= smallBody:
			if little == nil || f.age > little.age {
				little = f
			}
		case f.sent > 0 && (oldest == nil || f.since(f.sent) > oldest.since(oldest.sent)):
			oldest = f
		}
	}
	switch {
	case oldest == nil || s.suspended:
	case oldest.since(oldest.sent) <= swallowed*late:
		p.within(swallowed*late - oldest.since(oldest.sent))
	case s.answered < oldest.since(oldest.sent):
		p.swallow = true
	case little == nil:
		p.start[upload], p.little = 1, true
		return true
	case little.age <= late:
		p.within(late - little.age)
		return true
	}
	return false
}

// judgeCombined draws from a large combined exchange that is not answered whether its
// size may be why. Nothing small can be sent beside it to see: the next one is small.
func (s *situation) judgeCombined(p *plan) {
	for i := range s.flights {
		f := &s.flights[i]
		if f.kind != combined || f.size <= smallBody || f.sent == 0 || f.first > 0 {
			continue
		}
		takes := time.Duration(f.size) * time.Second / slowest
		in := swallowed*s.late() + f.hold + takes - f.since(f.sent)
		p.silent = p.silent || in < 0
		p.within(in)
	}
}

// judgeUploads draws from the uploads that wait for their answers whether they
// may be waiting for a stream or a poll that is open. If they pass as soon as
// nothing else is open, they were.
func (s *situation) judgeUploads(p *plan) {
	// What has waited for other exchanges has made the round trip seem long. It is
	// to be seen before those that wait are given up.
	late := min(s.late(), patience/4)
	waiting := time.Duration(-1) // of the one that has waited longest, if one does
	for i := range s.flights {
		// One whose body is under way is not waiting.
		if f := &s.flights[i]; f.kind == upload && f.first == 0 && (f.sent > 0 || f.begun == 0) {
			waiting = max(waiting, f.since(f.sent))
		}
	}
	waiting = min(waiting, s.moved) // after an outage, or behind others, those that waited pass one after the other
	switch {
	case s.suspended && s.suspendedFor > late:
		p.resume = true
		p.within(0)
	case s.suspended:
		p.within(late - s.suspendedFor)
	case waiting < 0 || s.answered <= 2*late || s.feed.heard && s.feed.told <= 2*late:
	case waiting > 2*late:
		p.suspendAll()
		p.within(late)
	default:
		p.within(2*late - waiting)
	}
}

// hear starts what brings answers: streams where the path delivers them, else
// polls, and now and then a probe.
func (s *situation) hear(p *plan) {
	streams := s.streams && p.heldBack == ""
	if s.probing && !s.streams && s.silent < lively {
		if s.probeIn > 0 {
			p.within(s.probeIn)
		} else if s.count(stream) == 0 {
			p.start[stream] = 1 // a probe
		}
	}
	if s.suspended && !p.resume || p.suspend {
		return
	}
	if streams {
		p.start[stream] = max(0, s.wantedStreams()-s.count(stream))
		return
	}
	uploads := s.count(upload) + p.start[upload]
	_, downloads := room(s.slots, 0)
	p.polls = s.polls
	if s.silent < lively {
		p.polls = max(p.polls, min(livelyPolls, downloads))
	}
	p.start[poll] = max(0, min(p.polls, downloads, max(1, s.slots-uploads))-s.count(poll))
}

// wantedStreams is 1, and 2 while the older one is about to end. A probe that is
// still open has no room for records: it does not count.
func (s *situation) wantedStreams() int {
	n, probes := 1, 0
	for i := range s.flights {
		switch f := &s.flights[i]; {
		case f.kind != stream:
		case f.probe:
			probes++
		case f.age > f.renewal() || f.ending:
			n = 2
		}
	}
	return n + probes
}
