package front

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A memory is a network without sockets: a listener, and a Dialer for it. It
// can go dark: what is on the way then, and later, is lost without a sign, as
// behind a censor that drops a flow's packets.
type memory struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
	dials  atomic.Int32
	open   atomic.Int32  // connections that are open or being made
	most   atomic.Int32  // the most of these there were
	down   atomic.Bool   // nothing gets through: no connection is made
	delay  time.Duration // each way; set before the first dial, like rate
	rate   int           // bytes per second to the client, 0: any
	rateUp int           // likewise to the server

	mu   sync.Mutex
	all  []*dark
	last *dark
}

func newMemory() *memory {
	return &memory{accept: make(chan net.Conn), closed: make(chan struct{})}
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.accept:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error {
	m.once.Do(func() { close(m.closed) })
	return nil
}

func (m *memory) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443} }

func (m *memory) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	m.dials.Add(1)
	now := m.open.Add(1)
	for most := m.most.Load(); now > most && !m.most.CompareAndSwap(most, now); most = m.most.Load() {
	}
	c, err := m.connect(ctx)
	if err != nil {
		m.open.Add(-1)
	}
	return c, err
}

func (m *memory) connect(ctx context.Context) (net.Conn, error) {
	for again := time.Second; m.down.Load(); again *= 2 { // as SYNs are
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	up, down := newHalf(), newHalf()
	up.delay, down.delay, up.rate, down.rate = m.delay, m.delay, m.rateUp, m.rate
	client, server := &end{in: down, out: up}, &end{in: up, out: down}
	select {
	case m.accept <- server:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-m.closed:
		return nil, errors.New("connection refused")
	}
	c := &dark{Conn: client, closed: func() { m.open.Add(-1) }, done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last, m.all = c, append(m.all, c)
	return c, nil
}

// goDark cuts the last connection made.
func (m *memory) goDark() *dark {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last.dark.Store(true)
	return m.last
}

// A half is one direction of a connection. Unlike net.Pipe it has room, without
// which the two sides of a TLS handshake can wait for each other.
type half struct {
	delay time.Duration // from the end of a Write to its arrival
	rate  int           // bytes per second, 0: any

	mu     sync.Mutex
	more   *sync.Cond
	data   bytes.Buffer
	way    []parcel  // what has not arrived yet
	free   time.Time // when the link has sent all that was written
	closed bool
}

// A parcel is a number of bytes of a half's data, and when they arrive.
type parcel struct {
	n  int
	at time.Time
}

func newHalf() *half {
	h := new(half)
	h.more = sync.NewCond(&h.mu)
	return h
}

func (h *half) Read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.data.Len() == 0 && !h.closed {
		h.more.Wait()
	}
	if len(h.way) > 0 && len(p) > 0 {
		if wait := time.Until(h.way[0].at); wait > 0 {
			h.mu.Unlock()
			time.Sleep(wait)
			h.mu.Lock()
		}
		p = p[:min(len(p), h.way[0].n)]
		if h.way[0].n -= len(p); h.way[0].n == 0 {
			h.way = h.way[1:]
		}
	}
	return h.data.Read(p)
}

func (h *half) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return 0, net.ErrClosed
	}
	h.more.Broadcast()
	if h.delay > 0 {
		now := time.Now()
		if h.free.Before(now) {
			h.free = now
		}
		if h.rate > 0 {
			h.free = h.free.Add(time.Duration(len(p)) * time.Second / time.Duration(h.rate))
		}
		h.way = append(h.way, parcel{len(p), h.free.Add(h.delay)})
	}
	return h.data.Write(p)
}

func (h *half) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.more.Broadcast()
}

// An end is a connection without deadlines, which none of these tests needs.
type end struct{ in, out *half }

func (e *end) Read(p []byte) (int, error)       { return e.in.Read(p) }
func (e *end) Write(p []byte) (int, error)      { return e.out.Write(p) }
func (e *end) Close() error                     { e.in.close(); e.out.close(); return nil }
func (e *end) LocalAddr() net.Addr              { return (*memory)(nil).Addr() }
func (e *end) RemoteAddr() net.Addr             { return (*memory)(nil).Addr() }
func (e *end) SetDeadline(time.Time) error      { return nil }
func (e *end) SetReadDeadline(time.Time) error  { return nil }
func (e *end) SetWriteDeadline(time.Time) error { return nil }

// A dark is a connection that can lose everything, or hold it back for a time.
type dark struct {
	net.Conn
	dark   atomic.Bool
	closed func()
	once   sync.Once
	done   chan struct{} // closed by Close

	mu   sync.Mutex
	held [][]byte
	free chan struct{} // not nil: what is read and written waits until it is closed
}

func (c *dark) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free = make(chan struct{})
}

func (c *dark) letGo() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.held {
		c.Conn.Write(p)
	}
	close(c.free)
	c.held, c.free = nil, nil
}

func (c *dark) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		c.mu.Lock()
		free := c.free
		c.mu.Unlock()
		if free != nil {
			select {
			case <-free:
			case <-c.done:
			}
		}
		if !c.dark.Load() {
			return n, err
		}
		if err != nil {
			<-c.done
			return 0, net.ErrClosed
		}
	}
}

func (c *dark) Write(p []byte) (int, error) {
	if c.dark.Load() {
		return len(p), nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.free != nil {
		c.held = append(c.held, bytes.Clone(p))
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *dark) Close() error {
	c.once.Do(func() {
		close(c.done)
		c.closed()
	})
	return c.Conn.Close()
}

// inMemory runs a test over a memory network with a clock of its own.
func inMemory(t *testing.T, h http.HandlerFunc, test func(t *testing.T, f *Front, m *memory)) {
	authorityOf() // outside the bubble, as tests share it
	for _, name := range []string{"chrome", "none"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				s := serve(t, serverOptions{listener: m}, h)
				f := newFront(t, s, func(c *Config) {
					c.UTLS = name
					c.Dialer = m.dial
				})
				defer f.endWith(s)
				test(t, f, m)
			})
		})
	}
}

// endWith ends f and the server s in a bubble.
func (f *Front) endWith(s *server) {
	f.Close()
	s.http.Close()
	time.Sleep(time.Hour) // what is on the way arrives
}

func isClosed(c *dark) bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func TestIdleConnectionIsClosed(t *testing.T) {
	inMemory(t, echo, func(t *testing.T, f *Front, m *memory) {
		exchange(t, f, "x")
		time.Sleep(idleTimeout - time.Second)
		exchange(t, f, "x")
		time.Sleep(idleTimeout - time.Second)
		synctest.Wait()
		if isClosed(m.last) {
			t.Error("closed while in use")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !isClosed(m.last) {
			t.Error("kept for ever")
		}
		exchange(t, f, "x")
		if n := m.dials.Load(); n != 2 {
			t.Errorf("%d dials", n)
		}
	})
}

// Over HTTP/1.1 a session that has become idle keeps one connection, on which it
// polls, and gives the others back within a minute.
func TestIdleConnectionsAreGivenBack1(t *testing.T) {
	inMemory1(t, func(t *testing.T, f *Front, m *memory) {
		var busy []*sent
		for range maxConns {
			busy = append(busy, send(t.Context(), f, "x"))
		}
		for _, s := range busy {
			if err := s.wait(); err != nil {
				t.Fatal(err)
			}
		}
		if n := m.open.Load(); n != maxConns {
			t.Fatalf("%d connections for %d exchanges at once", n, maxConns)
		}
		for range 3 {
			time.Sleep(20 * time.Second)
			exchange(t, f, "x")
		}
		synctest.Wait()
		if n := m.open.Load(); n != 1 {
			t.Errorf("%d connections after a minute", n)
		}
		if n := m.dials.Load(); n != maxConns {
			t.Errorf("%d dials", n)
		}
	})
}

// An exchange that had no sign of life until its deadline moves the next one to
// another connection at once, and the silent one is given up.
func TestSilentConnectionIsLeft(t *testing.T) {
	inMemory(t, echo, func(t *testing.T, f *Front, m *memory) {
		exchange(t, f, "x")
		old := m.goDark()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		e := failure(t, f, ctx, OpHTTP)
		if !errors.Is(e, os.ErrDeadlineExceeded) || e.Reused {
			t.Errorf("error %v", e)
		}
		begun := time.Now()
		exchange(t, f, "x")
		if d := time.Since(begun); d > time.Second {
			t.Errorf("the next exchange took %v", d)
		}
		time.Sleep(lost)
		synctest.Wait()
		if !isClosed(old) {
			t.Error("the silent connection is kept")
		}
		if n := m.dials.Load(); n != 2 {
			t.Errorf("%d dials", n)
		}
	})
}

// A connection that answers, only late, is used again.
func TestSlowAnswerKeepsConnection(t *testing.T) {
	inMemory(t, func(w http.ResponseWriter, r *http.Request) {
		if b, _ := io.ReadAll(r.Body); string(b) == "x" {
			<-r.Context().Done()
		}
	}, func(t *testing.T, f *Front, m *memory) {
		exchange(t, f, "quick")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		failure(t, f, ctx, OpHTTP)
		synctest.Wait() // for the ping's answer
		exchange(t, f, "quick")
		if n := m.dials.Load(); n != 1 {
			t.Errorf("%d dials", n)
		}
	})
}

// An exchange begun on a connection that died while it was quiet ends without
// a deadline of its own, as soon as another connection shows that the path
// works, and says that the front is not to blame.
func TestDeadConnectionIsNoticed(t *testing.T) {
	inMemory(t, echo, func(t *testing.T, f *Front, m *memory) {
		exchange(t, f, "x")
		time.Sleep(quiet)
		m.goDark()
		begun := time.Now()
		if e := failure(t, f, t.Context(), OpHTTP); !e.Reused {
			t.Errorf("error %v", e)
		}
		if d := time.Since(begun); d < minDue || d > minDue+time.Second {
			t.Errorf("took %v", d)
		}
		exchange(t, f, "x")
		if n := m.dials.Load(); n != 2 {
			t.Errorf("%d dials", n)
		}
	})
}

// Nothing is sent on a connection on which nothing new is asked. Its first
// exchange is another matter: it may be the first sign that the path is dead.
func TestQuietConnectionIsQuiet(t *testing.T) {
	inMemory(t, func(w http.ResponseWriter, r *http.Request) {
		if n, _ := io.Copy(io.Discard, r.Body); n > 1 {
			time.Sleep(time.Minute)
		}
	}, func(t *testing.T, f *Front, m *memory) {
		exchange(t, f, "x")
		time.Sleep(time.Second)
		var all sync.WaitGroup
		all.Go(func() { exchange(t, f, "held") })
		synctest.Wait()
		f.pool.mu.Lock()
		c := f.pool.conns[0].sock
		f.pool.mu.Unlock()
		before := c.seen.Load()
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if c.seen.Load() != before {
			t.Error("the server was made to speak")
		}
		all.Wait()
	})
}

// Time that runs out during a dial says at which step, and the dial goes on for
// the exchange that comes next.
func TestSlowDial(t *testing.T) {
	for _, c := range []struct {
		op     Op
		accept bool
	}{{OpConnect, false}, {OpTLS, true}} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			t.Cleanup(func() { m.Close() })
			f := newFront(t, &server{addr: "192.0.2.1:443"}, func(cfg *Config) { cfg.Dialer = m.dial })
			if c.accept {
				go func() {
					for {
						conn, err := m.Accept()
						if err != nil {
							return
						}
						go io.Copy(io.Discard, conn) // takes the ClientHello, says nothing
					}
				}()
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			e := failure(t, f, ctx, c.op)
			if !errors.Is(e, os.ErrDeadlineExceeded) || !e.Unsent {
				t.Errorf("error %v", e)
			}
			begun := time.Now()
			e = failure(t, f, t.Context(), c.op)
			if !errors.Is(e, os.ErrDeadlineExceeded) || time.Since(begun) != dialTimeout-time.Second {
				t.Errorf("after %v: %v", time.Since(begun), e)
			}
			if n, most := m.dials.Load(), m.most.Load(); n < 5 || n > 20 || most > maxDials+1 { // one is ending
				t.Errorf("%d dials, %d at a time", n, most)
			}
		})
	}
}
