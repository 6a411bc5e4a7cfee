package carrier

import (
	"cmp"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"turbotunnel/common/wire"
)

const (
	// defaultMemory is how many bytes all sessions of a server may hold, unless its
	// operator says otherwise.
	defaultMemory = 1 << 30

	// shareOfMemory is the share of that which one session may hold. The most that
	// an honest one needs is that of a session at full speed, a dozen of whose
	// streams nobody reads at the server: unread 260 MB (engine/internal/mux), then
	// what its engine (24 MB) and the link (38 MB) receive beyond that, and what
	// both have in flight (28 MB and 24 MB), 374 MB of 403.
	shareOfMemory = 3.0 / 8

	// guardPart of what all sessions may hold, one in so many, may be spent on
	// remembering first messages.
	guardPart = 8

	// sessionCost is what a session takes that holds nothing, in bytes: its tables and
	// what Go's heap loses (38 000 that nobody confirmed took 250 MB). runCost is what
	// it takes besides when its engine runs: the stack of a goroutine. Engines count
	// what they take.
	sessionCost = 6 << 10
	runCost     = 2 << 10

	// requestCost is what a request takes that is being answered, in bytes: the
	// goroutines, buffers and structures of net/http.
	requestCost = 16 << 10

	// relief is the share of the limit that is freed when it is passed, so that the
	// next byte does not pass it again.
	relief = 1.0 / 32

	// muchOf is the part of the limit, one in so many, from which on a client holds
	// much: 4 MB of the default, what a session takes whose path is not a fast one.
	// It is leastMuch at least, in bytes: what one takes that is at rest, 118 KB with
	// its engine, and some requests.
	muchOf    = 256
	leastMuch = 256 << 10

	// warnEvery is how often at most the log says one thing again.
	warnEvery = time.Minute
)

// A budget is what a Server does about sessions that hold too much. Safe for
// concurrent use.
type budget struct {
	held  account       // of all sessions
	share int64         // of one session
	over  chan struct{} // holds a token for the janitor when there is something to do

	mu     sync.Mutex // nothing is locked while it is held
	greedy []*Session // that have passed their share; guarded by mu
}

func newBudget(limit int64) *budget {
	r := &budget{share: int64(shareOfMemory * float64(limit)), over: make(chan struct{}, 1)}
	r.held.limit, r.held.passed = limit, func() { signal(r.over) }
	return r
}

// admit has what a new session holds counted, and the session ended when that is
// more than its share.
func (r *budget) admit(s *Session) {
	s.link.strict, s.link.in.delay = true, 0
	s.link.held.limit = r.share
	s.link.held.passed = func() {
		if s.greedy.CompareAndSwap(false, true) {
			r.mu.Lock()
			r.greedy = append(r.greedy, s)
			r.mu.Unlock()
			signal(r.over)
		}
	}
}

// takeGreedy returns the sessions that have passed their share since it was called last.
func (r *budget) takeGreedy() []*Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	greedy := r.greedy
	r.greedy = nil
	return greedy
}

// makeRoom ends the sessions that hold more than their share, and, while all hold
// more than the limit, those that hold most, whatever they do.
func (s *Server) makeRoom() {
	for _, sess := range s.budget.takeGreedy() {
		s.endForRoom(sess)
	}
	if s.budget.held.bytes() <= s.budget.held.limit {
		return
	}
	enough := int64((1 - relief) * float64(s.budget.held.limit))
	for _, sess := range s.byMemory() {
		if s.budget.held.bytes() <= enough {
			return
		}
		s.endForRoom(sess)
	}
}

// byMemory returns all sessions, those first that shall end first when there is no
// room: of whoever holds most, what holds most. A client is an address if that is
// known, and a session if not. Where nobody holds much there are too many, and they
// go as from a full table: those of which least is lost, and of them those that
// were heard last the longest ago. Else a crowd of idle sessions would end the one
// that works, because it holds a little more than they.
func (s *Server) byMemory() []*Session {
	type holder struct {
		session *Session
		bytes   int64 // that the session holds
		client  netip.Prefix
		weight  int64 // what its client holds, without those of its sessions that go before; 0: little
		rank    rank
		heard   time.Time
	}
	s.mu.Lock()
	all := make([]holder, 0, len(s.sessions.byID))
	for _, sess := range s.sessions.byID {
		all = append(all, holder{session: sess, bytes: sess.link.held.bytes() + sessionCost, rank: sess.place.rank})
	}
	s.mu.Unlock()
	clients := make(map[netip.Prefix]int64)
	for i := range all {
		h := &all[i]
		h.client, h.heard = h.session.heard()
		clients[h.client] += h.bytes
	}
	slices.SortFunc(all, func(a, b holder) int { return cmp.Compare(b.bytes, a.bytes) })
	for i := range all {
		h := &all[i]
		h.weight = h.bytes
		if h.client.IsValid() {
			h.weight = clients[h.client]
			clients[h.client] -= h.bytes
		}
		if h.weight < max(s.budget.held.limit/muchOf, leastMuch) {
			h.weight = 0
		}
	}
	slices.SortStableFunc(all, func(a, b holder) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.rank, b.rank), a.heard.Compare(b.heard))
	})
	sorted := make([]*Session, len(all))
	for i, h := range all {
		sorted[i] = h.session
	}
	return sorted
}

// neighbours are the addresses that count as one client: of IPv6 a /64, which is
// what one customer has at least.
func neighbours(a netip.Addr) netip.Prefix {
	if !a.IsValid() {
		return netip.Prefix{}
	}
	bits := a.BitLen()
	if a.Is6() && !a.Is4In6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits) // no error: there are so many bits
	return p
}

// endForRoom ends a session that holds too much. Its client hears why for a while,
// unless there is no room even for that. From now on its account counts nothing, so
// that no request of it may last.
func (s *Server) endForRoom(sess *Session) {
	if sess.isEnded() {
		sess.forget()
		return
	}
	s.crowded.Add(1)
	s.seldom.warn(s.log, "sessions hold too much memory: ending those that hold most",
		"session", sess.Name(), "bytes", sess.link.held.bytes(), "all", s.budget.held.bytes())
	sess.end(wire.CloseRoom)
	sess.link.drop()
	sess.answers.hurry()
}

// seldom warns of each thing once in a while. The zero value has warned of
// nothing. Safe for concurrent use.
type seldom struct {
	mu   sync.Mutex
	last map[string]time.Time // by what was said; guarded by mu
}

func (s *seldom) warn(log *slog.Logger, what string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if last, ok := s.last[what]; ok && now.Sub(last) < warnEvery {
		return
	}
	if s.last == nil {
		s.last = make(map[string]time.Time)
	}
	s.last[what] = now
	log.Warn(what, args...)
}
