package carrier

import (
	"slices"
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

	// cutShare is what is asked for of a length that was cut.
	cutShare = 0.8

	// firstProbe is when a path that did not stream is looked at again, at the
	// latest. Each time it still does not, the next look is twice as far away.
	firstProbe = 30 * time.Second
	lastProbe  = 30 * time.Minute

	// together is how long after one session another one begins at the same time.
	together = 500 * time.Millisecond
)

// A Path is what sessions have learned of the ways to their server, by the
// name of the front. Sessions that share it learn from each other. The zero
// value knows nothing. Safe for concurrent use.
type Path struct {
	mu    sync.Mutex
	ways  map[string]*way // guarded by mu, like what follows
	begun []time.Time     // when sessions began, those within together before the last
}

// way is what is known of the way through one front.
type way struct {
	mu         sync.Mutex
	known      bool // that it streams, or not; guarded by mu, like what follows
	streams    bool
	serialTill time.Time // until then it is taken to let one exchange through at a time
	serialFor  time.Duration
	probeAt    time.Time
	probeAfter time.Duration
	hold       time.Duration
	quiet      time.Duration
	age        time.Duration
	cutAt      time.Duration // the age at which a stream was cut last
	tooLarge   int           // bytes of the smallest body that was refused; 0: none
	up, down   pace
}

// begin says that a session begins, and returns which part of what another one
// has found it may take for its own: those that begin together share it.
func (p *Path) begin(now time.Time) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun = append(slices.DeleteFunc(p.begun, func(t time.Time) bool { return now.Sub(t) > together }), now)
	return 1 / float64(len(p.begun))
}

func (p *Path) way(front string) *way {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.ways[front]
	if w == nil {
		w = &way{hold: defaultHold, quiet: defaultQuiet, age: defaultAge}
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
	return below(w.hold, w.hold/4), w.quiet, below(w.age, w.age/4)
}

// streaming tells whether answers arrive as they are written, as far as known.
func (w *way) streaming() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.streams
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

// saw notes whether an answer arrived as it was written, and tells whether that
// is news.
func (w *way) saw(now time.Time, streams bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed := !w.known || w.streams != streams
	if streams || w.streams || w.probeAfter == 0 {
		w.probeAfter = firstProbe
	} else {
		w.probeAfter = min(2*w.probeAfter, lastProbe)
	}
	w.probeAt = now.Add(below(w.probeAfter, w.probeAfter/4))
	w.known, w.streams = true, streams
	return changed
}

// probeIn says how long to wait before the way is looked at again.
func (w *way) probeIn(now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.probeAt.Sub(now)
}

// soon has the way looked at again: it may have changed.
func (w *way) soon(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.known {
		w.probeAt, w.probeAfter = now, 0
	}
}

// cut notes that an answer ended before its time, age after it was asked for
// and silence after it last said something.
func (w *way) cut(streamed bool, age, silence time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case silence >= minLearned && streamed:
		w.quiet = min(w.quiet, share(silence))
	case silence >= minLearned:
		w.hold = min(w.hold, share(silence))
	case age >= minLearned && streamed:
		// Once may be chance; twice at one age is a rule.
		if w.cutAt > 0 && (age-w.cutAt).Abs() < age/10 {
			w.age = min(w.age, share(age))
		}
		w.cutAt = age
	}
}

func share(d time.Duration) time.Duration {
	return max(time.Duration(float64(d)*cutShare), minLearned*3/4).Truncate(time.Millisecond)
}

// refusedBody notes that a body of size bytes was too large.
func (w *way) refusedBody(size int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tooLarge == 0 || size < w.tooLarge {
		w.tooLarge = size
	}
}

// takesBody tells whether bodies of size bytes are worth a try.
func (w *way) takesBody(size int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return size <= largestBody && (w.tooLarge == 0 || size < w.tooLarge)
}

// finds notes what a session finds the way to carry, if that is news.
func (w *way) finds(up, down pace) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if up.replaces(w.up) {
		w.up = up
	}
	if down.replaces(w.down) {
		w.down = down
	}
}

// carries is what sessions have found the way to carry: zero if nothing, or long
// ago.
func (w *way) carries(now time.Time) (up, down pace) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.up.at) <= paceLife {
		up = w.up
	}
	if now.Sub(w.down.at) <= paceLife {
		down = w.down
	}
	return up, down
}

// forget forgets what the way carries, and hears of nothing that was found
// before now.
func (w *way) forget(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.up, w.down = pace{at: now}, pace{at: now}
}
