package carrier

import (
	"testing"
	"time"
)

// A path of a rate and a round trip, with a queue as deep as it takes.
type testPath struct {
	rate float64 // bytes per second
	base time.Duration
}

// run keeps w full for d and returns the delay that its queue has then.
func (p testPath) run(w *window, now *time.Time, d time.Duration) time.Duration {
	rtt := p.base
	for end := now.Add(d); now.Before(end); {
		rtt = max(p.base, time.Duration(float64(w.size)/p.rate*float64(time.Second)))
		// Ten acknowledgements each round trip.
		for range 10 {
			*now = now.Add(rtt / 10)
			w.limited = true
			w.took(rtt, 0)
			w.ack(*now, now.Add(-rtt), w.size/10)
		}
	}
	return rtt - p.base
}

// greet is what a session begins with: a little there and back.
func (p testPath) greet(w *window, now *time.Time) {
	for range 2 {
		*now = now.Add(p.base)
		w.took(p.base, 0)
		w.ack(*now, now.Add(-p.base), 1000)
	}
}

// A window fills its path and adds little delay, whatever the path.
func TestWindowFollows(t *testing.T) {
	for _, p := range []testPath{
		{12.5e6, 100 * time.Millisecond},
		{62.5e6, 200 * time.Millisecond},
		{12.5e6, 20 * time.Millisecond},
		{125e3, 300 * time.Millisecond},
	} {
		w, now := newWindow(), time.Now()
		for range 20 { // a session begins with little
			now = now.Add(p.base)
			w.took(p.base, 0)
			w.ack(now, now.Add(-p.base), 1000)
		}
		// Two lives of the base, in which it is looked at anew.
		delay := p.run(&w, &now, 2*baseLife+3*time.Second)
		product := p.rate * p.base.Seconds()
		least := min(product, flightLimit)
		most := 1.2 * max(minFlight, product+p.rate*(2*queueDelay+p.base/4).Seconds())
		if s := float64(w.size); s < least*0.95 || s > most {
			t.Errorf("%v: %d bytes in flight, and the path holds %.0f; delay %v", p, w.size, product, delay)
		}
	}
}

// A path that changes is followed.
func TestWindowChanges(t *testing.T) {
	w, now := newWindow(), time.Now()
	slow, fast := testPath{1.25e6, 100 * time.Millisecond}, testPath{25e6, 150 * time.Millisecond}
	for range 2 {
		for _, p := range []testPath{fast, slow} {
			p.run(&w, &now, 2*baseLife)
			product := p.rate * p.base.Seconds()
			if s := float64(w.size); s < product*0.9 || s > max(minFlight, 2*product) {
				t.Errorf("%v: %d bytes in flight, and the path holds %.0f", p, w.size, product)
			}
		}
	}
}

// What is not limited by the window says nothing about the path.
func TestWindowIdle(t *testing.T) {
	w, now := newWindow(), time.Now()
	testPath{12.5e6, 100 * time.Millisecond}.run(&w, &now, 5*time.Second)
	before := 0
	for i := range 1000 {
		now = now.Add(100 * time.Millisecond)
		w.took(100*time.Millisecond, 0)
		w.ack(now, now.Add(-100*time.Millisecond), 1000)
		if i == 0 {
			before = w.size // the last round trip that was limited is over
		}
	}
	if w.size != before {
		t.Errorf("%d bytes became %d", before, w.size)
	}
}

// A transfer that begins late in a round trip shows little of the path there:
// the window goes on from where it was.
func TestWindowStart(t *testing.T) {
	w, now := newWindow(), time.Now()
	path := testPath{62.5e6, 200 * time.Millisecond}
	for i := range 20 {
		now = now.Add(path.base)
		w.limited = i == 19
		w.took(path.base, 0)
		w.ack(now, now.Add(-path.base), 2000)
	}
	path.run(&w, &now, 3*path.base)
	if product := path.rate * path.base.Seconds(); float64(w.size) < product {
		t.Errorf("%d bytes after three round trips, and the path holds %.0f", w.size, product)
	}
}

// A transfer after a long pause finds the window as it was, although its first
// round trip counts the pause, and the shortest one is old.
func TestWindowAfterPause(t *testing.T) {
	w, now := newWindow(), time.Now()
	path := testPath{12.5e6, 100 * time.Millisecond}
	for range 20 {
		now = now.Add(path.base)
		w.took(path.base, 0)
		w.ack(now, now.Add(-path.base), 1000)
	}
	path.run(&w, &now, 10*time.Second)
	before := w.size
	now = now.Add(2 * baseLife)
	w.limited = true
	w.took(path.base+path.base/4, 0)
	w.ack(now, now.Add(-path.base), 1000)
	if w.size < before/2 {
		t.Errorf("%d bytes became %d", before, w.size)
	}
}

// What was on its way for long shows a queue in which the head waits that would say so:
// the window does not grow any more.
func TestWindowBehindOthers(t *testing.T) {
	w, now := newWindow(), time.Now()
	path := testPath{12.5e6, 50 * time.Millisecond}
	path.greet(&w, &now)
	before := w.size
	for range 4 {
		now = now.Add(330 * time.Millisecond)
		w.limited = true
		w.ack(now, now.Add(-330*time.Millisecond), 16<<10)
	}
	if w.size > before {
		t.Errorf("%d bytes became %d", before, w.size)
	}
	w.limited = true
	w.ack(now, now.Add(-path.base), 16<<10)
	if w.size != before+startGrowth*16<<10 {
		t.Errorf("%d bytes became %d without a queue", before, w.size)
	}
}
