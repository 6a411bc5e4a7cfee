package measure

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// pipe is a net.PacketConn of datagrams that all arrive.
type pipe struct {
	net.PacketConn
	out     chan<- []byte
	in      <-chan []byte
	done    chan struct{}
	timeout <-chan time.Time
}

func pair() (a, b *pipe) {
	up, down, done := make(chan []byte, 64), make(chan []byte, 64), make(chan struct{})
	return &pipe{out: up, in: down, done: done}, &pipe{out: down, in: up, done: done}
}

func (p *pipe) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-p.in:
		return copy(b, d), nil, nil
	case <-p.done:
		return 0, nil, net.ErrClosed
	case <-p.timeout:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

func (p *pipe) WriteTo(b []byte, _ net.Addr) (int, error) {
	select {
	case p.out <- append([]byte(nil), b...):
		return len(b), nil
	case <-p.done:
		return 0, net.ErrClosed
	}
}

func (p *pipe) Close() error                       { return nil }
func (p *pipe) SetWriteDeadline(t time.Time) error { return nil }
func (p *pipe) SetDeadline(t time.Time) error {
	p.timeout = time.After(time.Until(t))
	return nil
}

func serve(t *testing.T, pc net.PacketConn) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- Serve(pc) }()
	return ended
}

func TestMeasure(t *testing.T) {
	a, b := pair()
	ended := serve(t, b)
	c := NewClient(a, nil)
	if _, err := c.Trip(time.Minute); err != nil {
		t.Error(err)
	}
	if got, _, err := c.Download(100_001, time.Minute); got != 100_001 || err != nil {
		t.Errorf("%d bytes down, %v", got, err)
	}
	for range 2 {
		if sent, _, err := c.Upload(64<<10, time.Minute); sent != 64<<10 || err != nil {
			t.Errorf("%d bytes up, %v", sent, err)
		}
	}
	close(a.done)
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// What comes in a burst, and then nothing, is not as fast as the burst.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair()
		b.WriteTo(make([]byte, piece), nil) //nolint:errcheck // there is room
		got, took, err := NewClient(a, nil).Download(10*piece, time.Second)
		if got != piece || took != time.Second || err != nil {
			t.Errorf("%d bytes in %v, %v", got, took, err)
		}
	})
}

// Nobody gets more out of it than Most, whatever he asks for.
func TestMostIsTheMost(t *testing.T) {
	a, b := pair()
	ended := serve(t, b)
	c := NewClient(a, nil)
	if got, _, err := c.Download(Most-piece, time.Minute); got != Most-piece || err != nil {
		t.Fatalf("%d bytes down, %v", got, err)
	}
	a.WriteTo([]byte{source, 0, 0, 0x20, 1}, nil)
	if err := <-ended; err == nil || len(a.in) > 0 {
		t.Errorf("%d datagrams more, %v", len(a.in), err)
	}
}

// FuzzServe: whatever comes is answered with no more than it has asked for, or
// ends the session.
func FuzzServe(f *testing.F) {
	f.Add([]byte("Eecho"), []byte{source, 0, 0, 1, 0})
	f.Add([]byte("D"), []byte("C"))
	f.Add([]byte("x"), []byte{source, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		a, b := pair()
		ended := make(chan error, 1)
		go func() { ended <- Serve(b) }()
		go func() {
			a.WriteTo(one, nil)
			a.WriteTo(two, nil)
			a.WriteTo([]byte("end"), nil)
		}()
		total := 0
		for {
			select {
			case d := <-a.in:
				total += len(d)
			case err := <-ended:
				if err == nil || total > Most+len(one)+len(two)+2*9 {
					t.Fatalf("%d bytes came, %v", total, err)
				}
				return
			}
		}
	})
}
