package carrier

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"turbotunnel/common/wire"
)

// A set of numbers tells what a map tells, in at most a step for each number and
// one for each 64 places.
func TestNumbers(t *testing.T) {
	var s numbers
	want := make(map[uint64]bool)
	base := uint64(1000 * windowRecords / 7)
	for range 20000 {
		n := base + rand.Uint64N(windowRecords)
		switch rand.IntN(5) {
		case 0, 1:
			s.add(n)
			want[n] = true
		case 2:
			s.remove(n)
			delete(want, n)
		case 3: // the lowest go, and higher ones have room
			more := rand.Uint64N(50)
			s.each(base, base+more, s.remove)
			for n := base; n < base+more; n++ {
				delete(want, n)
			}
			base += more
		case 4:
			end := min(n+rand.Uint64N(300), base+windowRecords)
			count, last := uint64(0), n
			steps := s.each(n, end, func(m uint64) {
				if !want[m] || m < last || m >= end {
					t.Fatalf("%d, after %d, is in from %d to %d", m, last, n, end)
				}
				last = m
				count++
			})
			for m := n; m < end; m++ {
				if want[m] {
					count--
				}
			}
			if count != 0 || steps > 300+300/64+2 {
				t.Fatalf("%d numbers too many from %d to %d, %d steps", count, n, end, steps)
			}
		}
	}
}

// crowdedSender has sent so many records in as many exchanges.
func crowdedSender(exchanges uint64) *sender {
	s := newSender()
	for e := range exchanges {
		s.put([]byte("x"))
		s.carry(e)
		s.window.size = flightLimit
	}
	return s
}

// A head costs what is new in it and its own length, however much is in flight: the
// attack made 2000 exchanges and acknowledged nothing.
func TestHeadsAreCheap(t *testing.T) {
	cost := func(s *sender, h *wire.Head) uint64 {
		before := s.steps
		s.opened(h, true, s.now)
		s.nextTick(s.trip)
		return s.steps - before
	}
	const exchanges = 2000
	long := func(first uint64) (set wire.Set) {
		for n := range uint64(wire.MaxSpans) {
			set.Spans = append(set.Spans, wire.Span{First: first + 2*n, End: first + 2*n + 1})
		}
		return set
	}
	s := crowdedSender(exchanges)
	defer s.drop()
	for _, c := range []struct {
		why  string
		head wire.Head
		most uint64
	}{
		{"nothing is said", wire.Head{}, maxWatched + 2},
		{"nothing is said again", wire.Head{}, maxWatched + 2},
		{"every other of many is acknowledged", wire.Head{Acks: long(100)}, maxWatched + 4*wire.MaxSpans},
		{"the same again", wire.Head{Acks: long(100)}, maxWatched + 3*wire.MaxSpans},
		{"all between them", wire.Head{Acks: wire.Set{Spans: []wire.Span{{First: 100, End: 612}}}}, maxWatched + 512},
		{"the same again", wire.Head{Acks: wire.Set{Spans: []wire.Span{{First: 100, End: 612}}}}, maxWatched + 16},
		{"many exchanges have ended that carry nothing", wire.Head{Ended: long(exchanges)}, maxWatched + 2*wire.MaxSpans},
		{"many have ended", wire.Head{Ended: long(1000)}, maxWatched + 3*wire.MaxSpans},
		{"the same again", wire.Head{Ended: long(1000)}, maxWatched + 2*wire.MaxSpans},
	} {
		if n := cost(s, &c.head); n > c.most {
			t.Errorf("%s: %d steps, want %d at most", c.why, n, c.most)
		}
	}
	all := wire.Head{Acks: wire.Set{Low: exchanges}}
	if n := cost(s, &all); n > exchanges+windowRecords/64+maxWatched+2 || s.retained != 0 {
		t.Errorf("%d steps to acknowledge all, %d bytes are left", n, s.retained)
	}
	if n := cost(s, &all); n > 4 {
		t.Errorf("%d steps when nothing is in flight", n)
	}
}

// What is in flight beyond the watched cargoes is lost by time, too, when it is the
// oldest.
func TestLossBeyondTheWatched(t *testing.T) {
	s := crowdedSender(3 * maxWatched)
	defer s.drop()
	s.send(3*maxWatched, 1)
	s.later(ms).send(3*maxWatched+1, 1).later(100 * ms)
	s.acked(0, 3*maxWatched+1)
	for range 5 {
		s.later(5 * time.Second)
	}
	if n := len(s.cargoes); n != 0 {
		t.Errorf("%d exchanges are still waited for", n)
	}
}

// A body with more heads than any client makes is read no further.
func TestTooManyHeads(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		time.Sleep(time.Second)
		c := w.raw(w.hello())
		c.greet()
		var body []byte
		for i := range 2 * maxHeads {
			body = append(body, c.body(wire.Head{}, fmt.Sprint(i))...)
		}
		c.isOurs("the request", c.post(body))
		s := <-w.accepted
		for i := range maxHeads {
			buf := make([]byte, 10)
			if n, _, err := s.Conn().ReadFrom(buf); string(buf[:n]) != fmt.Sprint(i) {
				t.Errorf("record %d says %q, %v", i, buf[:n], err)
			}
		}
		quiet(t, "what came after too many heads", s.Conn())
	})
}

// That of a streamed upload may have as many as a client makes in its time, and is
// paid for while it is open.
func TestHeadsOfFeed(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		time.Sleep(time.Second)
		c := w.raw(w.hello())
		c.greet()
		c.isOurs("a request", c.post(c.body(wire.Head{})))
		s := <-w.accepted
		before := s.link.held.bytes()
		body, say := io.Pipe()
		answered := make(chan *httptest.ResponseRecorder)
		go func() {
			rec := httptest.NewRecorder()
			w.server.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/"+c.id.String(), body))
			body.Close()
			answered <- rec
		}()
		buf := make([]byte, 10)
		said := 0
		next := func() (err error) {
			if _, err = say.Write(c.body(wire.Head{Tell: 10 * ms}, fmt.Sprint(said))); err == nil {
				said++
			}
			return err
		}
		read := func(upTo int) {
			t.Helper()
			for ; upTo > 0; upTo-- {
				if _, _, err := s.Conn().ReadFrom(buf); err != nil {
					t.Fatal(err)
				}
			}
		}
		const paced = 3 * feedHeads
		for range paced {
			if err := next(); err != nil {
				t.Fatalf("after %d heads: %v", said, err)
			}
			time.Sleep(feedPause)
		}
		read(paced)
		if got := s.link.held.bytes() - before; got <= unitCost {
			t.Errorf("a streamed upload that is open is taken to hold %d bytes", got)
		}
		for next() == nil {
		}
		if most := paced*int(feedPause/feedPace) + feedHeads; said > most {
			t.Errorf("%d heads were read, %d at most", said, most)
		}
		rec := <-answered
		if h := c.isOurs("a streamed upload with too many heads", rec); h.Acks.Low != uint64(said) {
			t.Errorf("%d records are acknowledged of %d", h.Acks.Low, said)
		}
	})
}

// BenchmarkHead is what a head costs that says nothing new, with so many exchanges
// in flight.
func BenchmarkHead(b *testing.B) {
	for _, exchanges := range []uint64{0, 20, 2000} {
		b.Run(fmt.Sprint(exchanges), func(b *testing.B) {
			l := newLink(nil)
			defer l.drop()
			for e := range exchanges {
				l.put([]byte("x"))
				for _, r := range l.take(e, MaxBody, lanes{}) {
					r.buf.release()
				}
				l.wrote(e)
			}
			head := wire.Head{Window: windowRecords}
			for n := range uint64(b.N) {
				l.opened(n, &head, true)
			}
		})
	}
}
