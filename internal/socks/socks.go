// Package socks is the SOCKS5 proxy of a pluggable transport. Each request has in its
// user name and password the arguments of a bridge line, as tor gives them: what it
// is to be connected to is the server that these name, whatever the target. Requests
// with equal arguments share one dialer, and with it one session where the engine has
// streams. A request is granted after the server has answered under its key.
// Otherwise who asks gets one of these codes, which tor shows in its log by the words
// of RFC 1928:
//
//	reply                        why
//	1 general failure            anything else: the session broke, the program
//	                             ends, too many bridges at once
//	2 not allowed by ruleset     the server answered and refused
//	3 network unreachable        this machine has no way to the front
//	4 host unreachable           no front could be reached (DNS, TCP, proxy, TLS)
//	5 connection refused         what answered is not the server with this key
//	6 TTL expired                the front or the server took too long
//	8 address type not supported the bridge line's arguments are wrong
package socks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/common/tunnel"
	"turbotunnel/internal/ptproc"
	"turbotunnel/internal/relay"
	"turbotunnel/internal/scrub"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
	"golang.org/x/time/rate"
)

const (
	// silentPart is the part of all places that clients may have without any hurry
	// that have not said yet what they want. Tor says it in one write. When there are
	// more, those go that have been silent for silentTime; otherwise goptlib gives each
	// 5 seconds, as there is room: on a busy machine a burst takes its seconds.
	silentPart = 2

	// silentTime is longer than a client of this machine takes to say what it
	// wants, however many come at once: a burst of them is served.
	silentTime = time.Second

	// dialLimit is how long a SOCKS client waits for the server's answer. Tor
	// gives up after two minutes, and should get its answer before that.
	dialLimit = 100 * time.Second

	// refusedInterval is the least time between two log lines about clients that have
	// asked for nothing: a crowd that waited for a place in vain goes all at once.
	refusedInterval = time.Minute
)

var (
	errDialLimit  = fmt.Errorf("no answer from the server within %v: %w", dialLimit, os.ErrDeadlineExceeded)
	errClientGone = errors.New("the SOCKS client went away")
)

// config and stream are the tunnel, as far as it is needed here.
type (
	config = tunnel.Config
	stream = tunnel.Stream
)

// A Dialer opens streams to one server. *tunnel.Dialer is one.
type Dialer interface {
	Dial(ctx context.Context) (tunnel.Stream, error)

	// Pending tells whether something may not have arrived yet that was written, and
	// when the server was heard last.
	Pending() (pending bool, heard time.Time)

	Close() error
}

// A Config says what a Server does.
type Config struct {
	// Defaults are what the arguments of a request override.
	Defaults tunnel.Config

	// Open returns the Dialer for a configuration that is complete. The Server
	// closes it.
	Open func(tunnel.Config) (Dialer, error)

	Log *slog.Logger

	// Status is told what became of requests, in pairs of key and value as tor's
	// STATUS messages have them; nil: nobody is.
	Status func(pairs ...string)

	// Places is how many connections are handled at once, at most. Where it is 0 silent
	// clients have no places to spare.
	Places int

	Stopping context.Context // ends what is not a stream yet
	Draining context.Context // ends streams
}

// A Server answers requests with streams through the tunnel. Safe for concurrent use.
type Server struct {
	Config
	dialers  *pool
	shaking  queue
	refusing rate.Sometimes // tells of those that asked for nothing
}

// NewServer returns a Server. The caller closes it.
func NewServer(c Config) *Server {
	if c.Status == nil {
		c.Status = func(...string) {}
	}
	return &Server{
		Config:   c,
		dialers:  newPool(c.Open),
		shaking:  queue{many: c.Places / silentPart},
		refusing: rate.Sometimes{Interval: refusedInterval},
	}
}

// Close closes all dialers, which ends their streams, and returns when that is done.
// It does not wait for calls of Handle: those under way fail, as do later ones, and
// return soon after. Closing twice is allowed.
func (s *Server) Close() { s.dialers.Close() }

// Handle serves one SOCKS client, which is a TCP connection, and closes it.
func (s *Server) Handle(local net.Conn) {
	conn := local.(*net.TCPConn)
	defer conn.Close()
	req, err := s.handshake(conn)
	if err != nil {
		if s.Stopping.Err() == nil {
			s.refusing.Do(func() { s.Log.Warn("refused a SOCKS client", "err", err) })
		}
		return
	}
	target := req.Req.Target
	refuse := func(code byte, err error) {
		s.Log.Warn("refused tor's request", "err", err)
		s.Status("ADDRESS", target, "CONNECT", "Failed", "ERRSTR", scrub.Error(err))
		conn.SetWriteDeadline(time.Now().Add(time.Second)) // ten bytes: only a broken client makes it wait
		req.RejectReason(code)
	}
	cfg, err := configure(s.Defaults, req.Req.Args)
	if err != nil {
		refuse(pt.SocksRepAddressNotSupported, err)
		return
	}
	e, err := s.dialers.acquire(cfg)
	if err != nil {
		refuse(pt.SocksRepGeneralFailure, err)
		return
	}
	defer s.dialers.release(e)
	s.Log.Info("connecting", "engine", cmp.Or(cfg.Engine, engines.Default), ptproc.AddrKey, cmp.Or(cfg.Addr, cfg.Fronts, cfg.URL))
	stream, early, err := s.dial(conn, e)
	if errors.Is(err, errClientGone) {
		s.Log.Info("tor gave up before the server answered")
		return
	}
	if err != nil {
		s.dialers.setUp(e, false)
		refuse(replyCode(err), err)
		return
	}
	if s.dialers.setUp(e, true) {
		s.Log.Log(context.Background(), ptproc.LevelNotice, "connected", "engine", cmp.Or(cfg.Engine, engines.Default), ptproc.AddrKey, cmp.Or(cfg.Addr, cfg.Fronts, cfg.URL))
	}
	s.Status("ADDRESS", target, "CONNECT", "Success")
	if err := req.Grant(&net.TCPAddr{IP: net.IPv4zero}); err != nil {
		stream.Close()
		return
	}
	err = relay.Join(s.Draining, &primedConn{TCPConn: relay.TCPConn{TCPConn: conn}, first: early}, stream)
	switch {
	case errors.Is(err, tunnel.ErrSessionLost):
		if s.dialers.setUp(e, false) {
			s.Log.Log(context.Background(), ptproc.LevelNotice, "session lost; the next connection makes a new one", "err", err)
			s.Status("ADDRESS", target, "CONNECT", "Lost", "ERRSTR", scrub.Error(err))
		}
	case err != nil:
		s.Log.Info("stream cut", "err", err)
	}
}

// dial opens a stream while the SOCKS client is there. It returns what the
// client sent before it had an answer, which is at most a byte.
func (s *Server) dial(conn net.Conn, d Dialer) (stream, []byte, error) {
	limit, cancelLimit := context.WithTimeoutCause(s.Stopping, dialLimit, errDialLimit)
	defer cancelLimit()
	ctx, cancel := context.WithCancelCause(limit)
	defer cancel(nil)

	// Only a read tells that the client has gone. The deadline ends it.
	var early []byte
	var watch sync.WaitGroup
	watch.Go(func() {
		var b [1]byte
		n, err := conn.Read(b[:])
		early = b[:n]
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			cancel(errClientGone)
		}
	})
	str, err := d.Dial(ctx)
	conn.SetReadDeadline(time.Unix(1, 0))
	watch.Wait()
	conn.SetReadDeadline(time.Time{})

	// The context knows better than the error that it caused.
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errClientGone):
		if err == nil {
			str.Close()
		}
		return nil, nil, errClientGone
	case err == nil:
		return str, early, nil
	case cause != nil:
		return nil, nil, fmt.Errorf("%w: %w", cause, err)
	default:
		return nil, nil, err
	}
}

// replyCode returns the SOCKS reply for an error of Dial; see the table above.
func replyCode(err error) byte {
	var netErr net.Error
	switch {
	case errors.Is(err, tunnel.ErrNotServer):
		return pt.SocksRepConnectionRefused
	case errors.Is(err, tunnel.ErrRefused):
		return pt.SocksRepConnectionNotAllowed
	case errors.Is(err, syscall.ENETUNREACH):
		return pt.SocksRepNetworkUnreachable
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return pt.SocksRepTTLExpired
	case errors.Is(err, tunnel.ErrUnreachable):
		return pt.SocksRepHostUnreachable
	default:
		return pt.SocksRepGeneralFailure
	}
}

// configure returns the configuration that a bridge line's arguments make of
// the flags'.
func configure(defaults config, args pt.Args) (config, error) {
	given := make(map[string]string)
	for name, values := range args {
		if len(values) != 1 {
			return config{}, fmt.Errorf("the bridge line has %q %d times; once is enough", name, len(values))
		}
		given[name] = values[0]
	}
	cfg, err := defaults.With(given)
	if err == nil {
		err = cfg.CheckBridge()
	}
	if err != nil {
		return cfg, fmt.Errorf("bridge line: %w", err)
	}
	return cfg, nil
}

// handshake lets goptlib read the request that comes on conn. It runs for many
// clients at once, which goptlib's own listener cannot do: it reads one
// client's request before it accepts the next.
func (s *Server) handshake(conn *net.TCPConn) (*pt.SocksConn, error) {
	s.shaking.enter(conn)
	defer s.shaking.leave(conn)
	stop := context.AfterFunc(s.Stopping, func() { conn.Close() })
	defer stop()
	w := &witness{Conn: conn}
	req, err := pt.NewSocksListener(&singleListener{conn: w}).AcceptSocks()
	if err != nil {
		return nil, w.verdict()
	}
	return req, nil
}

// A queue holds the clients whose handshake is under way, the oldest first.
type queue struct {
	many int // above which the silent ones go; it never changes

	mu      sync.Mutex
	waiting []waiting // guarded by mu
}

// waiting is a client that came at a time.
type waiting struct {
	conn net.Conn
	came time.Time
}

// enter adds conn. Where that makes too many, it closes those that have been
// silent for long.
func (q *queue) enter(conn net.Conn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	q.waiting = append(q.waiting, waiting{conn, now})
	for len(q.waiting) > q.many && now.Sub(q.waiting[0].came) >= silentTime {
		q.waiting[0].conn.Close()
		q.waiting = slices.Delete(q.waiting, 0, 1)
	}
}

func (q *queue) leave(conn net.Conn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(w waiting) bool { return w.conn == conn })
}

// A singleListener is a net.Listener that accepts one connection.
type singleListener struct {
	conn net.Conn // nil: accepted already
}

func (l *singleListener) Accept() (net.Conn, error) {
	conn := l.conn
	if conn == nil {
		return nil, net.ErrClosed
	}
	l.conn = nil
	return conn, nil
}

func (l *singleListener) Close() error   { return nil }
func (l *singleListener) Addr() net.Addr { return &net.TCPAddr{} }

// A witness remembers of a handshake what goptlib does not tell: why it
// failed. Only the goroutine of the handshake uses it.
type witness struct {
	net.Conn
	readErr error
	said    []byte // the last answer
}

func (w *witness) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.readErr = err
	return n, err
}

func (w *witness) Write(p []byte) (int, error) {
	w.said = append(w.said[:0], p...)
	return w.Conn.Write(p)
}

// verdict says why the handshake failed.
func (w *witness) verdict() error {
	switch {
	case errors.Is(w.readErr, os.ErrDeadlineExceeded):
		return errors.New("no SOCKS request came in time")
	case w.readErr == io.EOF:
		return errors.New("it went away in the middle of its SOCKS request")
	case w.readErr != nil:
		return w.readErr
	case slices.Equal(w.said, []byte{1, 1}): // RFC 1929: failure
		return errors.New("its SOCKS user name and password are not key=value arguments joined by semicolons")
	default:
		return errors.New("it does not speak SOCKS5, or wants something other than CONNECT")
	}
}

// A primedConn reads first what was read from it before.
type primedConn struct {
	relay.TCPConn
	first []byte // owned by the one goroutine that reads
}

func (c *primedConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.TCPConn.Read(p)
}
