package main

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// A handshaker is a listener whose Accept returns TLS connections after their
// handshake. net/http would do it in the goroutine that serves the connection
// from then on, whose stack would stay at twice the size that it needs: 8 KB
// of each idle connection. Safe for concurrent use.
type handshaker struct {
	net.Listener
	config   *tls.Config
	accepted chan accepted
	ctx      context.Context // ends with the listener
	cancel   context.CancelFunc
	running  sync.WaitGroup
}

// accepted is what Accept returns.
type accepted struct {
	conn net.Conn
	err  error
}

// newHandshaker starts to accept from ln, which it owns from now on.
func newHandshaker(ln net.Listener, config *tls.Config) *handshaker {
	h := &handshaker{Listener: ln, config: config, accepted: make(chan accepted)}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.running.Go(h.run)
	return h
}

func (h *handshaker) run() {
	for {
		conn, err := h.Listener.Accept()
		if err != nil {
			if !h.give(accepted{err: err}) {
				return
			}
			continue
		}
		h.running.Go(func() { h.handshake(conn) })
	}
}

// handshake passes on connections whose handshake has failed, too: net/http
// asks for its result, is told the same error, and says what it has to say.
func (h *handshaker) handshake(conn net.Conn) {
	conn.SetDeadline(time.Now().Add(headerTimeout)) //nolint:errcheck // the next Read says it
	began := time.Now()
	c := tls.Server(conn, h.config)
	c.HandshakeContext(h.ctx)     //nolint:errcheck // see above
	conn.SetDeadline(time.Time{}) //nolint:errcheck // likewise
	if v := visitorBelow(conn); v != nil {
		v.lull.Trip(time.Since(began)) // a round trip, for who means well
		v.begins(false)
	}
	if !h.give(accepted{conn: c}) {
		conn.Close()
	}
}

// give tells whether somebody has taken what came.
func (h *handshaker) give(a accepted) bool {
	select {
	case h.accepted <- a:
		return true
	case <-h.ctx.Done():
		return false
	}
}

// Accept returns the next *tls.Conn. What the listener below fails with it
// returns as it is.
func (h *handshaker) Accept() (net.Conn, error) {
	select {
	case a := <-h.accepted:
		return a.conn, a.err
	case <-h.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close ends handshakes under way, too, and waits for them.
func (h *handshaker) Close() error {
	h.cancel()
	err := h.Listener.Close()
	h.running.Wait()
	return err
}
