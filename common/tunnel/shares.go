package tunnel

import (
	"container/heap"
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"turbotunnel/common/carrier"
)

const (
	// sessionStreams is how many streams a client may have open in one session:
	// several times what a browser opens. One beyond it is reset at once.
	sessionStreams = 256

	// defaultStreams bounds the streams of all sessions. Each is a connection
	// to the same place, for which Linux has 28 232 ports (32768 to 60999).
	defaultStreams = 16384

	// addressPart of all streams may belong to one client's address, behind
	// which there may be many people.
	addressPart = 4

	// A browser opens some 60 connections for a page, and two pages can be
	// opened at a time; from then on streams of a session become streams of the
	// server's only so often in a second. Of an address it is four times as many.
	sessionBurst = 128
	sessionRate  = rate.Limit(32)
	addressBurst = 4 * sessionBurst
	addressRate  = 4 * sessionRate

	// idleStream is how long nothing must have passed on a stream that goes
	// for another's, when nobody has more streams than others.
	idleStream = time.Minute

	// movedEvery is how long a stream on which something passes keeps its place in the
	// order of the idle ones: using it takes the lock of all so often at most.
	movedEvery = time.Second

	// forgetEvery is how often addresses are forgotten that have no stream and
	// whose rate is a new one's again. A session is forgotten with its last stream:
	// it has a rate of its own, elsewhere.
	forgetEvery = 10 * time.Second
)

// A holder is whose share a stream counts for: the client's network, or where
// that is not known the session.
type holder struct {
	network netip.Prefix
	session *carrier.Session
}

// holderOf returns the holder of what session opens. An IPv6 network is a /64,
// which is the least that one customer gets.
func holderOf(session *carrier.Session) holder {
	addr := session.Client()
	if !addr.IsValid() {
		return holder{session: session}
	}
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	network, err := addr.Prefix(bits)
	if err != nil {
		return holder{session: session}
	}
	return holder{network: network}
}

// A holding is what a holder has. The shares' mu guards it.
type holding struct {
	of      holder
	streams list.List     // of *ServerStream, those first on which nothing has passed for the longest
	rate    *rate.Limiter // of new streams
	at      int           // its place among the rivals
}

// idlest is the stream that goes first, of one at least.
func (h *holding) idlest() *ServerStream { return h.streams.Front().Value.(*ServerStream) }

// rivals are all holdings, as a heap: the first has most streams, and of those that
// have so many the one that is idle for the longest.
type rivals struct {
	all      []*holding
	compared int // how often two were: what a test counts
}

func (r *rivals) Len() int { return len(r.all) }

func (r *rivals) Less(i, j int) bool {
	r.compared++
	a, b := r.all[i], r.all[j]
	if n := a.streams.Len(); n != b.streams.Len() || n == 0 {
		return n > b.streams.Len()
	}
	return a.idlest().moved.Load() < b.idlest().moved.Load()
}

func (r *rivals) Swap(i, j int) {
	r.all[i], r.all[j] = r.all[j], r.all[i]
	r.all[i].at, r.all[j].at = i, j
}

func (r *rivals) Push(x any) {
	h := x.(*holding)
	h.at = len(r.all)
	r.all = append(r.all, h)
}

func (r *rivals) Pop() any {
	last := len(r.all) - 1
	h := r.all[last]
	r.all[last] = nil
	r.all = r.all[:last]
	return h
}

// shares are the streams of all sessions. What they do for a stream takes no longer
// when there are many, but for the depth of a heap. Safe for concurrent use.
type shares struct {
	most  int       // streams; constant
	began time.Time // from which streams' times count, which nobody can set; constant

	mu        sync.Mutex
	open      int // streams; guarded by mu, like what follows
	holders   map[holder]*holding
	rivals    rivals
	forgotten time.Time // when holders were forgotten last
}

func newShares(most int) *shares {
	if most <= 0 {
		most = defaultStreams
	}
	return &shares{most: most, began: time.Now(), holders: make(map[holder]*holding)}
}

// of returns h's share. mu is held.
func (s *shares) of(h holder) *holding {
	sh := s.holders[h]
	if sh == nil {
		sh = &holding{of: h, rate: rate.NewLimiter(addressRate, addressBurst)}
		s.holders[h] = sh
		heap.Push(&s.rivals, sh)
	}
	return sh
}

// delete forgets a holder. mu is held.
func (s *shares) delete(sh *holding) {
	delete(s.holders, sh.of)
	heap.Remove(&s.rivals, sh.at)
}

// reserve returns how long the next stream of a holder has to wait.
func (s *shares) reserve(h holder, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.forgotten) > forgetEvery {
		s.forgotten = now
		for _, sh := range s.holders {
			if sh.streams.Len() == 0 && sh.rate.TokensAt(now) >= addressBurst {
				s.delete(sh)
			}
		}
	}
	return s.of(h).rate.ReserveN(now, 1).DelayFrom(now)
}

// add counts a stream, if there is room for it. When there is not, a stream of
// those who have most goes for it, which is the caller's to reset: of streams
// on which nothing passes, the one that has been so for longest.
func (s *shares) add(st *ServerStream, now time.Time) (ok bool, goes *ServerStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.of(st.holder)
	n := own.streams.Len()
	if st.holder.network.IsValid() && n >= max(s.most/addressPart, 1) {
		return false, nil
	}
	if s.open >= s.most {
		if goes = s.idlest(n, now); goes == nil {
			s.forget(own)
			return false, nil
		}
	}
	st.moved.Store(s.since(now))
	st.place = own.streams.PushBack(st)
	s.open++
	heap.Fix(&s.rivals, own.at)
	if goes != nil {
		s.drop(goes)
	}
	return true, goes
}

// since is a time as streams have it.
func (s *shares) since(now time.Time) int64 { return int64(now.Sub(s.began)) }

// idlest returns the stream that goes for one of a holder that has own streams,
// or nil. mu is held, and there is a stream.
func (s *shares) idlest(own int, now time.Time) *ServerStream {
	first := s.rivals.all[0]
	goes := first.idlest()
	if first.streams.Len() <= own+1 && s.since(now)-goes.moved.Load() < int64(idleStream) {
		return nil
	}
	return goes
}

// passed says that something has passed on a stream.
func (s *shares) passed(st *ServerStream, now time.Time) {
	if s.since(now)-st.moved.Load() < int64(movedEvery) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.place == nil {
		return
	}
	sh := s.holders[st.holder]
	first := sh.streams.Front() == st.place
	st.moved.Store(s.since(now))
	sh.streams.MoveToBack(st.place)
	if first {
		heap.Fix(&s.rivals, sh.at)
	}
}

// remove is for a stream that has ended. Twice is once.
func (s *shares) remove(st *ServerStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(st)
}

// drop counts a stream no more. mu is held.
func (s *shares) drop(st *ServerStream) {
	if st.place == nil {
		return
	}
	sh := s.holders[st.holder]
	sh.streams.Remove(st.place)
	st.place = nil
	s.open--
	heap.Fix(&s.rivals, sh.at)
	s.forget(sh)
}

// forget forgets a session that has no stream. Nobody else would: sessions come and
// go, and with each its memory would stay. mu is held.
func (s *shares) forget(sh *holding) {
	if sh.streams.Len() == 0 && sh.of.session != nil {
		s.delete(sh)
	}
}

// streams is how many there are now, and may be.
func (s *shares) streams() (open, most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open, s.most
}
