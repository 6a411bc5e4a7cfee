package carrier

import (
	"math"
	"time"
)

const (
	// firstFlight is what a new session may send at once. minFlight and
	// flightLimit bound a window: the least lets several full records go at
	// once; the most covers 200 ms at 500 Mbit/s and as much again, and bounds
	// the memory that repair costs a session.
	firstFlight = 256 << 10
	minFlight   = 64 << 10
	flightLimit = 24 << 20

	// queueLimit is how many bytes of datagrams may wait at least to be put on
	// an exchange before WriteTo blocks, and maxQueue at most: the largest body.
	// What waits is delay for whatever the engine says next.
	queueLimit = 64 << 10
	maxQueue   = largestBody

	// queueDelay and queueShare say how long a session lets its own bytes wait
	// in front of the bottleneck: so long, and that share of the round trip
	// more. It is what a loaded path adds to the delay of everything else, and
	// enough to keep the bottleneck busy while acknowledgements come in bursts.
	queueDelay = 15 * time.Millisecond
	queueShare = 1.0 / 12

	// startGrowth is by how many bytes a window grows at first for each byte
	// that is acknowledged: sixfold in a round trip, until an acknowledgement
	// shows a queue. TCP below does not let it flood the path; what is at stake is
	// a short time of delay. Nothing grows before a round trip was measured.
	startGrowth = 5

	// rateDecay is how much of a rate is left after a round trip that has not
	// seen it.
	rateDecay = 7.0 / 8

	// baseLife is how long a round-trip time counts as the shortest. Then the
	// window is kept low for a round trip, so that it can be seen again.
	baseLife = 20 * time.Second

	// paceLife is how long what one session has found of a path counts for
	// another one, and paceShared how long it counts although another one finds
	// less.
	paceLife   = 10 * time.Minute
	paceShared = 10 * time.Second
)

// A pace is what a session has found a path to carry in one direction.
type pace struct {
	rate float64       // bytes per second; 0: nothing is known
	more bool          // the window was still growing: the path may carry more
	trip time.Duration // the shortest round trip
	at   time.Time     // when it was found
}

func (p pace) known() bool { return p.rate > 0 && p.trip > 0 }

// replaces tells whether p says more than old of the same way. A session that
// shares the way, or has little to say, finds less than what it carries.
func (p pace) replaces(old pace) bool {
	life := paceShared
	if p.more {
		life = paceLife
	}
	return p.known() && p.at.After(old.at) && (p.rate >= old.rate || p.at.Sub(old.at) > life)
}

// part is what one of several sessions may take for its own that begin together
// on a way of this pace.
func (p pace) part(share float64) pace {
	p.rate *= share
	p.more = p.more || share < 1
	return p
}

// roughly is p with so little detail that it tells one client from another no
// better than a server can measure itself: in steps of a fifth.
func (p pace) roughly() pace {
	step := func(x float64) float64 { return math.Exp2(math.Round(4*math.Log2(x)) / 4) }
	if p.known() {
		p.rate, p.trip = step(p.rate), time.Duration(step(float64(p.trip)))
	}
	return p
}

// A window says how many bytes may be in flight: the product of the path's
// rate and its round-trip time, and a short queue's worth more. Below it there is
// TCP, which has no loss to show and deep buffers, so it goes by delay, as FAST
// TCP does (Wei, Jin, Low, Hegde: IEEE/ACM Transactions on Networking 14(6),
// 2006): once a round trip,
//
//	size = size × base / rtt + rate × delay
//
// It follows what is delivered, not what is lost: the carrier's losses are
// whole exchanges and say nothing about a queue. The zero value is not ready.
// It belongs to a link, whose lock guards it.
type window struct {
	size     int
	starting bool          // the size grows with each acknowledgement: no queue was seen yet
	recalled bool          // the size is another session's, and was not tried yet
	base     time.Duration // the shortest round trip of late; 0: none yet
	baseAt   time.Time     // when it was seen
	rate     float64       // the most bytes per second of late, when the window was the limit; 0: never yet

	// The round trip under way.
	since     time.Time
	delivered int           // bytes
	shortest  time.Duration // 0: none yet
	latest    time.Duration // likewise
	full      int           // so many before it were limited, one after the other
	past      int           // the size before the round trip before this one
	last      int           // the size before this one
	limited   bool          // there was more to send than the window allows
	most      float64       // the most bytes per second while the size was growing
	found     time.Time     // when the window was the limit last and rate was measured, or most has grown; zero: never
	draining  float64       // the rate before the window was lowered to see the base; 0: it was not
}

func newWindow() window { return window{size: firstFlight, starting: true} }

// recall begins where a session before has arrived. The round trip is measured
// anew: if it has become longer, the old one would show a queue for ever.
func (w *window) recall(p pace) {
	if !p.known() {
		return
	}
	w.set(p.rate * (p.trip + delayAt(p.trip)).Seconds())
	if p.more {
		w.size = max(w.size, firstFlight)
		return
	}
	w.starting, w.recalled, w.rate = false, true, p.rate
}

// finds is the pace of the path so far.
func (w *window) finds() pace {
	p := pace{w.rate, w.starting, w.base, w.found}
	if w.starting {
		p.rate = w.most
	}
	return p
}

// forget has finds say nothing until something is found again.
func (w *window) forget() { w.most, w.found = 0, time.Time{} }

// took notes a round-trip time, without what the other side has waited before
// it answered. It is that of size bytes: what the path needs to take them up is
// no queue.
func (w *window) took(rtt time.Duration, size int64) {
	if w.base > 0 {
		rtt = max(rtt-w.taking(size), min(rtt, w.base))
	}
	rtt = max(rtt, time.Millisecond) // what clocks on the wire resolve
	w.latest = rtt
	if w.shortest == 0 || rtt < w.shortest {
		w.shortest = rtt
	}
}

// taking is how long the path needs to take up size bytes, as far as known.
func (w *window) taking(size int64) time.Duration {
	if w.rate == 0 {
		return 0
	}
	return time.Duration(float64(size) / w.rate * float64(time.Second))
}

// ack notes that n bytes were acknowledged.
func (w *window) ack(now time.Time, n int) {
	w.delivered += n
	if w.since.IsZero() {
		w.since = now
	}
	if w.starting && w.limited && w.latest-w.base < 2*w.delay() {
		w.set(float64(w.size + startGrowth*n))
	}
	if w.shortest == 0 || now.Sub(w.since) < w.shortest {
		return
	}
	if w.base == 0 || w.shortest <= w.base {
		w.base, w.baseAt = w.shortest, now
	}
	w.endRound(now)
	w.past, w.last = w.last, w.size
	w.since, w.delivered, w.shortest, w.limited = now, 0, 0, false
}

// delay is how long the queue in front of the bottleneck shall be.
func (w *window) delay() time.Duration { return delayAt(w.base) }

func delayAt(base time.Duration) time.Duration {
	return queueDelay + time.Duration(queueShare*float64(base))
}

// endRound ends a round trip.
func (w *window) endRound(now time.Time) {
	rate := float64(w.delivered) / now.Sub(w.since).Seconds() // bytes per second
	delay := w.delay()
	ahead := rate * delay.Seconds()
	if w.starting && rate > w.most {
		w.most, w.found = rate, now
	}
	switch {
	case w.draining > 0:
		// What was measured with little in flight is the path's own.
		w.base, w.baseAt = w.shortest, now
		w.set(w.draining * (w.base + delay).Seconds())
		w.draining = 0
		return
	case !w.limited:
		// It says nothing about the path, unless that is too full as it is: few
		// exchanges at once can be large.
		w.full = 0
		if w.shortest-w.base > 2*delay && w.rate > 0 {
			w.set(min(float64(w.size), 1.25*max(rate, w.rate)*(w.base+delay).Seconds()))
		}
		return
	}
	if now.Sub(w.since) > 2*w.shortest+time.Second {
		w.full = 0 // there was a pause in it
	}
	// Acknowledgements can come in lumps, and a round trip see none.
	w.full++
	faster := rate > 1.1*w.rate
	if w.full > 1 {
		w.rate *= rateDecay
	}
	w.rate = max(rate, w.rate)
	if !w.starting {
		w.found = now
	}
	recalled := w.recalled
	w.recalled = false
	product := w.rate * (w.base + delay).Seconds()
	switch {
	case w.starting:
		// What a round trip delivers is what was sent in the one before, when the
		// size was still growing to what it was at its end.
		if w.shortest-w.base < 2*delay && (w.full < 4 || 3*w.delivered > 2*w.past) {
			return // it grows
		}
		// The rate is the path's, or a part of that if the path has not been full
		// for all of the round trip.
		w.starting, w.found = false, now
		w.set(min(float64(w.size), 1.25*product))
		return
	case recalled && w.latest-w.base < delay/2:
		// The path carries more: the session before has shared it.
		w.starting = true
		return
	case w.shortest-w.base < delay/4:
		// The path is far from full: it has become faster, an outage has made
		// the window small, or few exchanges at once leave gaps.
		switch size := float64(w.size); {
		case faster:
			w.set(2 * size)
		case size < product:
			w.set(min(2*size, product))
		default:
			w.set(min(1.25*size, 2*product))
		}
		return
	case w.full > 1 && now.Sub(w.baseAt) > baseLife: // the first says little of the rate
		w.draining = rate
		w.set(rate * w.base.Seconds() * 3 / 4)
		return
	}
	next := float64(w.size)*w.base.Seconds()/w.shortest.Seconds() + ahead
	// Half way, and at most doubled: one odd round trip does not count much.
	w.set(min((float64(w.size)+next)/2, 2*float64(w.size)))
}

func (w *window) set(size float64) {
	w.size = int(min(max(size, minFlight), flightLimit))
}

// queue is how many bytes may wait while the window is full: enough to fill it
// again when acknowledgements come, and little delay. Half of it is worth an
// exchange of its own.
func (w *window) queue() int { return max(w.size/32, queueLimit) }

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
	l.out.window = w
	return more
}

// finds is what this session has found the path to carry: zero if nothing.
func (l *link) finds() (up, down pace) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.window.finds(), l.peer
}

// forget has finds say nothing until something is found again: it was of
// another way.
func (l *link) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out.window.forget()
	l.peer = pace{}
}

// news is what this session has found since news was called last: zero if
// nothing.
func (l *link) news() pace {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.out.window.found.After(l.said) {
		return pace{}
	}
	l.said = time.Now()
	return l.out.window.finds()
}
