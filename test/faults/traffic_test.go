package faults

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"turbotunnel/test/target"
)

// A pair is both ends of one stream.
type pair struct {
	near, far *net.TCPConn
}

func (p *pair) close() {
	p.near.Close()
	p.far.Close()
}

// errWrong is in errors that say that bytes came changed, or are missing, which is
// never right.
var errWrong = errors.New("not what was written")

// A flow is one direction of a stream, on which bytes move that both ends know.
type flow struct {
	from, to *net.TCPConn
	seed     uint64
	sent     atomic.Int64 // what was written
	came     atomic.Int64
	ended    atomic.Bool // the writer closed its direction
}

// write writes pieces of all sizes until as many bytes as size have gone and stop
// is closed, and then ends its direction.
func (f *flow) write(size int64, stop <-chan struct{}) error {
	random := rand.New(rand.NewPCG(f.seed, 1))
	data := target.Data(f.seed)
	for over := false; !over || f.sent.Load() < size; {
		n := 1 + random.IntN(200) // as keys that are typed
		if f.sent.Load() < size && random.IntN(2) == 0 {
			n = 1 + random.IntN(64<<10)
		}
		piece := make([]byte, n)
		io.ReadFull(data, piece)
		n, err := f.from.Write(piece)
		f.sent.Add(int64(n))
		if err != nil {
			return fmt.Errorf("writing after %d bytes: %w", f.sent.Load(), err)
		}
		pause := time.NewTimer(time.Duration(random.IntN(100)) * time.Millisecond)
		select {
		case <-stop:
			over = true
			pause.Stop()
		case <-pause.C:
		}
	}
	f.ended.Store(true)
	return f.from.CloseWrite()
}

// read checks what comes, to its end.
func (f *flow) read() error {
	want := target.Data(f.seed)
	buf, expected := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		n, err := f.to.Read(buf)
		io.ReadFull(want, expected[:n])
		if string(buf[:n]) != string(expected[:n]) {
			return fmt.Errorf("%w: after %d bytes", errWrong, f.came.Load())
		}
		came := f.came.Add(int64(n))
		switch {
		case err == io.EOF && !f.ended.Load():
			return fmt.Errorf("%w: a clean end after %d bytes that nobody wrote", errWrong, came)
		case err == io.EOF && came != f.sent.Load():
			return fmt.Errorf("%w: %d bytes of %d, and a clean end", errWrong, came, f.sent.Load())
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("reading after %d bytes of %d: %w", came, f.sent.Load(), err)
		}
	}
}

// A run is a stream in both of whose directions bytes move.
type run struct {
	pair     *pair
	up, down *flow
	begun    time.Time
	stop     chan struct{} // closed: enough
	ends     chan outcome  // of four goroutines
}

// An outcome is how one end of one direction came to its own.
type outcome struct {
	near bool // at the client
	err  error
}

// start moves size bytes at least in each direction, and goes on until it is ended.
func (p *pair) start(size int64) *run {
	r := &run{
		pair: p, begun: time.Now(), stop: make(chan struct{}), ends: make(chan outcome, 4),
		up: &flow{from: p.near, to: p.far, seed: 1}, down: &flow{from: p.far, to: p.near, seed: 2},
	}
	for side, f := range map[string]*flow{"up": r.up, "down": r.down} {
		go func() { r.ends <- outcome{f == r.up, wrap(side, f.write(size, r.stop))} }()
		go func() { r.ends <- outcome{f == r.down, wrap(side, f.read())} }()
	}
	return r
}

func wrap(side string, err error) error {
	if err != nil {
		err = fmt.Errorf("%s: %w", side, err)
	}
	return err
}

// whole ends the run and returns nil if all that was written came, to the byte.
func (r *run) whole() error {
	close(r.stop)
	defer r.pair.close()
	var err error
	for range cap(r.ends) {
		if e := (<-r.ends).err; e != nil && err == nil {
			err = fmt.Errorf("after %v (%d of %d bytes up, %d of %d down): %w", time.Since(r.begun).Round(time.Millisecond),
				r.up.came.Load(), r.up.sent.Load(), r.down.came.Load(), r.down.sent.Load(), e)
			r.pair.close() // the others end, too
		}
	}
	return err
}

// broken waits until the run fails at its client, and returns when that was. It
// must be a reset, with nothing wrong before it; bytes that were on their way may
// be missing.
func (r *run) broken() (time.Time, error) {
	defer r.pair.close()
	for {
		switch e := <-r.ends; {
		case !e.near || e.err == nil:
		case errors.Is(e.err, syscall.ECONNRESET) || errors.Is(e.err, syscall.EPIPE):
			return time.Now(), nil
		default:
			return time.Now(), fmt.Errorf("the stream does not end by a reset: %w", e.err)
		}
	}
}
