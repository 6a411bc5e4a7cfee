package front

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

const (
	// dialTimeout bounds a new connection from name resolution to the end of
	// the TLS handshake. Three lost SYNs cost 7 s, and so do three lost
	// packets in each of the steps after it.
	dialTimeout = 30 * time.Second

	// redialAfter is how long a dial may go on before another one is begun
	// beside it. In an outage a dial's SYN is repeated after 1, 2, 4, 8 s (RFC
	// 6298): one that began early finds out late that the path is back. Chrome
	// begins a second one after 250 ms (kMaxConnectRetryIntervalMs in
	// net/socket/client_socket_pool.h), but no third.
	redialAfter = time.Second

	// redialShare makes later ones rarer: each waits for this part of the time
	// that has passed since the first.
	redialShare = 5

	// maxDials is how many dials a Front has under way where one connection is
	// wanted. The first goes on for dialTimeout, as a proxy or a very slow path
	// may need; of the others the oldest gives way to the next.
	maxDials = 4
)

// A dialing is a dial under way. Front.mu guards step.
type dialing struct {
	begun time.Time
	step  Op // which it has reached
	stop  context.CancelFunc
}

// placesLocked counts the connections that serve, and those that are in use and
// doubted.
func (f *Front) placesLocked() (open, doubted int) {
	for _, c := range f.conns {
		switch {
		case f.servesLocked(c):
			open++
		case c.busy > 0 && c.doubted():
			doubted++
		}
	}
	return open, doubted
}

// dialsWantedLocked returns how many dials should be under way. Over HTTP/2,
// and before the first connection has shown which version it is, one: another
// would end as a second connection to one host, which no browser has. One that
// is doubted and in use wants another beside it even if nobody waits, to show
// whether the path works.
func (f *Front) dialsWantedLocked() int {
	if f.closed {
		return 0
	}
	open, doubted := f.placesLocked()
	switch {
	case f.known && !f.h2:
		return max(0, min(len(f.waiters), maxConns-open-doubted))
	case open == 0 && (len(f.waiters) > 0 || doubted > 0):
		return 1
	}
	return 0
}

// dialLocked starts the dials that are wanted and not under way.
func (f *Front) dialLocked() {
	wanted := f.dialsWantedLocked()
	for len(f.dialing) < wanted {
		f.startDialLocked(f.addr)
	}
	if wanted > 0 && f.redial == nil {
		f.redial = time.AfterFunc(f.redialInLocked(), f.dialAgain)
	}
}

// redialInLocked is the time until a dial is to be begun beside the others.
func (f *Front) redialInLocked() time.Duration {
	if len(f.dialing) == 0 {
		return redialAfter
	}
	newest := f.dialing[len(f.dialing)-1].begun
	return max(redialAfter, time.Since(f.dialing[0].begun)/redialShare) - time.Since(newest)
}

// dialAgain begins a dial beside those under way if they have taken long.
func (f *Front) dialAgain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.redial = nil
	if f.dialsWantedLocked() == 0 {
		return
	}
	if f.redialInLocked() <= 0 || len(f.dialing) == 0 {
		most := maxDials
		if f.known && !f.h2 {
			open, doubted := f.placesLocked()
			most = maxConns - open - doubted
		}
		if len(f.dialing) >= most && len(f.dialing) > 1 {
			second := f.dialing[1]
			f.stopDialsLocked(func(d *dialing) bool { return d == second })
		}
		if len(f.dialing) < most {
			// What DNS says is asked again every other time: in an outage its
			// answers are late as well.
			addr := f.addr
			if f.byName = !f.byName; !f.byName && f.reached != "" {
				addr = f.reached
			}
			f.startDialLocked(addr)
		}
	}
	f.redial = time.AfterFunc(max(f.redialInLocked(), redialAfter/10), f.dialAgain)
}

func (f *Front) startDialLocked(addr string) {
	ctx, cancel := context.WithTimeoutCause(f.ctx, dialTimeout,
		fmt.Errorf("no connection after %v: %w", dialTimeout, context.DeadlineExceeded))
	d := &dialing{begun: time.Now(), step: OpConnect, stop: cancel}
	f.dialing = append(f.dialing, d)
	f.running.Go(func() {
		defer cancel()
		f.dial(ctx, d, addr)
	})
}

// stopDialsLocked ends the dials that which chooses.
func (f *Front) stopDialsLocked(which func(*dialing) bool) {
	f.dialing = slices.DeleteFunc(f.dialing, func(d *dialing) bool {
		if !which(d) {
			return false
		}
		d.stop()
		return true
	})
}

// dial makes one connection and gives it to the pool. It goes on when the
// exchange that asked for it has given up: the next one will want it.
func (f *Front) dial(ctx context.Context, d *dialing, addr string) {
	c, h2, err := f.open(ctx, addr, func(op Op) {
		f.mu.Lock()
		d.step = op
		f.mu.Unlock()
	})

	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.dialing, d)
	if i < 0 { // stopped
		if err == nil {
			f.dropLocked(c)
		}
		return
	}
	f.dialing = slices.Delete(f.dialing, i, i+1)
	switch {
	case err != nil:
		step := d.step
		var dns *net.DNSError
		if step == OpConnect && errors.As(err, &dns) {
			step = OpResolve
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		// Whoever can still be served by another connection waits for it, and
		// for another dial until the first of them has had its time.
		if len(f.dialing) > 0 && (i > 0 || ctx.Err() == nil) || slices.ContainsFunc(f.conns, f.servesLocked) {
			return
		}
		f.stopDialsLocked(func(*dialing) bool { return true })
		for _, w := range f.waiters {
			w.granted <- grant{err: f.err(step, err)}
		}
		f.waiters = nil
	case h2 && slices.ContainsFunc(f.conns, f.servesLocked):
		f.dropLocked(c) // the one that was doubted is alive
	default:
		f.known, f.h2 = true, h2
		if !h2 {
			f.inFlight = maxConns
		}
		if f.proxy == nil {
			f.reached = c.sock.RemoteAddr().String()
		}
		f.stopDialsLocked(func(o *dialing) bool { return h2 || d.begun.Sub(o.begun) >= redialAfter })
		f.conns = append(f.conns, c)
		f.restLocked(c)
		f.serveLocked()
		if h2 {
			f.buryLocked()
		}
	}
}
