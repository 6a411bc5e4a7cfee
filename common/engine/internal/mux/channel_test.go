package mux

import (
	"math"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
	"turbotunnel/common/engine/internal/half"
)

// direction is one direction of a Channel in memory. limit is how many bytes may wait
// in it before there is no room; Append goes beyond that.
type direction struct {
	mu       sync.Mutex
	buf      []byte // guarded by mu, like what follows
	limit    int
	readable chan struct{}
	writable chan struct{}
}

// memory is one end of a Channel in memory, and the carrier below it.
type memory struct {
	engine.Carrier // nil: what is missing here nobody calls
	in, out        *direction
	done           chan struct{}
	mu             sync.Mutex
	err            error // guarded by mu
	peer           *memory
	held           atomic.Int64

	promised, room atomic.Int64
}

// connect returns two ends in each of whose directions limit bytes may wait.
func connect(limit int) (a, b *memory) {
	x, y := newDirection(limit), newDirection(limit)
	a = &memory{in: y, out: x, done: make(chan struct{})}
	b = &memory{in: x, out: y, done: make(chan struct{}), peer: a}
	a.peer = b
	a.room.Store(math.MaxInt64)
	b.room.Store(math.MaxInt64)
	return a, b
}

func newDirection(limit int) *direction {
	return &direction{limit: limit, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
}

func (m *memory) Read(p []byte) (int, error) {
	for {
		m.in.mu.Lock()
		n := copy(p, m.in.buf)
		m.in.buf = m.in.buf[n:]
		m.in.mu.Unlock()
		if n > 0 || len(p) == 0 {
			half.Signal(m.in.writable)
			return n, nil
		}
		select {
		case <-m.in.readable:
		case <-m.done:
			return 0, m.Err()
		}
	}
}

func (m *memory) Comes() (<-chan struct{}, bool) {
	return m.in.readable, m.in.Len() > 0 || m.Err() != nil
}

func (m *memory) Append(parts ...[]byte) (waiting int, err error) {
	if err := m.Err(); err != nil {
		return 0, err
	}
	m.out.mu.Lock()
	defer m.out.mu.Unlock()
	for _, p := range parts {
		m.out.buf = append(m.out.buf, p...)
	}
	half.Signal(m.out.readable)
	return len(m.out.buf), nil
}

func (m *memory) Room() (<-chan struct{}, bool) {
	return m.out.writable, m.Waiting() < m.out.limit || m.Err() != nil
}

func (m *memory) Waiting() int { return m.out.Len() }

// Len is how many bytes wait.
func (h *direction) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.buf)
}

// Clear throws away what waits.
func (h *direction) Clear() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf = nil
}

func (m *memory) Done() <-chan struct{} { return m.done }

func (m *memory) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = err
		close(m.done)
		half.Signal(m.out.writable)
		half.Signal(m.in.readable)
	}
}

func (m *memory) Close() error {
	m.Fail(engine.ErrClosed)
	m.peer.Fail(engine.ErrReset)
	return nil
}

func (m *memory) Hold(n int) { m.held.Add(int64(n)) }

func (m *memory) Promise(n int) (left int) {
	return int(min(m.room.Load()-m.promised.Add(int64(n)), math.MaxInt))
}

func (m *memory) LocalAddr() net.Addr  { return &net.UnixAddr{Name: "a", Net: "memory"} }
func (m *memory) RemoteAddr() net.Addr { return &net.UnixAddr{Name: "b", Net: "memory"} }

// Write lets a peer that is no Session write.
func (m *memory) Write(p []byte) (int, error) {
	if _, err := m.Append(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// pair returns both ends of a session in memory.
func pair(t *testing.T) (client, server *Session) {
	t.Helper()
	a, b := connect(64 << 10)
	return start(t, a, true), start(t, b, false)
}

// start starts a session that ends with the test.
func start(t *testing.T, c interface {
	engine.Carrier
	Channel
}, client bool,
) *Session {
	t.Helper()
	s := New(c, c, client)
	t.Cleanup(func() { s.Close() })
	return s
}

// bubble runs a test in fake time.
func bubble(t *testing.T, run func(t *testing.T)) {
	t.Helper()
	enginetest.Bubble(t, run)
}
