package carrier

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"turbotunnel/common/wire"
)

// A sender is an outgoing half with a clock that a test moves, and nothing
// around it.
type sender struct {
	outgoing
	now  time.Time
	trip trip
}

func newSender() *sender {
	now := time.Now()
	s := &sender{now: now, trip: trip{100 * ms, 10 * ms}}
	s.outgoing = newOutgoing(new(account), make(chan struct{}, 1), make(chan struct{}, 1), now)
	s.silence.part = 1 // no chance in it
	return s
}

// send puts n records and has exchange e carry and write them.
func (s *sender) send(e uint64, n int) *sender {
	for range n {
		s.put(make([]byte, 9000)) // one fits into a record
	}
	return s.carry(e)
}

// carry has exchange e carry what there is.
func (s *sender) carry(e uint64) *sender {
	for _, r := range s.take(e, largestBody, s.now, lanes{}) {
		r.buf.release()
	}
	s.wrote(e, s.now)
	return s
}

// later moves the clock, and ticks.
func (s *sender) later(d time.Duration) *sender {
	s.now = s.now.Add(d)
	s.tick(s.now, s.trip)
	return s
}

// acked says that the other side has the records below low and those named.
func (s *sender) acked(low uint64, more ...uint64) *sender {
	h := wire.Head{Acks: wire.Set{Low: low}}
	for _, n := range more {
		h.Acks.Add(n)
	}
	s.opened(&h, false, s.now)
	return s
}

// ended says that the other side receives no more of exchange e.
func (s *sender) ended(e uint64) *sender {
	h := wire.Head{}
	h.Ended.Add(e)
	s.opened(&h, true, s.now)
	return s
}

// state is what the half holds: the numbers in flight, and those lost.
func (s *sender) state() string {
	var flying, lost []uint64
	size := 0
	for n := s.base; n < s.next; n++ {
		switch r := s.record(n); {
		case r == nil:
		case r.lost:
			lost = append(lost, n)
		default:
			flying = append(flying, n)
			size += r.size
		}
	}
	text := fmt.Sprint(flying, lost)
	if size != s.flying {
		text += fmt.Sprintf(" but %d bytes are counted for %d", s.flying, size)
	}
	for _, n := range lost {
		if !slices.Contains(s.lost, n) {
			text += fmt.Sprintf(" but %d is not in the list", n)
		}
	}
	return text
}

func TestOutgoingRepairs(t *testing.T) {
	const soon, late = 100 * ms, 5 * time.Second
	for _, c := range []struct {
		why  string
		do   func(s *sender)
		want string // in flight, lost
	}{
		{"what was sent is in flight", func(s *sender) { s.send(1, 3) }, "[0 1 2] []"},
		{"what is acknowledged is not", func(s *sender) { s.send(1, 3).acked(2) }, "[2] []"},
		{"nor if it is acknowledged twice", func(s *sender) { s.send(1, 3).acked(2).acked(1, 1) }, "[2] []"},
		{"what was never sent cannot be acknowledged", func(s *sender) { s.send(1, 1).acked(100, 200) }, "[] []"},
		{"an exchange keeps its order: what it carried before is lost", func(s *sender) { s.send(1, 3).acked(0, 2) }, "[] [0 1]"},
		{"exchanges overtake each other", func(s *sender) { s.send(1, 2).send(2, 2).acked(0, 2, 3) }, "[0 1] []"},
		{"an exchange that has failed has lost all", func(s *sender) { s.send(1, 2).send(2, 1).endExchange(1) }, "[2] [0 1]"},
		{"so has one that the other side calls ended", func(s *sender) { s.send(1, 2).send(2, 1).ended(1) }, "[2] [0 1]"},
		{"what was sent again is not lost with the first exchange", func(s *sender) {
			s.send(1, 1).endExchange(1)
			s.carry(2).endExchange(1)
		}, "[0] []"},
		{"what was lost and comes after all is not sent again", func(s *sender) {
			s.send(1, 2).endExchange(1)
			s.acked(1).carry(2)
		}, "[1] []"},
		{"time alone loses nothing soon", func(s *sender) { s.send(1, 2).later(soon) }, "[0 1] []"},
		{"in silence one record asks whether the path is back", func(s *sender) { s.send(1, 3).later(late) }, "[1 2] [0]"},
		{"the oldest one", func(s *sender) { s.send(2, 1).send(1, 2).later(late) }, "[1 2] [0]"},
		{"not a second one while the first waits to be sent", func(s *sender) { s.send(1, 3).later(late).later(late) }, "[1 2] [0]"},
		{"each time after twice as long", func(s *sender) { s.send(1, 3).later(late).carry(2).later(late).carry(3).later(minProbe) }, "[0 1 2] []"},
		{"that one exchange brought something later says that another has failed", func(s *sender) {
			s.send(1, 2).later(ms).send(2, 1).later(soon).acked(0, 2).later(late)
		}, "[] [0 1]"},
		{"but not before it may have taken so long", func(s *sender) {
			s.send(1, 2).later(ms).send(2, 1).later(soon).acked(0, 2).later(soon)
		}, "[0 1] []"},
		{"one that is still being written is waited for", func(s *sender) {
			s.put([]byte("x"))
			s.take(1, MaxBody, s.now, lanes{})[0].buf.release()
			s.later(time.Hour)
		}, "[0] []"},
		{"nothing is put on an exchange that the other side calls ended", func(s *sender) { s.ended(1).send(1, 1) }, "[] []"},
	} {
		s := newSender()
		c.do(s)
		if got := s.state(); got != c.want {
			t.Errorf("%s: in flight and lost are %s, want %s", c.why, got, c.want)
		}
		s.drop()
		if held := s.held.bytes(); held != 0 {
			t.Errorf("%s: %d bytes held after drop", c.why, held)
		}
	}
}

func TestOutgoingIsDue(t *testing.T) {
	const never = -1
	calm := func(s *sender) { s.window.base, s.window.starting = 80*ms, false }
	for _, c := range []struct {
		why  string
		do   func(s *sender)
		in   lanes
		want time.Duration
	}{
		{"nothing waits", func(*sender) {}, lanes{}, never},
		{"after a pause a word leaves at once", func(s *sender) { calm(s); s.put([]byte("x")) }, lanes{}, 0},
		{"words gather for a while", func(s *sender) { calm(s); s.send(1, 1).put([]byte("x")) }, lanes{}, batchDelay},
		{"not on a path shorter than timers", func(s *sender) { s.window.base = ms; s.send(1, 1).put([]byte("x")) }, lanes{}, 0},
		{"half a queue leaves at once", func(s *sender) {
			calm(s)
			s.send(1, 1)
			for range queueLimit / 2 / 9000 {
				s.put(make([]byte, 9000))
			}
			s.put(make([]byte, 9000))
		}, lanes{}, 0},
		{"what was lost leaves at once", func(s *sender) { calm(s); s.send(1, 1).endExchange(1) }, lanes{}, 0},
		{"few slots are a share of the round trip apart", func(s *sender) { calm(s); s.send(1, 1).put([]byte("x")) }, lanes{slots: 4}, 20 * ms},
		{"many slots are no matter", func(s *sender) { calm(s); s.send(1, 1).put([]byte("x")) }, lanes{slots: fewSlots}, batchDelay},
		{"so are few polls", func(s *sender) { calm(s); s.send(1, 1).put([]byte("x")) }, lanes{polls: 4}, 20 * ms},
		{"unless the window grows", func(s *sender) { s.window.base = 80 * ms; s.send(1, 1).put([]byte("x")) }, lanes{polls: 4}, batchDelay},
		{"a full window is waited for", func(s *sender) { s.window.size = 9000; s.send(1, 2).put([]byte("x")) }, lanes{}, never},
		{"so is room at the other side", func(s *sender) { s.grant = 1; s.send(1, 2) }, lanes{}, never},
		{"who is blocked does not wait for company", func(s *sender) {
			calm(s)
			s.send(1, 1)
			for s.put(make([]byte, 9000)) {
			}
		}, lanes{slots: 2}, 0},
	} {
		s := newSender()
		c.do(s)
		if got := s.dueIn(s.now, c.in); got != c.want {
			t.Errorf("%s: due in %v, want %v", c.why, got, c.want)
		}
		s.drop()
	}
}

// An exchange carries no more than fits, and where exchanges are few its share.
func TestOutgoingTakes(t *testing.T) {
	for _, c := range []struct {
		why   string
		limit int
		in    lanes
		want  int // records
	}{
		{"all", largestBody, lanes{}, 15},
		{"as much as the limit allows", 30000, lanes{}, 3},
		{"nothing", 9000, lanes{}, 0},
		{"its share where slots are few", largestBody, lanes{slots: 3}, 7}, // of 208 KB
		{"a record and more in any case", largestBody, lanes{slots: 15}, 2},
		{"all where slots are many", largestBody, lanes{slots: 16}, 15},
	} {
		s := newSender()
		for range 15 {
			s.put(make([]byte, 9000))
		}
		taken := s.take(1, c.limit, s.now, c.in)
		for _, r := range taken {
			r.buf.release()
		}
		if len(taken) != c.want {
			t.Errorf("%s: %d records, want %d", c.why, len(taken), c.want)
		}
		s.drop()
	}
}

// What was queued while large records were made leaves in small ones when it must,
// in order and whole, and the other half puts it together. An end of a datagram that
// was cut stands alone in its record.
func TestSmallRecords(t *testing.T) {
	for _, sizes := range [][]int{
		{1},
		{100, 200, 300},
		{smallUnit - wire.Overhead - 2},
		{smallUnit - wire.Overhead - 1},
		{smallUnit},
		{8192, 8192, 8192},
		{1400, 1400, 1400, 1400, 1400, 1400},
		{8000, 5, 8000, 5, 5, 8000},
		{wire.RecordRoom, 1, wire.RecordRoom},
	} {
		for _, unit := range []int{smallUnit, smallUnit / 4, wire.MaxUnit} {
			s, r := newSender(), newReceiver()
			s.setUnit(unit)
			var want []string
			for i, n := range sizes {
				p := bytes.Repeat([]byte{byte('a' + i)}, n)
				want = append(want, string(p))
				if !s.put(p) {
					t.Fatalf("%v: no room", sizes)
				}
			}
			for s.queue.bytes > 0 {
				s.now = s.now.Add(ms)
				for _, rec := range s.take(1, largestBody, s.now, lanes{}) {
					if rec.size > unit || cap(rec.buf.b) < rec.size+unitScratch {
						t.Errorf("%v by %d: a record of %d bytes in a buffer of %d", sizes, unit, rec.size, cap(rec.buf.b))
					}
					if unit < wire.MaxUnit && rec.buf.cost() == unitCost {
						t.Errorf("%v by %d: a record of %d bytes takes a large buffer", sizes, unit, rec.size)
					}
					b := newBuffer()
					b.b = append(b.b, rec.buf.b[wire.HeaderSize:]...)
					rec.buf.release()
					if !r.receive(rec.number, b, r.now) {
						b.release()
					}
				}
				s.acked(s.next)
			}
			buf := make([]byte, wire.RecordRoom)
			for i, w := range want {
				if n, ok := r.get(buf, r.now); !ok || string(buf[:n]) != w {
					t.Errorf("%v by %d: datagram %d is not what was put", sizes, unit, i)
				}
			}
			if _, ok := r.get(buf, r.now); ok {
				t.Errorf("%v by %d: more came than was put", sizes, unit)
			}
			if s.held.bytes() != 0 || len(s.queue.records) > 0 {
				t.Errorf("%v by %d: %d bytes are held when all is acknowledged", sizes, unit, s.held.bytes())
			}
		}
	}
}

// What is given up is told until the other side knows.
func TestGivenUpIsTold(t *testing.T) {
	s := newSender().send(1, 1).send(2, 1).send(3, 1)
	kept := func() uint64 {
		var h wire.Head
		s.stamp(&h)
		return h.Kept
	}
	if n := kept(); n != 0 {
		t.Errorf("%d is told, and nothing was given up", n)
	}
	s.setUnit(smallUnit)
	s.endExchange(2)
	if n := kept(); n != 0 {
		t.Errorf("%d is told while an older one may come", n)
	}
	s.endExchange(1)
	if n := kept(); n != 2 {
		t.Errorf("%d is told, not 2", n)
	}
	s.acknowledge(&wire.Set{Low: 2}, s.now)
	if n := kept(); n != 0 {
		t.Errorf("%d is told to who knows", n)
	}
}

// A record that has become too large is given up when it is lost, or at once if it is
// lost already; what is in flight may still come.
func TestTooLargeRecords(t *testing.T) {
	s := newSender().send(1, 1).send(2, 1)
	s.endExchange(1)
	s.setUnit(smallUnit)
	if got := s.state(); got != "[1] []" {
		t.Errorf("%s", got)
	}
	if got := s.carry(3).state(); got != "[1] []" {
		t.Errorf("what was given up is sent again: %s", got)
	}
	if s.endExchange(2); s.state() != "[] []" || s.unfinished() || s.held.bytes() != 0 {
		t.Errorf("%s, and %d bytes are held", s.state(), s.held.bytes())
	}
}

// What is put behind the rest of the largest datagram does not share a record with
// its end: together they would have no room at the other side.
func TestEndStandsAlone(t *testing.T) {
	s, r := newSender(), newReceiver()
	s.setUnit(smallUnit)
	s.put(make([]byte, wire.RecordRoom))
	for more := true; s.queue.bytes > 0; more = false {
		for _, rec := range s.take(1, smallUnit, s.now, lanes{}) {
			b := newBuffer()
			b.b = append(b.b, rec.buf.b[wire.HeaderSize:]...)
			rec.buf.release()
			if !r.receive(rec.number, b, r.now) {
				b.release()
			}
		}
		s.acked(s.next)
		if more {
			s.put(make([]byte, 100))
		}
	}
	buf := make([]byte, wire.RecordRoom)
	for _, want := range []int{wire.RecordRoom, 100} {
		if n, _ := r.get(buf, r.now); n != want {
			t.Errorf("a datagram of %d bytes, want %d", n, want)
		}
	}
}

// What an exchange carries is awaited while something is acknowledged, until it counts
// as lost.
func TestAwaits(t *testing.T) {
	s := newSender().send(1, 2).send(2, 1).send(3, 1)
	awaits := func(e uint64, want bool, when string) {
		t.Helper()
		if got := s.awaits(e, s.now.Add(-patience)); got != want {
			t.Errorf("%s: exchange %d is awaited: %v", when, e, got)
		}
	}
	s.now = s.now.Add(4 * patience)
	awaits(1, false, "in silence")
	s.acked(1)
	awaits(1, true, "when a part has come")
	awaits(2, true, "when others have come")
	awaits(4, false, "when it carries nothing")
	s.acked(3)
	awaits(1, false, "when all has come")
	s.now = s.now.Add(patience + 1)
	awaits(3, false, "in silence again")
	s.send(5, 1).acked(3, s.next-1)
	awaits(3, true, "when something later has come")
	s.later(time.Second)
	awaits(3, false, "when it is lost")

	s = newSender().send(1, 1)
	s.put(make([]byte, 9000))
	s.take(2, largestBody, s.now, lanes{})
	s.acked(1)
	awaits(2, false, "when it has not been written")
}
