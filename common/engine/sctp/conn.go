package sctp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/pion/sctp"

	"turbotunnel/common/engine"
)

// backlog bounds the bytes that were appended and that the carrier has not taken
// yet: what is said next waits behind them. Eight times as much is not faster.
const backlog = 64 << 10

// farewellTime is how long Close waits for a blocked carrier before it gives up
// telling the other side.
const farewellTime = 100 * time.Millisecond

var errPeerClosed = errors.New("the other side has ended the session")

// conn implements mux.Channel, whose comments hold for its methods: it is a byte
// stream each way in one association.
type conn struct {
	pc       engine.Carrier // never changes, like what follows
	assoc    *sctp.Association
	stream   *sctp.Stream
	spare    *sctp.Stream   // never sent on, see wake
	done     chan struct{}  // closed when the session has ended
	writable chan struct{}  // has room for one token: there is room again
	writing  chan struct{}  // held while pc.WriteTo is called, but for the farewell
	group    sync.WaitGroup // what says farewell

	rest []byte // of a message that Read has begun; its one caller's

	mu   sync.Mutex // guards what follows
	peer net.Addr   // where to write to; nil until it is known
	err  error      // why the session has ended; nil: it has not
	read uint32     // messages that Read has taken
	out  outgoing
	ack  waitingAck
}

// outgoing is what is known of the direction away from this side. TSNs below una
// have been acknowledged, those below sent were put out by the library, and those
// below next were given to it. The conn's mutex guards it.
type outgoing struct {
	una, sent, next uint32
	reported        uint32       // the highest TSN that is known to have arrived before its turn
	staged          bytes.Buffer // bytes that the library was not given
	held            bool         // what is staged waits for more
	unsent          int          // bytes that the library has and the carrier has not taken
	batch           int          // of them, in the packet that is being written
	waits           bool         // somebody was refused and has not been told of room
}

// newConn starts one side of an association over pc. Both sides are clients for
// the library, because its servers know no tokens.
func newConn(pc engine.Carrier, client bool) (*conn, error) {
	c := &conn{
		pc:       pc,
		done:     make(chan struct{}),
		writable: make(chan struct{}, 1),
		writing:  make(chan struct{}, 1),
		out:      outgoing{una: firstTSN, sent: firstTSN, next: firstTSN},
	}
	c.peer = pc.RemoteAddr()
	local, remote := clientToken, serverToken
	if !client {
		local, remote = remote, local
	}
	c.ack.timer = time.AfterFunc(0, c.acknowledge)
	c.mu.Lock() // the library's goroutines find c complete
	defer c.mu.Unlock()
	var err error
	c.assoc, err = sctp.ClientWithOptions(slices.Concat(options,
		[]sctp.ClientOption{sctp.WithSNAP(local, remote), sctp.WithNetConn(packets{pc, c})})...)
	if err == nil {
		c.stream, err = c.assoc.OpenStream(0, sctp.PayloadTypeUnknown)
	}
	if err == nil {
		c.spare, err = c.assoc.OpenStream(1, sctp.PayloadTypeUnknown)
	}
	return c, err
}

func (c *conn) Done() <-chan struct{} { return c.done }

func (c *conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *conn) LocalAddr() net.Addr { return c.pc.LocalAddr() }

// RemoteAddr is LocalAddr as long as it is not known.
func (c *conn) RemoteAddr() net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peer == nil {
		return c.pc.LocalAddr()
	}
	return c.peer
}

func (c *conn) Read(p []byte) (int, error) {
	switch {
	case c.Err() == engine.ErrClosed:
		return 0, engine.ErrClosed
	case len(p) == 0:
		return 0, nil
	case len(c.rest) > 0:
		n := copy(p, c.rest)
		c.rest = c.rest[n:]
		return n, nil
	}
	n, err := c.stream.Read(p)
	if errors.Is(err, io.ErrShortBuffer) { // n is what there is
		message := make([]byte, n)
		_, err = c.stream.Read(message)
		n = copy(p, message)
		c.rest = message[n:]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.fail(err) // the association ends because the session has, or on its own
		return 0, c.err
	}
	c.read++
	return n, nil
}

func (c *conn) Append(hold time.Duration, parts ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	switch {
	case hold == 0:
		c.out.held = false
	case c.out.staged.Len() == 0:
		c.out.held = true
		time.AfterFunc(hold, func() { c.Append(0) })
	}
	for _, p := range parts {
		c.out.staged.Write(p)
	}
	c.pump()
	return nil
}

func (c *conn) Room() (<-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.waits = c.waiting() >= backlog
	return c.writable, !c.out.waits || c.err != nil
}

func (c *conn) Waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting()
}

func (c *conn) Fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(err)
}

// Close waits for the library as far as there is a way: its writer and its timers
// are about to end, and do not touch pc again.
func (c *conn) Close() error {
	c.mu.Lock()
	c.finish(engine.ErrClosed)
	c.mu.Unlock()
	c.group.Wait()
	c.assoc.Close()
	c.writing <- struct{}{}
	<-c.writing
	return nil
}

// What follows needs mu held.

func (c *conn) waiting() int { return c.out.staged.Len() + c.out.unsent }

// pump gives the library what is staged, as far as the carrier keeps up and
// acknowledgements come. Less than a full message waits as long as the library
// has something else to send.
func (c *conn) pump() {
	o := &c.out
	for c.err == nil && o.staged.Len() > 0 && o.unsent < backlog && o.next-o.una < maxOutstanding {
		if o.staged.Len() < maxMessage && (o.held || o.unsent > 0) {
			break
		}
		message := o.staged.Next(maxMessage)
		o.next++
		o.unsent += len(message)
		if _, err := c.stream.Write(message); err != nil {
			c.fail(err)
		}
	}
	if o.waits && c.waiting() < backlog {
		o.waits = false
		signal(c.writable)
	}
	if o.una == o.next && o.staged.Len() == 0 {
		o.staged = bytes.Buffer{} // an idle session needs no memory for it
	}
}

// wake makes the library look at what it has to send. When an acknowledgement is
// late (twice the round-trip time) it takes the path for congested, puts out as
// little as one packet at a time and then sleeps until the next one comes: what
// remains in TestLostOutage takes 7 min in place of 5 s. A write of nothing wakes
// it, but uses up a sequence number of its stream.
func (c *conn) wake() { c.spare.Write(nil) }

// fail ends the session because of err.
func (c *conn) fail(err error) { c.finish(fmt.Errorf("%w: %w", engine.ErrReset, err)) }

// finish ends the session and tells the other side; only the first reason counts.
// What has arrived can still be read.
func (c *conn) finish(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	close(c.done)
	c.out.staged = bytes.Buffer{}
	c.ack.timer.Stop()
	signal(c.writable)
	peer := c.peer
	c.group.Go(func() {
		if peer != nil && !errors.Is(err, errPeerClosed) {
			stop := time.AfterFunc(farewellTime, func() { c.pc.Close() })
			c.pc.WriteTo(farewell, peer)
			stop.Stop()
		}
		c.pc.Close() // ends the reader, and the writer that may be blocked
	})
}

// signal puts a token into a channel that has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
