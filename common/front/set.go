package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"
)

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
	members []*member
	ctx     context.Context    // ends with Close
	cancel  context.CancelFunc // called with mu held
	running sync.WaitGroup     // races

	mu      sync.Mutex // guards what follows
	current *member    // that carries, or did last; nil: none yet
	race    *race      // under way, or nil
}

// A member is a front and its health.
type member struct {
	front  *Front
	health *health
}

// memberKey carries the member in the context of an exchange.
type memberKey struct{}

// NewSet checks the Configs, of which there must be one at least and which
// differ in nothing but their fronts, and returns a Set, which prefers those
// named first. It does not use the network yet. Errors are as New's. The log,
// which may be nil, says which front carries and why one was left, by its name
// and by its place in cfgs: "2/3" is the second of three. Unlike a name, a log
// may show the place to anybody.
func NewSet(cfgs []Config, log *slog.Logger) (*Set, error) {
	if len(cfgs) == 0 {
		return nil, errors.New("front: none given")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := new(Set)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for i, cfg := range cfgs {
		f, err := New(cfg)
		if err != nil {
			s.Close()
			return nil, err
		}
		s.members = append(s.members, &member{f, &health{
			name:  f.Name(),
			log:   log.With("front", f.Name(), "number", fmt.Sprintf("%d/%d", i+1, len(cfgs))),
			alone: len(cfgs) == 1,
		}})
	}
	return s, nil
}

// Name is the domain of the front that carries, or did last.
func (s *Set) Name() string { return s.carrier().front.Name() }

// Slots is how many exchanges each of so many users of the Set may have under
// way at once, at least 1, by the front that carries, or did last. crowded says
// that there are fewer than two for each, so that they have to take turns. Both
// change with the front and the number of users.
func (s *Set) Slots(users int) (each int, crowded bool) {
	each = s.carrier().front.MaxInFlight() / max(1, users)
	return max(1, each), each < 2
}

// Feeds is Front.Feeds of the front that carries, or did last.
func (s *Set) Feeds() bool { return s.carrier().front.Feeds() }

// Rest is how long no exchange should be begun because every front has asked
// for that (Retry-After). It is 0 when one of them has not, even one that is
// merely unreachable: it may come back any moment.
func (s *Set) Rest() time.Duration {
	now := time.Now()
	least := s.members[0].health.askedFor(now)
	for _, m := range s.members[1:] {
		least = min(least, m.health.askedFor(now))
	}
	return least
}

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
// An answer that asks to stay away (Retry-After) comes as it is, and is obeyed
// here as far as other fronts work: whoever makes the exchanges need not look at
// the header, but asks Rest.
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
		s.failed(ctx, m, begun, e)
		m = nil
		return e.Unsent && tries < len(s.members) && ctx.Err() == nil && s.ctx.Err() == nil
	})
	if err != nil {
		return nil, err
	}
	if err := m.health.answered(resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// failed tells m's health of an exchange, begun at a time, that has failed for
// e, unless that says nothing about the front.
func (s *Set) failed(ctx context.Context, m *member, begun time.Time, e *Error) {
	if s.ctx.Err() != nil || e.Op == OpWait || ctx.Err() != nil && !e.Timeout() {
		return
	}
	m.health.failed(begun, e, m.front.pool.connected())
}

// Foreign is to be told that resp, which RoundTrip returned, was not the
// server's answer.
func (s *Set) Foreign(resp *http.Response) {
	if resp.Request == nil {
		return
	}
	if m, _ := resp.Request.Context().Value(memberKey{}).(*member); m != nil {
		m.health.foreign()
		m.front.types.refused(resp.Request.Header.Get("Content-Type"))
	}
}

// Close ends every connection, with the exchanges on it, and waits for them.
// Every call then fails with an error that matches net.ErrClosed. Closing twice
// is allowed.
func (s *Set) Close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	for _, m := range s.members {
		m.front.Close()
	}
	s.running.Wait()
	return nil
}

// choose returns a front that is connected. It waits while fronts are being
// connected, or until ctx ends, and, unless again is set, for a front that is
// left alone for a moment.
func (s *Set) choose(ctx context.Context, again bool) (*member, error) {
	for {
		m, r, wait := s.chosen()
		switch {
		case m != nil:
			return m, nil
		case r != nil:
			select {
			case <-r.done:
				return r.winner, r.err
			case <-ctx.Done():
				return nil, s.carrier().front.pool.waitErr(ctx)
			}
		}
		err := s.down()
		if again || wait > nobodyElse || s.ctx.Err() != nil {
			return nil, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		case <-s.ctx.Done():
			timer.Stop()
		}
	}
}

// chosen returns the front that carries if it works, else the race that finds
// one, which it begins if need be, else how long all fronts are to be left alone.
// It returns none of these when the Set is closed.
func (s *Set) chosen() (*member, *race, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, nil, 0
	}
	if m := s.current; m != nil && m.health.works() && m.front.pool.connected() {
		return m, nil, 0
	}
	if s.race == nil {
		if _, wait := nextOf(s.members, s.current, time.Now(), nil); wait > 0 {
			return nil, nil, wait
		}
		r := &race{set: s, done: make(chan struct{}), finishes: make(chan finish, len(s.members))}
		s.race = r
		s.running.Go(r.run)
	}
	return nil, s.race, 0
}

// carries is told that m was connected and carries from now on.
func (s *Set) carries(m *member, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.health.carries(took, s.current != m)
	s.current = m
}

// next is nextOf for the Set's members.
func (s *Set) next(now time.Time, busy []*member) (*member, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return nextOf(s.members, s.current, now, busy)
}

// down is the error when no front works.
func (s *Set) down() error {
	if s.ctx.Err() != nil {
		return closedError(s.members[0].front.Name())
	}
	var errs []error
	for _, m := range s.members {
		if err := m.health.failure(); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return &allFailed{errs}
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
