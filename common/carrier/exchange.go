package carrier

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

const (
	// patience is how long an exchange may stand still at most before it is
	// given up, beyond the time that it was told to wait. Each exchange has its
	// own, somewhat less, so that those which stand still for one reason do not
	// end by the clock. Repair does not wait for it. What is on its way behind what
	// others send may take longer: it is waited for while acknowledgements come. With
	// that, and with uploads that count as moving meanwhile (judgeUploads), 100 sessions
	// that share 20 Mbit/s use 0.97 of it, and 0.51 without (TestPaceShared, in test/pace).
	patience = 10 * time.Second

	// maxRest is how long after a failure of its own a session leaves the fronts
	// alone at most because they ask for it: a part of its Lifetime.
	maxRest = time.Minute
)

// kind is what an exchange is for.
type kind uint8

const (
	greeting kind = iota // carries the first message
	upload               // carries records and is answered at once
	poll                 // is answered when there is something to say
	stream               // is answered bit by bit
	combined             // carries records and is answered as a poll: for a path that lets one exchange through at a time
	feed                 // an upload whose body is written bit by bit; see feed.go
	farewell             // ends the session
	kinds                // how many there are
)

// errUnneeded ends an exchange that is not wanted any more.
var errUnneeded = errors.New("not wanted any more")

// errSwallowed ends an exchange that is not answered while smaller ones are.
var errSwallowed = errors.New("not answered, while smaller requests are")

// errSilent ends a large exchange that is not answered in time.
var errSilent = fmt.Errorf("not answered in time: %w", os.ErrDeadlineExceeded)

// result is how an exchange ended.
type result struct {
	flight   *flight
	received int   // bytes of records in the answer
	backlog  int   // bytes that waited at the server when the answer began
	err      error // nil if the answer was the server's and came whole
	good     bool  // the answer, or the beginning of it, was the server's
	foreign  bool  // it was somebody else's
	tooLarge bool  // the body was, of size bytes
	size     int64
	busy     bool // somebody else's answer says that there was no room for it now
	beside   bool // it was under way beside an answer that the server held all the time
	closed   bool // the server has ended the session
	lost     bool // not all that it carried is acknowledged
	owed     int  // about how many bytes of records were missing then that exist
	answered counter
}

// counter is the body of an answer, and how much of it has come.
type counter struct {
	r     io.Reader // nil: no answer of the server's has begun
	bytes int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.bytes += n
	return n, err
}

// refusesBody tells whether the path has refused the exchange for its size. Of
// the smallest body that says nothing: no smaller one can be tried.
func (r *result) refusesBody() bool { return r.tooLarge && r.size > smallBody }

// request is what the exchange has shown of how large requests may be.
func (r *result) request(limit int) (s sample, shows bool) {
	k := r.flight.kind
	return sample{
		size:   int(r.size),
		passed: r.good,
		why:    r.refusesBody(),
		likely: errors.Is(r.err, errSwallowed),
		silent: k == combined && errors.Is(r.err, os.ErrDeadlineExceeded),
		full:   int(r.size) > limit*5/8,
		busy:   r.busy,
	}, (k == upload || k == combined) && !(!r.good && errors.Is(r.err, errUnneeded))
}

// answer is what the exchange has shown of how large answers may be. One that was
// cut after it had brought records has made progress, and one that was cut after a
// wait, or sooner than a small one ends, was not cut for its size. Somebody else's
// page in its place is short whatever the reason is. One of which nothing came at all
// may have been swallowed: a small one is tried.
func (r *result) answer(now time.Time) (s sample, shows bool) {
	f := r.flight
	waited := now.Sub(f.started) >= minLearned
	swallowed := r.answered.r == nil && errors.Is(r.err, os.ErrDeadlineExceeded)
	s = sample{size: min(f.asked.Limit, maxAnswer), passed: r.good && r.err == nil, asked: true, busy: r.busy, silent: swallowed}
	if s.passed {
		s.size = r.received
		s.full = r.received > f.asked.Limit/2
		// What is owed may be in others that fail, which no backlog counts.
		s.idle = r.received+r.backlog <= smallBody && r.owed <= minBody
	}
	switch {
	case f.probe || f.kind == greeting || f.kind == feed || f.kind == farewell || errors.Is(r.err, errUnneeded):
		return s, false
	case r.size > smallBody && r.err != nil:
		return s, false // the request may be to blame
	case !r.foreign && r.answered.r != nil && r.answered.bytes <= smallBody && !s.passed:
		return s, false
	}
	return s, s.passed || r.received == 0 && (!waited || swallowed)
}

// body is a request's body: a head and records, of known length.
type body struct {
	key   *wire.Key       // constant, like what follows up to moved
	size  int64           // bytes
	moved func(last bool) // called when bytes were read

	mu     sync.Mutex
	units  units // guarded by mu, like closed
	closed bool
}

// newBody returns a body that becomes an owner of the records' buffers.
func newBody(head []byte, records []*sentRecord, key *wire.Key, moved func(bool)) *body {
	size := len(head) + sizeOf(records)
	return &body{units: units{part: head, records: records}, key: key, moved: moved, size: int64(size)}
}

func (b *body) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if n = b.units.read(p, b.key); n > 0 {
		b.moved(b.units.empty())
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.units.drop()
	return nil
}

// errForeign says that an answer was not the server's.
type errForeign struct {
	status int
	kind   string // content type
}

func (e *errForeign) Error() string {
	return fmt.Sprintf("answered by status %d, content type %.60q, not by the tunnel", e.status, e.kind)
}

// exchange makes one exchange and takes in what comes. The result comes when the
// exchange has ended, which may be after exchange has returned.
func (c *Client) exchange(f *flight) {
	res := &result{flight: f}
	wait := below(patience, patience/4) + max(f.asked.Hold, f.asked.Quiet)
	var watchdog *time.Timer
	watchdog = time.AfterFunc(wait, func() {
		if c.link.awaits(f.number, wait) {
			watchdog.Reset(wait)
			return
		}
		f.cancel(fmt.Errorf("no answer within %v: %w", wait.Round(time.Second), os.ErrDeadlineExceeded))
	})
	watchdog.Reset(wait) // now that its function can see it
	b, size := c.bodyOf(f, watchdog, wait)
	end := func(err error) {
		if res.err = err; err != nil && f.ctx.Err() != nil {
			res.err = context.Cause(f.ctx)
		}
		b.Close() // first: what a feed takes afterwards would be lost for ever
		// Of an upload's end the next exchange tells: were that one for this alone, they
		// would follow each other for ever where answers are always cut after their heads.
		res.lost, res.owed = c.link.endExchange(f.number, err != nil && (f.kind == poll || f.kind == stream))
		watchdog.Stop()
		f.cancel(nil)
		if res.size = size; f.kind == feed {
			res.size = f.feed.sent.Load()
			res.good = res.good || f.first.Load() > 0 // some of it has come
		}
		c.report(res)
	}
	resp, err := c.post(f.ctx, b, size)
	if err != nil {
		end(err)
		return
	}
	if err := res.notes(resp); err != nil {
		resp.Body.Close()
		end(err)
		return
	}
	// In another goroutine: this one's stack has grown for the request, and the
	// answer may be open for minutes.
	c.wg.Go(func() {
		err := c.takeIn(resp.Body, resp, res, func() {
			watchdog.Reset(wait)
			before := f.heard.Load()
			f.mark(&f.heard)
			if silence := time.Duration(f.heard.Load() - before); silence >= minLearned && f.asked.Hold+f.asked.Quiet > 0 {
				c.way().passed(f.kind, silence)
			}
			if sent := f.sent.Load(); f.first.CompareAndSwap(0, f.heard.Load()) && f.kind == upload && sent > 0 {
				// Such an answer comes at once. The times in heads would count
				// the wait for a connection, too.
				c.link.measured(time.Duration(f.first.Load()-sent), size)
			}
		})
		resp.Body.Close()
		end(err)
	})
}

// report hands run the end of an exchange. When the session has ended nobody asks any
// more.
func (c *Client) report(res *result) {
	select {
	case c.results <- res:
	case <-c.ctx.Done():
	}
}

// bodyOf is the body of f's request and its length, -1 for one that has none. While it
// is read the watchdog waits.
func (c *Client) bodyOf(f *flight, watchdog *time.Timer, wait time.Duration) (io.ReadCloser, int64) {
	if f.kind == feed {
		f.feed.moved = func() {
			watchdog.Reset(wait)
			if f.begun.Load() == 0 {
				f.mark(&f.begun)
			}
		}
		return f.feed, -1
	}
	pad := min(c.blur.pad(sizeOf(f.records)), max(0, f.most*3/4-sizeOf(f.records)))
	b := newBody(c.link.head(f.number, f.asked, pad), f.records, c.link.send, func(last bool) {
		watchdog.Reset(wait)
		f.mark(&f.begun)
		if last {
			f.mark(&f.sent)
			c.link.wrote(f.number)
			signal(c.link.wake) // the next one may be due
		}
	})
	return b, b.size
}

// post sends a request for this session with a body of size bytes, or of no known
// length if that is negative.
func (c *Client) post(ctx context.Context, body io.ReadCloser, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.target, body)
	if err != nil {
		body.Close()
		return nil, err
	}
	req.ContentLength = size
	return c.cfg.Transport.RoundTrip(req)
}

// notes tells by its head whether an answer is somebody else's.
func (r *result) notes(resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	r.tooLarge = resp.StatusCode == http.StatusRequestEntityTooLarge
	// By RFC 9110 and RFC 6585 the next one may pass, however large it is. But gateways
	// say so to whatever they do not take, and where there was no other exchange none
	// has stood in the way of one that was answered by 503.
	crowded := resp.StatusCode == http.StatusServiceUnavailable && !r.flight.alone
	r.busy = crowded || resp.StatusCode == http.StatusTooManyRequests
	// A gateway in trouble says nothing about whether the server knows us.
	r.foreign = resp.StatusCode < 500 && !r.tooLarge && !r.busy
	return &errForeign{resp.StatusCode, resp.Header.Get("Content-Type")}
}

// somebodyElses tells whether an answer that could not be opened, for err, was
// not the server's. One of its own may have been cut before it said anything.
func somebodyElses(resp *http.Response, err error) bool {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return !slices.Contains(contentTypes, resp.Header.Get("Content-Type"))
	}
	return errors.Is(err, wire.ErrForged) || errors.Is(err, wire.ErrMalformed) || errors.Is(err, handshake.ErrNotNoise)
}

// takeIn takes in the units of an answer.
func (c *Client) takeIn(body io.Reader, resp *http.Response, res *result, moved func()) error {
	res.answered.r = body
	r := bufio.NewReaderSize(&res.answered, 64) // enough to look at the beginning of a unit
	var buf *buffer
	defer func() {
		if buf != nil {
			buf.release()
		}
	}()
	var head wire.Head
	f, large := res.flight, false
	recent := recency{last: f.started}
	for {
		if buf != nil && r.Buffered() == 0 {
			buf.release() // a long wait may begin
			buf = nil
		}
		var u wire.Unit
		_, err := r.Peek(1)
		if err == nil {
			if buf == nil {
				buf = newBuffer()
			}
			u, err = c.link.receive.Next(r, buf.raw[:])
		}
		if err != nil {
			switch {
			case err == io.EOF && res.good:
				return nil
			case res.good || !somebodyElses(resp, err):
				return fmt.Errorf("answer cut short: %w", err)
			}
			res.foreign = true
			c.cfg.Transport.Foreign(resp)
			return &errForeign{resp.StatusCode, resp.Header.Get("Content-Type")}
		}
		moved()
		if now := time.Now(); recent.reads(now) {
			c.hears(now)
		}
		if u.Kind == wire.RecordKind {
			buf.b = u.Payload
			res.good = true
			if res.received += len(u.Payload); !large && res.received >= minBody {
				large = true
				c.way().down.passed(res.received) // a stream may not end soon
			}
			ended := f.isEnding()
			if f.got.Store(int64(res.received)); !ended && f.isEnding() {
				signal(c.feeding.nudge) // it is time for the next one
			}
			c.blur.moved(len(u.Payload))
			if c.link.received(u.Number, buf) {
				buf = nil
			}
			continue
		}
		if err := head.Parse(u.Payload); err != nil {
			return err
		}
		res.good = true
		res.backlog = head.Backlog
		c.feeding.told(&head)
		c.link.opened(u.Number, &head, false)
		if head.Close != 0 && head.Backlog == 0 {
			res.closed = true
		}
	}
}
