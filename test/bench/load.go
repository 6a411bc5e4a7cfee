package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// The load server at the far end of the tunnel. A client says what it wants in
// 9 bytes: a letter and a number.
const (
	loadDown = 'd' // the server sends so many bytes
	loadUp   = 'u' // the server takes so many bytes and answers with one
	loadEcho = 'e' // the server says everything back
)

var block = make([]byte, 256<<10)

// serveLoad serves connections until ln is closed.
func serveLoad(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var ask [9]byte
			if _, err := io.ReadFull(c, ask[:]); err != nil {
				return
			}
			n := int64(binary.BigEndian.Uint64(ask[1:]))
			switch ask[0] {
			case loadDown:
				for n > 0 {
					m, err := c.Write(block[:min(n, int64(len(block)))])
					if err != nil {
						return
					}
					n -= int64(m)
				}
			case loadUp:
				if _, err := io.CopyN(io.Discard, c, n); err != nil {
					return
				}
				c.Write([]byte{1})
			case loadEcho:
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			}
		}()
	}
}

func ask(c net.Conn, what byte, n int64) error {
	var b [9]byte
	b[0] = what
	binary.BigEndian.PutUint64(b[1:], uint64(n))
	_, err := c.Write(b[:])
	return err
}

// gapReader notes the longest time without a byte.
type gapReader struct {
	net.Conn
	last time.Time
	gap  time.Duration
}

func (g *gapReader) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	now := time.Now()
	if !g.last.IsZero() && now.Sub(g.last) > g.gap {
		g.gap = now.Sub(g.last)
	}
	g.last = now
	return n, err
}

// download and upload move n bytes through a connection to addr and return how
// long it took, from asking, and the longest pause.
func download(addr string, n int64) (time.Duration, time.Duration, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	start := time.Now()
	if err := ask(c, loadDown, n); err != nil {
		return 0, 0, err
	}
	g := &gapReader{Conn: c, last: start}
	got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{g}, make([]byte, 256<<10))
	if err == nil && got != n {
		err = fmt.Errorf("%d bytes of %d came", got, n)
	}
	return time.Since(start), g.gap, err
}

func upload(addr string, n int64) (time.Duration, time.Duration, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	start := time.Now()
	if err := ask(c, loadUp, n); err != nil {
		return 0, 0, err
	}
	for left := n; left > 0; {
		m, err := c.Write(block[:min(left, int64(len(block)))])
		if err != nil {
			return 0, 0, err
		}
		left -= int64(m)
	}
	var done [1]byte
	_, err = io.ReadFull(c, done[:])
	return time.Since(start), 0, err
}

// echo returns how long a byte takes there and back on c.
func echo(c net.Conn) (time.Duration, error) {
	start := time.Now()
	var b [1]byte
	if _, err := c.Write(b[:]); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(c, b[:])
	return time.Since(start), err
}
