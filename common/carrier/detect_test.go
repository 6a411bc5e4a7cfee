package carrier

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"turbotunnel/common/wire"
)

// ended is how an exchange ended that was started ago before now.
func ended(now time.Time, k kind, ago time.Duration, change func(*result)) *result {
	res := &result{flight: &flight{kind: k, started: now.Add(-ago)}}
	if change != nil {
		change(res)
	}
	return res
}

func fails(res *result)     { res.err = errReset }
func succeeds(res *result)  { res.good = true }
func isForeign(res *result) { res.err, res.foreign = &errForeign{404, "text/html"}, true }

func TestCarrying(t *testing.T) {
	type step struct {
		after  time.Duration
		ago    time.Duration
		how    func(*result)
		shaken bool
	}
	for _, c := range []struct {
		why                string
		steps              []step
		failing, forgotten bool
	}{
		{"one failure may be chance", []step{{0, ms, fails, true}}, false, false},
		{"two are not", []step{{0, ms, fails, true}, {time.Second, ms, fails, false}}, true, false},
		{"two that fail together are one", []step{{0, ms, fails, true}, {ms, time.Second, fails, false}}, false, false},
		{"success ends it", []step{{0, ms, fails, true}, {time.Second, ms, fails, false}, {time.Second, ms, succeeds, false}}, false, false},
		{"but not the end of an answer of which nothing has come since", []step{{0, ms, isForeign, true}, {time.Second, ms, isForeign, false}, {time.Second, ms, isForeign, false}, {ms, time.Minute, func(r *result) {
			r.good, r.err = true, errReset
			r.flight.heard.Store(int64(50 * time.Second))
		}, false}}, true, true},
		{"what was not wanted did not fail", []step{{0, ms, func(r *result) { r.err = errUnneeded }, false}}, false, false},
		{"nor what brought something", []step{{0, ms, func(r *result) { r.good, r.err = true, errReset }, false}}, false, false},
		{"nor what was too large", []step{{0, ms, func(r *result) { r.err, r.tooLarge, r.size = errReset, true, MaxBody }, false}}, false, false},
		{"unless nothing smaller can be tried", []step{{0, ms, func(r *result) { r.err, r.tooLarge, r.size = errReset, true, smallBody }, true}}, false, false},
		{"two foreign answers are not enough", []step{{0, ms, isForeign, true}, {time.Second, ms, isForeign, false}}, true, false},
		{"three are: the server does not know the session", []step{{0, ms, isForeign, true}, {time.Second, ms, isForeign, false}, {time.Second, ms, isForeign, false}}, true, true},
		{"others between them do not hide it", []step{{0, ms, isForeign, true}, {time.Second, ms, fails, false}, {time.Second, ms, isForeign, false}, {time.Second, ms, isForeign, false}}, true, true},
		{"an answer of the server's does", []step{{0, ms, isForeign, true}, {time.Second, ms, isForeign, false}, {time.Second, ms, succeeds, false}, {shakenEvery, ms, isForeign, true}}, false, false},
		{"what fails again and again is said once a minute", []step{{0, ms, fails, true}, {time.Second, ms, succeeds, false}, {time.Second, ms, fails, false}}, false, false},
	} {
		var d carrying
		now := time.Now()
		for i, s := range c.steps {
			now = now.Add(s.after)
			if shaken, _ := d.observe(now, ended(now, upload, s.ago, s.how)); shaken != s.shaken {
				t.Errorf("%s: after step %d shaken is %v", c.why, i, shaken)
			}
		}
		_, forgotten := d.forgotten()
		if d.failing() != c.failing || forgotten != c.forgotten || (d.next(now, 0) > 0) != c.failing {
			t.Errorf("%s: failing %v, forgotten %v, next in %v", c.why, d.failing(), forgotten, d.next(now, 0))
		}
	}
}

// A rest is kept after a failure of the session's own, and not for ever.
func TestCarryingRests(t *testing.T) {
	var d carrying
	now := time.Now()
	if got := d.next(now, time.Minute); got > 0 {
		t.Errorf("a session that has not failed rests for %v", got)
	}
	d.observe(now, ended(now, upload, ms, fails))
	for _, c := range []struct{ after, rest, want time.Duration }{
		{0, 20 * time.Second, 20 * time.Second},
		{0, time.Hour, maxRest},
		{maxRest - ms, time.Hour, ms},
		{maxRest, time.Hour, 0},
	} {
		if got := d.next(now.Add(c.after), c.rest); max(0, got) != c.want {
			t.Errorf("%v after a failure, asked for %v: %v, want %v", c.after, c.rest, got, c.want)
		}
	}
	if _, err := d.muted(now.Add(muteAfter)); err != nil {
		t.Error("one failure is no silence")
	}
	d.observe(now.Add(2*ms), ended(now.Add(2*ms), upload, ms, fails))
	if _, err := d.muted(now.Add(muteAfter - 1)); err != nil {
		t.Error("mute too soon")
	}
	if idle, err := d.muted(now.Add(muteAfter)); idle != muteAfter || !errors.Is(err, errReset) {
		t.Errorf("after %v: %v", idle, err)
	}
	if _, err := d.muted(now.Add(time.Minute)); err != nil {
		t.Error("said twice")
	}
	if _, err := d.lost(now.Add(Lifetime)); err != nil {
		t.Error("lost too soon")
	}
	if _, err := d.lost(now.Add(Lifetime + 1)); !errors.Is(err, errReset) {
		t.Errorf("after its lifetime: %v", err)
	}
}

func TestReceiving(t *testing.T) {
	probe := func(age, first time.Duration, good bool) func(*result) {
		return func(r *result) {
			r.flight.probe, r.flight.asked.Stream, r.good = true, probeAge, good
			r.flight.first.Store(int64(first))
		}
	}
	for _, c := range []struct {
		why       string
		mode      Mode
		kind      kind
		ago       time.Duration
		how       func(*result)
		from, end bool // end: streams are to be ended
		to        bool
	}{
		{"the first answer came bit by bit", Auto, greeting, 150 * ms, func(r *result) { r.flight.first.Store(int64(80 * ms)) }, false, false, true},
		{"it came at once", Auto, greeting, 150 * ms, func(r *result) { r.flight.first.Store(int64(149 * ms)) }, false, true, false},
		{"who is told to poll learns nothing", Poll, greeting, 150 * ms, func(r *result) { r.flight.first.Store(int64(80 * ms)) }, false, false, false},
		{"a probe came bit by bit", Auto, stream, probeAge, probe(probeAge, 50*ms, true), false, false, true},
		{"it was held back", Auto, stream, probeAge, probe(probeAge, probeAge-ms, true), true, true, false},
		{"it failed", Auto, stream, probeAge, probe(probeAge, 50*ms, false), false, true, false},
		{"the end of a stream shows nothing", Auto, stream, time.Minute, succeeds, true, false, true},
		{"nor does a poll", Auto, poll, time.Minute, fails, true, false, true},
	} {
		now, w := time.Now(), new(Path).way("")
		r := receiving{mode: c.mode, streams: c.from}
		if end, _ := r.observe(now, ended(now, c.kind, c.ago, c.how), w); end != c.end || r.streams != c.to {
			t.Errorf("%s: streams are ended %v, received %v; want %v, %v", c.why, end, r.streams, c.end, c.to)
		}
	}
	// What is seen again and again is no news, and puts off the next probe.
	now, w := time.Now(), new(Path).way("")
	r := receiving{mode: Auto, streams: true}
	w.streams.saw(now, true)
	for i, want := range []time.Duration{firstProbe, firstProbe, firstProbe} {
		if report := r.heldBack(now, "why", w); (report != "") != (i == 0) {
			t.Errorf("%d: reports %q", i, report)
		}
		if in := w.streams.probeIn(now); in > want || in < want*3/4 {
			t.Errorf("%d: the next probe is in %v", i, in)
		}
	}
}

func TestSerial(t *testing.T) {
	now := time.Now()
	upload := func(s *serial, w *way, sent, first time.Duration) string {
		return s.observe(now, ended(now, upload, 3*time.Second, func(r *result) {
			r.good = true
			r.flight.sent.Store(int64(sent))
			r.flight.first.Store(int64(first))
		}), w)
	}
	for _, c := range []struct {
		why         string
		sent, first time.Duration
		passed      time.Duration // ago
		refused     bool
		suspended   bool // afterwards
		serial      bool
	}{
		{"it passed as soon as answers were ended, as before", time.Second, 2100 * ms, 10 * time.Second, false, false, true},
		{"for the first time in long", time.Second, 2100 * ms, time.Hour, false, false, false},
		{"it was answered before", time.Second, 1900 * ms, 10 * time.Second, false, true, false},
		{"it was sent since", 2050 * ms, 2100 * ms, 10 * time.Second, false, true, false},
		{"it has no answer", time.Second, 0, 10 * time.Second, false, true, false},
		{"it passed where others had failed, as before", 2050 * ms, 2100 * ms, 10 * time.Second, true, false, true},
		{"for the first time in long", 2050 * ms, 2100 * ms, time.Hour, true, false, false},
		{"it was sent before", time.Second, 2100 * ms, 10 * time.Second, true, true, false},
		{"it failed, too", 2050 * ms, 0, 10 * time.Second, true, true, false},
	} {
		s, w := serial{suspended: now.Add(-time.Second), refused: c.refused, passed: now.Add(-c.passed)}, new(Path).way("")
		report := upload(&s, w, c.sent, c.first)
		if s.suspended.IsZero() == c.suspended || w.oneAtATime(now) != c.serial || (report != "") != c.serial {
			t.Errorf("%s: suspended %v, serial %v, reports %q", c.why, !s.suspended.IsZero(), w.oneAtATime(now), report)
		}
	}
}

// Uploads that fail in a row are suspicious, whatever else gets through, and sooner
// where one has passed as soon as answers were ended. One that is answered beside an
// answer that waits shows that there was nothing in it.
func TestSerialSuspects(t *testing.T) {
	fail, busy := fails, func(r *result) { r.err, r.busy = &errForeign{503, "text/html"}, true }
	for _, c := range []struct {
		why                     string
		passed                  time.Duration // ago
		kinds                   []kind
		how                     []func(*result)
		hopeless, stillSuspects bool
	}{
		{"six failures may be chance", time.Hour, []kind{upload}, []func(*result){fail, fail, busy, fail, fail, fail}, false, false},
		{"seven are not", time.Hour, []kind{upload}, []func(*result){fail, fail, busy, fail, fail, fail, fail}, true, false},
		{"answers that come between them are no uploads", time.Hour, []kind{upload, poll}, []func(*result){busy, succeeds, busy, succeeds, busy, succeeds, busy, succeeds, busy, succeeds, busy, succeeds, busy}, true, false},
		{"an upload that passes between them is", time.Hour, []kind{upload}, []func(*result){busy, busy, busy, busy, busy, busy, succeeds, busy}, false, false},
		{"what was not wanted has not failed", time.Hour, []kind{upload}, []func(*result){busy, busy, busy, busy, busy, busy, func(r *result) { r.err = errUnneeded }}, false, false},
		{"four are enough where one has passed in time", time.Second, []kind{upload}, []func(*result){busy, busy, busy, busy}, true, true},
		{"three are not", time.Second, []kind{upload}, []func(*result){busy, busy, busy}, false, true},
		{"one that passes alone changes nothing", time.Second, []kind{upload}, []func(*result){succeeds, busy, busy, busy, busy}, true, true},
		{"one that passes beside an answer does", time.Second, []kind{upload}, []func(*result){func(r *result) { r.good, r.beside = true, true }, busy, busy, busy, busy}, false, false},
	} {
		now, w := time.Now(), new(Path).way("")
		s := serial{passed: now.Add(-c.passed)}
		for i, how := range c.how {
			now = now.Add(100 * ms)
			s.observe(now, ended(now, c.kinds[i%len(c.kinds)], 50*ms, how), w)
		}
		if s.hopeless(now, w) != c.hopeless || s.suspects(now, w) != c.stillSuspects {
			t.Errorf("%s: hopeless %v, suspects %v", c.why, s.hopeless(now, w), s.suspects(now, w))
		}
	}
}

// A path that was serial once is suspected until two exchanges have got through at once
// after that was believed last.
func TestWasSerial(t *testing.T) {
	now, w := time.Now(), new(Path).way("")
	var s serial
	if s.suspects(now, w) {
		t.Error("suspected without a reason")
	}
	w.setSerial(now)
	if now = now.Add(firstProbe - 1); !s.suspects(now, w) {
		t.Error("not suspected while it is believed")
	}
	if s.parallel(now, w); !s.suspects(now, w) {
		t.Error("what is under way still when it is learned is believed more")
	}
	now = now.Add(time.Hour)
	if !s.suspects(now, w) || w.oneAtATime(now) {
		t.Error("not suspected after it was believed, or believed still")
	}
	if s.parallel(now, w); s.suspects(now, w) {
		t.Error("suspected although two got through at once")
	}
}

// An answer is held beside an exchange if it was asked for long enough before.
func TestHoldBeside(t *testing.T) {
	const trip = 50 * ms
	now := time.Now()
	waits := func(k kind, ago, sent time.Duration, over bool) *flight {
		f := &flight{kind: k, started: now.Add(-ago)}
		f.ctx, f.cancel = context.WithCancelCause(t.Context())
		if f.sent.Store(int64(sent)); over {
			f.cancel(errUnneeded)
		}
		return f
	}
	for _, c := range []struct {
		why  string
		f    *flight
		want bool
	}{
		{"a poll", waits(poll, time.Second, ms, false), true},
		{"a stream", waits(stream, time.Second, ms, false), true},
		{"an upload holds nothing", waits(upload, time.Second, ms, false), false},
		{"it has not left yet", waits(poll, time.Second, 0, false), false},
		{"it may be refused yet", waits(poll, 40*ms, ms, false), false},
		{"nobody waits for it any more", waits(poll, time.Second, ms, true), false},
	} {
		if got := (flights{1: c.f}).holdBeside(&flight{kind: upload, started: now}, trip); got != c.want {
			t.Errorf("%s: %v", c.why, got)
		}
	}
}

// That there is no room now may be for others, unless 503 answers what went alone, and
// counts as a doubt.
func TestBusyIsADoubt(t *testing.T) {
	for _, c := range []struct {
		status      int
		alone, busy bool
	}{
		{http.StatusServiceUnavailable, false, true},
		{http.StatusServiceUnavailable, true, false},
		{http.StatusTooManyRequests, false, true},
		{http.StatusTooManyRequests, true, true},
		{http.StatusBadGateway, false, false},
		{http.StatusForbidden, false, false},
	} {
		res := ended(time.Now(), upload, ms, nil)
		res.size, res.flight.alone = MaxBody, c.alone
		res.err = res.notes(&http.Response{StatusCode: c.status, Header: http.Header{}})
		if s, shows := res.request(MaxBody); !shows || s.busy != c.busy {
			t.Errorf("of a request, status %d shows something: %v, busy: %v", c.status, shows, s.busy)
		}
		if res.flight.kind, res.size = poll, 100; true {
			if s, shows := res.answer(time.Now()); !shows || s.busy != c.busy {
				t.Errorf("of an answer, status %d shows something: %v, busy: %v", c.status, shows, s.busy)
			}
		}
	}
}

// There is little to say if an answer says little, nothing waits, and little is on its way.
func TestLittleToSay(t *testing.T) {
	for _, c := range []struct {
		received, backlog, owed int
		idle                    bool
	}{
		{100, 0, 0, true},
		{100, 0, minBody, true},
		{100, 0, minBody + 1, false},
		{100, smallBody, 0, false},
		{smallBody + 1, 0, 0, false},
	} {
		res := ended(time.Now(), poll, ms, succeeds)
		res.received, res.backlog, res.owed = c.received, c.backlog, c.owed
		if s, shows := res.answer(time.Now()); !shows || s.idle != c.idle {
			t.Errorf("%d bytes have come, %d wait, %d are owed: little to say: %v", c.received, c.backlog, c.owed, s.idle)
		}
	}
}

func TestBodies(t *testing.T) {
	const kb = 1 << 10
	passes := func(size int) sample { return sample{size: size, passed: true, full: true} }
	fails := func(size int) sample { return sample{size: size} }
	why := func(size int) sample { return sample{size: size, why: true} }
	cut := sample{size: 900 * kb, asked: true}
	busy := func(size int) sample { return sample{size: size, busy: true} }
	small := sample{size: 100, passed: true}
	for _, c := range []struct {
		reason  string
		samples []sample
		limit   int
		small   bool // a small one is to be tried
	}{
		{"full ones pass", []sample{passes(960 * kb)}, 1920 * kb, false},
		{"full ones of the limit before show nothing of this one", []sample{passes(960 * kb), passes(960 * kb)}, 1920 * kb, false},
		{"one failure may be chance", []sample{fails(900 * kb)}, 960 * kb, false},
		{"after three a small one is tried", []sample{fails(900 * kb), fails(800 * kb), fails(800 * kb)}, 960 * kb, true},
		{"if it passes, it is the size", []sample{fails(900 * kb), fails(800 * kb), fails(850 * kb), {size: 100, passed: true}}, 400 * kb, false},
		{"unless there was little to say", []sample{fails(900 * kb), fails(800 * kb), fails(850 * kb), {size: 100, passed: true, idle: true}}, 960 * kb, false},
		{"if there was no room, once may be chance", []sample{busy(900 * kb), fails(800 * kb), fails(850 * kb), small}, 960 * kb, false},
		{"then another failure is enough for a small one", []sample{busy(900 * kb), fails(800 * kb), fails(850 * kb), small, busy(900 * kb)}, 960 * kb, true},
		{"three times in turns is none", []sample{busy(900 * kb), fails(800 * kb), fails(850 * kb), small, busy(900 * kb), small, busy(900 * kb), small}, 400 * kb, false},
		{"two small ones after one failure are one turn", []sample{busy(900 * kb), fails(800 * kb), fails(850 * kb), small, small, busy(900 * kb), small, small}, 960 * kb, false},
		{"a large one that passes begins anew", []sample{busy(900 * kb), busy(800 * kb), busy(850 * kb), small, busy(900 * kb), small, {size: 900 * kb, passed: true}, busy(900 * kb), small}, 960 * kb, false},
		{"and so does a small one that fails", []sample{busy(900 * kb), busy(800 * kb), busy(850 * kb), small, busy(900 * kb), small, busy(900 * kb), busy(100), small, busy(900 * kb), small}, 960 * kb, false},
		{"if it fails, it is not", []sample{fails(900 * kb), fails(800 * kb), fails(800 * kb), fails(100)}, 960 * kb, false},
		{"nor if one as large passes", []sample{fails(900 * kb), fails(900 * kb), {size: 700 * kb, passed: true}, fails(900 * kb)}, 960 * kb, false},
		{"nor, of answers, if one passes that carries a large record", []sample{cut, cut, {size: 30 * kb, passed: true, asked: true}, cut, cut, {size: 30 * kb, passed: true, asked: true}, cut}, 960 * kb, false},
		{"or they are cut one after the other", []sample{cut, cut, {size: 3 * kb, passed: true, asked: true}, cut, {size: 3 * kb, passed: true, asked: true}}, 450 * kb, false},
		{"an answer that says why is believed", []sample{why(900 * kb)}, 450 * kb, false},
		{"one that was swallowed while others passed is enough", []sample{{size: 900 * kb, likely: true}}, 450 * kb, false},
		{"after one that took its time in vain a small one is tried", []sample{{size: 900 * kb, silent: true}}, 960 * kb, true},
		{"not if records would be given up for it", []sample{passes(30 * kb), {size: 30 * kb, likely: true}}, 960 * kb, false},
		{"a second limit is believed sooner", []sample{why(900 * kb), fails(450 * kb), fails(450 * kb), {size: 100, passed: true}}, 225 * kb, false},
		{"what is known to fail is not tried at once", []sample{why(900 * kb), passes(450 * kb)}, 450 * kb, false},
		{"nothing is smaller than a small body", []sample{why(smallBody + 1)}, smallBody, false},
		{"where large ones have passed it takes more", []sample{passes(900 * kb), fails(30 * kb), fails(30 * kb), fails(30 * kb)}, 1920 * kb, false},
	} {
		now, w := time.Now(), new(sizes)
		b := bodies{limit: MaxBody}
		for _, s := range c.samples {
			now = now.Add(100 * ms)
			b.observe(now, now.Add(-ms), s, w)
		}
		if b.limit != c.limit || (b.next(w) == smallBody) != (c.small || c.limit == smallBody) {
			t.Errorf("%s: limit %d, next %d; want %d, small %v", c.reason, b.limit, b.next(w), c.limit, c.small)
		}
	}
}

// What has failed is tried again later, and each time after longer. Other sessions
// begin with what is known.
func TestSizes(t *testing.T) {
	now, w := time.Now(), new(sizes)
	for i, wait := range []time.Duration{firstSize, 2 * firstSize, 4 * firstSize} {
		w.refuses(now, 64<<10, 32<<10)
		if w.worth(now.Add(wait), 64<<10) || !w.worth(now.Add(wait+1), 64<<10) || !w.worth(now, 63<<10) {
			t.Errorf("%d: tried again at another time than after %v", i, wait)
		}
		now = now.Add(wait + 1)
	}
	if got := w.known(1 << 20); got != 32<<10 {
		t.Errorf("another session begins with %d", got)
	}
	w.passed(64 << 10)
	if w.limited() || !w.takesLarge() {
		t.Error("what passes is not too large")
	}
	if w.refuses(now, 8<<10, 4<<10); w.takesLarge() || w.known(1) != smallBody {
		t.Error("large ones do not pass any more")
	}
}

// Streams that end because they are full say nothing of how long one may stay open,
// where they are small, either; those that are cut do, whatever has been full meanwhile.
func TestAgesOfStreams(t *testing.T) {
	type step struct {
		age      time.Duration
		received int
	}
	const limit = 64 << 10
	for name, c := range map[string]struct {
		steps []step
		want  time.Duration
	}{
		"full":                    {[]step{{6 * time.Second, limit * 9 / 10}, {6 * time.Second, limit * 9 / 10}}, defaultAge},
		"cut":                     {[]step{{40 * time.Second, 100}, {40 * time.Second, 100}}, share(40 * time.Second)},
		"cut, and full meanwhile": {[]step{{40 * time.Second, 100}, {35 * time.Second, limit * 9 / 10}, {40 * time.Second, 100}}, share(40 * time.Second)},
		"cut, and not meanwhile":  {[]step{{40 * time.Second, 100}, {50 * time.Second, 100}, {40 * time.Second, 100}}, longAge},
	} {
		t.Run(name, func(t *testing.T) {
			now, w := time.Now(), new(Path).way("")
			for _, s := range c.steps {
				now = now.Add(s.age)
				w.observe(now, ended(now, stream, s.age, func(r *result) {
					r.flight.asked = wire.Head{Limit: limit, Stream: 55 * time.Second, Quiet: defaultQuiet}
					r.flight.heard.Store(int64(s.age))
					r.good, r.received = true, s.received
				}))
			}
			if got := w.age.most; got != c.want {
				t.Errorf("streams may stay open for %v, want %v", got, c.want)
			}
		})
	}
}

func TestPolling(t *testing.T) {
	poll := func(received, backlog int) *result {
		return ended(time.Now(), poll, time.Second, func(r *result) {
			r.flight.asked.Limit, r.received, r.backlog = 1<<20, received, backlog
		})
	}
	for _, c := range []struct {
		why  string
		res  *result
		want int // of 4 before
	}{
		{"an answer that was full", poll(1<<20, 0), maxDownloads},
		{"one that leaves something behind", poll(1000, 1), 8},
		{"one that is large", poll(manyBytes, 0), 8},
		{"one that is small", poll(1000, 0), 3},
		{"an empty one", poll(0, 0), 2},
		{"one that failed", ended(time.Now(), poll(0, 0).flight.kind, time.Second, fails), 4},
		{"another exchange", ended(time.Now(), upload, time.Second, succeeds), 4},
	} {
		p := polling{want: 4}
		if p.observe(c.res); p.next() != c.want {
			t.Errorf("%s: %d, want %d", c.why, p.want, c.want)
		}
	}
	p := polling{want: -1}
	if n := p.next(); n != 1 {
		t.Errorf("%d at the least", n)
	}
	if p.settle(3); p.next() != 3 {
		t.Errorf("%d where a plan wanted 3", p.want)
	}
	if p.settle(0); p.next() != 3 {
		t.Errorf("%d after a plan without polls", p.want)
	}
}
