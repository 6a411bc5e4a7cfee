// Package mobile is the client for programs that are not written in Go: a façade
// whose every type gobind can bind, for Android and iOS.
//
//	gomobile bind turbotunnel/common/mobile
//
// A Tunnel listens on a port of the loopback interface, and each connection to it
// is a stream through the tunnel. Where tor is at the other end, tor on this side
// takes the port for the bridge itself, without a pluggable transport:
//
//	Bridge 127.0.0.1:PORT FINGERPRINT
//
// Errors are what their texts say; they become exceptions and NSErrors. The texts
// name no address, no key and no path.
package mobile

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"turbotunnel/common/relay"
	"turbotunnel/common/scrub"
	"turbotunnel/common/tunnel"
)

// acceptPause is how long the listener rests after an error, such as too many open
// files, which only time can mend.
const acceptPause = 500 * time.Millisecond

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
	dialer  *tunnel.Dialer
	ctx     context.Context // ends with Stop
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// CheckBridgeLine tells whether Start could use a bridge line, and what is wrong
// with it.
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
	opts := tunnel.Options{}
	if observer != nil {
		opts.Events = func(e tunnel.Event) { tell(observer, e) }
	}
	d, err := tunnel.NewDialer(cfg, opts)
	if err != nil {
		return nil, shown(err)
	}
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		d.Close()
		return nil, shown(err)
	}
	t := &Tunnel{ln: ln, dialer: d}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.running.Go(t.serve)
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
	t.dialer.Close()
	t.running.Wait()
}

// serve makes a stream of each connection.
func (t *Tunnel) serve() {
	for {
		conn, err := t.ln.Accept()
		if err != nil {
			select {
			case <-t.ctx.Done():
				return
			case <-time.After(acceptPause):
				continue
			}
		}
		t.running.Go(func() { t.carry(relay.TCPConn{TCPConn: conn.(*net.TCPConn)}) })
	}
}

// carry joins a connection and a stream. The server may be the one to speak first.
func (t *Tunnel) carry(local relay.TCPConn) {
	stream, err := t.dialer.DialEarly(t.ctx)
	if err != nil {
		local.Reset()
		return
	}
	relay.Join(t.ctx, local, stream) // the Observer hears of a session's end
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
