package carrier

import (
	"errors"
	"math"
	"net/http"
	"os"
	"testing"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

// A session begins with what others have found on the same path, in both
// directions; sessions that begin together share it.
func TestRecall(t *testing.T) {
	const trip = 50 * ms
	product := func(rate float64) int { return int(rate * (trip + delayAt(trip)).Seconds()) }
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		path := new(Path)
		begin := func(name string, up, down int) {
			t.Helper()
			client := w.dial(Auto, func(cfg *ClientConfig) { cfg.Path = path })
			<-client.Ready()
			session := <-w.accepted
			for _, side := range []struct {
				what string
				l    *link
				want int
			}{{"client", client.link, up}, {"server", session.link, down}} {
				side.l.mu.Lock()
				got := side.l.out.window.size
				side.l.mu.Unlock()
				// What the server is told is rounded.
				if rough := float64(got) / float64(side.want); rough < 0.81 || rough > 1.23 || got != side.want && side.l == client.link {
					t.Errorf("%s: the %s begins with %d bytes in flight, want %d", name, side.what, got, side.want)
				}
			}
		}
		begin("the first one", firstFlight, firstFlight)
		time.Sleep(together + 1)
		path.paces.finds("", pace{20e6, false, trip, time.Now()}, pace{40e6, false, trip, time.Now()})
		path.paces.finds("", pace{1, false, trip, time.Now().Add(-1)}, pace{1, false, trip, time.Now().Add(-1)})                 // older
		path.paces.finds("", pace{1, true, trip, time.Now().Add(time.Minute)}, pace{1, true, trip, time.Now().Add(time.Minute)}) // small talk
		begin("a second one", product(20e6), product(40e6))
		begin("one beside it", product(10e6), product(20e6))
		begin("a third one", product(20e6/3), product(40e6/3))
		time.Sleep(together + 1)
		begin("a later one", product(20e6), product(40e6))
		time.Sleep(paceShared)
		path.paces.finds("", pace{10e6, false, trip, time.Now()}, pace{80e6, true, trip, time.Now()})
		begin("one on a path that has changed", product(10e6), product(80e6))
		time.Sleep(paceLife)
		begin("one long after", firstFlight, firstFlight)
	})
}

// What a session finds becomes known to others, and is forgotten when the path
// has failed for a while: it may be another one afterwards.
func TestFinds(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		client, session := w.pair(Auto)
		both(t, client, session, 100)
		if up, down := client.cfg.Path.paces.carries(client.cfg.Transport.Name(), time.Now()); up.rate > 0 && !up.more || down.rate > 0 && !down.more {
			t.Errorf("%v and %v were found, and no window was full", up, down)
		}
		time.Sleep(time.Second)
		now := time.Now()
		for i, l := range []*link{client.link, session.link} {
			l.mu.Lock()
			l.out.window.starting, l.out.window.rate, l.out.window.base, l.out.window.found.at = false, float64(i+1)*1e9, 50*ms, now
			l.mu.Unlock()
		}
		both(t, client, session, 1)
		time.Sleep(time.Second)
		up, down := client.cfg.Path.paces.carries(client.cfg.Transport.Name(), time.Now())
		if up.rate < 0.8e9 || down.rate != 2e9 || (up.trip-50*ms).Abs() > ms || (down.trip-50*ms).Abs() > ms {
			t.Errorf("found %v and %v", up, down)
		}
		w.net.set(always(fate{refuse: true}))
		w.net.cutAll()
		client.Conn().WriteTo([]byte("hello"), nil)
		time.Sleep(5 * time.Second)
		w.net.set(always(near()))
		if _, _, err := session.Conn().ReadFrom(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		both(t, client, session, 1) // neither has found anything since
		time.Sleep(time.Second)
		if up, down := client.cfg.Path.paces.carries(client.cfg.Transport.Name(), time.Now()); up.rate > 1e8 || down.rate > 1e8 {
			t.Errorf("%v and %v are still known after a failure", up, down)
		}
	})
}

// Where answers are known to come as they are written, the first one is the
// session's first stream: what the server says needs no other.
func TestFirstAnswerStays(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		path := new(Path)
		path.way("").streams.saw(time.Now(), true)
		client := w.dial(Auto, func(cfg *ClientConfig) { cfg.Path = path })
		<-client.Ready()
		session := <-w.accepted
		time.Sleep(5 * time.Second)
		begin := time.Now()
		say(t, session.Conn(), client.Conn(), "news")
		if took := time.Since(begin); took > 26*ms || w.net.count() > 2 { // the second shows the server who it talks to
			t.Errorf("what the server says takes %v and %d requests", took, w.net.count())
		}
		// It ends, and the session goes on: also one that has not said anything.
		silent := w.dial(Auto, func(cfg *ClientConfig) { cfg.Path = path })
		<-silent.Ready()
		other := <-w.accepted
		time.Sleep(3 * unconfirmedLife)
		both(t, client, session, 300)
		both(t, silent, other, 300)
	})
}

// A path that has begun to hold answers back costs a new session a few seconds.
func TestFirstAnswerHeldBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(held()))
		path := new(Path)
		path.way("").streams.saw(time.Now(), true)
		begin := time.Now()
		client := w.dial(Auto, func(cfg *ClientConfig) { cfg.Path = path })
		client.Conn().WriteTo([]byte("hello"), nil)
		session := <-w.accepted
		if _, _, err := session.Conn().ReadFrom(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		session.Conn().WriteTo([]byte("news"), nil) // on the answer that is held back
		<-client.Ready()
		if took := time.Since(begin); took > eagerness+2*time.Second {
			t.Errorf("the handshake took %v", took)
		}
		if _, _, err := client.Conn().ReadFrom(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("what the server said first came after %v", took)
		}
		if client.way().streams.has() {
			t.Error("takes the path for one that streams")
		}
		both(t, client, session, 300)
		if n := w.server.Stats().Opened; n != 1 {
			t.Errorf("%d sessions were opened", n)
		}
	})
}

// What a first message asks for is bounded, and nonsense is no request.
func TestAsk(t *testing.T) {
	greatest := wire.Head{Limit: math.MaxInt, Stream: 1 << 50, Quiet: 1 << 50, Hold: 1 << 50, Rate: math.MaxInt, More: true, Trip: 1 << 50}
	for name, ask := range map[string][]byte{
		"nothing":  nil,
		"nonsense": {1, 2, 3},
		"half":     greatest.Append(nil)[:12],
		"greatest": greatest.Append(nil),
		"no rate":  (&wire.Head{Trip: time.Second}).Append(nil),
		"no trip":  (&wire.Head{Rate: 1e6}).Append(nil),
	} {
		bubble(t, func(t *testing.T, w *world) {
			hello := w.hello()
			hello.Ask = ask
			c := w.raw(hello)
			begin := time.Now()
			if a := c.greet(); a.Status != handshake.Accepted {
				t.Fatalf("%s: status %d", name, a.Status)
			}
			s := <-w.accepted
			s.link.mu.Lock()
			size := s.link.out.window.size
			s.link.mu.Unlock()
			if want := name == "greatest"; (size == flightLimit) != want || !want && size != firstFlight {
				t.Errorf("%s: %d bytes in flight at first", name, size)
			}
			if took := time.Since(begin); took > unconfirmedLife+time.Minute {
				t.Errorf("%s: an answer to a stranger stayed open for %v", name, took)
			}
		})
	}
}

// causes is a network that takes note of why exchanges are ended by the client.
type causes struct {
	*network
	all chan error
}

func (c causes) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.network.RoundTrip(req)
	if err != nil {
		c.all <- err
	}
	return resp, err
}

// That an answer is held back is no time-out, which would be held against the
// front, and takes none of the tries.
func TestFirstAnswerBlamesNobody(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(held()))
		path := new(Path)
		path.way("").streams.saw(time.Now(), true)
		net := causes{w.net, make(chan error, 10)}
		client := w.dial(Auto, func(cfg *ClientConfig) { cfg.Path, cfg.Transport = path, net })
		<-client.Ready()
		if err := <-net.all; !errors.Is(err, errHeldBack) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the first answer ended with: %v", err)
		}
		for len(net.all) > 0 {
			if err := <-net.all; !errors.Is(err, errUnneeded) { // which may come now or later
				t.Errorf("another one ended with: %v", err)
			}
		}
	})
}

// Where exchanges are so few that sessions share them, no session keeps one for
// its first answer.
func TestFirstAnswerInCrowd(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.set(always(near()))
		w.net.atMost(1)
		path := new(Path)
		path.way("").streams.saw(time.Now(), true)
		begin := time.Now()
		for range 5 {
			<-w.dial(Auto, func(cfg *ClientConfig) { cfg.Path = path }).Ready()
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("five sessions were ready after %v", took)
		}
	})
}

// Strangers cannot have the server hold as much as they like: all unconfirmed
// sessions together have so much more than usual, and others begin as usual.
func TestRecallOfStrangers(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		hello := w.hello()
		hello.Ask = (&wire.Head{Rate: math.MaxInt, Trip: time.Second}).Append(nil)
		size := func() int {
			s := <-w.accepted
			s.link.mu.Lock()
			defer s.link.mu.Unlock()
			return s.link.out.window.size
		}
		total := 0
		var all []*raw
		for range 100 {
			c := w.raw(hello)
			c.greet()
			all = append(all, c)
			total += size() - firstFlight
		}
		if total > (defaultMemory/recalledShare) || total < (defaultMemory/recalledShare)-flightLimit {
			t.Errorf("100 strangers have %d bytes more than usual", total)
		}
		for _, c := range all[:3] {
			c.isOurs("confirming", c.post(c.body(wire.Head{})))
		}
		c := w.raw(hello)
		c.greet()
		if got := size(); got != flightLimit {
			t.Errorf("when some are confirmed another one begins with %d bytes", got)
		}
		time.Sleep(2 * unconfirmedLife)
		w.server.mu.Lock()
		defer w.server.mu.Unlock()
		if w.server.credit.lent != 0 {
			t.Errorf("%d bytes are still counted", w.server.credit.lent)
		}
	})
}

// A window that begins with what another one has found is full at once, and
// follows the path if that is not what it was.
func TestWindowRecalls(t *testing.T) {
	path := testPath{12.5e6, 100 * time.Millisecond}
	product := path.rate * path.base.Seconds()
	first, now := newWindow(), time.Now()
	path.run(&first, &now, 10*time.Second)
	found := first.finds()
	if found.more || found.rate < 0.9*path.rate || found.rate > 1.1*path.rate {
		t.Fatalf("found %+v", found)
	}
	second := newWindow()
	second.recall(found)
	path.greet(&second, &now)
	if s := float64(second.size); s < product || s > 1.4*product {
		t.Errorf("begins with %.0f bytes, and the path holds %.0f", s, product)
	}
	if delay := path.run(&second, &now, 2*time.Second); delay > 2*first.delay() {
		t.Errorf("a delay of %v", delay)
	}
	for name, other := range map[string]testPath{
		"slower": {1.25e6, 100 * time.Millisecond},
		"faster": {62.5e6, 100 * time.Millisecond},
		"nearer": {12.5e6, 20 * time.Millisecond},
		"remote": {12.5e6, 250 * time.Millisecond},
	} {
		w, now := newWindow(), now
		w.recall(found)
		other.greet(&w, &now)
		delay := other.run(&w, &now, 16*time.Second)
		holds := other.rate * other.base.Seconds()
		if s := float64(w.size); s < 0.95*holds || delay > 3*w.delay() {
			t.Errorf("%s: after 16 s %.0f bytes in flight, and the path holds %.0f; delay %v", name, s, holds, delay)
		}
	}
	// One of a session that shared the path with others, and one of a path that was
	// faster: the first round trip shows which.
	for part, grows := range map[float64]bool{1.0 / 8: true, 8: false} {
		w, now := newWindow(), now
		w.recall(pace{part * path.rate, false, path.base, now})
		path.greet(&w, &now)
		before := w.size
		path.run(&w, &now, path.base)
		if w.starting != grows || grows && w.size != before {
			t.Errorf("with %v of the path: growing %v, with %d bytes in flight after %d", part, w.starting, w.size, before)
		}
	}
	half := newWindow() // of a session that ended while its window still grew
	half.recall(pace{path.rate / 2, true, path.base, now})
	if s := float64(half.size); s < product/2 || s > 0.75*product || !half.starting {
		t.Errorf("begins with %.0f bytes, growing %v", s, half.starting)
	}
}

// What another session has found stays, too, where no round trip can be measured.
func TestWindowRecallsUnmeasured(t *testing.T) {
	w, now := newWindow(), time.Now()
	w.recall(pace{rate: 25e6, more: true, trip: 200 * time.Millisecond})
	w.limited = true
	before := w.size
	w.ack(now, now.Add(-200*time.Millisecond), 2000)
	if before <= 2*MaxBody || w.size < before {
		t.Errorf("%d bytes, and %d when some of them are acknowledged", before, w.size)
	}
}
