package front

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// minAside and maxAside are how long a front that failed is left alone
	// while others work: twice as long each time in a row, less a random half.
	minAside = time.Second
	maxAside = 5 * time.Minute

	// refusedAside is how long a front is left alone that says it will not
	// carry us.
	refusedAside = 10 * time.Minute

	// maxAsked bounds how long the only front may have itself left alone: whoever
	// can forge one answer on the path could silence us for longer otherwise.
	maxAsked = time.Minute

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

// ErrFrontingRefused is why a request failed that the CDN answered with status
// 421 (Misdirected Request, RFC 9110 section 15.5.20), which is how one says that
// it does not let a request's Host differ from the name in TLS.
var ErrFrontingRefused = errors.New("this CDN refuses domain fronting (status 421): use another front, or none")

// errNotServers is why a front is left whose answers are somebody else's.
var errNotServers = errors.New("its answers are not the server's")

// A health is whether one front works, and the only judge of that: dials,
// failures, statuses, requests to stay away and answers by somebody else are
// counted here and nowhere else. A front that is left alone is said to be aside.
// It is safe for concurrent use.
type health struct {
	name  string // the front's
	log   *slog.Logger
	alone bool // there is no other front: it is never aside, and left alone only as long as it asks

	mu        sync.Mutex    // guards what follows
	begun     time.Time     // of the last attempt to connect
	took      time.Duration // the last one that succeeded; 0: none yet
	failures  int           // in a row
	failedAt  time.Time     // of the last
	aside     time.Time     // until then it is left alone; zero: it works, as far as known
	asked     time.Time     // until then it has asked to be left alone (Retry-After)
	err       error         // the last failure, or the answer that asked
	strikes   int           // failures in a row of which it may not be the cause
	struck    time.Time     // of the last
	lastGood  time.Time     // of the last answer that speaks for it
	answers   int           // in all
	foreigns  int           // in a row
	foreignAt int           // the number of answers when the last one of these was reported
}

// works tells whether the front is not aside.
func (h *health) works() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.aside.IsZero()
}

// waitFor is how long the front is to be left alone. down says that no other
// front works either.
func (h *health) waitFor(now time.Time, down bool) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	until := h.aside
	if soon := h.failedAt.Add(nobodyElse); down && soon.Before(until) {
		until = soon
	}
	if h.asked.After(until) {
		until = h.asked
	}
	return max(0, until.Sub(now))
}

// askedFor is how long the front has asked to be left alone still.
func (h *health) askedFor(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(0, h.asked.Sub(now))
}

// stuck tells whether a front that is being connected does not get anywhere.
func (h *health) stuck(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failures > 0 || now.Sub(h.begun) >= nobodyElse
}

// record is how often in a row the front has failed, and how long it took to
// connect, 0 if it never has.
func (h *health) record() (failures int, took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failures, h.took
}

// failure is why the front is left alone, or was last: nil if it never was.
func (h *health) failure() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// connecting is told that the front is being connected.
func (h *health) connecting(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begun = now
}

// carries is told that the front was connected and carries from now on. news
// says that another one did before.
func (h *health) carries(took time.Duration, news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	news = news || !h.aside.IsZero()
	h.took, h.aside, h.strikes = took, time.Time{}, 0
	if news {
		h.log.Info("using a front", "connected_after", took.Round(time.Millisecond))
	}
}

// unreachable is told that the front could not be connected.
func (h *health) unreachable(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.apply(verdict{fault: err, down: true})
}

// A verdict is what one event says about a front.
type verdict struct {
	fault   error         // nil: it works
	strike  bool          // the front may not be the cause
	down    bool          // there was no connection: this counts even if it is the only one, or is left already
	atLeast time.Duration // how long it is to be left alone
}

// failed is told that an exchange, begun at a time, has failed. connected says
// whether the front has a connection still.
func (h *health) failed(begun time.Time, e *Error, connected bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.lastGood.After(begun):
		// It works: one exchange did not.
	case h.struck.After(begun):
		// It failed together with one that was counted: a connection ended.
	default:
		blamed := e.Op != OpHTTP || e.Timeout() || !e.Reused && !connected
		h.apply(verdict{fault: e, strike: !blamed})
	}
}

// answered takes what an answer's head says about the front. An error stands for
// the answer.
func (h *health) answered(resp *http.Response) error {
	v := verdictOf(resp.StatusCode)
	if v.fault != nil {
		v.fault = newError(h.name, OpHTTP, v.fault)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answers++
	if asked := h.staysAway(resp); asked > 0 {
		h.asked, h.err = time.Now().Add(asked), v.fault
		v.strike = false
	}
	h.apply(v)
	if errors.Is(v.fault, ErrFrontingRefused) {
		return v.fault
	}
	return nil
}

// staysAway is how long an answer asks that the front be left alone.
func (h *health) staysAway(resp *http.Response) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	most := maxAside
	if h.alone {
		most = maxAsked
	}
	return min(retryAfter(resp.Header), most)
}

// verdictOf is what an answer's status says about a front.
func verdictOf(status int) verdict {
	said := fmt.Errorf("answered with status %d", status)
	switch {
	case status == http.StatusMisdirectedRequest:
		return verdict{fault: ErrFrontingRefused, atLeast: refusedAside}
	case status == http.StatusForbidden, status == http.StatusUnavailableForLegalReasons:
		return verdict{fault: said}
	case status == http.StatusTooManyRequests, status >= 500:
		return verdict{fault: said, strike: true}
	}
	return verdict{}
}

// foreign is told that an answer was not the server's.
func (h *health) foreign() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.answers-h.foreignAt > foreignApart {
		h.foreigns = 0
	}
	h.foreignAt = h.answers
	if h.foreigns++; h.foreigns >= foreignStrikes {
		h.foreigns = 0
		h.apply(verdict{fault: newError(h.name, OpHTTP, errNotServers)})
	}
}

// apply draws the consequences of a verdict, with mu held by the methods that do
// the judging. The only front carries on: who makes the exchanges has a back-off of its
// own.
func (h *health) apply(v verdict) {
	now := time.Now()
	if v.fault == nil {
		h.lastGood, h.failures, h.strikes = now, 0, 0
		return
	}
	if v.strike {
		h.struck = now
		if h.strikes++; h.strikes < maxStrikes {
			return
		}
	}
	switch {
	case h.alone && !v.down:
		h.log.Info("the front fails", "err", v.fault)
		return
	case !h.aside.IsZero() && !v.down:
		return // the exchange was begun before the front was left
	}
	h.failures++
	h.failedAt, h.err, h.strikes = now, v.fault, 0
	if h.alone {
		return // it is tried again as soon as it is wanted
	}
	aside := min(minAside<<min(h.failures-1, 20), maxAside)
	h.aside = now.Add(max(v.atLeast, aside/2+rand.N(aside/2+1)))
	h.log.Info("leaving a front", "for_at_least", h.aside.Sub(now).Round(time.Second), "err", v.fault)
}

// retryAfter reads the Retry-After (RFC 9110 section 10.2.3) of an answer's head.
// A time is judged by the Date of the same answer: the clock of this computer may
// be wrong by days, and the two of them are the same clock's.
func retryAfter(h http.Header) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if s, err := strconv.Atoi(value); err == nil && s >= 0 {
		return time.Duration(min(s, int(maxAside/time.Second))) * time.Second
	}
	until, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(strings.TrimSpace(h.Get("Date")))
	if err != nil {
		now = time.Now()
	}
	return max(0, until.Sub(now))
}
