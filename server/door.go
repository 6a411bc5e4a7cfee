package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"turbotunnel/common/lull"
)

const (
	// When accepting fails for want of something that others will give back, the
	// listener rests: this long, twice as long each time, and a second at most.
	firstRest   = 5 * time.Millisecond
	longestRest = time.Second

	// roomParts of all connections are closed at once when there is no room: to
	// look at all of them costs as much for one.
	roomParts = 64

	// crowdParts of all connections may be those of one address whose requests
	// were clients' when none of anybody else can be closed.
	crowdParts = 8

	// proxiedTime is how long a request over HTTP/1 through a trusted proxy may not
	// show that a client makes it, where there is no other connection to close.
	// Behind a proxy that passes bodies on as they come, whoever sends none has a
	// connection for each of his requests.
	proxiedTime = 5 * time.Second

	// lookEvery is how often is looked whether one can be closed meanwhile.
	lookEvery = time.Second

	// fullInterval is the least time between two log lines about what is full:
	// strangers decide how often that happens.
	fullInterval = time.Minute

	// fewConns is how many connections there may be where one program comes, to
	// the metrics and to where a certificate authority asks; and fewBytes what
	// HTTP/2 may hold for them.
	fewConns = 64
	fewBytes = 16 << 20

	// smallHeld is how many bytes a connection may always hold.
	smallHeld = 64 << 10

	// headCost is what a byte of a head over HTTP/1 takes while the head is not
	// whole, in bytes: of fields of five bytes each, 36 KB took 520 KB. mostHead
	// is how many bytes of a head net/http reads.
	headCost = 14
	mostHead = maxHeader + 4<<10
)

// A door is a listener that bounds the connections and what HTTP holds for
// them. Nobody is refused: for a newcomer goes the connection of a stranger,
// of those whose address has most connections the idlest. A stranger's is one on
// which no client's request has come. Safe for concurrent use.
type door struct {
	net.Listener
	most     int            // connections
	mostHeld int64          // bytes
	trusted  []netip.Prefix // proxies, whose connections are never closed for others
	late     bool           // who connects is known only with his first bytes
	log      *slog.Logger
	full     rate.Sometimes // log lines
	failing  rate.Sometimes // likewise
	ctx      context.Context
	cancel   context.CancelFunc
	left     chan struct{} // has a token when a connection has ended
	resting  atomic.Bool   // newcomers stay in the listener's queue

	guests   *guests
	held     atomic.Int64  // bytes
	spared   atomic.Int64  // bytes above mostHeld up to which nobody need be looked for
	closed   atomic.Uint64 // connections, for others
	failed   atomic.Uint64 // accepts
	mu       sync.Mutex
	visitors map[*visitor]struct{} // guarded by mu
}

// newDoor returns a door of ln, which has room for so many connections, and
// bytes that HTTP holds.
func newDoor(ln net.Listener, most int, mostHeld int64, log *slog.Logger) *door {
	d := &door{
		Listener: ln,
		most:     most,
		mostHeld: mostHeld,
		log:      log,
		full:     rate.Sometimes{First: 1, Interval: fullInterval},
		failing:  rate.Sometimes{First: 1, Interval: fullInterval},
		left:     make(chan struct{}, 1),
		guests:   newGuests(mostHeld),
		visitors: make(map[*visitor]struct{}),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// open is the number of connections.
func (d *door) open() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.visitors)
}

// Close ends Accept. Connections go on.
func (d *door) Close() error {
	d.cancel()
	return d.Listener.Close()
}

// rest leaves newcomers where they wait, for another process that has the same
// socket. listening is what Listener accepts from.
func (d *door) rest(listening net.Listener) {
	l, ok := listening.(interface{ SetDeadline(time.Time) error })
	if ok {
		d.resting.Store(true)
		l.SetDeadline(time.Unix(1, 0)) //nolint:errcheck // then it is closed
	}
}

// Accept returns the next connection when there is room for it.
func (d *door) Accept() (net.Conn, error) {
	rest := firstRest
	for {
		c, err := d.Listener.Accept()
		switch {
		case err == nil:
			return d.enter(c)
		case d.resting.Load():
			<-d.ctx.Done()
			return nil, net.ErrClosed
		case !isShortage(err):
			return nil, err
		}
		d.failed.Add(1)
		d.failing.Do(func() {
			d.log.Warn("connections cannot be accepted: something else has what they need; raise the limit of open files (ulimit -n, or LimitNOFILE= in a systemd unit), or end what takes the system's memory", "err", err)
		})
		select {
		case <-time.After(rest):
		case <-d.ctx.Done():
			return nil, net.ErrClosed
		}
		rest = min(2*rest, longestRest)
	}
}

// isShortage tells whether accepting has failed for a reason that passes.
func isShortage(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// enter makes room for a connection. It waits only while all others are
// clients', or proxies' that are idle or at work for clients.
func (d *door) enter(c net.Conn) (net.Conn, error) {
	v := &visitor{Conn: c, door: d}
	v.active.Store(time.Now().UnixNano())
	if !d.late {
		v.place()
	}
	for {
		d.mu.Lock()
		if len(d.visitors) < d.most {
			d.visitors[v] = struct{}{}
			d.mu.Unlock()
			return v, nil
		}
		leaving := d.choose()
		d.mu.Unlock()
		d.full.Do(func() {
			d.log.Warn("all connections are in use, and for new ones the idlest of strangers are closed; if that is no attack, raise the limit of open files (ulimit -n, or LimitNOFILE= in a systemd unit)", "limit", d.most)
		})
		for _, v := range leaving {
			d.closed.Add(1)
			v.Close()
		}
		if len(leaving) > 0 {
			continue
		}
		select {
		case <-d.left:
		case <-time.After(lookEvery):
		case <-d.ctx.Done():
			c.Close()
			return nil, net.ErrClosed
		}
	}
}

// choose returns who goes for others: strangers, or when there are none those of
// strangers behind a proxy, or else of an address that has more than its part. mu is
// held.
func (d *door) choose() []*visitor {
	strangers, clients := make(map[netip.Prefix][]*visitor), make(map[netip.Prefix][]*visitor)
	var proxied []*visitor
	before := time.Now().Add(-proxiedTime).UnixNano()
	for v := range d.visitors {
		switch {
		case v.exempt.Load():
			if at := v.asked.Load(); at != 0 && at < before {
				proxied = append(proxied, v)
			}
		case v.known.Load():
			clients[v.network] = append(clients[v.network], v)
		default:
			strangers[v.network] = append(strangers[v.network], v)
		}
	}
	if all := rank(strangers, 0); len(all) > 0 {
		return all[:min(max(d.most/roomParts, 1), (len(all)+1)/2)]
	}
	if len(proxied) > 0 {
		slices.SortFunc(proxied, func(a, b *visitor) int { return cmp.Compare(a.asked.Load(), b.asked.Load()) })
		return proxied[:min(max(d.most/roomParts, 1), (len(proxied)+1)/2)]
	}
	all := rank(clients, max(d.most/crowdParts, 1))
	return all[:min(max(d.most/roomParts, 1), len(all))]
}

// rank orders visitors: first the idlest of the network that has most, so that
// all networks come down to the same number. Of each so many are left out.
func rank(networks map[netip.Prefix][]*visitor, spared int) []*visitor {
	type place struct {
		v      *visitor
		active int64 // as it was when the order began
		rank   int
	}
	var all []place
	for _, vs := range networks {
		of := make([]place, 0, len(vs))
		for _, v := range vs {
			of = append(of, place{v: v, active: v.active.Load()})
		}
		slices.SortFunc(of, func(a, b place) int { return cmp.Compare(b.active, a.active) })
		for i := range of {
			of[i].rank = i
		}
		all = append(all, of[min(spared, len(of)):]...)
	}
	slices.SortFunc(all, func(a, b place) int {
		return cmp.Or(cmp.Compare(b.rank, a.rank), cmp.Compare(a.active, b.active))
	})
	vs := make([]*visitor, len(all))
	for i := range all {
		vs[i] = all[i].v
	}
	return vs
}

// shed closes the connection that holds most, a stranger's if there is one that
// holds something, until all together hold what they may. If nobody holds much, it
// looks again when a good deal more is held: to look at all for each frame would be
// what an attacker wants.
func (d *door) shed() {
	for d.held.Load() > d.mostHeld {
		var worst *visitor
		most := int64(0)
		d.mu.Lock()
		for v := range d.visitors {
			held := v.holds()
			if held <= smallHeld {
				continue
			}
			stranger, sooner := !v.known.Load(), worst != nil && !worst.known.Load()
			if worst == nil || stranger && !sooner || stranger == sooner && held > most {
				worst, most = v, held
			}
		}
		d.mu.Unlock()
		if worst == nil {
			d.spared.Store(d.held.Load() - d.mostHeld + d.mostHeld/roomParts)
			return
		}
		d.full.Do(func() {
			d.log.Warn("HTTP holds too much for those who connect, and who has most is cut off", "bytes", d.held.Load(), "limit", d.mostHeld)
		})
		d.closed.Add(1)
		worst.Close()
	}
}

// A visitor is a connection that was accepted.
type visitor struct {
	net.Conn
	door   *door
	known  atomic.Bool  // a client's request has come
	exempt atomic.Bool  // it is a trusted proxy's own
	active atomic.Int64 // when something passed, in nanoseconds since 1970
	asked  atomic.Int64 // when a request over HTTP/1 came that is being answered and is not known to be a client's, likewise; 0: there is none
	served atomic.Bool  // a request over HTTP/1 is being answered: what comes is no head
	head   atomic.Int64 // bytes that are counted of a head over HTTP/1, or of TLS's handshake
	placed atomic.Bool  // network is set
	http2  atomic.Pointer[http2Conn]
	once   sync.Once
	lull   lull.Lull // the reader's

	mu   sync.Mutex
	held int64 // bytes that HTTP holds; guarded by mu, like what follows
	gone bool  // nothing is counted any more

	network netip.Prefix // guarded by the door's mu after the beginning
}

// place finds out whose connection it is.
func (v *visitor) place() {
	v.placed.Store(true)
	peer, err := netip.ParseAddrPort(v.Conn.RemoteAddr().String())
	if err != nil {
		return // not IP: systemd's socket, or in tests
	}
	addr := peer.Addr().Unmap().WithZone("")
	for _, p := range v.door.trusted {
		if p.Contains(addr) {
			v.exempt.Store(true)
			v.known.Store(true)
		}
	}
	bits := 32
	if addr.Is6() {
		bits = 64 // the least that one customer gets
	}
	network, err := addr.Prefix(bits)
	if err != nil {
		return
	}
	v.door.mu.Lock()
	v.network = network
	v.door.mu.Unlock()
}

func (v *visitor) Read(p []byte) (int, error) {
	var n int
	var err error
	if v.known.Load() {
		n, err = v.lull.Read(v.Conn, p)
	} else { // a stranger sees no lull
		n, err = v.Conn.Read(p)
	}
	if n > 0 {
		v.active.Store(time.Now().UnixNano())
		if !v.placed.Load() {
			v.place()
		}
		v.reads(n)
	}
	return n, err
}

// reads counts n bytes if they are of a head over HTTP/1.
func (v *visitor) reads(n int) {
	if v.served.Load() || v.http2.Load() != nil {
		return
	}
	if n := min(int64(n), mostHead-v.head.Load()); n > 0 {
		v.head.Add(n)
		v.hold(n * headCost)
	}
}

// begins says that what comes next is a request's body, or else that it is another
// request or HTTP/2: what has come is no head, or one that is whole.
func (v *visitor) begins(body bool) {
	v.served.Store(body)
	if body {
		v.asked.Store(time.Now().UnixNano())
	} else {
		v.asked.Store(0)
	}
	v.hold(-v.head.Swap(0) * headCost)
}

func (v *visitor) Write(p []byte) (int, error) {
	n, err := v.Conn.Write(p)
	if n > 0 {
		v.active.Store(time.Now().UnixNano())
	}
	return n, err
}

// Close gives the place free.
func (v *visitor) Close() error {
	v.once.Do(func() {
		d := v.door
		d.mu.Lock()
		delete(d.visitors, v)
		d.mu.Unlock()
		v.mu.Lock()
		v.gone = true
		d.held.Add(-v.held)
		v.mu.Unlock()
		select {
		case d.left <- struct{}{}:
		default:
		}
	})
	return v.Conn.Close()
}

// hold says that n bytes more are held for this connection.
func (v *visitor) hold(n int64) {
	v.mu.Lock()
	if v.gone || v.exempt.Load() {
		n = 0
	}
	v.held += n
	total := v.door.held.Add(n)
	v.mu.Unlock()
	switch d := v.door; {
	case total <= d.mostHeld:
		d.spared.Store(0)
	case n > 0 && total > d.mostHeld+d.spared.Load():
		d.shed()
	}
}

// holds is how many bytes are held for this connection.
func (v *visitor) holds() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.held
}

// isKnown says that a client's request has come: he is no stranger.
func (v *visitor) isKnown() {
	v.asked.Store(0)
	if !v.known.Swap(true) {
		if c := v.http2.Load(); c != nil {
			c.grow()
		}
	}
}

// visitorKey is where a request's context has its visitor.
type visitorKey struct{}

// visitorOf returns whose request it is, or nil where there is no door.
func visitorOf(r *http.Request) *visitor {
	v, _ := r.Context().Value(visitorKey{}).(*visitor)
	return v
}
