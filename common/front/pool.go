package front

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

const (
	// dialTimeout bounds a new connection from name resolution to the end of
	// the TLS handshake. Three lost SYNs cost 7 s, and so do three lost
	// packets in each of the steps after it.
	dialTimeout = 30 * time.Second

	// idleTimeout is how long a connection without exchanges is kept. Servers
	// and CDNs end idle ones after 60 to 120 s.
	idleTimeout = 90 * time.Second

	// quiet is how long an HTTP/2 connection may have been silent when an
	// exchange starts on it without a ping being sent along, and lost how long
	// after a ping the connection is given up when nothing at all was received.
	// Both are Chrome's (net/spdy/spdy_session.cc). There is no ping while
	// nothing is asked, so a quiet session stays quiet.
	quiet = 10 * time.Second
	lost  = 10 * time.Second
)

// A conn is a connection and what the pool knows of it. All fields but the
// first two are guarded by Front.mu.
type conn struct {
	wire wire
	sock *sock

	busy    int  // exchanges in flight
	served  bool // an exchange has been answered on it
	watched bool // a ping is on its way
	suspect bool // an exchange had no answer in time; takes none until the ping is answered
	idle    *time.Timer
}

// A waiter is an exchange that waits for a connection.
type waiter struct {
	granted chan grant // holds one
}

// A grant is a connection of which one exchange is the waiter's, or an error.
type grant struct {
	conn   *conn
	reused bool // other exchanges have been answered on it before
	err    *Error
}

// acquire returns a connection with a place for one exchange, which release
// gives back. It waits while all are busy, or until ctx ends.
func (f *Front) acquire(ctx context.Context) (grant, *Error) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return grant{}, f.errClosed()
	}
	if err := context.Cause(ctx); err != nil {
		f.mu.Unlock()
		return grant{}, f.err(OpWait, err)
	}
	w := &waiter{granted: make(chan grant, 1)}
	f.waiters = append(f.waiters, w)
	f.serveLocked()
	f.mu.Unlock()

	select {
	case g := <-w.granted:
		return g, g.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.waiters, w)
	if i < 0 {
		// Granted in the same moment.
		g := <-w.granted
		return g, g.err
	}
	f.waiters = slices.Delete(f.waiters, i, i+1)
	return grant{}, f.waitErrLocked(ctx)
}

// waitErrLocked is the error of an exchange whose context ended while it waited
// for a connection.
func (f *Front) waitErrLocked(ctx context.Context) *Error {
	op := OpWait
	if f.dialing > 0 {
		op = f.step
	}
	return f.err(op, context.Cause(ctx))
}

func (f *Front) waitErr(ctx context.Context) *Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.waitErrLocked(ctx)
}

// connect returns nil when there is a connection that takes exchanges.
func (f *Front) connect(ctx context.Context) error {
	g, failed := f.acquire(ctx)
	if failed != nil {
		return failed
	}
	f.release(g.conn)
	return nil
}

// connected reports whether there is a connection that takes exchanges, now or
// when one of those on it ends, as far as this side knows.
func (f *Front) connected() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.conns, f.servesLocked)
}

// abandon ends the dials that nobody waits for, and closes the connections that
// carry no exchange.
func (f *Front) abandon() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	if len(f.waiters) == 0 {
		f.stopDials()
		f.dials, f.stopDials = context.WithCancel(f.ctx)
	}
	f.closeIdleLocked()
}

// serveLocked gives connections to waiters, first come first served, and
// starts dials for those who are left.
func (f *Front) serveLocked() {
	for len(f.waiters) > 0 {
		c := f.pickLocked()
		if c == nil {
			break
		}
		w := f.waiters[0]
		f.waiters = slices.Delete(f.waiters, 0, 1)
		c.busy++
		if c.idle != nil {
			c.idle.Stop()
			c.idle = nil
		}
		if f.h2 && c.sock.silence() >= quiet {
			f.watchLocked(c)
		}
		w.granted <- grant{conn: c, reused: c.served}
	}
	for f.dialing < f.dialsWantedLocked() {
		f.dialing++
		f.step = OpConnect
		dials := f.dials
		f.running.Go(func() { f.dial(dials) })
	}
}

// pickLocked returns the oldest connection that takes one more exchange, nil if
// there is none, and lets go of connections that are of no use any more.
func (f *Front) pickLocked() *conn {
	var picked *conn
	f.conns = slices.DeleteFunc(f.conns, func(c *conn) bool {
		if !c.wire.usable() {
			if c.busy > 0 {
				return false
			}
			f.dropLocked(c)
			return true
		}
		limit, _ := c.wire.limit()
		if picked == nil && !c.suspect && c.busy < limit {
			picked = c
		}
		return false
	})
	return picked
}

// dialsWantedLocked returns how many dials should be under way. Over HTTP/2,
// and before the first connection has shown which version it is, one: another
// would end as a second connection to one host, which no browser has.
func (f *Front) dialsWantedLocked() int {
	if f.closed || len(f.waiters) == 0 {
		return 0
	}
	open := 0
	for _, c := range f.conns {
		if f.servesLocked(c) {
			open++
		}
	}
	if f.h2 || !f.known {
		return max(0, 1-open)
	}
	return min(len(f.waiters), maxConns-open)
}

// servesLocked reports whether c takes exchanges now or will when one of those
// on it ends.
func (f *Front) servesLocked(c *conn) bool {
	if c.suspect {
		return false
	}
	return c.wire.usable() || c.busy > 0 && !f.h2
}

// dial makes one connection and gives it to the pool. It goes on when the
// exchange that asked for it has given up: the next one will want it.
func (f *Front) dial(dials context.Context) {
	ctx, cancel := context.WithTimeoutCause(dials, dialTimeout,
		fmt.Errorf("no connection after %v: %w", dialTimeout, context.DeadlineExceeded))
	defer cancel()
	step := OpConnect
	c, h2, err := f.open(ctx, func(op Op) {
		step = op
		f.mu.Lock()
		f.step = op
		f.mu.Unlock()
	})

	f.mu.Lock()
	defer f.mu.Unlock()
	f.dialing--
	switch {
	case dials.Err() != nil:
		if err == nil {
			f.dropLocked(c)
		}
		if !f.closed { // else Close has answered everyone
			f.serveLocked() // abandoned, and wanted again since
		}
	case err != nil:
		var dns *net.DNSError
		if step == OpConnect && errors.As(err, &dns) {
			step = OpResolve
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		// Whoever can still be served by another connection waits for it.
		if f.dialing == 0 && !slices.ContainsFunc(f.conns, f.servesLocked) {
			for _, w := range f.waiters {
				w.granted <- grant{err: f.err(step, err)}
			}
			f.waiters = nil
		}
	default:
		f.known, f.h2 = true, h2
		if !h2 {
			f.inFlight = maxConns
		}
		f.conns = append(f.conns, c)
		f.restLocked(c)
		f.serveLocked()
	}
}

// release ends an exchange on c.
func (f *Front) release(c *conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.busy--
	if !f.closed {
		f.serveLocked()
		f.pickLocked() // lets go of c if it is of no use any more
		f.restLocked(c)
	}
}

// restLocked starts the clock of a connection without exchanges.
func (f *Front) restLocked(c *conn) {
	if c.busy > 0 || c.idle != nil || !slices.Contains(f.conns, c) {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(idleTimeout, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if c.idle == timer {
			f.removeLocked(c)
		}
	})
	c.idle = timer
}

// removeLocked takes c out of the pool and closes it.
func (f *Front) removeLocked(c *conn) {
	if i := slices.Index(f.conns, c); i >= 0 {
		f.conns = slices.Delete(f.conns, i, i+1)
		f.dropLocked(c)
	}
}

// dropLocked closes a connection. The socket goes first: a TLS close waits for
// a writer, and may wait long for one whose peer has gone.
func (f *Front) dropLocked(c *conn) {
	if c.idle != nil {
		c.idle.Stop()
		c.idle = nil
	}
	c.sock.Close()
	c.wire.close()
}

// doubt is told that an exchange ended by its deadline, begun long ago. When
// nothing came from the server in all that time, the connection gets no further
// exchange until it has answered a ping.
func (f *Front) doubt(c *conn, begun time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.h2 && !f.closed && c.sock.silence() >= min(time.Since(begun), quiet) {
		c.suspect = true
		f.watchLocked(c)
	}
}

// watchLocked pings c and ends it if nothing is received in the time lost.
func (f *Front) watchLocked(c *conn) {
	if c.watched {
		return
	}
	c.watched = true
	f.running.Go(func() {
		ctx, cancel := context.WithTimeout(f.ctx, lost)
		defer cancel()
		err := c.wire.ping(ctx)
		f.mu.Lock()
		defer f.mu.Unlock()
		c.watched = false
		// A pong may be late behind megabytes of responses.
		if err != nil && c.sock.silence() >= lost {
			f.removeLocked(c)
		} else {
			c.suspect = false
		}
		if !f.closed {
			f.serveLocked()
		}
	})
}
