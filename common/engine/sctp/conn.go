package sctp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/pion/sctp"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

// backlog bounds the bytes that were appended and that the carrier has not taken
// yet: what is said next waits behind them. Who was refused is told when half of
// them have left. Half as much, and twice as much, is slower in memory.
const backlog = 128 << 10

var errPeerClosed = errors.New("the other side has ended the session")

// messages are buffers for what is not a whole message yet, or no more.
var messages = sync.Pool{New: func() any { return new([maxMessage]byte) }}

// conn implements mux.Channel, whose comments hold for its methods: it is a byte
// stream each way in one association.
type conn struct {
	pc       engine.Carrier // never changes, like what follows
	packets  *packets
	assoc    *sctp.Association
	stream   *sctp.Stream
	spare    *sctp.Stream    // never sent on, see wake
	ctx      context.Context // ends with the session, and says why
	end      context.CancelCauseFunc
	readable chan struct{}  // has room for one token: a message has come, or the session has ended
	writable chan struct{}  // the same: there is room again
	group    sync.WaitGroup // what says farewell

	buf  *[maxMessage]byte // of a message that Read has begun, from the pool; its one caller's
	rest []byte            // what is left of that; the same

	mu   sync.Mutex        // guards what follows
	read uint32            // messages that Read has taken
	came [seen / 64]uint64 // a bit for each message that has come and Read has not taken, by its number
	out  outgoing
}

// outgoing is what is known of the direction away from this side. TSNs below una
// have been acknowledged, those below sent were put out by the library, and those
// below next were given to it. The conn's mutex guards it.
type outgoing struct {
	una, sent, next uint32
	sizes           []uint16 // of the messages from una to next, in bytes; nil: there are none
	reported        uint32   // the highest TSN that is known to have arrived before its turn
	staged          []byte   // a message that is not full, from the pool; nil: none
	unsent          int      // bytes that the library has and the carrier has not taken
	batch           int      // of them, in the packet that is being written
}

// newConn starts one side of an association. Both are clients for the library, because
// its servers know no tokens.
func newConn(pc engine.Carrier, client bool) (*conn, error) {
	c := &conn{
		pc:       pc,
		readable: make(chan struct{}, 1),
		writable: make(chan struct{}, 1),
		out:      outgoing{una: firstTSN, sent: firstTSN, next: firstTSN},
	}
	c.ctx, c.end = context.WithCancelCause(context.Background())
	local, remote := clientToken, serverToken
	if !client {
		local, remote = remote, local
	}
	c.packets = &packets{Carrier: pc, c: c, writing: make(chan struct{}, 1)}
	c.packets.timer = time.AfterFunc(0, c.packets.acknowledge)
	c.mu.Lock() // so that the library's goroutines find c complete
	defer c.mu.Unlock()
	var err error
	if c.assoc, err = sctp.ClientWithOptions(append(options[:len(options):len(options)],
		sctp.WithSNAP(local, remote), sctp.WithNetConn(c.packets))...); err != nil {
		return nil, err
	}
	pc.Hold(sessionCost)
	var other error
	c.stream, err = c.assoc.OpenStream(0, sctp.PayloadTypeUnknown)
	c.spare, other = c.assoc.OpenStream(1, sctp.PayloadTypeUnknown)
	return c, errors.Join(err, other)
}

func (c *conn) Done() <-chan struct{} { return c.ctx.Done() }

func (c *conn) Err() error { return context.Cause(c.ctx) }

func (c *conn) Read(p []byte) (int, error) {
	switch {
	case c.Err() == engine.ErrClosed:
		return 0, engine.ErrClosed
	case len(c.rest) > 0:
		return c.take(p), nil
	}
	n, err := c.stream.Read(p) // an idle session waits without memory for a message
	size := n
	if errors.Is(err, io.ErrShortBuffer) {
		c.buf = messages.Get().(*[maxMessage]byte)
		size, err = c.stream.Read(c.buf[:])
		c.rest = c.buf[:size]
		n = c.take(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.fail(err) // the association ends because the session has, or on its own
		return 0, c.Err()
	}
	c.came[c.read%seen/64] &^= 1 << (c.read % 64)
	c.read++
	c.pc.Hold(-inCost(size))
	return n, nil
}

// Comes is told of a message that has come before the library has it.
func (c *conn) Comes() (<-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.readable, c.Err() != nil || len(c.rest) > 0 || c.came[c.read%seen/64]>>(c.read%64)&1 != 0
}

// take moves what is left of a message into p.
func (c *conn) take(p []byte) int {
	n := copy(p, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		messages.Put(c.buf)
		c.buf = nil
	}
	return n
}

func (c *conn) Append(parts ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.Err(); err != nil {
		return err
	}
	for _, p := range parts {
		c.stage(p)
	}
	c.pump()
	return nil
}

func (c *conn) Room() (<-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writable, c.waiting() < backlog || c.Err() != nil
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
	c.packets.writing <- struct{}{}
	<-c.packets.writing
	return nil
}

// What follows needs mu held.

func (c *conn) waiting() int { return len(c.out.staged) + c.out.unsent }

// stage gives the library full messages of p, and keeps what is left of it.
func (c *conn) stage(p []byte) {
	o := &c.out
	for len(p) > 0 {
		if len(o.staged) == 0 && len(p) >= maxMessage {
			c.give(p[:maxMessage])
			p = p[maxMessage:]
			continue
		}
		if o.staged == nil {
			o.staged = messages.Get().(*[maxMessage]byte)[:0]
		}
		n := copy(o.staged[len(o.staged):maxMessage], p)
		o.staged = o.staged[:len(o.staged)+n]
		if p = p[n:]; len(o.staged) == maxMessage {
			c.flush()
		}
	}
}

// pump gives the library less than a full message when it has nothing else to send,
// so that small writes gather while the carrier is busy, and tells of room.
func (c *conn) pump() {
	o := &c.out
	if len(o.staged) > 0 && o.unsent == 0 && o.next-o.una < maxOutstanding {
		c.flush()
	}
	if c.waiting() < backlog/2 {
		half.Signal(c.writable)
	}
}

// flush gives the library what is staged.
func (c *conn) flush() {
	c.give(c.out.staged)
	messages.Put((*[maxMessage]byte)(c.out.staged[:maxMessage]))
	c.out.staged = nil
}

// give gives the library a message, of which it makes a copy.
func (c *conn) give(message []byte) {
	c.out.next++
	c.out.unsent += len(message)
	c.out.sizes = append(c.out.sizes, uint16(len(message)))
	c.pc.Hold(outCost(len(message))) // by its turn: what arrived before that keeps a copy
	if _, err := c.stream.Write(message); err != nil {
		c.fail(err)
	}
}

// wake makes the library look at what it has to send: when an acknowledgement is late
// it puts out as little as one packet at a time, and sleeps until the next one comes
// (TestLostOutage). A write of nothing wakes it, but uses up a sequence number of its
// stream.
func (c *conn) wake() { c.spare.Write(nil) }

// fail ends the session because of err.
func (c *conn) fail(err error) { c.finish(fmt.Errorf("%w: %w", engine.ErrReset, err)) }

// finish ends the session and tells the other side; only the first reason counts.
// What has arrived can still be read.
func (c *conn) finish(err error) {
	if c.Err() != nil {
		return
	}
	c.end(err)
	c.packets.timer.Stop()
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
