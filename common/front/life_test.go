package front

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// outageTime is how long the network of these tests is down, in which a SYN is
// repeated after 1, 3 and 7 s.
const outageTime = 5 * time.Second

// holding answers at once, but what begins with "hold" after a minute.
func holding(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	if strings.HasPrefix(string(b), "hold") {
		select {
		case <-time.After(time.Minute):
		case <-r.Context().Done():
		}
	}
	w.Write(b)
}

// A sent exchange is one under way.
type sent struct {
	done  chan struct{}
	begun time.Time
	took  time.Duration
	err   error
}

// send begins an exchange.
func send(ctx context.Context, f *Front, body string) *sent {
	s := &sent{done: make(chan struct{}), begun: time.Now()}
	go func() {
		defer close(s.done)
		resp, err := f.RoundTrip(post(ctx, body))
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		s.err, s.took = err, time.Since(s.begun)
	}()
	synctest.Wait()
	return s
}

func (s *sent) wait() error {
	<-s.done
	return s.err
}

// died tells whether s failed because its connection died.
func (s *sent) died(t *testing.T) {
	t.Helper()
	var e *Error
	switch err := s.wait(); {
	case err == nil:
		t.Error("an exchange on a dead connection was answered")
	case !asError(err, &e) || e.Op != OpHTTP || !strings.Contains(err.Error(), "the connection died"):
		t.Errorf("error %v", err)
	}
}

func asError(err error, e **Error) (ok bool) {
	*e, ok = err.(*Error)
	return ok
}

// dies is the network that goes down, and comes back without the connections
// that there were.
func (m *memory) dies() {
	m.down.Store(true)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.all {
		c.dark.Store(true)
	}
}

// When the network comes back and the old connection does not, exchanges pass
// within a second, and those on the old one have failed.
func TestDeadConnectionIsReplaced(t *testing.T) {
	inMemory(t, holding, func(t *testing.T, f *Front, m *memory) {
		m.delay = 50 * time.Millisecond
		for range 2 {
			exchange(t, f, "x")
			held := send(t.Context(), f, "hold")
			time.Sleep(20 * time.Second)
			exchange(t, f, "x")
			m.dies()
			first := send(t.Context(), f, "x")
			second := send(t.Context(), f, "x")
			time.Sleep(2 * time.Second)
			third := send(t.Context(), f, "x")
			time.Sleep(outageTime - 2*time.Second)
			m.down.Store(false)
			back := time.Now()
			if err := third.wait(); err != nil {
				t.Error(err)
			}
			if d := time.Since(back); d > redialAfter+time.Second/2 {
				t.Errorf("answered %v after the network came back", d)
			}
			for _, s := range []*sent{held, first, second} {
				s.died(t)
			}
			if d := time.Since(back); d > 2*time.Second {
				t.Errorf("the old connection is kept for %v", d)
			}
			synctest.Wait()
			if most := m.most.Load(); most > 1+maxDials+1 {
				t.Errorf("%d connections at a time", most)
			}
			if n := m.open.Load(); n != 1 {
				t.Errorf("%d connections are left", n)
			}
		}
	})
}

// One exchange alone shows that its connection is dead if it is one that a
// server answers at once.
func TestDeadInUpload(t *testing.T) {
	inMemory(t, holding, func(t *testing.T, f *Front, m *memory) {
		m.delay = 50 * time.Millisecond
		exchange(t, f, "x")
		f.pool.mu.Lock()
		f.pool.conns[0].sock.rtt.Store(int64(time.Minute)) // as after a handshake in an outage
		f.pool.mu.Unlock()
		exchange(t, f, "x")
		m.goDark()
		s := send(t.Context(), f, strings.Repeat("x", longBody))
		s.died(t)
		// Its length might be what keeps the ping.
		if room := longBody * time.Second / slowest; s.took > minDue+room+time.Second/2 {
			t.Errorf("took %v", s.took)
		}
	})
}

// A connection on which nothing comes for a while, and then something, goes on,
// and is the only one.
func TestSilentConnectionComesBack(t *testing.T) {
	inMemory(t, holding, func(t *testing.T, f *Front, m *memory) {
		m.delay = 50 * time.Millisecond
		exchange(t, f, "x")
		m.down.Store(true)
		m.last.hold()
		old := m.last
		first := send(t.Context(), f, "x")
		second := send(t.Context(), f, "x")
		time.Sleep(3 * time.Second)
		third := send(t.Context(), f, "x")
		time.Sleep(time.Second)
		old.letGo()
		for _, s := range []*sent{first, second, third} {
			if err := s.wait(); err != nil {
				t.Error(err)
			}
		}
		m.down.Store(false)
		time.Sleep(30 * time.Second)
		if isClosed(old) {
			t.Error("closed")
		}
		if n := m.open.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}

// A server that says nothing for long, but answers pings, keeps its connection.
func TestHeldAnswersAreNoEvidence(t *testing.T) {
	inMemory(t, holding, func(t *testing.T, f *Front, m *memory) {
		m.delay = 50 * time.Millisecond
		var all []*sent
		for range 5 {
			all = append(all, send(t.Context(), f, "hold"))
			time.Sleep(3 * time.Second)
		}
		for _, s := range all {
			if err := s.wait(); err != nil {
				t.Error(err)
			}
		}
		if n := m.dials.Load(); n != 1 {
			t.Errorf("%d dials", n)
		}
	})
}

// A ping behind a long request on a slow path is late, and nobody is hurt.
func TestSlowUploadIsNotDead(t *testing.T) {
	authorityOf()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.delay, m.rateUp = 50*time.Millisecond, 2*slowest
		s := serve(t, serverOptions{listener: m}, func(_ http.ResponseWriter, r *http.Request) {
			if r.ContentLength > 1 {
				time.Sleep(20 * time.Second) // so that no window is opened meanwhile
			}
		})
		f := newFront(t, s, func(c *Config) { c.Dialer = m.dial })
		defer f.endWith(s)
		exchange(t, f, "x")
		old := m.last
		for range 2 { // the second time the path's rate is known
			long := send(t.Context(), f, strings.Repeat("x", 7*2*slowest))
			short := send(t.Context(), f, "x")
			if err := long.wait(); err != nil {
				t.Error(err)
			}
			if err := short.wait(); err != nil {
				t.Error(err)
			}
		}
		if isClosed(old) {
			t.Error("closed")
		}
	})
}

// countedPings counts the pings on a wire.
type countedPings struct {
	wire
	n atomic.Int32
}

func (w *countedPings) ping(ctx context.Context) error {
	w.n.Add(1)
	return w.wire.ping(ctx)
}

// countPings counts those on f's only connection from now on.
func countPings(f *Front) *countedPings {
	f.pool.mu.Lock()
	defer f.pool.mu.Unlock()
	w := &countedPings{wire: f.pool.conns[0].wire}
	f.pool.conns[0].life.wire = w
	return w
}

// On a good path pings are sent only when something is asked after a silence.
func TestPingsAreRare(t *testing.T) {
	inMemory(t, holding, func(t *testing.T, f *Front, m *memory) {
		m.delay = 50 * time.Millisecond
		exchange(t, f, "x")
		w := countPings(f)
		for range 3 { // an idle session
			send(t.Context(), f, "hold").wait()
		}
		if n := w.n.Load(); n != 0 {
			t.Errorf("%d pings of an idle session", n)
		}
		held := send(t.Context(), f, "hold")
		for range 100 { // a conversation
			time.Sleep(100 * time.Millisecond)
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() { exchange(t, f, "x") })
			}
			all.Wait()
		}
		if n := w.n.Load(); n != 0 {
			t.Errorf("%d pings in a conversation", n)
		}
		time.Sleep(quiet)
		exchange(t, f, "x")
		if n := w.n.Load(); n != 1 {
			t.Errorf("%d pings after a silence", n)
		}
		if err := held.wait(); err != nil {
			t.Error(err)
		}
	})
}

// inMemory1 is inMemory for HTTP/1.1.
func inMemory1(t *testing.T, test func(t *testing.T, f *Front, m *memory)) {
	authorityOf()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.delay = 50 * time.Millisecond
		s := serve(t, serverOptions{listener: m, noH2: true}, holding)
		f := newFront(t, s, func(c *Config) { c.Dialer = m.dial })
		defer f.endWith(s)
		test(t, f, m)
	})
}

// Over HTTP/1.1 idle connections are not trusted when nothing comes on any, and
// those in use are closed when an exchange on a new one is answered.
func TestDeadConnectionsAreReplaced(t *testing.T) {
	inMemory1(t, func(t *testing.T, f *Front, m *memory) {
		held := send(t.Context(), f, "hold")
		others := []*sent{send(t.Context(), f, "x"), send(t.Context(), f, "x"), send(t.Context(), f, "x")}
		for _, s := range others {
			s.wait()
		}
		m.dies()
		first := send(t.Context(), f, "x")
		second := send(t.Context(), f, "x")
		time.Sleep(2 * time.Second)
		third := send(t.Context(), f, "x") // the last idle connection is not used
		time.Sleep(outageTime - 2*time.Second)
		m.down.Store(false)
		back := time.Now()
		if err := third.wait(); err != nil {
			t.Error(err)
		}
		for _, s := range []*sent{held, first, second} {
			s.died(t)
		}
		if d := time.Since(back); d > redialAfter+time.Second/2 {
			t.Errorf("answered %v after the network came back", d)
		}
		if most := m.most.Load(); most > maxConns+1 { // one is ending
			t.Errorf("%d connections at a time", most)
		}
	})
}

// Over HTTP/1.1 nobody counts long bodies: there is no watch that would need it.
func TestLongBodies1(t *testing.T) {
	inMemory1(t, func(t *testing.T, f *Front, _ *memory) {
		for range 3 {
			exchange(t, f, strings.Repeat("x", longBody))
		}
		f.pool.mu.Lock()
		defer f.pool.mu.Unlock()
		for _, c := range f.pool.conns {
			if c.life.long != 0 {
				t.Errorf("%d long bodies are under way", c.life.long)
			}
		}
		if len(f.pool.conns) == 0 {
			t.Error("no connection is left")
		}
	})
}

// Held answers over HTTP/1.1 cost at most the connections that there may be.
func TestHeldAnswersAreNoEvidence1(t *testing.T) {
	inMemory1(t, func(t *testing.T, f *Front, m *memory) {
		var all []*sent
		for range maxConns - 1 {
			all = append(all, send(t.Context(), f, "hold"))
			time.Sleep(3 * time.Second)
		}
		for _, s := range all {
			if err := s.wait(); err != nil {
				t.Error(err)
			}
		}
		if most := m.most.Load(); most > maxConns {
			t.Errorf("%d connections at a time", most)
		}
	})
}

// A first connection that is begun in an outage is there soon after it.
func TestDialInOutage(t *testing.T) {
	inMemory(t, echo, func(t *testing.T, f *Front, m *memory) {
		m.down.Store(true)
		s := send(t.Context(), f, "x")
		time.Sleep(outageTime)
		m.down.Store(false)
		if err := s.wait(); err != nil || s.took > outageTime+redialAfter {
			t.Errorf("after %v: %v", s.took, err)
		}
		synctest.Wait()
		if n, most := m.open.Load(), m.most.Load(); n != 1 || most > maxDials+1 {
			t.Errorf("%d connections, %d at a time", n, most)
		}
	})
}

// Nobody watches a connection that has ended.
func TestNobodyWatchesTheEnded(t *testing.T) {
	inMemory(t, holding, func(t *testing.T, f *Front, m *memory) {
		m.delay = 50 * time.Millisecond
		exchange(t, f, "x")
		w := countPings(f)
		old := m.last
		old.dark.Store(true)
		first, second := send(t.Context(), f, "hold"), send(t.Context(), f, "hold")
		time.Sleep(100 * time.Millisecond)
		old.Close() // as if it was reset
		first.wait()
		second.wait()
		time.Sleep(time.Minute)
		before := w.n.Load()
		time.Sleep(time.Hour)
		if n := w.n.Load() - before; n > 0 {
			t.Errorf("%d pings on a connection that has ended", n)
		}
	})
}

// A connection on which nothing is answered any more, though pings are, is left for
// another one.
func TestConnectionAnswersNothing(t *testing.T) {
	var conns atomic.Pointer[atomic.Int32]
	inMemory(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if string(b) == "stuck" && conns.Load().Load() == 1 {
			<-r.Context().Done()
		}
		w.Write(b)
	}, func(t *testing.T, f *Front, m *memory) {
		m.delay = 50 * time.Millisecond
		conns.Store(&m.dials)
		begin := func() *sent {
			time.Sleep(time.Second) // a ping has shown that the connection lives
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			s := send(ctx, f, "stuck")
			context.AfterFunc(ctx, cancel)
			return s
		}
		exchange(t, f, "x")
		for range 2 {
			begin().wait()
		}
		time.Sleep(time.Second)
		exchange(t, f, "x") // it was these exchanges
		for range 2 {
			begin().wait()
		}
		if n := m.dials.Load(); n != 1 {
			t.Errorf("%d connections too soon", n)
		}
		begin().wait()
		if err := begin().wait(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if n := m.open.Load(); n != 1 {
			t.Errorf("%d connections are left", n)
		}
	})
}

// Exchanges that wait in vain together count once.
func TestVainTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &conn{address: new(address)}
		for want := 1; want <= maxVain; want++ {
			time.Sleep(10 * time.Second)
			for range 5 {
				c.waits(10 * time.Second)
				time.Sleep(time.Millisecond)
			}
			if c.vain != want || c.worn.Load() != (want == maxVain) || c.address.works() == c.worn.Load() {
				t.Errorf("after %d times %d count, worn %v", want, c.vain, c.worn.Load())
			}
		}
	})
}
