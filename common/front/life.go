package front

import (
	"fmt"
	"sync"
	"time"
)

const (
	// minDue is for how long nothing may come on a connection, although it should
	// have, before it is doubted; or for dueRounds of its round trips, if that is
	// longer, up to maxDue.
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
	// server answers when it has it: what may be held has little to say. One of no
	// known length is long.
	longBody = 16 << 10
)

// A life is what tells whether a connection is alive. A connection can die
// without a sign, when the device changes its network or a middlebox forgets
// the flow: what is written then is never answered, and nothing ends it for
// minutes. Silence alone is no evidence: a poll is held, a stream has nothing
// to say. So it goes in steps, over HTTP/2:
//
//		trusted --(1)--> pinged --(2)--> doubted --(3)--> dead --> closed
//		   ^                |               |               |
//		   +----------------+---------------+---------------+   something comes
//
//	 1. When a second exchange begins since the last octet came (the first may
//	    be one that is held), or the first of all, or while a long body is under
//	    way, and nothing comes for half of due, a ping is sent. Its answer is due
//	    at once, whatever becomes of the exchanges. While nothing new is asked no
//	    ping is sent, and none when answers come: a quiet session stays quiet,
//	    and so does a busy one that works. A ping goes along with an exchange at
//	    once only if the connection was quiet, as Chrome does it.
//	 2. When nothing has come another half of due later, the connection is
//	    doubted: it takes no new exchange, and another one is dialled beside it.
//	 3. When the other one is ready, the path works. The first is closed then, if
//	    nothing has come on it and the ping has had the time that it may have
//	    needed behind a long request on a slow path. The exchanges on it fail.
//	    Without another connection it is closed after lost.
//
// Over HTTP/1.1, which has no ping, the connections of a pool are judged
// together: when nothing has come on any of them for the time due after two
// exchanges began, those without an exchange are closed, and the others
// doubted. They are closed when an exchange on a new connection is answered; an
// answer on one of them is an answer for all.
//
// A life is safe for concurrent use.
type life struct {
	sock *sock
	wire wire // for pings

	mu      sync.Mutex // guards what follows
	asks    asks
	long    int  // exchanges with a long body that are not answered yet, over HTTP/2
	watched bool // a watch is at step 1 to 3
	doubt   doubt
	gone    error // why it was closed; nil: it was not, or not for being dead
	uptake  uptake
}

// A doubt is about whether a connection is alive.
type doubt struct {
	active bool          // at step 2
	dead   bool          // at step 3: closed when there is another one
	got    int64         // octets that had come when it began
	since  time.Time     // when it began
	room   time.Duration // from then to step 3
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

// An uptake is what answers show of how fast a path takes what is sent.
type uptake struct {
	proved   int64     // octets sent of which answers have shown that they arrived
	at       time.Time // when that was measured, and
	measured int64     // what it was then
	rate     float64   // the fastest that proved has grown, in octets per second
}

// prove is told that the octets sent before a moment have arrived.
func (u *uptake) prove(before int64) {
	u.proved = max(u.proved, before)
	took := time.Since(u.at)
	if took < 100*time.Millisecond { // too short to measure anything
		return
	}
	if !u.at.IsZero() {
		u.rate = max(u.rate, float64(u.proved-u.measured)/took.Seconds())
	}
	u.at, u.measured = time.Now(), u.proved
}

// queued is how long a ping may be on its way behind what was sent before, which
// is put octets in all.
func (u *uptake) queued(put int64) time.Duration {
	waits := float64(max(0, put-u.proved))
	return min(lost, time.Duration(waits/max(slowest, u.rate)*float64(time.Second)))
}

// doubted tells whether the connection takes no new exchange because it may be
// dead.
func (l *life) doubted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.doubt.holds(l.sock)
}

// holds tells whether nothing has come on s since the doubt began. Whatever
// comes ends it.
func (d *doubt) holds(s *sock) bool { return d.active && s.got.Load() == d.got }

// begin is told that an exchange begins, over HTTP/2, on a connection that has
// served others or not. It returns who is to watch the connection from now on;
// nil is nobody, or somebody does already.
func (l *life) begin(served bool) *watch {
	l.mu.Lock()
	defer l.mu.Unlock()
	due := l.sock.due()
	n := l.asks.add(l.sock.got.Load())
	switch {
	case l.sock.silence() >= quiet:
		return l.watch(0, due)
	case n >= 2 || !served:
		return l.watch(due/2, due/2)
	}
	return nil
}

// watch returns a watch, or nil if there is one already. mu is held.
func (l *life) watch(after, wait time.Duration) *watch {
	if l.watched {
		return nil
	}
	l.watched = true
	return &watch{life: l, after: after, wait: wait, got: l.sock.got.Load()}
}

// beginLong is told that a long body is going to be sent, over HTTP/2. It returns
// a watch as begin does.
func (l *life) beginLong() *watch {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.long++
	due := l.sock.due()
	return l.watch(due/2, due/2)
}

// endLong is told that an exchange with a long body is answered, or has failed.
func (l *life) endLong() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.long--
}

// late is told that an exchange ended by its deadline, having waited so long. If
// nothing came from the server in all that time, the connection is doubted. It
// returns a watch as begin does.
func (l *life) late(waited time.Duration) *watch {
	if l.sock.silence() < min(waited, quiet) {
		return nil
	}
	l.suspect(l.sock.got.Load())
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.watch(0, l.sock.due())
}

// answered is told that the head of an answer has come, so long after its
// request began. before octets had been sent by then.
func (l *life) answered(took time.Duration, before int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.uptake.prove(before)
	// A handshake that began in an outage seems to show a long way.
	l.sock.rtt.Store(min(l.sock.rtt.Load(), int64(took)))
}

// suspect lets the connection be doubted, unless more has come on it than got
// octets. It returns the time until step 3.
func (l *life) suspect(got int64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doubt = doubt{active: true, got: got, since: time.Now(), room: l.uptake.queued(l.sock.put.Load())}
	return l.doubt.room
}

// condemn takes a connection that is doubted to step 3.
func (l *life) condemn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doubt.dead = true
}

// trust ends the doubt. It tells whether there was one that something may have
// ended before.
func (l *life) trust() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.doubt.active
	l.doubt.active = false
	return was
}

// outlived is told that an exchange was answered on another connection, over
// HTTP/1.1, which was born at a time: one that is younger than the doubt shows
// that the path works.
func (l *life) outlived(born time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := &l.doubt
	if d.holds(l.sock) && d.since.Before(born) && time.Since(d.since) >= d.room {
		d.dead = true
	}
}

// settle is told that a watch has done its steps, and ends the doubt that they
// may have raised. It tells whether the watch is to begin anew: it is, while the
// connection lives, as long as a long body is under way, and if exchanges began
// meanwhile that nothing has followed.
func (l *life) settle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	asked := l.asks.n >= 2 && l.asks.got == l.sock.got.Load()
	l.watched = (l.long > 0 || asked) && l.gone == nil && !l.sock.over.Load()
	l.doubt.active, l.doubt.dead = false, false
	return l.watched
}

// over tells whether the connection is to be closed as a dead one. replaced says
// that there is another one, which is the last thing that one at step 3 lacks.
func (l *life) over(replaced bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone == nil && replaced && l.doubt.dead && l.doubt.holds(l.sock) {
		l.gone = death(l.sock)
	}
	return l.gone != nil
}

// die lets the connection be closed as a dead one, whether there is another one
// or not.
func (l *life) die() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = death(l.sock)
}

func death(s *sock) error {
	return fmt.Errorf("the connection died: nothing has come on it for %v", s.silence().Round(time.Millisecond))
}

// died is why the connection was closed as a dead one, nil if it was not.
func (l *life) died() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gone
}
