package carrier

import (
	"bytes"
	"errors"
	"math/bits"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/wire"
)

// Whatever is added and closed at the same time, nothing is left above, and a
// closed account counts nothing.
func TestAccount(t *testing.T) {
	var all account
	var sessions, engines []*account
	var wg sync.WaitGroup
	for range 50 {
		session := &account{above: &all}
		engine := &account{above: session}
		for _, a := range []*account{session, engine} {
			for range 3 {
				wg.Go(func() {
					for range 500 {
						a.add(rand.IntN(1000))
					}
				})
			}
		}
		wg.Go(func() {
			runtime.Gosched()
			engine.close()
			engine.close()
		})
		wg.Go(func() {
			runtime.Gosched()
			if rand.IntN(2) == 0 {
				session.close()
			}
		})
		sessions, engines = append(sessions, session), append(engines, engine)
	}
	wg.Wait()
	for i := range sessions {
		sessions[i].close()
		engines[i].add(1)
		if n := sessions[i].bytes() + engines[i].bytes(); n != 0 {
			t.Errorf("closed accounts hold %d bytes", n)
		}
	}
	if n := all.bytes(); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
}

// The account above is exactly the sum of those that are open.
func TestAccountSums(t *testing.T) {
	var all account
	session := &account{above: &all}
	engine := &account{above: session}
	session.add(100)
	engine.add(30)
	engine.add(-10)
	if all.bytes() != 120 || session.bytes() != 120 || engine.bytes() != 20 {
		t.Errorf("%d, %d and %d bytes", all.bytes(), session.bytes(), engine.bytes())
	}
	engine.close()
	engine.add(-20) // it gives back what it need not
	if all.bytes() != 100 || session.bytes() != 100 {
		t.Errorf("%d and %d bytes without the engine", all.bytes(), session.bytes())
	}
	session.close()
	session.add(-100)
	if all.bytes() != 0 {
		t.Errorf("%d bytes at the end", all.bytes())
	}
}

// A session that passes its share is ended at once, with all that its engine holds
// and never takes back, and nobody else is.
func TestShare(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.restart(limits{maxUnconfirmed, maxSessions, 8 << 20})
		time.Sleep(time.Second)
		w.net.set(always(fate{there: ms, back: ms}))
		greedy, session := w.pair(Poll)
		other, otherSession := w.pair(Poll)
		say(t, greedy.Conn(), session.Conn(), "hello")
		began := time.Now()
		synctest.Wait()          // what is only held for a moment is not
		const little = 256 << 10 // what polls may take meanwhile, or give back
		share := int(w.server.budget.share - session.link.held.bytes())
		session.Conn().Hold(share - little)
		synctest.Wait()
		if isClosed(session.link.closed) {
			t.Fatal("it was ended for its share")
		}
		session.Conn().Hold(2 * little)
		synctest.Wait()
		if !isClosed(session.link.closed) || time.Since(began) > 0 {
			t.Errorf("it goes on after %v", time.Since(began))
		}
		if held := w.server.Stats().Memory; held > 1<<20 {
			t.Errorf("%d bytes are held", held)
		}
		<-greedy.Done()
		if err := greedy.Err(); !errors.Is(err, ErrLost) {
			t.Errorf("its client: %v", err)
		}
		say(t, other.Conn(), otherSession.Conn(), "still here")
		if n := w.server.Stats().Crowded; n != 1 {
			t.Errorf("%d sessions were ended for what they hold, want 1", n)
		}
	})
}

// Above the limit of all, those that hold most end at once, though they move, and
// until there is room.
func TestMemoryPressure(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.restart(limits{maxUnconfirmed, maxSessions, 8 << 20})
		time.Sleep(time.Second)
		w.net.set(always(fate{there: ms, back: ms}))
		healthy, healthySession := w.pair(Poll)
		var all []*Session
		for i := range 8 {
			_, session := w.pair(Poll)
			session.Conn().Hold(500<<10 + i<<14)
			all = append(all, session)
		}
		synctest.Wait()
		ended := func() (n int) {
			for _, s := range all {
				if isClosed(s.link.closed) {
					n++
				}
			}
			return n
		}
		if n := ended(); n != 0 {
			t.Fatalf("%d sessions ended below the limit", n)
		}
		began := time.Now()
		for i, s := range slices.Backward(all) { // whenever there is too much, the last is the largest
			s.Conn().Hold(700<<10 + i<<14)
		}
		synctest.Wait()
		if held := w.server.Stats().Memory; held > 8<<20 || held < 6<<20 || time.Since(began) > 0 {
			t.Errorf("%d bytes are held after %v", held, time.Since(began))
		}
		if n := ended(); n < 2 || n > 3 || !isClosed(all[7].link.closed) {
			t.Errorf("%d sessions ended, want 2 or 3, the largest among them", n)
		}
		say(t, healthy.Conn(), healthySession.Conn(), "still here")
	})
}

// Whoever holds most pays, by as many sessions as it may.
func TestByMemory(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var from netip.Addr
		w.server.cfg.ClientAddr = func(*http.Request) netip.Addr { return from }
		names := make(map[*Session]string)
		for _, c := range []struct {
			name, from string
			bytes      int
		}{
			{"many 1", "192.0.2.1", 300},
			{"many 2", "192.0.2.1", 400},
			{"many 3", "192.0.2.1", 500},
			{"large", "192.0.2.2", 800},
			{"unknown", "", 600},
			{"unknown too", "", 650},
			{"near 1", "2001:db8::1", 200},
			{"near 2", "2001:db8::ffff:1", 250},
			{"far", "2001:db8:0:1::1", 100},
		} {
			from = netip.Addr{}
			if c.from != "" {
				from = netip.MustParseAddr(c.from)
			}
			w.raw(w.hello()).greet()
			s := <-w.accepted
			s.Conn().Hold(c.bytes << 16)
			names[s] = c.name
		}
		var got []string
		for _, s := range w.server.byMemory() {
			got = append(got, names[s])
		}
		want := []string{"many 3", "large", "many 2", "unknown too", "unknown", "near 2", "many 1", "near 1", "far"}
		// 1200, 800, 700, 650, 600, 450, 300, 200 and 100 units, when it is their turn.
		if !slices.Equal(got, want) {
			t.Errorf("%q\nwant %q", got, want)
		}
	})
}

// Where nobody holds much, those go first of which least is lost: a crowd of idle
// sessions does not end the one that works, which holds a little more than they.
func TestByMemoryInACrowd(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		names := make(map[*Session]string)
		add := func(name string, bytes int) (*raw, *Session) {
			c := w.raw(w.hello())
			c.greet()
			s := <-w.accepted
			s.Conn().Hold(bytes)
			names[s] = name
			time.Sleep(time.Second)
			return c, s
		}
		busyClient, busy := add("busy", 1<<20)
		silentClient, silent := add("silent", 0)
		idleClient, _ := add("idle", 0)
		add("unconfirmed", 0)
		for _, c := range []*raw{silentClient, idleClient, busyClient} {
			c.post(c.body(wire.Head{}))
			time.Sleep(time.Second)
		}
		busy.Streams(1)
		silent.Streams(1)
		add("large", 100<<20)
		var got []string
		for _, s := range w.server.byMemory() {
			got = append(got, names[s])
		}
		if want := []string{"large", "unconfirmed", "idle", "silent", "busy"}; !slices.Equal(got, want) {
			t.Errorf("%q\nwant %q", got, want)
		}
	})
}

// heap is how many bytes are in use.
func heap() int64 {
	var m runtime.MemStats
	for range 3 { // what is pooled goes with the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// What the account says is what is taken, within a quarter, whatever a peer does;
// and records of a few bytes take little.
func TestAccountIsTrue(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("costs are those of pointers of 64 bits; others take less")
	}
	const sessions = 8
	unit := func(n uint64, size int) (uint64, *buffer) {
		b := newBuffer()
		b.b = b.raw[wire.HeaderSize:][:size]
		return n, b
	}
	receive := func(l *link, n uint64, size int) {
		number, b := unit(n, size)
		if !l.received(number, b) {
			b.release()
		}
	}
	send := func(l *link, size int) {
		for n := range uint64(windowRecords) {
			l.put(make([]byte, size))
			for _, r := range l.take(n, 1<<20, lanes{}) {
				r.unit(l.send)
				r.buf.release()
			}
			l.wrote(n)
		}
	}
	for _, c := range []struct {
		name string
		do   func(l *link)
		most int64 // for one session; 0: any
	}{
		{"empty records behind a missing one", func(l *link) {
			for n := uint64(1); n < windowRecords; n++ {
				receive(l, n, 0)
			}
		}, 600 << 10},
		{"records of some bytes behind a missing one", func(l *link) {
			for n := uint64(1); n < windowRecords; n++ {
				receive(l, n, 300)
			}
		}, 1500 << 10},
		{"full records that nobody reads", func(l *link) {
			for n := range uint64(300) {
				receive(l, n, wire.MaxPlaintext)
			}
		}, 0},
		{"small records that nobody acknowledges", func(l *link) { send(l, 40) }, 1 << 20},
		{"records that nobody acknowledges", func(l *link) { send(l, 1000) }, 6 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			var all account
			var links []*link
			before := heap()
			for range sessions {
				l := newLink(&all)
				l.send = wire.NewKey([32]byte{1}, wire.ChaCha20Poly1305)
				c.do(l)
				links = append(links, l)
			}
			grown, says := heap()-before, all.bytes()
			if says < grown*3/4 || says > grown*5/4 {
				t.Errorf("the account says %d bytes, and the heap has grown by %d", says, grown)
			}
			if one := says / sessions; c.most > 0 && one > c.most {
				t.Errorf("%d bytes for a session, want %d at most", one, c.most)
			}
			for _, l := range links {
				l.drop()
			}
			if n := all.bytes(); n != 0 {
				t.Errorf("%d bytes after the end", n)
			}
		})
	}
}

// What a peer leaves out of the numbers of its records and exchanges is counted.
func TestGapsAreCounted(t *testing.T) {
	var all account
	l := newLink(&all)
	defer l.drop()
	var head wire.Head
	for n := range uint64(wire.MaxSpans) {
		head.Ended.Spans = append(head.Ended.Spans, wire.Span{First: 2*n + 1, End: 2*n + 2})
	}
	l.opened(1, &head, false)
	if n := all.bytes(); n < wire.MaxSpans*spanCost || n > 2*wire.MaxSpans*spanCost {
		t.Errorf("%d bytes for the exchanges that have ended", n)
	}
	before := all.bytes()
	b := newBufferOf(1)
	for n := uint64(1); n < 2*wire.MaxSpans; n += 2 {
		if !l.received(n, b) {
			t.Fatal("a record was not taken")
		}
		b = newBufferOf(1)
	}
	records := int64(b.cost()+incomingCost) * wire.MaxSpans
	if n := all.bytes() - before - records; n < wire.MaxSpans*spanCost || n > 2*wire.MaxSpans*spanCost {
		t.Errorf("%d bytes for the records that are missing", n)
	}
}

// The attack by records behind a missing one, of which each took a buffer of 16 KB:
// as an HTTP request.
func TestEarly(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		time.Sleep(time.Second)
		c := w.raw(w.hello())
		c.greet()
		body := c.body(wire.Head{})
		for n := uint64(1); n < windowRecords; n++ {
			body = append(body, c.keys.Send.Seal(make([]byte, wire.HeaderSize), wire.RecordKind, n)...)
		}
		c.isOurs("the request", c.post(body))
		if s := <-w.accepted; len(s.link.in.early) != windowRecords-1 {
			t.Errorf("%d records are kept", len(s.link.in.early))
		}
		if held := w.server.Stats().Memory; held > 600<<10 {
			t.Errorf("%d bytes are held for %d that came", held, len(body))
		}
	})
}

// One warning is given for many things of a kind.
func TestSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := textLog(&out)
		var s seldom
		for range 100 {
			s.warn(log, "once", "n", 1)
			s.warn(log, "another", "n", 1)
		}
		if n := bytes.Count(out.Bytes(), []byte("\n")); n != 2 {
			t.Errorf("%d lines for two things:\n%s", n, &out)
		}
		time.Sleep(warnEvery)
		s.warn(log, "once")
		if n := bytes.Count(out.Bytes(), []byte("\n")); n != 3 {
			t.Errorf("%d lines after %v", n, warnEvery)
		}
	})
}

// What a client does not take stops what it says: the server gives it no more room,
// until it takes something.
func TestWhoTakesNothingIsNotHeard(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		time.Sleep(time.Second)
		c := w.raw(w.hello())
		c.greet()
		session := <-w.accepted
		go func() { // an engine that answers whatever comes
			buf := make([]byte, wire.RecordRoom)
			for {
				if _, _, err := session.Conn().ReadFrom(buf); err != nil {
					return
				}
				session.link.put(make([]byte, 9000))
			}
		}()
		var last wire.Head
		talk := func(h wire.Head, n int) (window uint64) {
			for range n {
				last = c.isOurs("a request", c.post(c.body(h, "x", "x", "x", "x", "x", "x", "x", "x")))
				synctest.Wait()
			}
			return last.Window
		}
		deaf := wire.Head{Limit: 1, Window: 1 << 30}
		if before, after := talk(deaf, 10), talk(deaf, 10); after < before+40 {
			t.Errorf("the grant went from %d to %d for 80 records", before, after)
		}
		time.Sleep(2 * standing)
		if before, after := talk(deaf, 1), talk(deaf, windowRecords/8+10); after != before {
			t.Errorf("the grant goes from %d to %d", before, after)
		} else if n := session.link.in.got.End(); n > after {
			t.Errorf("%d records were taken in, and %d granted", n, after)
		}
		frozen := last.Window
		listens := deaf
		listens.Limit = 1 << 20
		talk(listens, 1)
		listens.Acks.Low = session.link.out.next
		talk(listens, 2)
		if last.Window <= frozen {
			t.Errorf("the grant is still %d", last.Window)
		}
	})
}

// Two sides of which neither reads for a while do not wait for each other for ever.
func TestBothStand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := testLinks()
		defer emptyLinks(t, a, b)
		a.strict, b.strict = true, true
		exchange := func(n int) {
			for e := range uint64(n) {
				a.put(make([]byte, 10))
				b.put(make([]byte, 10))
				carry(t, a, b, e, nil)
				carry(t, b, a, e, nil)
				tell(t, a, b, e)
				tell(t, b, a, e)
			}
		}
		exchange(windowRecords + 10) // now neither has room at the other
		time.Sleep(4 * standing)
		read := 0
		for range 5 {
			read += len(a.all()) + len(b.all())
			exchange(windowRecords)
			time.Sleep(standing * 2)
		}
		if read < 8*windowRecords {
			t.Errorf("%d datagrams were read", read)
		}
	})
}

// Where the limit is low, a session that works is not the first to go for a crowd of
// those that nobody has confirmed, because it holds what any engine does.
func TestCrowdAndLowLimit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.restart(limits{8, maxSessions, 5 << 20})
		time.Sleep(time.Second)
		w.net.set(always(fate{there: ms, back: ms}))
		_, session := w.pair(Poll)
		session.Streams(1)
		session.Conn().Hold(150 << 10)
		for n := 0; w.server.Stats().Crowded < 200; n++ {
			if n == 5000 {
				t.Fatalf("%d sessions have not filled it: %+v", n, w.server.Stats())
			}
			w.raw(w.hello()).greet()
			synctest.Wait()
		}
		if isClosed(session.link.closed) {
			t.Errorf("it was ended: %+v", w.server.Stats())
		}
	})
}
