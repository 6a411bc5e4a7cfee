package carrier

import (
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// bodyPatience is how long a request's body may stand still, half of it at
	// least.
	bodyPatience = 30 * time.Second

	// writePatience is how long a client may take nothing of an answer that is
	// being written, half of it at least: longer than a client waits for anything
	// (patience), and with the longest silence before it (maxHold) shorter than a
	// session lives.
	writePatience = time.Minute

	// maxWaiting is how many answers of a session wait for something to say at
	// most: all that a client asks for at once, and as many again that a gateway
	// keeps open after the client has lost them.
	maxWaiting = 2 * (maxDownloads + 2)

	// lastWords is how long the answers may still be written of a session that is
	// forgotten, or that is ended for what it holds.
	lastWords = time.Second
)

// answers are those requests of a session that are being answered. What they take
// is counted in the session's account, from when it is known that the client makes
// them: a stranger who has the path shall not spend the session's share, nor keep it
// alive, nor see that anything has happened to it. Safe for concurrent use.
type answers struct {
	held *account // constant

	mu      sync.Mutex
	all     map[*answering]struct{} // guarded by mu, like what follows
	waiting []*answering            // those that wait for something to say, or stream; in order
	over    bool                    // the session is forgotten, or was ended for what it holds
}

// An answering is a request that is being answered.
type answering struct {
	of        *answers // constant, like what follows
	control   *http.ResponseController
	displaced chan struct{} // closed when too many others have come to wait after this one

	// Owned by the goroutine that answers.
	unit   int           // the largest record that it may have, in bytes
	wait   time.Duration // the longest that it waits between two writes
	reads  time.Time     // the connection's read deadline
	writes time.Time     // and its write deadline

	counted bool      // it is one of them; guarded by the answers' mu, like what follows
	last    time.Time // after this neither deadline may be; zero: no matter
}

func newAnswers(held *account) *answers {
	return &answers{held: held, all: make(map[*answering]struct{})}
}

// begin says that a request has come, until done. It counts when mayRead or mayWrite
// is called.
func (s *answers) begin(control *http.ResponseController) *answering {
	return &answering{of: s, control: control, displaced: make(chan struct{})}
}

// written is how many are being written: they show that the session lives, as a
// client that takes nothing lets none be written for long. Those that wait or stream
// show nothing. What these say is so little that a connection of which nobody reads
// takes it for hours.
func (s *answers) written() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all) - len(s.waiting)
}

// hurry says that the session is over: all of them end soon, whether the client takes
// them or not, and those that begin later, too.
func (s *answers) hurry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	last := time.Now().Add(lastWords)
	for a := range s.all {
		if a.last.IsZero() {
			a.last = last
			a.control.SetReadDeadline(last)  //nolint:errcheck // in tests there is no connection
			a.control.SetWriteDeadline(last) //nolint:errcheck // likewise
		}
	}
}

// done says that it is answered.
func (a *answering) done() {
	s := a.of
	s.mu.Lock()
	defer s.mu.Unlock()
	if !a.counted {
		return
	}
	s.held.add(-requestCost)
	delete(s.all, a)
	s.waitsNoMore(a)
}

// waitsNoMore takes one out of those that wait. mu is held.
func (s *answers) waitsNoMore(a *answering) {
	if i := slices.Index(s.waiting, a); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
}

// waits says that it is going to wait for something to say. If too many do, the one
// that began first has to say what there is: a client has no use for it, or not for
// so many.
func (a *answering) waits() {
	s := a.of
	s.mu.Lock()
	defer s.mu.Unlock()
	a.count()
	s.waiting = append(s.waiting, a)
	if len(s.waiting) > maxWaiting {
		close(s.waiting[0].displaced)
		s.waiting = slices.Delete(s.waiting, 0, 1)
	}
}

// waited says that it waits no more, and is written.
func (a *answering) waited() {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	a.of.waitsNoMore(a)
}

// mayRead gives the client, whose unit has come, time to send more.
func (a *answering) mayRead() {
	now := time.Now()
	if a.reads.Sub(now) > bodyPatience/2 {
		return // over HTTP/2, moving a deadline costs as much as a small frame
	}
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	a.count()
	a.reads = a.notAfterLast(now.Add(bodyPatience))
	a.control.SetReadDeadline(a.reads) //nolint:errcheck // in tests there is no connection
}

// mayWrite gives the client time to take what is written next, and what is written
// after a wait.
func (a *answering) mayWrite() {
	now := time.Now()
	if a.writes.Sub(now) > a.wait+writePatience/2 {
		return
	}
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	a.count()
	a.writes = a.notAfterLast(now.Add(a.wait + writePatience))
	a.control.SetWriteDeadline(a.writes) //nolint:errcheck // likewise
}

// isLate tells whether the time is over that mayWrite gave, and not because the
// session has ended. A write that fails does not always say why.
func (a *answering) isLate() bool {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	return a.last.IsZero() && !a.writes.IsZero() && !time.Now().Before(a.writes)
}

// count counts it among the answers. Their mu is held.
func (a *answering) count() {
	s := a.of
	if a.counted {
		return
	}
	a.counted = true
	s.held.add(requestCost)
	s.all[a] = struct{}{}
	if s.over {
		a.last = time.Now().Add(lastWords)
	}
}

// notAfterLast is t, or the last moment that there is. The answers' mu is held.
func (a *answering) notAfterLast(t time.Time) time.Time {
	if !a.last.IsZero() && a.last.Before(t) {
		return a.last
	}
	return t
}
