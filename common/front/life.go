package front

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// A connection is doubted when nothing has come on it for minDue, or
	// dueRounds of its round trips, up to maxDue, although it should have.
	minDue    = time.Second
	maxDue    = 5 * time.Second
	dueRounds = 4

	// quiet is how long an HTTP/2 connection may have been silent when an
	// exchange starts on it without a ping being sent along, and lost how long
	// after a ping the connection is given up when nothing at all was received.
	// Both are Chrome's (net/spdy/spdy_session.cc).
	quiet = 10 * time.Second
	lost  = 10 * time.Second

	// slowest is the least number of octets that a path takes in a second. What
	// waits to be sent delays a ping by as much, until answers have shown that
	// the path is faster.
	slowest = 32 << 10

	// longBody is the size in bytes from which a request's body is one that a
	// server answers when it has it: what may be held has little to say.
	longBody = 16 << 10
)

// A life is what tells whether a connection is alive. A connection can die
// without a sign, when the device changes its network or a middlebox forgets
// the flow: what is written then is never answered, and nothing ends it for
// minutes. Silence alone is no evidence: a poll is held, a stream has nothing
// to say. So it goes in steps, over HTTP/2:
//
//  1. When a second exchange begins since the last octet came (the first may
//     be one that is held), or the first of all, or while a long body is under
//     way, and nothing comes for half of due, a ping is sent. Its answer is due
//     at once, whatever becomes of the exchanges. While nothing new is asked no
//     ping is sent, and none when answers come: a quiet session stays quiet,
//     and so does a busy one that works. A ping goes along with an exchange at
//     once only if the connection was quiet, as Chrome does it.
//  2. When nothing has come another half of due later, the connection is
//     doubted: it takes no new exchange, and another one is dialled beside it.
//  3. When the other one is ready, the path works. The first is closed then, if
//     nothing has come on it and the ping has had the time that it may have
//     needed behind a long request on a slow path. The exchanges on it fail.
//     Without another connection it is closed after lost.
//
// Whatever comes on a doubted connection ends the doubt.
//
// Over HTTP/1.1, which has no ping, the connections of a Front are judged
// together: when nothing has come on any of them for the time due after two
// exchanges began, those without an exchange are closed, and the others
// doubted. They are closed when an exchange on a new connection is answered; an
// answer on one of them is an answer for all.
//
// Front.mu guards the fields.
type life struct {
	asks      asks
	long      int   // exchanges with a long body that are not answered yet
	watched   bool  // a goroutine is at step 1 to 3
	suspect   bool  // at step 2
	gotThen   int64 // octets that had come by then
	dead      bool  // at step 3: closed when there is another one
	suspected time.Time
	room      time.Duration // from then to step 3
	gone      error         // why it was closed

	proved   int64     // octets sent of which answers have shown that they arrived
	provedAt time.Time // when that was measured, and
	measured int64     // what it was then
	rate     float64   // the fastest that proved has grown, in octets per second
}

// asks counts exchanges begun since the last octet came.
type asks struct {
	got int64
	n   int
}

// add counts one and returns how many they are. got is the octets received so
// far.
func (a *asks) add(got int64) int {
	if a.got != got {
		*a = asks{got: got}
	}
	a.n++
	return a.n
}

// doubted tells whether c takes no new exchange because it may be dead.
func (c *conn) doubted() bool { return c.life.suspect && c.sock.got.Load() == c.life.gotThen }

// due is the time after which something should have come.
func (s *sock) due() time.Duration {
	return min(max(minDue, dueRounds*time.Duration(s.rtt.Load())), maxDue)
}

// prove is told that the octets sent before a moment have arrived.
func (c *conn) prove(before int64) {
	l := &c.life
	l.proved = max(l.proved, before)
	took := time.Since(l.provedAt)
	if took < 100*time.Millisecond { // too short to measure anything
		return
	}
	if !l.provedAt.IsZero() {
		l.rate = max(l.rate, float64(l.proved-l.measured)/took.Seconds())
	}
	l.provedAt, l.measured = time.Now(), l.proved
}

// queued is how long a ping may be on its way behind what was sent before.
func (c *conn) queued() time.Duration {
	waits := float64(max(0, c.sock.put.Load()-c.life.proved))
	return min(lost, time.Duration(waits/max(slowest, c.life.rate)*float64(time.Second)))
}

// begunLocked is told that an exchange begins on c.
func (f *Front) begunLocked(c *conn) {
	if !f.h2 {
		var got int64
		due := minDue
		for _, c := range f.conns {
			got += c.sock.got.Load()
			due = max(due, c.sock.due())
		}
		if f.asks.add(got) >= 2 && !f.watching {
			f.watching = true
			f.running.Go(func() { f.watchAll(due) })
		}
		return
	}
	due := c.sock.due()
	n := c.life.asks.add(c.sock.got.Load())
	switch {
	case c.life.watched:
	case c.sock.silence() >= quiet:
		f.watchLocked(c, 0, due)
	case n >= 2 || !c.served:
		f.watchLocked(c, due/2, due/2)
	}
}

// longLocked is told that a long body is going to be sent on c.
func (f *Front) longLocked(c *conn) {
	c.life.long++
	if due := c.sock.due(); f.h2 && !c.life.watched {
		f.watchLocked(c, due/2, due/2)
	}
}

// answeredLocked is told that the head of an answer has come on c, to a request
// that began at a time, after so many octets had been sent.
func (f *Front) answeredLocked(c *conn, begun time.Time, before int64) {
	c.prove(before)
	// A handshake that began in an outage seems to show a long way.
	c.sock.rtt.Store(min(c.sock.rtt.Load(), int64(time.Since(begun))))
	if f.h2 {
		return
	}
	alive := c.life.suspect
	for _, other := range f.conns {
		l := &other.life
		if alive {
			l.suspect = false
		}
		if other.doubted() && l.suspected.Before(c.sock.born) && time.Since(l.suspected) >= l.room {
			l.dead = true
		}
	}
	f.buryLocked()
}

// suspectLocked takes c to step 2, unless more has come on it than got octets.
func (f *Front) suspectLocked(c *conn, got int64) {
	l := &c.life
	l.suspect, l.dead, l.gotThen = true, false, got
	l.suspected, l.room = time.Now(), c.queued()
}

// buryLocked closes the connections that are dead as far as can be known, if
// there is another one.
func (f *Front) buryLocked() {
	if !slices.ContainsFunc(f.conns, f.servesLocked) {
		return
	}
	for _, c := range slices.Clone(f.conns) {
		if c.life.dead && c.doubted() {
			f.closeSilentLocked(c)
		}
	}
}

func (f *Front) closeSilentLocked(c *conn) {
	c.life.gone = fmt.Errorf("the connection died: nothing has come on it for %v", c.sock.silence().Round(time.Millisecond))
	f.removeLocked(c)
}

// doubt is told that an exchange ended by its deadline, begun long ago. When
// nothing came from the server in all that time, the connection gets no further
// exchange until something comes.
func (f *Front) doubt(c *conn, begun time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.h2 && !f.closed && c.sock.silence() >= min(time.Since(begun), quiet) {
		f.suspectLocked(c, c.sock.got.Load())
		if !c.life.watched {
			f.watchLocked(c, 0, c.sock.due())
		}
	}
}

// watchLocked lets c be watched: it is pinged if nothing comes in the time
// after, and doubted if nothing comes in the time wait after that. This begins
// anew, and each time later, while a long body is under way.
func (f *Front) watchLocked(c *conn, after, wait time.Duration) {
	c.life.watched = true
	got := c.sock.got.Load()
	f.running.Go(func() {
		pause := after
		for again := true; again; got = c.sock.got.Load() {
			if f.pause(pause) && c.sock.got.Load() == got {
				f.watch(c, got, wait)
				pause = min(max(2*pause, wait), maxDue)
			} else {
				pause = max(after, wait)
			}
			f.mu.Lock()
			again = c.life.long > 0 && !f.closed && c.life.gone == nil
			c.life.watched, c.life.suspect, c.life.dead = again, false, false
			if !f.closed {
				f.serveLocked()
			}
			f.mu.Unlock()
		}
	})
}

// watch returns when something has come on c, or c is closed.
func (f *Front) watch(c *conn, got int64, wait time.Duration) {
	// answered tells whether something has come before a time has passed, or c
	// has ended.
	begun := time.Now()
	answered := func(in time.Duration) bool {
		ctx, cancel := context.WithTimeout(f.ctx, in)
		defer cancel()
		err := c.wire.ping(ctx)
		return err == nil || ctx.Err() == nil || f.ctx.Err() != nil || c.sock.got.Load() != got
	}
	if answered(wait) {
		return
	}
	f.mu.Lock()
	f.suspectLocked(c, got)
	room := c.life.room
	f.serveLocked()
	f.mu.Unlock()
	if room > 0 && answered(min(room, lost-wait)) {
		return
	}
	f.mu.Lock()
	c.life.dead = true
	f.buryLocked()
	f.mu.Unlock()
	if left := lost - time.Since(begun); left > 0 && answered(left) {
		return
	}
	f.mu.Lock()
	f.closeSilentLocked(c)
	f.mu.Unlock()
}

// watchAll judges all connections, over HTTP/1.1.
func (f *Front) watchAll(due time.Duration) {
	f.mu.Lock()
	asks := f.asks
	f.mu.Unlock()
	f.pause(due)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watching = false
	var got int64
	for _, c := range f.conns {
		got += c.sock.got.Load()
	}
	if f.closed || got != asks.got {
		return
	}
	f.closeIdleLocked()
	for _, c := range f.conns {
		f.suspectLocked(c, c.sock.got.Load())
	}
	f.serveLocked()
}

// pause waits, and tells whether the Front is open still.
func (f *Front) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-f.ctx.Done():
		return false
	}
}
