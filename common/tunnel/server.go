package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engine"
	"turbotunnel/common/engines"
	"turbotunnel/common/handshake"
	"turbotunnel/common/measure"
)

// Log lines about streams for which there is no room: one in an interval, since
// clients decide how many there are.
const fullInterval = time.Minute

// errServerClosed matches net.ErrClosed.
var errServerClosed = fmt.Errorf("tunnel: server: %w", net.ErrClosed)

// ServerConfig is what a Server needs.
type ServerConfig struct {
	// Key is the server's key. Nil: the well-known one, which authenticates
	// nothing.
	Key *Key

	// Decoy answers every request that is not a client's. Nil: an empty 404.
	Decoy http.Handler

	// TrustedProxies may say by X-Forwarded-For who the client is.
	TrustedProxies []netip.Prefix

	// Memory is how many bytes all sessions may hold; 0: 1 GiB. When they hold more,
	// those that hold most are ended.
	Memory int64

	// Known is called when a request has shown that a client made it, while it is
	// being read, and maybe more than once. Nil: nobody wants to know.
	Known func(*http.Request)

	// Streams is how many streams all sessions may have open at once; 0: 16 384.
	// A session may have 256 of them, the sessions of one client's address a
	// quarter. When all are taken, who has most loses one for a newcomer's.
	Streams int

	// Marks keep what the server has to know of clients' first messages after a
	// restart. Nil: then a message that somebody has recorded can be let through a
	// second time after one, and what was said in it arrives twice.
	Marks Marks

	// Log receives what happens. Nil: nothing is logged.
	Log *slog.Logger
}

// Marks keep some hundred bytes when the server does not run. They may fail: then
// new clients need a round trip more.
type Marks interface {
	// Load returns what was saved last, and nothing at first.
	Load() ([]byte, error)

	// Save returns when text would survive a crash.
	Save(text []byte) error
}

// A Server is an http.Handler that turns clients' requests into sessions and
// sessions into streams. Safe for concurrent use.
type Server struct {
	carrier *carrier.Server
	log     *slog.Logger
	streams chan *ServerStream
	ctx     context.Context // ends when the Server is closed
	cancel  context.CancelFunc

	shares *shares
	full   rate.Sometimes // log lines

	accepted, limited atomic.Int64
}

// NewServer returns a Server, which serves all engines.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{
		log:     cfg.Log,
		streams: make(chan *ServerStream),
		shares:  newShares(cfg.Streams),
		full:    rate.Sometimes{First: 1, Interval: fullInterval},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	key := handshake.WellKnown
	if cfg.Key != nil {
		key = cfg.Key.private
	}
	decoy := cfg.Decoy
	if decoy == nil {
		decoy = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	}
	trusted := cfg.TrustedProxies
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.carrier = carrier.NewServer(carrier.ServerConfig{
		Key:        key,
		Decoy:      decoy,
		Marks:      cfg.Marks,
		Engines:    append(engines.Names(), measure.Name),
		Serve:      s.serve,
		Known:      cfg.Known,
		Memory:     cfg.Memory,
		ClientAddr: func(r *http.Request) netip.Addr { return clientAddr(r, trusted) },
		Log:        s.log,
	})
	return s
}

// ServeHTTP answers clients and leaves everyone else to the decoy.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.carrier.ServeHTTP(w, r) }

// serve runs the engine of one session and hands on its streams.
func (s *Server) serve(c *carrier.Session) {
	if c.Engine() == measure.Name {
		measure.Serve(c.Conn()) // its end is the session's
		return
	}
	e, ok := engines.Find(c.Engine())
	if !ok {
		s.log.Error("a session with an engine that does not exist", "engine", c.Engine())
		return
	}
	sess, err := e.Server(c.Conn())
	if err != nil {
		s.log.Error("engine did not start", "engine", c.Engine(), "err", err)
		return
	}
	defer sess.Close()
	s.handOn(c, sess, c.Streams)
}

// handOn hands the streams of a session to Accept until it ends. count is told
// how many more there are, or fewer.
func (s *Server) handOn(c *carrier.Session, sess engine.Session, count func(int)) {
	var active atomic.Int64
	often := rate.NewLimiter(sessionRate, sessionBurst)
	for {
		st, err := sess.Accept(s.ctx)
		if errors.Is(err, engine.ErrSingleStream) {
			select {
			case <-sess.Done():
			case <-s.ctx.Done():
			}
			return
		}
		if err != nil || !s.pace(sess, often, holderOf(c)) {
			return
		}
		stream := &ServerStream{Stream: st, session: c, holder: holderOf(c), shares: s.shares}
		stream.onClose = func() {
			active.Add(-1)
			count(-1)
			s.shares.remove(stream)
		}
		if !s.admit(stream, &active) {
			st.Reset() // refused: the client shall not take it for an empty answer
			continue
		}
		count(1)
		select {
		case s.streams <- stream:
		case <-s.ctx.Done():
			stream.Close()
			return
		}
	}
}

// pace waits until another stream of a session is due. Those behind it wait with
// the engine, so that no session's streams are in front of another's. It returns
// false when the session has ended.
func (s *Server) pace(sess engine.Session, often *rate.Limiter, h holder) bool {
	now := time.Now()
	wait := often.ReserveN(now, 1).DelayFrom(now)
	if h.network.IsValid() {
		wait = max(wait, s.shares.reserve(h, now))
	}
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-sess.Done():
	case <-s.ctx.Done():
	}
	return false
}

// admit counts a stream, or says why there is no room for it.
func (s *Server) admit(st *ServerStream, active *atomic.Int64) bool {
	if active.Load() >= sessionStreams {
		s.limited.Add(1)
		s.full.Do(func() {
			s.log.Warn("streams are refused: a session has as many open as it may; its client shall close some, or open another session",
				"session", st.Session(), "limit", sessionStreams)
		})
		return false
	}
	ok, goes := s.shares.add(st, time.Now())
	if !ok || goes != nil {
		s.limited.Add(1)
		s.full.Do(func() {
			open, most := s.shares.streams()
			s.log.Warn("streams are refused or cut: all are in use, or one address has its part of them; if that is no attack, raise the limit of open files, which decides how many there can be (ulimit -n, or LimitNOFILE= in a systemd unit)",
				"open", open, "limit", most)
		})
	}
	if goes != nil {
		goes.Reset()
	}
	if ok {
		active.Add(1)
		s.accepted.Add(1)
	}
	return ok
}

// Accept waits for the next stream of any session. After Close its error
// matches net.ErrClosed.
func (s *Server) Accept() (*ServerStream, error) {
	select {
	case st := <-s.streams:
		return st, nil
	case <-s.ctx.Done():
		return nil, errServerClosed
	}
}

// Listener is Accept as a net.Listener: each connection that it accepts is a
// *ServerStream. Closing it closes the Server.
func (s *Server) Listener() net.Listener { return listener{s} }

type listener struct{ server *Server }

func (l listener) Accept() (net.Conn, error) {
	s, err := l.server.Accept()
	if err != nil {
		return nil, err // not s, which would be no nil net.Conn
	}
	return s, nil
}

func (l listener) Close() error { return l.server.Close() }

// Addr names nothing: streams come by HTTP.
func (l listener) Addr() net.Addr { return carrier.Addr("turbotunnel") }

// Shutdown is Close after what was written to the streams has reached the
// clients, as far as ctx allows.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.carrier.Shutdown(ctx)
	s.cancel()
	return err
}

// Close ends every session and returns when nothing of them is left.
func (s *Server) Close() error {
	s.cancel()
	return s.carrier.Close()
}

// Stats are counts since the start, or, where it says so, of now.
type Stats struct {
	carrier.Stats
	Streams     int // open now
	StreamLimit int // how many may be open
	Accepted    int // streams
	Limited     int // streams for which there was no room, or that made room for others
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	open, most := s.shares.streams()
	return Stats{s.carrier.Stats(), open, most, int(s.accepted.Load()), int(s.limited.Load())}
}

// Client is the address of the stream's client, or the zero Addr when it is
// not known for sure.
func (s *ServerStream) Client() netip.Addr { return s.session.Client() }

// clientAddr tells who made a request: the peer, or if that is a trusted proxy
// whom it names. Of X-Forwarded-For the right end was written last; names are
// believed from there as long as who wrote them is trusted. Anything doubtful
// gives the zero Addr: no address is better than a wrong one.
func clientAddr(r *http.Request, trusted []netip.Prefix) netip.Addr {
	at, ok := parseAddr(r.RemoteAddr)
	if !ok {
		return netip.Addr{}
	}
	named := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for trusts(trusted, at) {
		if len(named) == 0 || len(named) == 1 && strings.TrimSpace(named[0]) == "" {
			return netip.Addr{} // a proxy that does not say for whom it asks
		}
		if at, ok = parseAddr(strings.TrimSpace(named[len(named)-1])); !ok {
			return netip.Addr{}
		}
		named = named[:len(named)-1]
	}
	if at.IsLoopback() || at.IsUnspecified() {
		return netip.Addr{} // a proxy on this machine that nobody called trusted
	}
	return at
}

func trusts(trusted []netip.Prefix, a netip.Addr) bool {
	for _, p := range trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// parseAddr reads an address with or without port, IPv6 with or without
// brackets, and drops its zone.
func parseAddr(s string) (netip.Addr, bool) {
	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	a, err := netip.ParseAddr(bare)
	if err != nil || bare != s && !a.Is6() {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		a = ap.Addr()
	}
	return a.Unmap().WithZone(""), true
}
