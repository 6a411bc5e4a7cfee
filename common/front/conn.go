package front

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/common/lull"
)

// A conn is a connection and what its pool knows of it.
type conn struct {
	browser *browser // constant: that exchanges on it look like
	feeds   bool     // constant: it takes bodies of no known length
	h2      bool     // it speaks HTTP/2
	wire    wire
	sock    *sock
	life    life

	address *address // that it leads to

	// Guarded by pool.mu.
	busy   int         // exchanges in flight
	served bool        // an exchange has been answered on it
	idle   *time.Timer // closes it; nil while it is in use
	vain   int         // exchanges in a row that were not answered in their time
	vainAt time.Time   // when the last of these ended

	worn atomic.Bool // vain has become maxVain
}

// maxVain exchanges, one after the other, that are not answered in their time, and none
// that is, show that a connection is of no use, whoever answers its pings: what is
// behind it may have lost it, or its window. Another one may lead elsewhere.
const maxVain = 3

// waits counts an exchange that has waited for so long in vain. Those that waited
// together count once. pool.mu is held.
func (c *conn) waits(inVain time.Duration) {
	now := time.Now()
	if now.Add(-inVain).Before(c.vainAt) {
		return
	}
	c.vainAt = now
	if c.vain++; c.vain == maxVain {
		c.worn.Store(true)
		c.address.fails()
	}
}

// serves tells whether c takes exchanges now or will when one of those on it
// ends, as far as this side knows.
func (c *conn) serves() bool {
	return !c.life.doubted() && (c.usable() || c.busy > 0 && !c.h2)
}

// usable tells whether c takes an exchange now, as far as this side knows. Package
// http2 lets the first exchange of all begin on a connection that has ended, to
// fail there: as often as there is a first one.
func (c *conn) usable() bool { return !c.worn.Load() && !c.sock.over.Load() && c.wire.usable() }

// close ends c with the exchanges on it. The socket goes first: a TLS close
// waits for a writer, and may wait long for one whose peer has gone.
func (c *conn) close() {
	if c.idle != nil {
		c.idle.Stop()
		c.idle = nil
	}
	c.sock.Close()
	c.wire.close()
}

// A connList is a pool's connections, the oldest first. pool.mu guards it.
type connList []*conn

// serve tells whether one of them serves.
func (l connList) serve() bool { return slices.ContainsFunc(l, (*conn).serves) }

// places counts those that serve, and those that are in use and doubted.
func (l connList) places() (open, doubted int) {
	for _, c := range l {
		switch {
		case c.serves():
			open++
		case c.busy > 0 && c.life.doubted():
			doubted++
		}
	}
	return open, doubted
}

// pick returns the oldest that takes one more exchange, nil if there is none.
func (l connList) pick() *conn {
	for _, c := range l {
		if limit, _ := c.wire.limit(); c.busy < limit && !c.life.doubted() && c.usable() {
			return c
		}
	}
	return nil
}

// received is how many octets have come on all of them, and when something is
// due on all of them.
func (l connList) received() (octets int64, due time.Duration) {
	due = minDue
	for _, c := range l {
		octets += c.sock.got.Load()
		due = max(due, c.sock.due())
	}
	return octets, due
}

// closeIf closes and removes those that which chooses.
func (l *connList) closeIf(which func(*conn) bool) {
	*l = slices.DeleteFunc(*l, func(c *conn) bool {
		if !which(c) {
			return false
		}
		c.close()
		return true
	})
}

// closeUnused closes those that carry no exchange.
func (l *connList) closeUnused() { l.closeIf(func(c *conn) bool { return c.busy == 0 }) }

// bury closes those that are known to be dead, and those that are dead as far as
// can be known if there is another one.
func (l *connList) bury() {
	replaced := l.serve()
	l.closeIf(func(c *conn) bool {
		over := c.life.over(replaced)
		if over {
			c.address.fails()
		}
		return over
	})
}

// vouch is told that an exchange has been answered on c, over HTTP/1.1: that
// shows that the others are alive if c is one of those that are doubted, and
// else that those are dead which are older.
func (l *connList) vouch(c *conn) {
	alive := c.life.trust()
	for _, o := range *l {
		if alive {
			o.life.trust()
		}
		o.life.outlived(c.sock.born)
	}
	l.bury()
}

// A place is what one exchange has on a connection, from when the connection is
// ready until the response has been read or given up.
type place struct {
	pool   *pool
	conn   *conn
	ctx    context.Context // the exchange's
	reused bool            // other exchanges have been answered on the connection
	begun  time.Time       // when the place was given
	before int64           // octets that had been sent on the connection by then
	left   sync.Once
}

// roundTrip sends req and returns the response, whose body holds the place. On
// an error the place is given back.
func (p *place) roundTrip(req *http.Request) (*http.Response, error) {
	long := p.conn.h2 && (req.ContentLength >= longBody || req.ContentLength < 0)
	if long {
		p.pool.watch(p.conn.life.beginLong())
	}
	resp, err := p.conn.wire.roundTrip(req)
	if long {
		p.conn.life.endLong()
	}
	if err == nil {
		// An HTTP/1.1 server sees the end of a cancelled exchange, and its
		// answer to that can still come through.
		if err = context.Cause(p.ctx); err == nil {
			err = undoCoding(p.ctx, resp, p.pool.decoders)
		}
		if err != nil {
			resp.Body.Close()
		}
	}
	if err != nil {
		p.leave(err)
		e := p.err(err)
		if p.ctx.Err() == nil && !p.conn.usable() {
			e.Reused = p.reused
			p.pool.disappoints(p.conn)
		}
		return nil, e
	}
	p.pool.answered(p)
	resp.Body = &responseBody{body: resp.Body, place: p}
	return resp, nil
}

// leave gives the place back, once. err says how the exchange ended: nil is the
// proper end, or that the caller has had enough.
func (p *place) leave(err error) {
	p.left.Do(func() {
		var inVain time.Duration
		if err != nil && p.ctx.Err() != nil && isTimeout(context.Cause(p.ctx)) {
			inVain = time.Since(p.begun)
		}
		p.pool.give(p.conn, inVain)
	})
}

// err is what the caller is told when the exchange failed for err.
func (p *place) err(err error) *Error {
	switch gone := p.conn.life.died(); {
	case p.pool.ctx.Err() != nil:
		err = errClosed
	case p.ctx.Err() != nil:
		err = context.Cause(p.ctx)
	case gone != nil:
		err = gone
	}
	return newError(p.pool.name, OpHTTP, err)
}

// A sock is a TCP connection that counts what passes. It is safe for one reader
// and one writer at a time; its counts may be read meanwhile.
type sock struct {
	net.Conn
	born  time.Time
	seen  atomic.Int64 // nanoseconds after born of the last octet received
	asked atomic.Int64 // of the first octet sent
	rtt   atomic.Int64 // nanoseconds from there to the first octet received, or, if shorter, an answer took
	got   atomic.Int64 // octets received
	put   atomic.Int64 // octets sent
	over  atomic.Bool  // nothing comes any more: a read has failed, or it was closed
	lull  lull.Lull    // the reader's
}

func newSock(c net.Conn) *sock { return &sock{Conn: c, born: time.Now()} }

// due is the time after which something should have come that was asked for.
func (s *sock) due() time.Duration {
	return min(max(minDue, dueRounds*time.Duration(s.rtt.Load())), maxDue)
}

func (s *sock) Read(p []byte) (int, error) {
	s.lull.Trip(time.Duration(s.rtt.Load())) // an answer may have shown a shorter way
	n, err := s.lull.Read(s.Conn, p)
	if n > 0 {
		now := int64(time.Since(s.born))
		if s.got.Load() == 0 { // in a TLS handshake this is a round trip
			s.rtt.Store(now - s.asked.Load())
		}
		s.seen.Store(now)
		s.got.Add(int64(n))
	}
	if err != nil {
		s.over.Store(true)
	}
	return n, err
}

func (s *sock) Close() error {
	s.over.Store(true)
	return s.Conn.Close()
}

func (s *sock) Write(p []byte) (int, error) {
	if s.put.Load() == 0 {
		s.asked.Store(int64(time.Since(s.born)))
	}
	n, err := s.Conn.Write(p)
	s.put.Add(int64(n))
	return n, err
}

// silence is the time since something was received.
func (s *sock) silence() time.Duration {
	return time.Since(s.born) - time.Duration(s.seen.Load())
}
