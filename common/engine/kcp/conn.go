package kcp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/pion/transport/v5/deadline"
	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
)

const (
	// SegmentSize is the largest message in bytes, its last byte included: the
	// size of the buffers in kcp-go's pool, from which it takes the memory of
	// each segment whatever the MTU is. Its versions up to 5.6 have 1500
	// (mtuLimit in sess.go), those from 5.7 on 1472 (maxPacketSize there), and a
	// longer message is a panic. TestBuffers fails with a kcp-go that has less.
	SegmentSize = 1472

	// Window is the send and receive window of both sides in segments: 24 MB (and
	// twice that for a peer that ignores it, as KCP holds as much out of order),
	// which covers 500 Mbit/s with a round trip of 200 ms (12.5 MB), half as much
	// again that waits in the bottleneck, and the delay of acknowledgements. A
	// session has one stream, so there is no time to let it grow.
	Window = 24 << 20 / SegmentSize

	// conversation is KCP's conversation ID, see the package comment.
	conversation = 1

	// openDelay is how long the opening of the stream waits for its first
	// bytes, so that a write which follows at once goes in the same segment.
	openDelay = 2 * time.Millisecond

	// farewellTime is how long Close waits for a blocked carrier before it
	// gives up telling the other side.
	farewellTime = 100 * time.Millisecond

	// lingerTime is how long a finished session still answers: a timeout of the
	// other side, twice. lingerLimit is how long it waits in silence for the
	// last acknowledgement; on a carrier that knows when the other side is gone
	// the end comes from there.
	lingerTime  = 2 * minTimeout
	lingerLimit = 5 * time.Minute

	headerSize = kcp.IKCP_OVERHEAD

	markOpen  = 1
	markEnd   = 2
	markStop  = 4
	markReset = 8
	marks     = markOpen | markEnd | markStop | markReset
)

// farewell is the datagram that ends a session.
var farewell = []byte{0}

var (
	errFormat     = errors.New("kcp: malformed message")
	errPeerClosed = errors.New("the other side has ended the session")
)

// Stats are counts since the start of a session.
type Stats struct {
	Datagrams     int // written
	Segments      int // with data, sent for the first time
	Retransmitted int // segments sent again
	Withheld      int // segments that KCP wanted to send again for no good reason
}

// A Conn is one conversation of KCP: a stream of bytes in each direction. It
// owns its engine.Carrier. Read is for one caller at a time; the other methods
// are safe for concurrent use.
type Conn struct {
	pc       engine.Carrier // never changes, like what follows
	client   bool
	opened   chan struct{} // closed when the client's OPEN has come
	done     chan struct{} // closed when the session has ended
	readable chan struct{} // has room for one token: there is something for Read to look at
	writable chan struct{} // the same for who waits for room
	group    sync.WaitGroup

	mu   sync.Mutex // guards what follows, the KCP control block included
	kcp  *kcp.KCP
	peer net.Addr // where to write to; nil until it is known
	err  error    // why the session has ended; nil: it has not

	in     incoming
	out    outgoing
	flight flight
	clock  clock
	stats  Stats
}

// incoming is what is known of the direction towards this side. The Conn's mutex
// guards it.
type incoming struct {
	buf     []byte // a message that Read has begun, from the pool; nil: none
	rest    []byte // what is left of its content
	began   bool   // the first message has been read
	end     error  // what Read returns after the last byte; nil: more may come
	closed  bool   // Close or Reset was called: nobody reads
	ended   bool   // an END has come, at endSN
	endSN   uint32
	stopped bool // the other side reads no more
	reset   bool // and something has failed there
	ate     bool // Read has returned the end of file: that no failure undoes
	whole   bool // everything up to the END has arrived, or it is not wanted
}

// NewConn starts one side of a conversation over pc, which it owns from now on.
func NewConn(pc engine.Carrier, client bool) *Conn {
	c := prepare(pc, client)
	c.group.Go(c.readDatagrams)
	c.group.Go(c.drive)
	return c
}

// prepare makes a Conn that has not started yet.
func prepare(pc engine.Carrier, client bool) *Conn {
	c := &Conn{
		pc:       pc,
		peer:     pc.RemoteAddr(),
		client:   client,
		opened:   make(chan struct{}),
		done:     make(chan struct{}),
		readable: make(chan struct{}, 1),
		writable: make(chan struct{}, 1),
	}
	c.out.limit = minBacklog
	c.kcp = kcp.NewKCP(conversation, c.output)
	c.kcp.SetMtu(headerSize + SegmentSize) // output makes whole datagrams
	c.kcp.NoDelay(1, 0, 2, 1)
	c.kcp.WndSize(Window, Window)
	c.kcp.Input(firstWindow(), kcp.IKCP_PACKET_REGULAR, false)
	c.flight.rmtWnd = Window
	return c
}

// Done is closed when the session has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is nil while the session lives, then engine.ErrClosed if this side has
// ended it, else an error that matches engine.ErrReset.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// LocalAddr is the carrier's address.
func (c *Conn) LocalAddr() net.Addr { return c.pc.LocalAddr() }

// RemoteAddr is the address of the carrier's other end, or LocalAddr as long as
// that is not known.
func (c *Conn) RemoteAddr() net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peer == nil {
		return c.pc.LocalAddr()
	}
	return c.peer
}

// Hold counts n bytes that are held beside the conversation, see engine.Carrier.
func (c *Conn) Hold(n int) { c.pc.Hold(n) }

// Stats returns the counts so far.
func (c *Conn) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// Read waits for bytes of the stream. After the last one it returns io.EOF if the
// other side has ended its direction, an error that matches engine.ErrReset if
// it ended otherwise, and engine.ErrClosed after Close.
func (c *Conn) Read(p []byte) (int, error) { return c.read(p, nil) }

// read is Read with a deadline, or none if that is nil.
func (c *Conn) read(p []byte, by *deadline.Deadline) (int, error) {
	for {
		var passed <-chan struct{}
		if by != nil {
			passed = by.Done() // another one when the deadline was moved
		}
		if isClosed(passed) && !c.isClosed() {
			return 0, os.ErrDeadlineExceeded
		}
		if n, err := c.recv(p); n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		select {
		case <-c.readable:
		case <-passed:
		}
	}
}

// recv moves what has arrived into p.
func (c *Conn) recv(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.in.closed {
		return 0, engine.ErrClosed
	}
	total := 0
	for total < len(p) {
		if len(c.in.rest) == 0 && !c.next(p[total:], &total) {
			break
		}
		n := copy(p[total:], c.in.rest)
		total += n
		if c.in.rest = c.in.rest[n:]; len(c.in.rest) == 0 {
			c.in.drop()
		}
	}
	switch {
	case total > 0:
		return total, nil
	case c.in.end == io.EOF && c.in.reset && !c.in.ate:
		return 0, engine.ErrReset
	case c.in.end != nil:
		c.in.ate = c.in.end == io.EOF
		return 0, c.in.end
	}
	return 0, c.err
}

// next takes the next message from KCP, if there is one. Its content goes into p
// where it fits, and is added to total, and into rest otherwise.
func (c *Conn) next(p []byte, total *int) bool {
	size := c.kcp.PeekSize()
	if size < 0 {
		return false
	}
	direct := size <= len(p)
	if !direct {
		c.in.buf = segments.Get().(*[SegmentSize]byte)[:]
		p = c.in.buf
	}
	size = c.kcp.Recv(p)
	if c.flight.told == 0 {
		c.clock.tell = true // KCP announces that its full window has opened
		c.poke()
	}
	content := p[:size-1]
	if c.in.end != nil {
		content = nil // after an END
	}
	if !c.in.mark(p[size-1], c.client) {
		c.in.end = c.fail(errFormat)
		content = nil
	}
	if direct {
		*total += len(content)
	} else if c.in.rest = content; len(content) == 0 {
		c.in.drop()
	}
	return true
}

// mark handles the last byte of a message and tells whether it is well formed.
func (in *incoming) mark(mark byte, client bool) bool {
	opens := !client && !in.began
	in.began = true
	switch {
	case mark&^marks != 0 || (mark&markOpen != 0) != opens:
		return false
	case in.end != nil:
	case mark&markReset != 0:
		in.end = engine.ErrReset
	case mark&markEnd != 0:
		in.end = io.EOF
	}
	return true
}

// drop gives back the message that Read had begun.
func (in *incoming) drop() {
	if in.buf != nil {
		segments.Put((*[SegmentSize]byte)(in.buf))
		in.buf, in.rest = nil, nil
	}
}

// discard throws away what has arrived and nobody reads, so that the other side's
// window stays open until it has stopped.
func (c *Conn) discard() {
	c.in.drop()
	scratch := segments.Get().(*[SegmentSize]byte)
	for c.kcp.Recv(scratch[:]) >= 0 {
	}
	segments.Put(scratch)
}

// Append writes parts one after the other, whether there is room or not, and
// does not keep them. What was waiting leaves with them, at once, or after hold
// if that is not zero and nothing was waiting.
func (c *Conn) Append(hold time.Duration, parts ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.writeErr(); err != nil {
		return err
	}
	quiet := !c.out.pending()
	if c.client && !c.out.began {
		c.out.marks |= markOpen
	}
	c.out.began = true
	for _, p := range parts {
		for len(p) > 0 {
			p = p[c.stage(p):]
		}
	}
	switch {
	case hold == 0:
		c.clock.hold = time.Time{}
	case quiet:
		c.clock.hold = time.Now().Add(hold)
	}
	c.poke()
	return nil
}

// Room tells whether the Conn wants more now. If it does not, the channel gets a
// token when that may have changed; the token is for one who waits.
func (c *Conn) Room() (<-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writable, !c.refuses() || c.err != nil
}

// Waiting is how many bytes KCP has not sent for the first time.
func (c *Conn) Waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unsent()
}

// take takes as much of p as there is room for.
func (c *Conn) take(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.writeErr(); err != nil {
		return 0, err
	}
	total := 0
	for total < len(p) && !c.refuses() {
		total += c.stage(p[total:])
	}
	if total > 0 {
		c.clock.hold = time.Time{}
		c.poke()
	}
	return total, nil
}

// writeErr is why nothing can be written. The mutex is held.
func (c *Conn) writeErr() error {
	switch {
	case c.in.closed || c.out.ended:
		return engine.ErrClosed
	case c.err != nil:
		return c.err
	case c.in.stopped:
		return engine.ErrReset
	}
	return nil
}

// stage moves the beginning of p into the segment that is being filled, and
// gives that to KCP when it is full. It returns how much it has taken.
func (c *Conn) stage(p []byte) int {
	if c.out.stage == nil {
		c.out.stage = segments.Get().(*[SegmentSize]byte)[:0]
	}
	n := min(SegmentSize-1-len(c.out.stage), len(p))
	if c.out.stage = append(c.out.stage, p[:n]...); len(c.out.stage) == SegmentSize-1 {
		c.push()
	}
	return n
}

// push gives what is staged to KCP, with the marks that are due.
func (c *Conn) push() {
	if !c.out.pending() {
		return
	}
	if c.out.stage == nil {
		c.out.stage = segments.Get().(*[SegmentSize]byte)[:0]
	}
	message := append(c.out.stage, c.out.marks)
	c.out.marks = 0
	c.out.inKCP += len(message)
	c.kcp.Send(message)
	segments.Put((*[SegmentSize]byte)(message[:SegmentSize]))
	c.out.stage = nil
	c.settle()
}

// end ends the outgoing direction with a mark: markEnd alone leaves the incoming
// one, everything else closes the stream for this side. It returns
// engine.ErrClosed if that was closed before.
func (c *Conn) end(mark byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.in.closed {
		return engine.ErrClosed
	}
	if c.out.ended {
		mark &^= markEnd
	}
	c.out.ended = true
	if mark != markEnd && mark != 0 {
		c.in.closed = true
		c.discard()
		if c.in.end != nil && mark == markStop {
			mark = 0 // everything has come
		}
	}
	signal(c.readable)
	signal(c.writable)
	if c.err != nil || mark == 0 {
		c.settle()
		return nil
	}
	c.out.marks |= mark
	c.clock.hold = time.Time{}
	c.poke()
	return nil
}

// isClosed tells whether Close or Reset was called on the stream.
func (c *Conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.in.closed
}

// Close ends the session, tells the other side if the carrier has room for it,
// and returns when both goroutines have ended. Closing twice is allowed.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.in.closed = true
	c.finish(engine.ErrClosed)
	signal(c.readable)
	signal(c.writable)
	c.mu.Unlock()
	timer := time.AfterFunc(farewellTime, func() { c.pc.Close() })
	c.group.Wait()
	timer.Stop()
	return nil
}

// Fail ends the session because of err without waiting. Close is still due.
func (c *Conn) Fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(err)
}

// What follows needs the mutex held.

// fail ends the session because of err and returns what its stream says of that.
func (c *Conn) fail(err error) error {
	c.finish(fmt.Errorf("%w: %w", engine.ErrReset, err))
	return c.err
}

// finish ends the session; only the first reason counts. What has arrived can
// still be read unless this side has closed the session.
func (c *Conn) finish(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	c.out.clear()
	close(c.done)
	signal(c.readable)
	signal(c.writable)
	c.wake()
}

// settle lets the session end when its stream is over: each direction has ended
// and all of it has arrived, or is not wanted.
func (c *Conn) settle() {
	sent := c.out.ended && c.out.marks == 0 || c.in.stopped
	came := c.in.whole || c.in.end != nil || c.in.closed && c.out.marks == 0
	if sent && came && !c.clock.lingers {
		c.clock.lingers = true
		c.clock.heard = time.Now()
		c.wake()
	}
}

// signal puts a token into a channel that has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
