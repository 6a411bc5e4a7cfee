package carrier

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

const (
	// firstStream is how long at least, and one and a half times of it how long
	// at most, the answer to a first message stays open for what the server's
	// side says first, which saves it a round trip, unless the client asks for
	// another time. It is what a path that buffers costs a new session.
	firstStream = 60 * time.Millisecond

	// maxHold and maxAge bound what a client may ask for: how long an answer may wait
	// or be silent, and stay open: for less than a session lives of which only that is
	// heard. Clients ask for up to half of that.
	maxHold = 2 * time.Minute
	maxAge  = 4 * time.Minute

	// takenAtOnce is how long an answer may take to write that shows nothing: the
	// operating system may have taken it, and nobody reads.
	takenAtOnce = time.Second

	// minQuiet bounds how often a silent streamed answer says something.
	minQuiet = time.Second

	// maxHeads is how many heads the body of a request may have. A client makes one.
	// That of a streamed upload may have feedHeads, and one more in each feedPace:
	// half as long as a client takes for one (feedPause).
	maxHeads  = 4
	feedHeads = 128
	feedPace  = 4 * time.Millisecond

	// minTell bounds how soon what comes in a streamed upload is told, and maxTell how
	// late a client may ask for.
	minTell = time.Millisecond
	maxTell = time.Second

	// farewellLife is how long a session that this side has ended still says so.
	farewellLife = 30 * time.Second
)

// Session is the server's side of one session. Safe for concurrent use.
type Session struct {
	server    *Server // constant, like what follows up to gone
	id        handshake.ID
	name      string
	engine    string
	ephemeral [handshake.EphemeralSize]byte
	answer    []byte // message 2
	refused   bool   // the answer says no
	looks     appearance
	blur      *blur
	link      *link
	conn      *Conn
	taker     chan struct{} // holds a token of the one answer that may take what comes next
	answers   *answers
	gone      chan struct{} // closed when the session is forgotten
	greedy    atomic.Bool   // it has passed its share; see budget

	started bool // Serve was called; guarded by the server's mu, like place
	place   place

	mu        sync.Mutex
	term      term     // guarded by mu, like what follows
	seen      wire.Set // exchanges of which a request has come
	client    netip.Addr
	forgotten bool
	relieved  chan struct{} // closed when a stream makes the polls that wait superfluous; nil: none waits
}

// A term says when a session's time has come.
//
//	unconfirmed   after unconfirmedLife without a request
//	confirmed     after Lifetime without one, or when the last answer is over
//	ended         after farewellLife, if not sooner
type term struct {
	confirmed bool // something under the session's key has come
	lastSeen  time.Time
	ended     time.Time // when either side ended it; zero: neither has
	reason    uint64    // why, as heads say it
	finishing bool      // the client did
}

// end notes that either side has ended the session. The first reason stays.
func (t *term) end(now time.Time, reason uint64) {
	if t.ended.IsZero() {
		t.ended, t.reason = now, reason
	}
}

// isOver tells whether the session's time has come. answering says that answers are
// being written: a client that takes one lives.
func (t *term) isOver(now time.Time, answering bool) bool {
	silence := now.Sub(t.lastSeen)
	switch {
	case !t.ended.IsZero() && now.Sub(t.ended) > farewellLife:
		return true
	case !t.confirmed:
		return silence > unconfirmedLife
	}
	return silence > Lifetime && !answering
}

// Conn is the engine's pipe.
func (s *Session) Conn() *Conn { return s.conn }

// Engine is the engine that the client has chosen.
func (s *Session) Engine() string { return s.engine }

// Name is a number for the log. It tells nothing about the client, and nothing of
// the ID: whoever reads a log shall find no part of a path in it.
func (s *Session) Name() string { return s.name }

// Client is the address from which the client was heard last, or the zero Addr.
func (s *Session) Client() netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client
}

// heard tells who the client was when it was heard last, and when that was.
func (s *Session) heard() (netip.Prefix, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return neighbours(s.client), s.term.lastSeen
}

// run hands the session to Serve and ends it afterwards.
func (s *Session) run() {
	s.server.opened.Add(1)
	s.server.cfg.Serve(s)
	s.end(wire.CloseDone)
	s.mu.Lock()
	finishing := s.term.finishing
	s.mu.Unlock()
	if finishing {
		s.forget()
	}
}

// confirm is called when something under the session's key has come.
func (s *Session) confirm() {
	s.mu.Lock()
	first := !s.term.confirmed
	s.term.confirmed = true
	s.mu.Unlock()
	if !first || s.refused {
		return
	}
	v := s.server
	v.mu.Lock()
	defer v.mu.Unlock()
	s.place.confirmed = true
	v.sessions.changed(s)
	if s.started {
		v.settle(s)
	} else if !v.closed && v.sessions.byID[s.id] == s {
		v.run(s)
	}
}

// note takes note of a request.
func (s *Session) note(from netip.Addr) {
	s.mu.Lock()
	s.term.lastSeen = time.Now()
	was := neighbours(s.client)
	if from.IsValid() {
		s.client = from
	}
	is := neighbours(s.client)
	s.mu.Unlock()
	if is != was {
		s.server.mu.Lock()
		defer s.server.mu.Unlock()
		s.server.sessions.moved(s, is)
	}
}

// serve answers a request of an open session.
func (s *Session) serve(w http.ResponseWriter, r *http.Request, control *http.ResponseController, body *opening) bool {
	a := s.answers.begin(control)
	defer a.done()
	s.mu.Lock()
	confirmed := s.term.confirmed
	s.mu.Unlock()
	if !confirmed {
		if body.beginsWith(s.ephemeral[:]) {
			// The first message again. That it is the same one needs no proof:
			// the answer is of use only to who made it.
			if body.whole() == nil {
				return false
			}
			body.freed(control)
			s.note(s.server.clientAddr(r))
			s.reply(r.Context(), w, a, s.answer, 0, wire.Head{Limit: maxAnswer}) //nolint:errcheck // it comes again
			return true
		}
	}
	if s.refused {
		return false
	}
	told := false
	head, ours := s.takeIn(body, func() {
		a.mayRead()
		if !told {
			told = true
			s.server.known(r)
		}
	}, func() { s.note(s.server.clientAddr(r)) })
	if !ours {
		return false
	}
	body.freed(control)
	s.mu.Lock()
	room := cap(s.seen.Spans)
	repeated := !s.seen.Add(head.Exchange)
	s.link.held.addSpans(&s.seen, room)
	s.mu.Unlock()
	if repeated {
		head.Hold, head.Stream = 0, 0
		head.Limit = 1 // no record
	}
	s.reply(r.Context(), w, a, nil, head.Exchange, head) //nolint:errcheck // it comes again
	return true
}

// takeIn takes in a request's body and returns its first head. ours is false
// if the body does not begin with a head of this session. opened is called for
// each unit under the session's key, and known when it is known that the client has
// made the request, and when all of it has come.
func (s *Session) takeIn(body *opening, opened, known func()) (first wire.Head, ours bool) {
	buf := newBuffer()
	defer func() {
		buf.release()
		if ours {
			known()
			s.link.held.add(-unitCost)
		}
		if first.Tell > 0 {
			s.link.feed(-1, first.Tell)
		}
	}()
	closing, end := false, uint64(0)
	defer func() {
		if closing {
			s.finish(end)
		}
	}()
	var head wire.Head
	heads, begun := 0, time.Now()
	for {
		u, err := s.link.receive.Next(body, buf.raw[:])
		if err != nil {
			if ours && errors.Is(err, os.ErrDeadlineExceeded) {
				s.server.bodies.Add(1)
			}
			if err != io.EOF && ours {
				s.server.log.Debug("request cut short", "session", s.Name(), "err", err)
			}
			return first, ours
		}
		opened()
		if u.Kind == wire.RecordKind {
			if !ours {
				return first, false
			}
			s.blur.moved(len(u.Payload))
			buf.b = u.Payload
			if s.link.received(u.Number, buf) {
				buf = newBuffer()
			}
			continue
		}
		heads++
		if heads > maxHeads && (first.Tell == 0 || heads > feedHeads+int(time.Since(begun)/feedPace)) {
			s.server.log.Debug("too many heads in a request", "session", s.Name())
			return first, ours
		}
		if err := head.Parse(u.Payload); err != nil {
			s.server.log.Debug("malformed head", "session", s.Name(), "err", err)
			return first, ours
		}
		if !ours {
			ours = true
			body.admit()
			s.link.held.add(unitCost) // of buf
			s.confirm()
			first = head
			first.Acks, first.Ended = wire.Set{}, wire.Set{}
			if first.Tell > 0 {
				known()
				first.Tell = min(max(first.Tell, minTell), maxTell)
				s.link.feed(1, first.Tell)
			}
		}
		s.link.opened(u.Number, &head, true)
		if first.Tell > 0 {
			s.link.fed(u.Number)
		}
		if head.Close != 0 { // for good, whatever other head has overtaken this one
			closing, end = true, head.Sent
		}
	}
}

// reply answers exchange e as the request's head asks, with prefix before
// everything else. An error says that the client took nothing for a while or is gone.
func (s *Session) reply(ctx context.Context, w http.ResponseWriter, a *answering, prefix []byte, e uint64, ask wire.Head) (err error) {
	defer func() {
		if err != nil && a.isLate() {
			s.server.answers.Add(1)
		}
	}()
	header := w.Header()
	header.Set("Content-Type", s.looks.contentType)
	header.Set("Cache-Control", s.looks.cacheControl)
	header.Set("X-Accel-Buffering", "no")
	limit := ask.Limit
	if limit == 0 {
		limit = maxAnswer
	}
	a.unit = unitOf(&ask)
	most := limit
	limit = roomFor(limit, a.unit)
	if ask.Stream > 0 || ask.Hold > 0 {
		a.waits()
	}
	if ask.Stream > 0 {
		if limit >= a.unit { // no probe
			s.relieve()
		}
		a.wait = min(max(ask.Quiet, minQuiet), maxHold)
		return s.stream(ctx, w, a, prefix, e, min(ask.Stream, maxAge), limit)
	}
	in := lanes{polls: maxAnswers / max(limit, minBody)} // as the client divides it
	records := s.await(ctx, a, e, limit, in, min(ask.Hold, maxHold), s.relief())
	size := len(prefix) + sizeOf(records)
	head := s.link.head(e, s.fields(), s.padWithin(size, most, a.unit))
	header.Set("Content-Length", strconv.Itoa(size+len(head)))
	// An answer that cannot be written is an exchange that has failed: the
	// client reports it, and what was in it is repaired.
	a.waited()
	a.mayWrite()
	began := time.Now()
	w.Write(prefix) //nolint:errcheck
	w.Write(head)   //nolint:errcheck
	err = s.write(w, a, e, records)
	if err == nil && time.Since(began) > takenAtOnce {
		s.note(netip.Addr{}) // on a slow path there may be no request beside it
	}
	return err
}

// padWithin is the padding for an answer of size bytes besides its head. Where units
// are small, it keeps to the limit.
func (s *Session) padWithin(size, limit, unit int) int {
	pad := s.blur.pad(size)
	if unit < wire.MaxUnit {
		pad = min(pad, max(0, limit*3/4-size))
	}
	return pad
}

// write writes records as exchange e's last ones so far.
func (s *Session) write(w io.Writer, a *answering, e uint64, records []*sentRecord) (err error) {
	for _, r := range records {
		if err == nil {
			a.mayWrite()
			_, err = w.Write(r.unit(s.link.send))
		}
		r.buf.release()
	}
	if len(records) > 0 {
		s.link.wrote(e)
	}
	return err
}

// fields are the values of a head that the session knows.
func (s *Session) fields() wire.Head {
	var h wire.Head
	s.link.stampFound(&h) // recall
	s.mu.Lock()
	defer s.mu.Unlock()
	h.Close = s.term.reason
	return h
}

// await waits at most hold for records for exchange e. Of several answers that
// wait only one, the taker, takes what comes; so each carries as much as there
// is. It waits no longer when relieved is closed.
func (s *Session) await(ctx context.Context, a *answering, e uint64, limit int, in lanes, hold time.Duration, relieved <-chan struct{}) []*sentRecord {
	if hold <= 0 {
		return s.link.take(e, limit, in)
	}
	until := time.Now().Add(hold)
	timer := time.NewTimer(hold)
	defer timer.Stop()
	taker := s.taker
	if limit < a.unit {
		taker = nil // this one takes nothing: it must not keep others from it
	}
	select {
	case taker <- struct{}{}:
		defer func() { <-s.taker }()
	case <-timer.C:
		return nil
	case <-relieved:
		return nil
	case <-a.displaced:
		return nil
	case <-ctx.Done():
		return nil
	case <-s.link.closed:
		return s.link.take(e, limit, in)
	case <-s.gone:
		return nil
	}
	for {
		if s.link.isUnheard(e) {
			signal(s.link.wake) // for the next taker
			return nil
		}
		d := s.link.demand(time.Now(), in)
		if d.due == 0 {
			return s.link.take(e, limit, in)
		}
		if d.room || d.news == 0 {
			return nil
		}
		wait := time.Until(until)
		if wait <= 0 {
			return nil
		}
		if d.due > 0 {
			wait = min(wait, d.due)
		}
		if d.news > 0 {
			wait = min(wait, d.news)
		}
		timer.Reset(wait)
		select {
		case <-s.link.wake:
		case <-timer.C:
		case <-relieved:
			return nil
		case <-a.displaced:
			return nil
		case <-ctx.Done():
			return nil
		case <-s.link.closed:
			return s.link.take(e, limit, in)
		case <-s.gone:
			return nil
		}
	}
}

// relief is closed when the polls that wait now need to wait no longer.
func (s *Session) relief() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relieved == nil {
		s.relieved = make(chan struct{})
	}
	return s.relieved
}

// relieve answers the polls that wait: what comes goes into a stream.
func (s *Session) relieve() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relieved != nil {
		close(s.relieved)
		s.relieved = nil
	}
}

// stream answers exchange e bit by bit, with prefix before everything else. It is
// never silent for longer than a.wait.
func (s *Session) stream(ctx context.Context, w http.ResponseWriter, a *answering, prefix []byte, e uint64, age time.Duration, limit int) error {
	control := http.NewResponseController(w)
	end := time.Now().Add(age)
	say := func(records []*sentRecord) error {
		size := len(prefix) + sizeOf(records)
		head := s.link.head(e, s.fields(), s.blur.pad(size))
		limit -= size + len(head)
		a.mayWrite()
		_, err := w.Write(slices.Concat(prefix, head))
		prefix = nil
		if e := s.write(w, a, e, records); err == nil {
			err = e
		}
		if err == nil {
			err = control.Flush()
		}
		return err
	}
	if err := say(nil); err != nil { // the client sees at once whether answers arrive as they are written
		return err
	}
	// A client that leaves no room for a record wants to see heads.
	room := limit >= a.unit
	for !room || limit >= a.unit {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		records := s.await(ctx, a, e, limit, lanes{}, min(left, below(a.wait, a.wait/4)), nil)
		if ctx.Err() != nil {
			for _, r := range records {
				r.buf.release()
			}
			return nil
		}
		if len(records) == 0 && (s.link.isUnheard(e) || isClosed(a.displaced)) {
			return nil
		}
		if err := say(records); err != nil || isClosed(s.link.closed) || isClosed(s.gone) {
			return err
		}
	}
	return nil
}

// end ends the session from this side: it still answers for a while, so that
// the client learns of it.
func (s *Session) end(reason uint64) {
	s.mu.Lock()
	s.term.end(time.Now(), reason)
	s.mu.Unlock()
	s.link.close()
}

// isEnded tells whether either side has ended the session.
func (s *Session) isEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.term.ended.IsZero()
}

// finish says that the client has ended the session and sends no record from
// number end on: the engine reads those before it, and the session is forgotten
// when it is done with that.
func (s *Session) finish(end uint64) {
	s.mu.Lock()
	s.term.end(time.Now(), wire.CloseDone)
	s.term.finishing = true
	s.mu.Unlock()
	s.link.finish(end)
	s.server.mu.Lock()
	started := s.started
	s.server.mu.Unlock()
	if !started || isClosed(s.link.closed) {
		s.forget()
	}
}

// forget removes the session. What is in flight is dropped.
func (s *Session) forget() {
	v := s.server
	v.mu.Lock()
	v.remove(s)
	s.mu.Lock()
	first := !s.forgotten
	if first {
		s.forgotten = true
		if s.started && !s.term.confirmed {
			v.settle(s)
			s.term.confirmed = true // counted
		}
		close(s.gone)
	}
	s.mu.Unlock()
	v.mu.Unlock()
	s.link.drop()
	s.answers.hurry()
}

// isOld tells whether the session's time has come.
func (s *Session) isOld(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.term.isOver(now, s.answers.written() > 0)
}
