package front

import (
	"context"
	"slices"
	"time"
)

// idleTimeout is how long a connection without exchanges is kept. Servers and
// CDNs end idle ones after 60 to 120 s.
const idleTimeout = 90 * time.Second

// A conn is a connection and what the pool knows of it. All fields but the
// first two are guarded by Front.mu.
type conn struct {
	wire wire
	sock *sock

	busy   int  // exchanges in flight
	served bool // an exchange has been answered on it
	idle   *time.Timer
	life   life
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
	if len(f.dialing) > 0 {
		op = f.dialing[0].step
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
		f.stopDialsLocked(func(*dialing) bool { return true })
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
		f.begunLocked(c)
		w.granted <- grant{conn: c, reused: c.served}
	}
	f.dialLocked()
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
		if picked == nil && !c.doubted() && c.busy < limit {
			picked = c
		}
		return false
	})
	return picked
}

// servesLocked reports whether c takes exchanges now or will when one of those
// on it ends.
func (f *Front) servesLocked(c *conn) bool {
	if c.doubted() {
		return false
	}
	return c.wire.usable() || c.busy > 0 && !f.h2
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
