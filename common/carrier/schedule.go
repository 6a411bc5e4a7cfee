package carrier

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"turbotunnel/common/wire"
)

// What a Client has in flight, and what it learns from how that ends. All of
// it runs in Client.run's goroutine.

// way is what is known of the way that exchanges take now.
func (c *Client) way() *way { return c.cfg.Path.way(c.cfg.Transport.Name()) }

// slots says how many exchanges may be in flight in each direction: a third of
// all is kept for uploads, which may also have all but one of those that no
// download uses, as over HTTP/1.1, where there are few.
func (c *Client) slots() (uploads, downloads int) {
	n, _ := c.cfg.Transport.Slots()
	if n < 2 {
		return 1, 1
	}
	third := max(1, n/3)
	return min(maxUploads, max(third, n-1-c.polls-c.streams)), min(maxDownloads, n-third)
}

// lanes says what an exchange that carries records is worth.
func (c *Client) lanes() lanes {
	if _, crowded := c.cfg.Transport.Slots(); crowded || c.way().oneAtATime(time.Now()) {
		return lanes{} // one exchange carries all there is
	}
	uploads, _ := c.slots()
	return lanes{slots: uploads}
}

// launch starts the exchanges that are due and says how long to wait before it
// is called again, unless something happens.
func (c *Client) launch(now time.Time) time.Duration {
	const long = 30 * time.Second
	if wait := max(c.notBefore.Sub(now), min(c.cfg.Transport.Rest(), c.lastFailure.Add(maxRest).Sub(now))); wait > 0 {
		return wait
	}
	if c.failures > 1 {
		// One exchange that is answered at once shows whether the path is back.
		if c.uploads == 0 {
			c.start(upload)
		}
		return long
	}
	uploads, downloads := c.slots()
	way := c.way()
	all, crowded := c.cfg.Transport.Slots()
	turns := crowded || way.oneAtATime(now)
	in := c.lanes()
	due := c.link.dueIn(now, in)
	if due < 0 {
		due = c.link.newsIn(now)
	}
	if turns {
		return min(c.takeTurn(now, due, crowded), long)
	}
	for due == 0 && c.uploads < uploads && c.sending(now) < maxSending {
		c.start(upload)
		if due = c.link.dueIn(now, in); due < 0 {
			due = c.link.newsIn(now)
		}
	}
	wait := min(long, c.look(now, way))
	if due == 0 && c.uploads < uploads {
		wait = min(wait, slack) // then one may count no more: see sending
	}
	if due > 0 {
		wait = min(wait, due)
	}
	if !c.suspended.IsZero() {
		return wait
	}
	if c.streaming {
		for c.streams < c.wantStreams(now) {
			c.start(stream)
		}
		return wait
	}
	if now.Sub(c.spoke) < lively {
		c.want = max(c.want, min(livelyPolls, downloads))
	}
	c.want = max(1, c.want)
	for c.polls < min(c.want, downloads, max(1, all-c.uploads)) {
		c.start(poll)
	}
	return wait
}

// sending is how many uploads have yet to hand their last byte to a connection.
// One that takes long may be on a connection that is dead, and does not count.
func (c *Client) sending(now time.Time) int {
	srtt := c.link.trip().smoothed
	n := 0
	for _, f := range c.flights {
		if f.kind == upload && f.sent.Load() == 0 && now.Sub(f.started) < 2*srtt+slack {
			n++
		}
	}
	return n
}

// wantStreams is 1, and 2 while the older one is about to end. A probe that is
// still open has no room for records: it does not count.
func (c *Client) wantStreams(now time.Time) int {
	n, probes := 1, 0
	for _, f := range c.flights {
		switch {
		case f.kind != stream:
		case f.probe:
			probes++
		case now.Sub(f.started) > time.Duration(float64(f.asked.Stream)*overlap):
			n = 2
		}
	}
	return n + probes
}

// takeTurn keeps one exchange in flight, which carries both directions. When
// there is something to say while the server has nothing to say, it is broken
// off. In a crowd an idle session is silent now and then.
func (c *Client) takeTurn(now time.Time, due time.Duration, crowded bool) time.Duration {
	const long = time.Minute
	idle := now.Sub(c.spoke) >= lively
	if len(c.flights) == 0 {
		if wait := turnPause - now.Sub(c.turned); crowded && idle && due < 0 && wait > 0 {
			return wait
		}
		c.turned = now.Add(-rand.N(turnPause / 4)) // no period
		c.start(turn)
		return long
	}
	if due != 0 {
		if due < 0 {
			return long
		}
		return due
	}
	for _, f := range c.flights {
		held := f.kind == poll || f.kind == stream || f.kind == turn && f.asked.Hold > turnHold
		if held && f.sent.Load() > 0 && f.first.Load() == 0 || f.kind == stream {
			f.cancel(errUnneeded)
		}
	}
	return long // the end of the flight comes as a result
}

// look judges by what is under way what the path does, and says when to look
// again.
func (c *Client) look(now time.Time, way *way) time.Duration {
	t := c.link.trip()
	late := 2*t.smoothed + 4*t.variation + slack
	next := time.Minute
	again := func(in time.Duration) { next = min(next, max(in, time.Millisecond)) }
	waiting := time.Duration(-1) // of the upload that has waited longest, if one does
	for _, f := range c.flights {
		switch f.kind {
		case upload:
			// One whose body is under way is not waiting.
			if f.first.Load() == 0 && (f.sent.Load() > 0 || f.begun.Load() == 0) {
				waiting = max(waiting, f.since(now, &f.sent))
			}
		case stream:
			if in := time.Duration(float64(f.asked.Stream)*overlap) - now.Sub(f.started); in >= 0 {
				again(in)
			}
			if f.probe {
				continue
			}
			silent := f.since(now, &f.heard)
			switch {
			case f.first.Load() == 0 && silent <= late:
				again(late - silent)
			case f.first.Load() == 0 && c.answered.After(f.started):
				// The server says something at once, and others got through.
				c.stopStreaming(now, way, "an answer did not come as it was written")
			case f.first.Load() == 0:
				if c.uploads == 0 {
					c.start(upload) // to see whether others get through
				}
			case f.first.Load() > 0:
				if owed := c.link.owedFor(now); owed > 0 {
					if min(owed, silent) > late {
						c.stopStreaming(now, way, "an answer stopped coming as it was written")
					}
					again(late - min(owed, silent))
				}
			}
		}
	}
	// Uploads that wait while a stream or a poll is open may be waiting for it.
	// If they pass as soon as nothing else is open, they were.
	if waiting >= 0 && c.suspended.IsZero() && c.answered.Before(now.Add(-2*late)) {
		if waiting > 2*late {
			c.suspended = now
			for _, f := range c.flights {
				if f.kind == poll || f.kind == stream || f.kind == turn {
					f.cancel(errUnneeded)
				}
			}
		}
		if waiting <= 2*late {
			again(2*late - waiting)
		}
	}
	if !c.suspended.IsZero() {
		if now.Sub(c.suspended) > late {
			c.suspended = time.Time{}
		}
		again(late - now.Sub(c.suspended))
	}
	if c.cfg.Mode != Poll && !c.streaming && now.Sub(c.spoke) < lively {
		if in := way.probeIn(now); in > 0 {
			again(in)
		} else if c.streams == 0 {
			c.start(stream)
		}
	}
	return next
}

// stopStreaming goes back to polls. Of several streams that show the same, the
// first counts: each more would put off the next look at the path.
func (c *Client) stopStreaming(now time.Time, way *way, why string) {
	if c.streaming {
		if way.saw(now, false) {
			c.log.Info("receiving by polls: " + why)
		}
		c.streaming = false
	}
	c.endStreams()
}

// endStreams breaks off the streams that are open: what the server says on them
// would come when they end.
func (c *Client) endStreams() {
	for _, f := range c.flights {
		if f.kind == stream {
			f.cancel(errUnneeded)
		}
	}
}

// newFlight prepares an exchange.
func (c *Client) newFlight(number uint64, k kind) *flight {
	f := &flight{number: number, kind: k, started: time.Now()}
	f.ctx, f.cancel = context.WithCancelCause(c.ctx)
	return f
}

// start makes an exchange in a goroutine of its own, which run waits for.
func (c *Client) start(k kind) {
	c.link.telling()
	f := c.newFlight(c.exchanges, k)
	c.exchanges++
	c.flights[f.number] = f
	hold, quiet, age := c.way().lengths()
	_, downloads := c.slots()
	f.asked.Limit = bodyBelow(maxAnswers / downloads)
	switch k {
	case upload:
		c.uploads++
	case poll:
		c.polls++
		f.asked.Hold = hold
	case stream:
		c.streams++
		f.asked.Limit, f.asked.Stream, f.asked.Quiet = bodyBelow(maxStream), age, quiet
		if !c.streaming {
			// No room for records: they would come late if the path holds back.
			f.probe, f.asked.Stream, f.asked.Limit = true, below(probeAge, probeAge/4), minBody/2
		}
	case turn:
		switch {
		case f.started.Sub(c.spoke) < lively:
			f.asked.Hold = below(turnHold, turnHold/4)
		default:
			if _, crowded := c.cfg.Transport.Slots(); !crowded {
				f.asked.Hold = hold
			}
		}
	case farewell:
		f.asked.Close = wire.CloseDone
	}
	if k == upload || k == turn || k == farewell {
		f.records = c.link.take(f.number, bodyBelow(c.bodyLimit)-headRoom, c.lanes())
		if len(f.records) > 0 {
			c.spoke = f.started
		}
	}
	c.wg.Go(func() { c.exchange(f) })
}

// observe learns from how an exchange ended.
func (c *Client) observe(res *result) {
	f, now, way := res.flight, time.Now(), c.way()
	delete(c.flights, f.number)
	switch f.kind {
	case upload:
		// Full bodies in all the exchanges that there can be: larger ones may help.
		if most, _ := c.slots(); res.good && c.uploads >= most && int(res.size) > c.bodyLimit*3/4 && way.takesBody(2*c.bodyLimit) {
			c.bodyLimit *= 2
		}
		c.uploads--
		if res.good && f.started.After(c.answered) {
			c.answered = f.started
		}
		sent, first := f.started.Add(time.Duration(f.sent.Load())), f.started.Add(time.Duration(f.first.Load()))
		if f.sent.Load() > 0 && f.first.Load() > 0 && sent.Before(c.suspended) && first.After(c.suspended) {
			c.suspended = time.Time{}
			// Once may be the end of an outage.
			if now.Sub(c.passed) < firstProbe {
				way.setSerial(now)
				c.log.Info("the path lets one request through at a time: sending and receiving in turns")
			}
			c.passed = now
		}
	case poll:
		c.polls--
	case stream:
		c.streams--
	}
	c.recall.learn(&c.cfg.Path.recall, c.cfg.Transport.Name(), c.link, f.kind, res.good && c.failures > 1) // recall
	if res.good {
		if c.failures > 1 {
			c.log.Info("carrying again", "after", now.Sub(c.failingFrom).Round(time.Millisecond))
			way.soon(now)
		}
		c.failures, c.foreigns, c.notBefore = 0, 0, time.Time{}
		c.seemsForgotten.Store(false)
	}
	c.learn(res, now, way)
	if res.err == nil {
		return
	}
	if errors.Is(res.err, errUnneeded) {
		return
	}
	c.failure = res.err
	if res.tooLarge && res.size > minBody { // it says nothing about smaller ones
		c.bodyLimit = max(minBody, min(c.bodyLimit, int(res.size/2)))
		way.refusedBody(int(res.size))
		c.log.Info("the path refuses large requests: sending smaller ones", "bytes", c.bodyLimit)
		return
	}
	if res.good || c.failures > 0 && f.started.Before(c.lastFailure) {
		return // it brought something, or it failed together with one that was counted
	}
	c.lastFailure = now
	if c.failures == 0 {
		c.failingFrom = now
		c.log.Info("an exchange failed", "err", res.err)
	}
	c.failures++
	if res.foreign {
		if c.foreigns++; c.foreigns >= foreignAnswers {
			c.seemsForgotten.Store(true)
			c.isForgotten.Do(func() { close(c.forgotten) })
		}
	}
	if c.failures > 1 {
		c.notBefore = now.Add(backoff(c.failures-1, now.Sub(c.failingFrom)))
	}
}

// learn draws from an exchange's answer what the path does with answers.
func (c *Client) learn(res *result, now time.Time, way *way) {
	f := res.flight
	age := now.Sub(f.started)
	spread := age - time.Duration(f.first.Load()) // between the answer's first unit and its end
	switch f.kind {
	case greeting:
		c.judge(now, way, spread >= firstStream/2)
	case poll:
		switch {
		case res.err != nil && !res.good && !errors.Is(res.err, errUnneeded):
			way.cut(false, age, age)
		case res.err != nil:
		case res.received >= f.asked.Limit/8:
			c.want = maxDownloads // a transfer: one after the other they would take round trips
		case res.backlog > 0 || res.received >= manyBytes:
			c.want = min(c.want*2, maxDownloads)
		case res.received == 0:
			c.want /= 2
		default:
			c.want--
		}
	case stream:
		asked := f.asked.Stream
		switch {
		case f.probe:
			c.judge(now, way, res.good && spread >= asked/2)
		case errors.Is(res.err, errUnneeded):
		case res.good && age < asked*9/10 && res.received < maxStream/2:
			way.cut(true, age, f.since(now, &f.heard))
		}
	}
}

// judge takes note of whether an answer came as it was written.
func (c *Client) judge(now time.Time, way *way, streams bool) {
	if c.cfg.Mode == Poll {
		return
	}
	changed := way.saw(now, streams)
	c.streaming = streams
	if !streams {
		c.endStreams()
	}
	if !changed {
		return
	}
	if streams {
		c.log.Info("receiving by streams: answers come as they are written")
	} else {
		c.log.Info("receiving by polls: answers come when they are complete")
	}
}
