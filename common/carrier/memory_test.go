package carrier

import (
	"testing"
	"time"

	"turbotunnel/common/wire"
)

// Sessions that share a memory say no more when it is full, each a little in any
// case, have parts of it that become alike, and go on when something was acknowledged.
func TestMemoryIsShared(t *testing.T) {
	const limit = 16 << 20
	m := NewMemory(limit)
	var links []*link
	for range 3 {
		l := newLink(nil)
		l.share(m)
		l.out.window.size = flightLimit
		defer l.drop()
		links = append(links, l)
	}
	now := time.Now()
	send := func(l *link) bool {
		ok := l.put(make([]byte, 8<<10))
		for _, r := range l.take(1, MaxBody, lanes{}) {
			r.buf.release()
		}
		return ok
	}
	fill := func(l *link) (sent int) {
		for send(l) {
			if sent++; sent > limit>>13 {
				t.Fatal("it has no limit")
			}
		}
		return sent
	}
	// One after the other takes half of what is left.
	for _, l := range links {
		fill(l)
	}
	if all := m.sending.Load(); all > limit/sendPart || all < limit/sendPart*3/4 {
		t.Errorf("%d bytes are kept of %d", all, limit/sendPart)
	}
	first := links[0]
	for len(first.writable) > 0 {
		<-first.writable
	}
	if send(first) {
		t.Fatal("there is room")
	}
	// What is acknowledged makes room, and they become alike.
	for range 20 {
		for _, l := range links {
			l.mu.Lock()
			l.out.acknowledge(&wire.Set{Low: l.out.base + 16}, now)
			l.mu.Unlock()
		}
		if len(first.writable) == 0 {
			t.Fatal("nobody was told that there is room")
		}
		for _, l := range links {
			fill(l)
		}
	}
	part := limit / sendPart / (len(links) + 1)
	for _, l := range links {
		if l.out.kept < part/2 || l.out.kept > part*3/2 {
			t.Errorf("a session keeps %d bytes; want some %d", l.out.kept, part)
		}
	}
	// Who comes late has a little, however full it is.
	m.sending.Add(limit)
	late := newLink(nil)
	late.share(m)
	defer late.drop()
	if n := fill(late) << 13; n < minFlight {
		t.Errorf("a session may keep %d bytes in any case; want %d", n, minFlight)
	}
	m.sending.Add(-limit)
}

// What is promised to one session is not promised to another, until it ends.
func TestPromises(t *testing.T) {
	m := NewMemory(8 << 20)
	a, b := newLink(nil), newLink(nil)
	a.share(m)
	b.share(m)
	defer b.drop()
	left := b.promise(0)
	if left != 8<<20/promisePart {
		t.Errorf("%d bytes are left of 8 MB", left)
	}
	a.promise(3 << 20)
	if n := b.promise(0); n != left-3<<20 {
		t.Errorf("%d bytes are left after a promise of 3 MB", n)
	}
	a.promise(30 << 20)
	if n := b.promise(0); n != 0 {
		t.Errorf("%d bytes are left after all was promised", n)
	}
	a.drop()
	if n := b.promise(0); n != left {
		t.Errorf("%d bytes are left after the session has ended", n)
	}
	if n := newLink(nil).promise(1 << 30); n < 1<<30 {
		t.Errorf("%d bytes are left where there is no limit", n)
	}
}
