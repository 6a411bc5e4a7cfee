// Package netpath emulates a network path between two programs on one machine: a
// TCP relay in which each direction has a rate, a bottleneck queue and a delay.
//
//	client -> [reader] -> queue (rate) -> delay line -> [writer] -> server
//
// All connections of a Path share its bottleneck, as they would share a
// subscriber's line. The relay's own buffers are deep enough never to be the
// limit; a full queue stops reading, and TCP then stops the sender. There is no
// loss: under HTTP, TCP would repair it. What TCP itself would do after an
// outage, wait for a retransmission timer that has backed off, is not shown
// either: Blackhole is for connections that never come back.
package netpath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// chunk is how many bytes are read at once: 1.3 ms at 100 Mbit/s.
	chunk = 16 << 10

	// readBuffer is the kernel's receive buffer of a connection, which stands
	// for no part of the path: small.
	readBuffer = 64 << 10

	// flightPackets is how many reads a delay line holds: 256 MB of full ones,
	// and at 500 Mbit/s and 300 ms some thousand times less.
	flightPackets = 1 << 14

	// coarse is how late Go's timers may be.
	coarse = 2 * time.Millisecond
)

// Config describes a path. The zero value adds nothing to loopback.
type Config struct {
	RTT   time.Duration // propagation, both ways together
	Rate  int64         // bits per second in each direction; 0: unlimited
	Queue time.Duration // how much the bottleneck's queue can hold; 0: 50 ms
}

// A Path is one that is running. Safe for concurrent use.
type Path struct {
	cfg    Config
	target string
	ln     net.Listener
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	lines  [2]line

	mu    sync.Mutex
	pairs map[*pair]struct{} // guarded by mu
	down  chan struct{}      // closed while the path is up; guarded by mu
}

// pair is one connection on both sides of the path.
type pair struct {
	client, target *net.TCPConn
	made           time.Time
	dead           atomic.Bool // it carries nothing any more, and says so to nobody
}

// reset cuts both sides.
func (p *pair) reset() {
	for _, c := range []*net.TCPConn{p.client, p.target} {
		c.SetLinger(0) //nolint:errcheck // it is being thrown away
		c.Close()
	}
}

// line is the bottleneck of one direction.
type line struct {
	mu    sync.Mutex
	free  time.Time // when what is queued will have left
	bytes int64
}

// New starts a path to target, a host:port.
func New(cfg Config, target string) (*Path, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("netpath: %w", err)
	}
	if cfg.Queue == 0 {
		cfg.Queue = 50 * time.Millisecond
	}
	up := make(chan struct{})
	close(up)
	l := &Path{cfg: cfg, target: target, ln: ln, pairs: make(map[*pair]struct{}), down: up}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Go(l.accept)
	return l, nil
}

// Addr is where the path begins.
func (l *Path) Addr() string { return l.ln.Addr().String() }

// Bytes returns how many bytes went towards the target and back.
func (l *Path) Bytes() (up, down int64) {
	l.lines[0].mu.Lock()
	up = l.lines[0].bytes
	l.lines[0].mu.Unlock()
	l.lines[1].mu.Lock()
	defer l.lines[1].mu.Unlock()
	return up, l.lines[1].bytes
}

// Reset cuts every connection that is at least of that age and returns how
// many those were.
func (l *Path) Reset(age time.Duration) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for p := range l.pairs {
		if time.Since(p.made) >= age {
			p.reset()
			delete(l.pairs, p)
			n++
		}
	}
	return n
}

// Blackhole makes every connection there is carry nothing for ever, without
// closing it, as when a device changes its network. New ones are not affected.
func (l *Path) Blackhole() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.pairs {
		p.dead.Store(true)
	}
}

// SetDown stops the path, or lets it go on: what is on its way waits, and a
// connection that is being made is made afterwards.
func (l *Path) SetDown(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.down:
		if down {
			l.down = make(chan struct{})
		}
	default:
		if !down {
			close(l.down)
		}
	}
}

// waitUp waits until the path is up. It returns false when the path is closed.
func (l *Path) waitUp() bool {
	l.mu.Lock()
	up := l.down
	l.mu.Unlock()
	select {
	case <-up:
		return l.ctx.Err() == nil
	case <-l.ctx.Done():
		return false
	}
}

// Close ends the path and returns when nothing of it is left.
func (l *Path) Close() {
	l.cancel()
	l.ln.Close()
	l.SetDown(false)
	l.Reset(0)
	l.wg.Wait()
}

func (l *Path) accept() {
	for {
		c, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.serve(c.(*net.TCPConn)) })
	}
}

func (l *Path) serve(c *net.TCPConn) {
	defer c.Close()
	c.SetReadBuffer(readBuffer) //nolint:errcheck // an optimisation
	// A connection is made when the first packet has gone there and back.
	if !l.sleep(l.cfg.RTT) || !l.waitUp() {
		return
	}
	var d net.Dialer
	t, err := d.DialContext(l.ctx, "tcp", l.target)
	if err != nil {
		c.SetLinger(0) //nolint:errcheck // it is being thrown away
		return
	}
	target := t.(*net.TCPConn)
	defer target.Close()
	target.SetReadBuffer(readBuffer) //nolint:errcheck // likewise
	p := &pair{client: c, target: target, made: time.Now()}
	l.mu.Lock()
	l.pairs[p] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.pairs, p)
		l.mu.Unlock()
	}()
	if l.ctx.Err() != nil {
		return // Close may have looked before p was there
	}
	var both sync.WaitGroup
	both.Go(func() { l.pump(p, &l.lines[0], target, c) })
	both.Go(func() { l.pump(p, &l.lines[1], c, target) })
	both.Wait()
}

// packet is what travels together.
type packet struct {
	at   time.Time // when it arrives
	data []byte
}

// pump carries one direction of one connection.
func (l *Path) pump(p *pair, line *line, to, from *net.TCPConn) {
	flight := make(chan packet, flightPackets)
	broken := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		defer close(broken)
		for packet := range flight {
			if !l.sleep(time.Until(packet.at)) || !l.waitUp() {
				return
			}
			if p.dead.Load() {
				continue
			}
			if _, err := to.Write(packet.data); err != nil {
				p.reset() // a reset travels on as one
				return
			}
		}
		if !p.dead.Load() {
			to.CloseWrite() //nolint:errcheck // it may be gone
		}
	})
	for {
		buf := make([]byte, chunk)
		n, err := from.Read(buf)
		if n > 0 {
			if !l.waitUp() {
				break
			}
			left := line.send(n, l.cfg.Rate)
			select {
			case flight <- packet{left.Add(l.cfg.RTT / 2), buf[:n]}:
			case <-broken:
				err = net.ErrClosed
			}
			l.sleep(time.Until(left) - l.cfg.Queue)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !p.dead.Load() {
				p.reset()
			}
			break
		}
	}
	close(flight)
	writer.Wait()
}

// send queues n bytes and returns when they will have left the bottleneck.
func (l *line) send(n int, rate int64) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes += int64(n)
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	if rate > 0 {
		l.free = l.free.Add(time.Duration(int64(n) * 8 * int64(time.Second) / rate))
	}
	return l.free
}

// sleep returns false when the path is closed. Go's timers are good for a
// millisecond or so where nothing else happens, which would be added to every
// delay: the kernel's sleep does the rest.
func (l *Path) sleep(d time.Duration) bool {
	end := time.Now().Add(d)
	if d > coarse {
		t := time.NewTimer(d - coarse)
		defer t.Stop()
		select {
		case <-t.C:
		case <-l.ctx.Done():
			return false
		}
	}
	if left := time.Until(end); left > 0 {
		rest := syscall.NsecToTimespec(int64(left))
		syscall.Nanosleep(&rest, nil) //nolint:errcheck // a signal ends it early, which is within its precision
	}
	return l.ctx.Err() == nil
}
