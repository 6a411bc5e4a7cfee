package carrier

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// text is what a plan does, in words.
func (p *plan) text() string {
	names := [kinds]string{"greeting", "upload", "poll", "stream", "combined", "feed", "farewell"}
	var does []string
	for k, n := range p.start {
		if n > 0 {
			does = append(does, fmt.Sprintf("start %d %s", n, names[k]))
		}
	}
	for k, yes := range p.cancel {
		if yes {
			does = append(does, "cancel "+names[k])
		}
	}
	if p.cancelHeld {
		does = append(does, "cancel what is held")
	}
	said := map[string]bool{"held back": p.heldBack != "", "little": p.little, "feed": p.feeds, "alone": p.leads, "end feed": p.endFeed, "feed held back": p.feedBack != "", "swallow": p.swallow, "silent": p.silent, "suspend": p.suspend, "resume": p.resume}
	for _, what := range slices.Sorted(maps.Keys(said)) {
		if said[what] {
			does = append(does, what)
		}
	}
	return strings.Join(does, ", ")
}

func TestPlans(t *testing.T) {
	const never = time.Hour
	path := trip{100 * ms, 10 * ms}
	const late = 2*100*ms + 4*10*ms + slack
	// A calm session has nothing to say and polls on a path with many slots.
	calm := func() situation {
		return situation{
			slots: 100, polls: 1, probing: true, probeIn: never, answered: never, moved: never, silent: never, combined: never,
			demand: demand{due: -1, news: -1, trip: path},
		}
	}
	polled := glance{kind: poll, hold: 28 * time.Second, age: time.Second, begun: ms, sent: 2 * ms}
	receiving := polled
	receiving.first, receiving.heard = 900*ms, 990*ms
	streamed := glance{kind: stream, stream: time.Minute, age: time.Second, begun: ms, sent: 2 * ms, first: 102 * ms, heard: 102 * ms}
	written := glance{kind: upload, age: 50 * ms, begun: ms, sent: 2 * ms}
	writing := glance{kind: upload, age: 50 * ms, begun: ms}
	// A large upload that has waited for its answer for a time, and a little one.
	large := func(waits time.Duration) glance {
		return glance{kind: upload, size: 100 << 10, age: waits + 2*ms, begun: ms, sent: 2 * ms}
	}
	little := func(age time.Duration) glance {
		return glance{kind: upload, size: 100, age: age, begun: ms, sent: 2 * ms}
	}
	alone := func(waits time.Duration) glance { // it takes two seconds on the slowest path
		return glance{kind: combined, size: 2 * slowest, age: waits + 2*ms, begun: ms, sent: 2 * ms}
	}
	for _, c := range []struct {
		why   string
		do    func(s *situation)
		want  string
		again time.Duration // 0: at the latest
	}{
		{"a session without anything open wants one answer", func(*situation) {}, "start 1 poll", 0},
		{"one poll is enough in silence", func(s *situation) { s.flights = []glance{polled} }, "", 0},
		{"in a transfer there are as many as are worth it", func(s *situation) { s.flights, s.polls = []glance{polled}, 16 }, "start 15 poll", 0},
		{"a third of few slots is kept for uploads", func(s *situation) { s.slots, s.polls = 6, 16 }, "start 4 poll", 0},
		{"uploads under way leave what is left", func(s *situation) {
			s.slots, s.polls, s.flights = 6, 16, []glance{written, written, written}
		}, "start 3 poll", 0},
		{"what is due leaves before anything else is planned", func(s *situation) { s.due = 0 }, "start 1 upload", 0},
		{"what gathers is waited for", func(s *situation) { s.due, s.flights = 2*ms, []glance{polled} }, "", 2 * ms},
		{"a second upload may be written beside the first", func(s *situation) { s.due, s.flights = 0, []glance{polled, writing} }, "start 1 upload", 0},
		{"not a third one", func(s *situation) { s.due, s.flights = 0, []glance{polled, writing, writing} }, "", slack},
		{"unless two stand still: their connection may be dead", func(s *situation) {
			dead := glance{kind: upload, age: 2*100*ms + slack}
			s.due, s.flights, s.answered = 0, []glance{polled, dead, dead}, 0
		}, "start 1 upload", 0},
		{"any number may wait for their answers", func(s *situation) { s.due, s.flights = 0, []glance{polled, written, written, written} }, "start 1 upload", 0},
		{"as many as there are slots", func(s *situation) {
			s.slots, s.due, s.flights = 3, 0, []glance{polled, written}
		}, "", 2*late - 48*ms},
		{"a path that asks for a rest gets it", func(s *situation) { s.rest, s.due = 7*time.Second, 0 }, "", 7 * time.Second},
		{"a failing path is asked by one exchange", func(s *situation) { s.failing = true }, "start 1 upload", 0},
		{"and by no second one", func(s *situation) { s.failing, s.due, s.flights = true, 0, []glance{written} }, "", 0},
		{"but a large one may be swallowed for its size", func(s *situation) {
			s.failing, s.due, s.flights = true, 0, []glance{large(swallowed*late + 3*ms)}
		}, "start 1 upload, little", 0},
		{"where nothing can be sent beside it, it is small at once", func(s *situation) { s.failing, s.serial = true, true }, "start 1 upload, little", 0},
		{"if it fails for long, answers that are open may be why", func(s *situation) {
			s.failing, s.hopeless, s.flights = true, true, []glance{streamed}
		}, "cancel poll, cancel stream, cancel combined, suspend", minBackoff},
		{"not while it is asked", func(s *situation) {
			s.failing, s.hopeless, s.flights = true, true, []glance{streamed, written}
		}, "", 0},
		{"then it is asked a little later", func(s *situation) {
			s.failing, s.hopeless, s.suspended, s.suspendedFor = true, true, true, 30*ms
		}, "", minBackoff - 30*ms},
		{"and again", func(s *situation) {
			s.failing, s.hopeless, s.suspended, s.suspendedFor = true, true, true, time.Second
		}, "start 1 upload", 0},

		{"where answers come as they are written, one stream is open", func(s *situation) { s.streams = true }, "start 1 stream", 0},
		{"and no second one", func(s *situation) { s.streams, s.flights = true, []glance{streamed} }, "", 53 * time.Second},
		{"but the next before it ends", func(s *situation) {
			old := streamed
			old.age = 55 * time.Second
			s.streams, s.flights = true, []glance{old}
		}, "start 1 stream", 0},
		{"a stream that says nothing at first is waited for", func(s *situation) {
			s.streams, s.flights = true, []glance{{kind: stream, stream: time.Minute, age: 100 * ms}}
		}, "", late - 100*ms},
		{"then an upload asks whether others get through", func(s *situation) {
			s.streams, s.flights = true, []glance{{kind: stream, stream: time.Minute, age: time.Second}}
		}, "start 1 upload", 0},
		{"they do: it is held back, and polls take its place", func(s *situation) {
			s.streams, s.answered, s.flights = true, 500*ms, []glance{{kind: stream, stream: time.Minute, age: time.Second}}
		}, "start 1 poll, cancel stream, held back", 0},
		{"a stream may be silent if nothing is owed", func(s *situation) {
			quiet := streamed
			quiet.age = 20 * time.Second
			s.streams, s.flights = true, []glance{quiet}
		}, "", 34 * time.Second},
		{"one that stops while records are owed is held back", func(s *situation) {
			quiet := streamed
			quiet.age = 20 * time.Second
			s.streams, s.owed, s.flights = true, time.Second, []glance{quiet}
		}, "start 1 poll, cancel stream, held back", 0},
		{"records owed for a moment mean nothing yet", func(s *situation) { s.streams, s.owed, s.flights = true, 100*ms, []glance{streamed} }, "", late - 100*ms},

		{"where feeds may pass, one is made to see, beside the uploads of a conversation", func(s *situation) {
			s.streams, s.silent, s.feed, s.flights = true, 0, feedGlance{may: true}, []glance{streamed}
		}, "start 1 feed", 0},
		{"not in silence", func(s *situation) {
			s.streams, s.feed, s.flights = true, feedGlance{may: true}, []glance{streamed}
		}, "", 53 * time.Second},
		{"not where answers come when they are complete", func(s *situation) {
			s.silent, s.feed, s.flights = 0, feedGlance{may: true, passes: true}, []glance{polled, polled}
		}, "", 0},
		{"what is due is not for a feed that was not told of", func(s *situation) {
			s.streams, s.due, s.feed, s.flights = true, 0, feedGlance{may: true, open: true, waits: 100 * ms}, []glance{streamed}
		}, "start 1 upload", 0},
		{"where feeds pass, what is due starts one", func(s *situation) {
			s.streams, s.due, s.feed, s.flights = true, 0, feedGlance{may: true, passes: true}, []glance{streamed}
		}, "start 1 feed", 0},
		{"not one more where many wait for their answers: single uploads go on", func(s *situation) {
			s.streams, s.due, s.feed, s.flights = true, 0, feedGlance{may: true, passes: true}, []glance{streamed}
			for range maxUploads / feedsShare {
				s.flights = append(s.flights, glance{kind: feed, age: time.Second, begun: ms, sent: 100 * ms})
			}
		}, "start 1 upload", 0},
		{"nor beside a probe whose answer is to come", func(s *situation) {
			s.streams, s.silent, s.feed = true, 0, feedGlance{may: true}
			s.flights = []glance{streamed, {kind: feed, age: time.Second, begun: ms, sent: 100 * ms}}
		}, "", 53 * time.Second},
		{"and the one that is open takes it", func(s *situation) {
			s.streams, s.due, s.silent, s.flights = true, 0, 0, []glance{streamed}
			s.feed = feedGlance{may: true, passes: true, open: true, waits: 100 * ms}
		}, "alone, feed", 60 * ms},
		{"one that does not get on has an upload beside it", func(s *situation) {
			s.streams, s.due, s.flights = true, 0, []glance{streamed}
			s.feed = feedGlance{may: true, passes: true, open: true, busy: 100 * ms}
		}, "start 1 upload, feed", 0},
		{"and no second one", func(s *situation) {
			s.streams, s.due, s.flights = true, 0, []glance{streamed, writing}
			s.feed = feedGlance{may: true, passes: true, open: true, busy: 100 * ms}
		}, "feed", slack},
		{"one that the server does not tell of takes nothing, and an upload asks whether others get through", func(s *situation) {
			s.streams, s.flights, s.feed = true, []glance{streamed}, feedGlance{may: true, passes: true, open: true, waits: late + ms}
		}, "start 1 upload", 0},
		{"they carry what is due meanwhile", func(s *situation) {
			s.streams, s.due, s.flights = true, 0, []glance{streamed, written}
			s.feed = feedGlance{may: true, passes: true, open: true, waits: late + ms}
		}, "start 1 upload", 0},
		{"they do get through: it is held back", func(s *situation) {
			s.streams, s.answered, s.flights = true, 150*ms, []glance{streamed}
			s.feed = feedGlance{may: true, passes: true, open: true, waits: late + ms}
		}, "feed held back", 0},
		{"it ends where answers do not come any more as they are written", func(s *situation) {
			s.due, s.feed, s.flights = 0, feedGlance{may: true, passes: true, open: true}, []glance{polled}
		}, "start 1 upload, end feed", 0},
		{"and where one exchange passes at a time", func(s *situation) {
			s.serial, s.streams, s.feed, s.flights = true, true, feedGlance{may: true, passes: true, open: true}, []glance{streamed}
		}, "end feed", 0},

		{"a conversation by polls makes a probe when it is time", func(s *situation) {
			s.silent, s.probeIn, s.flights = time.Second, 0, []glance{polled, polled}
		}, "start 1 stream", 0},
		{"and looks again when it will be", func(s *situation) {
			s.silent, s.probeIn, s.flights = time.Second, 3*time.Second, []glance{polled, polled}
		}, "", 3 * time.Second},
		{"silence makes none", func(s *situation) { s.probeIn, s.flights = 0, []glance{polled} }, "", 0},
		{"nor does a client that was told to poll", func(s *situation) {
			s.silent, s.probing, s.probeIn, s.flights = time.Second, false, 0, []glance{polled, polled}
		}, "", 0},
		{"one probe at a time, which ends no poll", func(s *situation) {
			s.silent, s.probeIn, s.flights = time.Second, 0, []glance{polled, polled, {kind: stream, probe: true, stream: 2 * time.Second, age: time.Second}}
		}, "", 800 * ms},

		{"an upload that waits long may wait for the poll", func(s *situation) {
			waiting := written
			waiting.age = 2*late + 3*ms
			s.flights = []glance{polled, waiting}
		}, "cancel poll, cancel stream, cancel combined, suspend", late},
		{"not if others that waited pass, one after the other", func(s *situation) {
			waiting := written
			waiting.age = 2*late + 3*ms
			s.moved, s.flights = 50*ms, []glance{polled, waiting}
		}, "", 2*late - 50*ms},
		{"not if one was answered lately", func(s *situation) {
			waiting := written
			waiting.age = 2*late + 3*ms
			s.answered, s.flights = late, []glance{polled, waiting}
		}, "", 0},
		{"one whose body is under way does not wait", func(s *situation) {
			slow := writing
			slow.age = time.Minute
			s.flights = []glance{polled, slow}
		}, "", 0},
		{"a large upload that waits may be late", func(s *situation) {
			s.answered, s.flights = 0, []glance{polled, large(swallowed*late - 3*ms)}
		}, "", 3 * ms},
		{"then a little one asks whether it is its size", func(s *situation) {
			s.answered, s.flights = time.Minute, []glance{polled, large(swallowed*late + 3*ms)}
		}, "start 1 upload, little", 0},
		{"which has time to be answered", func(s *situation) {
			s.answered, s.flights = time.Minute, []glance{polled, large(3 * late), little(late / 2)}
		}, "", late / 2},
		{"from the moment on in which it was started", func(s *situation) {
			s.answered, s.flights = time.Minute, []glance{polled, large(3 * late), little(-ms)} // after the situation's
		}, "", late + ms},
		{"if it is not, either may wait for the poll", func(s *situation) {
			s.answered, s.flights = time.Minute, []glance{polled, large(3 * late), little(late + ms)}
		}, "cancel poll, cancel stream, cancel combined, suspend", late},
		{"what is sent later and answered shows that the large one is swallowed", func(s *situation) {
			s.answered, s.flights = late, []glance{polled, large(swallowed*late + 3*ms)}
		}, "swallow", 0},
		{"not what was sent before it", func(s *situation) {
			s.answered, s.flights = 4*late, []glance{polled, large(3 * late)}
		}, "start 1 upload, little", 0},
		{"a large one that is being answered is not swallowed", func(s *situation) {
			answered := large(3 * late)
			answered.first = 2 * late
			s.answered, s.flights = late, []glance{polled, answered}
		}, "", 0},
		{"nor one whose body is under way", func(s *situation) {
			slow := large(3 * late)
			slow.sent = 0
			s.answered, s.flights = late, []glance{polled, slow}
		}, "", 0},

		{"a large one that is alone has the time that it takes on a slow path", func(s *situation) {
			s.serial, s.flights = true, []glance{alone(swallowed*late + 2*time.Second - 3*ms)}
		}, "", 3 * ms},
		{"then the next one shall be small", func(s *situation) {
			s.serial, s.flights = true, []glance{alone(swallowed*late + 2*time.Second + 3*ms)}
		}, "silent", ms},
		{"not if the server waits for something to say", func(s *situation) {
			holds := alone(swallowed*late + 2*time.Second + 3*ms)
			holds.hold = combinedHold
			s.serial, s.flights = true, []glance{holds}
		}, "", combinedHold - 3*ms},
		{"nor if it is small", func(s *situation) {
			small := alone(time.Minute)
			small.size = smallBody
			s.serial, s.flights = true, []glance{small}
		}, "", 0},

		{"while answers are ended none is asked for", func(s *situation) { s.suspended, s.suspendedFor = true, 100*ms }, "", late - 100*ms},
		{"for a while", func(s *situation) { s.suspended, s.suspendedFor = true, late+1 }, "start 1 poll, resume", ms},

		{"one at a time, one exchange carries both directions", func(s *situation) { s.serial = true }, "start 1 combined", 0},
		{"and no second one", func(s *situation) {
			s.serial, s.flights = true, []glance{{kind: combined, hold: 20 * ms, age: 10 * ms, sent: ms}}
		}, "", 0},
		{"what is to be said ends one that waits long", func(s *situation) {
			s.serial, s.due, s.flights = true, 0, []glance{{kind: combined, hold: 28 * time.Second, age: time.Second, sent: ms}}
		}, "cancel what is held", 0},
		{"not one that is answered soon", func(s *situation) {
			s.serial, s.due, s.flights = true, 0, []glance{{kind: combined, hold: combinedHold, age: 10 * ms, sent: ms}}
		}, "", 0},
		{"nor one that is being answered", func(s *situation) {
			s.serial, s.due, s.flights = true, 0, []glance{{kind: combined, hold: 28 * time.Second, age: time.Second, sent: ms, first: 900 * ms}}
		}, "", 0},
		{"of polls that were under way before, those that are held", func(s *situation) {
			s.serial, s.due, s.flights = true, 0, []glance{polled, receiving}
		}, "cancel what is held", 0},
		{"and none of those that are being answered", func(s *situation) {
			s.serial, s.due, s.flights = true, 0, []glance{receiving, receiving}
		}, "", 0},
		{"but every stream", func(s *situation) { s.serial, s.due, s.flights = true, 0, []glance{receiving, streamed} }, "cancel stream", 0},
		{"in a crowd who has nothing to say pauses", func(s *situation) { s.slots, s.crowded, s.combined = 1, true, time.Second }, "", crowdPause - time.Second},
		{"and looks now and then", func(s *situation) { s.slots, s.crowded, s.combined = 1, true, crowdPause }, "start 1 combined", 0},
		{"who has something to say does not", func(s *situation) { s.slots, s.crowded, s.combined, s.due = 1, true, time.Second, 0 }, "start 1 combined", 0},
	} {
		s := calm()
		c.do(&s)
		p := decide(&s)
		if c.again == 0 {
			c.again = longest
		}
		if got := p.text(); got != c.want || !p.starts() && p.again != min(c.again, longest) {
			t.Errorf("%s: %q, and again in %v; want %q, %v", c.why, got, p.again, c.want, c.again)
		}
	}
}

// A conversation raises the number of polls only where polls are the way to
// receive: who comes back to them after it begins with one.
func TestWantedPolls(t *testing.T) {
	for _, c := range []struct {
		why  string
		do   func(s *situation)
		want int
	}{
		{"in silence", func(s *situation) { s.silent = lively }, 1},
		{"in a conversation", func(*situation) {}, livelyPolls},
		{"in a conversation after a transfer", func(s *situation) { s.polls = 5 }, 5},
		{"where one download is possible", func(s *situation) { s.slots = 2 }, 1},
		{"by streams", func(s *situation) { s.streams = true }, 0},
		{"one exchange at a time", func(s *situation) { s.serial = true }, 0},
		{"in a crowd", func(s *situation) { s.crowded = true }, 0},
		{"on a failing path", func(s *situation) { s.failing = true }, 0},
		{"in a rest", func(s *situation) { s.rest = time.Second }, 0},
		{"while answers are ended", func(s *situation) { s.suspended = true }, 0},
	} {
		s := situation{slots: 100, polls: 1, demand: demand{due: -1, news: -1}}
		c.do(&s)
		if p := decide(&s); p.polls != c.want {
			t.Errorf("%s: %d, want %d", c.why, p.polls, c.want)
		}
	}
}

func TestCancelHeld(t *testing.T) {
	fs := make(flights)
	for i, c := range []struct {
		why         string
		kind        kind
		hold        time.Duration
		sent, first int64
		held        bool
	}{
		{"a poll that waits", poll, longest, 1, 0, true},
		{"a poll whose answer is arriving", poll, longest, 1, 2, false},
		{"a poll that is not sent yet", poll, longest, 0, 0, false},
		{"a stream that says nothing", stream, 0, 1, 0, true},
		{"a combined exchange that waits long", combined, longest, 1, 0, true},
		{"a combined exchange that waits for a moment", combined, combinedHold, 1, 0, false},
		{"an upload", upload, 0, 1, 0, false},
	} {
		f := &flight{kind: c.kind, started: time.Now()}
		f.asked.Hold = c.hold
		f.sent.Store(c.sent)
		f.first.Store(c.first)
		canceled := false
		f.cancel = func(error) { canceled = true }
		fs[uint64(i)] = f
		defer func() {
			if canceled != c.held {
				t.Errorf("%s: broken off %v", c.why, canceled)
			}
		}()
	}
	fs.cancelHeld(time.Now())
}

// What a plan starts has its time after the moment that the next plan of the loop is
// made for. To that plan it is new, and not of the future: a small upload that seemed
// not to be there was started again and again, some thousand times.
func TestGlanceOfWhatIsNew(t *testing.T) {
	now := time.Now()
	f := &flight{kind: upload, size: 100, started: now.Add(time.Millisecond)}
	g := f.glance(now)
	if g.age != 0 {
		t.Errorf("age %v", g.age)
	}
	large := glance{kind: upload, size: 100 << 10, age: time.Minute, sent: time.Millisecond}
	s := situation{slots: 6, answered: time.Hour, flights: []glance{large, g}, demand: demand{due: -1, news: -1}}
	if p := decide(&s); p.start[upload] > 0 {
		t.Error("a small upload is started beside one that has just been")
	}
}

func TestRoom(t *testing.T) {
	for _, c := range []struct{ slots, downloading, uploads, downloads int }{
		{1, 0, 1, 1},
		{2, 0, 1, 1},
		{2, 1, 1, 1},
		{6, 0, 5, 4}, // HTTP/1.1
		{6, 1, 4, 4},
		{6, 4, 2, 4},
		{100, 1, maxUploads, maxDownloads},
	} {
		if u, d := room(c.slots, c.downloading); u != c.uploads || d != c.downloads {
			t.Errorf("%d slots, %d downloading: room for %d and %d, want %d and %d", c.slots, c.downloading, u, d, c.uploads, c.downloads)
		}
	}
}
