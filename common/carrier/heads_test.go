package carrier

import (
	"testing"
	"time"

	"turbotunnel/common/wire"
)

// The times in heads measure the round trip without what the other side waits,
// and only the newest head counts.
func TestHeadsMeasure(t *testing.T) {
	start := time.Now()
	at := func(n time.Duration) time.Time { return start.Add(n * ms) }
	const none = -1
	for _, c := range []struct {
		why    string
		number uint64
		head   wire.Head
		at     time.Duration // ms
		newest bool
		rtt    time.Duration
	}{
		{"no echo", 5, wire.Head{Time: 7}, 100, true, none},
		{"an echo", 6, wire.Head{Time: 7, Echoes: true, Echo: 50}, 100, true, 50 * ms},
		{"an echo after a wait", 6, wire.Head{Time: 7, Echoes: true, Echo: 50, Delay: 20 * ms}, 100, true, 30 * ms},
		{"an echo of what was not sent yet", 6, wire.Head{Echoes: true, Echo: 101}, 100, true, none},
		{"a wait that is longer than the time since", 6, wire.Head{Echoes: true, Echo: 50, Delay: time.Second}, 100, true, none},
		{"an echo across the clock's end", 6, wire.Head{Echoes: true, Echo: 1<<32 - 20}, 80, true, 100 * ms},
		{"one that was overtaken", 3, wire.Head{Time: 7, Echoes: true, Echo: 50}, 100, false, none},
		{"one that has come before", 4, wire.Head{Time: 7, Echoes: true, Echo: 50}, 100, false, none},
	} {
		heads := heads{start: start}
		heads.opened(4, &wire.Head{Time: 1}, at(10))
		newest, rtt := heads.opened(c.number, &c.head, at(c.at))
		if newest != c.newest || max(rtt, none) != c.rtt {
			t.Errorf("%s: newest %v, round trip %v; want %v, %v", c.why, newest, rtt, c.newest, c.rtt)
		}
		// What this side says next echoes the newest one.
		want := wire.Head{Time: 200, Echoes: true, Echo: 1, Delay: 190 * ms}
		if c.newest {
			want.Echo, want.Delay = c.head.Time, at(200).Sub(at(c.at))
		}
		var said wire.Head
		if n := heads.stamp(&said, at(200)); n != 0 || said.Time != want.Time || said.Echo != want.Echo || said.Delay != want.Delay || !said.Echoes {
			t.Errorf("%s: says %+v, want %+v", c.why, said, want)
		}
	}
}

// RFC 6298, sections 2.2 and 2.3.
func TestTrip(t *testing.T) {
	var got trip
	if got.assumed() != (trip{firstTrip, firstTrip / 2}) {
		t.Errorf("assumed %v", got.assumed())
	}
	for _, c := range []struct {
		sample time.Duration
		want   trip
	}{
		{80 * ms, trip{80 * ms, 40 * ms}},
		{80 * ms, trip{80 * ms, 30 * ms}},
		{160 * ms, trip{90 * ms, 42*ms + 500*time.Microsecond}},
	} {
		if got.sample(c.sample); got != c.want || got.assumed() != c.want {
			t.Errorf("after %v: %v, want %v", c.sample, got, c.want)
		}
	}
}
