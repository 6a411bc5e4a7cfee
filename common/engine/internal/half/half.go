// Package half has what the two directions of a stream have in common: one
// Read and one Write at a time, which wait for a change or for a deadline that may
// be moved meanwhile.
package half

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/pion/transport/v5/deadline"

	"turbotunnel/common/engine"
)

// Both implements net.Conn but for Close.
type Both struct {
	Addresses
	Reads, Writes half

	mu        sync.Mutex
	forgotten bool // there are no deadlines any more; guarded by mu
}

// Addresses are the carrier's.
type Addresses interface {
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
}

// A half is one direction to those who call Read, or Write.
type half struct {
	Changed chan struct{} // has room for one token: a try may do something now
	try     try
	turn    chan struct{} // held by the call in progress
	by      *deadline.Deadline
}

// A try reads or writes what it can without waiting, or until passed is closed at most,
// and returns 0 and nil if that is nothing.
type try func(p []byte, passed <-chan struct{}) (int, error)

// New returns what calls read and write, neither concurrently with itself.
func New(a Addresses, read, write try) Both {
	direction := func(f try) half {
		return half{make(chan struct{}, 1), f, make(chan struct{}, 1), deadline.New()}
	}
	return Both{Addresses: a, Reads: direction(read), Writes: direction(write)}
}

func (b *Both) Read(p []byte) (int, error) { return b.Reads.call(p, true) }

func (b *Both) Write(p []byte) (int, error) { return b.Writes.call(p, false) }

// call tries until all of p is done, or some of it, if that is enough.
func (h *half) call(p []byte, some bool) (total int, err error) {
	h.turn <- struct{}{}
	defer func() { <-h.turn }()
	for {
		passed := h.by.Done() // another one when the deadline was moved after it has passed
		if IsClosed(passed) {
			return total, os.ErrDeadlineExceeded
		}
		n, err := h.try(p[total:], passed)
		total += n
		if err != nil || total == len(p) || some && n > 0 {
			return total, err
		}
		if n == 0 {
			select {
			case <-h.Changed:
			case <-passed:
			}
		}
	}
}

// Forget ends the timers of a stream that is closed, and wakes its calls.
func (b *Both) Forget() {
	b.mu.Lock()
	b.forgotten = true
	b.mu.Unlock()
	b.SetDeadline(time.Time{})
}

func (b *Both) SetDeadline(t time.Time) error {
	return errors.Join(b.SetReadDeadline(t), b.SetWriteDeadline(t))
}

func (b *Both) SetReadDeadline(t time.Time) error { return b.set(&b.Reads, t) }

func (b *Both) SetWriteDeadline(t time.Time) error { return b.set(&b.Writes, t) }

func (b *Both) set(h *half, t time.Time) (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.forgotten {
		t, err = time.Time{}, engine.ErrClosed
	}
	h.by.Set(t)
	Signal(h.Changed)
	return err
}

// Signal puts a token into a channel that has room for one.
func Signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// IsClosed tells whether c is closed; nothing is sent on it.
func IsClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
