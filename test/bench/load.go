package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// The load server at the far end of the tunnel. A client says what it wants in
// askSize bytes: a letter, how many bytes, and which transfer it is.
const (
	loadDown = 'd' // the server sends so many bytes
	loadUp   = 'u' // the server takes so many bytes and answers with one: 1 if they were right
	loadEcho = 'e' // the server says everything back

	askSize = 1 + 8 + 8
)

func ask(what byte, n int64, transfer uint64) []byte {
	b := append(make([]byte, 0, askSize), what)
	b = binary.BigEndian.AppendUint64(b, uint64(n))
	return binary.BigEndian.AppendUint64(b, transfer)
}

// pattern is what transfers carry, over and over: transfer k starts at a place
// of its own. Its length is prime, so that what is lost, doubled or moved by
// any round number of bytes does not fit.
var pattern = func() []byte {
	p := make([]byte, 1048573)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(p) //nolint:errcheck // it never fails
	return p
}()

// content is a position in the pattern. It is an io.Reader without an end and
// an io.Writer that fails when what is written is not what comes next.
type content struct{ at int }

func newContent(transfer uint64) *content {
	return &content{int(transfer * 7919 % uint64(len(pattern)))}
}

// next returns some of the bytes that come next, at most n.
func (c *content) next(n int) []byte {
	return pattern[c.at:min(len(pattern), c.at+n)]
}

func (c *content) move(n int) { c.at = (c.at + n) % len(pattern) }

func (c *content) Read(p []byte) (int, error) {
	n := copy(p, c.next(len(p)))
	c.move(n)
	return n, nil
}

var errContent = errors.New("other bytes arrived than were sent")

func (c *content) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		want := c.next(len(p) - done)
		if !bytes.Equal(want, p[done:done+len(want)]) {
			return done, errContent
		}
		c.move(len(want))
		done += len(want)
	}
	return len(p), nil
}

// send writes the next n bytes of c to w.
func (c *content) send(w io.Writer, n int64) error {
	for n > 0 {
		m, err := w.Write(c.next(int(min(n, 256<<10))))
		if err != nil {
			return err
		}
		c.move(m)
		n -= int64(m)
	}
	return nil
}

// meter is what arrived in each millisecond since its start. It belongs to one
// goroutine until that one has told that it is done.
type meter struct {
	io.Reader
	start, last time.Time
	gap         time.Duration // the longest time without a byte
	each        []int64
}

func newMeter(r io.Reader) *meter {
	now := time.Now()
	return &meter{Reader: r, start: now, last: now}
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	if n > 0 {
		now := time.Now()
		m.gap = max(m.gap, now.Sub(m.last))
		m.last = now
		i := int(now.Sub(m.start) / time.Millisecond)
		for len(m.each) <= i {
			m.each = append(m.each, 0)
		}
		m.each[i] += int64(n)
	}
	return n, err
}

// resumed is how long after t the first byte arrived, and how long until half
// a second began in which rate bytes a second or more arrived. -1: never.
func (m *meter) resumed(t time.Time, rate float64) (first, full time.Duration) {
	first, full = -1, -1
	from := max(0, int(t.Sub(m.start)/time.Millisecond)+1)
	const window = 500
	for i := from; i < len(m.each); i++ {
		if first < 0 && m.each[i] > 0 {
			first = time.Duration(i-from+1) * time.Millisecond
		}
		if full < 0 && i+window <= len(m.each) {
			var sum int64
			for _, n := range m.each[i : i+window] {
				sum += n
			}
			if float64(sum) >= rate*window/1000 {
				full = time.Duration(i-from) * time.Millisecond
			}
		}
	}
	return first, full
}

// series is MB/s in each tenth of a second.
func (m *meter) series() []float64 {
	s := make([]float64, len(m.each)/100+1)
	for i, n := range m.each {
		s[i/100] += float64(n) / 1e6 * 10
	}
	return s
}

// loadServer is at the far end of the tunnels.
type loadServer struct {
	ln      net.Listener
	uploads sync.Map // of transfer to chan *meter, where somebody waits for it
	wg      sync.WaitGroup
}

func newLoadServer() (*loadServer, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &loadServer{ln: ln}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() {
				defer c.Close()
				s.serve(c)
			})
		}
	})
	return s, nil
}

// close waits for all connections, whose other ends must have been closed.
func (s *loadServer) close() {
	s.ln.Close()
	s.wg.Wait()
}

func (s *loadServer) serve(c net.Conn) {
	c.SetDeadline(time.Now().Add(10 * time.Minute)) //nolint:errcheck // no run lasts so long
	var ask [askSize]byte
	if _, err := io.ReadFull(c, ask[:]); err != nil {
		return
	}
	n := int64(binary.BigEndian.Uint64(ask[1:]))
	transfer := binary.BigEndian.Uint64(ask[9:])
	data := newContent(transfer)
	switch ask[0] {
	case loadDown:
		data.send(c, n) //nolint:errcheck // the client counts
	case loadUp:
		m := newMeter(c)
		_, err := io.CopyBuffer(onlyWriter{data}, io.LimitReader(m, n), make([]byte, 256<<10))
		if waiting, ok := s.uploads.LoadAndDelete(transfer); ok {
			waiting.(chan *meter) <- m
		}
		if err == nil {
			c.Write([]byte{1}) //nolint:errcheck // the client waits for it
		} else if errors.Is(err, errContent) {
			c.Write([]byte{0}) //nolint:errcheck // likewise
		}
	case loadEcho:
		io.CopyBuffer(onlyWriter{c}, onlyReader{c}, make([]byte, 4096)) //nolint:errcheck // its end is the end
	}
}

// onlyWriter hides ReadFrom, with which io.Copy would pass its buffer by.
type onlyWriter struct{ io.Writer }

// onlyReader hides WriteTo likewise.
type onlyReader struct{ io.Reader }

// transfers counts them, so that each has content of its own.
var transfers atomic.Uint64

// loader opens connections through a tunnel.
type loader struct {
	ctx    context.Context
	addr   string
	server *loadServer
	limit  time.Duration // for a connection
}

// open connects and asks. What is not done when the limit is over fails.
func (l *loader) open(what byte, n int64) (*net.TCPConn, uint64, error) {
	var d net.Dialer
	c, err := d.DialContext(l.ctx, "tcp", l.addr)
	if err != nil {
		return nil, 0, err
	}
	c.SetDeadline(time.Now().Add(l.limit)) //nolint:errcheck // a TCP connection can
	context.AfterFunc(l.ctx, func() { c.Close() })
	k := transfers.Add(1)
	if _, err := c.Write(ask(what, n, k)); err != nil {
		c.Close()
		return nil, 0, err
	}
	return c.(*net.TCPConn), k, nil
}

// download takes n bytes and checks them.
func (l *loader) download(n int64) (*meter, error) {
	c, k, err := l.open(loadDown, n)
	if err != nil {
		return nil, fmt.Errorf("download: %w", err)
	}
	defer c.Close()
	m := newMeter(c)
	got, err := io.CopyBuffer(onlyWriter{newContent(k)}, m, make([]byte, 256<<10))
	if err == nil && got != n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return m, fmt.Errorf("download: %d bytes of %d came: %w", got, n, err)
	}
	return m, nil
}

// upload sends n bytes and waits until the other end says that they are right.
// The meter is that of the other end.
func (l *loader) upload(n int64) (*meter, error) { return l.uploadAfter(n, 0, nil) }

// uploadAfter is upload, but for its first bytes, after which it waits until ready
// has returned.
func (l *loader) uploadAfter(n, first int64, ready func()) (*meter, error) {
	c, k, err := l.open(loadUp, n)
	if err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	defer c.Close()
	arrived := make(chan *meter, 1)
	l.server.uploads.Store(k, arrived)
	defer l.server.uploads.Delete(k)
	data := newContent(k)
	if first > 0 {
		if err := data.send(c, first); err != nil {
			return nil, fmt.Errorf("upload: %w", err)
		}
		ready()
	}
	if err := data.send(c, n-first); err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	var done [1]byte
	if _, err = io.ReadFull(c, done[:]); err != nil {
		return nil, fmt.Errorf("upload: no answer after %d bytes: %w", n, err)
	}
	if done[0] != 1 {
		return nil, fmt.Errorf("upload: %w", errContent)
	}
	return <-arrived, nil
}

// uploadWarm sends n bytes on a stream that has been used before: its window does
// not have to be asked for. It returns MB/s.
func (t *rig) uploadWarm(n int64) (float64, error) {
	const first = 16 << 10
	var start time.Time
	_, err := t.uploadAfter(n+first, first, func() {
		t.pause(time.Second)
		start = time.Now()
	})
	if err != nil {
		return 0, err
	}
	return mbps(n, time.Since(start)), nil
}

// echo returns how long a byte takes there and back on c.
func echo(c io.ReadWriter) (time.Duration, error) {
	start := time.Now()
	b := [1]byte{'x'}
	if _, err := c.Write(b[:]); err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	return time.Since(start), nil
}
