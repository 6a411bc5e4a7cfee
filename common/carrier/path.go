package carrier

import (
	"errors"
	"os"
	"sync"
	"time"
)

const (
	// defaultHold is how long a poll waits for something to say at most,
	// defaultQuiet how long a stream may be silent, and defaultAge how long it
	// stays open: as long as most paths allow (many gateways cut at 30 s), and a
	// stream ends before a transfer that lasts looks like nothing else on the
	// web. What is asked for is drawn below these.
	defaultHold  = 28 * time.Second
	defaultQuiet = 28 * time.Second
	defaultAge   = 60 * time.Second

	// minLearned is the shortest of these that is learned. What ends sooner
	// than that was not cut for its length.
	minLearned = 4 * time.Second

	// longSilence and longAge are the most that is asked for once the defaults have been
	// seen to pass: each exchange of a session at rest costs the server a request and
	// wakes a phone's radio. Many gateways cut at 60 s, and the longer an answer may be
	// silent the later it shows that a path is dead.
	longSilence = 2 * defaultQuiet
	longAge     = 2 * defaultAge

	// leastKept is for how long whatever keeps account of connections remembers one at
	// least on which nothing is said.
	leastKept = defaultQuiet / 2

	// cutShare is what is asked for of a length that was cut.
	cutShare = 0.8

	// firstProbe is when a path that did not stream is looked at again, at the
	// latest. Each time it still does not, the next look is twice as far away.
	firstProbe = 30 * time.Second
	lastProbe  = 30 * time.Minute

	// firstSize is when a body is tried again that was too large. Each time it still
	// is, the next try is twice as far away.
	firstSize = 2 * time.Second
)

// A Path is what sessions have learned of the ways to their server, by the
// name of the front. Sessions that share it learn from each other. The zero
// value knows nothing. Safe for concurrent use.
type Path struct {
	paces paces // recall
	clock serverClock

	mu    sync.Mutex
	ways  map[string]*way // by front; guarded by mu, like what follows
	reach time.Duration   // see Reach; 0: not called
}

// way is what is known of the way through one front.
type way struct {
	mu         sync.Mutex
	serialTill time.Time // until then it is taken to let one exchange through at a time; guarded by mu, like what follows
	serialFor  time.Duration
	hold       lifetime      // of answers of which nothing has come
	quiet      lifetime      // of the silences of streams
	cutAfter   time.Duration // the shortest silence that was cut; 0: none was
	cutLast    time.Time     // when an answer was cut last
	passes     time.Duration // the longest silence after which an answer went on
	age        lifetime      // of streams
	feedAge    lifetime
	feedLimit  int // bytes of the largest body of a feed

	streams  habit // answers come as they are written
	feeds    habit // requests do
	up, down sizes // of requests and answers
	feed     sizes // of the bodies of feeds
}

// A lifetime is how long something may stay open, or silent.
type lifetime struct {
	most  time.Duration
	cutAt time.Duration // the age at which one was cut last, and none nearly as old has lasted since; 0: none was
	gone  bool          // one was never heard of again, and none has come to its end since
	ruled bool          // most is what the path allows
}

// cut notes that one was cut, and tells whether that is a rule: once may be chance,
// twice at one age is none.
func (l *lifetime) cut(age time.Duration) (rule bool) {
	if age < minLearned {
		return false
	}
	if rule = l.cutAt > 0 && (age-l.cutAt).Abs() < age/10; rule {
		l.most, l.ruled = min(l.most, share(age)), true
	}
	l.cutAt = age
	return rule
}

// lost notes that one was never heard of again, nobody knows since when. An outage does
// that, too: it is a rule if the next one is lost as well.
func (l *lifetime) lost() {
	if l.gone = !l.gone; l.gone {
		return
	}
	l.most, l.ruled = min(l.most, max(l.most/2, leastKept)), true
}

// lasted notes that one has come to an age, and may come to most.
func (l *lifetime) lasted(age, most time.Duration) {
	if age >= l.cutAt*3/4 { // as lengths are drawn
		l.cutAt = 0 // that was chance
	}
	if age < l.most*3/4 {
		return
	}
	l.gone = false
	if !l.ruled {
		l.most = max(l.most, min(2*l.most, most))
	}
}

// draw is how long the next one is to stay open.
func (l *lifetime) draw() time.Duration { return below(l.most, l.most/4) }

// A habit is something that a way may do, and is looked at again when it does not.
// The zero value knows nothing. Safe for concurrent use.
type habit struct {
	mu    sync.Mutex
	known bool // guarded by mu, like what follows
	does  bool
	at    time.Time     // when it is to be looked at again
	after time.Duration // how long that was
}

// found tells whether it is known what the way does, and whether it does it.
func (h *habit) found() (known, does bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known, h.does
}

// has tells whether the way does it, as far as known.
func (h *habit) has() bool {
	_, does := h.found()
	return does
}

// saw notes whether the way did it, and tells whether that is news.
func (h *habit) saw(now time.Time, does bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed := !h.known || h.does != does
	if does || h.does || h.after == 0 {
		h.after = firstProbe
	} else {
		h.after = min(2*h.after, lastProbe)
	}
	h.at = now.Add(below(h.after, h.after/4))
	h.known, h.does = true, does
	return changed
}

// probeIn says how long to wait before the way is looked at again.
func (h *habit) probeIn(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at.Sub(now)
}

// soon has the way looked at again: it may have changed.
func (h *habit) soon(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known {
		h.at, h.after = now, 0
	}
}

// way returns what is known of the way through a front.
func (p *Path) way(front string) *way {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.ways[front]
	if w == nil {
		w = &way{
			hold: lifetime{most: defaultHold}, quiet: lifetime{most: defaultQuiet},
			age: lifetime{most: defaultAge}, feedAge: lifetime{most: defaultFeed}, feedLimit: MaxBody,
		}
		if p.reach > 0 {
			w.hold = lifetime{most: p.reach, ruled: true}
			w.quiet, w.age.most = w.hold, maxAge
		}
		if p.ways == nil {
			p.ways = make(map[string]*way)
		}
		p.ways[front] = w
	}
	return w
}

// lengths are what to ask for: hold and age differ each time and are never
// longer than what is known to pass. quiet is a limit below which the server
// draws.
func (w *way) lengths() (hold, quiet, age time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hold.draw(), w.quiet.most, w.age.draw()
}

// feedBounds are how large and how long open the body of the next feed may be.
func (w *way) feedBounds() (limit int, age time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.feedLimit, w.feedAge.draw()
}

// fed notes that the body of a feed has passed. full says that it would have been
// larger if it could.
func (w *way) fed(now time.Time, size int, full bool) {
	w.feed.passed(size)
	w.mu.Lock()
	defer w.mu.Unlock()
	if full && size > w.feedLimit/2 && w.feed.worth(now, min(2*w.feedLimit, maxFeed)) {
		w.feedLimit = min(2*w.feedLimit, maxFeed)
	}
}

// feedRefused notes that the way does not take bodies of feeds of size bytes, and
// tells whether it takes any that are worth it.
func (w *way) feedRefused(now time.Time, size int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.feedLimit = min(w.feedLimit, max(size/2, minFeed))
	w.feed.refuses(now, size, w.feedLimit)
	return size/2 >= minFeed
}

// feedCut notes that a feed was cut at an age, and tells whether that is a rule.
func (w *way) feedCut(age time.Duration) (rule bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.feedAge.cut(age)
}

// oneAtATime tells whether exchanges wait for one another.
func (w *way) oneAtATime(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return now.Before(w.serialTill)
}

// setSerial notes that exchanges wait for one another. That is believed for a
// while, and each time for twice as long.
func (w *way) setSerial(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.serialFor = min(max(firstProbe, 2*w.serialFor), lastProbe)
	w.serialTill = now.Add(w.serialFor)
}

// wasSerial tells whether exchanges waited for one another once, and nothing has shown
// since that they do not.
func (w *way) wasSerial() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.serialFor > 0
}

// parallel notes that at a moment two exchanges were getting through at once.
func (w *way) parallel(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at.After(w.serialTill) {
		w.serialFor = 0
	}
}

// observe learns from how an exchange ended how long the way lets answers wait,
// be silent and stay open.
func (w *way) observe(now time.Time, res *result) {
	f := res.flight
	age := now.Sub(f.started)
	unneeded := errors.Is(res.err, errUnneeded)
	early := age < f.asked.Stream*9/10
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case f.kind == stream && !f.probe && res.good && !unneeded && early && res.received < f.asked.Limit/2:
		w.cut(now, res, &w.quiet, age-time.Duration(f.heard.Load()))
	case f.kind == stream && !f.probe && res.err == nil:
		if w.quiet.gone = false; !early { // else it was full
			w.age.lasted(age, longAge)
		}
	case f.asked.Hold < minLearned || unneeded: // it shows nothing
	case res.err == nil:
		w.hold.gone = false
	case !res.good && f.size <= smallBody: // a large request may be to blame
		w.cut(now, res, &w.hold, age)
	}
}

// cut notes that an answer ended before its time, silence after it last said something,
// which is a matter of that or of its age. Of those that end together the first counts.
// mu is held.
func (w *way) cut(now time.Time, res *result, silent *lifetime, silence time.Duration) {
	if silence >= minLearned && (w.cutAfter == 0 || silence < w.cutAfter) {
		w.cutAfter = silence
	}
	if res.flight.started.Before(w.cutLast) {
		return
	}
	w.cutLast = now
	if errors.Is(res.err, os.ErrDeadlineExceeded) {
		silent.lost() // something on the way may have forgotten a connection for its silence
		return
	}
	silent.cut(silence)
	if age := now.Sub(res.flight.started); silence < age*9/10 {
		w.age.cut(age) // else there was nothing but silence
	}
}

// passed notes that an answer was silent for a while, and went on.
func (w *way) passed(k kind, silence time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.passes = max(w.passes, silence)
	if k == stream {
		w.quiet.lasted(silence, longSilence)
	} else {
		w.hold.lasted(silence, longSilence)
	}
}

// share is how much of a length that was cut is asked for.
func share(d time.Duration) time.Duration {
	return max(time.Duration(float64(d)*cutShare), minLearned*3/4).Truncate(time.Millisecond)
}

// sizes is what is known of how large a body the way takes in one direction. The
// zero value knows nothing. Safe for concurrent use.
type sizes struct {
	mu       sync.Mutex
	large    bool          // a body of minBody has passed; guarded by mu, like what follows
	tooLarge int           // bytes of the smallest that has failed for its size; 0: none
	until    time.Time     // then it is tried again
	wait     time.Duration // how long that was
}

// passed notes that a body of size bytes has come through.
func (s *sizes) passed(size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.large = s.large || size >= minBody
	if s.tooLarge > 0 && size >= s.tooLarge {
		s.tooLarge, s.wait = 0, 0
	}
}

// refuses notes that a body of size bytes was too large, and what is the limit now.
func (s *sizes) refuses(now time.Time, size, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tooLarge == 0 || size <= s.tooLarge {
		s.tooLarge = size
	}
	if limit < minBody {
		s.large = false
	}
	if now.After(s.until) {
		s.wait = min(max(firstSize, 2*s.wait), lastProbe)
	}
	s.until = now.Add(s.wait)
}

// worth tells whether bodies of size bytes are worth a try.
func (s *sizes) worth(now time.Time, size int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tooLarge == 0 || size < s.tooLarge || now.After(s.until)
}

// takesLarge tells whether large bodies are known to pass.
func (s *sizes) takesLarge() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.large
}

// limited tells whether a body has failed for its size, and none as large has passed since.
func (s *sizes) limited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tooLarge > 0
}

// known is the limit that is known, at most most.
func (s *sizes) known(most int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.tooLarge > 0 && most >= s.tooLarge && most > smallBody {
		most /= 2
	}
	return max(most, smallBody)
}
