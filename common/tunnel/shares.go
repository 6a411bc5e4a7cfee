package tunnel

import (
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

// A holding is what a holder has.
type holding struct {
	streams map[*ServerStream]struct{}
	rate    *rate.Limiter // of new streams
}

// shares are the streams of all sessions. Safe for concurrent use.
type shares struct {
	most int // streams

	mu        sync.Mutex
	open      int // streams; guarded by mu, like what follows
	holders   map[holder]*holding
	forgotten time.Time // when holders were forgotten last
}

func newShares(most int) *shares {
	if most <= 0 {
		most = defaultStreams
	}
	return &shares{most: most, holders: make(map[holder]*holding)}
}

// of returns h's share. mu is held.
func (s *shares) of(h holder) *holding {
	sh := s.holders[h]
	if sh == nil {
		sh = &holding{make(map[*ServerStream]struct{}), rate.NewLimiter(addressRate, addressBurst)}
		s.holders[h] = sh
	}
	return sh
}

// reserve returns how long the next stream of a holder has to wait.
func (s *shares) reserve(h holder, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.forgotten) > forgetEvery {
		s.forgotten = now
		for h, sh := range s.holders {
			if len(sh.streams) == 0 && sh.rate.TokensAt(now) >= addressBurst {
				delete(s.holders, h)
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
	if st.holder.network.IsValid() && len(own.streams) >= max(s.most/addressPart, 1) {
		return false, nil
	}
	if s.open >= s.most {
		if goes = s.idlest(len(own.streams), now); goes == nil {
			s.forget(st.holder, own)
			return false, nil
		}
	}
	own.streams[st] = struct{}{}
	s.open++
	if goes != nil {
		s.drop(goes)
	}
	return true, goes
}

// idlest returns the stream that goes for one of a holder that has own streams,
// or nil. mu is held.
func (s *shares) idlest(own int, now time.Time) *ServerStream {
	most := 0
	for _, sh := range s.holders {
		most = max(most, len(sh.streams))
	}
	if most < own {
		return nil
	}
	var goes *ServerStream
	for _, sh := range s.holders {
		if len(sh.streams) < most {
			continue
		}
		for st := range sh.streams {
			if goes == nil || st.moved.Load() < goes.moved.Load() {
				goes = st
			}
		}
	}
	if goes != nil && most <= own+1 && now.Sub(time.Unix(0, goes.moved.Load())) < idleStream {
		return nil
	}
	return goes
}

// remove is for a stream that has ended. Twice is once.
func (s *shares) remove(st *ServerStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(st)
}

// drop counts a stream no more. mu is held.
func (s *shares) drop(st *ServerStream) {
	sh := s.holders[st.holder]
	if sh == nil {
		return
	}
	if _, ok := sh.streams[st]; ok {
		delete(sh.streams, st)
		s.open--
	}
	s.forget(st.holder, sh)
}

// forget forgets a session that has no stream. Nobody else would: sessions come and
// go, and with each its memory would stay. mu is held.
func (s *shares) forget(h holder, sh *holding) {
	if len(sh.streams) == 0 && h.session != nil {
		delete(s.holders, h)
	}
}

// streams is how many there are now, and may be.
func (s *shares) streams() (open, most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open, s.most
}
