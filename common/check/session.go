package check

import (
	"cmp"
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

	// lateLooks is how often answers that seem to be held back are looked at again.
	lateLooks = 2

	// silenceTime is how long the path is left silent with -long: more than two
	// of the longest answers that the carrier asks for.
	silenceTime = 65 * time.Second
)

// one gives a front's exchanges to a single session.
type one struct{ *front.Set }

// Slots implements carrier.Transport.
func (o one) Slots() (int, bool) { return o.Set.Slots(1) }

// A sessionCheck is a session through one front.
type sessionCheck struct {
	*frontCheck
	set    *front.Set
	path   carrier.Path
	client *carrier.Client
	peer   *measure.Client // nil: the server measures nothing
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
	if s.client != nil {
		defer func() { s.end(s.client) }()
	}
	if v != nil {
		return v
	}
	if s.peer != nil && c.Take("round trip", s.roundTrip) == Failed {
		return &stalls
	}
	c.Take("answers", s.answers)
	c.Take("clock", s.clockStep)
	if s.peer != nil {
		c.Take("download", s.download)
		c.Take("upload", s.upload)
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
	found := s.path.Findings(set.Name())
	switch {
	case c.clock.Abs() > handshake.Skew:
		return &clockOff
	case found.Request > 0 || found.Answer > 0:
		return &bodyLimit
	}
	return &works
}

// start begins a session with an engine.
func (s *sessionCheck) start(engine string, path *carrier.Path) *carrier.Client {
	return carrier.NewClient(carrier.ClientConfig{
		Transport: one{s.set},
		Path:      path,
		URL:       s.way.URL,
		Key:       s.key,
		Engine:    engine,
		Mode:      carrier.Mode(s.opts.mode),
		Log:       slog.New(slog.DiscardHandler),
	})
}

// end ends a session as its engine would.
func (s *sessionCheck) end(client *carrier.Client) {
	client.Conn().Close()
	select {
	case <-client.Done():
	case <-s.ctx.Done():
	}
	client.Close()
}

// open begins a session and waits for the server's answer.
func (s *sessionCheck) open() (Finding, *Verdict) {
	s.client = s.start(measure.Name, &s.path)
	err := s.await()
	if errors.Is(err, carrier.ErrRefused) && strings.Contains(err.Error(), measure.Name) {
		s.client.Close()
		s.client = s.start(s.opts.engine, &s.path)
		err = s.await()
	} else if err == nil {
		conn := s.client.Conn()
		s.peer = measure.NewClient(conn, conn.RemoteAddr())
	}
	if err != nil {
		return s.noKey(err)
	}
	if s.opts.noKey {
		return Finding{State: Odd, Text: "the server is there; without a key nothing proves that it is yours"}, nil
	}
	return Finding{Text: "the server has it"}, nil
}

// await waits for the server's answer.
func (s *sessionCheck) await() error {
	timer := time.NewTimer(keyTime)
	defer timer.Stop()
	select {
	case <-s.client.Ready():
		return nil
	case <-s.client.Done():
		return s.client.Err()
	case <-timer.C:
		return carrier.ErrUnreachable
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// noKey says why no session could be had.
func (s *sessionCheck) noKey(err error) (Finding, *Verdict) {
	f := failed(err)
	switch {
	case errors.Is(err, carrier.ErrNotServer):
		f.Text = "somebody else answers"
		if s.suspect == &portal {
			return f, &portal
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
	found := s.knownOf(&s.path, s.client)
	for range lateLooks {
		if found.Streams || s.peer == nil || s.ctx.Err() != nil {
			break
		}
		var path carrier.Path
		client := s.start(measure.Name, &path)
		found = s.knownOf(&path, client)
		s.end(client)
	}
	switch {
	case found.Streams:
		return Finding{Text: "come as they are written"}
	case found.Known:
		return Finding{State: Odd, Text: "are held back until they are complete: it works by asking again and again"}
	}
	return Finding{State: Skipped, Text: "nothing was seen of how they come"}
}

// knownOf waits until it is known how the answers to a session come.
func (s *sessionCheck) knownOf(path *carrier.Path, client *carrier.Client) (found carrier.Findings) {
	look := time.NewTicker(knownTime / 200)
	defer look.Stop()
	for range 200 {
		if found = path.Findings(s.set.Name()); found.Known {
			break
		}
		select {
		case <-look.C:
		case <-client.Done():
			return found
		case <-s.ctx.Done():
			return found
		}
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
	if s.path.Findings(s.set.Name()).Serial {
		return Finding{State: Odd, Text: "one request at a time is let through"}
	}
	return Finding{Text: "several requests go side by side"}
}

// sizes says whether large bodies were refused.
func (s *sessionCheck) sizes() Finding {
	found := s.path.Findings(s.set.Name())
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

// silence says nothing for a while, and sees what the path makes of it.
func (s *sessionCheck) silence() Finding {
	timer := time.NewTimer(silenceTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.client.Done():
		return failed(s.client.Err())
	case <-s.ctx.Done():
		return failed(s.ctx.Err())
	}
	found := s.path.Findings(s.set.Name())
	if found.Cut {
		return Finding{State: Odd, Text: fmt.Sprintf("the path cuts answers that are silent; up to %v passes", min(found.Hold, found.Quiet).Round(time.Second))}
	}
	return Finding{Text: fmt.Sprintf("answers may be silent for %v, and more is never asked for", min(found.Hold, found.Quiet))}
}
