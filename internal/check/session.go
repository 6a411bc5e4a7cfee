package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/common/front"
	"turbotunnel/common/handshake"
	"turbotunnel/common/measure"
)

const (
	// keyTime is how long the server may take to answer under its key: the
	// session gives up before that.
	keyTime = time.Minute

	// tripTime bounds a round trip in a session, of which trips are made. The
	// first ones have found the path's ways of being slow.
	tripTime = 20 * time.Second
	trips    = 5

	// loadBytes and loadTime bound what is measured in each direction: enough for
	// windows to grow, and not much for a plan that counts.
	loadBytes = 4 << 20
	loadTime  = 5 * time.Second

	// knownTime is how long the answer to the first message may take to end: the
	// server ends it after 90 ms at most.
	knownTime = 5 * time.Second

	// fedTime and fedTrips are how long it may take to find out how requests come,
	// the larger of the two. The carrier waits for half a second and some round trips
	// until it takes one for held back. It looks while there is something to say:
	// fedPause after something was said, something is said again.
	fedTime  = 5 * time.Second
	fedTrips = 10
	fedPause = 50 * time.Millisecond

	// lateLooks is how often what seems to be held back is looked at again.
	lateLooks = 2

	// longest is how long an answer may be silent where -long begins to look: servers
	// allow no more, and are silent for three quarters of it at least. shortest is
	// where it ends.
	longest  = 2 * time.Minute
	shortest = 5 * time.Second

	// surely is how long after its time an answer is given up at the latest that has
	// been lost without a sign.
	surely = 12 * time.Second
)

// one gives a front's exchanges to a single session.
type one struct{ *front.Set }

// Slots implements carrier.Transport.
func (o one) Slots() (int, bool) { return o.Set.Slots(1) }

// A trial is a session through one front, and what it has found of the way.
type trial struct {
	path   carrier.Path
	client *carrier.Client
	peer   *measure.Client // nil: the server measures nothing
	stop   func() bool     // has the client no longer closed when the check is told to end
}

// A sessionCheck looks at what sessions make of one front.
type sessionCheck struct {
	*frontCheck
	set *front.Set
	*trial
}

// session takes the steps that need a session.
func (c *frontCheck) session() *Verdict {
	set, err := front.NewSet([]front.Config{c.way}, nil)
	if err != nil {
		return &silence
	}
	defer set.Close()
	s := &sessionCheck{frontCheck: c, set: set}
	var v *Verdict
	c.Take("key", func() (f Finding) {
		f, v = s.open()
		return f
	})
	if s.trial != nil {
		defer func() { s.end(s.trial) }()
	}
	if v != nil {
		return v
	}
	if s.peer != nil && c.Take("round trip", s.roundTrip) == Failed {
		return &stalls
	}
	held := c.Take("answers", s.answers) == Odd
	held = c.Take("uploads", s.uploads) == Odd || held
	c.Take("clock", s.clockStep)
	passes := true
	if s.peer != nil {
		down := c.Take("download", s.download)
		passes = c.Take("upload", s.upload) != Failed && down != Failed
	} else {
		c.Take("speed", func() Finding {
			return Finding{State: Skipped, Text: "this server is too old to measure"}
		})
	}
	c.Take("at once", s.parallel)
	c.Take("sizes", s.sizes)
	if c.opts.Long {
		c.Take("silence", s.silence)
	}
	found := s.found(s.trial)
	switch {
	case !passes:
		return &stalls
	case c.clock.Abs() > handshake.Skew:
		return &clockOff
	case found.Request > 0 || found.Answer > 0:
		return &bodyLimit
	case held:
		return &heldBack
	}
	return &works
}

// found is what a trial has found of the front.
func (s *sessionCheck) found(t *trial) carrier.Findings { return t.path.Findings(s.set.Name()) }

// start begins a session with an engine. Its answers may be silent for so long at
// most; 0: as the carrier has it.
func (s *sessionCheck) start(engine string, silence time.Duration) *trial {
	t := &trial{}
	if silence > 0 {
		t.path.Reach(silence)
	}
	t.client = carrier.NewClient(carrier.ClientConfig{
		Transport: one{s.set},
		Path:      &t.path,
		URL:       s.way.URL,
		Key:       s.key,
		Engine:    engine,
		Mode:      carrier.Mode(s.opts.mode),
		Log:       slog.New(slog.DiscardHandler),
	})
	t.stop = context.AfterFunc(s.ctx, func() { t.client.Close() }) // what waits for the peer ends
	return t
}

// end ends a session as its engine would.
func (s *sessionCheck) end(t *trial) {
	t.stop()
	t.client.Conn().Close()
	select {
	case <-t.client.Done():
	case <-s.ctx.Done():
	}
	t.client.Close()
}

// measured begins a session that measures, as start does, and waits for the server's
// answer.
func (s *sessionCheck) measured(silence time.Duration) (*trial, error) {
	t := s.start(measure.Name, silence)
	if err := s.await(t); err != nil {
		return nil, err
	}
	conn := t.client.Conn()
	t.peer = measure.NewClient(conn, conn.RemoteAddr())
	return t, nil
}

// open begins a session and waits for the server's answer.
func (s *sessionCheck) open() (Finding, *Verdict) {
	t, err := s.measured(0)
	if errors.Is(err, carrier.ErrRefused) && strings.Contains(err.Error(), measure.Name) {
		t = s.start(s.opts.engine, 0)
		err = s.await(t)
	}
	if err != nil {
		return s.noKey(err)
	}
	s.trial = t
	if s.opts.noKey {
		return Finding{State: Odd, Text: "the server is there; without a key nothing proves that it is yours"}, nil
	}
	return Finding{Text: "the server has it"}, nil
}

// await waits for the server's answer, and closes the session where there is none.
func (s *sessionCheck) await(t *trial) (err error) {
	timer := time.NewTimer(keyTime)
	defer timer.Stop()
	select {
	case <-t.client.Ready():
		return nil
	case <-t.client.Done():
		err = t.client.Err()
	case <-timer.C:
		err = carrier.ErrUnreachable
	case <-s.ctx.Done():
		err = s.ctx.Err()
	}
	t.stop()
	t.client.Close()
	return err
}

// noKey says why no session could be had.
func (s *sessionCheck) noKey(err error) (Finding, *Verdict) {
	f := failed(err)
	switch {
	case errors.Is(err, carrier.ErrNotServer):
		f.Text = "somebody else answers"
		if s.suspect == &portal || s.suspect == &frontingRefused {
			return f, s.suspect
		}
		if s.oddDNS {
			return f, &dnsLies
		}
		return f, &wrongKey
	case errors.Is(err, carrier.ErrRefused):
		f.Text = "the server refuses"
		return f, &refused
	case errors.Is(err, carrier.ErrClock):
		return f, &clockOffTLS
	case errors.Is(err, front.ErrFrontingRefused):
		return f, &frontingRefused
	case strings.Contains(err.Error(), fmt.Sprintf("status %d", http.StatusRequestEntityTooLarge)):
		f.Text = "the request is too large, says the path"
		return f, &bodiesRefused
	case s.suspect != nil:
		f.Text = "the server does not answer"
		return f, s.suspect
	}
	return f, &silence
}

// answers says how the answers come. That of the first message shows it when it
// ends. What seems to be held back may only be late: others are looked at then.
func (s *sessionCheck) answers() Finding {
	if s.opts.mode == string(carrier.Poll) {
		return Finding{State: Skipped, Text: "the line says mode=poll"}
	}
	if !s.knownOf(s.trial).Streams {
		s.again(func(t *trial) bool { return s.knownOf(t).Streams })
	}
	switch found := s.found(s.trial); {
	case found.Streams:
		return Finding{Text: "come as they are written"}
	case found.Known:
		return Finding{State: Odd, Text: "are held back until they are complete: it works by asking again and again"}
	}
	return Finding{State: Skipped, Text: "nothing was seen of how they come"}
}

// uploads says how requests come, likewise.
func (s *sessionCheck) uploads() Finding {
	switch {
	case s.opts.mode == string(carrier.Poll):
		return Finding{State: Skipped, Text: "the line says mode=poll"}
	case s.peer == nil:
		return Finding{State: Skipped, Text: "this server is too old to measure"}
	case !s.set.Feeds():
		return Finding{State: Skipped, Text: "are sent whole, as the browser that is imitated does here"}
	case !s.found(s.trial).Streams:
		return Finding{State: Skipped, Text: "are sent whole, as answers are held back"}
	}
	if found := s.fedOf(s.trial); found.Tried && !found.Feeds {
		s.again(func(t *trial) bool { return s.fedOf(t).Feeds })
	}
	switch found := s.found(s.trial); {
	case found.Feeds:
		return Finding{Text: "come as they are written"}
	case found.Tried:
		return Finding{State: Odd, Text: "are held back until they are complete: it works by many short ones"}
	}
	return Finding{State: Skipped, Text: "nothing was seen of how they come"}
}

// again looks at other sessions, until one has a better way: it takes the place of
// the one that there is.
func (s *sessionCheck) again(better func(*trial) bool) {
	for range lateLooks {
		if s.peer == nil || s.ctx.Err() != nil {
			return
		}
		t, err := s.measured(0)
		if err != nil {
			return
		}
		found := better(t)
		if found {
			s.trial, t = t, s.trial
		}
		if s.end(t); found {
			return
		}
	}
}

// knownOf waits until it is known how the answers to a session come.
func (s *sessionCheck) knownOf(t *trial) (found carrier.Findings) {
	look := time.NewTicker(knownTime / 200)
	defer look.Stop()
	for range 200 {
		if found = s.found(t); found.Known {
			break
		}
		select {
		case <-look.C:
		case <-t.client.Done():
			return found
		case <-s.ctx.Done():
			return found
		}
	}
	return found
}

// fedOf waits until it is known how the requests of a session come.
func (s *sessionCheck) fedOf(t *trial) (found carrier.Findings) {
	if found = s.knownOf(t); !found.Streams {
		return found
	}
	begun := time.Now()
	for !found.Tried && time.Since(begun) < max(fedTime, fedTrips*s.trip) {
		if _, err := t.peer.Trip(cmp.Or(s.opts.tripTime, tripTime)); err != nil {
			break
		}
		select {
		case <-time.After(fedPause):
		case <-s.ctx.Done():
			return found
		}
		found = s.found(t)
	}
	return found
}

// clockStep compares the clocks.
func (s *sessionCheck) clockStep() Finding {
	if off, known := s.path.ClockOff(); known {
		s.clock = off.Round(time.Second)
	}
	off := s.clock.Abs()
	way := "slow"
	if s.clock < 0 {
		way = "fast"
	}
	if off > handshake.Skew {
		return Finding{State: Odd, Text: fmt.Sprintf("this machine's is %v %s", off, way)}
	}
	return Finding{Text: "right"}
}

// roundTrip makes some small exchanges in the session.
func (s *sessionCheck) roundTrip() Finding {
	var best, worst time.Duration
	for range trips {
		d, err := s.peer.Trip(cmp.Or(s.opts.tripTime, tripTime))
		if err != nil {
			return failed(err)
		}
		if best == 0 || d < best {
			best = d
		}
		worst = max(worst, d)
	}
	s.trip = best
	return Finding{Text: fmt.Sprintf("%s at best, %s at worst", timeText(best), timeText(worst))}
}

func (s *sessionCheck) download() Finding {
	got, took, err := s.peer.Download(loadBytes, loadTime)
	if err != nil {
		return failed(err)
	}
	s.down = rate(got, took)
	return Finding{Text: speed(s.down)}
}

func (s *sessionCheck) upload() Finding {
	sent, took, err := s.peer.Upload(loadBytes, loadTime)
	if err != nil {
		return failed(err)
	}
	return Finding{Text: speed(rate(sent, took-s.trip))}
}

// rate is bytes a second.
func rate(bytes int, d time.Duration) int {
	return int(float64(bytes) / max(d, time.Millisecond).Seconds())
}

// speed is a rate in words, in bits as networks are sold.
func speed(rate int) string {
	bits := float64(rate) * 8
	if bits >= 1e6 {
		return fmt.Sprintf("%.1f Mbit/s", bits/1e6)
	}
	return fmt.Sprintf("%.0f kbit/s", bits/1e3)
}

// parallel says whether several requests go at once.
func (s *sessionCheck) parallel() Finding {
	if s.found(s.trial).Serial {
		return Finding{State: Odd, Text: "one request at a time is let through"}
	}
	return Finding{Text: "several requests go side by side"}
}

// sizes says whether large bodies were refused.
func (s *sessionCheck) sizes() Finding {
	found := s.found(s.trial)
	var texts []string
	if found.Request > 0 {
		texts = append(texts, fmt.Sprintf("requests of %d KB are refused", found.Request>>10))
	}
	if found.Answer > 0 {
		texts = append(texts, fmt.Sprintf("answers of %d KB are refused", found.Answer>>10))
	}
	if len(texts) > 0 {
		return Finding{State: Odd, Text: strings.Join(texts, "; ")}
	}
	return Finding{Text: "nothing was refused for its size"}
}

// silence finds out how long answers may be silent. A session asks for as much as
// servers allow; where that is cut, another one asks for less.
func (s *sessionCheck) silence() Finding {
	var cut time.Duration // what does not pass
	for limit := longest; limit >= shortest; {
		found, err := s.silent(limit)
		switch {
		case err != nil:
			return failed(err)
		case found.Cut == 0:
			return silenceOf(found.Passes, cut)
		case found.Cut < limit:
			cut, limit = found.Cut, found.Cut*4/5
		default: // it was lost without a sign, nobody knows when
			cut, limit = limit, limit/2
		}
	}
	return silenceOf(0, cut)
}

// silent leaves a session silent whose answers may be so for limit at most, until one
// has gone on after nearly as long, or was cut.
func (s *sessionCheck) silent(limit time.Duration) (found carrier.Findings, err error) {
	t, err := s.measured(limit)
	if err != nil {
		return found, err
	}
	defer s.end(t)
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for begun := time.Now(); time.Since(begun) < limit+surely; {
		select {
		case <-look.C:
		case <-t.client.Done():
			return found, t.client.Err()
		case <-s.ctx.Done():
			return found, s.ctx.Err()
		}
		if found = s.found(t); found.Cut > 0 || found.Passes >= limit*3/4 {
			break
		}
	}
	return found, nil
}

// silenceOf says what silence passes, and which is cut; 0: none.
func silenceOf(passes, cut time.Duration) Finding {
	var f Finding
	passes, cut = passes.Round(time.Second), cut.Round(time.Second)
	switch {
	case passes == 0:
		f.Text = "answers that are silent are cut, however short that is"
	case cut == 0:
		f.Text = fmt.Sprintf("answers may be silent for %s and more", timeText(passes))
	default:
		f.Text = fmt.Sprintf("answers that are silent for %s are cut; %s pass", timeText(cut), timeText(passes))
	}
	if passes < carrier.Silence*3/4 { // as lengths are drawn
		f.State = Odd
		f.Text += ": it works by asking more often"
	}
	return f
}
