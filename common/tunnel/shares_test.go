package tunnel

import (
	"context"
	"log/slog"
	"math/bits"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engine"
)

// A pileStream is a stream of which only its end is of interest.
type pileStream struct {
	engine.Stream
	reset atomic.Bool
}

func (s *pileStream) Close() error { return nil }
func (s *pileStream) Reset() error { s.reset.Store(true); return nil }

func TestHolders(t *testing.T) {
	of := func(addr string) holder {
		network, err := netip.MustParseAddr(addr).Prefix(map[bool]int{true: 64, false: 32}[strings.Contains(addr, ":")])
		if err != nil {
			t.Fatal(err)
		}
		return holder{network: network}
	}
	if of("2001:db8::1") != of("2001:db8::ffff:0:0:1") || of("2001:db8::1") == of("2001:db8:0:1::1") || of("192.0.2.1") == of("192.0.2.2") {
		t.Error("the network of an address is not what one customer has")
	}
	a, b := new(carrier.Session), new(carrier.Session)
	if holderOf(a) == holderOf(b) {
		t.Error("sessions without an address are not told from each other")
	}
}

// Without addresses nothing is left of a session when its streams have ended, or
// were refused.
func TestSessionsAreForgotten(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := newShares(1)
	stream := func() *ServerStream {
		return &ServerStream{Stream: new(pileStream), holder: holder{session: new(carrier.Session)}}
	}
	for range 10 {
		only := stream()
		if ok, _ := s.add(only, now); !ok {
			t.Fatal("no room in an empty server")
		}
		if ok, _ := s.add(stream(), now); ok {
			t.Fatal("one too many was admitted")
		}
		s.remove(only)
		s.remove(only)
		if n := len(s.holders); n != 0 || s.open != 0 {
			t.Fatalf("%d sessions without a stream are kept, and %d streams", n, s.open)
		}
	}
}

// Who has most loses to a newcomer, and of his streams the idlest one.
func TestFullSharesMakeRoom(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := newShares(8)
	stream := func(h holder) *ServerStream { return &ServerStream{Stream: new(pileStream), holder: h} }
	many, few, newcomer := holder{session: new(carrier.Session)}, holder{session: new(carrier.Session)}, holder{session: new(carrier.Session)}
	var all []*ServerStream
	for range 6 {
		st := stream(many)
		all = append(all, st)
		if ok, goes := s.add(st, now); !ok || goes != nil {
			t.Fatal("no room in an empty server")
		}
	}
	for range 2 {
		s.add(stream(few), now.Add(-time.Hour))
	}
	for i, st := range all {
		s.passed(st, now.Add(time.Duration(1+i)*time.Second))
	}
	now = now.Add(10 * time.Second)
	for _, st := range all[:3] {
		s.passed(st, now)
	}
	if ok, goes := s.add(stream(newcomer), now); !ok || goes != all[3] {
		t.Errorf("a newcomer: admitted %v, and %p went, want %p", ok, goes, all[3])
	}
	if ok, goes := s.add(stream(many), now); ok || goes != nil {
		t.Error("who has most takes from others")
	}
	if open, most := s.streams(); open != 8 || most != 8 {
		t.Errorf("%d of %d are open", open, most)
	}

	// Everybody has one: only one that is idle goes.
	even := newShares(2)
	busy, idle := stream(many), stream(few)
	even.add(busy, now)
	even.add(idle, now)
	now = now.Add(2 * idleStream)
	even.passed(busy, now)
	if ok, goes := even.add(stream(newcomer), now); !ok || goes != idle {
		t.Error("an idle stream did not go")
	}
	if ok, goes := even.add(stream(holder{session: new(carrier.Session)}), now); ok || goes != nil {
		t.Error("a stream in use went, though its holder has no more than others")
	}
	even.remove(busy)
	even.remove(busy)
	if open, _ := even.streams(); open != 1 {
		t.Errorf("%d are open, want 1", open)
	}
}

// What a newcomer costs does not grow with how many there are, but for the depth of
// a heap, however many streams are in use.
func TestNewcomersAreCheap(t *testing.T) {
	for _, c := range []struct{ holders, each int }{{160, 100}, {16000, 1}, {4, 4000}} {
		now := time.Unix(1e9, 0)
		s := newShares(c.holders * c.each)
		stream := func(h holder) *ServerStream { return &ServerStream{Stream: new(pileStream), holder: h} }
		var all []*ServerStream
		for range c.holders {
			h := holder{session: new(carrier.Session)}
			for range c.each {
				st := stream(h)
				s.add(st, now)
				all = append(all, st)
			}
		}
		most := 0
		cost := func(what func()) {
			before := s.rivals.compared
			what()
			most = max(most, s.rivals.compared-before)
		}
		now = now.Add(2 * idleStream)
		for i := range 1000 {
			cost(func() { s.passed(all[i*7919%len(all)], now) })
		}
		went := make(map[*ServerStream]bool)
		for range 1000 {
			cost(func() {
				if ok, goes := s.add(stream(holder{session: new(carrier.Session)}), now); !ok || goes == nil || went[goes] {
					t.Fatalf("a newcomer: admitted %v, %p went", ok, goes)
				} else {
					went[goes] = true
				}
			})
		}
		for i := range 1000 {
			if went[all[i*7919%len(all)]] && c.each == 1 {
				t.Error("a stream in use went in place of an idle one")
			}
		}
		if limit := 10 * bits.Len(uint(c.holders+1000)); most > limit {
			t.Errorf("%d holders of %d streams: one step compares %d times, want %d at most", c.holders, c.each, most, limit)
		}
	}
}

// What passes on a stream takes the lock of all once a second at most.
func TestStreamsMoveSeldom(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := newShares(8)
	st := &ServerStream{Stream: new(pileStream), holder: holder{session: new(carrier.Session)}}
	s.add(st, now)
	s.mu.Lock() // whoever wants it would stand still
	s.passed(st, now.Add(movedEvery-1))
	s.mu.Unlock()
	s.passed(st, now.Add(movedEvery))
	if got := st.moved.Load(); got != s.since(now.Add(movedEvery)) {
		t.Error("a stream that is in use is taken for an idle one")
	}
	s.remove(st)
	s.passed(st, now.Add(time.Hour)) // of one that has gone
	if len(s.rivals.all) != 0 {
		t.Errorf("%d holders are left", len(s.rivals.all))
	}
}

// One address gets its part and no more, and is forgotten afterwards.
func TestSharesOfAnAddress(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := newShares(8)
	h := holder{network: netip.MustParsePrefix("192.0.2.1/32")}
	var streams []*ServerStream
	for i := range 3 {
		st := &ServerStream{Stream: new(pileStream), holder: h}
		if ok, _ := s.add(st, now); ok != (i < 8/addressPart) {
			t.Errorf("stream %d: admitted %v", i, ok)
		}
		streams = append(streams, st)
	}
	for range addressBurst {
		if d := s.reserve(h, now); d != 0 {
			t.Fatalf("one of the first waits for %v", d)
		}
	}
	if d := s.reserve(h, now); d == 0 {
		t.Error("an address opens streams without end")
	}
	for _, st := range streams {
		s.remove(st)
	}
	other := holder{network: netip.MustParsePrefix("192.0.2.2/32")}
	s.reserve(other, now.Add(forgetEvery+time.Second))
	s.reserve(other, now.Add(time.Hour))
	if s.holders[h] != nil {
		t.Error("an address without streams is remembered for ever")
	}
}

// A pileSession is an engine's session of a client that opens streams without
// end.
type pileSession struct {
	engine.Session
	done     chan struct{}
	accepted atomic.Int64
	mu       sync.Mutex
	streams  []*pileStream
}

func (s *pileSession) Done() <-chan struct{} { return s.done }
func (s *pileSession) Accept(context.Context) (engine.Stream, error) {
	select {
	case <-s.done:
		return nil, net.ErrClosed
	default:
	}
	st := new(pileStream)
	s.accepted.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams = append(s.streams, st)
	return st, nil
}

// Of a session that opens streams without end, a browser's come at once, then
// so many in a second, and in the end what it may have. Others notice nothing,
// and the log has a line.
func TestStreamsOfASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		s := &Server{
			log:     slog.New(slog.NewTextHandler(&text, nil)),
			streams: make(chan *ServerStream),
			shares:  newShares(0),
			full:    rate.Sometimes{First: 1, Interval: fullInterval},
		}
		s.ctx, s.cancel = context.WithCancel(t.Context())
		sess := &pileSession{done: make(chan struct{})}
		var running sync.WaitGroup
		running.Go(func() { s.handOn(new(carrier.Session), sess, func(int) {}) })
		var handed atomic.Int64
		running.Go(func() {
			for {
				if _, err := s.Accept(); err != nil {
					return
				}
				handed.Add(1)
			}
		})
		synctest.Wait()
		if n := handed.Load(); n != sessionBurst {
			t.Errorf("%d streams at once, want %d", n, sessionBurst)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := handed.Load(); n < sessionBurst+int64(sessionRate)-1 || n > sessionBurst+int64(sessionRate) {
			t.Errorf("%d streams after a second", n)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := handed.Load(); n != sessionStreams {
			t.Errorf("%d streams, want %d", n, sessionStreams)
		}
		if st := s.shares.open; st != sessionStreams || s.limited.Load() == 0 {
			t.Errorf("%d are counted, %d refused", st, s.limited.Load())
		}
		sess.mu.Lock()
		if last := sess.streams[sessionStreams]; !last.reset.Load() {
			t.Error("a stream for which there is no room was not reset")
		}
		sess.mu.Unlock()
		close(sess.done)
		s.cancel()
		running.Wait()
		if n := strings.Count(text.String(), "streams are refused"); n != 1 {
			t.Errorf("%d lines in the log:\n%s", n, text.String())
		}
	})
}
