package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A target is what the server forwards streams to. What it does with a
// connection is said by the connection's first byte:
//
//	e  what comes is sent back
//	d  one byte is sent each millisecond
//	b  all is sent that can be
//	n  nothing more is read
//	l  lines are kept
//
// Anything else is read and thrown away. It is safe for concurrent use.
type target struct {
	listener net.Listener
	open     atomic.Int64 // connections
	most     atomic.Int64 // of them at a time
	blasts   atomic.Int64 // those to which all is sent that can be

	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu, like what follows
	lines []string
	group sync.WaitGroup
}

func newTarget() (*target, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &target{listener: l, conns: make(map[net.Conn]bool)}
	t.group.Go(t.accept)
	return t, nil
}

func (t *target) addr() string { return t.listener.Addr().String() }

func (t *target) accept() {
	for {
		c, err := t.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: the attack may do that to us, too
			continue
		}
		t.mu.Lock()
		t.conns[c] = true
		t.mu.Unlock()
		t.group.Go(func() {
			n := t.open.Add(1)
			for most := t.most.Load(); n > most && !t.most.CompareAndSwap(most, n); most = t.most.Load() {
			}
			t.serve(c)
			c.Close()
			t.open.Add(-1)
			t.mu.Lock()
			delete(t.conns, c)
			t.mu.Unlock()
		})
	}
}

func (t *target) serve(c net.Conn) {
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return
	}
	switch first[0] {
	case askEcho:
		io.Copy(c, c) //nolint:errcheck // whatever ends it
	case askDrip:
		for _, err := c.Write(first[:]); err == nil; _, err = c.Write(first[:]) {
			time.Sleep(time.Millisecond)
		}
	case askBlast:
		t.blasts.Add(1)
		defer t.blasts.Add(-1)
		b := make([]byte, 32<<10)
		for _, err := c.Write(b); err == nil; _, err = c.Write(b) {
		}
	case askNever:
		c.(*net.TCPConn).SetReadBuffer(4 << 10) //nolint:errcheck // a larger one only holds more
		for b := []byte{0}; ; {
			time.Sleep(time.Second)
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	case askLog:
		for lines := bufio.NewScanner(c); lines.Scan(); {
			t.mu.Lock()
			t.lines = append(t.lines, lines.Text())
			t.mu.Unlock()
		}
	default:
		io.Copy(io.Discard, c) //nolint:errcheck // whatever ends it
	}
}

// said is how often a line has come.
func (t *target) said(line string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, l := range t.lines {
		if l == line {
			n++
		}
	}
	return n
}

func (t *target) close() {
	t.listener.Close()
	t.mu.Lock()
	for c := range t.conns {
		c.Close()
	}
	t.mu.Unlock()
	t.group.Wait()
}
