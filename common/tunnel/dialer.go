// Package tunnel is turbotunnel as a library, and its API: what other programs
// import. A Dialer opens byte streams to a server through HTTP; a Server, which is
// an http.Handler, accepts them. Config is how the server is reached, which
// ParseBridgeLine reads and Config.With completes; Options are what concerns this
// side only.
//
// The streams are net.Conns, Dialer.DialContext fits where a net.Dialer's does,
// and Server.Listener is a net.Listener, so that what speaks over TCP speaks
// through a tunnel. See the examples.
//
// The package writes nothing but to the Log that it is given, ends no process,
// and has no state but in its Dialers and Servers, of which there may be many;
// what is closed leaves no goroutine and no descriptor behind. It knows neither
// Tor nor flags nor sockets to listen on. What it needs of the packages below it
// stands in its own types; those packages may change with any version.
package tunnel

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engine"
	"turbotunnel/common/engines"
	"turbotunnel/common/front"
)

// Errors of a Dialer and its streams, to be tested with errors.Is. Each is
// wrapped in one that says what failed and how.
var (
	ErrUnreachable = carrier.ErrUnreachable // no front could be reached, or the CDN cannot reach the server
	ErrNotServer   = carrier.ErrNotServer   // what answered does not have the server's key
	ErrRefused     = carrier.ErrRefused     // the server lacks the engine, or speaks another version
	ErrClock       = carrier.ErrClock       // the first message came at a wrong time, and what was written at first may be lost
	ErrSessionLost = carrier.ErrLost        // the session ended under the stream
)

// Why sessions are lost that the server has ended, or forgotten.
var (
	errEnded     = fmt.Errorf("%w: ended by the server", ErrSessionLost)
	errForgotten = fmt.Errorf("%w: the server does not know it any more, as after a restart", ErrSessionLost)
	errExpired   = fmt.Errorf("%w: the server has forgotten it, because nothing came through for more than %v", ErrSessionLost, carrier.Lifetime)
)

// errFull is what Dial returns when there are as many streams as there may be.
var errFull = fmt.Errorf("tunnel: %d streams are open in %d sessions: close some", maxSessions*engine.MaxStreams, maxSessions)

// errDialerClosed matches net.ErrClosed.
var errDialerClosed = fmt.Errorf("tunnel: dialer: %w", net.ErrClosed)

const (
	// replaceEvery is how often a session that the server seems to have forgotten
	// is tried to be replaced.
	replaceEvery = 10 * time.Second

	// clockTries is how many sessions in a row may end because the clocks differ:
	// the first may teach the day, the second the time.
	clockTries = 3

	// maxSessions is how many sessions streams share at most: with MaxStreams in
	// each, more than a process has descriptors for.
	maxSessions = 16

	// spareLife is how long a session that new streams do not share any more lives
	// on without any, and then until what was written before the last one was closed
	// has arrived.
	spareLife = time.Minute
)

// Options are a Dialer's settings that are not the server's affair.
type Options struct {
	// Proxy, if not nil, is used for every connection, names included. Its
	// scheme is http, socks4a or socks5.
	Proxy *url.URL

	// Dial makes the TCP connections to the front, or to the proxy, and resolves
	// their names. Nil: a net.Dialer does, and the system's resolver.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Control is called for each socket before it connects, as in net.Dialer: for
	// those who bind it to an interface, or keep it out of a VPN of their own. It
	// has no effect beside Dial.
	Control func(network, addr string, c syscall.RawConn) error

	// RootCAs verify the front's certificate. Nil: the system's.
	RootCAs *x509.CertPool

	// Events is told what becomes of the way to the server. Nil: nobody is. It
	// may be called by several goroutines at once, and must neither wait for the
	// network nor close the Dialer.
	Events func(Event)

	// Memory is how much the Dialer's sessions may hold, together with those of all
	// Dialers that share it. Nil: NewMemory(0) of its own.
	Memory *Memory

	// Log receives what happens. Nil: nothing is logged. Messages hold no
	// secret; network addresses stand in errors and attributes only.
	Log *slog.Logger
}

// A Memory is how much the sessions of Dialers may hold: see carrier.Memory. What has
// no room waits at the server, or with who writes.
type Memory = carrier.Memory

// NewMemory returns a Memory of limit bytes; 0: half of Go's memory limit
// (GOMEMLIMIT), 1 GiB at most.
func NewMemory(limit int64) *Memory { return carrier.NewMemory(limit) }

// An Event is something that a program may want to show its user, in the words of
// its Kind and of Err.
type Event struct {
	Kind EventKind
	Err  error // why; nil when Connected
}

// EventKind is what has happened.
type EventKind int

// The events of a session, of which a Dialer has one at a time as a rule.
const (
	Connected EventKind = iota + 1 // the server has answered under its key
	Failed                         // no session could be had; Err is what Dial returns
	Lost                           // a session has ended under its streams; the next stream begins another one
)

func (k EventKind) String() string {
	switch k {
	case Connected:
		return "connected"
	case Failed:
		return "failed"
	case Lost:
		return "lost"
	}
	return fmt.Sprintf("event %d", int(k))
}

// A Dialer opens streams to one server. Streams share a session where the
// engine has streams; otherwise each has one of its own. A session that was
// lost is replaced. Safe for concurrent use.
type Dialer struct {
	cfg    *parsed
	engine engine.Engine
	share  share
	known  carrier.Path
	memory *Memory

	resolver io.Closer // of names
	log      *slog.Logger
	events   func(Event)     // never nil
	ctx      context.Context // ends when the Dialer is closed
	cancel   context.CancelFunc
	wg       sync.WaitGroup // watchers of sessions

	mu       sync.Mutex
	current  *session              // shared by new streams; guarded by mu, like what follows
	sessions []*session            // all that streams may share, in the order of their starts
	alive    map[*session]struct{} // those that have not ended, shared or not
	closed   bool
}

// session is one session and the engine on it.
type session struct {
	client   *carrier.Client // constant, like engine
	engine   engine.Session
	replaced atomic.Pointer[error] // why the server does not know it; nil: it may

	// Guarded by the Dialer's mu.
	streams int           // open in it, or about to be
	left    time.Time     // when one was closed last, or not opened after all; zero: there was none
	full    bool          // the engine has refused one more since one was closed
	doubt   chan struct{} // closed when it is known whether another one is accepted; nil: nobody asks
}

// NewDialer returns a Dialer. It does not use the network yet.
func NewDialer(cfg Config, opts Options) (*Dialer, error) {
	p, err := cfg.parse()
	if err != nil {
		return nil, err
	}
	e, _ := engines.Find(p.engine)
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for i := range p.fronts {
		f := &p.fronts[i]
		f.Proxy, f.Dialer, f.Control, f.RootCAs = opts.Proxy, opts.Dial, opts.Control, opts.RootCAs
	}
	resolver, err := p.lookUp(p.fronts)
	if err != nil {
		return nil, err
	}
	fronts, err := front.NewSet(p.fronts, log)
	if err != nil {
		resolver.Close() // never fails
		return nil, err
	}
	d := &Dialer{cfg: p, engine: e, memory: opts.Memory, log: log, events: opts.Events, resolver: resolver, alive: make(map[*session]struct{})}
	if d.memory == nil {
		d.memory = NewMemory(0)
	}
	if d.events == nil {
		d.events = func(Event) {}
	}
	d.share.Set = fronts
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d, nil
}

// Dial returns a new stream after the server has answered under its key. Where the
// server seems to have forgotten the session, that is the answer to a new one.
func (d *Dialer) Dial(ctx context.Context) (Stream, error) {
	for tries := 1; ; tries++ {
		s, err := d.session(ctx)
		if err != nil {
			return nil, err
		}
		select {
		case <-s.client.Ready():
			return d.open(ctx, s)
		case <-s.client.Done():
			d.release(s)
			if tries < clockTries && s.untimely() {
				continue
			}
			return nil, s.failure()
		case <-ctx.Done():
			d.giveUp(s)
			return nil, fmt.Errorf("%w: no answer: %w", ErrUnreachable, context.Cause(ctx))
		}
	}
}

// DialEarly returns a new stream at once, or when a session that the server seems
// to have forgotten has been tried to be replaced: what is written to it travels
// with the session's first message, and when that fails Read and Write return the
// error that Dial would have returned. If it is only the clocks that differ, a
// stream that has said nothing goes on in the next session, and one that has returns
// ErrClock: what it said is not said twice. The engine quic has to hear from the
// server first: with it DialEarly is Dial, but that an error does not say
// ErrUnreachable because ctx has ended.
func (d *Dialer) DialEarly(ctx context.Context) (Stream, error) {
	s, err := d.session(ctx)
	if err != nil {
		return nil, err
	}
	return d.open(ctx, s)
}

// DialContext is Dial for those who want a net.Dialer's method, such as
// http.Transport. A tunnel leads to one place, which its server knows: network and
// addr choose nothing.
func (d *Dialer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	s, err := d.Dial(ctx)
	if err != nil {
		return nil, err // not s, which would be no nil net.Conn
	}
	return s, nil
}

// Pending tells whether something may not have arrived yet that was written to streams,
// though they may be closed, and when an answer of the server's has come last (zero:
// none has): if lately, it is worth to wait with Close.
func (d *Dialer) Pending() (pending bool, heard time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for s := range d.alive {
		// A session of one stream ends when all of it was read.
		pending = pending || !d.engine.Multiplexes() || s.client.Pending()
		if at := s.client.Heard(); at.After(heard) {
			heard = at
		}
	}
	return pending, heard
}

// Close ends all streams and sessions, tells the server as far as it can be
// reached within a few seconds, and returns when nothing is left. Calls under
// way fail. Closing twice is allowed.
func (d *Dialer) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.cancel()
	d.wg.Wait()
	err := d.share.Close()
	d.resolver.Close() // never fails
	return err
}

func (d *Dialer) open(ctx context.Context, s *session) (Stream, error) {
	st, s, err := d.openIn(ctx, s)
	if err != nil {
		return nil, err
	}
	return &clientStream{dialer: d, stream: st, session: s}, nil
}

// openIn opens a stream in s, which has a place for it, or, if that ends meanwhile
// only because the clocks differ, or has no room after all, in another session,
// which it returns.
func (d *Dialer) openIn(ctx context.Context, s *session) (engine.Stream, *session, error) {
	for tries := 1; ; {
		st, err := s.engine.Open(ctx)
		if err == nil {
			return st, s, nil
		}
		d.giveUp(s)
		switch {
		case errors.Is(err, engine.ErrTooMany):
			d.fills(s)
		case tries == clockTries || !s.untimely():
			return nil, nil, s.explain(err)
		default:
			tries++
		}
		if s, err = d.session(ctx); err != nil {
			return nil, nil, err
		}
	}
}

// untimely tells whether the session has ended because the clocks differ: the next
// one knows that.
func (s *session) untimely() bool { return errors.Is(s.client.Err(), ErrClock) }

// explain turns the error of an engine whose session has ended into the reason for that.
func (s *session) explain(err error) error {
	if why := s.replaced.Load(); why != nil {
		return *why
	}
	if cause := s.client.Err(); cause != nil {
		return cause
	}
	return err
}

// failure is why the session ended.
func (s *session) failure() error {
	if err := s.client.Err(); err != nil {
		return err
	}
	return errDialerClosed
}

// start starts a session and its watcher. mu is held.
func (d *Dialer) start() (*session, error) {
	if d.closed {
		return nil, errDialerClosed
	}
	c := carrier.NewClient(carrier.ClientConfig{
		Transport: &d.share,
		Path:      &d.known,
		Memory:    d.memory,
		URL:       d.cfg.url,
		Key:       d.cfg.key,
		Engine:    d.engine.Name(),
		Mode:      d.cfg.mode,
		Log:       d.log,
	})
	e, err := d.engine.Client(c.Conn())
	if err != nil {
		c.Close()
		return nil, err
	}
	s := &session{client: c, engine: e}
	d.alive[s] = struct{}{}
	d.share.sessions.Add(1)
	d.wg.Go(func() { d.watch(s) })
	return s, nil
}

// watch ends the session's engine or client when the other has ended, or both
// with the Dialer, and has a session replaced that the server has forgotten.
func (d *Dialer) watch(s *session) {
	defer func() {
		d.remove(s)
		s.engine.Close()
		<-s.client.Done() // the farewell is bounded
		d.share.sessions.Add(-1)
	}()
	var retry <-chan time.Time // when it may be tried to be replaced again; nil: now
	ready := s.client.Ready()  // nil: that was told
	for {
		v, news := s.client.Verdict()
		if v.Forgotten && retry == nil {
			if d.replace(s) {
				d.events(Event{Lost, *s.replaced.Load()})
				return
			}
			retry = time.After(replaceEvery)
		}
		select {
		case <-s.client.Done():
			d.tellEnd(s, ready == nil)
			return
		case <-s.engine.Done():
			d.tellEngineEnd(s, ready == nil)
			return
		case <-d.ctx.Done():
			return
		case <-ready:
			d.events(Event{Kind: Connected})
			ready = nil
		case <-news:
		case <-retry:
			retry = nil
		}
	}
}

// inUse tells whether the engine's end is a loss: this side ends a session in which
// there are many streams when it has none.
func (d *Dialer) inUse(s *session) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.closed && d.engine.Multiplexes() && s.streams > 0
}

// tellEngineEnd says what the end of a session's engine means. told is as in tellEnd.
func (d *Dialer) tellEngineEnd(s *session, told bool) {
	switch {
	case s.client.Err() != nil: // it ends, and has taken the engine along
		d.tellEnd(s, told)
	case d.inUse(s):
		d.tellConnected(s, told)
		d.events(Event{Lost, errEnded})
	}
}

// tellConnected says that a session that has ended was connected, if it was, and if
// that was not told.
func (d *Dialer) tellConnected(s *session, told bool) {
	if !told && isClosed(s.client.Ready()) {
		d.events(Event{Kind: Connected})
	}
}

// tellEnd says why a session has ended by itself. told: that it was connected has
// been said.
func (d *Dialer) tellEnd(s *session, told bool) {
	d.tellConnected(s, told)
	err := s.client.Err()
	switch {
	case err == nil:
	case isClosed(s.client.Ready()):
		d.log.Warn("session ended", "err", err)
		d.events(Event{Lost, err})
	case !s.untimely(): // else another one is begun, which knows the time
		d.events(Event{Failed, err}) // in the log stands what Dial, or the stream, has said
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// share is a carrier.Transport that divides the exchanges that the fronts have
// room for among the sessions that use them.
type share struct {
	*front.Set
	sessions atomic.Int64
}

// Slots is a session's part, of which crowded says that it is less than two.
func (s *share) Slots() (each int, crowded bool) {
	return s.Set.Slots(int(s.sessions.Load()))
}
