package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tcpPair returns the two ends of a TCP connection, since half-close and reset
// are what is tested.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// joined returns the outer ends of two connections that Join has the inner
// ends of, and where its result will be.
func joined(t *testing.T, ctx context.Context) (left, right *net.TCPConn, result <-chan error) {
	left, a := tcpPair(t)
	right, b := tcpPair(t)
	done := make(chan error, 1)
	go func() { done <- Join(ctx, TCPConn{a}, TCPConn{b}) }()
	return left, right, done
}

func TestBytesPassBothWaysAtOnce(t *testing.T) {
	left, right, result := joined(t, t.Context())
	// Not a multiple of any buffer, and several large ones.
	data := make([]byte, 3<<20+17)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	var wg sync.WaitGroup
	for _, pair := range [][2]*net.TCPConn{{left, right}, {right, left}} {
		wg.Go(func() {
			if _, err := pair[0].Write(data); err != nil {
				t.Error(err)
			}
			pair[0].CloseWrite()
		})
		wg.Go(func() {
			got, err := io.ReadAll(pair[1])
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, error %v; want %d bytes unaltered", len(got), err, len(data))
			}
		})
	}
	wg.Wait()
	if err := <-result; err != nil {
		t.Errorf("Join: %v", err)
	}
}

func TestHalfClosePasses(t *testing.T) {
	left, right, result := joined(t, t.Context())
	left.Write([]byte("question"))
	left.CloseWrite()
	if got, err := io.ReadAll(right); string(got) != "question" || err != nil {
		t.Fatalf("right read %q, %v", got, err)
	}
	// The other direction goes on.
	right.Write([]byte("answer"))
	right.CloseWrite()
	if got, err := io.ReadAll(left); string(got) != "answer" || err != nil {
		t.Fatalf("left read %q, %v", got, err)
	}
	if err := <-result; err != nil {
		t.Errorf("Join: %v", err)
	}
}

// A reset passes in both directions, also where the direction towards it has
// ended already: a question that is complete does not make the answer so.
func TestResetPassesAsReset(t *testing.T) {
	for _, test := range []struct {
		name          string
		right, halved bool
	}{
		{"left", false, false},
		{"right", true, false},
		{"left, after the other's half-close", false, true},
		{"right, after the other's half-close", true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			from, to, result := joined(t, t.Context())
			if test.right {
				from, to = to, from
			}
			if test.halved {
				to.CloseWrite()
				if got, err := io.ReadAll(from); len(got) > 0 || err != nil {
					t.Fatalf("read %q, %v; want the end", got, err)
				}
			}
			from.Write([]byte("part"))
			if _, err := io.ReadFull(to, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			TCPConn{from}.Reset()
			if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read %v; want a reset", err)
			}
			if err := <-result; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Join: %v; want the reset", err)
			}
		})
	}
}

// recorder is a Conn that knows how it was ended. It fails to read with err.
type recorder struct {
	net.Conn
	err            error
	closed, resets atomic.Int32
}

func (r *recorder) Read([]byte) (int, error) { return 0, r.err }
func (r *recorder) CloseWrite() error        { return nil }
func (r *recorder) Close() error             { r.closed.Add(1); return nil }
func (r *recorder) Reset() error             { r.resets.Add(1); return nil }

// Streams that are no TCP connections are ended as their ends came: by Reset
// after an error, by Close after two ends of file, and by one of the two only.
func TestEndOfOtherStreams(t *testing.T) {
	broken := errors.New("the session is gone")
	for _, want := range []error{nil, broken} {
		a, b := &recorder{err: io.EOF}, &recorder{err: io.EOF}
		resets := int32(0)
		if want != nil {
			b.err, resets = want, 1
		}
		if err := Join(t.Context(), a, b); err != want {
			t.Errorf("Join: %v; want %v", err, want)
		}
		for _, r := range []*recorder{a, b} {
			if r.resets.Load() != resets || r.closed.Load() != 1-resets {
				t.Errorf("after %v: reset %d times, closed %d times", want, r.resets.Load(), r.closed.Load())
			}
		}
	}
}

func TestContextEndsAnIdlePair(t *testing.T) {
	cause := errors.New("time is up")
	ctx, cancel := context.WithCancelCause(t.Context())
	left, right, result := joined(t, ctx)
	cancel(cause)
	if err := <-result; err != cause {
		t.Errorf("Join: %v; want the cause", err)
	}
	for _, end := range []*net.TCPConn{left, right} {
		if _, err := end.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %v; want a reset", err)
		}
	}
}

// A spy is one end of a pipe, as a Conn that knows of its reads and writes.
type spy struct {
	net.Conn
	room   atomic.Int64 // bytes that the last Read had room for
	writes atomic.Int64 // how many
}

func (s *spy) Read(p []byte) (int, error) {
	s.room.Store(int64(len(p)))
	return s.Conn.Read(p)
}

func (s *spy) Write(p []byte) (int, error) {
	s.writes.Add(1)
	return len(p), nil
}

func (s *spy) CloseWrite() error { return nil }
func (s *spy) Reset() error      { return s.Close() }

// What comes in bits that are larger than the small buffer is passed on as it comes,
// and the large buffer goes back when no such bits come any more, although smaller
// ones do.
func TestBuffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outer, inner := net.Pipe()
		from, to := &spy{Conn: inner}, new(spy)
		ended := make(chan error, 1)
		go func() { ended <- copyThrough(to, from) }()
		const pause = busyTime / 10
		send := func(bits, size int, room int64) {
			t.Helper()
			for range bits {
				outer.Write(make([]byte, size))
				time.Sleep(pause)
			}
			synctest.Wait()
			if got := from.room.Load(); got != room {
				t.Errorf("a read has room for %d bytes, want %d", got, room)
			}
		}
		const bit, bits = 5000, 100
		send(bits, bit, largeBuffer)
		if got := to.writes.Load(); got != bits+1 {
			t.Errorf("%d bits made %d writes, want one more", bits, got)
		}
		send(30, smallBuffer/2, smallBuffer)
		send(1, bit, largeBuffer)
		time.Sleep(2 * busyTime)
		send(1, 1, smallBuffer)
		outer.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Where there are as many large buffers as there may be, the small one has to do until
// one is given back; and all are.
func TestLargeBuffersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outer, inner := net.Pipe()
		from, to := &spy{Conn: inner}, new(spy)
		ended := make(chan error, 1)
		go func() { ended <- copyThrough(to, from) }()
		for _, c := range []struct{ others, room int64 }{{mostLarge, smallBuffer}, {mostLarge - 1, largeBuffer}} {
			largeInUse.Add(c.others)
			outer.Write(make([]byte, 3*smallBuffer)) // the last part is read with what it has by then
			synctest.Wait()
			if got := from.room.Load(); got != c.room {
				t.Errorf("beside %d large buffers a read has room for %d bytes, want %d", c.others, got, c.room)
			}
			largeInUse.Add(-c.others)
		}
		outer.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if n := largeInUse.Load(); n != 0 {
			t.Errorf("%d large buffers are still in use", n)
		}
	})
}

// A late is a stream whose Read, when its deadline has passed, may return bytes
// beside the error, as those of quic-go do.
type late struct {
	spy
	text     io.Reader
	deadline time.Time
	beside   bool // the last error came with bytes
}

func (l *late) SetReadDeadline(t time.Time) error {
	l.deadline = t
	return nil
}

func (l *late) Read(p []byte) (int, error) {
	time.Sleep(busyTime / 3)
	if l.deadline.IsZero() || time.Now().Before(l.deadline) {
		return l.text.Read(p)
	}
	if l.beside = !l.beside; !l.beside {
		return 0, os.ErrDeadlineExceeded
	}
	n, _ := l.text.Read(p)
	return n, os.ErrDeadlineExceeded
}

// A sink keeps what is written.
type sink struct {
	spy
	text []byte
}

func (s *sink) Write(p []byte) (int, error) {
	s.text = append(s.text, p...)
	return len(p), nil
}

// What comes beside the error of a deadline is passed on like everything else.
func TestBytesBesideTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := make([]byte, 40*largeBuffer)
		rand.NewChaCha8([32]byte{}).Read(text)
		from, to := &late{text: bytes.NewReader(text)}, new(sink)
		if err := copyThrough(to, from); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(to.text, text) {
			t.Errorf("%d bytes of %d came through", len(to.text), len(text))
		}
	})
}
