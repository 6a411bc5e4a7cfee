package carrier

import (
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// What a session looks like to who sees only how long bodies are and when they
// come.

const (
	// maxPadded is the size in bytes of the largest content that is padded.
	// What is larger is part of a transfer, and says how much there is of it
	// whether padded or not.
	maxPadded = 4 << 10

	// padShare, padRate and maxPadding bound padding: one byte for each
	// padShare bytes that the session has moved, padRate bytes a second besides,
	// and of both at most maxPadding bytes saved up. A conversation never
	// spends so much; a transfer that consists of small writes, which is padded
	// too, pays 2 % and a short while's rate.
	padShare   = 64
	padRate    = 1 << 10
	maxPadding = 32 << 10
)

// A blur chooses how much padding a session's small bodies and writes get.
// Safe for concurrent use.
//
// The content's size is rounded up to the next of a few sizes, which are a
// session's own, and then some noise is added. Rounding hides the size: what
// is rounded to the same size looks the same however often it is seen. Noise
// alone would not do that: the least or the mean of many bodies that carry the
// same thing shows its size (Dyer, Coull, Ristenpart, Shrimpton: "Peek-a-Boo, I
// Still See You", IEEE S&P 2012, compare such measures). Sizes that grow by a
// factor leak least for what they cost (Nikitin and others: "Reducing Metadata
// Leakage from Encrypted Files and Communication with PURBs", PoPETs 2019(4),
// section 4). But a few lengths again and again would be a mark themselves:
// hence the noise, and sizes drawn anew for each session.
type blur struct {
	first, factor float64 // the sizes are first × factor^k, k = 0, 1, …

	mu    sync.Mutex
	saved float64 // bytes of padding that may be spent; guarded by mu
	at    time.Time
}

func newBlur() *blur {
	return &blur{
		first:  64 + 64*rand.Float64(),
		factor: 1.4 + 0.4*rand.Float64(),
		saved:  maxPadding,
		at:     time.Now(),
	}
}

// rounded is the size to which n bytes are rounded up.
func (b *blur) rounded(n int) int {
	k := math.Ceil(math.Log(float64(n)/b.first) / math.Log(b.factor))
	return max(n, int(b.first*math.Pow(b.factor, max(0, k))))
}

// pad is the number of bytes of padding for a write that carries n bytes
// besides its head. The head's own length, which differs, hides in it.
func (b *blur) pad(n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.earn(n)
	now := time.Now()
	b.saved = min(b.saved+now.Sub(b.at).Seconds()*padRate, maxPadding)
	b.at = now
	if n > maxPadded {
		return 0
	}
	size := b.rounded(n)
	pad := size - n + rand.IntN(size/4)
	if float64(pad) > b.saved {
		return 0
	}
	b.saved -= float64(pad)
	return pad
}

// moved says that n bytes have come from the other side.
func (b *blur) moved(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.earn(n)
}

// earn saves up for n bytes that were moved. mu is held.
func (b *blur) earn(n int) { b.saved = min(b.saved+float64(n)/padShare, maxPadding) }

// sizeOf is how many bytes records have.
func sizeOf(records []*sentRecord) (n int) {
	for _, r := range records {
		n += r.size
	}
	return n
}

// below draws a number from most - span to most: a limit that is kept and never
// shows.
func below[T ~int | ~int64](most, span T) T { return most - rand.N(span+1) }

// bodyBelow draws a limit for a body: at most most, and never too small for a
// record.
func bodyBelow(most int) int { return max(below(most, most/8), min(most, minBody)) }

// appearance is how a session's answers introduce themselves: as those of a
// service that has nothing to do with pages.
type appearance struct{ contentType, cacheControl string }

var (
	// contentTypes are those of services that answer in bytes. A CDN that
	// compresses answers holds them back: application/x-protobuf is missing
	// because Cloudflare does that (its page "Content compression"),
	// application/protobuf because CloudFront does ("File types that CloudFront
	// compresses").
	contentTypes = []string{
		"application/octet-stream", "binary/octet-stream", "application/x-msgpack", "application/cbor",
	}

	// cacheControls all forbid to store the answer.
	cacheControls = []string{
		"no-store", "private, no-store", "no-cache, no-store", "no-store, max-age=0",
		"no-cache, no-store, must-revalidate", "no-cache, no-store, max-age=0, must-revalidate",
	}
)

func newAppearance() appearance {
	return appearance{
		contentTypes[rand.IntN(len(contentTypes))],
		cacheControls[rand.IntN(len(cacheControls))],
	}
}
