package carrier

import (
	"sync"
	"time"
)

// milestones are the moments of a session's life that others wait for. Safe for
// concurrent use.
type milestones struct {
	ready  gate // the server has answered
	ending gate // the session is going to end
	done   gate
	err    error // why it ended; set before ending is opened

	mu    sync.Mutex
	heard time.Time     // when an answer of the server's has come last; guarded by mu, like what follows
	seems bool          // the server seems to have forgotten the session
	since time.Time     // if so: what shows it was all asked then or later
	news  chan struct{} // closed when any of these changes; nil: nobody waits
}

// A Verdict is what is known of whether the server still knows a session.
type Verdict struct {
	Forgotten bool      // several answers in a row were by somebody else
	Since     time.Time // if so: the exchanges that show it were all started then or later
}

// Verdict is what is known now, and a channel that is closed when that changes.
func (m *milestones) Verdict() (Verdict, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.news == nil {
		m.news = make(chan struct{})
	}
	return Verdict{m.seems, m.since}, m.news
}

// Stale tells whether the server is likely to have forgotten the session, because
// it has not been heard for the session's Lifetime. A computer that sleeps stops
// one of its clocks, so that both are asked (apart).
func (m *milestones) Stale() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.heard.IsZero() && apart(m.heard, time.Now()) > Lifetime
}

// apart is the time from one moment to a later one, by whichever clock has not slept.
func apart(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}

// recency tells of the units of one answer whether they show that the server knows the
// session when they are read. What came before the program was suspended, and waited in
// the operating system, shows that it did then.
type recency struct {
	last time.Time // when a unit was read last, or the exchange was started
	past bool      // the answer is of a time before a pause
}

// reads is told that a unit is read now. An answer is as good as never silent for the
// session's Lifetime: it would have been given up.
func (r *recency) reads(now time.Time) (shows bool) {
	r.past = r.past || apart(r.last, now) > Lifetime
	r.last = now
	return !r.past
}

// Heard is when an answer of the server's has come last; zero: none has.
func (m *milestones) Heard() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard
}

// hears notes that an answer of the server's has come.
func (m *milestones) hears(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard = now
	if m.seems {
		m.changes(false, time.Time{})
	}
}

// doubts notes whether the server seems to have forgotten the session.
func (m *milestones) doubts(since time.Time, seems bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if seems != m.seems || !since.Equal(m.since) {
		m.changes(seems, since)
	}
}

// changes notes what is new and wakes who waits for it. mu is held.
func (m *milestones) changes(seems bool, since time.Time) {
	m.seems, m.since = seems, since
	if m.news != nil {
		close(m.news)
		m.news = nil
	}
}

// A gate is a channel that is closed once.
type gate struct {
	once sync.Once
	c    chan struct{}
}

// open closes the channel, if it is not closed.
func (g *gate) open() { g.once.Do(func() { close(g.c) }) }

// Ready is closed when the server has answered under its key.
func (m *milestones) Ready() <-chan struct{} { return m.ready.c }

// SeemsForgotten tells whether the path answers like a web site now.
func (m *milestones) SeemsForgotten() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seems
}

// Done is closed when the session has ended and nothing of it is left.
func (m *milestones) Done() <-chan struct{} { return m.done.c }

// Err says why the session has ended, or, just before that, is about to: nil
// if this side closed it. It is set before the Conn fails.
func (m *milestones) Err() error {
	if !isClosed(m.ending.c) {
		return nil
	}
	return m.err
}

// end says why the session is going to end. The first reason stays.
func (m *milestones) end(err error) {
	m.ending.once.Do(func() {
		m.err = err
		close(m.ending.c)
	})
}
