package sctp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pion/sctp"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

// backlog bounds the bytes that were appended and that the carrier has not taken
// yet: what is said next waits behind them. Who was refused is told when half of
// them have left.
const backlog = 128 << 10

var errPeerClosed = errors.New("the other side has ended the session")

// conn implements mux.Channel, whose comments hold for its methods: it is a byte
// stream each way in one association.
type conn struct {
	pc       engine.Carrier // never changes, like what follows
	assoc    *sctp.Association
	stream   *sctp.Stream
	ctx      context.Context // ends with the session, and says why
	end      context.CancelCauseFunc
	readable chan struct{}  // has room for one token: a message has come, or the session has ended
	writable chan struct{}  // the same: there is room again
	group    sync.WaitGroup // what says farewell
	writing  sync.Mutex     // held while the carrier is given a packet, but for the farewell

	mu  sync.Mutex // guards what follows
	in  incoming
	out outgoing
}

// incoming is what is known of the direction to this side.
type incoming struct {
	read   uint32    // messages that were read
	came   []message // those that have come and were not read, in order; nil: there are none
	taken  int       // in front of them, see pop
	unread int       // bytes of them
	acked  uint32    // TSN that was acknowledged last; less by ackEvery: the next one goes at once
	asked  uint32    // TSN whose sender wants it acknowledged at once
}

// A message has a number from 0 on, and a part that was not read.
type message struct {
	number  uint32
	content []byte
}

// outgoing is what is known of the direction away from this side. TSNs below una
// have been acknowledged, those below sent were put out by the library, and those
// below next were given to it.
type outgoing struct {
	una, sent, next uint32
	packets         [][]byte // of a message each, from una on, the last ones not given to the library; nil: there are none
	taken           int      // in front of them, see pop
	window          uint32   // how many may be given to the library before they are acknowledged
	reported        uint32   // the highest TSN that is known to have arrived before its turn
	unsent          int      // bytes that were appended and that the carrier has not taken
}

// newConn starts one side of an association. Both are clients for the library, because
// its servers know no tokens.
func newConn(pc engine.Carrier, client bool) (*conn, error) {
	c := &conn{
		pc:       pc,
		readable: make(chan struct{}, 1),
		writable: make(chan struct{}, 1),
		out:      outgoing{una: firstTSN, sent: firstTSN, next: firstTSN, window: maxOutstanding},
	}
	c.ctx, c.end = context.WithCancelCause(context.Background())
	local, remote := clientToken, serverToken
	if !client {
		local, remote = remote, local
	}
	c.mu.Lock() // so that the library's goroutines find c complete
	defer c.mu.Unlock()
	var err error
	if c.assoc, err = sctp.ClientWithOptions(append(options[:len(options):len(options)],
		sctp.WithSNAP(local, remote), sctp.WithNetConn(packets{pc, c}))...); err != nil {
		return nil, err
	}
	pc.Hold(sessionCost)
	c.stream, err = c.assoc.OpenStream(0, sctp.PayloadTypeUnknown)
	return c, err
}

func (c *conn) Done() <-chan struct{} { return c.ctx.Done() }

func (c *conn) Err() error { return context.Cause(c.ctx) }

func (c *conn) Read(p []byte) (int, error) {
	for token, ok := c.Comes(); !ok; token, ok = c.Comes() {
		<-token
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Err() == engine.ErrClosed || !c.in.ready() {
		return 0, c.Err()
	}
	m := &c.in.came[0]
	n := copy(p, m.content)
	m.content = m.content[n:]
	c.in.unread -= n
	c.pc.Hold(-n)
	if len(m.content) == 0 {
		c.in.read++
		c.in.came = pop(c.in.came, &c.in.taken)
		c.pc.Hold(-inCost)
	}
	return n, nil
}

func (c *conn) Comes() (<-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.readable, c.in.ready() || c.Err() != nil
}

// ready tells whether the next message has come.
func (i *incoming) ready() bool { return len(i.came) > 0 && i.came[0].number == i.read }

func (c *conn) Append(parts ...[]byte) (waiting int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.Err(); err != nil {
		return 0, err
	}
	o := &c.out
	for _, p := range parts {
		for len(p) > 0 {
			last := len(o.packets) - 1
			if last < int(o.next-o.una) || len(o.packets[last]) == mtu {
				o.packets = append(o.packets, make([]byte, messageAt))
				c.pc.Hold(messageAt + outCost)
				last++
			}
			packet := o.packets[last]
			n := min(len(p), mtu-len(packet))
			o.packets[last] = append(packet, p[:n]...)
			c.pc.Hold(cap(o.packets[last]) - cap(packet))
			o.unsent += n
			p = p[n:]
		}
	}
	c.pump()
	return o.unsent, nil
}

func (c *conn) Room() (<-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writable, c.out.unsent < backlog || c.Err() != nil
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
	c.writing.Lock()
	defer c.writing.Unlock()
	return nil
}

// What follows needs mu held.

// pump gives the library the messages that may go, the last one, if it is not full, when
// nothing else waits for the carrier, so that small writes gather meanwhile. It tells of
// room. One message may always be on its way, to ask for a window that was closed.
func (c *conn) pump() {
	o := &c.out
	for o.next-o.una < uint32(len(o.packets)) && o.next-o.una < max(o.window, 1) {
		size := len(o.packets[o.next-o.una]) - messageAt
		if size < maxMessage && size < o.unsent {
			break
		}
		o.next++
		if _, err := c.stream.Write(make([]byte, 1)); err != nil {
			c.fail(err)
		}
	}
	if o.unsent < backlog/2 {
		half.Signal(c.writable)
	}
}

// fail ends the session because of err.
func (c *conn) fail(err error) { c.finish(fmt.Errorf("%w: %w", engine.ErrReset, err)) }

// finish ends the session and tells the other side; only the first reason counts.
// What has arrived can still be read.
func (c *conn) finish(err error) {
	if c.Err() != nil {
		return
	}
	c.end(err)
	half.Signal(c.readable)
	half.Signal(c.writable)
	c.group.Go(func() {
		if !errors.Is(err, errPeerClosed) {
			c.pc.SetWriteDeadline(time.Now().Add(engine.FarewellTime))
			c.pc.WriteTo(farewell, c.pc.RemoteAddr())
		}
		c.pc.Close() // ends the reader, and the writer that may be blocked
	})
}
