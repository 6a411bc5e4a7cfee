// Package half has what the two directions of a stream have in common: one
// Read and one Write at a time, which wait for a change or for a deadline that may
// be moved meanwhile.
package half

import (
	"net"
	"sync/atomic"
	"time"

	"github.com/pion/transport/v5/deadline"

	"turbotunnel/common/engine"
)

// A Half is one direction of a stream to those who call Read, or Write.
type Half struct {
	Changed chan struct{} // has room for one token: what a call waits for may have changed
	turn    chan struct{} // held by the call in progress
	by      *deadline.Deadline
}

// New returns a Half that is woken by tokens in changed.
func New(changed chan struct{}) Half {
	return Half{changed, make(chan struct{}, 1), deadline.New()}
}

// Enter begins a call when the one before has called Leave.
func (h *Half) Enter() { h.turn <- struct{}{} }

// Leave ends a call.
func (h *Half) Leave() { <-h.turn }

// Passed is closed when the deadline has passed. It is another one when that was
// moved, of which Wait is told.
func (h *Half) Passed() <-chan struct{} { return h.by.Done() }

// Wait waits for a change or the deadline.
func (h *Half) Wait(passed <-chan struct{}) {
	select {
	case <-h.Changed:
	case <-passed:
	}
}

// Both implements the deadlines and the addresses of a net.Conn.
type Both struct {
	Addresses
	Reads, Writes Half
	forgotten     atomic.Bool
}

// Addresses are the carrier's.
type Addresses interface {
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
}

// Forget ends the timers of a stream that is closed, and wakes its calls.
func (b *Both) Forget() {
	b.SetDeadline(time.Time{})
	b.forgotten.Store(true)
}

func (b *Both) SetDeadline(t time.Time) error {
	if err := b.SetReadDeadline(t); err != nil {
		return err
	}
	return b.SetWriteDeadline(t)
}

func (b *Both) SetReadDeadline(t time.Time) error { return b.set(&b.Reads, t) }

func (b *Both) SetWriteDeadline(t time.Time) error { return b.set(&b.Writes, t) }

func (b *Both) set(h *Half, t time.Time) error {
	if b.forgotten.Load() {
		return engine.ErrClosed
	}
	h.by.Set(t)
	Signal(h.Changed)
	return nil
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
