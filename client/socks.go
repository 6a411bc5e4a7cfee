package main

import (
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

	"turbotunnel/common/ptproc"
	"turbotunnel/common/relay"
	"turbotunnel/common/scrub"
	"turbotunnel/common/tunnel"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

const (
	// manyHandshakes is how many SOCKS clients there may be without any hurry
	// that have not said yet what they want. Tor says it in one write. When there
	// are more, those go that have been silent for silentTime; otherwise goptlib
	// gives each 5 seconds.
	manyHandshakes = 128

	// silentTime is longer than a client of this machine takes to say what it
	// wants, however many come at once: a burst of them is served.
	silentTime = time.Second

	// dialLimit is how long a SOCKS client waits for the server's answer. Tor
	// gives up after two minutes, and should get its answer before that.
	dialLimit = 100 * time.Second
)

var (
	errDialLimit  = fmt.Errorf("no answer from the server within %v: %w", dialLimit, os.ErrDeadlineExceeded)
	errClientGone = errors.New("the SOCKS client went away")
)

// runManaged is the life of the program under tor.
func runManaged(p *ptproc.Process, s settings, memory *tunnel.Memory) int {
	info, err := p.ClientSetup()
	if err != nil {
		p.Say("%v", err)
		if !ptproc.HasParent() {
			p.Say("tor did not start this program. To forward a port by hand, give it LISTEN and URL: %s 127.0.0.1:2000 http://127.0.0.1:8000. To use it with tor, see %s -h", program, program)
		}
		return exitFailure
	}
	pt.ReportVersion(program, ptproc.Version())
	opts := tunnel.Options{Proxy: info.ProxyURL, Memory: memory, Log: p.Log()}
	dialers := newPool(func(c config) (dialer, error) { return open(c, opts) })
	defer dialers.Close()

	var ln net.Listener
	if slices.Contains(info.MethodNames, method) {
		// Keep-alive probes between two programs on one machine find nothing
		// out, and wake both.
		lc := net.ListenConfig{KeepAlive: -1}
		ln, err = lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			p.CmethodError(method, err)
			p.Log().Error("cannot listen for tor", "err", err)
		} else {
			pt.Cmethod(method, "socks5", ln.Addr())
		}
	}
	pt.CmethodsDone()
	if ln == nil {
		// Tor decides what becomes of a program without a transport.
		<-p.Stopping().Done()
		return exitOK
	}
	srv := &socksServer{
		defaults: s.tunnel,
		dialers:  dialers,
		log:      p.Log(),
		status:   func(pairs ...string) { p.Status(method, pairs...) },
		stopping: p.Stopping(),
		draining: p.Draining(),
	}
	srv.serve(ln)
	return exitOK
}

// A socksServer answers tor's requests with streams through the tunnel.
type socksServer struct {
	defaults config // what the flags say
	dialers  *pool
	log      *slog.Logger
	status   func(pairs ...string)

	stopping context.Context // ends what is not a stream yet
	draining context.Context // ends streams

	shaking queue
}

// serve answers the requests that come to ln until stopping is done, and
// returns when the streams have ended.
func (s *socksServer) serve(ln net.Listener) {
	a := newAcceptor(ln, s.log, s.handle)
	a.serve(s.stopping, func(open int64) {
		s.log.Info("stopping", "why", context.Cause(s.stopping), "open", open)
	})
}

// handle serves one SOCKS client.
func (s *socksServer) handle(local net.Conn) {
	conn := local.(*net.TCPConn)
	defer conn.Close()
	req, err := s.handshake(conn)
	if err != nil {
		if s.stopping.Err() == nil {
			s.log.Warn("refused a SOCKS client", "err", err)
		}
		return
	}
	target := req.Req.Target
	refuse := func(code byte, err error) {
		s.log.Warn("refused tor's request", "err", err)
		s.status("ADDRESS", target, "CONNECT", "Failed", "ERRSTR", scrub.Error(err))
		conn.SetWriteDeadline(time.Now().Add(time.Second)) // ten bytes: only a broken client makes it wait
		req.RejectReason(code)
	}
	cfg, err := configure(s.defaults, req.Req.Args)
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
	s.log.Info("connecting", "engine", engineOf(cfg), ptproc.AddrKey, frontOf(cfg))
	stream, early, err := s.dial(conn, e)
	if errors.Is(err, errClientGone) {
		s.log.Info("tor gave up before the server answered")
		return
	}
	if err != nil {
		s.dialers.setUp(e, false)
		refuse(replyCode(err), err)
		return
	}
	if s.dialers.setUp(e, true) {
		s.log.Log(context.Background(), ptproc.LevelNotice, "connected", "engine", engineOf(cfg), ptproc.AddrKey, frontOf(cfg))
	}
	s.status("ADDRESS", target, "CONNECT", "Success")
	if err := req.Grant(&net.TCPAddr{IP: net.IPv4zero}); err != nil {
		stream.Close()
		return
	}
	err = relay.Join(s.draining, &primedConn{TCPConn: relay.TCPConn{TCPConn: conn}, first: early}, stream)
	switch {
	case errors.Is(err, tunnel.ErrSessionLost):
		if s.dialers.setUp(e, false) {
			s.log.Log(context.Background(), ptproc.LevelNotice, "session lost; the next connection makes a new one", "err", err)
			s.status("ADDRESS", target, "CONNECT", "Lost", "ERRSTR", scrub.Error(err))
		}
	case err != nil:
		s.log.Info("stream cut", "err", err)
	}
}

// dial opens a stream while the SOCKS client is there. It returns what the
// client sent before it had an answer, which is at most a byte.
func (s *socksServer) dial(conn net.Conn, d dialer) (stream, []byte, error) {
	limit, cancelLimit := context.WithTimeoutCause(s.stopping, dialLimit, errDialLimit)
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

// replyCode returns the SOCKS reply for an error of Dial; see the table in the
// package comment.
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
func (s *socksServer) handshake(conn *net.TCPConn) (*pt.SocksConn, error) {
	s.shaking.enter(conn)
	defer s.shaking.leave(conn)
	stop := context.AfterFunc(s.stopping, func() { conn.Close() })
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
	for len(q.waiting) > manyHandshakes && now.Sub(q.waiting[0].came) >= silentTime {
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
