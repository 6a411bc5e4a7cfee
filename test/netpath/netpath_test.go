package netpath

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newPath starts a path to a listener that calls serve for every connection,
// and returns a function that connects through it.
func newPath(t *testing.T, cfg Config, serve func(*net.TCPConn)) (*Path, func() *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(cfg, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		ln.Close()
		wg.Wait()
	})
	return l, func() *net.TCPConn {
		c, err := net.Dial("tcp", l.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.TCPConn)
	}
}

// sayBack returns what it gets, after all of it has come.
func sayBack(c *net.TCPConn) {
	b, err := io.ReadAll(c)
	if err == nil {
		c.Write(b)
	}
}

// echo returns what it gets at once.
func echo(c *net.TCPConn) { io.Copy(c, c) }

func content(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// Several connections share the path; each gets its own bytes in order, and a
// direction that has ended leaves the other one open.
func TestBytesAndHalfClose(t *testing.T) {
	l, dial := newPath(t, Config{RTT: 4 * time.Millisecond, Rate: 400e6}, sayBack)
	var wg sync.WaitGroup
	total := 0
	for i := range 4 {
		sent := content(1<<20 + i)
		total += len(sent)
		c := dial()
		wg.Go(func() {
			go func() {
				c.Write(sent)
				c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("connection %d: %d bytes of %d came back, or others: %v", i, len(got), len(sent), err)
			}
		})
	}
	wg.Wait()
	if up, down := l.Bytes(); up != int64(total) || down != int64(total) {
		t.Errorf("the path counted %d and %d bytes of %d", up, down, total)
	}
}

// A byte takes at least the propagation time, and bytes at least what the rate
// allows. Nothing is said about at most.
func TestNotFasterThanThePath(t *testing.T) {
	const (
		rtt  = 30 * time.Millisecond
		rate = 80e6 // bits a second: 10 MB
		size = 1 << 20
	)
	_, dial := newPath(t, Config{RTT: rtt, Rate: rate}, sayBack)
	c := dial()
	start := time.Now()
	go func() {
		c.Write(content(size))
		c.CloseWrite()
	}()
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
	// Connecting, there and back; each way at the rate, one after the other.
	least := 2*rtt + 2*time.Duration(size*8*float64(time.Second)/rate)
	if took := time.Since(start); took < least {
		t.Errorf("it took %v, the path needs %v", took, least)
	}
}

// The connections of a path share its rate.
func TestSharedRate(t *testing.T) {
	const (
		rate = 80e6
		size = 256 << 10
		k    = 4
	)
	_, dial := newPath(t, Config{Rate: rate}, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	start := time.Now()
	var wg sync.WaitGroup
	for range k {
		c := dial()
		wg.Go(func() {
			c.Write(content(size))
			c.CloseWrite()
			io.Copy(io.Discard, c)
		})
	}
	wg.Wait()
	if took, least := time.Since(start), time.Duration(k*size*8*float64(time.Second)/rate); took < least {
		t.Errorf("it took %v, the path needs %v", took, least)
	}
}

// A reset on one side is one on the other.
func TestResetTravels(t *testing.T) {
	broken := make(chan error, 1)
	_, dial := newPath(t, Config{RTT: 2 * time.Millisecond}, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		broken <- err
	})
	c := dial()
	c.Write([]byte("x"))
	c.SetLinger(0)
	c.Close()
	if err := <-broken; err == nil {
		t.Error("the server saw a regular end")
	}
}

// Reset cuts the connections that are old enough, and only those.
func TestReset(t *testing.T) {
	l, dial := newPath(t, Config{}, echo)
	c := dial()
	ping(t, c)
	if n := l.Reset(time.Hour); n != 0 {
		t.Errorf("%d connections were cut that are not an hour old", n)
	}
	ping(t, c)
	if n := l.Reset(0); n != 1 {
		t.Errorf("%d connections were cut, of one", n)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after a reset: %v", err)
	}
	ping(t, dial())
}

func ping(t *testing.T, c net.Conn) {
	t.Helper()
	b := []byte{'p'}
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
}

// While the path is down nothing passes, and afterwards all of it does.
func TestDown(t *testing.T) {
	var mu sync.Mutex
	up := false
	l, dial := newPath(t, Config{RTT: time.Millisecond}, func(c *net.TCPConn) {
		b := make([]byte, 1)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			mu.Lock()
			if b[0] == 'd' && !up {
				t.Error("a byte passed while the path was down")
			}
			mu.Unlock()
			c.Write(b)
		}
	})
	old := dial()
	ping(t, old)
	l.SetDown(true)
	l.SetDown(true) // twice is once
	young := dial()
	for _, c := range []net.Conn{old, young} {
		if _, err := c.Write([]byte{'d'}); err != nil {
			t.Fatal(err)
		}
	}
	old.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := old.Read(make([]byte, 1)); err == nil {
		t.Error("a byte came while the path was down")
	}
	old.SetReadDeadline(time.Time{})
	mu.Lock()
	up = true
	mu.Unlock()
	l.SetDown(false)
	for _, c := range []net.Conn{old, young} {
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("after the outage: %v", err)
		}
	}
}

// A dead connection carries nothing and does not say so; a new one works.
func TestBlackhole(t *testing.T) {
	l, dial := newPath(t, Config{}, echo)
	dead := dial()
	ping(t, dead)
	l.Blackhole()
	if _, err := dead.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	young := dial()
	ping(t, young)
	dead.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	var timeout net.Error
	if _, err := dead.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a dead connection said %v", err)
	}
}

// Close ends connections that are being made, are full, or stand still.
func TestClose(t *testing.T) {
	l, dial := newPath(t, Config{RTT: time.Hour, Rate: 8}, echo)
	dial()
	l.Close()

	l, dial = newPath(t, Config{Rate: 8000}, echo)
	c := dial()
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 64<<20))
		wrote <- err
	}()
	for up, _ := l.Bytes(); up == 0; up, _ = l.Bytes() {
		time.Sleep(time.Millisecond)
	}
	l.SetDown(true)
	l.Close()
	if err := <-wrote; err == nil {
		t.Error("64 MB went through a path that was closed")
	}
}

// What cannot be reached resets its connections.
func TestNobodyThere(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	l, err := New(Config{}, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr())
	if err != nil {
		return // the reset came before Dial returned
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("it ended with %v", err)
	}
}
