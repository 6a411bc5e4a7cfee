package enginetest

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/common/engine"
)

// Path describes one direction of an in-memory datagram network. The zero
// value delivers everything at once, in order.
type Path struct {
	Delay  time.Duration // of every datagram
	Jitter time.Duration // at most, added to Delay; datagrams overtake each other
	Rate   int           // bytes a second; 0: unlimited

	// Queue is how many bytes the path holds, those on their way included,
	// before WriteTo blocks. 0: DefaultQueue.
	Queue int

	Loss      float64 // probability that a datagram is lost
	Duplicate float64 // probability that it arrives twice

	// Repair, if not 0, keeps the order and delivers what would be lost so much
	// later, as the carrier does: everything behind it waits.
	Repair time.Duration
}

// DefaultQueue is 64 MB: no test reaches it by accident.
const DefaultQueue = 64 << 20

// PathStats counts what went over one direction.
type PathStats struct {
	Datagrams, Bytes int // written
	Lost             int // datagrams that were lost or needed repair
}

// Conn is one end of an in-memory network of two. It implements
// net.PacketConn with working deadlines, and RemoteAddr. It uses no goroutine
// and works under testing/synctest.
type Conn struct {
	name, peer net.Addr
	in, out    *direction
	held       atomic.Int64 // what the engine has said by Hold
	promised   atomic.Int64 // and by Promise
	room       atomic.Int64 // for that
}

// Connect returns the two ends of a network whose directions are ab and ba.
// The same seed gives the same losses for the same datagrams.
func Connect(ab, ba Path, seed uint64) (a, b *Conn) {
	x, y := newDirection(ab, seed), newDirection(ba, seed+1)
	a = &Conn{name: addr("a"), peer: addr("b"), in: y, out: x}
	b = &Conn{name: addr("b"), peer: addr("a"), in: x, out: y}
	a.SetRoom(math.MaxInt)
	b.SetRoom(math.MaxInt)
	return a, b
}

type addr string

func (addr) Network() string  { return "memory" }
func (a addr) String() string { return string(a) }

// LocalAddr implements net.PacketConn.
func (c *Conn) LocalAddr() net.Addr { return c.name }

// RemoteAddr is the address of the other end.
func (c *Conn) RemoteAddr() net.Addr { return c.peer }

// WaitRead does not know, and returns at once.
func (*Conn) WaitRead() {}

// Binding is none: nothing is sealed here.
func (*Conn) Binding() []byte { return nil }

// Hold implements engine.Carrier.
func (c *Conn) Hold(n int) { c.held.Add(int64(n)) }

// Promise implements engine.Carrier.
func (c *Conn) Promise(n int) (left int) {
	return int(min(c.room.Load()-c.promised.Add(int64(n)), math.MaxInt))
}

// SetRoom has at most so many bytes promised. It is called before the engine starts.
func (c *Conn) SetRoom(bytes int) { c.room.Store(int64(bytes)) }

// Promised is how many bytes the engine lets the other side send.
func (c *Conn) Promised() int { return int(c.promised.Load()) }

// Held is how many bytes the engine says that it holds.
func (c *Conn) Held() int { return int(c.held.Load()) }

// ReadFrom implements net.PacketConn.
func (c *Conn) ReadFrom(p []byte) (int, net.Addr, error) {
	n, err := c.in.read(p)
	return n, c.RemoteAddr(), err
}

// WriteTo implements net.PacketConn. It blocks while the path is full and
// refuses what is longer than engine.MaxDatagram.
func (c *Conn) WriteTo(p []byte, to net.Addr) (int, error) {
	if to != c.RemoteAddr() {
		return 0, fmt.Errorf("enginetest: no such address: %v", to)
	}
	if len(p) > engine.MaxDatagram {
		return 0, fmt.Errorf("enginetest: a datagram of %d bytes is too long", len(p))
	}
	return c.out.write(p)
}

// Close implements net.PacketConn. The other end does not notice.
func (c *Conn) Close() error {
	c.Break(net.ErrClosed)
	return nil
}

// Break makes all calls of this end fail with err from now on.
func (c *Conn) Break(err error) {
	c.in.end(&c.in.readErr, err)
	c.out.end(&c.out.writeErr, err)
}

// SetDown cuts both directions, or joins them again: what is written
// meanwhile is lost, or waits in a path with Repair.
func (c *Conn) SetDown(down bool) {
	for _, d := range []*direction{c.in, c.out} {
		d.mu.Lock()
		d.down = down
		d.cond.Broadcast()
		d.mu.Unlock()
	}
}

// Sent counts what this end has written.
func (c *Conn) Sent() PathStats {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.out.stats
}

// SetDeadline implements net.PacketConn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.PacketConn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.in.setDeadline(&c.in.readBy, t) }

// SetWriteDeadline implements net.PacketConn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.out.setDeadline(&c.out.writeBy, t) }

// direction is one half of the network.
type direction struct {
	path Path

	mu       sync.Mutex
	cond     sync.Cond
	rand     *rand.Rand
	arriving packets // by time of arrival
	held     int     // bytes in arriving
	count    uint64  // packets ever queued
	departed time.Time
	last     time.Time // latest arrival so far
	down     bool
	readErr  error
	writeErr error
	readBy   time.Time
	writeBy  time.Time
	stats    PathStats
}

func newDirection(path Path, seed uint64) *direction {
	if path.Queue == 0 {
		path.Queue = DefaultQueue
	}
	d := &direction{path: path, rand: rand.New(rand.NewPCG(seed, seed))}
	d.cond.L = &d.mu
	return d
}

func (d *direction) end(which *error, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if *which == nil {
		*which = err
	}
	d.cond.Broadcast()
}

func (d *direction) setDeadline(which *time.Time, t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	*which = t
	d.cond.Broadcast()
	return nil
}

// wait waits for a change, or until t if that is not zero.
func (d *direction) wait(t time.Time) {
	if t.IsZero() {
		d.cond.Wait()
		return
	}
	timer := time.AfterFunc(time.Until(t), func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.cond.Broadcast()
	})
	d.cond.Wait()
	timer.Stop()
}

func passed(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (d *direction) read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if d.readErr != nil {
			return 0, d.readErr
		}
		if passed(d.readBy) {
			return 0, os.ErrDeadlineExceeded
		}
		next := d.readBy
		if len(d.arriving) > 0 && (d.path.Repair == 0 || !d.down) {
			first := d.arriving[0]
			if first.at.IsZero() || !first.at.After(time.Now()) {
				heap.Pop(&d.arriving)
				d.held -= first.n
				d.cond.Broadcast()
				n := copy(p, first.data[:first.n])
				pool.Put(first)
				return n, nil
			}
			if next.IsZero() || first.at.Before(next) {
				next = first.at
			}
		}
		d.wait(next)
	}
}

func (d *direction) write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if d.writeErr != nil {
			return 0, d.writeErr
		}
		if passed(d.writeBy) {
			return 0, os.ErrDeadlineExceeded
		}
		if d.held < d.path.Queue {
			break
		}
		d.wait(d.writeBy)
	}
	d.stats.Datagrams++
	d.stats.Bytes += len(p)
	d.queue(p)
	if d.rand.Float64() < d.path.Duplicate {
		d.queue(p)
	}
	d.cond.Broadcast()
	return len(p), nil
}

// queue decides what becomes of a datagram.
func (d *direction) queue(p []byte) {
	lost := d.path.Loss > 0 && d.rand.Float64() < d.path.Loss
	if lost {
		d.stats.Lost++
	}
	if (lost || d.down) && d.path.Repair == 0 {
		return
	}
	var at time.Time // zero: at once
	if d.path.Delay > 0 || d.path.Jitter > 0 || d.path.Rate > 0 || d.path.Repair > 0 {
		at = time.Now()
		if d.path.Rate > 0 {
			if at.Before(d.departed) {
				at = d.departed
			}
			at = at.Add(time.Duration(len(p)) * time.Second / time.Duration(d.path.Rate))
			d.departed = at
		}
		at = at.Add(d.path.Delay)
		if d.path.Jitter > 0 {
			at = at.Add(time.Duration(d.rand.Int64N(int64(d.path.Jitter))))
		}
		if d.path.Repair > 0 {
			if lost {
				at = at.Add(d.path.Repair)
			}
			if at.Before(d.last) {
				at = d.last
			}
			d.last = at
		}
	}
	d.count++
	next := pool.Get().(*packet)
	next.at, next.order, next.n = at, d.count, copy(next.data[:], p)
	heap.Push(&d.arriving, next)
	d.held += len(p)
}

type packet struct {
	at    time.Time // of arrival; zero: at once
	order uint64
	n     int
	data  [engine.MaxDatagram]byte
}

var pool = sync.Pool{New: func() any { return new(packet) }}

// packets is a heap, the first to arrive on top.
type packets []*packet

func (h packets) Len() int { return len(h) }
func (h packets) Less(i, j int) bool {
	if h[i].at.Equal(h[j].at) {
		return h[i].order < h[j].order
	}
	return h[i].at.Before(h[j].at)
}
func (h packets) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *packets) Push(x any)   { *h = append(*h, x.(*packet)) }
func (h *packets) Pop() any {
	last := len(*h) - 1
	p := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return p
}
