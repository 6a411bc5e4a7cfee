package carrier

import "time"

// Silence is how long an answer may be silent at most while nothing is known of a path.
const Silence = defaultQuiet

// Findings are what a Path has learned of the way through one front, for people.
type Findings struct {
	Known   bool          // whether answers arrive as they are written
	Streams bool          // they do
	Tried   bool          // it is known whether requests do
	Feeds   bool          // they do
	Serial  bool          // one exchange at a time is let through
	Cut     time.Duration // the shortest silence after which an answer has ended before its time; 0: none has
	Passes  time.Duration // the longest silence, of some seconds, after which one went on
	Request int           // bytes of the smallest request that was refused for its size; 0: none
	Answer  int           // likewise of answers
}

// Findings returns what is known of the way through a front, by its name.
func (p *Path) Findings(front string) Findings {
	w := p.way(front)
	f := Findings{Serial: w.oneAtATime(time.Now()), Request: w.up.refused(), Answer: w.down.refused()}
	f.Known, f.Streams = w.streams.found()
	f.Tried, f.Feeds = w.feeds.found()
	w.mu.Lock()
	defer w.mu.Unlock()
	f.Cut, f.Passes = w.cutAfter, w.passes
	return f
}

// Reach has sessions that begin later ask for answers that may be silent for up to so
// long, in place of what most paths allow: for whoever looks for what this one does.
func (p *Path) Reach(silence time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reach = min(silence, maxHold)
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
