package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// acceptPause is how long the listener rests after an error that is not its
// end, such as too many open files, which only time can mend.
const acceptPause = 500 * time.Millisecond

// An acceptor runs a function for each connection of a listener.
type acceptor struct {
	ln     net.Listener
	log    *slog.Logger
	handle func(*net.TCPConn) // becomes the connection's owner

	open atomic.Int64 // connections being handled
}

// serve accepts until ctx ends, then closes the listener. It returns after the
// last handle has, and calls draining with their number before it waits.
func (a *acceptor) serve(ctx context.Context, draining func(open int64)) {
	stop := context.AfterFunc(ctx, func() { a.ln.Close() })
	defer stop()
	var handlers sync.WaitGroup
	for ctx.Err() == nil {
		conn, err := a.ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				break
			}
			a.log.Error("cannot accept a connection", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		a.open.Add(1)
		handlers.Go(func() {
			defer a.open.Add(-1)
			a.handle(conn.(*net.TCPConn))
		})
	}
	if n := a.open.Load(); n > 0 {
		draining(n)
	}
	handlers.Wait()
}
