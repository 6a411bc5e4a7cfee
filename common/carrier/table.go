package carrier

import (
	"container/list"
	"net/netip"
	"time"

	"turbotunnel/common/handshake"
)

const (
	// maxSessions bounds all sessions. When there are so many, one that exists goes
	// for each new one.
	maxSessions = 1 << 16

	// youth is how long a session that nobody has confirmed is not the first to go:
	// longer than a client takes that has the answer. But of all sessions only one
	// in so many as youngShare may be young.
	youth      = 10 * time.Second
	youngShare = 4

	// largeShare is the share of all sessions, one in so many, above which a client
	// loses his own before those of others.
	largeShare = 64
)

// A rank is how much is lost with a session.
type rank int8

const (
	unconfirmed rank = iota // nothing under its keys has come
	idle                    // it has no stream
	active
	ranks // how many there are
)

// A table is the sessions of a server, and the order in which they go when it is
// full. What it does takes no longer when there are many. The Server's mu guards
// it.
//
// With a full table, anybody who has a bridge line could lock out everybody else,
// were newcomers refused: an attacker's session is as good as an honest one, but it
// costs more to keep confirmed, and with a stream, than to open.
type table struct {
	byID    map[handshake.ID]*Session
	limit   int                      // of sessions; constant
	all     queues                   // of all of them
	clients map[netip.Prefix]*queues // of each client whose address is known
	large   map[*queues]struct{}     // of those with more than their share: less than largeShare
}

// queues are sessions by rank, those first that have their rank for the longest.
type queues struct {
	of    netip.Prefix // zero: all clients
	lists [ranks]list.List
	n     int
}

// A place is where a session stands in a table. The Server's mu guards it.
type place struct {
	since     time.Time // when it was opened
	confirmed bool
	streams   int
	rank      rank
	client    *queues // nil: not known
	inAll     *list.Element
	inClient  *list.Element // nil: not known
}

func newTable(limit int) table {
	return table{
		byID:    make(map[handshake.ID]*Session),
		limit:   limit,
		clients: make(map[netip.Prefix]*queues),
		large:   make(map[*queues]struct{}),
	}
}

// add adds a new session of a client, whose address may be zero.
func (t *table) add(s *Session, client netip.Prefix, now time.Time) {
	t.byID[s.id] = s
	s.place = place{since: now}
	s.place.inAll = t.all.push(s)
	t.join(s, client)
}

// join files a session under a client.
func (t *table) join(s *Session, client netip.Prefix) {
	if !client.IsValid() {
		return
	}
	q := t.clients[client]
	if q == nil {
		q = &queues{of: client}
		t.clients[client] = q
	}
	s.place.client, s.place.inClient = q, q.push(s)
	if q.n > t.limit/largeShare {
		t.large[q] = struct{}{}
	}
}

// leave undoes join.
func (t *table) leave(s *Session) {
	q := s.place.client
	if q == nil {
		return
	}
	q.drop(s.place.rank, s.place.inClient)
	s.place.client, s.place.inClient = nil, nil
	if q.n <= t.limit/largeShare {
		delete(t.large, q)
	}
	if q.n == 0 {
		delete(t.clients, q.of)
	}
}

// remove removes a session and tells whether it was there.
func (t *table) remove(s *Session) bool {
	if t.byID[s.id] != s {
		return false
	}
	delete(t.byID, s.id)
	t.all.drop(s.place.rank, s.place.inAll)
	t.leave(s)
	return true
}

// moved says that the client was heard from another address.
func (t *table) moved(s *Session, client netip.Prefix) {
	if t.byID[s.id] == s && (s.place.client == nil || s.place.client.of != client) {
		t.leave(s)
		t.join(s, client)
	}
}

// changed says that it was confirmed, or that the number of its streams is another.
func (t *table) changed(s *Session) {
	p := &s.place
	rank := unconfirmed
	switch {
	case p.confirmed && p.streams > 0:
		rank = active
	case p.confirmed:
		rank = idle
	}
	if t.byID[s.id] != s || rank == p.rank {
		return
	}
	t.all.drop(p.rank, p.inAll)
	if p.client != nil {
		p.client.drop(p.rank, p.inClient)
	}
	p.rank = rank
	p.inAll = t.all.push(s)
	if p.client != nil {
		p.inClient = p.client.push(s)
	}
}

// isFull tells whether one has to go before another comes.
func (t *table) isFull() bool { return len(t.byID) >= t.limit }

// victim is the session that goes for a new one, if there is any: one of the client
// that has most if that is many, and of those the oldest unconfirmed one, then
// the one that has been without streams for the longest.
func (t *table) victim(now time.Time) *Session {
	from := &t.all
	for q := range t.large {
		if from == &t.all || q.n > from.n {
			from = q
		}
	}
	fresh := from.first(unconfirmed)
	young := fresh != nil && now.Sub(fresh.place.since) < youth && from.lists[unconfirmed].Len() <= from.n/youngShare
	if fresh != nil && !young {
		return fresh
	}
	for _, s := range []*Session{from.first(idle), fresh, from.first(active)} {
		if s != nil {
			return s
		}
	}
	return nil
}

// push files a session last among those of its rank.
func (q *queues) push(s *Session) *list.Element {
	q.n++
	return q.lists[s.place.rank].PushBack(s)
}

// drop takes out a session that push has filed.
func (q *queues) drop(r rank, e *list.Element) {
	q.n--
	q.lists[r].Remove(e)
}

// first is the session of a rank that goes first, or nil.
func (q *queues) first(r rank) *Session {
	if e := q.lists[r].Front(); e != nil {
		return e.Value.(*Session)
	}
	return nil
}

// admit gives a new session its place, if need be that of another, and has its
// engine started if there are not too many that nobody has confirmed. It tells
// whether there is a place.
func (s *Server) admit(sess *Session, start func()) bool {
	now := time.Now()
	var victim *Session
	s.mu.Lock()
	if s.closed || s.sessions.byID[sess.id] != nil {
		s.mu.Unlock()
		return false
	}
	if s.sessions.isFull() {
		if victim = s.sessions.victim(now); victim == nil {
			s.mu.Unlock()
			return false
		}
		s.remove(victim)
	}
	s.sessions.add(sess, neighbours(sess.Client()), now)
	s.budget.held.add(sessionCost)
	if !sess.refused && s.unconfirmed < s.limits.unconfirmed {
		start()
		s.unconfirmed++
		s.run(sess)
	}
	s.mu.Unlock()
	if victim != nil {
		victim.forget()
		s.seldom.warn(s.log, "there is no room for more sessions: for each new one, an old one goes that nobody has confirmed or that has no stream",
			"sessions", s.limits.sessions, "so far", s.evicted.Add(1))
	}
	return true
}

// run has a session's engine run. mu is held.
func (s *Server) run(sess *Session) {
	sess.started = true
	sess.link.held.add(runCost)
	s.wg.Go(sess.run)
}

// remove takes a session out of the table. mu is held.
func (s *Server) remove(sess *Session) {
	if s.sessions.remove(sess) {
		s.budget.held.add(-sessionCost)
	}
}

// Streams says that the session has so many streams more, or fewer: one that has any
// is the last to go when there are too many sessions.
func (s *Session) Streams(more int) {
	v := s.server
	v.mu.Lock()
	defer v.mu.Unlock()
	s.place.streams += more
	v.sessions.changed(s)
}
