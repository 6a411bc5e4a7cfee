package carrier

import "time"

const (
	// firstFlight is what a new session may send at once. Of 500 that begin together
	// to upload over 200 Mbit/s the slowest has 0.90 of the mean with 208 KB each, which
	// are 4.2 s of the path, as it has with 160, and 0.41 with 256 (bin/load -only busy).
	// With 160 KB a session that is alone loses 0.02 of its first two seconds. minFlight
	// and flightLimit bound a window: the least lets several full records go at
	// once; the most covers 200 ms at 500 Mbit/s and as much again, and bounds
	// the memory that repair costs a session.
	firstFlight = 208 << 10
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
	// that is acknowledged: eightfold in a round trip, until an acknowledgement
	// shows a queue. TCP below does not let it flood the path; what is at stake is
	// a short time of delay.
	startGrowth = 7

	// startLate is how many times as long as a round trip with its short queue what is
	// acknowledged may have been on its way for the window to grow. The times in heads
	// do not show a queue before a head has come through it: 50 sessions that began to
	// share 20 Mbit/s at once grew to 1 MB each meanwhile, which takes 20 s, and the
	// slowest had 0.34 of the mean. It has 0.97 (TestPaceShared, in test/pace).
	startLate = 2

	// serialLate is how long an exchange may take for the window to grow where no round
	// trip can be measured: whatever is said next waits as long for its turn.
	serialLate = time.Second

	// rateDecay is how much of a rate is left after a round trip that has not
	// seen it.
	rateDecay = 7.0 / 8

	// margin is how much larger than the path seems to hold a window may be: what
	// was measured is too little where acknowledgements come in lumps.
	margin = 5.0 / 4

	// rise is how much one round trip's rate may be above the best of late
	// before that means that the path has become faster.
	rise = 1.1

	// startRounds is how many round trips a window grows at least, unless a queue
	// shows, and startShare which share of what was allowed two round trips before
	// has to be delivered for it to grow on: less than that is a path that is full.
	startRounds = 4
	startShare  = 2.0 / 3

	// drained is the share of what the path holds that is in flight while the
	// base is looked for: the queue is gone within that round trip.
	drained = 3.0 / 4

	// baseLife is how long a round-trip time counts as the shortest. Then the
	// window is kept low for a round trip, so that it can be seen again.
	baseLife = 20 * time.Second
)

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
	size     int           // bytes that may be in flight
	limited  bool          // in this round trip there was more to send than that
	starting bool          // the size grows with each acknowledgement: no queue was seen yet
	rate     float64       // the most bytes per second of late, when the window was the limit; 0: never yet
	base     time.Duration // the shortest round trip of late; 0: none yet
	baseAt   time.Time     // when it was seen
	draining float64       // the rate before the window was lowered to see the base; 0: it was not
	latest   time.Duration // the latest round-trip time; 0: none yet

	// The round trip under way.
	since     time.Time
	delivered int           // bytes that were acknowledged in it
	shortest  time.Duration // the shortest round-trip time in it; 0: none yet
	rounds    int           // so many before it were limited, one after the other
	sizes     [2]int        // the size when it began, and when the one before it did

	found found // recall
}

func newWindow() window { return window{size: firstFlight, starting: true} }

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

// ack notes that n bytes were acknowledged, of which the newest were sent at a time.
func (w *window) ack(now, sent time.Time, n int) {
	w.delivered += n
	if w.since.IsZero() {
		w.since = now
	}
	// Where one exchange gets through at a time none measures a round trip: what it
	// carries is what is in flight, and what waits is for the next one.
	late, most := startLate*(w.base+w.delay()), flightLimit
	if w.base == 0 {
		late, most = serialLate, max(w.size, 2*MaxBody)
	}
	if w.starting && w.limited && w.latest-w.base < 2*w.delay() && now.Sub(sent) < late {
		w.set(float64(min(w.size+startGrowth*n, most)))
	}
	if w.shortest == 0 || now.Sub(w.since) < w.shortest {
		return
	}
	if w.base == 0 || w.shortest <= w.base {
		w.base, w.baseAt = w.shortest, now
	}
	w.endRound(now)
	w.sizes = [2]int{w.size, w.sizes[0]}
	w.since, w.delivered, w.shortest, w.limited = now, 0, 0, false
}

// delay is how long the queue in front of the bottleneck shall be.
func (w *window) delay() time.Duration { return delayAt(w.base) }

// delayAt is how long a queue shall be on a path of that round trip.
func delayAt(base time.Duration) time.Duration {
	return queueDelay + time.Duration(queueShare*float64(base))
}

// endRound ends a round trip.
func (w *window) endRound(now time.Time) {
	defer w.found.follow(*w, w, now)                          // recall
	rate := float64(w.delivered) / now.Sub(w.since).Seconds() // bytes per second
	delay := w.delay()
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
		w.rounds = 0
		if w.shortest-w.base > 2*delay && w.rate > 0 {
			w.set(min(float64(w.size), margin*max(rate, w.rate)*(w.base+delay).Seconds()))
		}
		return
	}
	if now.Sub(w.since) > 2*w.shortest+time.Second {
		w.rounds = 0 // there was a pause in it
	}
	w.rounds++
	faster := rate > rise*w.rate
	if w.rounds > 1 { // acknowledgements can come in lumps, and a round trip see none
		w.rate *= rateDecay
	}
	w.rate = max(rate, w.rate)
	product := w.rate * (w.base + delay).Seconds()
	switch {
	case w.starting:
		// What a round trip delivers is what was sent in the one before, when the
		// size was still growing to what it was at its end.
		early := w.rounds < startRounds || float64(w.delivered) > startShare*float64(w.sizes[1])
		if early && w.shortest-w.base < 2*delay {
			return // it grows
		}
		// The rate is the path's, or a part of that if the path has not been full
		// for all of the round trip.
		w.starting = false
		w.set(min(float64(w.size), margin*product))
	case w.shortest-w.base < delay/4:
		// The path is far from full: it has become faster, an outage has made
		// the window small, or few exchanges at once leave gaps.
		switch size := float64(w.size); {
		case faster:
			w.set(2 * size)
		case size < product:
			w.set(min(2*size, product))
		default:
			w.set(min(margin*size, 2*product))
		}
	case w.rounds > 1 && now.Sub(w.baseAt) > baseLife: // the first says little of the rate
		w.draining = rate
		w.set(rate * w.base.Seconds() * drained)
	default:
		next := float64(w.size)*w.base.Seconds()/w.shortest.Seconds() + rate*delay.Seconds()
		// Half way, and at most doubled: one odd round trip does not count much.
		w.set(min((float64(w.size)+next)/2, 2*float64(w.size)))
	}
}

// set makes the window size bytes, within its bounds.
func (w *window) set(size float64) {
	w.size = int(min(max(size, minFlight), flightLimit))
}

// queue is how many bytes may wait while the window is full: enough to fill it
// again when acknowledgements come, and little delay. Half of it is worth an
// exchange of its own.
func (w *window) queue() int { return max(w.size/32, queueLimit) }
