// Package relay joins two byte streams, so that what is read from one is
// written to the other until both directions have ended.
//
// A direction that ends with an end of file is passed on as an end of file and
// leaves the other direction alone. Anything else that ends a direction ends
// both: the streams are then reset, not closed, so that whoever is at their other
// ends can tell a truncated stream from a complete one. So a reset that comes in
// at one end goes out at the other.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Sizes in bytes of what one direction reads at once. A direction waits with
// the small buffer, so that an idle stream holds 4 KB and not 64, and takes the
// large one from the pool when a read has filled that. 32 KB is two of the
// carrier's records.
const (
	smallBuffer = 2 << 10
	largeBuffer = 32 << 10
)

// busyTime is how long a direction keeps the large buffer without a read that would
// not have fitted into the small one. If it gave it back as soon as a read did not fill
// it, what comes in bits of some KB, as tor's does, would be read and written twice,
// and wake everybody through whose hands it goes twice: of an upload through tor both
// programs' part was a tenth to a sixth more of the processors, of a download half as
// much again.
const busyTime = time.Second

// mostLarge is how many large buffers there are at once, 64 MB: one is kept, too, by a
// direction whose other end takes nothing, and whoever may open streams can have as many
// of these as there are streams. Beyond it the small ones have to do.
const mostLarge = 2048

var (
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
	largeInUse   atomic.Int64
)

// takeLarge returns a large buffer, or nil if there are as many as there may be.
func takeLarge() *[largeBuffer]byte {
	if largeInUse.Add(1) > mostLarge {
		largeInUse.Add(-1)
		return nil
	}
	return largeBuffers.Get().(*[largeBuffer]byte)
}

// A Conn is one of the two streams: a TCPConn, or a stream of a tunnel. Its
// methods may be called concurrently.
type Conn interface {
	net.Conn

	// CloseWrite ends the direction of what is written: the other end reads
	// io.EOF after it. The other direction goes on.
	CloseWrite() error

	// Reset is Close, unblocks every call as that does, and has the other end
	// fail instead of reading io.EOF, even after CloseWrite. What was written
	// may be lost. It does not wait. Where the protocol has nothing that says
	// so, as between sockets of one machine, it is Close and no more.
	Reset() error
}

// A TCPConn is a TCP connection as a Conn.
type TCPConn struct{ *net.TCPConn }

// Reset implements Conn by a TCP reset.
func (c TCPConn) Reset() error {
	c.SetLinger(0) // if it fails the connection is closed already
	return c.Close()
}

// A localSocket is a stream socket of this machine: *net.UnixConn, or what wraps one.
type localSocket interface {
	net.Conn
	CloseWrite() error
}

// A UnixConn is a connection of a Unix socket as a Conn.
type UnixConn struct{ localSocket }

// Reset implements Conn. A Unix socket has no reset.
func (c UnixConn) Reset() error { return c.Close() }

// OfSocket returns a connection of TCP or of a Unix socket as a Conn.
func OfSocket(conn net.Conn) Conn {
	if tcp, ok := conn.(*net.TCPConn); ok {
		return TCPConn{tcp}
	}
	return UnixConn{conn.(localSocket)}
}

// Join copies between a and b in both directions and closes or resets both
// before it returns. It returns nil after both have ended with an end of file, otherwise
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
			a.Reset()
			b.Reset()
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
	r := reader{src: src, small: make([]byte, smallBuffer)}
	defer r.giveBack()
	for {
		p, err := r.read()
		if len(p) > 0 {
			if _, err := dst.Write(p); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return dst.CloseWrite()
		case err != nil:
			return err
		}
	}
}

// A reader reads what one direction copies.
type reader struct {
	src   Conn
	small []byte
	large *[largeBuffer]byte // from the pool; nil: it reads with small
	full  bool               // the last read has filled small
	busy  bool               // large was needed since the deadline of src was set
}

// read returns what the next read does. It holds until the one after.
func (r *reader) read() ([]byte, error) {
	if r.full {
		r.full = false
		if r.large = takeLarge(); r.large != nil {
			r.watch()
		}
	}
	if r.large == nil {
		n, err := r.src.Read(r.small)
		r.full = n == len(r.small)
		return r.small[:n], err
	}
	n, err := r.src.Read(r.large[:])
	r.busy = r.busy || n > len(r.small)
	switch {
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return r.large[:n], err
	case n > 0:
		return r.large[:n], nil // as an io.Reader may; the next read returns the error alone
	case r.busy:
		r.watch()
	default:
		r.giveBack()
	}
	return nil, nil
}

// watch has the large buffer be kept for busyTime from now on.
func (r *reader) watch() {
	r.busy = false
	r.src.SetReadDeadline(time.Now().Add(busyTime)) //nolint:errcheck // if it fails so does Read
}

// giveBack gives the large buffer back.
func (r *reader) giveBack() {
	if r.large != nil {
		largeBuffers.Put(r.large)
		largeInUse.Add(-1)
		r.large = nil
		r.src.SetReadDeadline(time.Time{}) //nolint:errcheck // likewise
	}
}
