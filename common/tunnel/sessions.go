package tunnel

import (
	"context"
	"errors"
	"slices"
	"time"

	"turbotunnel/common/engine"
)

// Which session a new stream shares, and how one takes another's place.
//
//	           as many streams as it may have, or not heard for its Lifetime
//	current ------------------------------------------------------------------> spare
//	   |  ^                                                                       ^
//	   |  | it has recovered, and no stream has come into the new one             | else
//	   v  |                                                                       |
//	doubtful: answers by somebody else. A new session is tried; when that is accepted,
//	new streams go there. The old one ends only if it is still answered so afterwards.
//
// A spare session takes a stream where the current one has no room, and ends when
// it has none.

// session returns the session for a new stream, with a place in it. It waits for a
// doubt to be settled.
func (d *Dialer) session(ctx context.Context) (*session, error) {
	for first := true; ; first = false {
		s, doubt, err := d.reserve()
		if err != nil || doubt == nil || !first {
			return s, err
		}
		select {
		case <-doubt:
			d.release(s) // there may be a better one
		case <-ctx.Done():
			d.release(s)
			return nil, context.Cause(ctx)
		}
	}
}

// reserve is session without the wait: doubt, if not nil, is closed when it is known
// whether the server accepts a session in this one's place.
func (d *Dialer) reserve() (s *session, doubt <-chan struct{}, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, errDialerClosed
	}
	if !d.engine.Multiplexes() {
		s, err = d.start()
	} else if s = d.roomy(); s == nil {
		s, err = d.begin()
	}
	if err != nil {
		return nil, nil, err
	}
	s.streams++
	return s, s.doubt, nil
}

// roomy is the session that has room for a stream, the current one first; nil if
// there is none. mu is held.
func (d *Dialer) roomy() *session {
	if d.current == nil || !d.current.works() {
		return nil
	}
	if d.current.hasRoom() {
		return d.current
	}
	for _, s := range d.sessions {
		if s.works() && s.hasRoom() && !s.client.SeemsForgotten() {
			return s
		}
	}
	return nil
}

// works tells whether the session may be used for something new.
func (s *session) works() bool {
	return !isClosed(s.engine.Done()) && s.client.Err() == nil && !s.client.Stale()
}

// hasRoom tells whether one stream more may be opened. The Dialer's mu is held.
func (s *session) hasRoom() bool { return s.streams < engine.MaxStreams && !s.full }

// begin starts a session that new streams share from now on. mu is held.
func (d *Dialer) begin() (*session, error) {
	if len(d.sessions) >= maxSessions {
		return nil, errFull
	}
	s, err := d.start()
	if err != nil {
		return nil, err
	}
	d.sessions = append(d.sessions, s)
	d.prefer(s)
	return s, nil
}

// prefer has new streams share s. mu is held.
func (d *Dialer) prefer(s *session) {
	before := d.current
	d.current = s
	if before != nil {
		d.spare(before)
	}
}

// release gives back a place in s: the stream is closed, or was not opened.
func (d *Dialer) release(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.streams--
	s.full = false
	s.left = time.Now()
	d.spare(s)
}

// giveUp is release where no stream could be had: of an engine with one stream that
// ends the session, of which nobody else knows.
func (d *Dialer) giveUp(s *session) {
	d.release(s)
	if !d.engine.Multiplexes() {
		s.engine.Close()
	}
}

// fills notes that the engine has refused a stream. Those that were closed may live
// on until the server has closed them, too.
func (d *Dialer) fills(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.full = s.streams > 0 // else nobody would ever say that it is not
}

// spare ends s after a while if nobody needs it then, or has needed it meanwhile, and
// all that was said in it has arrived. mu is held.
func (d *Dialer) spare(s *session) {
	if s.streams > 0 || s == d.current || !slices.Contains(d.sessions, s) {
		return
	}
	time.AfterFunc(spareLife, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		switch {
		case time.Since(s.left) < spareLife:
		case s.client.Pending():
			d.spare(s)
		default:
			d.discard(s)
		}
	})
}

// dismiss ends s, which was tried in another's place, if nobody needs it: at once if
// no stream has ever been in it. mu is held.
func (d *Dialer) dismiss(s *session) {
	if s.left.IsZero() {
		d.discard(s)
	} else {
		d.spare(s)
	}
}

// discard ends s if nobody needs it. mu is held.
func (d *Dialer) discard(s *session) {
	if !d.closed && s.streams == 0 && s != d.current {
		d.wg.Go(func() { s.engine.Close() }) // its watcher waits for it
	}
}

// remove forgets s, which ends.
func (d *Dialer) remove(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.alive, s)
	d.sessions = slices.DeleteFunc(d.sessions, func(o *session) bool { return o == s })
	if d.current == s {
		d.current = nil
	}
}

// replace tries whether the server accepts a session in place of old, which it seems
// to have forgotten, and tells whether old is over. What shows that is newer than
// the acceptance: before it, the server may not have been there, for either.
func (d *Dialer) replace(old *session) bool {
	d.log.Info("the server may not know the session any more: trying a new one")
	doubt := make(chan struct{})
	d.mu.Lock()
	old.doubt = doubt
	d.mu.Unlock()
	s := d.established()
	accepted := time.Now()
	d.mu.Lock()
	old.doubt = nil
	close(doubt)
	if s != nil && d.current == old {
		d.sessions = append(d.sessions, s)
		d.current = s
	}
	d.mu.Unlock()
	if s == nil {
		return false
	}
	why := d.judge(old, accepted)
	if errors.Is(why, errForgotten) {
		why = d.judge(old, time.Now()) // so few in a row may be chance, where many answers are by somebody else
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if why == nil && d.current == s && s.streams == 0 {
		d.current = old
	}
	if why != nil {
		old.replaced.Store(&why)
	} else {
		d.log.Info("the server still knows the session")
		d.spare(old)
	}
	d.dismiss(s)
	return why != nil
}

// judge waits until it is known whether the server has forgotten s, by what was
// asked after a time, and returns why it is over, or nil.
func (d *Dialer) judge(s *session, after time.Time) error {
	for {
		v, news := s.client.Verdict()
		switch {
		case !v.Forgotten:
			return nil
		case v.Since.After(after) && s.client.Stale():
			return errExpired
		case v.Since.After(after):
			return errForgotten
		}
		select {
		case <-news:
		case <-s.client.Done():
			return s.failure()
		case <-s.engine.Done():
			return s.failure()
		case <-d.ctx.Done():
			return errDialerClosed
		}
	}
}

// established returns a new session that the server has accepted, or nil.
func (d *Dialer) established() *session {
	for range clockTries {
		d.mu.Lock()
		s, err := d.start()
		d.mu.Unlock()
		if err != nil {
			return nil
		}
		select {
		case <-s.client.Ready():
			return s
		case <-s.client.Done():
			if !s.untimely() {
				return nil
			}
		case <-d.ctx.Done():
			return nil
		}
	}
	return nil
}
