package kcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

const (
	// SegmentSize is the largest message in bytes, its last byte included: the
	// size of the buffers in kcp-go's pool, in which a longer one is a panic
	// (doc/engines.md). TestBuffers fails with a kcp-go that has less.
	SegmentSize = 1472

	// Window is the send and receive window of both sides in segments: 24 MB (and
	// twice that for a peer that ignores it, as KCP holds as much out of order). It
	// covers 500 Mbit/s with a round trip of 200 ms (12.5 MB), half as much again that
	// waits in the bottleneck, and the delay of acknowledgements.
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
// the engine.Carrier that it owns. It implements mux.Channel, whose comments hold for
// its methods, and is safe for concurrent use.
type Conn struct {
	half.Both // never changes, like what follows
	pc        engine.Carrier
	client    bool
	opened    chan struct{}   // closed when the client's OPEN has come
	ctx       context.Context // ends with the session; its cause is why
	cancel    context.CancelCauseFunc
	group     sync.WaitGroup

	mu  sync.Mutex // guards what follows
	in  incoming
	out outgoing
	block
	packed  packed
	owes    time.Time   // since when there is something to answer; zero: there is not
	flushed time.Time   // when KCP was flushed last
	runs    bool        // there is a goroutine that writes
	timer   *time.Timer // if not: has one run when something is due
	alarm   time.Time   // when the timer ends, which may be too early
}

// incoming is what is known of the direction towards this side.
type incoming struct {
	rest   []byte // of the content of a message that Read has begun
	began  bool   // the first message has been read
	end    error  // what Read returns after the last byte; nil: more may come
	closed bool   // Close or Reset was called: nobody reads
	ate    bool   // Read has returned the end, which nothing undoes, and the other side is told
}

// outgoing is the direction away from this side.
type outgoing struct {
	stage []byte // the content of the message that is being filled
	marks byte   // that go with the next message
	began bool   // there is a message; before it a client's mark OPEN waits
	ended bool   // nothing more will be written

	stopped bool // the other side reads no more
}

// staged tells whether something waits to be given to KCP.
func (o *outgoing) staged() bool { return o.began && len(o.stage)+int(o.marks) > 0 }

// NewConn starts one side of a conversation over pc, which it owns from now on.
// Who reads it promises to the other side what that may send.
func NewConn(pc engine.Carrier, client bool) *Conn {
	c := prepare(pc, client)
	c.start()
	return c
}

// prepare makes a Conn that has not started yet.
func prepare(pc engine.Carrier, client bool) *Conn {
	c := &Conn{pc: pc, client: client, opened: make(chan struct{})}
	c.Both = half.New(pc, c.recv, c.send)
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.block = block{kcp: resting, output: c.output, flight: flight{wnd: Window, patience: minTimeout}, window: Window}
	c.flushed, c.runs = time.Now(), true
	c.alarm = c.flushed.Add(never)
	c.timer = time.AfterFunc(never, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.alarm = time.Now().Add(never)
		c.poke()
	})
	if client {
		c.out.marks = markOpen
	}
	c.control()
	c.count()
	return c
}

func (c *Conn) start() {
	c.group.Go(c.readDatagrams)
	c.group.Go(c.drive)
}

func (c *Conn) Done() <-chan struct{} { return c.ctx.Done() }

func (c *Conn) Err() error { return context.Cause(c.ctx) }

func (c *Conn) Comes() (<-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Reads.Changed, c.Err() != nil || c.in.closed || c.in.end != nil || len(c.in.rest) > 0 || c.kcp.PeekSize() >= 0
}

// recv moves what has arrived into p.
func (c *Conn) recv(p []byte, _ <-chan struct{}) (n int, err error) {
	c.mu.Lock()
	defer c.unlock()
	if c.in.closed {
		return 0, engine.ErrClosed
	}
	for n < len(p) {
		if len(c.in.rest) > 0 {
			m := copy(p[n:], c.in.rest)
			c.in.rest = c.in.rest[m:]
			n += m
		} else if size := c.kcp.PeekSize(); size < 0 {
			break
		} else if size <= len(p)-n {
			n += len(c.take(p[n:][:size]))
		} else {
			c.in.rest = c.take(c.buf[:size])
		}
	}
	switch {
	case n > 0 || len(p) == 0:
		return n, nil
	case c.in.end == nil:
		return 0, c.Err()
	case !c.in.ate:
		c.in.ate, c.out.began = true, true
		c.out.marks |= markStop // the other side keeps the session until then
	}
	return 0, c.in.end
}

// send appends a part of p, if there is room.
func (c *Conn) send(p []byte, _ <-chan struct{}) (int, error) {
	if _, ok := c.Room(); !ok {
		return 0, nil
	}
	n := min(minBacklog, len(p))
	if _, err := c.Append(p[:n]); err != nil {
		return 0, err
	}
	return n, nil
}

// Append opens the stream the first time, even without a byte.
func (c *Conn) Append(parts ...[]byte) (waiting int, err error) {
	c.mu.Lock()
	defer c.unlock()
	if err := c.writeErr(); err != nil {
		return 0, err
	}
	c.out.began = true
	for _, p := range parts {
		for len(p) > 0 {
			n := min(SegmentSize-1-len(c.out.stage), len(p))
			c.out.stage = append(c.out.stage, p[:n]...)
			p = p[n:]
			if len(c.out.stage) == SegmentSize-1 {
				c.push()
			}
		}
	}
	return c.waiting(), nil
}

func (c *Conn) Room() (<-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Writes.Changed, c.writeErr() != nil || c.waiting()+c.packed.bytes < c.flight.backlog()
}

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
	c.Forget()
	c.pc.SetWriteDeadline(time.Now().Add(engine.FarewellTime))
	c.group.Wait()
	return nil
}

// end ends the outgoing direction with a mark: markEnd alone leaves the incoming
// one, everything else closes the stream for this side. It returns
// engine.ErrClosed if that was closed before.
func (c *Conn) end(mark byte) error {
	c.mu.Lock()
	defer c.unlock()
	if c.in.closed {
		return engine.ErrClosed
	}
	if mark != markEnd {
		c.in.closed = true
		c.discard()
	}
	if c.out.ended && c.in.ate {
		mark &= markReset // nothing else is news
	}
	c.out.began, c.out.ended = true, true
	if c.Err() == nil {
		c.out.marks |= mark
	}
	half.Signal(c.Writes.Changed)
	return nil
}

// What follows needs the mutex held.

// unlock has a goroutine write when something is due, tells the carrier what is held,
// and releases the mutex.
func (c *Conn) unlock() {
	c.poke()
	c.count()
	c.mu.Unlock()
}

// writeErr is why nothing can be written.
func (c *Conn) writeErr() error {
	switch {
	case c.in.closed || c.out.ended:
		return engine.ErrClosed
	case c.out.stopped: // the session may have ended because of that
		return engine.ErrReset
	}
	return c.Err()
}

// push gives what is staged to KCP, with the marks that are due.
func (c *Conn) push() {
	if c.out.staged() {
		c.control().Send(append(c.out.stage, c.out.marks))
		c.out.stage, c.out.marks = c.out.stage[:0], 0
	}
}

// take takes the next message from KCP into p, which has its size, heeds the last byte
// and returns the content before it.
func (c *Conn) take(p []byte) []byte {
	if c.held() >= c.window && c.owes.IsZero() {
		c.owes = time.Now() // KCP says that its window has opened
	}
	c.kcp.Recv(p)
	c.read()
	if c.window < Window && int(c.taken)%min(updateEvery, c.window/2) == 0 {
		c.promise(growPart)
	}
	content, mark := p[:len(p)-1], p[len(p)-1]
	opens, ended := !c.client && !c.in.began, c.in.end != nil
	c.in.began = true
	switch {
	case mark&^marks != 0 || (mark&markOpen != 0) != opens:
		c.fail(errFormat)
		c.in.end, ended = c.Err(), true
	case mark&markReset != 0 && !c.in.ate:
		c.in.end = engine.ErrReset
	case mark&markEnd != 0 && !ended:
		c.in.end = io.EOF
	}
	if ended {
		return nil
	}
	return content
}

// discard throws away what has arrived and nobody reads, so that the other side's
// window stays open until it has stopped.
func (c *Conn) discard() {
	c.in.rest = nil
	for size := c.kcp.PeekSize(); size >= 0; size = c.kcp.PeekSize() {
		c.take(c.buf[:size])
	}
}

// fail ends the session because of err.
func (c *Conn) fail(err error) { c.finish(fmt.Errorf("%w: %w", engine.ErrReset, err)) }

// finish ends the session; only the first reason counts. What has arrived can
// still be read unless this side has closed the session.
func (c *Conn) finish(err error) {
	c.cancel(err)
	c.packed.urgent = true // so is the farewell
	c.poke()
	half.Signal(c.Reads.Changed)
	half.Signal(c.Writes.Changed)
}
