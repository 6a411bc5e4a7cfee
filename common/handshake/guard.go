package handshake

import (
	"crypto/rand"
	"errors"
	"sync"
	"time"
)

const (
	// Skew is how far a client's clock may be behind the server's or ahead of it.
	// A client that is off by more, or whose message is refused for another reason
	// that has to do with time, learns the server's time under its key.
	Skew = 2 * time.Minute

	bucketSpan = time.Minute

	// maxBucket bounds what is remembered of the first messages of a minute. In the
	// five minutes that Skew spans, by each of two clocks, a Guard has at most so many
	// buckets as there are in all.
	maxBucket  = 1 << 17
	allBuckets = 2 * 6

	// nameCost is what a name takes, in bytes: 16, and a byte of the map's for each
	// of its places, of which between 7/16 and 7/8 are in use.
	nameCost = 40

	// reserve is how far ahead of what was admitted the times reach that are kept
	// as spent: so often they are written at most, and for so long after a crash
	// clients need a second message.
	reserve = time.Minute
)

// Errors of a Guard.
var (
	// ErrClock: by its time the message may not open a session. Its sender is to
	// learn the server's time, and to make another one.
	ErrClock = errors.New("handshake: the time of a first message is not one to be admitted now")

	// ErrSeen: the message was admitted before.
	ErrSeen = errors.New("handshake: a first message that was seen before")

	// ErrCrowded: too many of one minute were admitted.
	ErrCrowded = errors.New("handshake: too many new sessions in a minute")
)

// A Name tells one first message from another: the tag at its end, which nobody but
// its maker can vary.
type Name [noiseTag]byte

// NameOf is the name of a first message that has opened.
func NameOf(msg []byte) Name { return Name(msg[len(msg)-noiseTag:]) }

// An Epoch names one life of a server: the time from one start to the next. It is
// random, and nobody knows it but whom the server has told. The zero Epoch is none.
type Epoch [16]byte

// A Clock tells the time of day, which somebody may set, and for how long the
// process has run, which nobody can change.
type Clock func() (wall time.Time, up time.Duration)

// SystemClock is the clock of this computer, from now on.
func SystemClock() Clock {
	start := time.Now()
	return func() (time.Time, time.Duration) {
		now := time.Now()
		return now, now.Sub(start)
	}
}

// A Guard lets each first message of a server through once, whatever its clock does
// and however often it is restarted. Safe for concurrent use.
//
// There are two ways through. A message that names no epoch is compared with the
// clock, and has to be
//
//   - made at most Skew before the clock's time or after it,
//   - made after the server has begun to run, by the clock as it is now: another
//     process may have seen what is older,
//   - and not made in a time that is spent: one in which messages were admitted
//     that are not remembered any more, by this process or by one before.
//
// A message that names the server's epoch was made for this life of it: no other
// has admitted it or will. Its time is compared with the server's own count, which
// begins with the clock's time at the start and goes on evenly, whoever sets the
// clock. Within Skew both kinds are remembered one by one.
//
// What fails by its time gets ErrClock, and its sender learns under the server's key
// what the time is: the clock's, or, when that is spent, the count and the epoch. So
// nothing that a clock has ever done keeps anybody out; it costs that round trip.
// For how long:
//
//   - A clock that is wrong, from the start or later: until it is right, for every
//     client that has not learned it yet.
//   - A clock that is set back: until it has reached where it was.
//   - After a restart: until the clock has reached the last time that was admitted,
//     Skew at most; after a crash, reserve more.
//   - A clock that was once wrong and is right now costs nothing: the time that it
//     has spent is a stretch of its own, elsewhere.
//
// Without Marks the times spent are forgotten with the process. Then a message that
// was made ahead of the clock, by Skew at most, can be let through again after a
// restart, and so can every one after a restart with a clock that is behind.
type Guard struct {
	epoch Epoch         // constant, like what follows up to marks
	start time.Time     // by the clock as it was
	up    time.Duration // of the process at start
	clock Clock
	marks Marks // nil: none
	most  int   // names in a bucket
	hold  func(n int)

	mu     sync.Mutex
	known  buckets // of this epoch, by the count; guarded by mu, like what follows
	others buckets // by the clock
	spent  stretches
	saved  stretches     // as kept by marks
	lost   bool          // what was kept could not be read: all times may be spent
	failed time.Duration // when saving failed last; 0: it did not
	held   int           // bytes of which hold was told
}

// Marks keep the times that are spent when the server does not run.
type Marks interface {
	// Load returns what was saved last, and nothing at first.
	Load() ([]byte, error)

	// Save returns when text, of at most some hundred bytes, would survive a crash.
	Save(text []byte) error
}

// NewGuard returns a Guard for a process that begins now. Its Close keeps what it
// knows exactly. With an error, which is that of the marks, it also returns a Guard:
// one that lets through only what names its epoch. A nil clock is SystemClock.
func NewGuard(marks Marks, clock Clock) (*Guard, error) {
	if clock == nil {
		clock = SystemClock()
	}
	g := &Guard{
		clock: clock, marks: marks, most: maxBucket, hold: func(int) {},
		known: make(buckets), others: make(buckets),
	}
	rand.Read(g.epoch[:]) // never fails (crypto/rand)
	g.start, g.up = clock()
	if marks == nil {
		return g, nil
	}
	text, err := marks.Load()
	if err == nil {
		err = g.spent.UnmarshalText(text)
	}
	g.lost = err != nil
	g.saved = g.spent.clone()
	return g, err
}

// Bound has the Guard take no more than so many bytes, and tell hold of each that it
// takes more, or, negative, gives back. It is called before the first Admit. What is
// too much for it is ErrCrowded.
func (g *Guard) Bound(bytes int64, hold func(n int)) {
	g.most = int(max(min(maxBucket, bytes/(allBuckets*nameCost)), 1))
	g.hold = hold
}

// count is the server's own time at up. mu need not be held.
func (g *Guard) count(up time.Duration) time.Time { return g.start.Add(up - g.up) }

// Time is what a client is told after ErrClock: the time that its next message
// shall have, and the epoch that it shall name, which may be none.
func (g *Guard) Time() (time.Time, Epoch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	wall, up := g.clock()
	if g.lost || g.failed != 0 || g.spent.has(wall) {
		return g.count(up), g.epoch
	}
	return wall, Epoch{}
}

// Expects tells whether a session with this ID may begin now, at the server with key
// pub: whether its tag is of these days, by the clock or by the count.
func (g *Guard) Expects(id ID, pub PublicKey) bool {
	wall, up := g.clock()
	count := g.count(up)
	return id.IsFor(pub, wall) || DayOf(wall) != DayOf(count) && id.IsFor(pub, count)
}

// Admit returns nil if the first message called name that was made at made and
// names epoch may open a session now, and else one of the errors above.
func (g *Guard) Admit(made time.Time, epoch Epoch, name Name) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.weigh()
	wall, up := g.clock()
	g.known.forget(g.count(up))
	for _, s := range g.others.forget(wall) {
		g.spent.add(s)
	}
	switch epoch {
	case Epoch{}:
		return g.byClock(made, name, wall, up)
	case g.epoch:
		return g.byCount(made, name, g.count(up))
	}
	return ErrClock
}

// weigh tells hold what has changed. mu is held.
func (g *Guard) weigh() {
	now := 0
	for _, bs := range []buckets{g.known, g.others} {
		for _, b := range bs {
			now += len(b.names) * nameCost
		}
	}
	if now != g.held {
		g.hold(now - g.held)
		g.held = now
	}
}

// byCount admits a message that names the epoch. mu is held.
func (g *Guard) byCount(made time.Time, name Name, now time.Time) error {
	if now.Sub(made).Abs() > Skew {
		return ErrClock
	}
	return g.known.admit(made, name, g.most)
}

// byClock admits a message that names none. mu is held.
func (g *Guard) byClock(made time.Time, name Name, wall time.Time, up time.Duration) error {
	begin := wall.Add(g.up - up).Truncate(time.Millisecond) // as times on the wire are
	if wall.Sub(made).Abs() > Skew || made.Before(begin) || g.lost || g.spent.has(made) || !g.keep(wall, made, up) {
		return ErrClock
	}
	return g.others.admit(made, name, g.most)
}

// keep tells whether made will be known as spent after a crash, and sees to it. mu
// is held.
func (g *Guard) keep(wall, made time.Time, up time.Duration) bool {
	if g.marks == nil || g.saved.has(made) {
		return true
	}
	if g.failed != 0 && up-g.failed < reserve {
		return false // the disk may be full: no message is worth a try of its own
	}
	last := made
	if wall.After(last) {
		last = wall
	}
	next := g.gone()
	next.add(stretch{wall.Add(-Skew), last.Add(reserve)})
	if g.save(next) != nil {
		g.failed = up
		return false
	}
	g.failed = 0
	return true
}

// gone is what would be spent if the process ended now. mu is held.
func (g *Guard) gone() stretches {
	all := g.spent.clone()
	for _, b := range g.others {
		all.add(b.stretch)
	}
	return all
}

func (g *Guard) save(s stretches) error {
	text, err := s.MarshalText()
	if err == nil {
		err = g.marks.Save(text)
	}
	if err == nil {
		g.saved = s
	}
	return err
}

// Close keeps what is spent, without a reserve.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.marks == nil || g.lost {
		return nil
	}
	spent := g.gone()
	if len(spent) == 0 {
		return nil // an empty text is what a damaged file looks like
	}
	return g.save(spent)
}

// buckets are the messages that were admitted, by the minute in which they were made.
type buckets map[int64]*bucket

type bucket struct {
	stretch stretch // from the earliest to after the latest
	names   map[Name]struct{}
}

// forget drops the buckets that are out of reach at now, and returns their times.
func (bs buckets) forget(now time.Time) (gone []stretch) {
	for at, b := range bs { // six at most
		if d := now.Sub(time.UnixMilli(at * bucketSpan.Milliseconds())); d > Skew+bucketSpan || d < -Skew {
			gone = append(gone, b.stretch)
			delete(bs, at)
		}
	}
	return gone
}

// admit remembers a message, unless it does already or its minute has most.
func (bs buckets) admit(made time.Time, name Name, most int) error {
	at := made.UnixMilli() / bucketSpan.Milliseconds()
	b := bs[at]
	if b == nil {
		b = &bucket{moment(made), make(map[Name]struct{})}
		bs[at] = b
	}
	if _, seen := b.names[name]; seen {
		return ErrSeen
	}
	if len(b.names) >= most {
		return ErrCrowded
	}
	b.names[name] = struct{}{}
	b.stretch = b.stretch.with(moment(made))
	return nil
}
