package carrier

import (
	"net/http"
	"sync"
	"time"

	"turbotunnel/common/handshake"
)

// A serverClock is what clients know of the server's clock. The zero value takes it
// to be theirs. Safe for concurrent use.
//
// What the server has said under its key is the time for first messages. The Date of
// an answer that anybody can have made is good for one thing, the day for the tag of
// a path, and until the server has answered nothing that an application says is
// sent with it.
type serverClock struct {
	mu    sync.Mutex
	said  moment          // by the server; guarded by mu, like what follows
	epoch handshake.Epoch // likewise
	date  moment          // of somebody's answer, newer than what was said
	bare  bool            // the server has not answered since
}

// A moment is a time by another clock and when that was by this one, whose count
// nobody can set. The zero moment is none.
type moment struct{ there, here time.Time }

// now is the time there.
func (m moment) now() time.Time {
	if m.here.IsZero() {
		return time.Now()
	}
	return m.there.Add(time.Since(m.here))
}

// A stamp is what a first message has of the server's clock.
type stamp struct {
	day   handshake.Day // for the tag
	time  time.Time
	epoch handshake.Epoch
	bare  bool // the message shall carry nothing
}

// stamp is what a first message shall have that is made now.
func (c *serverClock) stamp() stamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := stamp{time: c.said.now(), epoch: c.epoch, bare: c.bare}
	s.day = handshake.DayOf(s.time)
	if !c.date.here.IsZero() {
		s.day = handshake.DayOf(c.date.now())
	}
	return s
}

// tell takes note of what the server has said, and returns how far this computer's
// clock is behind.
func (c *serverClock) tell(a handshake.Answer) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said, c.epoch = moment{a.Time, time.Now()}, a.Epoch
	c.date, c.bare = moment{}, false
	return time.Until(a.Time)
}

// hear looks at the Date of a foreign answer to a message with the tag of a day, and
// tells whether it is so far from that day that a server refuses the tag: another
// one is worth a try.
func (c *serverClock) hear(date string, day handshake.Day) bool {
	t, err := http.ParseTime(date)
	if err != nil {
		return false
	}
	if d := int64(handshake.DayOf(t)) - int64(day); -1 <= d && d <= 1 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.date, c.bare = moment{t, time.Now()}, true
	return true
}

// answered takes note that the server has accepted a message.
func (c *serverClock) answered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bare = false
}
