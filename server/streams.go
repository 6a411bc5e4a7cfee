package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/internal/ptproc"
	"turbotunnel/internal/relay"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
	"golang.org/x/time/rate"
)

const (
	// dialTimeout is how long FORWARD or the ORPort may take to accept a
	// connection. The ExtORPort has extTimeout more for its handshake.
	dialTimeout = 10 * time.Second

	// Log lines about failed dials: the first few, then one in an interval.
	// Clients decide how many streams there are.
	complaintsFirst    = 5
	complaintsInterval = 10 * time.Second
)

// A stream is a *tunnel.ServerStream.
type stream interface {
	relay.Conn
	Client() netip.Addr
	Session() string
}

// A dialFunc connects to where streams go, on behalf of client, which may be
// the zero Addr. It ends with ctx.
type dialFunc func(ctx context.Context, client netip.Addr) (relay.Conn, error)

// dialForward returns a dialFunc for an address, host:port or unix:PATH.
func dialForward(address string) dialFunc {
	dialer := net.Dialer{Timeout: dialTimeout}
	network, addr := ptproc.Network(address)
	return func(ctx context.Context, _ netip.Addr) (relay.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return relay.OfSocket(conn), nil
	}
}

// dialOR returns a dialFunc for tor's ExtORPort, or its ORPort where that is
// all there is.
func dialOR(info pt.ServerInfo) dialFunc {
	if info.ExtendedOrAddr == nil || info.AuthCookiePath == "" {
		return dialForward(info.OrAddr.String())
	}
	dial := dialForward(info.ExtendedOrAddr.String())
	return func(ctx context.Context, client netip.Addr) (relay.Conn, error) {
		conn, err := dial(ctx, client)
		if err != nil {
			return nil, err
		}
		if err := introduce(ctx, conn, info.AuthCookiePath, userAddr(client), method); err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	}
}

// userAddr is what tor is told of the client, or empty for nothing. tor wants
// a port too; nobody knows the one behind a proxy, so it is always 1.
func userAddr(client netip.Addr) string {
	if !client.IsValid() {
		return ""
	}
	return netip.AddrPortFrom(client.Unmap().WithZone(""), 1).String()
}

// A forwarder joins each stream of the tunnel with a connection of its own.
type forwarder struct {
	accept func() (stream, error) // ends with the tunnel
	dial   dialFunc
	turns  *turns // to dial
	log    *slog.Logger

	complaints rate.Sometimes

	up, down atomic.Uint64 // bytes towards destinations, and back
	refused  atomic.Uint64 // streams whose destination could not be reached

	mu     sync.Mutex    // guards what follows
	open   int           // streams that are joined or about to be
	ending bool          // ended is set when open is 0
	ended  bool          // new streams are refused
	idle   chan struct{} // closed when ended and open is 0
}

// A countedStream counts the bytes that pass.
type countedStream struct {
	stream
	forwarder *forwarder
}

func (c countedStream) Read(p []byte) (int, error) {
	n, err := c.stream.Read(p)
	c.forwarder.up.Add(uint64(n))
	return n, err
}

func (c countedStream) Write(p []byte) (int, error) {
	n, err := c.stream.Write(p)
	c.forwarder.down.Add(uint64(n))
	return n, err
}

func newForwarder(accept func() (stream, error), dial dialFunc, limits budget, log *slog.Logger) *forwarder {
	return &forwarder{
		accept:     accept,
		dial:       dial,
		turns:      newTurns(limits.dials, limits.ofSession()),
		log:        log,
		complaints: rate.Sometimes{First: complaintsFirst, Interval: complaintsInterval},
		idle:       make(chan struct{}),
	}
}

// run accepts streams until accept fails, and returns when all have ended. At
// the end of ctx all are cut.
func (f *forwarder) run(ctx context.Context) {
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		s, err := f.accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				f.log.Error("no more streams can be accepted", "err", err)
			}
			return
		}
		// A stream that is refused is reset: the client shall not take it for an
		// empty answer.
		if !f.begin() {
			s.Reset()
			continue
		}
		streams.Go(func() {
			conn := f.connect(ctx, s)
			if conn == nil {
				s.Reset()
				f.end()
				return
			}
			// In another goroutine: this one's stack has grown for the dial, and
			// streams may be idle for hours.
			streams.Go(func() {
				defer f.end()
				if err := relay.Join(ctx, countedStream{s, f}, conn); err != nil {
					f.log.Debug("a stream was cut", "session", s.Session(), "err", err)
				}
			})
		})
	}
}

// connect returns nil if the stream's destination cannot be reached, or ctx ends
// before its turn. Those who wait are as many as the tunnel has streams.
func (f *forwarder) connect(ctx context.Context, s stream) relay.Conn {
	if !f.turns.take(ctx, s.Session()) {
		return nil
	}
	defer f.turns.give(s.Session())
	conn, err := f.dial(ctx, s.Client())
	if err != nil {
		f.refused.Add(1)
		f.complaints.Do(func() {
			f.log.Warn("a stream was refused because its destination cannot be reached", "session", s.Session(), "err", err)
		})
		return nil
	}
	return conn
}

func (f *forwarder) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return false
	}
	f.open++
	return true
}

func (f *forwarder) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open--
	f.settle()
}

func (f *forwarder) settle() {
	f.ended = f.ended || f.ending && f.open == 0
	if f.ended && f.open == 0 {
		select {
		case <-f.idle:
		default:
			close(f.idle)
		}
	}
}

// drain refuses new streams. The channel is closed when the others have ended.
func (f *forwarder) drain() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	f.settle()
	return f.idle
}

// drainOnceIdle is drain as soon as there are no streams. Until then new ones go on.
func (f *forwarder) drainOnceIdle() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ending = true
	f.settle()
	return f.idle
}

// openStreams is the number of streams now.
func (f *forwarder) openStreams() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open
}

// checkForward tells whether address can be dialed as it stands.
func checkForward(address string) error {
	if network, path := ptproc.Network(address); network == "unix" {
		if path == "" {
			return fmt.Errorf("FORWARD %q has no path", address)
		}
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("FORWARD %q is neither host:port nor unix:PATH: %w", address, err)
	}
	if host == "" {
		return fmt.Errorf("FORWARD %q has no host", address)
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
		return fmt.Errorf("FORWARD %q: the port is not a number from 1 to 65535", address)
	}
	return nil
}
