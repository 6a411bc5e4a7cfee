package main

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"turbotunnel/internal/ptproc"

	"golang.org/x/time/rate"
)

const (
	// acceptPause is how long the listener rests after an error that is not its
	// end, such as too many open files, which only time can mend.
	acceptPause = 500 * time.Millisecond

	// outParts and mostOut say how many descriptors are kept for the way out, to
	// which local connections never get: a part of all, and at most so many. A
	// session over HTTP/1.1 wants six, and as many again while it asks DNS and
	// tries the addresses of a front.
	outParts = 4
	mostOut  = 1024

	// fullInterval is the least time between two log lines about what is full.
	fullInterval = time.Minute
)

// An acceptor runs a function for each connection of a listener. Without a
// descriptor for the way out no connection is worth anything: when there are as
// many as there may be, others wait in the listener's queue.
type acceptor struct {
	ln     net.Listener
	log    *slog.Logger
	handle func(net.Conn) // becomes the connection's owner

	places        chan struct{} // holds a token for each connection
	open          atomic.Int64  // connections being handled
	full, failing rate.Sometimes
}

func newAcceptor(ln net.Listener, log *slog.Logger, handle func(net.Conn)) *acceptor {
	return &acceptor{
		ln: ln, log: log, handle: handle,
		places:  make(chan struct{}, localConns(ptproc.DescriptorLimit())),
		full:    rate.Sometimes{First: 1, Interval: fullInterval},
		failing: rate.Sometimes{First: 1, Interval: fullInterval},
	}
}

// localConns is how many of the descriptors that the process may have are for
// local connections; 0 is no limit.
func localConns(limit uint64) int {
	if limit == 0 {
		limit = math.MaxInt32
	}
	n := int(min(limit, math.MaxInt32))
	return max(n-min(n/outParts, mostOut), 1)
}

// serve accepts until ctx ends, then closes the listener. It returns after the
// last handle has, and calls draining with their number before it waits.
func (a *acceptor) serve(ctx context.Context, draining func(open int64)) {
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
func (a *acceptor) enter(ctx context.Context) bool {
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
