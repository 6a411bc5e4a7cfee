package front

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	// idleTimeout is how long a connection without exchanges is kept. Servers and
	// CDNs end idle ones after 60 to 120 s.
	idleTimeout = 90 * time.Second

	// idleTimeout1 is the same over HTTP/1.1, less a random third: a session that
	// has become idle has up to five connections that it does not need, and each
	// is a descriptor at the server, too. It needs one, which is never idle for
	// so long.
	idleTimeout1 = 50 * time.Second

	// maxConns is how many HTTP/1.1 connections a Front opens: what browsers
	// open to one host. RFC 9112 section 9.4 leaves the number open.
	maxConns = 6
)

// A pool has the connections of one front, and gives exchanges places on them,
// first come first served. It decides how many connections there should be, and
// leaves it to dials to get them, and to each conn's life to know whether it is
// alive. It is safe for concurrent use, and must be closed.
type pool struct {
	name     string // the front's
	ctx      context.Context
	cancel   context.CancelFunc // by close
	decoders *room              // of compressed answers
	running  sync.WaitGroup     // dials, watches, exchanges before their response

	mu       sync.Mutex // guards what follows
	closed   bool
	h1       bool // the newest connection speaks HTTP/1.1
	feeds    bool // it takes bodies of no known length
	inFlight int  // what maxInFlight returns
	conns    connList
	waiters  []*waiter
	dials    dials
	asks     asks // on all connections, over HTTP/1.1
	watching bool // watchAll runs, over HTTP/1.1
}

// A waiter is an exchange that waits for a connection.
type waiter struct {
	granted chan grant // holds one
}

// A grant is a connection with a place for the waiter, or an error.
type grant struct {
	conn   *conn
	reused bool // other exchanges have been answered on it before
	err    *Error
}

func newPool(name string, c *connector) *pool {
	p := &pool{name: name, inFlight: maxConns, decoders: newRoom(decodersHold)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.dials = dials{connector: c, pool: p, addresses: c.addresses()}
	p.dials.addresses.pool = p
	return p
}

// maxInFlight is Front.MaxInFlight.
func (p *pool) maxInFlight() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inFlight
}

// takesFeeds is Front.Feeds.
func (p *pool) takesFeeds() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.feeds
}

// enter keeps close from returning until running.Done is called. It tells
// whether the pool is open.
func (p *pool) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.running.Add(1)
	}
	return !p.closed
}

// take returns a place on a connection for the exchange of ctx. It waits while
// all are busy, or until ctx ends. Its errors are *Errors.
func (p *pool) take(ctx context.Context) (*place, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, newError(p.name, OpWait, err)
	}
	w := &waiter{granted: make(chan grant, 1)}
	if !p.change(func() { p.waiters = append(p.waiters, w) }) {
		return nil, closedError(p.name)
	}
	var g grant
	select {
	case g = <-w.granted:
	case <-ctx.Done():
		if err := p.withdraw(ctx, w); err != nil {
			return nil, err
		}
		g = <-w.granted // in the same moment
	}
	if g.err != nil {
		return nil, g.err
	}
	return &place{pool: p, conn: g.conn, ctx: ctx, reused: g.reused, begun: time.Now(), before: g.conn.sock.put.Load()}, nil
}

// withdraw takes w, whose context has ended, out of the queue. It returns nil if
// w has been granted something.
func (p *pool) withdraw(ctx context.Context, w *waiter) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.waiters, w)
	if i < 0 {
		return nil
	}
	p.waiters = slices.Delete(p.waiters, i, i+1)
	return newError(p.name, p.dials.step(), context.Cause(ctx))
}

// waitErr is the error of an exchange whose context ended while it waited for a
// connection.
func (p *pool) waitErr(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return newError(p.name, p.dials.step(), context.Cause(ctx))
}

// change lets f change the pool, unless that is closed, and draws the
// consequences: what is of no use any more is closed, who waits gets what is
// there, and dials are begun for the others. It tells whether the pool is open.
func (p *pool) change(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	f()
	p.conns.bury()
	p.conns.closeIf(func(c *conn) bool { return c.busy == 0 && !c.usable() })
	for len(p.waiters) > 0 {
		c := p.conns.pick()
		if c == nil {
			break
		}
		p.grant(c, p.waiters[0])
		p.waiters = slices.Delete(p.waiters, 0, 1)
	}
	for _, c := range p.conns {
		if c.busy == 0 && c.idle == nil {
			p.startIdle(c)
		}
	}
	p.dials.want(p.need())
	return true
}

// grant gives w a place on c. Only change calls it.
func (p *pool) grant(c *conn, w *waiter) {
	c.busy++
	if c.idle != nil {
		c.idle.Stop()
		c.idle = nil
	}
	if c.h2 {
		p.watch(c.life.begin(c.served))
	} else if got, due := p.conns.received(); p.asks.add(got) >= 2 && !p.watching {
		p.watching = true
		p.running.Go(func() { p.watchAll(got, due) })
	}
	w.granted <- grant{conn: c, reused: c.served}
}

// startIdle starts the clock of a connection without exchanges. Only change calls it.
func (p *pool) startIdle(c *conn) {
	keep := idleTimeout
	if !c.h2 {
		keep = idleTimeout1 - rand.N(idleTimeout1/3)
	}
	var timer *time.Timer
	timer = time.AfterFunc(keep, func() {
		p.change(func() {
			p.conns.closeIf(func(o *conn) bool { return o == c && c.idle == timer })
		})
	})
	c.idle = timer
}

// need is how many connections are wanted beside those that there are.
func (p *pool) need() need {
	open, doubted := p.conns.places()
	return needFor(p.h1, open, doubted, len(p.waiters), p.dials.addresses.racing())
}

// give takes back a place on c. inVain is how long the exchange waited for an
// answer until its deadline came, else 0: when nothing came from the server in
// all that time, c gets no further exchange until something comes, and when several
// have waited, none at all.
func (p *pool) give(c *conn, inVain time.Duration) {
	p.change(func() {
		if c.h2 && inVain > 0 {
			p.watch(c.life.late(inVain))
			c.waits(inVain)
		}
		c.busy--
	})
}

// watch lets w, which may be nil, run. It is called where the pool is known to
// be open, or an exchange keeps it from being closed.
func (p *pool) watch(w *watch) {
	if w != nil {
		p.running.Go(func() { w.run(p.ctx, func() { p.change(func() {}) }) })
	}
}

// answered is told that the head of an answer has come to the exchange of a
// place.
func (p *pool) answered(at *place) {
	c := at.conn
	c.life.answered(time.Since(at.begun), at.before)
	p.mu.Lock()
	defer p.mu.Unlock()
	c.served, c.vain = true, 0
	c.address.serves()
	if c.h2 {
		if n, known := c.wire.limit(); known {
			p.inFlight = n
		}
	} else {
		p.conns.vouch(c)
	}
}

// add is told that a dial has made c.
func (p *pool) add(d *dialing, c *conn) {
	open := p.change(func() {
		if _, ok := p.dials.remove(d); !ok || c.h2 && p.conns.serve() {
			c.close() // nobody wants it any more, or the one that was doubted is alive
			return
		}
		p.feeds = c.feeds
		if p.h1 = !c.h2; p.h1 {
			p.inFlight = maxConns
		}
		p.dials.made(d, c)
		p.conns = append(p.conns, c)
	})
	if !open {
		c.close()
	}
}

// failed is told that a dial has failed for e. timedOut says that it had all its
// time. Whoever can still be served by another connection waits for it, and for
// the addresses that were not tried yet, and for another dial until the oldest of
// them has had its time.
func (p *pool) failed(d *dialing, e *Error, timedOut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	oldest, ok := p.dials.remove(d)
	if !ok || p.closed {
		return
	}
	inTime := !oldest || !timedOut
	switch {
	case p.dials.failed(d, p.need()) && inTime, p.conns.serve(), len(p.dials.underWay) > 0 && inTime:
		return
	}
	p.dials.stop()
	p.dials.addresses.exhausted()
	if n := len(p.dials.addresses.known); n > 1 {
		e.Err = fmt.Errorf("none of %d addresses can be reached, the last: %w", n, e.Err)
	}
	for _, w := range p.waiters {
		w.granted <- grant{err: e}
	}
	p.waiters = nil
}

// disappoints is told that c has ended under an exchange before any was answered
// on it.
func (p *pool) disappoints(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !c.served {
		c.address.fails()
	}
}

// redial is told that the dials under way have taken long.
func (p *pool) redial() {
	p.change(func() { p.dials.again(p.need()) })
}

// watchAll judges all connections, over HTTP/1.1: got octets had come on them
// when the second exchange began, and something is due.
func (p *pool) watchAll(got int64, due time.Duration) {
	pause(p.ctx, due)
	p.change(func() {
		p.watching = false
		if now, _ := p.conns.received(); now != got {
			return
		}
		p.conns.closeUnused()
		for _, c := range p.conns {
			c.life.suspect(c.sock.got.Load())
		}
	})
}

// connect returns nil when there is a connection that takes exchanges.
func (p *pool) connect(ctx context.Context) error {
	at, err := p.take(ctx)
	if err == nil {
		at.leave(nil)
	}
	return err
}

// connected tells whether there is a connection that takes exchanges, now or
// when one of those on it ends, as far as this side knows.
func (p *pool) connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conns.serve()
}

// abandon ends the dials that nobody waits for, and closes the connections that
// carry no exchange.
func (p *pool) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiters) == 0 {
		p.dials.stop()
	}
	p.conns.closeUnused()
}

// close ends everything and waits for it.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.cancel()
	for _, w := range p.waiters {
		w.granted <- grant{err: closedError(p.name)}
	}
	p.waiters = nil
	p.dials.end()
	p.conns.closeIf(func(*conn) bool { return true })
	p.mu.Unlock()
	p.running.Wait()
}
