package carrier

import (
	"sync/atomic"

	"turbotunnel/common/wire"
)

const (
	// incomingCost and outgoingCost are what a record costs beside its buffer, in
	// bytes: its place in a map or a list; and that and the sentRecord, with the
	// cargo of an exchange that carries no other.
	incomingCost = 40
	outgoingCost = 192

	// spanCost is a span of a wire.Set.
	spanCost = 16
)

// An account counts the bytes that are held for a peer, at what they take and
// not at what they say, and adds them to those of the account above it. The zero
// value is one of its own without a limit. Safe for concurrent use, with locks
// held or not: it has none.
//
//	what an engine holds ---> what a session holds ---> what a server holds
type account struct {
	above  *account // constant, like what follows up to state; nil: none
	limit  int64    // 0: none
	passed func()   // called whenever more is added to what is above the limit; must neither lock nor block

	state atomic.Int64 // twice the bytes; one more when the account is closed
}

// add counts n bytes more or, negative, less. A closed account counts nothing:
// what it held has left the accounts above at once, and who held it need not give
// it back.
func (a *account) add(n int) {
	for {
		was := a.state.Load()
		if was&1 != 0 || n == 0 {
			return
		}
		now := was + 2*int64(n)
		if !a.state.CompareAndSwap(was, now) {
			continue
		}
		if a.above != nil {
			a.above.add(n)
		}
		if n > 0 && a.limit > 0 && now>>1 > a.limit {
			a.passed()
		}
		return
	}
}

// bytes is what is held.
func (a *account) bytes() int64 {
	if state := a.state.Load(); state&1 == 0 {
		return state >> 1
	}
	return 0
}

// close takes what is held out of the accounts above, for good.
func (a *account) close() {
	for {
		was := a.state.Load()
		if was&1 != 0 {
			return
		}
		if a.state.CompareAndSwap(was, 1) {
			if a.above != nil {
				a.above.add(-int(was >> 1))
			}
			return
		}
	}
}

// addSpans counts what a set has grown by, which had room for so many spans before.
func (a *account) addSpans(s *wire.Set, before int) { a.add((cap(s.Spans) - before) * spanCost) }

// dropSpans gives back what a set takes that is needed no more.
func (a *account) dropSpans(s *wire.Set) {
	a.add(-cap(s.Spans) * spanCost)
	s.Spans = nil
}
