package kcp

import (
	"errors"
	"io"
	"os"
	"time"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
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

	// conversation is KCP's conversation ID: each session has its own Carrier, there
	// is nothing to tell apart.
	conversation = 1

	// The marks in the last byte of a message.
	markOpen  = 1
	markEnd   = 2
	markStop  = 4
	markReset = 8
	marks     = markOpen | markEnd | markStop | markReset
)

var (
	errFormat     = errors.New("kcp: malformed message")
	errPeerClosed = errors.New("the other side has ended the session")
)

// A Conn is one conversation of KCP: a stream of bytes in each direction, over
// the driver that carries it. It owns its engine.Carrier. Read is for one caller
// at a time; the other methods are safe for concurrent use.
type Conn struct {
	driver

	client   bool          // never changes, like what follows
	opened   chan struct{} // closed when the client's OPEN has come
	readable chan struct{} // has room for one token: there is something for Read to look at
	writable chan struct{} // the same for who waits for room

	in  incoming
	out outgoing
}

// incoming is what is known of the direction towards this side. The driver's
// mutex guards it.
type incoming struct {
	buf     []byte // for a message that Read has begun; nil: there was none
	rest    []byte // what is left of its content
	began   bool   // the first message has been read
	end     error  // what Read returns after the last byte; nil: more may come
	closed  bool   // Close or Reset was called: nobody reads
	stopped bool   // the other side reads no more
	reset   bool   // and something has failed there
	ate     bool   // Read has returned the end of file: that no failure undoes
}

// outgoing is the direction away from this side. The driver's mutex guards it.
type outgoing struct {
	stage []byte // the content of the message that is being filled
	marks byte   // that go with the next message
	began bool   // the stream was opened, if that is this side's to do
	ended bool   // nothing more will be written
}

// NewConn starts one side of a conversation over pc, which it owns from now on.
// Who reads it promises to the other side what that may send.
func NewConn(pc engine.Carrier, client bool) *Conn {
	c := prepare(pc, client)
	c.start()
	return c
}

// prepare makes a Conn that has not started yet.
func prepare(pc engine.Carrier, client bool) *Conn {
	c := &Conn{
		client:   client,
		opened:   make(chan struct{}),
		readable: make(chan struct{}, 1),
		writable: make(chan struct{}, 1),
	}
	c.init(c, pc)
	return c
}

func (c *Conn) start() {
	c.group.Go(c.readDatagrams)
	c.group.Go(c.drive)
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

// Read is that of engine.Stream.
func (c *Conn) Read(p []byte) (int, error) { return c.read(p, func() <-chan struct{} { return nil }) }

// read is Read with a deadline.
func (c *Conn) read(p []byte, passes func() <-chan struct{}) (int, error) {
	for {
		passed := passes()
		if n, err := c.recv(p, passed); n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		select {
		case <-c.readable:
		case <-passed:
		}
	}
}

// Comes tells whether Read would not wait. If it would, the channel gets a token when
// that may have changed.
func (c *Conn) Comes() (<-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.readable, c.err != nil || c.in.closed || c.in.end != nil || len(c.in.rest) > 0 || c.ready() >= 0
}

// recv moves what has arrived into p.
func (c *Conn) recv(p []byte, passed <-chan struct{}) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.count()
	switch {
	case c.in.closed:
		return 0, engine.ErrClosed
	case half.IsClosed(passed):
		return 0, os.ErrDeadlineExceeded
	}
	for n < len(p) {
		if len(c.in.rest) > 0 {
			m := copy(p[n:], c.in.rest)
			c.in.rest = c.in.rest[m:]
			n += m
		} else if size := c.ready(); size < 0 {
			break
		} else if size <= len(p)-n {
			c.take(p[n:])
			n += len(c.message(p[n:][:size]))
		} else {
			c.take(c.buffer())
			c.in.rest = c.message(c.in.buf[:size])
		}
	}
	switch {
	case n > 0:
		return n, nil
	case c.in.end == io.EOF && c.in.reset && !c.in.ate:
		return 0, engine.ErrReset
	case c.in.end != nil:
		c.in.ate = c.in.end == io.EOF
		return 0, c.in.end
	}
	return 0, c.err
}

// buffer is where a message goes that the caller has no room for.
func (c *Conn) buffer() []byte {
	if c.in.buf == nil {
		c.in.buf = make([]byte, SegmentSize)
	}
	return c.in.buf
}

// message heeds the last byte of a message and returns the content before it.
func (c *Conn) message(p []byte) []byte {
	content, mark := p[:len(p)-1], p[len(p)-1]
	opens := !c.client && !c.in.began
	c.in.began = true
	switch {
	case mark&^marks != 0 || (mark&markOpen != 0) != opens:
		c.in.end = c.fail(errFormat)
		return nil
	case c.in.end != nil:
		return nil
	case mark&markReset != 0:
		c.in.end = engine.ErrReset
	case mark&markEnd != 0:
		c.in.end = io.EOF
	}
	if c.in.end != nil {
		c.poke() // the session may be over
	}
	return content
}

// Append writes parts one after the other, whether there is room or not, and
// does not keep them. The first one opens the stream, even without a byte.
func (c *Conn) Append(parts ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.writeErr(); err != nil {
		return err
	}
	c.begin()
	for _, p := range parts {
		for len(p) > 0 {
			p = p[c.stage(p):]
		}
	}
	c.poke()
	c.count()
	return nil
}

// Room tells whether the Conn wants more now. If it does not, the channel gets a
// token when that may have changed; the token is for one who waits.
func (c *Conn) Room() (<-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writable, c.writeErr() != nil || !c.refuses()
}

// Waiting is how many bytes KCP has not sent for the first time.
func (c *Conn) Waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting()
}

// Fail ends the session because of err without waiting. Close is still due.
func (c *Conn) Fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(err)
}

// Close ends the session, tells the other side if the carrier has room for it,
// and returns when both goroutines have ended. Closing twice is allowed.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.in.closed = true
	c.finish(engine.ErrClosed)
	c.mu.Unlock()
	c.pc.SetWriteDeadline(time.Now().Add(engine.FarewellTime))
	c.group.Wait()
	return nil
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
	came := c.in.end != nil
	if mark != markEnd {
		c.in.closed = true
		c.discard()
	}
	c.begin()
	if c.out.ended {
		mark &^= markEnd
	}
	if came && mark&markReset == 0 {
		mark &^= markStop
	}
	c.out.ended = true
	if c.err == nil {
		c.out.marks |= mark
	}
	c.ended()
	c.poke()
	c.count()
	return nil
}

// isClosed tells whether Close or Reset was called on the stream.
func (c *Conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.in.closed
}

// What follows needs the driver's mutex held.

// writeErr is why nothing can be written.
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

// stage moves the beginning of p into the message that is being filled, and
// gives that to KCP when it is full. It returns how much it has taken.
func (c *Conn) stage(p []byte) int {
	if c.out.stage == nil {
		c.out.stage = make([]byte, 0, SegmentSize)
	}
	n := min(SegmentSize-1-len(c.out.stage), len(p))
	if c.out.stage = append(c.out.stage, p[:n]...); len(c.out.stage) == SegmentSize-1 {
		c.push()
	}
	return n
}

// staged tells whether something waits to be given to KCP.
func (c *Conn) staged() bool { return len(c.out.stage) > 0 || c.out.marks != 0 }

// begin has the first message of a client open the stream.
func (c *Conn) begin() {
	if c.client && !c.out.began {
		c.out.marks |= markOpen
	}
	c.out.began = true
}

// push gives what is staged to KCP, with the marks that are due.
func (c *Conn) push() {
	if c.staged() {
		c.send(append(c.out.stage, c.out.marks))
		c.out.stage, c.out.marks = c.out.stage[:0], 0
	}
}

// arrived takes note of the marks of messages that have come without waiting for
// Read, which may be long in coming.
func (c *Conn) arrived(marks byte) {
	if marks&markOpen != 0 && !c.client && !half.IsClosed(c.opened) {
		close(c.opened)
	}
	c.in.reset = c.in.reset || marks&markReset != 0
	if marks&(markStop|markReset) != 0 && !c.in.stopped {
		c.in.stopped = true
		half.Signal(c.writable)
	}
	if c.in.closed {
		c.discard()
	}
	half.Signal(c.readable)
}

// discard throws away what has arrived and nobody reads, so that the other side's
// window stays open until it has stopped.
func (c *Conn) discard() {
	c.in.rest = nil
	for c.ready() >= 0 {
		c.take(c.buffer())
	}
}

// isStill tells whether nothing waits to be sent or to be read.
func (c *Conn) isStill() bool { return !c.staged() && len(c.in.rest) == 0 }

// over tells whether the stream is: each direction has ended, and all of it has
// come or is not wanted.
func (c *Conn) over() bool {
	return (c.out.ended || c.in.stopped) && (c.in.end != nil || c.in.closed) && c.out.marks == 0
}

// ended wakes all who wait, as the stream or the session has.
func (c *Conn) ended() {
	half.Signal(c.readable)
	half.Signal(c.writable)
}
