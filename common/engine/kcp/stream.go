package kcp

import (
	"os"
	"time"

	"github.com/pion/transport/v5/deadline"

	"turbotunnel/common/engine"
)

// stream is a Conn as an application sees it: with deadlines, half-close, and a
// Close that lets what was written arrive. It is safe for concurrent use.
type stream struct {
	*Conn            // for its addresses, which are the carrier's
	readBy, writeBy  *deadline.Deadline
	reading, writing chan struct{} // held by the Read and by the Write in progress
}

func newStream(c *Conn) *stream {
	return &stream{
		Conn:    c,
		readBy:  deadline.New(),
		writeBy: deadline.New(),
		reading: make(chan struct{}, 1),
		writing: make(chan struct{}, 1),
	}
}

// Read implements net.Conn. After the last byte it returns io.EOF if the other
// side has ended its direction, an error that matches engine.ErrReset if the
// stream ended otherwise, and engine.ErrClosed after Close.
func (s *stream) Read(p []byte) (int, error) {
	s.reading <- struct{}{}
	defer func() { <-s.reading }()
	return s.Conn.read(p, s.readBy)
}

// Write implements net.Conn. It returns when the Conn has taken all of p, a part
// at a time as it has room.
func (s *stream) Write(p []byte) (int, error) {
	s.writing <- struct{}{}
	defer func() { <-s.writing }()
	for total := 0; ; {
		passed := s.writeBy.Done() // another one when the deadline was moved
		if isClosed(passed) && !s.Conn.isClosed() {
			return total, os.ErrDeadlineExceeded
		}
		room, ok := s.Conn.Room()
		if !ok {
			select {
			case <-room:
			case <-passed:
			}
			continue
		}
		part := p[total:min(total+minBacklog, len(p))]
		if err := s.Conn.Append(0, part); err != nil {
			return total, err
		}
		if total += len(part); total == len(p) {
			return total, nil
		}
	}
}

// CloseWrite implements engine.Stream.
func (s *stream) CloseWrite() error { return s.Conn.end(markEnd) }

// Close implements engine.Stream.
func (s *stream) Close() error {
	if s.Conn.end(markEnd|markStop) == nil {
		s.forget()
	}
	return nil
}

// Reset implements engine.Stream.
func (s *stream) Reset() error {
	if s.Conn.end(markReset) == nil {
		s.forget()
	}
	return nil
}

// forget ends the timers of a stream that is closed.
func (s *stream) forget() {
	s.readBy.Set(time.Time{})
	s.writeBy.Set(time.Time{})
}

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error { return s.set(s.readBy, s.Conn.readable, t) }

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error { return s.set(s.writeBy, s.Conn.writable, t) }

// set moves a deadline and wakes whom it concerns.
func (s *stream) set(d *deadline.Deadline, waiter chan struct{}, t time.Time) error {
	if s.Conn.isClosed() {
		return engine.ErrClosed
	}
	d.Set(t)
	signal(waiter)
	return nil
}
