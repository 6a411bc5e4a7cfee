package handshake

import (
	"fmt"
	"sync"
	"time"
)

const (
	// Skew is how far a client's clock may be behind the server's.
	Skew = 2 * time.Minute

	// Ahead is how far it may be ahead. It is short, because a message that
	// was made with such a clock just before a restart seems to be made after
	// it. A client learns the time from the answer that refuses it.
	Ahead = 5 * time.Second

	bucketSpan = time.Minute

	// maxBucket bounds the memory that first messages cost: 16 bytes and the
	// map's own for each, in the five minutes that Skew spans.
	maxBucket = 1 << 17
)

// A Name tells one first message from another: the tag at its end, which nobody but
// its maker can vary.
type Name [noiseTag]byte

// NameOf is the name of a first message that has opened.
func NameOf(msg []byte) Name { return Name(msg[len(msg)-noiseTag:]) }

// A Guard lets each first message of a server through once. It remembers those
// whose time is within Skew of the server's clock and refuses all others, and
// those that were made before it was: another process may have seen them.
// Safe for concurrent use.
type Guard struct {
	since time.Time // whole milliseconds, as times on the wire are

	mu      sync.Mutex
	buckets map[int64]map[Name]struct{} // by minute of the hello's time; guarded by mu
}

// NewGuard returns a Guard that refuses what was made before now.
func NewGuard(now time.Time) *Guard {
	return &Guard{since: now.Truncate(time.Millisecond), buckets: make(map[int64]map[Name]struct{})}
}

// Admit returns an error if the first message called name that was made at made, by
// the client's clock, may not open a session now.
func (g *Guard) Admit(now, made time.Time, name Name) error {
	if made.Before(g.since) {
		return fmt.Errorf("handshake: made %v before this server started", g.since.Sub(made))
	}
	if d := now.Sub(made); d > Skew || d < -Ahead {
		return fmt.Errorf("handshake: the client's clock is off by %v", d.Abs())
	}
	at := made.UnixMilli() / bucketSpan.Milliseconds()

	g.mu.Lock()
	defer g.mu.Unlock()
	oldest := now.Add(-Skew).UnixMilli() / bucketSpan.Milliseconds()
	for b := range g.buckets { // five at most
		if b < oldest {
			delete(g.buckets, b)
		}
	}
	bucket := g.buckets[at]
	if bucket == nil {
		bucket = make(map[Name]struct{})
		g.buckets[at] = bucket
	}
	if _, seen := bucket[name]; seen {
		return fmt.Errorf("handshake: seen before")
	}
	if len(bucket) >= maxBucket {
		return fmt.Errorf("handshake: too many new sessions in a minute")
	}
	bucket[name] = struct{}{}
	return nil
}
