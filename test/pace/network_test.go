//go:build !race

package pace

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A path leads from clients to one server, without sockets and in the time of
// a synctest bubble. All connections share its rate, and the queue in front of
// it has no end: whoever writes more than leaves makes its own delay. A write
// never waits: HTTP/2 holds locks meanwhile, and a bubble's time stands still
// while somebody waits for a lock.
type path struct {
	rtt    atomic.Int64 // nanoseconds
	rate   float64      // bytes a second in each direction
	lines  [2]line      // up, down
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// line is one direction's bottleneck.
type line struct {
	mu   sync.Mutex
	free time.Time // when what was written will have left; guarded by mu, like what follows
	sent int64     // bytes so far

	more  chan struct{} // constant; holds a token when queue has become longer; nil: first come, first served
	queue []*pipe       // that have something to send, in turns; guarded by mu
}

// turn is how many bytes a pipe sends when it is its turn.
const turn = 16 << 10

// takeTurns has connections take turns, as those do whose writers TCP stops. It is
// called before the first is made.
func (p *path) takeTurns() {
	for i := range p.lines {
		p.lines[i].more = make(chan struct{}, 1)
		go p.serve(&p.lines[i])
	}
}

// serve sends what waits, a part of each pipe after the other.
func (p *path) serve(l *line) {
	for {
		q, data := l.next()
		if q == nil {
			select {
			case <-l.more:
				continue
			case <-p.closed:
				return
			}
		}
		time.Sleep(time.Duration(float64(len(data)) / p.rate * float64(time.Second)))
		q.mu.Lock()
		q.way = append(q.way, parcel{data, time.Now().Add(p.roundTrip() / 2)})
		q.more.Broadcast()
		q.mu.Unlock()
	}
}

// next is what leaves next, and of which pipe: nil if nothing waits.
func (l *line) next() (q *pipe, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return nil, nil
	}
	q = l.queue[0]
	l.queue = l.queue[1:]
	n := min(len(q.waits), turn)
	data, q.waits = q.waits[:n:n], q.waits[n:]
	if len(q.waits) > 0 {
		l.queue = append(l.queue, q)
	} else {
		q.waits = nil
	}
	return q, data
}

// add has b wait for the turns of q.
func (l *line) add(q *pipe, b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent += int64(len(b))
	if len(q.waits) == 0 {
		l.queue = append(l.queue, q)
	}
	q.waits = append(q.waits, b...)
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// moved is how many bytes were sent so far.
func (l *line) moved() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent
}

func newPath(rtt time.Duration, rate float64) *path {
	p := &path{rate: rate, accept: make(chan net.Conn), closed: make(chan struct{})}
	p.rtt.Store(int64(rtt))
	return p
}

// roundTrip is how long a byte takes there and back.
func (p *path) roundTrip() time.Duration {
	return time.Duration(p.rtt.Load())
}

func (p *path) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *path) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *path) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443} }

// dial makes a connection, which takes a round trip.
func (p *path) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	time.Sleep(p.roundTrip())
	up, down := newPipe(p, &p.lines[0]), newPipe(p, &p.lines[1])
	select {
	case p.accept <- &end{path: p, in: up, out: down}:
		return &end{path: p, in: down, out: up}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.closed:
		return nil, errors.New("connection refused")
	}
}

// pipe is one direction of a connection.
type pipe struct {
	path *path
	line *line

	waits []byte // for its turn; guarded by the line's mu

	mu     sync.Mutex
	more   sync.Cond
	way    []parcel    // guarded by mu, like what follows
	until  time.Time   // the read deadline
	timer  *time.Timer // wakes the reader at timed
	timed  time.Time
	closed bool
}

// parcel is what was written at once, and when it arrives.
type parcel struct {
	data []byte
	at   time.Time
}

func newPipe(p *path, l *line) *pipe {
	q := &pipe{path: p, line: l}
	q.more.L = &q.mu
	return q
}

func (q *pipe) write(b []byte) (int, error) {
	if q.line.more != nil {
		q.line.add(q, b)
		return len(b), nil
	}
	q.line.mu.Lock()
	now := time.Now()
	if q.line.free.Before(now) {
		q.line.free = now
	}
	q.line.free = q.line.free.Add(time.Duration(float64(len(b)) / q.path.rate * float64(time.Second)))
	q.line.sent += int64(len(b))
	at := q.line.free.Add(q.path.roundTrip() / 2)
	q.line.mu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, net.ErrClosed
	}
	q.way = append(q.way, parcel{append([]byte(nil), b...), at})
	q.more.Broadcast()
	return len(b), nil
}

func (q *pipe) read(b []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case !q.until.IsZero() && !now.Before(q.until):
			return 0, os.ErrDeadlineExceeded
		case len(q.way) > 0 && !now.Before(q.way[0].at):
			n := copy(b, q.way[0].data)
			if q.way[0].data = q.way[0].data[n:]; len(q.way[0].data) == 0 {
				q.way = q.way[1:]
			}
			return n, nil
		case len(q.way) > 0:
			q.wakeAt(q.way[0].at)
		case q.closed:
			return 0, io.EOF
		}
		if !q.until.IsZero() {
			q.wakeAt(q.until)
		}
		q.more.Wait()
	}
}

// wakeAt wakes the reader at that time, or before.
func (q *pipe) wakeAt(t time.Time) {
	if q.timer == nil {
		q.timer, q.timed = time.AfterFunc(time.Until(t), q.wake), t
	} else if t.Before(q.timed) || !q.timed.After(time.Now()) {
		q.timer.Reset(time.Until(t))
		q.timed = t
	}
}

func (q *pipe) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.more.Broadcast()
}

func (q *pipe) readUntil(t time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.until = t
	q.more.Broadcast()
}

func (q *pipe) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.more.Broadcast()
}

// end is one side of a connection. Writes have no deadline, which nothing here
// needs.
type end struct {
	path    *path
	in, out *pipe
}

func (e *end) Read(b []byte) (int, error)        { return e.in.read(b) }
func (e *end) Write(b []byte) (int, error)       { return e.out.write(b) }
func (e *end) Close() error                      { e.in.close(); e.out.close(); return nil }
func (e *end) LocalAddr() net.Addr               { return e.path.Addr() }
func (e *end) RemoteAddr() net.Addr              { return e.path.Addr() }
func (e *end) SetDeadline(t time.Time) error     { e.in.readUntil(t); return nil }
func (e *end) SetReadDeadline(t time.Time) error { e.in.readUntil(t); return nil }
func (e *end) SetWriteDeadline(time.Time) error  { return nil }
