package carrier

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

const (
	// maxUploads and maxDownloads bound the exchanges in flight in each
	// direction where many are possible: 16 answers of 1 MB fill 500 Mbit/s at
	// 200 ms, and engines want acknowledgements to leave at once.
	maxUploads   = 32
	maxDownloads = 16

	// maxSending bounds the uploads whose bodies are being written: what more of
	// them would do is to come to their ends, and be acknowledged, all at once
	// and late. Two keep a connection busy.
	maxSending = 2

	// maxAnswers is the size in bytes of all answers together that a client
	// asks for at once, unless they are streamed: enough to fill 200 ms at 500
	// Mbit/s with the four of HTTP/1.1, and no more in each where there are
	// many, because they reach the end of a full path together. maxAnswer is
	// what a server takes one to be of which nothing is said.
	maxAnswers = 16 << 20
	maxAnswer  = 1 << 20

	// maxStream is the size in bytes of the largest streamed answer.
	maxStream = 256 << 20

	// probeAge is how long the answer stays open that shows whether a path
	// streams.
	probeAge = 2 * time.Second

	// overlap is the share of a stream's age after which the next one is asked
	// for, so that one is always open.
	overlap = 0.9

	// slack is what an answer may take beyond some round trips before it means
	// something.
	slack = 500 * time.Millisecond

	// turnHold is how long the server may wait for something to say, on a path
	// that lets one exchange through at a time, while there is a conversation:
	// what the client wants to say waits meanwhile.
	turnHold = 50 * time.Millisecond

	// turnPause is how long such a session that has nothing to say keeps out
	// of the way where sessions share too few exchanges.
	turnPause = 2 * time.Second

	// manyBytes in an answer say that there is more to come.
	manyBytes = 32 << 10

	// lively is how long after something was said livelyPolls wait at the
	// server: one for the engine's acknowledgement, one for the reply.
	lively      = 5 * time.Second
	livelyPolls = 2

	// handshakeTime is how long a session may take to be established, and
	// handshakeTries how many times in a row it may fail in one way.
	handshakeTime  = 45 * time.Second
	handshakeTries = 3

	// staleHello is the age at which a first message is made anew: short of
	// the time after which the server would refuse it.
	staleHello = handshake.Skew / 2

	// foreignAnswers in a row, from a path that was good, say that the server
	// does not know the session any more.
	foreignAnswers = 3

	// farewellTime bounds the attempt to tell the server that a session ended.
	farewellTime = 3 * time.Second

	minBackoff  = 100 * time.Millisecond
	maxBackoff  = 700 * time.Millisecond // while an outage may end any moment
	lateBackoff = 10 * time.Second       // after lateAfter
	lateAfter   = time.Minute
)

// ClientConfig says how a Client reaches its server.
type ClientConfig struct {
	Transport Transport
	URL       *url.URL // of the server; requests go to paths below its path
	Key       handshake.PublicKey
	Engine    string // the engine's name, told to the server
	Mode      Mode
	Path      *Path        // shared with other sessions; nil: the session's own
	Log       *slog.Logger // nil: nothing is logged
}

// A Client is the client's side of one session. Safe for concurrent use.
type Client struct {
	cfg    ClientConfig
	log    *slog.Logger
	target string // URL of this session's requests; owned by run
	blur   *blur
	link   *link
	conn   *Conn
	ctx    context.Context
	cancel context.CancelFunc

	ready          chan struct{} // closed when the server has answered
	isReady        sync.Once
	isForgotten    sync.Once
	isEnding       sync.Once
	forgotten      chan struct{} // closed when the server seems to have forgotten the session
	seemsForgotten atomic.Bool   // likewise, and nothing good has come since
	ending         chan struct{} // closed when the session is going to end
	done           chan struct{}
	hurry          *time.Timer // ends the session; set when the link is closed
	err            error       // why it ended; set before ending is closed

	results  chan *result
	attempts attempts
	wg       sync.WaitGroup // exchanges

	// Owned by run.
	exchanges   uint64             // number of the next
	flights     map[uint64]*flight // under way, by number
	uploads     int                // of these, like polls and streams
	polls       int
	streams     int
	want        int // polls that shall be in flight
	streaming   bool
	bodyLimit   int
	spoke       time.Time // when records were sent last
	turned      time.Time // when a turn began last
	answered    time.Time // when an upload that was answered last had been started
	passed      time.Time // when uploads passed last as soon as answers were ended
	recall      recaller  // recall
	suspended   time.Time // when answers were ended to see whether uploads pass without them; zero: not now
	failures    int       // in a row
	foreigns    int       // likewise, of answers by somebody else
	failingFrom time.Time
	lastFailure time.Time
	notBefore   time.Time // the next exchange
	failure     error     // the last one
}

// NewClient starts a session. It does not wait for the server.
func NewClient(cfg ClientConfig) *Client {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Path == nil {
		cfg.Path = new(Path)
	}
	l := newLink(nil)
	binding := make([]byte, handshake.BindingSize)
	rand.Read(binding) // never fails (crypto/rand)
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		cfg:       cfg,
		log:       log,
		blur:      newBlur(),
		link:      l,
		conn:      newConn(l, "server", binding),
		ctx:       ctx,
		cancel:    cancel,
		ready:     make(chan struct{}),
		forgotten: make(chan struct{}),
		ending:    make(chan struct{}),
		done:      make(chan struct{}),
		results:   make(chan *result, maxUploads+maxDownloads+16),
		exchanges: 1, // 0 is the handshake
		flights:   make(map[uint64]*flight),
		want:      1,
		streaming: cfg.Mode == Stream,
		bodyLimit: MaxBody,
	}
	l.onClose = func() { c.hurry = time.AfterFunc(farewellTime, cancel) }
	go c.run()
	return c
}

// Conn is the engine's pipe. Closing it ends the session after what was
// written has been sent, or farewellTime.
func (c *Client) Conn() *Conn { return c.conn }

// Ready is closed when the server has answered under its key.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Forgotten is closed when a path that was good answers like a web site for the
// first time: the server may have been restarted, and does not know the session
// any more. The session goes on trying.
func (c *Client) Forgotten() <-chan struct{} { return c.forgotten }

// SeemsForgotten tells whether the path answers like a web site now.
func (c *Client) SeemsForgotten() bool { return c.seemsForgotten.Load() }

// Done is closed when the session has ended and nothing of it is left.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the session has ended, or, just before that, is about to: nil
// if this side closed it. It is set before the Conn fails.
func (c *Client) Err() error {
	select {
	case <-c.ending:
		return c.err
	default:
		return nil
	}
}

// Close ends the session without telling the server more than Conn.Close has
// begun to, and returns when nothing of it is left.
func (c *Client) Close() {
	c.link.close()
	c.cancel()
	<-c.done
}

func (c *Client) run() {
	defer close(c.done)
	err := c.handshake()
	if err == nil {
		err = c.carry()
	}
	c.end(err)
	c.cancel()
	c.link.drop()
	c.hurry.Stop() // drop has closed the link
	c.wg.Wait()
}

// end says why the session is going to end. The first reason stays.
func (c *Client) end(err error) {
	c.isEnding.Do(func() {
		c.err = err
		close(c.ending)
	})
}

// established is called when message 2 has come.
func (c *Client) established() {
	c.attempts.mu.Lock()
	c.attempts.newest, c.attempts.hello = nil, nil // they are large
	c.attempts.mu.Unlock()
	c.isReady.Do(func() { close(c.ready) })
}

// attempts are a session's first messages, of which only the newest is used.
// A Transport may read a request's body after the request has failed, or after
// it was answered: hence the lock.
type attempts struct {
	mu     sync.Mutex
	newest *attempt // guarded by mu, like what follows
	hello  []byte   // the datagrams of all of them
}

// An attempt is one first message, which is made when a connection is ready
// to carry it and then repeated as it is until it is answered.
type attempt struct {
	id    handshake.ID
	asked wire.Head // of the answer
	ask   []byte    // its plaintext
	size  int
	clock time.Duration // how far the client's is behind the server's
	date  string        // of a foreign answer to it; owned by run

	// Guarded by attempts.mu. Zero before the message is made.
	message   []byte
	initiator *handshake.Initiator
	made      time.Time
}

// newAttempt prepares a first message in place of the one before.
func (c *Client) newAttempt(clock time.Duration) *attempt {
	c.attempts.mu.Lock()
	defer c.attempts.mu.Unlock()
	a := &attempt{
		id: handshake.NewID(c.cfg.Key),
		// Room for what a TLS client says first, and no length of ours.
		size:  2048 + mathrand.IntN(1500),
		clock: clock,
		asked: c.ask(),
	}
	a.ask = a.asked.Append(nil)
	a.size = min(max(a.size, len(c.attempts.hello)+handshake.MinMessage1+2+len(a.ask)), handshake.MaxMessage1)
	c.target = strings.TrimSuffix(c.cfg.URL.String(), "/") + "/" + a.id.Segment()
	c.attempts.newest = a
	return a
}

// ask is what the answer to a first message shall be: if the path is known to
// stream and has room, the first of the session's streams. It tells what the path
// has carried before, and this side begins with that, too.
func (c *Client) ask() wire.Head {
	way, now := c.way(), time.Now()
	asked := wire.Head{Limit: bodyBelow(maxAnswers)}
	c.recall.begin(&c.cfg.Path.recall, c.cfg.Transport.Name(), c.link, &asked) // recall
	if _, crowded := c.cfg.Transport.Slots(); c.cfg.Mode != Poll && way.streaming() && !crowded && !way.oneAtATime(now) {
		_, asked.Quiet, asked.Stream = way.lengths()
		asked.Limit = bodyBelow(maxStream)
	}
	return asked
}

// message returns a's first message and makes it before if that is due.
func (c *Client) message(a *attempt) ([]byte, error) {
	c.attempts.mu.Lock()
	defer c.attempts.mu.Unlock()
	if a != c.attempts.newest {
		return nil, errUnneeded
	}
	if a.message == nil {
		hello := &c.attempts.hello
		*hello = append(*hello, c.link.takeHello(handshake.HelloRoom(a.size, c.cfg.Engine, len(a.ask))-len(*hello))...)
		a.made = time.Now()
		var err error
		a.message, a.initiator, err = handshake.Initiate(c.cfg.Key, a.id, handshake.Hello{
			Binding:   c.conn.binding,
			Ask:       a.ask,
			Version:   handshake.Version,
			Time:      a.made.Add(a.clock),
			Engine:    c.cfg.Engine,
			Datagrams: *hello,
		}, a.size)
		if err != nil {
			return nil, err
		}
	}
	return a.message, nil
}

// of returns what is known of a's message: zero values before it is made.
func (t *attempts) of(a *attempt) (*handshake.Initiator, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return a.initiator, a.made
}

// handshake repeats the first message until the server has answered, or until
// it is clear that it will not.
func (c *Client) handshake() error {
	deadline := time.Now().Add(handshakeTime)
	var clock time.Duration // how far ours is behind the server's
	a := c.newAttempt(clock)
	unreachable, foreign := 0, 0
	for {
		err := c.greet(a)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errHeldBack):
			continue
		case c.ctx.Err() != nil:
			return fmt.Errorf("%w: closed before the server answered", ErrLost)
		case errors.Is(err, ErrRefused):
			return err
		case errors.Is(err, ErrNotServer):
			foreign++
			if off, wrong := wrongClock(a.date, clock); wrong && foreign < handshakeTries {
				if off.Abs() > handshake.Skew/2 {
					c.log.Warn("the clock of this computer seems wrong: using the server's", "off", off.Round(time.Second))
				}
				clock = off
				a = c.newAttempt(clock)
				continue // at once
			}
		default:
			unreachable++
		}
		if foreign >= handshakeTries || unreachable >= handshakeTries || time.Now().After(deadline) {
			return err
		}
		c.log.Debug("no answer from the server yet", "err", err)
		if !c.pause(max(backoff(foreign+unreachable, 0), min(c.cfg.Transport.Rest(), maxRest))) {
			return fmt.Errorf("%w: closed before the server answered", ErrLost)
		}
		if _, made := c.attempts.of(a); !made.IsZero() && time.Since(made) > staleHello {
			a = c.newAttempt(clock)
		}
	}
}

// wrongClock tells by the Date of a foreign answer how far this clock is
// behind, and whether that differs from what clock says already by more than
// Date's resolution of a second can explain. A second is added: a server
// refuses what was made before it started, and its own Date is rounded down.
func wrongClock(date string, clock time.Duration) (off time.Duration, wrong bool) {
	t, err := http.ParseTime(date)
	if err != nil {
		return 0, false
	}
	off = time.Until(t) + time.Second
	return off, (off - clock).Abs() > 2*time.Second
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

// pause waits, and tells whether the session goes on.
func (c *Client) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	case <-c.link.closed:
		return false
	}
}

// backoff is how long to wait after n failures in a row, the first of them
// age ago.
func backoff(n int, age time.Duration) time.Duration {
	most := maxBackoff
	if age > lateAfter {
		most = lateBackoff
	}
	d := min(minBackoff<<min(max(n-1, 0), 10), most)
	return d/2 + mathrand.N(d/2+1)
}

// carry makes exchanges until the session ends.
func (c *Client) carry() error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	if c.cfg.Mode == Auto {
		c.streaming = c.way().streaming() // as other sessions have found
	}
	var closed time.Time // when the server said that it has ended the session
	for {
		wait := c.launch(time.Now())
		if !closed.IsZero() {
			wait = min(wait, farewellTime)
		}
		timer.Reset(wait)
		select {
		case <-c.ctx.Done():
			return nil
		case <-c.link.closed:
			c.sayFarewell()
			return nil
		case <-c.link.wake:
		case <-timer.C:
		case res := <-c.results:
			c.observe(res)
			if res.closed && closed.IsZero() {
				closed = time.Now()
			}
		}
		if !closed.IsZero() && (c.link.complete() || time.Since(closed) > farewellTime) {
			lost := fmt.Errorf("%w: ended by the server", ErrLost)
			c.end(lost)
			c.link.finish(0)
			select { // the engine reads the rest and closes
			case <-c.link.closed:
			case <-c.ctx.Done():
			case <-time.After(farewellTime):
				c.link.close()
			}
			c.sayFarewell() // so that the server need not remember the session
			return lost
		}
		if idle := time.Since(c.failingFrom); idle > Lifetime && c.failures > 0 {
			return fmt.Errorf("%w: nothing came through for %v: %w", ErrLost, idle.Round(time.Second), c.failure)
		}
	}
}

// sayFarewell sends what the engine has left behind and tells the server that
// the session has ended, as far as farewellTime allows.
func (c *Client) sayFarewell() {
	ctx, cancel := context.WithTimeout(c.ctx, farewellTime)
	defer cancel()
	c.start(farewell)
	said := false
	for {
		select {
		case res := <-c.results:
			delete(c.flights, res.flight.number)
			if res.flight.kind == farewell {
				said = said || res.err == nil
				if res.foreign || res.err != nil && !rest(ctx, minBackoff) {
					return
				}
			}
			if said && !c.link.unfinished() {
				return
			}
			if c.carrying() {
				continue
			}
			if said && c.link.dueIn(time.Now(), c.lanes()) < 0 {
				return // the server has no room for the rest
			}
			c.start(farewell)
		case <-ctx.Done():
			return
		}
	}
}

// carrying tells whether an exchange is under way that carries records.
func (c *Client) carrying() bool {
	for _, f := range c.flights {
		if len(f.records) > 0 || f.kind == farewell {
			return true
		}
	}
	return false
}

// rest waits d, and tells whether ctx goes on.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
