package carrier

import (
	"bytes"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/wire"
)

// testLinks are the two ends of a session without anything between them.
func testLinks() (a, b *link) {
	a, b = newLink(nil), newLink(nil)
	k1, k2 := wire.NewKey([32]byte{1}, wire.AES256GCM), wire.NewKey([32]byte{2}, wire.ChaCha20Poly1305)
	a.send, a.receive, b.send, b.receive = k1, k2, k2, k1
	return a, b
}

// carry moves records from one link to another, except those that lose says.
func carry(t *testing.T, from, to *link, e uint64, lose func(n uint64) bool) {
	t.Helper()
	for _, r := range from.take(e, MaxBody, lanes{}) {
		buf := newBuffer()
		u, err := to.receive.Next(bytes.NewReader(r.unit(from.send)), buf.raw[:])
		if err != nil {
			t.Fatal(err)
		}
		r.buf.release()
		buf.b = u.Payload
		if lose != nil && lose(u.Number) || !to.received(u.Number, buf) {
			buf.release()
		}
	}
	from.wrote(e)
}

// tell gives one link a head of the other.
func tell(t *testing.T, from, to *link, e uint64) {
	t.Helper()
	buf := newBuffer()
	defer buf.release()
	u, err := to.receive.Next(bytes.NewReader(from.head(e, wire.Head{}, 0)), buf.raw[:])
	if err != nil {
		t.Fatal(err)
	}
	var h wire.Head
	if err := h.Parse(u.Payload); err != nil {
		t.Fatal(err)
	}
	to.opened(u.Number, &h, true)
}

// got reads everything that is ready.
func (l *link) all() (texts []string) {
	buf := make([]byte, wire.RecordRoom)
	for {
		n, ok := l.get(buf)
		if !ok {
			return texts
		}
		texts = append(texts, string(buf[:n]))
	}
}

func emptyLinks(t *testing.T, links ...*link) {
	t.Helper()
	for _, l := range links {
		l.drop()
		if held := l.held.bytes(); held != 0 {
			t.Errorf("%d bytes held after drop", held)
		}
		if l.put([]byte("late")) || l.held.bytes() != 0 {
			t.Errorf("a datagram was taken after drop, %d bytes held", l.held.bytes())
		}
		b := newBuffer()
		if l.received(1000, b) {
			t.Error("a record was taken after drop")
		}
		b.release()
	}
}

// A gap is given up when other records keep coming, and not because there is
// silence: an outage costs no datagram.
func TestGap(t *testing.T) {
	for _, c := range []struct {
		name   string
		silent bool
		want   int
	}{{"others keep coming", false, 0}, {"silence", true, 1}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := testLinks()
				defer emptyLinks(t, a, b)
				for n := range uint64(2) {
					a.put([]byte{byte(n)})
					carry(t, a, b, n, func(n uint64) bool { return n == 0 })
				}
				for i := range uint64(60) {
					time.Sleep(time.Second)
					if !c.silent {
						a.put([]byte{byte(i)})
						carry(t, a, b, 2+i, func(n uint64) bool { return n == 0 })
					}
				}
				a.endExchange(0, false)
				carry(t, a, b, 100, nil)
				texts := b.all()
				if n := b.in.givenUp.Load(); len(texts) > 0 && (texts[0] == "\x00") != (c.want == 1) || n != uint64(1-c.want) {
					t.Errorf("%d records were given up, got %q", n, texts)
				}
			})
		})
	}
}

// A peer that grants any window and acknowledges nothing gets so many records
// and no more.
func TestUnacknowledgedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := testLinks()
		defer emptyLinks(t, a, b)
		a.opened(0, &wire.Head{Window: wire.MaxNumber}, true)
		const bound = windowRecords*(192+outgoingCost) + (queueLimit/wire.MaxUnit+1)*(unitCost+outgoingCost)
		for e := range uint64(4 * windowRecords) {
			a.put([]byte("x"))
			for _, r := range a.take(e, MaxBody, lanes{}) {
				r.buf.release()
			}
			if held := a.held.bytes(); held > bound {
				t.Fatalf("%d bytes held for %d datagrams of a byte", held, e)
			}
		}
		if due := a.demand(time.Now(), lanes{}).due; due >= 0 {
			t.Errorf("due in %v, and nothing can be sent", due)
		}
	})
}

// A receiver that does not read is told about, and holds what its window says.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := testLinks()
		defer emptyLinks(t, a, b)
		sent := 0
		for e := range uint64(2 * windowRecords) {
			if a.put([]byte("x")) {
				sent++
			}
			carry(t, a, b, e, nil)
			tell(t, b, a, e)
		}
		if n := len(b.in.ready) + len(b.in.early); n > windowRecords {
			t.Errorf("%d records are kept for an engine that reads nothing", n)
		}
		read := 0
		for e := uint64(1 << 20); read < sent && e < 1<<20+10; e++ {
			read += len(b.all())
			tell(t, b, a, e)
			carry(t, a, b, e, nil)
		}
		if read += len(b.all()); read != sent {
			t.Errorf("%d datagrams of %d arrived", read, sent)
		}
	})
}

// Records that come beyond the window are refused, and come again.
func TestBeyondTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := testLinks()
		defer emptyLinks(t, a, b)
		for i, n := range []uint64{windowRecords, windowRecords + 5, wire.MaxNumber} {
			buf := newBuffer()
			if b.received(n, buf) || b.held.bytes() != 0 || len(b.in.early) != 0 {
				t.Errorf("%d: record %d has room", i, n)
			}
			buf.release()
		}
	})
}

// FuzzHeads: whatever a peer says in heads, and in whatever order, the link's
// counts stay true and its memory is given back.
func FuzzHeads(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 2, 9, 1, 1})
	f.Add([]byte{0, 0, 0, 0, 255, 3, 0, 255, 1, 255})
	f.Add([]byte{9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 9, 8, 7, 6, 5, 4, 3, 2, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		a, b := testLinks()
		defer emptyLinks(t, a, b)
		next := func() uint64 {
			if len(script) == 0 {
				return 0
			}
			n := script[0]
			script = script[1:]
			return uint64(n)
		}
		exchange := uint64(0)
		for len(script) > 0 {
			switch next() % 6 {
			case 0, 1:
				a.put(make([]byte, 1+next()*60))
			case 2:
				exchange++
				for _, r := range a.take(exchange, int(next())<<10, lanes{}) {
					r.unit(a.send)
					r.buf.release()
				}
				a.wrote(exchange)
			case 3:
				a.endExchange(next(), false)
			case 4:
				h := wire.Head{Time: uint32(next()), Window: next() << next()}
				if next()%2 == 0 {
					h.Echoes, h.Echo, h.Delay = true, uint32(next()), time.Duration(next())*time.Millisecond
				}
				for range next() % 8 {
					h.Acks.Add(next())
					h.Ended.Add(next())
				}
				h.Acks.Low = max(h.Acks.Low, next()%2*next())
				if !setIsValid(&h.Acks) {
					continue
				}
				a.opened(next(), &h, true)
			case 5:
				buf := newBuffer()
				buf.b = append(buf.b, script[:min(len(script), 20)]...)
				if !b.received(next()<<(next()%12), buf) {
					buf.release()
				}
				b.all()
				b.tick()
			}
			checkLink(t, a)
			checkLink(t, b)
		}
	})
}

func setIsValid(s *wire.Set) bool {
	for i, p := range s.Spans {
		if p.First <= s.Low || i > 0 && p.First <= s.Spans[i-1].End {
			return false
		}
	}
	return true
}

// checkLink compares what a link counts with what it holds.
func checkLink(t *testing.T, l *link) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	flying, retained, held, missing := 0, 0, 0, 0
	for i, r := range l.out.sent {
		if r.number != l.out.base+uint64(i) {
			t.Fatalf("record %d stands at %d", r.number, l.out.base+uint64(i))
		}
		if (l.out.missing.each(r.number, r.number+1, func(uint64) {}) == 2) == r.acked {
			t.Fatalf("record %d is acknowledged: %v, and counts as missing: %v", r.number, r.acked, r.acked)
		}
		if r.acked {
			continue
		}
		retained += r.size
		held += r.buf.cost() + outgoingCost
		missing++
		if !r.lost {
			flying += r.size
		}
	}
	if n := l.out.missing.each(0, windowRecords, func(uint64) { missing-- }); missing != 0 {
		t.Fatalf("%d records too few are missing after %d steps", missing, n)
	}
	for i, c := range l.out.cargoes {
		if len(c.records) == 0 || i > 0 && l.out.cargoes[i-1].exchange >= c.exchange {
			t.Fatalf("cargo %d is of exchange %d and has %d records", i, c.exchange, len(c.records))
		}
	}
	queued := 0
	for _, b := range l.out.queue.records {
		queued += len(b.b) - wire.HeaderSize
		held += b.cost() + outgoingCost
	}
	for _, b := range l.in.ready {
		held += b.cost() + incomingCost
	}
	for _, b := range l.in.early {
		held += b.cost() + incomingCost
	}
	if flying != l.out.flying || retained != l.out.retained || queued != l.out.queue.bytes {
		t.Fatalf("flying %d, counted %d; retained %d, counted %d; queued %d, counted %d",
			flying, l.out.flying, retained, l.out.retained, queued, l.out.queue.bytes)
	}
	held += (cap(l.in.got.Spans) + cap(l.out.unheard.Spans)) * spanCost
	if int64(held) != l.held.bytes() {
		t.Fatalf("%d bytes held, %d counted", held, l.held.bytes())
	}
	if uint64(len(l.out.sent)) != l.out.next-l.out.base {
		t.Fatalf("%d records from %d to %d", len(l.out.sent), l.out.base, l.out.next)
	}
}

// WaitRead returns when ReadFrom has something to return, and holds no record
// that was read to its end.
func TestWaitRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink(nil)
		c := newConn(l, "peer", nil)
		returned := make(chan struct{})
		wait := func() { c.WaitRead(); returned <- struct{}{} }
		waits := func() bool {
			synctest.Wait()
			select {
			case <-returned:
				return false
			default:
				return true
			}
		}
		go wait()
		if !waits() {
			t.Fatal("returned before anything came")
		}
		l.receivedHello(wire.AppendDatagram(wire.AppendDatagram(nil, []byte("a")), []byte("b")))
		for _, want := range []string{"a", "b"} {
			if want == "b" {
				go wait()
			}
			if waits() {
				t.Fatalf("%s is there, and it waits", want)
			}
			b := make([]byte, 8)
			if n, _, err := c.ReadFrom(b); err != nil || string(b[:n]) != want {
				t.Fatalf("got %q, %v; want %q", b[:n], err, want)
			}
		}
		go wait()
		if !waits() {
			t.Fatal("returned after the last datagram")
		}
		if held := l.held.bytes(); held != 0 {
			t.Errorf("%d bytes held", held)
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		time.Sleep(time.Minute)
		if waits() {
			t.Fatal("the deadline did not end it")
		}
		c.SetReadDeadline(time.Time{})
		go wait()
		c.Close()
		if waits() {
			t.Fatal("Close did not end it")
		}
	})
}

// Nobody takes what is to be sent again, as when a client has vanished: the
// link goes on asking now and then, and not all the time.
func TestLinkWithoutEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink(nil)
		l.send = wire.NewKey([32]byte{1}, wire.ChaCha20Poly1305)
		for range 2 {
			l.put(make([]byte, 8000))
			for _, r := range l.take(1, 1<<20, lanes{}) {
				r.buf.release()
			}
			l.wrote(1)
		}
		time.Sleep(Lifetime)
		l.mu.Lock()
		probes := l.out.silence.probes
		l.mu.Unlock()
		if probes < 4 || probes > 12 {
			t.Errorf("%d probes in %v", probes, Lifetime)
		}
		l.drop()
	})
}

// TestLastDatagram: the end of the session overtakes no datagram, not even one that
// comes together with it while somebody looks.
func TestLastDatagram(t *testing.T) {
	for i := range 50000 {
		l := newLink(nil)
		c := newConn(l, "end", nil)
		var started atomic.Bool
		go func() {
			for !started.Load() {
			}
			for range i % 200 { // so that it is in the midst of the reader's look sometimes
				started.Load()
			}
			l.receivedHello([]byte{0, 1, 'x'})
			l.finish(0)
		}()
		started.Store(true)
		if n, _, err := c.ReadFrom(make([]byte, 10)); n != 1 || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if n, _, err := c.ReadFrom(make([]byte, 10)); n != 0 || err == nil {
			t.Fatalf("after the end %d bytes, %v", n, err)
		}
		c.Close()
	}
}
