// Package accept takes a listener's connections, no more at once than there is room
// for: others wait in the listener's queue, where they cost no descriptor.
package accept

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// acceptPause is how long the listener rests after an error that is not its
	// end, such as too many open files, which only time can mend.
	acceptPause = 500 * time.Millisecond

	// fullInterval is the least time between two log lines about what is full.
	fullInterval = time.Minute
)

// An Acceptor runs a function for each connection of a listener.
type Acceptor struct {
	ln     net.Listener
	log    *slog.Logger
	handle func(net.Conn)

	places        chan struct{} // holds a token for each connection
	open          atomic.Int64  // connections being handled
	full, failing rate.Sometimes
}

// New returns an Acceptor of at most places connections at once, as the limit of open
// files allows. Each call of handle owns its connection.
func New(ln net.Listener, places int, log *slog.Logger, handle func(net.Conn)) *Acceptor {
	return &Acceptor{
		ln: ln, log: log, handle: handle,
		places:  make(chan struct{}, places),
		full:    rate.Sometimes{First: 1, Interval: fullInterval},
		failing: rate.Sometimes{First: 1, Interval: fullInterval},
	}
}

// Serve accepts until ctx ends, then closes the listener. It returns after the
// last handle has, and calls draining with their number before it waits.
func (a *Acceptor) Serve(ctx context.Context, draining func(open int64)) {
	stop := context.AfterFunc(ctx, func() { a.ln.Close() })
	defer stop()
	var handlers sync.WaitGroup
	for a.enter(ctx) {
		conn, err := a.ln.Accept()
		if err != nil {
			<-a.places
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				break
			}
			a.failing.Do(func() {
				a.log.Error("cannot accept a connection: if it is for want of files, raise the limit of open files (ulimit -n, or LimitNOFILE= in a systemd unit)", "err", err)
			})
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		a.open.Add(1)
		handlers.Go(func() {
			defer func() {
				a.open.Add(-1)
				<-a.places
			}()
			a.handle(conn)
		})
	}
	if n := a.open.Load(); n > 0 {
		draining(n)
	}
	handlers.Wait()
}

// enter waits for a place for a connection, and returns false when ctx ends.
func (a *Acceptor) enter(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case a.places <- struct{}{}:
		return true
	default:
	}
	a.full.Do(func() {
		a.log.Warn("there are as many connections as the limit of open files allows, and others wait: raise it (ulimit -n, or LimitNOFILE= in a systemd unit)", "connections", cap(a.places))
	})
	select {
	case a.places <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}
