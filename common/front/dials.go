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
	// beside it when every address has been tried. In an outage a dial's SYN is
	// repeated after 1, 2, 4, 8 s (RFC 6298): one that began early finds out late
	// that the path is back.
	redialAfter = time.Second

	// redialShare makes later ones rarer: each waits for this part of the time
	// that has passed since the first.
	redialShare = 5

	// maxDials is how many dials a pool has under way where one connection is
	// wanted, or as many as there are addresses, up to maxRacing. The first goes on
	// for dialTimeout, as a proxy or a very slow path may need; of the others the
	// oldest gives way to the next.
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
// exchange each, racing how many dials there may be for one connection.
func needFor(h1 bool, open, doubted, waiting, racing int) need {
	switch {
	case h1:
		most := maxConns - open - doubted
		return need{max(0, min(waiting, most)), most}
	case open == 0 && (waiting > 0 || doubted > 0):
		return need{1, racing}
	}
	return need{}
}

// dials are the dials under way to one front, of which more than one can be
// meant for the same connection: a race of addresses (RFC 8305), in which the
// whole of a dial, TLS included, is an attempt. They hand what they have made to
// the pool, and know nothing of who waits for it. pool.mu guards the fields from
// addresses on, and is held by whoever calls a method.
type dials struct {
	connector *connector
	pool      *pool

	addresses addresses
	underWay  []*dialing  // the oldest first
	timer     *time.Timer // asks for another one when they have taken long; nil: none is wanted
}

// A dialing is a dial under way.
type dialing struct {
	begun time.Time
	at    atomic.Value // the step that it has reached
	stop  context.CancelFunc

	// Guarded by pool.mu.
	address *address  // nil: DNS is being asked
	aimed   time.Time // when it was chosen
}

// A step is an Op, and when it began.
type step struct {
	op    Op
	begun time.Time
}

// reaches is told the step that the dial has reached.
func (n *dialing) reaches(op Op) { n.at.Store(step{op, time.Now()}) }

func (n *dialing) step() step { return n.at.Load().(step) }

// want begins the dials that are wanted and not under way.
func (d *dials) want(now need) {
	if len(d.underWay) == 0 && now.wanted > 0 {
		d.addresses.search()
	}
	for len(d.underWay) < now.wanted {
		d.begin(true)
	}
	if now.wanted > 0 && d.timer == nil {
		d.arm()
	}
}

// arm lets another dial be asked for when those under way have taken long.
func (d *dials) arm() {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer = time.AfterFunc(max(d.patience(), minAttemptDelay), d.pool.redial)
}

// patience is the time until a dial is to be begun beside the others. The next
// address has its turn when the newest dial has not come a step further for a
// time: else a long way would let each connection be dialled twice.
func (d *dials) patience() time.Duration {
	if len(d.underWay) == 0 {
		return redialAfter
	}
	newest := d.underWay[len(d.underWay)-1]
	switch {
	case newest.address == nil:
		return attemptDelay
	case d.addresses.untried():
		return d.addresses.delay() - time.Since(newest.step().begun)
	}
	return max(redialAfter, time.Since(d.underWay[0].begun)/redialShare) - time.Since(newest.aimed)
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
			if second.address != nil && time.Since(second.aimed) >= redialAfter/2 {
				second.address.fails()
			}
			d.stopIf(func(o *dialing) bool { return o == second })
		}
		if len(d.underWay) < now.most {
			d.begin(false)
		}
	}
	d.arm()
}

// begin begins a dial, if loyal to the address that was reached last even when
// others are dialled there already. It goes on when the exchange that asked for
// it has given up: the next one will want it.
func (d *dials) begin(loyal bool) {
	ctx, cancel := context.WithTimeoutCause(d.pool.ctx, dialTimeout,
		fmt.Errorf("no connection after %v: %w", dialTimeout, context.DeadlineExceeded))
	n := &dialing{begun: time.Now(), stop: cancel}
	n.reaches(d.connector.firstStep())
	if d.addresses.fresh() {
		d.aim(n, loyal)
	}
	d.underWay = append(d.underWay, n)
	d.arm()
	address := n.address
	d.pool.running.Go(func() {
		defer cancel()
		c, err := d.attempt(ctx, n, address, loyal)
		if err == nil {
			d.pool.add(n, c)
			return
		}
		op := n.step().op
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

// aim chooses the address for n.
func (d *dials) aim(n *dialing, loyal bool) {
	doubted := func(o *address) bool {
		return slices.ContainsFunc(d.pool.conns, func(c *conn) bool { return c.address == o && c.life.doubted() })
	}
	n.aimed = time.Now()
	if n.address = d.addresses.favorite(); loyal && n.address != nil && !doubted(n.address) {
		n.address.round = d.addresses.round
		return
	}
	n.address = d.addresses.next(func(o *address) bool {
		return doubted(o) || slices.ContainsFunc(d.underWay, func(u *dialing) bool { return u.address == o })
	})
}

// attempt makes a connection to an address, which is chosen when DNS has answered
// if it is nil.
func (d *dials) attempt(ctx context.Context, n *dialing, to *address, loyal bool) (*conn, error) {
	if to == nil {
		if err := d.addresses.ready(ctx); err != nil {
			return nil, d.connector.lookupErr(err)
		}
		d.pool.mu.Lock()
		d.aim(n, loyal)
		to = n.address
		d.pool.mu.Unlock()
	}
	c, err := d.connector.connect(ctx, to.text, n.reaches)
	if err != nil {
		return nil, err
	}
	c.address = to
	return c, nil
}

// step is the one that the oldest dial has reached, for whoever waits for it.
func (d *dials) step() Op {
	if len(d.underWay) == 0 {
		return OpWait
	}
	return d.underWay[0].step().op
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

// failed is told that the dial n, removed already, has failed. It tells whether
// it has begun another one, to an address that was not tried yet.
func (d *dials) failed(n *dialing, now need) bool {
	if n.address == nil {
		return false
	}
	n.address.fails()
	if now.wanted == 0 || !d.addresses.untried() {
		return false
	}
	d.begin(false)
	return true
}

// made is told that the dial n, removed already, has made c. Over HTTP/2 no
// other is wanted then, and else none of those to other addresses that it has
// overtaken, or that are much older.
func (d *dials) made(n *dialing, c *conn) {
	n.address.connects()
	d.stopIf(func(o *dialing) bool {
		older := time.Duration(0)
		if o.address != nil {
			older = n.aimed.Sub(o.aimed)
		}
		overtaken := o.address != n.address && older >= minAttemptDelay
		if overtaken {
			o.address.fails()
		}
		return c.h2 || overtaken || older >= redialAfter
	})
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
