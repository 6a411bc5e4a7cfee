package front

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// stagger is how long a front may take to connect before the next one is
	// tried beside it, or twice as long as it took the last time, up to
	// maxStagger (RFC 8305 section 8, Connection Attempt Delay, which is for TCP
	// alone).
	stagger    = 250 * time.Millisecond
	maxStagger = 2 * time.Second

	// minAside and maxAside are how long a front that failed is left alone
	// while others work: twice as long each time in a row, less a random half.
	minAside = time.Second
	maxAside = 5 * time.Minute

	// refusedAside is how long a front is left alone that says it will not
	// carry us.
	refusedAside = 10 * time.Minute

	// nobodyElse is the longest that a front is left alone when no other one
	// works: an outage of everything ends any moment.
	nobodyElse = 3 * time.Second

	// maxStrikes is how many exchanges in a row may fail on a front without a
	// sign that it is at fault. CDNs end connections and streams at will.
	maxStrikes = 3

	// foreignStrikes is how many answers may come from somebody else on a front
	// before it is left, with no more than foreignApart answers between two of
	// them.
	foreignStrikes = 2
	foreignApart   = 32
)

// ErrFrontingRefused: the CDN answered 421 (Misdirected Request, RFC 9110
// section 15.5.20), which is how one says that it does not let a request's Host
// differ from the name in TLS.
var ErrFrontingRefused = errors.New("this CDN refuses domain fronting (status 421): use another front, or none")

// A Set exchanges HTTP requests and responses with one server through several
// fronts. One of them carries all exchanges for as long as it works. When none
// does yet, or the one that did is not connected any more, fronts are connected
// side by side, each begun stagger after the one before it or when that one has
// failed, and the first to be ready carries.
//
// A front that fails is left: the exchange that showed it fails, unless nothing
// of its body was read, and the next one goes through another front. It is
// tried again, when one is wanted, after a time that grows.
//
// It is safe for concurrent use. It must be closed.
type Set struct {
	log     *slog.Logger
	members []*member
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup // races

	mu      sync.Mutex // guards what follows, and every member's
	closed  bool
	current *member // that carries, or did last; nil: none yet
	race    *race   // under way, or nil
}

// A member is a front and its health, which Set.mu guards.
type member struct {
	front  *Front
	number string // place among all: "2/3". Unlike a name, a log may show it to anybody.

	begun     time.Time     // of the last attempt to connect
	took      time.Duration // the last one that succeeded; 0: none yet
	failures  int           // in a row
	failedAt  time.Time
	aside     time.Time // until then it is left alone; zero: it works, as far as known
	asked     time.Time // until then it has asked to be left alone (Retry-After)
	err       error     // the last failure
	strikes   int
	struck    time.Time // the last one
	lastGood  time.Time
	answers   int // in all
	foreigns  int // in a row
	foreignAt int // the number of answers when the last one of these was reported
}

// A race connects fronts side by side.
type race struct {
	done   chan struct{} // closed when it is decided; then what follows is set
	winner *member
	err    error
}

// memberKey carries the member in the context of an exchange.
type memberKey struct{}

// NewSet checks the Configs, of which there must be one at least and which
// differ in nothing but their fronts, and returns a Set, which prefers those
// named first. It does not use the network yet. Errors are as New's. The log,
// which may be nil, says which front carries and why one was left, by its name
// and by its place in cfgs: "2/3" is the second of three.
func NewSet(cfgs []Config, log *slog.Logger) (*Set, error) {
	if len(cfgs) == 0 {
		return nil, errors.New("front: none given")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Set{log: log}
	for i, cfg := range cfgs {
		f, err := New(cfg)
		if err != nil {
			s.closeFronts()
			return nil, err
		}
		s.members = append(s.members, &member{front: f, number: fmt.Sprintf("%d/%d", i+1, len(cfgs))})
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Name is the domain of the front that carries, or did last.
func (s *Set) Name() string { return s.carrier().front.Name() }

// MaxInFlight is that of the front that carries, or did last.
func (s *Set) MaxInFlight() int { return s.carrier().front.MaxInFlight() }

func (s *Set) carrier() *member {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return s.members[0]
	}
	return s.current
}

// RoundTrip is Front.RoundTrip by the front that carries. When that cannot be
// reached and nothing of the request's body was read, others are tried. Every
// error is an *Error or holds one for each front; one that the CDN's answer 421
// caused matches ErrFrontingRefused.
//
// An answer that asks to stay away (Retry-After) while another front works
// comes without that header: the Set stays away from the front.
func (s *Set) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	var m *member // that has the request
	var begun time.Time
	tries := 0
	resp, err := lend(req.Body, func(body io.ReadCloser) (*http.Response, error) {
		if m == nil {
			tries++
			var err error
			if m, err = s.choose(ctx, tries > 1); err != nil {
				return nil, err
			}
			begun = time.Now()
		}
		return m.front.exchange(context.WithValue(ctx, memberKey{}, m), req, body)
	}, func(e *Error) bool {
		if m == nil || goesAgain(ctx, e) {
			return m != nil
		}
		s.failed(m, ctx, begun, e)
		m = nil
		return e.Unsent && tries < len(s.members) && ctx.Err() == nil && s.ctx.Err() == nil
	})
	if err != nil {
		return nil, err
	}
	if err := s.judge(m, resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// Foreign is to be told that resp, which RoundTrip returned, was not the
// server's answer.
func (s *Set) Foreign(resp *http.Response) {
	if resp.Request == nil {
		return
	}
	m, _ := resp.Request.Context().Value(memberKey{}).(*member)
	if m == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.answers-m.foreignAt > foreignApart {
		m.foreigns = 0
	}
	m.foreignAt = m.answers
	if m.foreigns++; m.foreigns >= foreignStrikes {
		m.foreigns = 0
		s.leaveLocked(m, errors.New("its answers are not the server's"), 0)
	}
}

// Close ends every connection, with the exchanges on it, and waits for them.
// Every call then fails with an error that matches net.ErrClosed. Closing twice
// is allowed.
func (s *Set) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.closeFronts()
	s.running.Wait()
	return nil
}

func (s *Set) closeFronts() {
	for _, m := range s.members {
		m.front.Close()
	}
}

// choose returns a front that is connected. It waits while fronts are being
// connected, or until ctx ends, and, unless again is set, for a front that is
// left alone for a moment.
func (s *Set) choose(ctx context.Context, again bool) (*member, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, closedError(s.members[0].front.Name())
		}
		now := time.Now()
		if m := s.current; m != nil && m.aside.IsZero() && m.front.pool.connected() {
			s.mu.Unlock()
			return m, nil
		}
		r := s.race
		if r == nil {
			if _, wait := s.nextLocked(now, nil); wait > 0 {
				err := s.downLocked()
				s.mu.Unlock()
				if again || wait > nobodyElse {
					return nil, err
				}
				timer := time.NewTimer(wait)
				select {
				case <-timer.C:
					continue
				case <-ctx.Done():
					timer.Stop()
					return nil, err
				case <-s.ctx.Done():
					timer.Stop()
					continue
				}
			}
			r = &race{done: make(chan struct{})}
			s.race = r
			s.running.Go(func() { s.run(r) })
		}
		s.mu.Unlock()
		select {
		case <-r.done:
			return r.winner, r.err
		case <-ctx.Done():
			return nil, s.carrier().front.pool.waitErr(ctx)
		}
	}
}

// nextLocked returns the member to try next, of those that are not busy, and
// how long it is to be left alone still. It returns nil if there is none.
func (s *Set) nextLocked(now time.Time, busy []*member) (next *member, wait time.Duration) {
	down := true // all have failed, or do not get anywhere
	for _, m := range s.members {
		if slices.Contains(busy, m) {
			down = down && (m.failures > 0 || now.Sub(m.begun) >= nobodyElse)
		} else {
			down = down && m.waitFor(now, false) > 0
		}
	}
	for _, m := range s.members {
		if slices.Contains(busy, m) {
			continue
		}
		w := m.waitFor(now, down)
		if c := cmp.Compare(w, wait); next == nil || c < 0 || c == 0 && s.betterLocked(m, next) {
			next, wait = m, w
		}
	}
	return next, wait
}

// waitFor is how long m is to be left alone. down says that this holds for all.
func (m *member) waitFor(now time.Time, down bool) time.Duration {
	until := m.aside
	if soon := m.failedAt.Add(nobodyElse); down && soon.Before(until) {
		until = soon
	}
	if m.asked.After(until) {
		until = m.asked
	}
	return max(0, until.Sub(now))
}

// betterLocked tells whether a is to be tried before b: the one that carried
// last, then the one that has failed less often, then the one that connected
// faster. Of two that are equal the one named first stays.
func (s *Set) betterLocked(a, b *member) bool {
	switch {
	case a.failures != b.failures:
		return a.failures < b.failures
	case b == s.current || a == s.current:
		return a == s.current
	}
	return a.took > 0 && b.took > 0 && a.took < b.took
}

// run connects fronts until one of them is ready or there is none to wait for.
func (s *Set) run(r *race) {
	type result struct {
		m    *member
		took time.Duration
		err  error
	}
	ctx, cancel := context.WithCancel(s.ctx)
	results := make(chan result, len(s.members))
	var busy, tried []*member
	next := time.NewTimer(stagger)
	defer next.Stop()
	start := func() {
		s.mu.Lock()
		m, wait := s.nextLocked(time.Now(), busy)
		delay := stagger
		if m != nil && wait == 0 {
			delay = min(max(delay, 2*m.took), maxStagger)
			m.begun = time.Now()
		}
		s.mu.Unlock()
		switch {
		case m == nil:
			return
		case wait > 0:
			next.Reset(min(wait, nobodyElse)) // it can be shorter by then
			return
		}
		busy, tried = append(busy, m), append(tried, m)
		s.running.Go(func() {
			begun := time.Now()
			err := m.front.pool.connect(ctx)
			results <- result{m, time.Since(begun), err}
		})
		next.Reset(delay)
	}
	start()
	for r.winner == nil && len(busy) > 0 {
		select {
		case <-next.C:
			start()
		case res := <-results:
			busy = slices.DeleteFunc(busy, func(m *member) bool { return m == res.m })
			switch {
			case res.err == nil:
				r.winner = res.m
				s.carries(res.m, res.took)
			case s.ctx.Err() == nil:
				s.mu.Lock()
				s.putAsideLocked(res.m, res.err, 0)
				s.mu.Unlock()
				if len(s.members) > 1 { // a single one is not left alone
					start()
				}
			}
		}
	}
	cancel()
	for range busy {
		<-results
	}
	for _, m := range tried {
		if m != r.winner {
			m.front.pool.abandon()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.winner == nil {
		r.err = s.downLocked()
	}
	s.race = nil
	close(r.done)
}

// carries is told that m was connected and carries from now on.
func (s *Set) carries(m *member, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.current != m || !m.aside.IsZero()
	s.current = m
	m.took = took
	m.aside = time.Time{}
	m.strikes = 0
	if changed {
		s.log.Info("using a front", "front", m.front.Name(), "number", m.number, "connected_after", took.Round(time.Millisecond))
	}
}

// failed is told that an exchange, begun at a time, has failed on m.
func (s *Set) failed(m *member, ctx context.Context, begun time.Time, err error) {
	var e *Error
	if s.ctx.Err() != nil || !errors.As(err, &e) || e.Op == OpWait || ctx.Err() != nil && !e.Timeout() {
		return // nothing is known against the front
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case m.lastGood.After(begun):
		// It works: one exchange did not.
	case m.struck.After(begun):
		// It failed together with one that was counted: a connection ended.
	case e.Op != OpHTTP, e.Timeout(), !e.Reused && !m.front.pool.connected():
		s.leaveLocked(m, err, 0)
	default:
		s.strikeLocked(m, err)
	}
}

// strikeLocked counts a failure for which the front may not be to blame.
func (s *Set) strikeLocked(m *member, err error) {
	m.struck = time.Now()
	if m.strikes++; m.strikes >= maxStrikes {
		s.leaveLocked(m, err, 0)
	}
}

// judge takes what an answer's head says about the front. An error stands for
// the answer.
func (s *Set) judge(m *member, resp *http.Response) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.answers++
	status := resp.StatusCode
	stayAway := time.Duration(0)
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		stayAway = retryAfter(resp.Header.Get("Retry-After"))
	}
	said := func() error { return newError(m.front.Name(), OpHTTP, fmt.Errorf("answered with status %d", status)) }
	switch {
	case status == http.StatusMisdirectedRequest:
		err := newError(m.front.Name(), OpHTTP, ErrFrontingRefused)
		s.leaveLocked(m, err, refusedAside)
		return err
	case status == http.StatusForbidden, status == http.StatusUnavailableForLegalReasons:
		s.leaveLocked(m, said(), 0)
	case stayAway > 0:
		m.asked = time.Now().Add(stayAway)
		s.leaveLocked(m, said(), 0)
		if _, wait := s.nextLocked(time.Now(), []*member{m}); wait == 0 && len(s.members) > 1 {
			resp.Header.Del("Retry-After")
		}
	case status == http.StatusTooManyRequests, status >= 500:
		s.strikeLocked(m, said())
	default:
		m.lastGood = time.Now()
		m.failures, m.strikes = 0, 0
	}
	return nil
}

// leaveLocked has another front carry from now on, and m left alone for at
// least a time, or for one that grows. Where there is no other front it only
// says why: who makes the exchanges has a back-off of its own.
func (s *Set) leaveLocked(m *member, err error, atLeast time.Duration) {
	if len(s.members) == 1 {
		s.log.Info("the front fails", "front", m.front.Name(), "number", m.number, "err", err)
		return
	}
	if m.aside.IsZero() { // else the exchange was begun before it was left
		s.putAsideLocked(m, err, atLeast)
	}
}

// putAsideLocked leaves m alone. With a single front it is tried again as soon
// as it is wanted.
func (s *Set) putAsideLocked(m *member, err error, atLeast time.Duration) {
	now := time.Now()
	m.failures++
	m.failedAt, m.err, m.strikes = now, err, 0
	if len(s.members) == 1 {
		return
	}
	aside := min(minAside<<min(m.failures-1, 20), maxAside)
	m.aside = now.Add(max(atLeast, aside/2+rand.N(aside/2+1)))
	s.log.Info("leaving a front", "front", m.front.Name(), "number", m.number, "for_at_least", m.aside.Sub(now).Round(time.Second), "err", err)
}

// downLocked is the error when no front works.
func (s *Set) downLocked() error {
	if s.closed {
		return closedError(s.members[0].front.Name())
	}
	var errs []error
	for _, m := range s.members {
		if m.err != nil {
			errs = append(errs, m.err)
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return &allFailed{errs}
}

// retryAfter reads a Retry-After header (RFC 9110 section 10.2.3), up to
// maxAside.
func retryAfter(value string) time.Duration {
	if s, err := strconv.Atoi(value); err == nil && s >= 0 {
		return time.Duration(min(s, int(maxAside/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(value); err == nil {
		return min(max(0, time.Until(t)), maxAside)
	}
	return 0
}

// allFailed is the error when no front works.
type allFailed struct{ errs []error }

func (e *allFailed) Error() string {
	texts := make([]string, len(e.errs))
	for i, err := range e.errs {
		texts[i] = err.Error()
	}
	return "no front works: " + strings.Join(texts, "; ")
}

func (e *allFailed) Unwrap() []error { return e.errs }
