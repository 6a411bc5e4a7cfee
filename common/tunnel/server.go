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

	"turbotunnel/common/carrier"
	"turbotunnel/common/engine"
	"turbotunnel/common/engines"
	"turbotunnel/common/handshake"
)

// maxStreams is how many streams a client may have open in one session. One
// beyond it is reset at once.
const maxStreams = 4096

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

	// Log receives what happens. Nil: nothing is logged.
	Log *slog.Logger
}

// A Server is an http.Handler that turns clients' requests into sessions and
// sessions into streams. Safe for concurrent use.
type Server struct {
	carrier *carrier.Server
	log     *slog.Logger
	streams chan *ServerStream
	ctx     context.Context // ends when the Server is closed
	cancel  context.CancelFunc

	accepted, open atomic.Int64
}

// NewServer returns a Server, which serves all engines.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{log: cfg.Log, streams: make(chan *ServerStream)}
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
		Engines:    engines.Names(),
		Serve:      s.serve,
		ClientAddr: func(r *http.Request) netip.Addr { return clientAddr(r, trusted) },
		Log:        s.log,
	})
	return s
}

// ServeHTTP answers clients and leaves everyone else to the decoy.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.carrier.ServeHTTP(w, r) }

// serve runs the engine of one session and hands on its streams.
func (s *Server) serve(c *carrier.Session) {
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
	var active atomic.Int64
	for {
		st, err := sess.Accept(s.ctx)
		if errors.Is(err, engine.ErrSingleStream) {
			select {
			case <-sess.Done():
			case <-s.ctx.Done():
			}
			return
		}
		if err != nil {
			return
		}
		if active.Load() >= maxStreams {
			s.log.Warn("a session opens too many streams", "session", c.Name(), "limit", maxStreams)
			st.Reset() // refused: the client shall not take it for an empty answer
			continue
		}
		active.Add(1)
		s.open.Add(1)
		s.accepted.Add(1)
		stream := &ServerStream{Stream: st, session: c, onClose: func() {
			active.Add(-1)
			s.open.Add(-1)
		}}
		select {
		case s.streams <- stream:
		case <-s.ctx.Done():
			stream.Close()
			return
		}
	}
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
	Streams  int // open now
	Accepted int // streams
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	return Stats{s.carrier.Stats(), int(s.open.Load()), int(s.accepted.Load())}
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
