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

	// padShare, padRate and maxPadding bound what one side pads: one byte for
	// each padShare bytes that the session moves or padRate bytes a second,
	// whichever is more, and at most maxPadding bytes saved up. A conversation
	// seldom spends so much; a transfer that consists of small writes, as one
	// over a slow link may, pays 1 % for each side and what was saved up.
	padShare   = 100
	padRate    = 1 << 10
	maxPadding = 32 << 10

	// leastNoise is the least range of what is added to a rounded size, in bytes: a
	// quarter of a small size would be a few lengths only.
	leastNoise = 48
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
	saved float64   // bytes of padding that may be spent; guarded by mu, like what follows
	at    time.Time // when it was counted last
	bytes int       // moved since then
}

func newBlur() *blur {
	return &blur{
		first:  40 + 32*rand.Float64(), // an idle session pays for it in each of its bodies
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
	now := time.Now()
	earned := max(now.Sub(b.at).Seconds()*padRate, float64(b.bytes+n)/padShare)
	b.saved = min(b.saved+earned, maxPadding)
	b.at, b.bytes = now, 0
	if n > maxPadded {
		return 0
	}
	size := b.rounded(n)
	pad := size - n + rand.IntN(max(size/4, leastNoise))
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
	b.bytes += n
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
