package carrier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

const (
	// handshakeTime is how long a session may take to be established, and
	// handshakeTries how many times in a row it may fail in one way.
	handshakeTime  = 45 * time.Second
	handshakeTries = 3

	// firstWords is how long a first message waits, where the connection is there
	// already, for what the engine says first: a little longer than engines keep the
	// opening of a stream for a write that follows. What misses the first message
	// takes a round trip more.
	firstWords = 3 * time.Millisecond

	// eagerness is how long a first message waits for an answer that comes as it
	// is written, beyond two round trips, before it is sent again for one that
	// comes at once.
	eagerness = 2 * time.Second
)

// errHeldBack ends the wait for an answer that was to come as it is written. It
// is no time-out: another answer will show whether there is anything amiss.
var errHeldBack = errors.New("the answer does not come as it is written")

// errTime says that the server has refused a first message for its time.
var errTime = errors.New("refused by the server for its time")

// attempts are a session's first messages, of which only the newest is used.
// A Transport may read a request's body after the request has failed, or after
// it was answered: hence the lock.
//
// No two of them carry datagrams. One that was refused, or seems to have been, may
// be in the hands of somebody who waits until it is admitted; what it carried is
// never sent in another session.
type attempts struct {
	mu      sync.Mutex
	newest  *attempt // guarded by mu, like what follows
	carried bool     // one of them carries datagrams
}

// An attempt is one first message, which is made when a connection is ready
// to carry it and then repeated as it is until it is answered.
type attempt struct {
	id    handshake.ID
	asked wire.Head // of the answer
	ask   []byte    // its plaintext
	size  int
	day   handshake.Day // of its tag
	bare  bool          // it carries nothing
	date  string        // of a foreign answer to it; owned by run

	// Guarded by attempts.mu. Zero before the message is made.
	message   []byte
	initiator *handshake.Initiator
}

// newAttempt prepares a first message in place of the one before.
func (c *Client) newAttempt() *attempt {
	c.attempts.mu.Lock()
	defer c.attempts.mu.Unlock()
	stamp := c.cfg.Path.clock.stamp()
	a := &attempt{
		id: handshake.NewID(c.cfg.Key, stamp.day),
		// Room for what a TLS client says first, and no length of ours.
		size:  2048 + mathrand.IntN(1500),
		day:   stamp.day,
		bare:  stamp.bare,
		asked: c.ask(),
	}
	a.ask = a.asked.Append(nil)
	c.target = strings.TrimSuffix(c.cfg.URL.String(), "/") + "/" + a.id.Segment()
	c.attempts.newest = a
	return a
}

// anew prepares a first message in place of one that can only be refused, or says
// that the session is over, because that one carries what cannot be sent again.
func (c *Client) anew(why error) (*attempt, error) {
	c.attempts.mu.Lock()
	carried := c.attempts.carried
	c.attempts.mu.Unlock()
	if carried {
		return nil, fmt.Errorf("%w: %w", ErrClock, why)
	}
	return c.newAttempt(), nil
}

// ask is what the answer to a first message shall be: if the path is known to
// stream and has room, the first of the session's streams. It tells what the path
// has carried before, and this side begins with that, too.
func (c *Client) ask() wire.Head {
	way, now := c.way(), time.Now()
	asked := wire.Head{Limit: bodyBelow(maxAnswers)}
	c.cfg.Path.paces.begin(c.cfg.Transport.Name(), c.link, &asked) // recall
	if _, crowded := c.cfg.Transport.Slots(); c.cfg.Mode != Poll && way.streams.has() && !crowded && !way.oneAtATime(now) {
		_, asked.Quiet, asked.Stream = way.lengths()
		asked.Limit = bodyBelow(maxStream)
	}
	if w := &way.down; !w.takesLarge() {
		asked.Unit, asked.Limit = smallUnit, min(asked.Limit, bodyBelow(w.known(maxAnswers)))
	}
	return asked
}

// awaitWords returns when the engine has said something that a can carry, or too
// late. Nobody else looks at wake before the server has answered.
func (c *Client) awaitWords(a *attempt) {
	if a.bare || c.attempts.of(a) != nil {
		return
	}
	defer signal(c.link.wake)
	late := time.After(firstWords)
	for !c.link.unfinished() {
		select {
		case <-c.link.wake:
		case <-c.link.closed:
			return
		case <-late:
			return
		}
	}
}

// message returns a's first message and makes it before if that is due.
func (c *Client) message(a *attempt) ([]byte, error) {
	c.attempts.mu.Lock()
	defer c.attempts.mu.Unlock()
	if a != c.attempts.newest {
		return nil, errUnneeded
	}
	if a.message == nil {
		var datagrams []byte
		if !a.bare {
			datagrams = c.link.takeHello(handshake.HelloRoom(a.size, c.cfg.Engine, len(a.ask)))
		}
		c.attempts.carried = c.attempts.carried || len(datagrams) > 0
		stamp := c.cfg.Path.clock.stamp()
		var err error
		a.message, a.initiator, err = handshake.Initiate(c.cfg.Key, a.id, handshake.Hello{
			Binding:   c.conn.binding,
			Ask:       a.ask,
			Version:   handshake.Version,
			Time:      stamp.time,
			Epoch:     stamp.epoch,
			AES:       wire.HasAES,
			Engine:    c.cfg.Engine,
			Datagrams: datagrams,
		}, a.size)
		if err != nil {
			return nil, err
		}
	}
	return a.message, nil
}

// end gives up what is needed no more when the server has answered: it is large.
func (t *attempts) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.newest = nil
}

// of returns the client's half of a's handshake: nil before the message is made.
func (t *attempts) of(a *attempt) *handshake.Initiator {
	t.mu.Lock()
	defer t.mu.Unlock()
	return a.initiator
}

// handshake repeats the first message until the server has answered, or until
// it is clear that it will not.
func (c *Client) handshake() error {
	deadline := time.Now().Add(handshakeTime)
	a := c.newAttempt()
	unreachable, foreign, untimely := 0, 0, 0
	for {
		err := c.greet(a)
		wrong := false
		switch {
		case err == nil:
			c.cfg.Path.clock.answered()
			return nil
		case errors.Is(err, errHeldBack):
			continue
		case c.ctx.Err() != nil:
			return fmt.Errorf("%w: closed before the server answered", ErrLost)
		case errors.Is(err, errTime):
			untimely++
			if wrong = true; untimely >= handshakeTries {
				return fmt.Errorf("%w: %w, which it has told itself", ErrRefused, err)
			}
		case errors.Is(err, ErrRefused):
			return err
		case errors.Is(err, ErrNotServer):
			foreign++
			wrong = c.cfg.Path.clock.hear(a.date, a.day) && foreign < handshakeTries
		default:
			unreachable++
		}
		if wrong {
			if a, err = c.anew(err); err != nil {
				return err
			}
			continue // at once
		}
		if foreign >= handshakeTries || unreachable >= handshakeTries || time.Now().After(deadline) {
			return err
		}
		c.log.Debug("no answer from the server yet", "err", err)
		rest := min(c.cfg.Transport.Rest(), maxRest, time.Until(deadline))
		if !pause(max(backoff(foreign+unreachable, 0), rest), c.ctx.Done(), c.link.closed) {
			return fmt.Errorf("%w: closed before the server answered", ErrLost)
		}
	}
}

// told takes note of the time that the server has told.
func (c *Client) told(a handshake.Answer) error {
	off := c.cfg.Path.clock.tell(a).Round(time.Second)
	if off.Abs() > handshake.Skew/2 {
		c.log.Warn("the clock of this computer or of the server is wrong: using the server's", "off", off)
	}
	if off == 0 {
		return fmt.Errorf("%w: it was made before the server was started, or was under way for long", errTime)
	}
	return fmt.Errorf("%w: this clock is off by %v", errTime, -off)
}

// refusal is the error that a server's answer means.
func refusal(a handshake.Answer, engine string) error {
	switch a.Status {
	case handshake.Accepted:
		return nil
	case handshake.UnknownEngine:
		return fmt.Errorf("%w: it has no engine %q, but %.200q: choose one with engine=", ErrRefused, engine, a.Text)
	case handshake.UnknownVersion:
		return fmt.Errorf("%w: this program speaks version %d of the protocol, the server up to %d: update the older one",
			ErrRefused, handshake.Version, a.Version)
	}
	return fmt.Errorf("%w: status %d", ErrRefused, a.Status)
}

// greet sends the first message once and returns nil if the server accepted.
// The rest of the answer is then taken in by the flight's goroutine.
func (c *Client) greet(a *attempt) error {
	f := c.newFlight(0, greeting)
	if c.attempts.of(a) == nil && a.asked.Stream > 0 {
		// What repeats a message is answered briefly.
		f.kind, f.asked = stream, a.asked
	}
	accepted := false
	defer func() {
		if !accepted {
			f.cancel(nil)
		}
	}()
	wait := below(patience, patience/4)
	watchdog := time.AfterFunc(wait, func() {
		f.cancel(fmt.Errorf("no answer within %v: %w", wait.Round(time.Second), os.ErrDeadlineExceeded))
	})
	eager := time.AfterFunc(time.Hour, func() { f.cancel(errHeldBack) })
	defer eager.Stop()
	resp, err := c.post(f.ctx, io.NopCloser(&lazyReader{make: func() ([]byte, error) {
		if f.kind == stream {
			// The path may hold answers back by now: then it comes with the next try.
			eager.Reset(below(eagerness, eagerness/4) + 2*a.asked.Trip)
		}
		c.awaitWords(a)
		return c.message(a)
	}}), int64(a.size))
	if err != nil {
		watchdog.Stop()
		// The transport's error may name the step that took so long.
		if cause := context.Cause(f.ctx); cause != nil && !errors.Is(err, cause) {
			err = cause
		}
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer func() {
		if !accepted {
			watchdog.Stop()
			resp.Body.Close()
		}
	}()
	res := result{flight: f}
	if err := res.notes(resp); err != nil {
		a.date = resp.Header.Get("Date")
		if !res.foreign {
			return fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		return fmt.Errorf("%w: %w", ErrNotServer, err)
	}
	var answer handshake.Answer
	var keys handshake.Keys
	err = handshake.ErrNotNoise // from who answered before the message was read
	if initiator := c.attempts.of(a); initiator != nil {
		answer, keys, err = initiator.Finish(resp.Body)
	}
	if err != nil && !somebodyElses(resp, err) {
		return fmt.Errorf("%w: answer cut short: %w", ErrUnreachable, err)
	}
	if err != nil {
		a.date = resp.Header.Get("Date")
		c.cfg.Transport.Foreign(resp)
		return fmt.Errorf("%w: %w", ErrNotServer, &errForeign{resp.StatusCode, resp.Header.Get("Content-Type")})
	}
	if answer.Status == handshake.WrongTime {
		return c.told(answer)
	}
	if err := refusal(answer, c.cfg.Engine); err != nil {
		return err
	}
	accepted = true
	f.mark(&f.first)
	c.link.send, c.link.receive = keys.Send, keys.Receive
	c.attempts.end()
	c.hears(time.Now())
	c.ready.open()
	c.flights[0] = f
	if f.kind == stream {
		wait += f.asked.Quiet
		watchdog.Reset(wait)
		c.link.tell() // the server takes the session for a stranger's until then
	}
	c.wg.Go(func() {
		defer f.cancel(nil)
		defer resp.Body.Close()
		defer watchdog.Stop()
		res.err = c.takeIn(resp.Body, resp, &res, func() {
			watchdog.Reset(wait)
			f.mark(&f.heard)
		})
		if res.err != nil && f.ctx.Err() != nil {
			res.err = context.Cause(f.ctx)
		}
		c.link.endExchange(0, res.err != nil)
		c.report(&res)
	})
	return nil
}

// lazyReader reads what make returns, which is called when the first byte is
// wanted: the connection is ready then.
type lazyReader struct {
	make func() ([]byte, error)
	r    *bytes.Reader
}

func (l *lazyReader) Read(p []byte) (int, error) {
	if l.r == nil {
		b, err := l.make()
		if err != nil {
			return 0, err
		}
		l.r = bytes.NewReader(b)
	}
	return l.r.Read(p)
}
