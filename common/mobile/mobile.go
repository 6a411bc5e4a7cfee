// Package mobile is the client for programs that are not written in Go: a façade
// whose every type gobind can bind, for Android and iOS.
//
//	gomobile bind turbotunnel/common/mobile
//
// A Tunnel listens on a port of the loopback interface, and each connection to it
// is a stream through the tunnel. There are two kinds. With StartSocks it is a pluggable
// transport for tor on this side, which says with each connection what stands in the
// bridge line:
//
//	ClientTransportPlugin turbo socks5 127.0.0.1:PORT
//	Bridge turbo ADDRESS FINGERPRINT url=… key=…
//
// With Start all connections go to one server, whatever program makes them. Where tor
// is at the other end, tor on this side can take the port for the bridge itself,
// without a pluggable transport:
//
//	Bridge 127.0.0.1:PORT FINGERPRINT
//
// A Tunnel serves 256 connections at once, and no more than half as many as the app may
// have files open, of which iOS allows 256. When there are as many, others wait, and
// are served in their turn when one has ended; nothing is refused.
//
// Errors are what their texts say; they become exceptions and NSErrors. The texts
// name no address, no key and no path.
package mobile

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/accept"
	"turbotunnel/internal/ptproc"
	"turbotunnel/internal/relay"
	"turbotunnel/internal/scrub"
	"turbotunnel/internal/socks"
)

const (
	// mostConns is how many connections a Tunnel serves at once where it has the
	// descriptors: some times as many as tor or a browser has. One takes 4 KB, and
	// 64 KB while much comes both ways: 16 MB in all, of the 50 MB that iOS gives a
	// network extension.
	mostConns = 256

	// appParts: one part of so many of the descriptors is for connections. The others
	// are for the way out, and for the app that this is a part of.
	appParts = 2
)

// An Observer is told what becomes of the way to the server. It may be called by
// several threads at once, and must not call Stop.
type Observer interface {
	// OnConnected says that the server has answered under its key.
	OnConnected()

	// OnFailed says that the server could not be reached, and why. The next
	// connection tries again.
	OnFailed(why string)

	// OnLost says that connections were cut because their session has ended, and
	// why. The next connection begins another one.
	OnLost(why string)
}

// A Tunnel is one that runs. Its methods may be called by any thread.
type Tunnel struct {
	ln      net.Listener
	places  int             // connections at once
	carry   func(net.Conn)  // owns the connection, and returns at its end
	close   func()          // ends the sessions
	ctx     context.Context // ends with Stop
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// CheckBridgeLine tells whether a bridge line can be used, and what is wrong with it.
func CheckBridgeLine(line string) error {
	_, err := tunnel.ParseBridgeLine(line)
	return shown(err)
}

// Start starts a tunnel to the server of a bridge line. It does not wait for the
// network. port is where it listens; 0: on any that is free. observer may be null.
func Start(bridgeLine string, port int, observer Observer) (*Tunnel, error) {
	cfg, err := tunnel.ParseBridgeLine(bridgeLine)
	if err != nil {
		return nil, shown(err)
	}
	d, err := tunnel.NewDialer(cfg, optionsOf(observer))
	if err != nil {
		return nil, shown(err)
	}
	t := newTunnel()
	t.close = func() { d.Close() }
	t.carry = func(conn net.Conn) {
		local := relay.TCPConn{TCPConn: conn.(*net.TCPConn)}
		stream, err := d.DialEarly(t.ctx) // the server may be the one to speak first
		if err != nil {
			local.Reset()
			return
		}
		relay.Join(t.ctx, local, stream) // the Observer hears of a session's end
	}
	return t.listen(port)
}

// StartSocks starts a SOCKS5 proxy as tor wants one of a pluggable transport. The user
// name and the password of a connection are the arguments of a bridge line, joined by
// semicolons; connections with equal ones share a session. A connection is granted
// when the server has answered under its key, and refused where the arguments are
// wrong, of which tor hears, and not the observer: CheckBridgeLine says why. port and
// observer are as those of Start.
func StartSocks(port int, observer Observer) (*Tunnel, error) {
	t := newTunnel()
	opts := optionsOf(observer)
	opts.Memory = tunnel.NewMemory(0)
	server := socks.NewServer(socks.Config{
		Open: func(cfg tunnel.Config) (socks.Dialer, error) {
			d, err := tunnel.NewDialer(cfg, opts)
			if err != nil {
				return nil, err
			}
			return d, nil
		},
		Log:      slog.New(slog.DiscardHandler),
		Places:   t.places,
		Stopping: t.ctx,
		Draining: t.ctx,
	})
	t.carry, t.close = server.Handle, server.Close
	return t.listen(port)
}

// optionsOf are those of a Dialer of which an Observer is told.
func optionsOf(observer Observer) (opts tunnel.Options) {
	if observer != nil {
		opts.Events = func(e tunnel.Event) { tell(observer, e) }
	}
	return opts
}

func newTunnel() *Tunnel {
	t := &Tunnel{places: places(ptproc.DescriptorLimit())}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// places is how many connections there may be at once of an app that may have limit
// files open; 0 is no limit.
func places(limit uint64) int {
	if limit == 0 {
		return mostConns
	}
	return int(max(min(limit/appParts, mostConns), 1))
}

// listen begins to serve.
func (t *Tunnel) listen(port int) (*Tunnel, error) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		t.cancel()
		t.close()
		return nil, shown(err)
	}
	t.ln = ln
	a := accept.New(ln, t.places, slog.New(slog.DiscardHandler), t.carry)
	t.running.Go(func() { a.Serve(t.ctx, func(int64) {}) })
	return t, nil
}

// Port is where the tunnel listens on 127.0.0.1; 0 for one that Start has not made,
// as bindings let anybody have.
func (t *Tunnel) Port() int {
	if t.ln == nil {
		return 0
	}
	return t.ln.Addr().(*net.TCPAddr).Port
}

// Stop ends the tunnel with its connections, and returns when nothing of it is
// left, within a few seconds. Stopping twice is allowed.
func (t *Tunnel) Stop() {
	if t.ln == nil {
		return
	}
	t.cancel()
	t.ln.Close()
	t.close()
	t.running.Wait()
}

// tell is the Observer's share of an event.
func tell(o Observer, e tunnel.Event) {
	switch e.Kind {
	case tunnel.Connected:
		o.OnConnected()
	case tunnel.Failed:
		o.OnFailed(scrub.Error(e.Err))
	case tunnel.Lost:
		o.OnLost(scrub.Error(e.Err))
	}
}

// shown is err with a text that may be shown.
func shown(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(scrub.Error(err))
}
