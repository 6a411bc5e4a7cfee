package enginetest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"turbotunnel/common/engine"
)

// A moody end of the network is a carrier on a bad day: its WriteTo blocks for
// up to seconds now and then, its ReadFrom comes late, and runs of datagrams
// are lost for good, as after a gap that a carrier has given up. All of it ends
// at calm.
type moody struct {
	*Conn
	calm   time.Time
	once   sync.Once
	closed chan struct{}

	mu   sync.Mutex
	rand *rand.Rand // guarded by mu, like what follows
	lose int        // so many of the next datagrams
}

func newMoody(c *Conn, seed uint64, calm time.Time) *moody {
	return &moody{Conn: c, calm: calm, closed: make(chan struct{}), rand: rand.New(rand.NewPCG(seed, 5))}
}

func (m *moody) Close() error {
	m.once.Do(func() { close(m.closed) })
	return m.Conn.Close()
}

// pause blocks as the mood of the moment is.
func (m *moody) pause() {
	d := m.mood()
	if d == 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.closed:
	}
}

// mood says for how long the next call blocks.
func (m *moody) mood() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !time.Now().Before(m.calm) {
		m.lose = 0
		return 0
	}
	switch n := m.rand.IntN(800); {
	case n < 2:
		return time.Duration(m.rand.Int64N(int64(8 * time.Second)))
	case n < 20:
		return time.Duration(m.rand.Int64N(int64(200 * time.Millisecond)))
	case n < 26 && m.lose == 0:
		m.lose = 1 + m.rand.IntN(1<<m.rand.IntN(10))
	}
	return 0
}

// loses tells whether the next datagram is lost.
func (m *moody) loses() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lose == 0 {
		return false
	}
	m.lose--
	return true
}

func (m *moody) WriteTo(p []byte, to net.Addr) (int, error) {
	m.pause()
	if m.loses() {
		return len(p), nil
	}
	return m.Conn.WriteTo(p, to)
}

func (m *moody) ReadFrom(p []byte) (int, net.Addr, error) {
	n, from, err := m.Conn.ReadFrom(p)
	m.pause()
	return n, from, err
}

// testStalls: eight downloads at once, in bursts, with an answer now and then,
// over a carrier that blocks for seconds and loses runs of datagrams in both
// directions. Once it is well again everything arrives: no message that says
// that there is room, no wake and no last datagram is missed for good.
func testStalls(t *testing.T, on setup) {
	const (
		downloads = 8
		size      = 512 << 10
		bad       = 20 * time.Second // the carrier is, at most
		enough    = 2 * time.Minute  // for the rest: several of the longest pauses of any engine
	)
	path := Path{Delay: 50 * time.Millisecond, Rate: 100e6 / 8, Queue: 1 << 20}
	for seed := range uint64(3) {
		calm := time.Now().Add(bad)
		a, b := Connect(path, path, seed)
		client, err := on.eng.Client(newMoody(a, 2*seed, calm))
		if err != nil {
			t.Fatal(err)
		}
		server, err := on.eng.Server(newMoody(b, 2*seed+1, calm))
		if err != nil {
			t.Fatal(err)
		}
		p := &pair{setup: on, t: t, a: a, b: b, far: b, client: client, server: server}
		streams := downloads
		if !on.eng.Multiplexes() {
			streams = 1
		}
		var group sync.WaitGroup
		for i := range streams {
			c, s := p.stream()
			for _, s := range []engine.Stream{c, s} {
				s.SetDeadline(calm.Add(enough))
			}
			group.Go(func() {
				if err := burst(s, uint64(i), size, rand.New(rand.NewPCG(seed, uint64(i)))); err != nil {
					t.Errorf("seed %d, download %d, sending: %v", seed, i, err)
				}
			})
			group.Go(func() {
				if err := receive(c, uint64(i), size); err != nil {
					t.Errorf("seed %d, download %d: %v", seed, i, err)
				}
			})
		}
		group.Wait()
		p.close()
	}
}

// burst is send with pauses of all lengths between bursts of all lengths.
func burst(s engine.Stream, seed uint64, size int, r *rand.Rand) error {
	source := newSource(seed)
	for rest := size; rest > 0; {
		n, err := s.Write(source.peek(min(rest, 1+r.IntN(1<<(4+r.IntN(17))))))
		if err != nil {
			return fmt.Errorf("with %d bytes to send: %w", rest, err)
		}
		source.skip(n)
		rest -= n
		if r.IntN(20) == 0 {
			time.Sleep(time.Duration(r.Int64N(int64(300 * time.Millisecond))))
		}
	}
	return s.CloseWrite()
}
