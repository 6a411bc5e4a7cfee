// Package relay joins two byte streams, so that what is read from one is
// written to the other until both directions have ended.
//
// A direction that ends with an end of file is passed on as an end of file and
// leaves the other direction alone. Anything else that ends a direction ends
// both: a TCP connection is then reset, not closed, so that its owner can tell
// a truncated stream from a complete one.
package relay

import (
	"context"
	"io"
	"net"
	"sync"
)

// Sizes in bytes of what one direction reads at once. A direction waits with
// the small buffer, so that an idle stream holds 4 KB and not 32, and takes the
// large one from the pool while reads fill what they are given. 32 KB is two of
// the carrier's records.
const (
	smallBuffer = 2 << 10
	largeBuffer = 32 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// A Conn is one of the two streams: a *net.TCPConn, or a stream of a tunnel.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Join copies between a and b in both directions and closes both before it
// returns. It returns nil after both have ended with an end of file, otherwise
// the error that ended them first, or ctx's cause when ctx ended. There is no
// limit of time: ctx is what ends an idle pair.
func Join(ctx context.Context, a, b Conn) error {
	var first struct {
		sync.Once
		err error
	}
	abort := func(err error) {
		first.Do(func() {
			first.err = err
			reset(a)
			reset(b)
		})
	}
	stop := context.AfterFunc(ctx, func() { abort(context.Cause(ctx)) })
	var other sync.WaitGroup
	other.Go(func() {
		if err := copyThrough(a, b); err != nil {
			abort(err)
		}
	})
	if err := copyThrough(b, a); err != nil {
		abort(err)
	}
	other.Wait()
	if !stop() {
		// The cancellation has begun: wait until it is through, or has found
		// that another error came first.
		abort(context.Cause(ctx))
	}
	// Once.Do returns only after the winner's call has ended, so first.err is
	// settled here.
	first.Do(func() {
		a.Close()
		b.Close()
	})
	return first.err
}

// copyThrough copies from src to dst until src's end, which it passes on.
func copyThrough(dst, src Conn) error {
	small := make([]byte, smallBuffer)
	var large *[largeBuffer]byte
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()
	buf := small
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return dst.CloseWrite()
		case err != nil:
			return err
		case n < len(buf) && large != nil:
			largeBuffers.Put(large)
			large, buf = nil, small
		case n == len(buf) && large == nil:
			large = largeBuffers.Get().(*[largeBuffer]byte)
			buf = large[:]
		}
	}
}

// reset closes c, with a TCP reset where it can.
func reset(c Conn) {
	if tcp, ok := c.(interface{ SetLinger(sec int) error }); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}
