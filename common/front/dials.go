package front

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
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

	// maxDials is how many dials a pool has under way where one connection is
	// wanted. The first goes on for dialTimeout, as a proxy or a very slow path
	// may need; of the others the oldest gives way to the next.
	maxDials = 4
)

// A need is for dials under way.
type need struct {
	wanted int // so many at once
	most   int // so many when they take long
}

// needFor says what a pool wants in which open connections serve, doubted ones
// are in use and may be dead, and waiting exchanges have none. Over HTTP/2, and
// before the first connection has shown which version it is, one dial is enough:
// another would end as a second connection to one host, which no browser has. A
// connection that is doubted and in use wants another beside it even if nobody
// waits, to show whether the path works. h1 says that connections are for one
// exchange each.
func needFor(h1 bool, open, doubted, waiting int) need {
	switch {
	case h1:
		most := maxConns - open - doubted
		return need{max(0, min(waiting, most)), most}
	case open == 0 && (waiting > 0 || doubted > 0):
		return need{1, maxDials}
	}
	return need{}
}

// dials are the dials under way to one front, of which more than one can be
// meant for the same connection. They hand what they have made to the pool, and
// know nothing of who waits for it. pool.mu guards the fields from underWay on,
// and is held by whoever calls a method.
type dials struct {
	connector *connector
	pool      *pool

	underWay []*dialing  // the oldest first
	timer    *time.Timer // asks for another one when they have taken long; nil: none is wanted
	reached  string      // address that a connection was made to last, or ""
	byName   bool        // the last dial beside others was to the front's name
}

// A dialing is a dial under way.
type dialing struct {
	begun time.Time
	step  atomic.Value // the Op that it has reached
	stop  context.CancelFunc
}

// want begins the dials that are wanted and not under way.
func (d *dials) want(now need) {
	for len(d.underWay) < now.wanted {
		d.begin(d.connector.addr)
	}
	if now.wanted > 0 && d.timer == nil {
		d.timer = time.AfterFunc(d.patience(), d.pool.redial)
	}
}

// patience is the time until a dial is to be begun beside the others.
func (d *dials) patience() time.Duration {
	if len(d.underWay) == 0 {
		return redialAfter
	}
	newest := d.underWay[len(d.underWay)-1].begun
	return max(redialAfter, time.Since(d.underWay[0].begun)/redialShare) - time.Since(newest)
}

// again begins a dial beside those under way if they have taken long. The pool
// calls it when it is asked to redial.
func (d *dials) again(now need) {
	d.timer = nil
	if now.wanted == 0 {
		return
	}
	if d.patience() <= 0 || len(d.underWay) == 0 {
		if len(d.underWay) >= now.most && len(d.underWay) > 1 {
			second := d.underWay[1]
			d.stopIf(func(o *dialing) bool { return o == second })
		}
		if len(d.underWay) < now.most {
			// What DNS says is asked again every other time: in an outage its
			// answers are late as well.
			addr := d.connector.addr
			if d.byName = !d.byName; !d.byName && d.reached != "" {
				addr = d.reached
			}
			d.begin(addr)
		}
	}
	d.timer = time.AfterFunc(max(d.patience(), redialAfter/10), d.pool.redial)
}

// begin begins a dial. It goes on when the exchange that asked for it has given
// up: the next one will want it.
func (d *dials) begin(addr string) {
	ctx, cancel := context.WithTimeoutCause(d.pool.ctx, dialTimeout,
		fmt.Errorf("no connection after %v: %w", dialTimeout, context.DeadlineExceeded))
	n := &dialing{begun: time.Now(), stop: cancel}
	n.step.Store(OpConnect)
	d.underWay = append(d.underWay, n)
	d.pool.running.Go(func() {
		defer cancel()
		c, err := d.connector.connect(ctx, addr, func(op Op) { n.step.Store(op) })
		if err == nil {
			d.pool.add(n, c)
			return
		}
		op := n.step.Load().(Op)
		var dns *net.DNSError
		if op == OpConnect && errors.As(err, &dns) {
			op = OpResolve
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		d.pool.failed(n, newError(d.pool.name, op, err), ctx.Err() != nil)
	})
}

// step is the one that the oldest dial has reached, for whoever waits for it.
func (d *dials) step() Op {
	if len(d.underWay) == 0 {
		return OpWait
	}
	return d.underWay[0].step.Load().(Op)
}

// remove takes out one that has ended. ok is false if it was stopped before.
func (d *dials) remove(n *dialing) (oldest, ok bool) {
	i := slices.Index(d.underWay, n)
	if i < 0 {
		return false, false
	}
	d.underWay = slices.Delete(d.underWay, i, i+1)
	return i == 0, true
}

// made is told that the dial n, removed already, has made c. Over HTTP/2 no
// other is wanted then, and else none of those that are much older.
func (d *dials) made(n *dialing, c *conn) {
	if d.connector.proxy == nil {
		d.reached = c.sock.RemoteAddr().String()
	}
	d.stopIf(func(o *dialing) bool { return c.h2 || n.begun.Sub(o.begun) >= redialAfter })
}

// stop ends all of them.
func (d *dials) stop() { d.stopIf(func(*dialing) bool { return true }) }

// stopIf ends those that which chooses.
func (d *dials) stopIf(which func(*dialing) bool) {
	d.underWay = slices.DeleteFunc(d.underWay, func(o *dialing) bool {
		if !which(o) {
			return false
		}
		o.stop()
		return true
	})
}

// end ends all of them, and none is begun any more.
func (d *dials) end() {
	d.stop()
	if d.timer != nil {
		d.timer.Stop()
	}
}
