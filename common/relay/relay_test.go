package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"

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
	go func() { done <- Join(ctx, a, b) }()
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

func TestResetPassesAsReset(t *testing.T) {
	left, right, result := joined(t, t.Context())
	left.Write([]byte("part"))
	if _, err := io.ReadFull(right, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	left.SetLinger(0)
	left.Close()
	if _, err := right.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("right read %v; want a reset", err)
	}
	if err := <-result; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Join: %v; want the reset", err)
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
