package carrier

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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

	// maxSessions bounds all sessions. A new one beyond it is not opened.
	maxSessions = 1 << 16

	// maxMemory is how many bytes all sessions of a server may hold for repair
	// and for ordering. When more is held, the session that holds most of those
	// that have not moved for stalledAfter is ended.
	maxMemory    = 1 << 30
	stalledAfter = 10 * time.Second

	// firstStream is how long at least, and one and a half times of it how long
	// at most, the answer to a first message stays open for what the server's
	// side says first, which saves it a round trip, unless the client asks for
	// another time. It is what a path that buffers costs a new session.
	firstStream = 60 * time.Millisecond

	// bodyPatience is how long a request's body may stand still.
	bodyPatience = 30 * time.Second

	// helloPatience is how long the first message of a session may take.
	helloPatience = 10 * time.Second

	// maxAnswerPad is what message 2 is padded by at most, in bytes: who sees
	// where it ends, because its repetition begins with the same bytes, finds no
	// length of ours.
	maxAnswerPad = 200

	// maxHold and maxAge bound what a client may ask for.
	maxHold = 2 * time.Minute
	maxAge  = 10 * time.Minute

	// minQuiet bounds how often a silent streamed answer says something.
	minQuiet = time.Second

	// farewellLife is how long a session that this side has ended still says so.
	farewellLife = 30 * time.Second

	janitorEvery = time.Second

	// drainTime is how long nothing must be on its way before a Shutdown: a
	// few of the engines' delays of acknowledgement.
	drainTime = 200 * time.Millisecond
)

// ServerConfig is what a Server needs.
type ServerConfig struct {
	Key handshake.PrivateKey

	// Decoy answers every request that is not a client's, and is called before
	// any of its body is read if that can be told from the head.
	Decoy http.Handler

	// Engines are the names of the engines that sessions may use.
	Engines []string

	// Serve is called in its own goroutine for each session and owns its Conn.
	// The session ends when Serve returns.
	Serve func(*Session)

	// ClientAddr tells who made a request, or the zero Addr.
	ClientAddr func(*http.Request) netip.Addr

	Log *slog.Logger // nil: nothing is logged
}

// Server is the server's side of many sessions. Safe for concurrent use.
type Server struct {
	cfg    ServerConfig
	log    *slog.Logger
	public handshake.PublicKey
	guard  *handshake.Guard
	limits limits
	memory atomic.Int64
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // Serve and the janitor

	mu          sync.Mutex
	sessions    map[handshake.ID]*Session // guarded by mu, like what follows
	unconfirmed int                       // of those that have an engine
	credit      credit                    // recall
	closed      bool

	opened, refused, expired atomic.Uint64
}

// limits are bounds of a Server's that tests lower.
type limits struct {
	unconfirmed int // maxUnconfirmed
	sessions    int // maxSessions
	memory      int64
}

// NewServer returns a Server. Its Close must be called.
func NewServer(cfg ServerConfig) *Server {
	return newServer(cfg, limits{maxUnconfirmed, maxSessions, maxMemory})
}

func newServer(cfg ServerConfig, most limits) *Server {
	s := &Server{
		cfg:      cfg,
		limits:   most,
		log:      cfg.Log,
		public:   cfg.Key.Public(),
		guard:    handshake.NewGuard(time.Now()),
		sessions: make(map[handshake.ID]*Session),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.janitor)
	return s
}

// Session is the server's side of one session. Safe for concurrent use.
type Session struct {
	server    *Server
	id        handshake.ID
	engine    string
	ephemeral [handshake.EphemeralSize]byte
	answer    []byte // message 2
	refused   bool   // the answer says no
	looks     appearance
	blur      *blur
	link      *link
	conn      *Conn
	turn      chan struct{} // held by the answer that may take what comes next
	gone      chan struct{} // closed when the session is forgotten

	mu        sync.Mutex
	confirmed bool // guarded by mu, like what follows
	started   bool // Serve was called
	seen      wire.Set
	client    netip.Addr
	requests  int // being answered
	lastSeen  time.Time
	ended     time.Time     // when either side ended it
	finishing bool          // the client did
	relieved  chan struct{} // closed when a stream makes the polls that wait superfluous; nil: none waits
	reason    uint64
	forgotten bool
}

// Conn is the engine's pipe.
func (s *Session) Conn() *Conn { return s.conn }

// Engine is the engine that the client has chosen.
func (s *Session) Engine() string { return s.engine }

// Name is a short name for the log. It tells nothing about the client.
func (s *Session) Name() string { return s.id.String()[:6] }

// Client is the address from which the client was heard last, or the zero Addr.
func (s *Session) Client() netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client
}

// Stats are counts since the start, except Sessions and Memory, which are now.
type Stats struct {
	Sessions int
	Memory   int64 // bytes
	Opened   uint64
	Refused  uint64 // for their engine or version
	Expired  uint64
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	n := len(s.sessions)
	s.mu.Unlock()
	return Stats{n, s.memory.Load(), s.opened.Load(), s.refused.Load(), s.expired.Load()}
}

// ServeHTTP answers clients' requests and leaves all others to the decoy.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		last := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		if id, err := handshake.ParseID(last, s.public); err == nil {
			if s.serve(w, r, id) {
				return
			}
		}
	}
	s.cfg.Decoy.ServeHTTP(w, r)
}

// serve answers a request for session id. It returns false, and has not
// answered, if the request does not show that a client made it.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, id handshake.ID) bool {
	s.mu.Lock()
	sess, closed := s.sessions[id], s.closed
	s.mu.Unlock()
	if closed {
		return false
	}
	control := http.NewResponseController(w)
	body := bufio.NewReaderSize(r.Body, 64) // enough to look at the beginning
	if sess == nil {
		control.SetReadDeadline(time.Now().Add(helloPatience)) //nolint:errcheck // in tests there is no connection
		sess, ask := s.hello(r, body, id)
		if sess == nil {
			return false
		}
		if ask.Stream == 0 || sess.refused {
			ask.Stream = firstStream + rand.N(firstStream/2)
		}
		sess.reply(r.Context(), w, sess.answer, 0, ask)
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

// hello opens a session if the body is its first message, and returns what that
// asks of the answer.
func (s *Server) hello(r *http.Request, body io.Reader, id handshake.ID) (sess *Session, ask wire.Head) {
	if r.ContentLength > handshake.MaxMessage1 {
		return nil, ask
	}
	msg, err := io.ReadAll(io.LimitReader(body, handshake.MaxMessage1+1))
	if err != nil || len(msg) < handshake.MinMessage1 {
		return nil, ask
	}
	responder, hello, err := handshake.Respond(s.cfg.Key, id, msg)
	if err != nil {
		s.log.Debug("not a first message for this server", "err", err)
		return nil, ask
	}
	now := time.Now()
	ephemeral := [handshake.EphemeralSize]byte(msg)
	if err := s.guard.Admit(now, hello.Time, ephemeral); err != nil {
		s.log.Debug("first message not admitted", "err", err)
		return nil, ask
	}
	answer := handshake.Answer{Status: handshake.Accepted, Version: handshake.Version}
	switch {
	case hello.Version != handshake.Version:
		answer.Status = handshake.UnknownVersion
	case !slices.Contains(s.cfg.Engines, hello.Engine):
		answer.Status, answer.Text = handshake.UnknownEngine, strings.Join(s.cfg.Engines, ",")
	}
	msg2, keys, err := responder.Answer(answer, rand.IntN(maxAnswerPad))
	if err != nil {
		s.log.Error("no answer to a first message", "err", err)
		return nil, ask
	}
	l := newLink(&s.memory)
	l.send, l.receive = keys.Send, keys.Receive
	if ask.Parse(hello.Ask) != nil { // or nothing is asked
		ask = wire.Head{}
	}
	sess = &Session{
		server:    s,
		id:        id,
		engine:    hello.Engine,
		ephemeral: ephemeral,
		answer:    msg2,
		refused:   answer.Status != handshake.Accepted,
		looks:     newAppearance(),
		blur:      newBlur(),
		link:      l,
		conn:      newConn(l, Addr(id.String()[:6]), hello.Binding),
		turn:      make(chan struct{}, 1),
		gone:      make(chan struct{}),
		lastSeen:  now,
		client:    s.clientAddr(r), // before an engine can accept a stream
	}
	if sess.refused {
		s.refused.Add(1)
	} else {
		l.receivedHello(hello.Datagrams)
	}
	s.mu.Lock()
	if s.closed || s.sessions[id] != nil || len(s.sessions) >= s.limits.sessions {
		s.mu.Unlock()
		l.drop()
		return nil, ask
	}
	s.sessions[id] = sess
	start := !sess.refused && s.unconfirmed < s.limits.unconfirmed
	if start {
		s.credit.lend(l, &ask) // recall
		s.unconfirmed++
		sess.started = true
		s.wg.Go(sess.run)
	}
	s.mu.Unlock()
	return sess, ask
}

// run hands the session to Serve and ends it afterwards.
func (s *Session) run() {
	s.server.opened.Add(1)
	s.server.cfg.Serve(s)
	s.end(wire.CloseDone)
	s.mu.Lock()
	finishing := s.finishing
	s.mu.Unlock()
	if finishing {
		s.forget()
	}
}

// confirm is called when something under the session's key has come.
func (s *Session) confirm() {
	s.mu.Lock()
	first := !s.confirmed
	s.confirmed = true
	s.mu.Unlock()
	if !first || s.refused {
		return
	}
	v := s.server
	v.mu.Lock()
	defer v.mu.Unlock()
	if s.started {
		v.settle(s)
	} else if !v.closed && v.sessions[s.id] == s {
		s.started = true
		v.wg.Go(s.run)
	}
}

// settle counts a session no more among those that are unconfirmed and have an
// engine. mu is held.
func (s *Server) settle(sess *Session) {
	s.unconfirmed--
	s.credit.settle(sess.link) // recall
}

// note takes note of a request.
func (s *Session) note(from netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastSeen = time.Now()
	if from.IsValid() {
		s.client = from
	}
}

// busy counts requests that are being answered. That it is the client who asks
// is not known yet.
func (s *Session) busy(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests += n
}

// serve answers a request of an open session.
func (s *Session) serve(w http.ResponseWriter, r *http.Request, control *http.ResponseController, body *bufio.Reader) bool {
	s.busy(1)
	defer s.busy(-1)
	extend := func() {
		control.SetReadDeadline(time.Now().Add(bodyPatience)) //nolint:errcheck // in tests there is no connection
	}
	extend()
	s.mu.Lock()
	confirmed := s.confirmed
	s.mu.Unlock()
	if !confirmed {
		begin, _ := body.Peek(handshake.EphemeralSize)
		if string(begin) == string(s.ephemeral[:]) {
			// The first message again. That it is the same one needs no proof:
			// the answer is of use only to who made it.
			if _, err := io.Copy(io.Discard, io.LimitReader(body, handshake.MaxMessage1)); err != nil {
				return false
			}
			s.note(s.server.clientAddr(r))
			s.reply(r.Context(), w, s.answer, 0, wire.Head{Limit: maxAnswer})
			return true
		}
	}
	if s.refused {
		return false
	}
	head, ours := s.takeIn(body, extend)
	if !ours {
		return false
	}
	control.SetReadDeadline(time.Time{}) //nolint:errcheck // likewise
	s.note(s.server.clientAddr(r))
	s.mu.Lock()
	repeated := !s.seen.Add(head.Exchange)
	s.mu.Unlock()
	if repeated {
		head.Hold, head.Stream = 0, 0
		head.Limit = headRoom
	}
	s.reply(r.Context(), w, nil, head.Exchange, head)
	s.note(netip.Addr{}) // it lived while it was answered
	return true
}

// takeIn takes in a request's body and returns its first head. ours is false
// if the body does not begin with a head of this session.
func (s *Session) takeIn(body io.Reader, extend func()) (first wire.Head, ours bool) {
	buf := newBuffer()
	defer func() { buf.release() }()
	closing, end := false, uint64(0)
	defer func() {
		if closing {
			s.finish(end)
		}
	}()
	var head wire.Head
	for {
		u, err := s.link.receive.Next(body, buf.raw[:])
		if err != nil {
			if err != io.EOF && ours {
				s.server.log.Debug("request cut short", "session", s.Name(), "err", err)
			}
			return first, ours
		}
		extend()
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
		if err := head.Parse(u.Payload); err != nil {
			s.server.log.Debug("malformed head", "session", s.Name(), "err", err)
			return first, ours
		}
		if !ours {
			ours = true
			s.confirm()
			first = head
			first.Acks, first.Ended = wire.Set{}, wire.Set{}
		}
		s.link.opened(u.Number, &head, true)
		if head.Close != 0 { // for good, whatever other head has overtaken this one
			closing, end = true, head.Sent
		}
	}
}

// reply answers exchange e as the request's head asks, with prefix before
// everything else.
func (s *Session) reply(ctx context.Context, w http.ResponseWriter, prefix []byte, e uint64, ask wire.Head) {
	header := w.Header()
	header.Set("Content-Type", s.looks.contentType)
	header.Set("Cache-Control", s.looks.cacheControl)
	header.Set("X-Accel-Buffering", "no")
	limit := ask.Limit
	if limit == 0 {
		limit = maxAnswer
	}
	limit -= headRoom
	if ask.Stream > 0 {
		if limit >= wire.MaxUnit { // no probe
			s.relieve()
		}
		s.stream(ctx, w, prefix, e, min(ask.Stream, maxAge), max(ask.Quiet, minQuiet), limit)
		return
	}
	in := lanes{polls: maxAnswers / max(limit, minBody)} // as the client divides it
	records := s.await(ctx, e, limit, in, min(ask.Hold, maxHold), s.relief())
	size := len(prefix) + sizeOf(records)
	head := s.link.head(e, s.fields(), s.blur.pad(size))
	header.Set("Content-Length", strconv.Itoa(size+len(head)))
	// An answer that cannot be written is an exchange that has failed: the
	// client reports it, and what was in it is repaired.
	w.Write(prefix) //nolint:errcheck
	w.Write(head)   //nolint:errcheck
	s.write(w, e, records)
}

// write writes records as exchange e's last ones so far.
func (s *Session) write(w io.Writer, e uint64, records []*sentRecord) (err error) {
	for _, r := range records {
		if err == nil {
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
	h.Close = s.reason
	return h
}

// await waits at most hold for records for exchange e. Of several answers that
// wait only one, whose turn it is, takes what comes; so each carries as much
// as there is. It waits no longer when relieved is closed.
func (s *Session) await(ctx context.Context, e uint64, limit int, in lanes, hold time.Duration, relieved <-chan struct{}) []*sentRecord {
	if hold <= 0 {
		return s.link.take(e, limit, in)
	}
	until := time.Now().Add(hold)
	timer := time.NewTimer(hold)
	defer timer.Stop()
	turn := s.turn
	if limit < wire.MaxUnit {
		turn = nil // this one takes nothing: it must not keep others from it
	}
	select {
	case turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-timer.C:
		return nil
	case <-relieved:
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
			signal(s.link.wake) // for whose turn it is then
			return nil
		}
		d := s.link.demand(time.Now(), in)
		if d.due == 0 {
			return s.link.take(e, limit, in)
		}
		if d.room {
			return nil
		}
		wait := time.Until(until)
		if wait <= 0 {
			return nil
		}
		if d.due > 0 {
			wait = min(wait, d.due)
		}
		timer.Reset(wait)
		select {
		case <-s.link.wake:
		case <-timer.C:
		case <-relieved:
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

// stream answers exchange e bit by bit, with prefix before everything else.
func (s *Session) stream(ctx context.Context, w http.ResponseWriter, prefix []byte, e uint64, age, quiet time.Duration, limit int) {
	control := http.NewResponseController(w)
	end := time.Now().Add(age)
	say := func(records []*sentRecord) error {
		size := len(prefix) + sizeOf(records)
		head := s.link.head(e, s.fields(), s.blur.pad(size))
		limit -= size + len(head)
		_, err := w.Write(slices.Concat(prefix, head))
		prefix = nil
		if e := s.write(w, e, records); err == nil {
			err = e
		}
		if err == nil {
			err = control.Flush()
		}
		return err
	}
	if say(nil) != nil { // the client sees at once whether answers arrive as they are written
		return
	}
	// A client that leaves no room for a record wants to see heads.
	room := limit >= wire.MaxUnit
	for !room || limit >= wire.MaxUnit {
		left := time.Until(end)
		if left <= 0 {
			return
		}
		records := s.await(ctx, e, limit, lanes{}, min(left, below(quiet, quiet/4)), nil)
		if ctx.Err() != nil {
			for _, r := range records {
				r.buf.release()
			}
			return
		}
		if len(records) == 0 && s.link.isUnheard(e) {
			return
		}
		if say(records) != nil || isClosed(s.link.closed) || isClosed(s.gone) {
			return
		}
	}
}

// end ends the session from this side: it still answers for a while, so that
// the client learns of it.
func (s *Session) end(reason uint64) {
	s.mu.Lock()
	if s.ended.IsZero() {
		s.ended, s.reason = time.Now(), reason
	}
	s.mu.Unlock()
	s.link.close()
}

// finish says that the client has ended the session and sends no record from
// number end on: the engine reads those before it, and the session is forgotten
// when it is done with that.
func (s *Session) finish(end uint64) {
	s.mu.Lock()
	if s.ended.IsZero() {
		s.ended, s.reason = time.Now(), wire.CloseDone
	}
	s.finishing = true
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
	if v.sessions[s.id] == s {
		delete(v.sessions, s.id)
	}
	s.mu.Lock()
	first := !s.forgotten
	if first {
		s.forgotten = true
		if s.started && !s.confirmed {
			v.settle(s)
			s.confirmed = true // counted
		}
		close(s.gone)
	}
	s.mu.Unlock()
	v.mu.Unlock()
	s.link.drop()
}

// janitor forgets sessions whose time has come and keeps the memory in bounds.
func (s *Server) janitor() {
	ticker := time.NewTicker(janitorEvery)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
		}
		s.sweep(time.Now())
	}
}

func (s *Server) sweep(now time.Time) {
	s.mu.Lock()
	var old []*Session
	var worst *Session
	for _, sess := range s.sessions {
		if sess.isOld(now) {
			old = append(old, sess)
		} else if sess.link.stalled(now) && (worst == nil || sess.link.held.own.Load() > worst.link.held.own.Load()) {
			worst = sess
		}
	}
	s.mu.Unlock()
	for _, sess := range old {
		sess.mu.Lock()
		if sess.ended.IsZero() {
			s.expired.Add(1)
		}
		sess.mu.Unlock()
		sess.forget()
	}
	if s.memory.Load() > s.limits.memory && worst != nil {
		s.log.Warn("too much memory in use: ending the session that holds most and does not move",
			"session", worst.Name(), "bytes", worst.link.held.own.Load())
		worst.end(wire.CloseRoom)
		worst.link.drop()
	}
}

// isOld tells whether the session's time has come.
func (s *Session) isOld(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.ended.IsZero() && now.Sub(s.ended) > farewellLife:
		return true
	case s.requests > 0:
		return false
	case !s.confirmed:
		return now.Sub(s.lastSeen) > unconfirmedLife
	}
	return now.Sub(s.lastSeen) > Lifetime
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
	for _, sess := range s.sessions {
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
	for _, sess := range s.sessions {
		all = append(all, sess)
	}
	s.mu.Unlock()
	for _, sess := range all {
		sess.end(wire.CloseDone)
		sess.forget()
	}
	s.cancel()
	s.wg.Wait()
	return nil
}
