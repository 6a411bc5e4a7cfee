package carrier

import "time"

// Findings are what a Path has learned of the way through one front, for people.
type Findings struct {
	Known   bool          // whether answers arrive as they are written
	Streams bool          // they do
	Serial  bool          // one exchange at a time is let through
	Hold    time.Duration // how long a poll may wait for its answer
	Quiet   time.Duration // how long a streamed answer may be silent
	Cut     bool          // answers that took longer than one of these have been cut
	Request int           // bytes of the smallest request that was refused for its size; 0: none
	Answer  int           // likewise of answers
}

// Findings returns what is known of the way through a front, by its name.
func (p *Path) Findings(front string) Findings {
	w := p.way(front)
	f := Findings{Serial: w.oneAtATime(time.Now()), Request: w.up.refused(), Answer: w.down.refused()}
	f.Known, f.Streams = w.streams.found()
	w.mu.Lock()
	defer w.mu.Unlock()
	f.Hold, f.Quiet = w.hold, w.quiet
	f.Cut = w.hold < defaultHold || w.quiet < defaultQuiet
	return f
}

// refused is the size in bytes of the smallest body that has failed for its size; 0:
// none has.
func (s *sizes) refused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tooLarge
}

// ClockOff is how far this computer's clock is behind the server's, as the server
// has told under its key. known is false while there was no need to.
func (p *Path) ClockOff() (off time.Duration, known bool) {
	c := &p.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.said.here.IsZero() {
		return 0, false
	}
	return time.Until(c.said.now()), true
}
