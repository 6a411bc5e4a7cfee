package main

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// What a stream asks the target for, and with which number: askSize bytes, with
// which it begins.
const (
	askEcho   = 'e' // what comes is sent back
	askSource = 's' // all is sent that can be
	askSink   = 'd' // what comes is counted

	askSize = 5
)

// ask is what a stream says first.
func ask(what byte, number int) []byte {
	return binary.BigEndian.AppendUint32([]byte{what}, uint32(number))
}

// lump is how many bytes are read or written at once.
const lump = 32 << 10

// A target is where the server forwards streams to. It is safe for concurrent use.
type target struct {
	listener net.Listener
	group    sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu, like what follows
	sunk  map[int]*atomic.Int64 // bytes that have come for a sink, by its number
}

func newTarget() (*target, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &target{listener: l, conns: make(map[net.Conn]struct{}), sunk: make(map[int]*atomic.Int64)}
	t.group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.mu.Lock()
			t.conns[c] = struct{}{}
			t.mu.Unlock()
			t.group.Go(func() {
				t.serve(c) //nolint:errcheck // the client's end ends it
				c.Close()
				t.mu.Lock()
				delete(t.conns, c)
				t.mu.Unlock()
			})
		}
	})
	return t, nil
}

func (t *target) addr() string { return t.listener.Addr().String() }

func (t *target) close() {
	t.listener.Close()
	t.mu.Lock()
	for c := range t.conns {
		c.Close()
	}
	t.mu.Unlock()
	t.group.Wait()
}

func (t *target) serve(c net.Conn) error {
	asked := make([]byte, askSize)
	if _, err := io.ReadFull(c, asked); err != nil {
		return err
	}
	switch asked[0] {
	case askSource:
		for p := make([]byte, lump); ; {
			if _, err := c.Write(p); err != nil {
				return err
			}
		}
	case askSink:
		sunk := new(atomic.Int64)
		t.mu.Lock()
		t.sunk[int(binary.BigEndian.Uint32(asked[1:]))] = sunk
		t.mu.Unlock()
		return count(sunk, c)
	}
	// Without a buffer while it waits, as there are thousands.
	for p := make([]byte, pingSize); ; {
		n, err := c.Read(p)
		if err != nil {
			return err
		}
		if _, err := c.Write(p[:n]); err != nil {
			return err
		}
	}
}

// sinks is what has come for each of so many sinks, in bytes.
func (t *target) sinks(n int) []int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts := make([]int64, n)
	for i := range counts {
		if sunk := t.sunk[i]; sunk != nil {
			counts[i] = sunk.Load()
		}
	}
	return counts
}

// count reads until that fails, and counts the bytes.
func count(n *atomic.Int64, r io.Reader) error {
	for p := make([]byte, lump); ; {
		m, err := r.Read(p)
		n.Add(int64(m))
		if err != nil {
			return err
		}
	}
}
