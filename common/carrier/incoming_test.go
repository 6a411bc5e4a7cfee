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
