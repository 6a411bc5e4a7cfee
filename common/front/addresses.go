package front

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	// answersKept is how long the addresses of a name are used without asking
	// again: what Chrome keeps of a resolver that says no time to live
	// (kCacheEntryTTLSeconds in net/dns/host_resolver_manager.cc). They are asked
	// for again before that when none of them could be reached, but not within
	// answersTried.
	answersKept  = time.Minute
	answersTried = 5 * time.Second

	// answersWait is how long a dial waits for new addresses where it has old
	// ones: in an outage DNS says nothing, and the old ones are as good as ever.
	answersWait = 250 * time.Millisecond

	// maxLookups is how often DNS is asked at a time, each redialAfter after the
	// one before: a question that was lost is repeated after 5 s by itself.
	maxLookups = 4

	// maxAddresses is how many addresses of a name are used. CDNs give 2 to 16.
	maxAddresses = 20

	// attemptDelay is how long an address may take for a step, TCP or TLS, before
	// the next one is tried beside it (RFC 8305 section 8). Where there are many it is
	// less, so that all have been tried after allTried, but not less than
	// minAttemptDelay, which is what the RFC recommends as the least.
	attemptDelay    = 250 * time.Millisecond
	minAttemptDelay = 100 * time.Millisecond
	allTried        = 1500 * time.Millisecond

	// maxRacing is how many dials go on at once where a name has so many
	// addresses.
	maxRacing = 10

	// minBad is how long an address, or a look, that has failed comes after all that have
	// not: twice as long each time in a row, up to maxBad. It is never left out:
	// when all have failed, the one whose time ends first is tried first.
	minBad = 30 * time.Second
	maxBad = 10 * time.Minute
)

// addresses are those of one host, the front or the proxy to it: which there are,
// and which has shown that it works or does not. The pool's mutex guards the
// fields from known on, and is held by whoever calls a method, but for ready.
type addresses struct {
	pool       *pool
	host, port string
	lookup     func(ctx context.Context, host string) ([]netip.Addr, error) // nil: known never changes

	known []*address // in the order of RFC 8305 section 4
	heard time.Time  // when DNS said so; zero: it is to be asked
	asked *question  // under way, or nil
	round int        // a number for each search for an address that works
}

// An address is one of them. It is told by its pointer, and may be used when it
// is not known any more.
type address struct {
	text    string    // host:port, as a dial takes it
	round   int       // in which it was tried last
	reached time.Time // when a connection to it was made last
	standing
}

// A standing is how one of several ways fares. The zero value has not failed yet.
type standing struct {
	failures int       // in a row, since it served
	bad      time.Time // until then others come first
}

// A question to DNS is under way.
type question struct {
	done chan struct{} // closed when it is answered, and err is set
	err  error
}

// newAddresses returns those of hostport. Without a lookup, or where the host is
// an address, there is one.
func newAddresses(hostport string, lookup func(context.Context, string) ([]netip.Addr, error)) addresses {
	a := addresses{lookup: lookup}
	a.host, a.port, _ = net.SplitHostPort(hostport)
	if _, err := netip.ParseAddr(a.host); err == nil || lookup == nil {
		a.lookup, a.known = nil, []*address{{text: hostport}}
	}
	return a
}

// resolve asks the system for the addresses of host.
func resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// fresh tells whether DNS need not be asked.
func (a *addresses) fresh() bool {
	return a.lookup == nil || !a.heard.IsZero() && time.Since(a.heard) < answersKept
}

// ready returns nil when there are addresses. It asks DNS if need be, together
// with whoever else wants to know, and waits for the answer.
func (a *addresses) ready(ctx context.Context) error {
	a.pool.mu.Lock()
	if a.fresh() {
		a.pool.mu.Unlock()
		return nil
	}
	if a.asked == nil {
		q := &question{done: make(chan struct{})}
		a.asked = q
		a.pool.running.Go(func() { a.ask(q) })
	}
	q, old := a.asked, len(a.known) > 0
	a.pool.mu.Unlock()

	enough := ctx
	if old {
		var cancel context.CancelFunc
		enough, cancel = context.WithTimeout(ctx, answersWait)
		defer cancel()
	}
	select {
	case <-q.done:
		if old {
			return nil
		}
		return q.err
	case <-enough.Done():
		return context.Cause(ctx)
	}
}

// ask asks DNS, more than once if it takes long, and takes the first answer.
func (a *addresses) ask(q *question) {
	ctx, cancel := context.WithTimeout(a.pool.ctx, dialTimeout)
	defer cancel()
	type answer struct {
		ips []netip.Addr
		err error
	}
	answers := make(chan answer, maxLookups)
	lookups, waiting := 0, 0
	begin := func() {
		lookups, waiting = lookups+1, waiting+1
		a.pool.running.Go(func() {
			ips, err := a.lookup(ctx, a.host)
			if err == nil && len(ips) == 0 {
				err = &net.DNSError{Err: "no address", Name: a.host, IsNotFound: true}
			}
			answers <- answer{ips, err}
		})
	}
	begin()
	again := time.NewTicker(redialAfter)
	defer again.Stop()
	var last answer
	for waiting > 0 {
		select {
		case <-again.C:
			if lookups < maxLookups {
				begin()
			}
			continue
		case last = <-answers:
			waiting--
		}
		if last.err == nil {
			break
		}
	}
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	if q.err, a.asked = last.err, nil; q.err == nil {
		a.learn(last.ips)
	}
	close(q.done)
}

// learn takes what DNS has said. What is known of an address stays known.
func (a *addresses) learn(ips []netip.Addr) {
	a.heard = time.Now()
	before := a.known
	a.known = nil
	for _, ip := range interleave(ips) {
		text := net.JoinHostPort(ip.Unmap().String(), a.port)
		same := func(o *address) bool { return o.text == text }
		if slices.ContainsFunc(a.known, same) {
			continue
		}
		if i := slices.IndexFunc(before, same); i >= 0 {
			a.known = append(a.known, before[i])
		} else {
			a.known = append(a.known, &address{text: text})
		}
		if len(a.known) == maxAddresses {
			return
		}
	}
}

// interleave returns the addresses, which are in the order of preference, with
// those of the two families in turn (RFC 8305 section 4).
func interleave(ips []netip.Addr) []netip.Addr {
	var first, second []netip.Addr
	for _, ip := range ips {
		if ip.Unmap().Is4() == ips[0].Unmap().Is4() {
			first = append(first, ip)
		} else {
			second = append(second, ip)
		}
	}
	var mixed []netip.Addr
	for i := range max(len(first), len(second)) {
		mixed = append(mixed, first[min(i, len(first)):min(i+1, len(first))]...)
		mixed = append(mixed, second[min(i, len(second)):min(i+1, len(second))]...)
	}
	return mixed
}

// racing is how many dials may go on at once.
func (a *addresses) racing() int { return max(maxDials, min(len(a.known), maxRacing)) }

// delay is how long one address is tried alone before the next one is.
func (a *addresses) delay() time.Duration {
	n := max(1, len(a.known)-1)
	return max(minAttemptDelay, min(attemptDelay, allTried/time.Duration(n)))
}

// search begins a round: every address may be tried again.
func (a *addresses) search() { a.round++ }

// untried tells whether there is an address that was not tried in this round.
func (a *addresses) untried() bool {
	return slices.ContainsFunc(a.known, func(o *address) bool { return o.round != a.round })
}

// favorite returns the address that was reached last, unless it has failed since.
func (a *addresses) favorite() *address {
	var best *address
	for _, o := range a.known {
		if !o.reached.IsZero() && o.works() && (best == nil || o.reached.After(best.reached)) {
			best = o
		}
	}
	return best
}

// next returns the address to try next: not one that is avoided or was tried in
// this round, if there is another; then one that works, as far as known, and of
// these the favorite; of those that do not work the one that may again first.
func (a *addresses) next(avoided func(*address) bool) *address {
	favorite := a.favorite()
	rank := func(o *address) int {
		r := 0
		for i, worse := range []bool{o != favorite, !o.works(), o.round == a.round, avoided(o)} {
			if worse {
				r |= 1 << i
			}
		}
		return r
	}
	best := slices.MinFunc(a.known, func(x, y *address) int {
		return cmp.Or(cmp.Compare(rank(x), rank(y)), x.bad.Compare(y.bad))
	})
	best.round = a.round
	return best
}

// exhausted is told that no address could be reached: DNS is asked again soon.
func (a *addresses) exhausted() {
	if time.Since(a.heard) >= answersTried {
		a.heard = time.Time{}
	}
}

// works tells whether it has not failed lately.
func (s *standing) works() bool { return !time.Now().Before(s.bad) }

// fails is told that it has failed: no connection could be made to the address, or
// one has died. What happens while it is bad already is the same failure.
func (s *standing) fails() {
	if s.works() {
		s.bad = time.Now().Add(min(minBad<<min(s.failures, 20), maxBad))
		s.failures++
	}
}

// connects is told that a connection to the address was made.
func (o *address) connects() { o.reached, o.bad = time.Now(), time.Time{} }

// serves is told that an exchange was answered there.
func (o *address) serves() { o.failures = 0 }
