package kcp

import (
	"os"

	"turbotunnel/common/engine/internal/half"
)

// stream is a Conn as an application sees it: with deadlines, half-close, and a
// Close that lets what was written arrive. It is safe for concurrent use.
type stream struct {
	*Conn
	half.Both
}

func newStream(c *Conn) *stream {
	return &stream{c, half.Both{Addresses: c.pc, Reads: half.New(c.readable), Writes: half.New(c.writable)}}
}

func (s *stream) Read(p []byte) (int, error) {
	s.Reads.Enter()
	defer s.Reads.Leave()
	return s.Conn.read(p, s.Reads.Passed)
}

// Write implements net.Conn. It returns when the Conn has taken all of p, a part
// at a time as it has room.
func (s *stream) Write(p []byte) (int, error) {
	s.Writes.Enter()
	defer s.Writes.Leave()
	for total := 0; ; {
		passed := s.Writes.Passed()
		if half.IsClosed(passed) && !s.Conn.isClosed() {
			return total, os.ErrDeadlineExceeded
		}
		if _, ok := s.Conn.Room(); !ok {
			s.Writes.Wait(passed)
			continue
		}
		part := p[total:min(total+minBacklog, len(p))]
		if err := s.Conn.Append(part); err != nil {
			return total, err
		}
		if total += len(part); total == len(p) {
			return total, nil
		}
	}
}

func (s *stream) CloseWrite() error { return s.Conn.end(markEnd) }
func (s *stream) Close() error      { return s.close(markEnd | markStop) }
func (s *stream) Reset() error      { return s.close(markReset) }

func (s *stream) close(mark byte) error {
	if s.Conn.end(mark) == nil {
		s.Forget()
	}
	return nil
}
