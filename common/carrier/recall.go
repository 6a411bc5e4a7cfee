package carrier

import (
	"math"
	"slices"
	"sync"
	"time"

	"turbotunnel/common/wire"
)

// Recall: sessions tell each other what a path carries, so that a new one does
// not have to find out. A client keeps the rates of both directions by front;
// the server tells what it finds in its heads, and hears it again in the first
// message of the next session. Those that begin together share it.
//
// What it gains, as shares of the path that a new session's first transfer uses
// with it and without (test/pace, the rows of kcp, which has a session for each
// stream; means of six runs):
//
//	                     down            up
//	100 ms, 100 Mbit/s   0.96 and 0.85   0.91 and 0.87
//	200 ms, 500 Mbit/s   0.98 and 0.73   0.91 and 0.75
//
// To do without, delete this file, its test, and the ten lines elsewhere that end
// in "// recall".

const (
	// paceLife is how long what one session has found of a path counts for
	// another one, and paceShared how long it counts although another one finds
	// less.
	paceLife   = 10 * time.Minute
	paceShared = 10 * time.Second

	// together is how long after one session another one begins at the same time.
	together = 500 * time.Millisecond

	// recalledShare is the part of a server's memory that the windows of unconfirmed
	// sessions may take together because their first messages say what the path
	// carries. Those beyond it begin like all others.
	recalledShare = 8
)

// A pace is what a session has found a path to carry in one direction.
type pace struct {
	rate float64       // bytes per second; 0: nothing is known
	more bool          // the window was still growing: the path may carry more
	trip time.Duration // the shortest round trip
	at   time.Time     // when it was found
}

// field is p's rate for a head. A path that carries more than 2 GB/s is none that
// a session has to know of, and its rate would not fit into an int of 32 bits.
func (p pace) field() int { return int(min(p.rate, math.MaxInt32)) }

func (p pace) known() bool { return p.rate > 0 && p.trip > 0 }

// replaces tells whether p says more than old of the same way. A session that
// shares the way, or has little to say, finds less than what it carries.
func (p pace) replaces(old pace) bool {
	life := paceShared
	if p.more {
		life = paceLife
	}
	return p.known() && p.at.After(old.at) && (p.rate >= old.rate || p.at.Sub(old.at) > life)
}

// part is what one of several sessions may take for its own that begin together
// on a way of this pace.
func (p pace) part(share float64) pace {
	p.rate *= share
	p.more = p.more || share < 1
	return p
}

// roughly is p with so little detail that it tells one client from another no
// better than a server can measure itself: in steps of a fifth.
func (p pace) roughly() pace {
	step := func(x float64) float64 { return math.Exp2(math.Round(4*math.Log2(x)) / 4) }
	if p.known() {
		p.rate, p.trip = step(p.rate), time.Duration(step(float64(p.trip)))
	}
	return p
}

// found is what a session has found of its path in both directions. It belongs
// to the session's window and is guarded with it.
type found struct {
	most    float64   // the most bytes per second while the window was growing
	at      time.Time // when the window was the limit last and its rate was measured, or most has grown; zero: never
	untried bool      // the window is another session's, and was not full yet
	lent    int       // bytes that the window had more at first than one that begins with nothing
	peer    pace      // what the other side says that it has found; at a client
	toldAt  time.Time // when the other side was told; at a server
	part    float64   // of what others have found that this session may take; at a client; 0: it has not begun
	by      *string   // the front by which the latest upload went; at a client; nil: none yet
}

// follow learns from a round trip that has ended with w, and had begun with was.
// If no queue shows when another session's window is full for the first time, the
// path carries more than that one has found, because it has shared the path: then
// the window keeps its size, whatever the round trip has made of it, and grows.
func (f *found) follow(was window, w *window, now time.Time) {
	rate := float64(was.delivered) / now.Sub(was.since).Seconds()
	switch {
	case was.starting && rate > f.most:
		f.most, f.at = rate, now
	case was.draining > 0:
	case was.starting && !w.starting, !was.starting && was.limited:
		f.at = now
	}
	if !f.untried || !was.limited || was.draining > 0 {
		return
	}
	f.untried = false
	if w.latest-w.base < w.delay()/2 {
		w.size, w.draining, w.starting = was.size, 0, true
	}
}

// hear takes note of what a head says that the other side has found.
func (f *found) hear(h *wire.Head, w *window, t trip, now time.Time) {
	if h.Rate == 0 {
		return
	}
	f.peer = pace{float64(h.Rate), h.More, t.smoothed, now}
	if w.base > 0 {
		f.peer.trip = w.base
	}
}

// recall begins where a session before has arrived. The round trip is measured
// anew: if it has become longer, the old one would show a queue for ever.
func (w *window) recall(p pace) {
	if !p.known() {
		return
	}
	w.set(p.rate * (p.trip + delayAt(p.trip)).Seconds())
	if p.more {
		w.size = max(w.size, firstFlight)
		return
	}
	w.starting, w.found.untried, w.rate = false, true, p.rate
}

// finds is the pace of the path so far.
func (w *window) finds() pace {
	p := pace{w.rate, w.starting, w.base, w.found.at}
	if w.starting {
		p.rate = w.found.most
	}
	return p
}

// recall begins with what another session has found, and returns how many bytes
// more than usual the window has: at most most, or it begins as usual.
func (l *link) recall(p pace, most int) (lent int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := newWindow()
	w.recall(p)
	if lent = max(0, w.size-firstFlight); lent > most {
		return 0
	}
	w.found.lent, w.found.part = lent, l.out.window.found.part
	l.out.window = w
	return lent
}

// finds is what this session has found the path to carry: zero if nothing.
func (l *link) finds() (up, down pace) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.window.finds(), l.out.window.found.peer
}

// part is which part of what others have found this session may take: what share
// says when it begins.
func (l *link) part(share func() float64) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.out.window.found
	if f.part == 0 {
		f.part = share()
	}
	return f.part
}

// stays says that an upload has ended that went by front, and tells whether the
// one before did, too. If not, finds says nothing until something is found again:
// it was of another way.
func (l *link) stays(front string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.out.window.found
	if f.by != nil && *f.by == front {
		return true
	}
	f.by, f.most, f.at, f.peer = &front, 0, time.Time{}, pace{}
	return false
}

// stampFound writes into a head what this session has found since it did so
// last.
func (l *link) stampFound(h *wire.Head) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &l.out.window
	if !w.found.at.After(w.found.toldAt) {
		return
	}
	w.found.toldAt = time.Now()
	p := w.finds()
	h.Rate, h.More = p.field(), p.more && p.rate > 0
}

// paces are what a client's sessions have found, by front. The zero value knows
// nothing. Safe for concurrent use.
type paces struct {
	mu    sync.Mutex
	begun []time.Time       // when sessions began, those within together before the last; guarded by mu, like what follows
	ways  map[string]*rates // by front
}

// rates are what sessions have found one way to carry; guarded by paces.mu.
type rates struct{ up, down pace }

// share says that a session begins, and returns which part of what another one
// has found it may take for its own: those that begin together share it.
func (m *paces) share(now time.Time) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begun = append(slices.DeleteFunc(m.begun, func(t time.Time) bool { return now.Sub(t) > together }), now)
	return 1 / float64(len(m.begun))
}

// of is what is known of the way through a front. mu is held.
func (m *paces) of(front string) *rates {
	r := m.ways[front]
	if r == nil {
		r = new(rates)
		if m.ways == nil {
			m.ways = make(map[string]*rates)
		}
		m.ways[front] = r
	}
	return r
}

// finds notes what a session finds the way through a front to carry, if that is
// news.
func (m *paces) finds(front string, up, down pace) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.of(front)
	if up.replaces(r.up) {
		r.up = up
	}
	if down.replaces(r.down) {
		r.down = down
	}
}

// carries is what sessions have found the way through a front to carry: zero if
// nothing, or long ago.
func (m *paces) carries(front string, now time.Time) (up, down pace) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.of(front)
	if now.Sub(r.up.at) <= paceLife {
		up = r.up
	}
	if now.Sub(r.down.at) <= paceLife {
		down = r.down
	}
	return up, down
}

// forget forgets what the way through a front carries, and hears of nothing
// that was found before now.
func (m *paces) forget(front string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	*m.of(front) = rates{pace{at: now}, pace{at: now}}
}

// begin has a client's link begin with what others have found, and the first
// message say it.
func (m *paces) begin(front string, l *link, asked *wire.Head) {
	now := time.Now()
	part := l.part(func() float64 { return m.share(now) })
	up, down := m.carries(front, now)
	l.recall(up.part(part), flightLimit)
	if down = down.part(part).roughly(); down.known() {
		asked.Rate, asked.More, asked.Trip = down.field(), down.more, down.trip
	}
}

// learn keeps what a client's link has found when an exchange of kind k has ended,
// or a feed goes on, if it was an upload. What was found since the one before belongs to a front only
// if both went by it. back says that the exchange came through where others were
// failing: what was known of the front is forgotten then, because the network
// may be another one.
func (m *paces) learn(front string, l *link, k kind, back bool) {
	if (k == upload || k == feed) && l.stays(front) {
		up, down := l.finds()
		m.finds(front, up, down)
	}
	if back {
		m.forget(front, time.Now())
	}
}

// credit bounds what unconfirmed sessions have in flight because of what their
// first messages say. It belongs to a Server, whose lock guards it.
type credit struct{ lent int } // bytes

// lend has a session begin as its first message asks, at a server that has so much
// memory.
func (c *credit) lend(l *link, ask *wire.Head, memory int64) {
	c.lent += l.recall(pace{rate: float64(ask.Rate), more: ask.More, trip: ask.Trip}, int(min(memory/recalledShare, math.MaxInt))-c.lent)
}

// settle says that the session is confirmed, or over.
func (c *credit) settle(l *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.lent -= l.out.window.found.lent
}
