package carrier

import (
	"fmt"
	"testing"
	"time"

	"turbotunnel/common/wire"
)

// A receiver is an incoming half with a clock that a test moves, and nothing
// around it.
type receiver struct {
	incoming
	now  time.Time
	trip trip
}

func newReceiver() *receiver {
	r := &receiver{now: time.Now(), trip: trip{100 * ms, 10 * ms}}
	r.incoming = newIncoming(new(account), make(chan struct{}, 1), make(chan struct{}, 1))
	return r
}

// come has records come, each of which holds its number.
func (r *receiver) come(numbers ...uint64) *receiver {
	for _, n := range numbers {
		b := newBuffer()
		b.b = wire.AppendDatagram(b.b, fmt.Append(nil, n))
		if !r.receive(n, b, r.now) {
			b.release()
		}
	}
	return r
}

// later moves the clock, and ticks.
func (r *receiver) later(d time.Duration) *receiver {
	r.now = r.now.Add(d)
	r.tick(r.now, r.trip)
	return r
}

// read is what the engine reads.
func (r *receiver) read() (text string) {
	buf := make([]byte, 20)
	for {
		n, ok := r.get(buf, r.now)
		if !ok {
			return text
		}
		text += string(buf[:n]) + " "
	}
}

func TestIncomingOrders(t *testing.T) {
	hello := wire.AppendDatagram(wire.AppendDatagram(nil, []byte("a")), []byte("b"))
	for _, c := range []struct {
		why  string
		do   func(r *receiver)
		want string
		lost uint64 // given up
	}{
		{"in order", func(r *receiver) { r.come(0, 1, 2) }, "0 1 2 ", 0},
		{"put into order", func(r *receiver) { r.come(2, 0, 1) }, "0 1 2 ", 0},
		{"once", func(r *receiver) { r.come(0, 0, 1, 0, 1) }, "0 1 ", 0},
		{"nothing behind a gap", func(r *receiver) { r.come(0, 2, 3) }, "0 ", 0},
		{"a gap is waited for", func(r *receiver) { r.come(0, 2).later(minGap / 2).come(1) }, "0 1 2 ", 0},
		{"it is given up when others keep coming", func(r *receiver) { r.come(0, 2).later(minGap - ms).come(3).later(2 * ms) }, "0 2 3 ", 1},
		{"what was given up comes too late", func(r *receiver) { r.come(0, 2).later(minGap - ms).come(3).later(2 * ms).come(1) }, "0 2 3 ", 1},
		{"not in an outage", func(r *receiver) { r.come(0, 2).later(time.Hour).come(1) }, "0 1 2 ", 0},
		{"a far path has longer", func(r *receiver) {
			r.trip.smoothed = time.Second
			r.come(0, 2).later(minGap).come(3).later(ms)
		}, "0 ", 0},
		{"nothing beyond the grant", func(r *receiver) { r.come(windowRecords, windowRecords+7, wire.MaxNumber) }, "", 0},
		{"the first message's before all others", func(r *receiver) { r.receiveHello(hello); r.come(0) }, "a b 0 ", 0},
		{"nothing once nobody reads", func(r *receiver) { r.come(0); r.drop(); r.come(1) }, "", 0},
	} {
		r := newReceiver()
		c.do(r)
		if got, lost := r.read(), r.givenUp.Load(); got != c.want || lost != c.lost {
			t.Errorf("%s: the engine reads %q and %d were given up, want %q and %d", c.why, got, lost, c.want, c.lost)
		}
		r.drop()
		if held := r.held.bytes(); held != 0 {
			t.Errorf("%s: %d bytes held after drop", c.why, held)
		}
	}
}

func TestIncomingNews(t *testing.T) {
	for _, c := range []struct {
		why         string
		do          func(r *receiver)
		least, most time.Duration // of newsIn
	}{
		{"nothing has come", func(*receiver) {}, -1, -1},
		{"a record has", func(r *receiver) { r.come(0) }, ackDelay * 3 / 4, ackDelay},
		{"so has one that came before", func(r *receiver) { r.come(0); r.stamp(new(wire.Head)); r.come(0) }, ackDelay * 3 / 4, ackDelay},
		{"a head has told of it", func(r *receiver) { r.come(0); r.stamp(new(wire.Head)) }, -1, -1},
		{"it is high time", func(r *receiver) { r.come(0).later(time.Second) }, 0, 0},
		{"much was read", func(r *receiver) {
			for n := range uint64(windowRecords/2 + 1) {
				r.come(n)
			}
			r.newsAt = time.Time{} // as if that had been told
			r.read()
		}, 0, ackDelay},
	} {
		r := newReceiver()
		c.do(r)
		if got := r.newsIn(r.now); got < c.least || got > c.most {
			t.Errorf("%s: to be told in %v, want %v to %v", c.why, got, c.least, c.most)
		}
		r.drop()
	}
}

func TestIncomingOwed(t *testing.T) {
	for _, c := range []struct {
		why  string
		do   func(r *receiver)
		want time.Duration
	}{
		{"nobody spoke of a record", func(*receiver) {}, 0},
		{"all have come", func(r *receiver) { r.come(0, 1); r.owe(2, r.now); r.later(time.Second) }, 0},
		{"one is missing", func(r *receiver) { r.come(0); r.owe(2, r.now); r.later(time.Second) }, time.Second},
		{"one more is missing since", func(r *receiver) {
			r.owe(1, r.now)
			r.later(time.Second).owe(2, r.now)
			r.later(time.Second)
		}, 2 * time.Second},
		{"it came, and another is missing now", func(r *receiver) {
			r.owe(1, r.now)
			r.later(time.Second).come(0).owe(2, r.now)
			r.owedFor(r.now)
			r.later(ms)
		}, time.Second + ms}, // there was no moment at which none was missing
		{"it came", func(r *receiver) { r.owe(1, r.now); r.later(time.Second).come(0) }, 0},
		{"an older head says less", func(r *receiver) { r.come(0); r.owe(1, r.now); r.owe(0, r.now); r.later(time.Second) }, 0},
	} {
		r := newReceiver()
		c.do(r)
		if got := r.owedFor(r.now); got != c.want {
			t.Errorf("%s: owed for %v, want %v", c.why, got, c.want)
		}
		r.drop()
	}
}

// How much is owed is judged by the records that have come.
func TestIncomingOwedBytes(t *testing.T) {
	for _, c := range []struct {
		why         string
		do          func(r *receiver)
		least, most int
	}{
		{"nobody spoke of a record", func(*receiver) {}, 0, 0},
		{"none has come", func(r *receiver) { r.owe(10, r.now) }, 10 * smallUnit, 10 * smallUnit},
		{"all have come", func(r *receiver) { r.come(0, 1); r.owe(2, r.now) }, 0, 0},
		{"those that come are small", func(r *receiver) {
			for n := range uint64(40) {
				r.come(n)
			}
			r.owe(50, r.now)
		}, 10, 10 * smallUnit / 10},
		{"some behind a gap have come", func(r *receiver) { r.come(7, 8); r.owe(10, r.now) }, 7 * smallUnit / 2, 8*smallUnit - 1},
		{"more has come than was spoken of", func(r *receiver) { r.come(7, 8, 9); r.owe(2, r.now) }, smallUnit / 2, smallUnit},
		{"no more than have room", func(r *receiver) { r.owe(wire.MaxNumber, r.now) }, windowRecords * smallUnit, windowRecords * smallUnit},
	} {
		r := newReceiver()
		c.do(r)
		if got := r.owed(); got < c.least || got > c.most {
			t.Errorf("%s: %d bytes are owed, want %d to %d", c.why, got, c.least, c.most)
		}
		r.drop()
	}
}

// Datagrams whose parts stand in several records are read whole, or not at all, and
// what is kept of them is given back.
func TestIncomingJoins(t *testing.T) {
	type part = wire.Part
	whole := func(text string) part { return part{Bytes: []byte(text)} }
	begins := func(text string) part { return part{Bytes: []byte(text), GoesOn: true} }
	middle := func(text string) part { return part{Bytes: []byte(text), Continues: true, GoesOn: true} }
	ends := func(text string) part { return part{Bytes: []byte(text), Continues: true} }
	large := string(make([]byte, wire.RecordRoom/2))
	for _, c := range []struct {
		why     string
		records [][]part
		want    string
	}{
		{"two parts", [][]part{{begins("a")}, {ends("b")}}, "ab "},
		{"many parts", [][]part{{begins("a")}, {middle("b")}, {middle("c")}, {ends("d")}}, "abcd "},
		{"with datagrams before and behind", [][]part{{whole("x")}, {begins("a")}, {ends("b")}, {whole("y")}}, "x ab y "},
		{"with one behind in the same record", [][]part{{begins("a")}, {ends("b"), whole("y")}}, "ab y "},
		{"an end without a beginning", [][]part{{ends("b"), whole("y")}}, "y "},
		{"a beginning without an end", [][]part{{begins("a")}, {whole("y")}}, "y "},
		{"two beginnings", [][]part{{begins("a")}, {begins("b")}, {ends("c")}}, "bc "},
		{"a part is lost", [][]part{{begins("a")}, {}, {ends("c"), whole("y")}}, "y "},
		{"nothing but an end is lost", [][]part{{begins("a")}, {}, {whole("y")}}, "y "},
		{"larger than a datagram can be", [][]part{{begins(large)}, {middle(large)}, {ends("c"), whole("y")}}, "y "},
		{"a beginning behind a datagram", [][]part{{whole("x"), begins("a")}, {ends("b"), whole("y")}}, "x y "},
	} {
		r := newReceiver()
		for n, parts := range c.records {
			if len(parts) == 0 { // it does not come
				continue
			}
			b := newBuffer()
			for _, p := range parts {
				b.b = wire.AppendPart(b.b, p)
			}
			if !r.receive(uint64(n), b, r.now) {
				b.release()
			}
		}
		// What is missing is given up while others keep coming.
		r.later(minGap - ms)
		if b := newBuffer(); !r.receive(uint64(len(c.records)), b, r.now) {
			b.release()
		}
		r.later(2 * ms)
		if got := r.read(); got != c.want {
			t.Errorf("%s: %q, want %q", c.why, got, c.want)
		}
		r.drop()
		if r.part != nil || r.held.bytes() != 0 {
			t.Errorf("%s: %d bytes are held in the end", c.why, r.held.bytes())
		}
	}
}

// A part that waits for the rest is counted and goes with the session.
func TestIncomingDropsPart(t *testing.T) {
	r := newReceiver()
	b := newBuffer()
	b.b = wire.AppendPart(b.b, wire.Part{Bytes: []byte("a"), GoesOn: true})
	if !r.receive(0, b, r.now) {
		b.release()
	}
	r.read()
	if r.held.bytes() < unitCost {
		t.Errorf("a part counts %d bytes", r.held.bytes())
	}
	if r.drop(); r.held.bytes() != 0 {
		t.Errorf("%d bytes are held in the end", r.held.bytes())
	}
}

// What the other side will not send is not waited for.
func TestSkip(t *testing.T) {
	r := newReceiver().come(0, 2, 4)
	r.owe(6, r.now)
	for _, c := range []struct {
		kept, low uint64
		text      string
	}{
		{1, 1, "0 "},
		{2, 3, "2 "},
		{5, 5, "4 "},
		{1 << 40, 6, ""}, // no more than exist
	} {
		if r.skip(c.kept, r.now); r.got.Low != c.low {
			t.Errorf("below %d: all below %d have come or were given up, want %d", c.kept, r.got.Low, c.low)
		}
		if text := r.read(); text != c.text {
			t.Errorf("below %d: the engine reads %q, want %q", c.kept, text, c.text)
		}
	}
	if r.givenUp.Load() != 3 || !r.complete() {
		t.Errorf("%d were given up, complete: %v", r.givenUp.Load(), r.complete())
	}
	r.owe(1<<40, r.now)
	if r.skip(1<<40, r.now); r.got.Low > 6+windowRecords {
		t.Errorf("%d were skipped, which is more than have room", r.got.Low)
	}
}
