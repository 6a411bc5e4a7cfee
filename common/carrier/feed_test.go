package carrier

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/wire"
)

// learnFeeds lets a client find out what the path does with what is written bit by
// bit.
func (w *world) learnFeeds(client *Client, session *Session) {
	for range 10 {
		say(w.t, client.Conn(), session.Conn(), "something")
		time.Sleep(300 * ms)
	}
}

// fed is a client and its session on a path that lets feeds through, which the client
// has found out.
func (w *world) fed() (*Client, *Session) {
	w.net.feeds = true
	w.net.set(always(near()))
	client, session := w.pair(Auto)
	w.learnFeeds(client, session)
	if !client.feeding.passes {
		w.t.Fatal("the path was not found to let feeds through")
	}
	return client, session
}

// collected is a path that hands on requests when they are complete.
func collected() fate {
	f := near()
	f.collected = true
	return f
}

// Where the path lets a body through as it is written, one request carries what took
// many, in both directions of a transfer, and a session that has become idle is as
// quiet as before.
func TestFeed(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		client, session := w.fed()
		before := w.net.count()
		both(t, client, session, 2000)
		if n := w.net.count() - before; n > 10 {
			t.Errorf("%d requests for a transfer", n)
		}
		if n := client.link.out.resent.Load() + session.link.out.resent.Load(); n > 0 {
			t.Errorf("%d bytes were sent again", n)
		}
		time.Sleep(feedIdle + time.Second)
		if client.feeding.open() != nil {
			t.Error("a feed is open that has nothing to say")
		}
		before = w.net.count()
		time.Sleep(10 * time.Minute)
		if n := w.net.count() - before; n > 20 {
			t.Errorf("%d requests in ten minutes of silence", n)
		}
		begin := time.Now()
		say(t, client.Conn(), session.Conn(), "a question")
		say(t, session.Conn(), client.Conn(), "an answer")
		if took := time.Since(begin); took > 55*ms {
			t.Errorf("after that, a question and its answer took %v", took)
		}
	})
}

// What one session finds, the next one knows: its first words go into a feed.
func TestFeedKnown(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		known := new(Path)
		share := func(cfg *ClientConfig) { cfg.Path = known }
		w.net.feeds = true
		w.net.set(always(near()))
		client := w.dial(Auto, share)
		w.learnFeeds(client, <-w.accepted)
		next := w.dial(Auto, share)
		<-next.Ready()
		session := <-w.accepted
		say(t, next.Conn(), session.Conn(), "something")
		if b := next.feeding.current.Load(); b == nil || b.spoke.Load() == 0 {
			t.Error("the second session did not begin with a feed")
		}
	})
}

// Where the path hands on requests when they are complete, single uploads carry what
// they carry without feeds, and it is tried again ever more seldom.
func TestFeedHeldBack(t *testing.T) {
	took := make(map[bool]time.Duration)
	for _, feeds := range []bool{false, true} {
		bubble(t, func(t *testing.T, w *world) {
			w.net.feeds = feeds
			w.net.set(always(collected()))
			client, session := w.pair(Auto)
			w.learnFeeds(client, session)
			took[feeds] = both(t, client, session, 1000)
			if client.feeding.passes || client.link.out.resent.Load() > 0 {
				t.Errorf("feeds pass: %v; %d bytes were sent again", client.feeding.passes, client.link.out.resent.Load())
			}
			probes, last := 0, (*feedBody)(nil)
			for range 20 * 60 {
				say(t, client.Conn(), session.Conn(), "something")
				time.Sleep(time.Second)
				if b := client.feeding.current.Load(); b != last {
					probes, last = probes+1, b
				}
			}
			if feeds && (probes < 3 || probes > 7) {
				t.Errorf("%d probes in twenty minutes", probes)
			}
		})
	}
	if took[true] > took[false]+100*ms {
		t.Errorf("a transfer took %v, and %v without feeds", took[true], took[false])
	}
}

// So it is on a long way, where a feed that has nothing to say would end before it is
// late.
func TestFeedHeldBackFarAway(t *testing.T) {
	far := fate{there: 750 * ms, back: 750 * ms}
	for _, before := range []bool{true, false} {
		bubble(t, func(t *testing.T, w *world) {
			w.net.feeds = true
			way := far
			way.collected = before
			w.net.set(always(way))
			client, session := w.pair(Auto)
			w.learnFeeds(client, session)
			if client.feeding.passes == before {
				t.Fatalf("feeds pass: %v", client.feeding.passes)
			}
			way.collected = true
			w.net.set(always(way))
			w.net.collect(true)
			time.Sleep(5 * time.Second) // the feed that is open ends
			late, probes, last := 0, 0, (*feedBody)(nil)
			for range 20 * 60 {
				begin := time.Now()
				say(t, client.Conn(), session.Conn(), "something")
				if time.Since(begin) > time.Second {
					late++
				}
				time.Sleep(time.Second)
				if b := client.feeding.current.Load(); b != last {
					probes, last = probes+1, b
				}
			}
			if late > 3 || probes > 8 {
				t.Errorf("collected before %v: in twenty minutes %d words were late, and %d feeds were made", before, late, probes)
			}
		})
	}
}

// Where a path lets feeds through and does not answer them, a transfer goes on, so
// many wait as may, and a session that ends waits for none.
func TestFeedAnswersHeld(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		client, session := w.fed()
		time.Sleep(5 * time.Second)
		w.net.set(func(r *request) fate {
			f := near()
			if r.ContentLength < 0 {
				f.back = time.Hour
			}
			return f
		})
		go func() {
			p := make([]byte, wire.RecordRoom)
			for {
				if _, err := client.Conn().WriteTo(p, nil); err != nil {
					return
				}
			}
		}()
		begin := time.Now()
		buf := make([]byte, wire.RecordRoom)
		for range 20000 {
			if _, _, err := session.Conn().ReadFrom(buf); err != nil {
				t.Fatal(err)
			}
		}
		// 300 MB; what is acknowledged late lets the window grow slowly.
		if took := time.Since(begin); took > 15*time.Second {
			t.Errorf("a transfer took %v", took)
		}
		if n := w.net.atOnce(); n > maxUploads/feedsShare+maxUploads+5 {
			t.Errorf("%d requests at once", n)
		}
		client.Close()
	})
}

// A client waits for no end of an exchange when its session has ended, however many
// there are.
func TestReport(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		client, _ := w.pair(Auto)
		client.Close()
		for range 2 * cap(client.results) {
			client.report(new(result))
		}
	})
}

// When a plan has a feed take what is due, it looks at once whether anything is, or
// will be: Client.run may have taken the token that says so, and the feed would sleep
// on.
func TestFeedIsWoken(t *testing.T) {
	for _, pause := range []time.Duration{0, 100 * ms} { // after which what is said is due in a while, or at once
		bubble(t, func(t *testing.T, w *world) {
			client, session := w.fed()
			say(t, client.Conn(), session.Conn(), "something")
			b := client.feeding.open()
			if b == nil {
				t.Fatal("no feed is open")
			}
			client.Conn().WriteTo([]byte("something"), nil)
			time.Sleep(pause)
			synctest.Wait()
			stolen := make(chan struct{})
			go func() {
				<-client.link.wake // as run, before the feed leads
				close(stolen)
			}()
			synctest.Wait()
			signal(b.told) // so that the thief is first
			synctest.Wait()
			begin := time.Now()
			client.Conn().WriteTo([]byte("something else"), nil)
			<-stolen
			signal(client.feeding.nudge)
			buf := make([]byte, wire.RecordRoom)
			for range 2 {
				if _, _, err := session.Conn().ReadFrom(buf); err != nil {
					t.Fatal(err)
				}
			}
			if took := time.Since(begin); took > 25*ms+batchDelay {
				t.Errorf("what a feed was not woken for took %v", took)
			}
		})
	}
}

// The end of a probe shows what the path does, even if the server has told of it so
// late that its body had ended: it is not looked at again at once.
func TestFeedProbeEnds(t *testing.T) {
	now := time.Now()
	w := new(Path).way("front")
	f := &flight{kind: feed, probe: true, feed: new(feedBody), started: now}
	f.feed.heard.said(1, 0, now)
	f.feed.heard.told(2, now)
	new(feeding).observe(now, &result{flight: f, good: true}, time.Second, w)
	if known, does := w.feeds.found(); !known || does || w.feeds.probeIn(now) <= 0 {
		t.Errorf("known %v, passes %v, looked at again in %v", known, does, w.feeds.probeIn(now))
	}
}

// A server that says it will receive no more of a feed ends it.
func TestFeedUnheard(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		client, session := w.fed()
		say(t, client.Conn(), session.Conn(), "something")
		b := client.feeding.open()
		client.link.mu.Lock()
		client.link.out.unheard.Add(b.flight.number)
		client.link.mu.Unlock()
		client.Conn().WriteTo([]byte("something else"), nil)
		synctest.Wait()
		if b.flight.sent.Load() == 0 {
			t.Error("the feed goes on")
		}
		buf := make([]byte, wire.RecordRoom)
		if _, _, err := session.Conn().ReadFrom(buf); err != nil {
			t.Error(err)
		}
	})
}

// A path that ends requests at an age is learned, and feeds are not left for it.
func TestFeedAge(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.net.feeds = true
		w.net.set(always(near()))
		client := w.dial(Auto, func(cfg *ClientConfig) { cfg.Transport = cutter{network: w.net, age: 20 * time.Second} })
		<-client.Ready()
		session := <-w.accepted
		w.learnFeeds(client, session)
		for range 240 {
			say(t, client.Conn(), session.Conn(), "something")
			time.Sleep(500 * ms)
			if !client.feeding.passes {
				t.Fatal("feeds are left")
			}
		}
		if _, age := client.way().feedBounds(); age > 17*time.Second {
			t.Errorf("feeds that are cut after 20 s are to last %v", age)
		}
	})
}

// A path that begins to collect requests costs a session one pause, whenever that is,
// and when it lets them through again, that is found.
func TestFeedLeft(t *testing.T) {
	for _, speaking := range []bool{true, false} {
		t.Run(fmt.Sprintf("speaking %v", speaking), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				client, session := w.fed()
				pause := func(f fate) (longest time.Duration) {
					go func() {
						for i := range 1000 {
							client.Conn().WriteTo(datagram(i), nil)
							time.Sleep(5 * ms)
						}
					}()
					if speaking {
						time.Sleep(time.Second)
					}
					w.net.set(always(f))
					w.net.collect(f.collected)
					buf := make([]byte, wire.RecordRoom)
					for range 1000 {
						begin := time.Now()
						if _, _, err := session.Conn().ReadFrom(buf); err != nil {
							t.Fatal(err)
						}
						longest = max(longest, time.Since(begin))
					}
					return longest
				}
				if got := pause(collected()); got > 1200*ms {
					t.Errorf("a pause of %v", got)
				}
				if client.feeding.passes {
					t.Error("feeds are taken to pass that are held back")
				}
				if got := pause(collected()); got > 100*ms {
					t.Errorf("then a pause of %v", got)
				}
				time.Sleep(2 * firstProbe)
				w.net.set(always(near()))
				if pause(near()); !client.feeding.passes {
					t.Error("feeds are not taken to pass again")
				}
				if n := client.link.in.givenUp.Load() + session.link.in.givenUp.Load(); n > 0 {
					t.Errorf("%d records were given up", n)
				}
			})
		})
	}
}

// A feed may be cut at any byte, alone or with everything else, and everything arrives
// once.
func TestFeedCut(t *testing.T) {
	at := []int{20000, 70000, 200000}
	for i := range 120 {
		at = append(at, i)
	}
	for _, at := range at {
		bubble(t, func(t *testing.T, w *world) {
			client, session := w.fed()
			time.Sleep(5 * time.Second) // the feed that is open ends
			cuts := 0
			w.net.set(func(r *request) fate {
				f := near()
				if r.ContentLength < 0 && cuts < 2 {
					cuts++
					f.cutRequest, f.cutAt = true, at
				}
				return f
			})
			if took := both(t, client, session, 100); took > 2*time.Second {
				t.Errorf("cut after %d bytes, a transfer took %v", at, took)
			}
			quiet(t, "the server", session.Conn())
		})
	}
}

// What is told of a feed that was repeated, whole or after its beginning, counts once.
func TestFeedRepeated(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		client, session := w.fed()
		time.Sleep(5 * time.Second)
		w.net.set(func(r *request) fate {
			f := near()
			f.again, f.after = r.ContentLength < 0, 10*ms
			return f
		})
		both(t, client, session, 300)
		time.Sleep(5 * time.Second) // the feed ends, and comes again
		both(t, client, session, 300)
		quiet(t, "the server", session.Conn())
	})
}

// A path that refuses a feed in the middle of its body is learned, and costs no more
// than a few round trips.
func TestFeedRefused(t *testing.T) {
	for _, c := range []struct {
		status int
		above  int64
		passes bool // afterwards
	}{
		{http.StatusRequestEntityTooLarge, 1 << 20, true},
		{http.StatusRequestEntityTooLarge, 300 << 10, true},
		{http.StatusRequestEntityTooLarge, 20 << 10, false},
		{http.StatusLengthRequired, 20 << 10, false},
		{http.StatusLengthRequired, 0, false},
		{http.StatusBadGateway, 400 << 10, true},
	} {
		t.Run(fmt.Sprint(c.status, c.above), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				client, session := w.fed()
				time.Sleep(5 * time.Second)
				w.net.set(func(r *request) fate {
					f := near()
					if c.above == 0 && r.ContentLength < 0 {
						f.instead = page(c.status)
					} else {
						f.above, f.large = c.above, func(f *fate) { f.instead = page(c.status) }
					}
					return f
				})
				if took := both(t, client, session, 3000); took > 12*time.Second {
					t.Errorf("a transfer took %v", took)
				}
				if client.feeding.passes != c.passes {
					t.Errorf("feeds pass: %v", client.feeding.passes)
				}
				if n := client.link.in.givenUp.Load() + session.link.in.givenUp.Load(); n > 0 {
					t.Errorf("%d records were given up", n)
				}
				if s := client.milestones.SeemsForgotten(); s {
					t.Error("a refusal of feeds looks as if the server had forgotten the session")
				}
			})
		})
	}
}

// The bodies of feeds become larger as the path shows that it lets them pass.
func TestFeedGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(Path).way("front")
		now := time.Now()
		limit := func() int { n, _ := w.feedBounds(); return n }
		w.fed(now, 100<<10, false)
		if got := limit(); got != MaxBody {
			t.Errorf("a small one that passes makes the limit %d", got)
		}
		for range 20 {
			w.fed(now, limit()*15/16, true)
		}
		if got := limit(); got != maxFeed {
			t.Errorf("full ones that pass make the limit %d", got)
		}
		if !w.feedRefused(now, 3<<20) || limit() != 3<<19 {
			t.Errorf("one of 3 MB that is refused makes the limit %d", limit())
		}
		w.fed(now, limit(), true)
		if got := limit(); got != 3<<19 {
			t.Errorf("at once, what has failed is tried again: %d", got)
		}
		w.fed(now.Add(firstSize+time.Second), limit(), true)
		if got := limit(); got != 3<<20 {
			t.Errorf("after a while, what has failed is not tried again: %d", got)
		}
		if w.feedRefused(now, minFeed) {
			t.Error("one that is small and refused says that larger ones are worth it")
		}
		for range 2 {
			w.feedCut(20 * time.Second)
		}
		if _, age := w.feedBounds(); age > 16*time.Second {
			t.Errorf("feeds that are cut after 20 s are to last %v", age)
		}
	})
}

// The server tells of what has come while the body is open, within the time that the
// client asks for, and not of what comes in other bodies.
func TestFeedIsTold(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		l := newLink(nil)
		l.strict, l.in.delay = true, 0
		in := &l.in
		now := time.Now()
		in.tellOnce(now)
		if in.newsIn(now) >= 0 {
			t.Error("what comes in a single upload is news")
		}
		l.feed(1, 10*ms)
		l.fed(6)
		if got := in.newsIn(now); got < 7*ms || got > 10*ms {
			t.Errorf("a head in a feed is to be told within %v", got)
		}
		var h wire.Head
		if in.stamp(&h); h.Told != 7 || in.newsIn(now) >= 0 {
			t.Errorf("it is told as %d; more news in %v", h.Told, in.newsIn(now))
		}
		l.feed(1, 10*ms) // the next one begins before this has ended
		l.fed(9)
		l.feed(-1, 10*ms)
		if in.stamp(&h); h.Told != 10 {
			t.Errorf("the next one's is told as %d", h.Told)
		}
		l.feed(-1, 10*ms)
		if in.stamp(&h); h.Told != 0 {
			t.Errorf("after the end of all, %d is told", h.Told)
		}
	})
}

func TestHearing(t *testing.T) {
	var h hearing
	start := time.Now()
	at := func(n int) time.Time { return start.Add(time.Duration(n) * ms) }
	want := func(what string, now int, waits time.Duration, heard bool) {
		t.Helper()
		if got, _, ever := h.waits(at(now)); got != waits || ever != heard {
			t.Errorf("%s: waits %v, heard %v; want %v, %v", what, got, ever, waits, heard)
		}
	}
	if want("nothing said", 0, 0, false); h.told(1, at(0)) {
		t.Error("what is told of another feed is news")
	}
	h.said(4, 0, at(10))
	if want("a head", 30, 20*ms, false); h.told(4, at(30)) {
		t.Error("what is told of a head before is news")
	}
	h.said(5, minBody, at(40))
	h.said(6, 2*minBody, at(60))
	want("more heads", 70, 60*ms, false)
	if !h.told(5, at(80)) {
		t.Error("that the first head is told of is no news")
	}
	want("the first is told of", 90, 30*ms, true)
	if h.large() || !h.told(7, at(100)) || !h.large() {
		t.Error("that a large body passes is no news")
	}
	want("all are told of", 110, 0, true)
}
