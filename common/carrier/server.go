package carrier

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

const (
	// unconfirmedLife is how long a session may stay unconfirmed: the client
	// has sent nothing under the session's key yet.
	unconfirmedLife = time.Minute

	// maxUnconfirmed is how many unconfirmed sessions have an engine. Those
	// beyond it, which somebody may have made who only holds the server's public
	// key, get one when they are confirmed.
	maxUnconfirmed = 512

	// janitorEvery is how often the janitor looks for sessions whose time has come: with
	// 10 000 of them a look takes 4 ms.
	janitorEvery = 5 * time.Second

	// drainTime is how long nothing must be on its way before a Shutdown: a
	// few of the engines' delays of acknowledgement.
	drainTime = 200 * time.Millisecond
)

// ServerConfig is what a Server needs.
type ServerConfig struct {
	Key handshake.PrivateKey

	// Decoy answers every request that is not a client's, as it came: what was
	// read of its body is read again. It is called when the body's beginning is
	// here, or none is to come.
	Decoy http.Handler

	// Marks keep what is to be known of first messages after a restart. Nil: nothing
	// is kept, see handshake.Guard.
	Marks handshake.Marks

	// Engines are the names of the engines that sessions may use.
	Engines []string

	// Serve is called in its own goroutine for each session and owns its Conn.
	// The session ends when Serve returns.
	Serve func(*Session)

	// ClientAddr tells who made a request, or the zero Addr.
	ClientAddr func(*http.Request) netip.Addr

	// Known is called when a request has shown that a client made it, while it is
	// being read, and maybe more than once. Nil: nobody wants to know.
	Known func(*http.Request)

	// Memory is how many bytes all sessions together may hold, in the carrier and in
	// their engines; 0: 1 GiB. One session may hold three eighths of it. Above
	// either, the sessions that hold most are ended, whatever they do.
	Memory int64

	Log *slog.Logger // nil: nothing is logged
}

// Server is the server's side of many sessions. Safe for concurrent use.
type Server struct {
	cfg       ServerConfig
	log       *slog.Logger
	admission *admission
	limits    limits
	budget    *budget
	seldom    seldom
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup // Serve, the janitor, and who learns of days

	mu          sync.Mutex
	sessions    table  // guarded by mu, like what follows
	unconfirmed int    // of those that have an engine
	credit      credit // recall
	closed      bool

	named                    atomic.Uint64 // sessions that have a name
	opened, refused, expired atomic.Uint64
	crowded                  atomic.Uint64 // sessions that were ended for what they held
	evicted                  atomic.Uint64 // sessions that went for new ones
	bodies, answers          atomic.Uint64 // that were cut, as in Stats
}

// limits are bounds of a Server's that tests lower.
type limits struct {
	unconfirmed int // maxUnconfirmed
	sessions    int // maxSessions
	memory      int64
}

// NewServer returns a Server. Its Close must be called.
func NewServer(cfg ServerConfig) *Server {
	memory := cfg.Memory
	if memory == 0 {
		memory = defaultMemory
	}
	return newServer(cfg, limits{maxUnconfirmed, maxSessions, memory})
}

// newServer returns a Server with bounds that tests choose.
func newServer(cfg ServerConfig, most limits) *Server {
	s := &Server{
		cfg:      cfg,
		limits:   most,
		budget:   newBudget(most.memory),
		log:      cfg.Log,
		sessions: newTable(most.sessions),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.admission = newAdmission(&s.cfg, s.log, &s.seldom, &s.budget.held, most.memory)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.janitor)
	s.wg.Go(func() { s.admission.learn(s.ctx) })
	return s
}

// Stats are counts since the start, except Sessions and Memory, which are now.
type Stats struct {
	Sessions int
	Memory   int64 // bytes
	Opened   uint64
	Refused  uint64 // for their engine or version
	Expired  uint64
	Crowded  uint64 // sessions that were ended because they, or all, held too much
	Evicted  uint64 // sessions that went for new ones because there were too many
	Untimely uint64 // first messages that came at a wrong time, and were told the right one; or on a wrong day

	// Of first messages, when more come than can be remembered:
	Forgotten uint64 // those that were before their time, which is over for others, too
	Excess    uint64 // those that were refused

	// Of requests of clients:
	BodiesCut  uint64 // those whose body stood still for too long
	AnswersCut uint64 // those of whose answer too little was taken for too long
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	n := len(s.sessions.byID)
	s.mu.Unlock()
	return Stats{
		Sessions:  n,
		Memory:    s.budget.held.bytes(),
		Opened:    s.opened.Load(),
		Refused:   s.refused.Load(),
		Expired:   s.expired.Load(),
		Crowded:   s.crowded.Load(),
		Evicted:   s.evicted.Load(),
		Untimely:  s.admission.untimely.Load(),
		Forgotten: s.admission.guard.Forgotten(),
		Excess:    s.admission.excess.Load(),

		BodiesCut:  s.bodies.Load(),
		AnswersCut: s.answers.Load(),
	}
}

// serve answers a request for session id. It returns false, and has not
// answered, if the request does not show that a client made it.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, control *http.ResponseController, body *opening, id handshake.ID) bool {
	s.mu.Lock()
	sess, closed := s.sessions.byID[id], s.closed
	s.mu.Unlock()
	// A session that exists is found whatever day it is: it may live for months.
	if closed || sess == nil && !s.admission.expects(id) {
		return false
	}
	if sess == nil {
		sess, ask := s.hello(r, body.whole(), id)
		if sess == nil {
			return false
		}
		if sess.refused {
			ask.Stream, ask.Quiet = 0, 0
		}
		if ask.Stream == 0 {
			ask.Stream = firstStream + rand.N(firstStream/2)
		}
		body.freed(control)
		a := sess.answers.begin(control)
		defer a.done()
		sess.reply(r.Context(), w, a, sess.answer, 0, ask) //nolint:errcheck // the client asks again
		return true
	}
	return sess.serve(w, r, control, body)
}

func (s *Server) clientAddr(r *http.Request) netip.Addr {
	if s.cfg.ClientAddr == nil {
		return netip.Addr{}
	}
	return s.cfg.ClientAddr(r)
}

// known tells that a client has made a request.
func (s *Server) known(r *http.Request) {
	if s.cfg.Known != nil {
		s.cfg.Known(r)
	}
}

// hello opens a session if msg is its first message, and returns what that asks
// of the answer. What only comes at a wrong time is answered by a session that
// nobody else ever sees, and that counts in no account.
func (s *Server) hello(r *http.Request, msg []byte, id handshake.ID) (sess *Session, ask wire.Head) {
	w := s.admission.welcome(id, msg)
	if w == nil {
		return nil, ask
	}
	held := &s.budget.held
	if w.untimely {
		held = nil // no session may end for it; its connection pays
	}
	l := newLink(held)
	l.send, l.receive = w.keys.Send, w.keys.Receive
	if ask.Parse(w.hello.Ask) != nil { // or nothing is asked
		ask = wire.Head{}
	}
	l.setUnit(unitOf(&ask))
	name := strconv.FormatUint(s.named.Add(1), 10)
	sess = &Session{
		server:    s,
		id:        id,
		name:      name,
		engine:    w.hello.Engine,
		ephemeral: [handshake.EphemeralSize]byte(msg),
		answer:    w.answer,
		refused:   w.refused,
		looks:     newAppearance(),
		blur:      newBlur(),
		link:      l,
		conn:      newConn(l, Addr(name), w.hello.Binding),
		taker:     make(chan struct{}, 1),
		gone:      make(chan struct{}),
		answers:   newAnswers(&l.held),
		term:      term{lastSeen: time.Now()},
		client:    s.clientAddr(r), // before an engine can accept a stream
	}
	if w.untimely {
		return sess, ask
	}
	s.budget.admit(sess)
	if sess.refused {
		s.refused.Add(1)
	} else {
		l.receivedHello(w.hello.Datagrams)
	}
	lend := func() { s.credit.lend(l, &ask, s.limits.memory) } // recall
	if !s.admit(sess, lend) {
		l.drop()
		return nil, ask
	}
	s.known(r)
	return sess, ask
}

// settle counts a session no more among those that are unconfirmed and have an
// engine. mu is held.
func (s *Server) settle(sess *Session) {
	s.unconfirmed--
	s.credit.settle(sess.link) // recall
}

// janitor forgets sessions whose time has come, and ends those that hold too much
// as soon as they do.
func (s *Server) janitor() {
	ticker := time.NewTicker(janitorEvery)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
			s.sweep(time.Now())
		case <-s.budget.over:
			s.makeRoom()
		}
	}
}

// sweep forgets the sessions whose time has come.
func (s *Server) sweep(now time.Time) {
	s.mu.Lock()
	var old []*Session
	for _, sess := range s.sessions.byID {
		if sess.isOld(now) {
			old = append(old, sess)
		}
	}
	s.mu.Unlock()
	for _, sess := range old {
		sess.mu.Lock()
		if sess.term.ended.IsZero() {
			s.expired.Add(1)
		}
		sess.mu.Unlock()
		sess.forget()
	}
}

// Shutdown waits until nothing has been on its way to any client for drainTime
// or until ctx ends, whose error it returns then, and closes the Server. What
// the engines still hold back does not count as on its way; they hold nothing
// back that a client has room for.
func (s *Server) Shutdown(ctx context.Context) error {
	ticker := time.NewTicker(drainTime / 4)
	defer ticker.Stop()
	busy := time.Now()
	for time.Since(busy) < drainTime {
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), s.Close())
		case <-ticker.C:
		}
		if s.onTheirWay() {
			busy = time.Now()
		}
	}
	return s.Close()
}

// onTheirWay tells whether records wait to be sent or acknowledged.
func (s *Server) onTheirWay() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sess := range s.sessions.byID {
		if sess.link.unfinished() {
			return true
		}
	}
	return false
}

// Close ends all sessions at once and returns when nothing of them is left.
// Requests that are being answered end; new ones are the decoy's.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	var all []*Session
	for _, sess := range s.sessions.byID {
		all = append(all, sess)
	}
	s.mu.Unlock()
	for _, sess := range all {
		sess.end(wire.CloseDone)
		sess.forget()
	}
	s.cancel()
	s.wg.Wait()
	s.admission.close()
	return nil
}
