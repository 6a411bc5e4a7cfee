package carrier

import (
	"errors"
	"time"

	"turbotunnel/common/wire"
)

// What a client learns of its path. Each detector learns one thing: observe
// takes in how an exchange ended, next says what a plan may take for granted.
// What other sessions need to know, too, is kept in the way (path.go). All of
// them are owned by Client.run.

// carrying learns whether exchanges come through.
//
//	       a failure             another one
//	well -------------> shaken --------------> failing: one exchange at a time,
//	  ^                    |                      |     after pauses that grow
//	  +--------------------+----------------------+
//	   an answer of the server's, or its beginning, that came since
//
// Several that fail together count once.
type carrying struct {
	failures int                       // in a row
	foreigns int                       // of them: answers by somebody else
	strange  [foreignAnswers]time.Time // when the last of these had been started, the newest first
	since    time.Time                 // the first of them
	last     time.Time                 // the last one
	until    time.Time                 // until then nothing is started
	err      error                     // why an exchange has failed last
	shakenAt time.Time                 // when it was said last that one has failed
	mute     bool                      // it was said that nothing comes through
}

const (
	// shakenEvery is how often it is said at most that an exchange has failed: where
	// a limit is looked for, one fails after every one that passes.
	shakenEvery = time.Minute

	// muteAfter is for how long nothing comes through, large or small, before that is
	// said.
	muteAfter = 10 * time.Second
)

// observe learns from how an exchange ended. shaken says that it is the first of
// failures in a row, and worth a line in the log. back is how long the path had been
// failing when this exchange came through, and 0 if the path was not failing.
func (c *carrying) observe(now time.Time, res *result) (shaken bool, back time.Duration) {
	if res.good && (c.failures == 0 || !res.flight.heardAt().Before(c.since)) {
		if c.failing() {
			back = now.Sub(c.since)
		}
		c.failures, c.foreigns, c.until, c.mute = 0, 0, time.Time{}, false
	}
	if res.err == nil || errors.Is(res.err, errUnneeded) {
		return false, back
	}
	c.err = res.err
	if res.refusesBody() || res.good || c.failures > 0 && res.flight.started.Before(c.last) {
		return false, back // it brought something, or it failed together with one that was counted
	}
	c.last = now
	if c.failures == 0 {
		c.since = now
	}
	c.failures++
	if res.foreign {
		c.foreigns++
		copy(c.strange[1:], c.strange[:])
		c.strange[0] = res.flight.started
	}
	if c.failing() {
		c.until = now.Add(backoff(c.failures-1, now.Sub(c.since)))
	}
	if shaken = c.failures == 1 && (c.shakenAt.IsZero() || now.Sub(c.shakenAt) >= shakenEvery); shaken {
		c.shakenAt = now
	}
	return shaken, back
}

// muted tells, once, that the path carries nothing at all, for how long it has not,
// and why.
func (c *carrying) muted(now time.Time) (idle time.Duration, err error) {
	if idle = now.Sub(c.since); !c.failing() || c.mute || idle < muteAfter {
		return 0, nil
	}
	c.mute = true
	return idle, c.err
}

// failing tells whether the path carries nothing: see the drawing.
func (c *carrying) failing() bool { return c.failures > 1 }

// forgotten tells whether the server seems not to know the session any more, and
// since when: the exchanges that show it were all started then or later.
func (c *carrying) forgotten() (since time.Time, seems bool) {
	if c.foreigns < foreignAnswers {
		return time.Time{}, false
	}
	return c.strange[foreignAnswers-1], true
}

// next says how long nothing is to be started, where the Transport asks for a
// rest.
func (c *carrying) next(now time.Time, rest time.Duration) time.Duration {
	return max(c.until.Sub(now), min(rest, c.last.Add(maxRest).Sub(now)))
}

// lost is the error of a session that nothing has come through to for its
// Lifetime; nil before.
func (c *carrying) lost(now time.Time) (time.Duration, error) {
	if idle := now.Sub(c.since); c.failures > 0 && idle > Lifetime {
		return idle, c.err
	}
	return 0, nil
}

// receiving learns whether the path delivers answers as they are written.
//
//	         the first answer or a probe came as it was written
//	      +------------------------------------------------------+
//	      |                                                      v
//	by polls: a probe now and then,                          by streams
//	each time after twice as long                                |
//	      ^                                                      |
//	      +------------------------------------------------------+
//	         a probe was held back; or a stream said nothing at its beginning
//	         while uploads were answered, or stopped while records were owed;
//	         or several in a row ended as soon as they had begun
type receiving struct {
	mode    Mode // constant
	streams bool // the client receives by streams
	cut     int  // streams in a row that ended in their first second, before any record
}

// soonCut streams in a row that end as soon as they have begun are no chance. Each is
// followed by the next one at once: with streams it would go on so for ever, as fast as
// the path allows.
const soonCut = 5

// begin takes in what other sessions have found.
func (r *receiving) begin(w *way) {
	if r.mode == Auto {
		r.streams = w.streams.has()
	}
}

// observe learns from how an exchange ended. It tells whether streams that are
// open are to be ended, and reports what is new of the path.
func (r *receiving) observe(now time.Time, res *result, w *way) (end bool, report string) {
	f := res.flight
	age := now.Sub(f.started)
	spread := age - time.Duration(f.first.Load()) // between the answer's first unit and its end
	var streams bool
	switch {
	case r.mode == Poll:
		return false, ""
	case f.kind == greeting:
		streams = spread >= firstStream/2
	case f.kind == stream && f.probe:
		streams = res.good && spread >= f.asked.Stream/2
	case f.kind == stream && r.cutSoon(age, res):
		return true, r.heldBack(now, "answers end as soon as they have begun", w)
	default:
		return false, ""
	}
	r.streams = streams
	switch changed := w.streams.saw(now, streams); {
	case !changed:
	case streams:
		report = "receiving by streams: answers come as they are written"
	default:
		report = "receiving by polls: answers come when they are complete"
	}
	return !streams, report
}

// cutSoon counts a stream that has ended, and tells whether so many did as soon as they
// had begun that polls are better.
func (r *receiving) cutSoon(age time.Duration, res *result) bool {
	switch {
	case !res.good || errors.Is(res.err, errUnneeded): // it says nothing, or has failed
	case res.received > 0 || age >= probeAge/2:
		r.cut = 0
	default:
		r.cut++
	}
	return r.streams && r.cut >= soonCut
}

// heldBack notes that a stream does not come as it is written. Of several that
// show the same, the first counts: each more would put off the next probe.
func (r *receiving) heldBack(now time.Time, why string, w *way) (report string) {
	if r.streams && w.streams.saw(now, false) {
		report = "receiving by polls: " + why
	}
	r.streams, r.cut = false, 0
	return report
}

// serial learns whether the path lets one exchange through at a time.
//
//	     uploads wait long, none was answered; or many
//	     in a row fail, whatever else gets through           late is over
//	parallel -----------------------------------> suspended ------------> parallel
//	    ^                                             |
//	    |                                             | they pass at once
//	    |   after 30 s, then each time                v
//	    +--- after twice as long --- serial <---- the second time within 30 s, with
//	                                              no upload answered meanwhile beside
//	                                              an answer that waits: once may be
//	                                              the end of an outage
//
// While it is suspended, answers that wait are ended and none is asked for. An upload
// that is answered beside an answer that waits, or a feed that is told of while its body
// is open, shows that the path is parallel: then what was seen before is forgotten.
type serial struct {
	suspended time.Time // since then; zero: it is not
	refused   bool      // because uploads failed
	passed    time.Time // when uploads passed last as soon as answers were ended
	answered  time.Time // when the upload that was answered last had been started
	moved     time.Time // when an upload was answered last
	failures  int       // of uploads in a row
	failed    time.Time // the last of them
}

// hopeless uploads that fail in a row may fail because of the answers that are open:
// by chance, of exchanges of which every second one fails, one series in 128 is as
// long. It takes some three seconds. Where that is suspected fewer are enough.
const (
	hopeless  = 7
	suspected = 4
)

// next says whether answers that wait are ended, and since when.
func (s *serial) next(now time.Time) (suspended bool, suspendedFor time.Duration) {
	return !s.suspended.IsZero(), now.Sub(s.suspended)
}

// suspend is told that answers that wait are ended. refused says that the reason is
// uploads that failed.
func (s *serial) suspend(now time.Time, refused bool) { s.suspended, s.refused = now, refused }

// resume is told that answers are asked for again.
func (s *serial) resume() { s.suspended = time.Time{} }

// suspects tells whether it may be that one exchange gets through at a time: uploads
// have passed as soon as answers were ended, or that was so until lately.
func (s *serial) suspects(now time.Time, w *way) bool {
	return now.Sub(s.passed) < firstProbe || w.wasSerial()
}

// hopeless tells whether uploads fail so often that the answers that are open may be
// why.
func (s *serial) hopeless(now time.Time, w *way) bool {
	return s.failures >= hopeless || s.failures >= suspected && s.suspects(now, w)
}

// parallel is told that at a moment two exchanges were getting through at once.
func (s *serial) parallel(at time.Time, w *way) {
	if at.After(s.passed) {
		s.passed = time.Time{}
		w.parallel(at)
	}
}

// count counts an upload that has ended. Several that fail together count once.
func (s *serial) count(now time.Time, res *result, w *way) {
	switch {
	case res.good:
		s.failures, s.moved = 0, now
		if res.beside {
			s.parallel(now, w)
		}
	case res.err != nil && !errors.Is(res.err, errUnneeded) && !res.refusesBody() && !res.flight.started.Before(s.failed):
		s.failures++
		s.failed = now
	}
}

// observe learns from how an exchange ended, and reports what is new of the path.
func (s *serial) observe(now time.Time, res *result, w *way) (report string) {
	f := res.flight
	if f.kind != upload {
		return ""
	}
	s.count(now, res, w)
	if res.good && f.started.After(s.answered) {
		s.answered = f.started
	}
	sent, first := f.started.Add(time.Duration(f.sent.Load())), f.started.Add(time.Duration(f.first.Load()))
	passes := f.sent.Load() > 0 && f.first.Load() > 0 && first.After(s.suspended)
	if waited := sent.Before(s.suspended); !passes || s.suspended.IsZero() || waited == s.refused {
		return ""
	}
	s.suspended = time.Time{}
	if s.suspects(now, w) {
		w.setSerial(now)
		report = "the path lets one request through at a time: sending and receiving in turns"
	}
	s.passed = now
	return report
}

// bodies learns how large a body the path takes in one direction, from whatever it
// does to larger ones. What only seems to be a matter of size is tried with a small
// one: an outage lets nothing pass.
//
//	      some that are not small fail              a small one fails, too
//	open -------------------------> doubtful -------------------------------> open
//	  ^                                | it passes, or the answer said why
//	  |  full ones pass: twice         v
//	  +----------------------- half of what has failed
//
// The method enough says how many are some. Several that fail together count once. What
// has failed is tried again after a while, which grows.
//
// An answer that says that there is no room now (503, 429) may mean what it says, and
// what is for its rate or for others does not look at sizes. So there large ones have to
// fail and small ones to pass in turns, as many as there are failures in a doubt. A
// gateway with such a limit of 8 KB for answers let nothing come in 30 s (429), or a
// fifth of what comes where it says 502; now it is two thirds and more.
type bodies struct {
	limit  int       // bytes
	failed int       // bytes of the smallest that has failed since then; 0: none
	times  int       // how often in a row
	last   time.Time // when it did last

	busy  bool // there was no room for some of them then, as answers said
	turns int  // small ones that have passed since then, each after a failure
	open  bool // it is to be seen what passes: there is a doubt, or a limit that no body was near to yet
}

// doubts are how many failures in a row are enough for any doubt.
const doubts = 5

// A sample is what an exchange has shown of bodies in one direction.
type sample struct {
	size   int // bytes; of an answer that has failed, what was asked for
	passed bool
	why    bool // it has failed, and the answer has said that it was for its size
	likely bool // smaller ones passed meanwhile, which is enough where it costs no records
	silent bool // it was not answered in time, and each more would take as long: once is enough to try a small one
	full   bool // it would have been larger if it could
	idle   bool // there was little to say: what failed before was not large either
	asked  bool // an answer's: how large one would have been that has failed is not known
	busy   bool // it has failed, and the answer has said that there was no room for it now
}

// observe learns from a sample, of an exchange that was started at a time, and tells
// whether the limit has become less.
func (b *bodies) observe(now, started time.Time, s sample, w *sizes) (less bool) {
	// What failed may have been no larger than another answer that has come: where
	// one of a hundred is cut by chance, no three are in a row.
	alike := s.size >= b.failed*3/4 || s.asked && s.size > minBody
	switch {
	case s.passed && b.doubtful(w) && s.idle:
		b.forget()
	case s.passed && b.doubtful(w) && !started.Before(b.last) && !alike:
		if b.turns++; b.busy && b.turns < b.enough(w) {
			b.times, b.last = b.enough(w)-1, now
			return false
		}
		return b.halve(now, w)
	case s.passed:
		full := s.full && s.size > b.limit/2 // not when it was asked for with another limit
		if full || b.failed > 0 && alike {
			b.forget()
		}
		w.passed(s.size)
		if full && b.limit < largestBody && w.worth(now, 2*b.limit) {
			b.limit *= 2
		}
	case s.size <= smallBody:
		b.forget() // it is not the size
	case s.why, s.likely && !(s.size <= 2*minBody && w.takesLarge()):
		b.failed = s.size
		return b.halve(now, w)
	default:
		if b.failed == 0 || s.size < b.failed {
			b.failed = s.size
		}
		if started.After(b.last) {
			b.times++
			b.last = now
			if s.silent {
				b.times = max(b.times, doubts)
			}
		}
		b.busy = b.busy || s.busy
		b.open = b.open || b.doubtful(w)
	}
	return false
}

// halve makes the limit half of what has failed.
func (b *bodies) halve(now time.Time, w *sizes) bool {
	before := b.limit
	b.limit = max(smallBody, min(b.limit, b.failed/2))
	w.refuses(now, b.failed, b.limit)
	b.forget()
	b.open = true
	return b.limit < before
}

// forget is told that what has failed says nothing any more.
func (b *bodies) forget() { b.failed, b.times, b.busy, b.turns, b.open = 0, 0, false, 0, false }

// doubtful tells whether a small body is to be tried.
func (b *bodies) doubtful(w *sizes) bool { return b.failed > 0 && b.times >= b.enough(w) }

// enough is how many failures in a row have a small body tried.
func (b *bodies) enough(w *sizes) int {
	switch {
	case b.failed <= 2*minBody && w.takesLarge():
		return doubts // it costs records to be wrong, see outgoing.setUnit
	case w.limited():
		return 2
	}
	return 3
}

// next is the limit of a body.
func (b *bodies) next(w *sizes) int {
	if b.doubtful(w) {
		return smallBody
	}
	return b.limit
}

// limited tells whether bodies must be smaller than they might be.
func (b *bodies) limited(w *sizes) bool { return b.doubtful(w) || w.limited() || b.limit < maxAnswer }

// unit is the size of the largest record that may be made for the bodies.
func (b *bodies) unit(w *sizes) int {
	if b.limit < minBody || !w.takesLarge() {
		return smallUnit
	}
	return wire.MaxUnit
}

// polling learns how many answers it is worth to wait for: one in silence, and as
// many as there can be in a transfer. A plan may want more in a conversation.
type polling struct{ want int }

// observe learns from how a poll ended.
func (p *polling) observe(res *result) {
	switch {
	case res.flight.kind != poll || res.err != nil:
	case res.received >= res.flight.asked.Limit/8:
		p.want = maxDownloads // a transfer: one after the other they would take round trips
	case res.backlog > 0 || res.received >= manyBytes:
		p.want = min(p.want*2, maxDownloads)
	case res.received == 0:
		p.want /= 2
	default:
		p.want--
	}
}

// next is how many polls are worth it.
func (p *polling) next() int { return max(1, p.want) }

// settle takes note of how many polls a plan has wanted: from there the number
// goes on. Where polls are not the way to receive, no plan does.
func (p *polling) settle(wanted int) {
	if wanted > 0 {
		p.want = wanted
	}
}
