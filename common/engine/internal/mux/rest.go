package mux

import (
	"time"

	"github.com/xtaci/smux"

	"turbotunnel/common/engine/internal/half"
)

// A server's session at rest has no smux, whose queues and goroutines take most of
// what an idle session takes. When something comes, or is to be written, another one is
// made and told of the streams by SYN frames of our own. The other side sees nothing of
// that.

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
func (s *Session) begin(frames []byte) {
	start := smux.Server
	if s.client {
		start = smux.Client
	}
	s.smux, _ = start(&tap{s: s, ready: frames}, &config) // fails for a wrong config only
}

// use returns when there is smux, which stays until life is unlocked for reading.
func (s *Session) use() {
	if !s.life.TryRLock() {
		s.busy.Store(true) // or smux's reader takes the token, and rests before we have the lock
		half.Signal(s.nudge)
		s.life.RLock()
	}
}

// rest lets smux go if nothing was said since the last call and nothing is under way,
// and tells whether it has. The goroutine of smux that reads calls it, between frames.
func (s *Session) rest() bool {
	still := !s.busy.Swap(false)
	s.life.Lock() // until watch unlocks it
	s.mu.Lock()
	defer s.mu.Unlock()
	still = still && s.channel.Err() == nil
	for _, st := range s.streams {
		still = still && st.smux != nil && !st.closed && st.unread == 0
	}
	if !still {
		s.timer.Reset(restAfter)
		s.life.Unlock()
		return false
	}
	s.smux.Close() // waits for its writer's side
	s.smux = nil
	for _, st := range s.streams {
		st.smux = nil // it would keep all of smux
	}
	s.carrier.Hold(restCost - sessionCost)
	go s.watch()
	return true
}

// watch is the goroutine of a session at rest. It makes smux again when something has
// come, the channel has ended, or somebody wants to use it.
func (s *Session) watch() {
	defer s.life.Unlock()
	wait(s.channel.Comes, s.nudge, nil)
	s.carrier.Hold(sessionCost - restCost)
	s.timer.Reset(restAfter)
	var frames []byte
	s.mu.Lock()
	known := len(s.streams)
	for id, st := range s.streams {
		st.sentBefore = st.sent
		frames = append(append(frames, frame(cmdSYN, id)...), update(id, 0, noLimit)...)
	}
	s.mu.Unlock()
	s.begin(frames)
	for range known {
		s.next()
	}
}
