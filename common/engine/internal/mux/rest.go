package mux

import (
	"maps"
	"slices"
	"time"

	"github.com/xtaci/smux"
)

// A server's session at rest has no smux, whose queues and goroutines take most of
// what an idle session takes, and cannot be made smaller. All that smux knows of a
// stream on which nothing is under way is known here, too, but for a count. So
// smux is let go, and when something comes, or is to be written, another one is made
// and told of the streams by SYN frames of our own. The other side sees nothing of
// that. An idle session takes 75 KB less so, with one stream open or none; a rest costs
// 45 µs of the processor, its garbage included (BenchmarkRest).

const (
	// restAfter is how long nothing must have been said until a session rests, at
	// least; twice as long at most. tor pads an idle connection every 1.5 to 9.5 s, and
	// a rest in each of those pauses would make 10 KB of garbage a second.
	restAfter = 5 * time.Second

	// restCost is what a session at rest takes, in bytes: a goroutine, and what this
	// package keeps (TestSessionCost).
	restCost = 11 << 9
)

// begin makes smux, for which frames have come already. life is held.
func (s *Session) begin(frames []byte) error {
	s.tap = &tap{s: s, ready: frames, quit: make(chan struct{}), ended: make(chan struct{})}
	start := smux.Server
	if s.client {
		start = smux.Client
	}
	var err error
	s.smux, err = start(s.tap, &config)
	return err
}

// use returns when there is smux, which stays until life is unlocked for reading.
func (s *Session) use() {
	s.life.RLock()
	for s.smux == nil {
		s.life.RUnlock()
		s.resume()
		s.life.RLock()
	}
}

// rest lets smux go if nothing was said since the last time, and nothing is under
// way; else it looks again later.
func (s *Session) rest() {
	s.life.Lock()
	defer s.life.Unlock()
	if s.smux == nil || s.channel.Err() != nil {
		return
	}
	if !s.isStill() {
		s.timer.Reset(restAfter)
		return
	}
	s.smux.Close() // waits for its writer's side
	<-s.tap.ended  // its reader
	s.smux, s.tap = nil, nil
	s.mu.Lock()
	for _, st := range s.streams {
		st.smux = nil // it would keep all of smux
	}
	s.mu.Unlock()
	s.carrier.Hold(restCost - sessionCost)
	s.watching, s.quit = make(chan struct{}), make(chan struct{})
	go s.watch(s.watching, s.quit)
}

// isStill tells whether smux knows nothing that is not known here. If so, it is told
// nothing more.
func (s *Session) isStill() bool {
	frames := s.frames.Load()
	if frames != s.seen {
		s.seen = frames
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.tap.waits {
		return false
	}
	for _, st := range s.streams {
		if !st.isStill() {
			return false
		}
	}
	s.tap.dismissed = true
	close(s.tap.quit)
	return true
}

// isStill tells whether nothing is under way on a stream that is open both ways. The
// session's mutex is held.
func (st *Stream) isStill() bool {
	return st.smux != nil && !st.closed && !st.ended && !st.fin && !st.stopped &&
		st.unread == 0 && st.staged == nil && !st.flushing
}

// watch is the goroutine of a session at rest. It has smux made again when something
// has come, or the channel has ended, unless somebody else does before.
func (s *Session) watch(watching, quit chan struct{}) {
	comes := s.comes(quit)
	close(watching)
	if comes {
		s.resume()
	}
}

// resume makes smux again, if the session rests.
func (s *Session) resume() {
	s.life.Lock()
	defer s.life.Unlock()
	if s.smux != nil {
		return
	}
	close(s.quit)
	<-s.watching
	s.mu.Lock()
	ids := slices.Sorted(maps.Keys(s.streams))
	var frames []byte
	for _, id := range ids {
		st := s.streams[id]
		st.sentBefore = st.sent
		frames = append(append(frames, frame(cmdSYN, id)...), update(id, 0, noLimit)...)
	}
	s.mu.Unlock()
	s.carrier.Hold(sessionCost - restCost)
	err := s.begin(frames)
	for i := 0; i < len(ids) && err == nil; i++ {
		var str *smux.Stream
		if str, err = s.next(); err == nil {
			s.attach(str)
		}
	}
	if err != nil {
		s.channel.Fail(err)
	}
	s.timer.Reset(restAfter)
}
