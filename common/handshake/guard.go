package handshake

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Skew is how far a client's clock may be behind the server's or ahead of it.
	// A client that is off by more, or whose message is refused for another reason
	// that has to do with time, learns the server's time under its key.
	Skew = 2 * time.Minute

	// bucketSpan is how finely is forgotten what was admitted: all that was made in a
	// second at once. Of a clock that is set back, what is ahead of it by setBack more
	// than Skew is still remembered: were it spent, all would be that is between.
	bucketSpan = time.Second
	setBack    = time.Minute

	// maxBytes bounds what is remembered: 63 MB.
	maxBytes = 12 * nameCost << 17

	// nameCost is what a name takes, in bytes: 16, and a byte of the map's for each
	// of its places, of which between 7/16 and 7/8 are in use. bucketCost is what a
	// bucket takes beside its names.
	nameCost   = 40
	bucketCost = 160

	// near is how far ahead of the server's time, and how far behind it, a message may
	// always be, however many come: what a client that has just learned the time takes
	// to come back through a slow front.
	near = 2 * time.Second

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

	// ErrCrowded: too many were admitted in a few seconds.
	ErrCrowded = errors.New("handshake: too many new sessions in a few seconds")
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
// What is remembered has a bound, and whoever has the server's key can fill it. When
// it is full what is oldest is forgotten, a second's messages at once, and their time
// is spent. While it is half full a message may be made near ahead of the server's
// time at most, so that what is full is full of what can be forgotten soon. So a crowd
// narrows the time that is admitted from Skew to what fits. Clients whose clocks are
// off by more need that round trip; a newcomer is refused, by ErrCrowded, only while
// half of the bound does not hold what is made in 2*near and a second. That is 10 000
// messages in each second with the least bound that a server has, 4 MB, and they cost
// more than a core to read. A part of the bound for each address would need to know
// addresses, and would refuse whoever shares one; it would not raise what all can take.
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
	most  int   // bytes
	hold  func(n int)

	ahead atomic.Uint32 // the Day that Learn has found last; 0: none

	mu     sync.Mutex
	known  way           // of this epoch, by the count; guarded by mu, like what follows
	others way           // by the clock
	names  int           // of both
	looked [2]int64      // in which second of either clock it was looked for what is out of reach
	early  uint64        // names that were forgotten before their time
	saved  stretches     // what is spent by the clock, as kept by marks
	text   []byte        // the same, as marks have it from this process or had it at its start
	theirs stretches     // what marks had from other processes meanwhile
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
		clock: clock, marks: marks, most: maxBytes, hold: func(int) {},
		known: newWay(), others: newWay(),
	}
	rand.Read(g.epoch[:]) // never fails (crypto/rand)
	g.start, g.up = clock()
	if marks == nil {
		return g, nil
	}
	text, err := marks.Load()
	if err == nil {
		err = g.others.spent.UnmarshalText(text)
	}
	g.lost = err != nil
	g.saved, g.text = g.others.spent.clone(), text
	return g, err
}

// Bound has the Guard take no more than so many bytes, and tell hold of each that it
// takes more, or, negative, gives back. It is called before the first Admit.
func (g *Guard) Bound(bytes int64, hold func(n int)) {
	g.most = int(min(maxBytes, bytes))
	g.hold = hold
}

// Forgotten is how many messages were forgotten before their time, because too many
// came.
func (g *Guard) Forgotten() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.early
}

// count is the server's own time at up. mu need not be held.
func (g *Guard) count(up time.Duration) time.Time { return g.start.Add(up - g.up) }

// Time is what a client is told after ErrClock: the time that its next message
// shall have, and the epoch that it shall name, which may be none.
func (g *Guard) Time() (time.Time, Epoch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	wall, up := g.clock()
	if g.lost || g.failed != 0 || g.others.spent.has(wall) {
		return g.count(up), g.epoch
	}
	return wall, Epoch{}
}

// Expects tells whether a session with this ID may begin now, at the server with key
// pub: whether its tag is of these days, by the clock, by the count or by what Learn
// has found.
func (g *Guard) Expects(id ID, pub PublicKey) bool {
	wall, up := g.clock()
	count := g.count(up)
	ahead := Day(g.ahead.Load())
	return id.IsFor(pub, wall) || DayOf(wall) != DayOf(count) && id.IsFor(pub, count) || ahead != 0 && id.isFor(pub, ahead)
}

// Learn looks for the day of an ID that is not expected, which takes half a second, and
// returns how many days ahead of the clock it is: 0, if it has none, or ctx has ended.
//
// A tag of a day that is still to come was made by who has the key, and is in no log
// that is old: it is expected from then on, with the days beside it. So a server whose
// clock is behind by days, or began in 1970, is found by clients who cannot know that,
// because a proxy answers by its own clock. What is behind the clock is what somebody
// may have found in a log.
func (g *Guard) Learn(ctx context.Context, id ID, pub PublicKey) (days int) {
	day, ok := id.day(ctx, pub)
	if !ok {
		return 0
	}
	wall, _ := g.clock()
	today := DayOf(wall)
	if day > today {
		g.ahead.Store(uint32(day))
	}
	return int(day) - int(today)
}

// Admit returns nil if the first message called name that was made at made and
// names epoch may open a session now, and else one of the errors above.
func (g *Guard) Admit(made time.Time, epoch Epoch, name Name) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.weigh()
	wall, up := g.clock()
	count := g.count(up)
	if at := [2]int64{bucketOf(wall), bucketOf(count)}; at != g.looked {
		g.looked = at
		g.names -= g.others.forget(wall) + g.known.forget(count)
	}
	if g.bytes() >= g.most {
		g.makeRoom(wall, count)
	}
	switch epoch {
	case Epoch{}:
		return g.byClock(made, name, wall, up)
	case g.epoch:
		return g.byCount(made, name, count)
	}
	return ErrClock
}

// makeRoom forgets what is oldest before its time, unless that is near. mu is held.
func (g *Guard) makeRoom(wall, count time.Time) {
	from := &g.known
	at, age := from.oldest(count)
	if a, d := g.others.oldest(wall); d > age {
		from, at, age = &g.others, a, d
	}
	if age < near+bucketSpan {
		return
	}
	gone := from.drop(at)
	g.names -= gone
	g.early += uint64(gone)
}

// bytes is what is held. mu is held.
func (g *Guard) bytes() int {
	return g.names*nameCost + (len(g.known.buckets)+len(g.others.buckets))*bucketCost
}

// weigh tells hold what has changed. mu is held.
func (g *Guard) weigh() {
	now := g.bytes()
	if now != g.held {
		g.hold(now - g.held)
		g.held = now
	}
}

// byCount admits a message that names the epoch. mu is held.
func (g *Guard) byCount(made time.Time, name Name, now time.Time) error {
	if now.Sub(made).Abs() > Skew || g.known.spent.has(made) {
		return ErrClock
	}
	return g.remember(&g.known, made, name, now)
}

// byClock admits a message that names none. mu is held.
func (g *Guard) byClock(made time.Time, name Name, wall time.Time, up time.Duration) error {
	begin := wall.Add(g.up - up).Truncate(time.Millisecond) // as times on the wire are
	if wall.Sub(made).Abs() > Skew || made.Before(begin) || g.lost || g.others.spent.has(made) || !g.keep(wall, made, up) {
		return ErrClock
	}
	return g.remember(&g.others, made, name, wall)
}

// remember admits a message, unless it was before or there is no room. mu is held.
func (g *Guard) remember(w *way, made time.Time, name Name, now time.Time) error {
	at := bucketOf(made)
	b := w.buckets[at]
	switch {
	case b != nil && b.has(name):
		return ErrSeen
	case g.bytes() >= g.most/2 && made.Sub(now) > near:
		return ErrClock
	case g.bytes() >= g.most:
		return ErrCrowded
	case b == nil:
		b = &bucket{moment(made), make(map[Name]struct{})}
		w.buckets[at] = b
	}
	b.names[name] = struct{}{}
	b.stretch = b.stretch.with(moment(made))
	g.names++
	return nil
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
	all := g.others.spent.clone()
	for _, b := range g.others.buckets {
		all.add(b.stretch)
	}
	return all
}

func (g *Guard) save(s stretches) error {
	// Another process of this server has written what it admits if one ends while the
	// next already runs.
	if text, err := g.marks.Load(); err == nil && !bytes.Equal(text, g.text) {
		var theirs stretches
		if theirs.UnmarshalText(text) == nil {
			for _, o := range theirs {
				g.theirs.add(o)
			}
		}
	}
	for _, o := range g.theirs { // also when the last to write was this one
		s.add(o)
	}
	text, err := s.MarshalText()
	if err == nil {
		err = g.marks.Save(text)
	}
	if err == nil {
		g.saved, g.text = s, text
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

// A way is what is known of the messages that came in by one clock.
type way struct {
	buckets map[int64]*bucket // those that are remembered, by the second in which they were made
	spent   stretches         // in which there were others
}

type bucket struct {
	stretch stretch // from the earliest to after the latest
	names   map[Name]struct{}
}

func newWay() way { return way{buckets: make(map[int64]*bucket)} }

// bucketOf is the bucket of what was made at t, ageOf how long before now one began.
func bucketOf(t time.Time) int64 { return t.UnixMilli() / bucketSpan.Milliseconds() }

func ageOf(at int64, now time.Time) time.Duration {
	return now.Sub(time.UnixMilli(at * bucketSpan.Milliseconds()))
}

func (b *bucket) has(name Name) bool {
	_, has := b.names[name]
	return has
}

// forget drops the buckets that are out of reach at now, and returns how many names
// were in them.
func (w *way) forget(now time.Time) (names int) {
	for at := range w.buckets { // some hundred at most
		if age := ageOf(at, now); age > Skew+bucketSpan || age < -Skew-setBack {
			names += w.drop(at)
		}
	}
	return names
}

// oldest returns the bucket that began first and how long before now, or 0 and 0.
func (w *way) oldest(now time.Time) (at int64, age time.Duration) {
	for a := range w.buckets {
		if d := ageOf(a, now); d > age {
			at, age = a, d
		}
	}
	return at, age
}

// drop forgets a bucket, whose time is spent from now on, and returns how many names
// were in it.
func (w *way) drop(at int64) (names int) {
	b := w.buckets[at]
	delete(w.buckets, at)
	w.spent.add(b.stretch)
	return len(b.names)
}
