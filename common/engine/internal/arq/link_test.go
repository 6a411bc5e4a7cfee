package arq

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
)

// pipe is a User that sends what is in out and keeps what arrives.
type pipe struct {
	link *Link
	out  bytes.Buffer
	in   bytes.Buffer
	err  error
}

func (p *pipe) Fill(b []byte) int {
	n, _ := p.out.Read(b)
	return n
}

func (p *pipe) Arrived() {
	var buf [SegmentSize]byte
	for {
		b, ok := p.link.Recv(buf[:])
		if !ok {
			return
		}
		p.in.Write(b)
	}
}

func (p *pipe) Ended(err error) { p.err = err }

func (p *pipe) send(b []byte) {
	p.link.Mu.Lock()
	defer p.link.Mu.Unlock()
	p.out.Write(b)
	p.link.Ready(0)
}

func (p *pipe) received() []byte {
	p.link.Mu.Lock()
	defer p.link.Mu.Unlock()
	return bytes.Clone(p.in.Bytes())
}

func (p *pipe) arrived() int {
	p.link.Mu.Lock()
	defer p.link.Mu.Unlock()
	return p.in.Len()
}

func newPipe(pc net.PacketConn) *pipe {
	p := new(pipe)
	p.link = New(pc, p, MaxWindow)
	return p
}

// connect returns the two ends of a session over path both ways.
func connect(t *testing.T, path enginetest.Path) (a, b *pipe, x *enginetest.Conn) {
	x, y := enginetest.Connect(path, path, 1)
	a, b = newPipe(x), newPipe(y)
	a.link.Start()
	b.link.Start()
	t.Cleanup(a.link.Close)
	t.Cleanup(b.link.Close)
	return a, b, x
}

func content(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>8 ^ i)
	}
	return p
}

// transfer sends size bytes from a to b and returns how long that took.
func transfer(t *testing.T, a, b *pipe, size int) time.Duration {
	t.Helper()
	start := time.Now()
	a.send(content(size))
	for b.arrived() < size {
		if time.Since(start) > time.Hour {
			t.Fatalf("%d of %d bytes in an hour", b.arrived(), size)
		}
		time.Sleep(10 * time.Millisecond) // fake time
	}
	if !bytes.Equal(b.received(), content(size)) {
		t.Fatal("wrong bytes arrived")
	}
	return time.Since(start)
}

// TestNothingTwice: as long as the carrier loses nothing, nothing is sent
// twice, however long it takes.
func TestNothingTwice(t *testing.T) {
	for name, path := range map[string]enginetest.Path{
		"fast":     {Delay: 50 * time.Millisecond},
		"slow":     {Delay: 50 * time.Millisecond, Rate: 100 << 10, Queue: 256 << 10},
		"repaired": {Delay: 50 * time.Millisecond, Rate: 8 << 20, Queue: 1 << 20, Loss: 0.02, Repair: 400 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, _ := connect(t, path)
				transfer(t, a, b, 4<<20)
				stats := a.link.Stats()
				if stats.Retransmitted != 0 {
					t.Errorf("%d segments were sent twice: %+v", stats.Retransmitted, stats)
				}
				if name != "fast" && stats.Withheld == 0 {
					t.Errorf("KCP never lost patience, so the test shows nothing: %+v", stats)
				}
			})
		})
	}
}

// TestLossIsRepaired: what is lost is sent again, and little else.
func TestLossIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, x := connect(t, enginetest.Path{Delay: 50 * time.Millisecond, Loss: 0.02})
		transfer(t, a, b, 16<<20)
		lost := x.Sent().Lost * engine.MaxDatagram / SegmentSize
		if stats := a.link.Stats(); stats.Retransmitted == 0 || stats.Retransmitted > 3*lost {
			t.Errorf("%d segments were sent again for about %d lost ones", stats.Retransmitted, lost)
		}
	})
}

// TestLastSegmentLost: nothing that is sent later tells of its loss.
func TestLastSegmentLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, x := connect(t, enginetest.Path{Delay: 50 * time.Millisecond})
		x.SetDown(true)
		a.send([]byte("hello"))
		time.Sleep(time.Millisecond)
		x.SetDown(false)
		time.Sleep(2*minTimeout + time.Second)
		if got := b.received(); string(got) != "hello" {
			t.Errorf("%q arrived", got)
		}
		if stats := a.link.Stats(); stats.Retransmitted != 1 {
			t.Errorf("sent again %d times", stats.Retransmitted)
		}
	})
}

// TestLongOutage: during an outage little is sent, and after it everything
// arrives soon.
func TestLongOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, x := connect(t, enginetest.Path{Delay: 50 * time.Millisecond})
		transfer(t, a, b, 1<<20)
		x.SetDown(true)
		b.link.Mu.Lock()
		b.in.Reset()
		b.link.Mu.Unlock()
		before := x.Sent().Bytes
		a.send(content(1 << 20))
		time.Sleep(10 * time.Minute)
		if sent := x.Sent().Bytes - before; sent > 5<<20 {
			t.Errorf("%d bytes were sent into an outage of ten minutes", sent)
		}
		x.SetDown(false)
		start := time.Now()
		for b.arrived() < 1<<20 && time.Since(start) < time.Hour {
			time.Sleep(time.Second)
		}
		if !bytes.Equal(b.received(), content(1<<20)) {
			t.Errorf("%d bytes arrived", b.arrived())
		}
		if d := time.Since(start); d > 2*maxTimeout {
			t.Errorf("the transfer took %v after the outage", d)
		}
	})
}

// TestSilence: a session without anything to do sends nothing and soon sets
// no timer; acknowledgements wait for company but not long.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, x := connect(t, enginetest.Path{Delay: 50 * time.Millisecond})
		a.send([]byte("hello"))
		time.Sleep(50*time.Millisecond + ackDelay + 51*time.Millisecond)
		a.link.Mu.Lock()
		if a.link.una != a.link.next {
			t.Error("a lone segment was not acknowledged in time")
		}
		a.link.Mu.Unlock()
		time.Sleep(2 * minTimeout) // a timer that was set for a repair may still run
		for _, p := range []*pipe{a, b} {
			p.link.Mu.Lock()
			if at, ok := p.link.due(); ok || !p.link.sleeps || !p.link.sleepTo.IsZero() {
				t.Errorf("a session that is quiet wants to wake up at %v, sleeps %t until %v", at, p.link.sleeps, p.link.sleepTo)
			}
			p.link.Mu.Unlock()
		}
		if n := x.Sent().Datagrams; n != 1 {
			t.Errorf("%d datagrams for one message", n)
		}
	})
}

// TestBacklogFollowsTheCarrier: what a new stream says waits behind little.
func TestBacklogFollowsTheCarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := connect(t, enginetest.Path{Rate: 1 << 20, Queue: 32 << 10})
		a.send(content(8 << 20))
		time.Sleep(3 * time.Second)
		a.link.Mu.Lock()
		held := a.link.unsent() + a.link.outBytes
		a.link.Mu.Unlock()
		if held > 4*minBacklog {
			t.Errorf("%d bytes wait in front of a slow carrier", held)
		}
		time.Sleep(time.Minute)
		if !bytes.Equal(b.received(), content(8<<20)) {
			t.Errorf("%d bytes arrived", len(b.received()))
		}
	})
}

// TestFarewell: the other side learns that the session has ended.
func TestFarewell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := connect(t, enginetest.Path{Delay: 50 * time.Millisecond})
		a.link.Close()
		a.link.Close()
		<-b.link.Done()
		b.link.Close()
		if a.err != engine.ErrClosed || !errors.Is(b.err, ErrPeerClosed) || !errors.Is(b.err, engine.ErrReset) {
			t.Errorf("ended with %v and %v", a.err, b.err)
		}
	})
}

// TestPeerAddressLearnt: a server on a socket of its own writes to where the
// first datagram came from.
func TestPeerAddressLearnt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
		a, b := newPipe(x), newPipe(struct{ net.PacketConn }{y})
		a.link.Start()
		b.link.Start()
		b.send([]byte("from the server"))
		time.Sleep(time.Second)
		if got := a.received(); len(got) > 0 {
			t.Errorf("%q arrived from a server that does not know where to send", got)
		}
		a.send([]byte("from the client"))
		time.Sleep(time.Second)
		if got := a.received(); string(got) != "from the server" {
			t.Errorf("%q arrived", got)
		}
		a.link.Close()
		b.link.Close()
	})
}

// segment is one KCP segment on the wire.
func segment(cmd byte, ts, sn, una uint32, body []byte) []byte {
	p := make([]byte, headerSize, headerSize+len(body))
	binary.LittleEndian.PutUint32(p, conversation)
	p[4] = cmd
	binary.LittleEndian.PutUint16(p[6:], 100)
	binary.LittleEndian.PutUint32(p[8:], ts)
	binary.LittleEndian.PutUint32(p[12:], sn)
	binary.LittleEndian.PutUint32(p[16:], una)
	binary.LittleEndian.PutUint32(p[20:], uint32(len(body)))
	return append(p, body...)
}

func TestScanRefuses(t *testing.T) {
	x, _ := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	a := newPipe(x)
	good := segment(kcp.IKCP_CMD_PUSH, 0, 0, 0, []byte("x"))
	if _, ok := a.link.scan(good); !ok {
		t.Error("a good segment was refused")
	}
	change := func(offset int, value byte) []byte {
		p := bytes.Clone(good)
		p[offset] = value
		return p
	}
	for name, p := range map[string][]byte{
		"empty":               {},
		"short":               good[:headerSize-1],
		"cut":                 good[:headerSize],
		"rest":                append(bytes.Clone(good), 1, 2, 3),
		"other conversation":  change(0, 9),
		"unknown command":     change(4, 99),
		"fragment":            change(5, 1),
		"no data":             segment(kcp.IKCP_CMD_PUSH, 0, 0, 0, nil),
		"longer than buffers": segment(kcp.IKCP_CMD_PUSH, 0, 0, 0, make([]byte, SegmentSize+1)),
		"length above 2^31":   change(23, 0xFF),
		"una of the future":   segment(kcp.IKCP_CMD_PUSH, 0, 0, 1, []byte("x")),
		"ack of the future":   segment(kcp.IKCP_CMD_ACK, 0, 0, 0, nil),
		"window with data":    segment(kcp.IKCP_CMD_WINS, 0, 0, 0, []byte("x")),
		"question with data":  segment(kcp.IKCP_CMD_WASK, 0, 0, 0, []byte("x")),
	} {
		if _, ok := a.link.scan(p); ok {
			t.Errorf("%s: was accepted", name)
		}
	}
}

// FuzzInput: no datagram makes a session panic or doubt what it has sent, and
// what is accepted is accepted by KCP as well.
func FuzzInput(f *testing.F) {
	f.Add(segment(kcp.IKCP_CMD_PUSH, 1, 0, 3, []byte("hello")))
	f.Add(append(segment(kcp.IKCP_CMD_ACK, 1, 2, 1, nil), segment(kcp.IKCP_CMD_PUSH, 7, 5, 2, []byte("x"))...))
	f.Add(segment(kcp.IKCP_CMD_ACK, 1<<31, 1<<31, 1<<31, nil))
	f.Add(append(segment(kcp.IKCP_CMD_WASK, 0, 0, 0, nil), segment(kcp.IKCP_CMD_WINS, 0, 0, 0, nil)...))
	f.Add([]byte{0})
	x, _ := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	f.Fuzz(func(t *testing.T, p []byte) {
		a := newPipe(x)
		a.out.Write(content(10 * SegmentSize))
		a.link.ready = true
		a.link.flush(time.Now()) // ten segments on their way
		if len(p) > engine.MaxDatagram {
			p = p[:engine.MaxDatagram]
		}
		if _, ok := a.link.scan(p); ok && !a.link.feed(p) {
			t.Errorf("KCP refuses what scan accepts: %x", p)
		}
		for range 3 {
			a.link.receive(p, x.RemoteAddr(), nil)
			if una, next := a.link.una, a.link.next; una > next || next > 10 {
				t.Errorf("una %d, next %d of 10 segments", una, next)
			}
			if a.link.err == nil {
				a.link.flush(time.Now())
			}
		}
		if a.in.Len() > 3*engine.MaxDatagram {
			t.Errorf("%d bytes arrived in a datagram of %d", a.in.Len(), len(p))
		}
	})
}

// FuzzOrder: later is an order even where numbers wrap.
func FuzzOrder(f *testing.F) {
	f.Add(uint32(0), uint32(1), uint32(0), uint32(2))
	f.Add(^uint32(0), uint32(1), uint32(0), uint32(2))
	f.Fuzz(func(t *testing.T, ta, a, tb, b uint32) {
		if int32(ta-tb) == -1<<31 || int32(a-b) == -1<<31 {
			t.Skip("half the circle apart")
		}
		x, y := later(ta, a, tb, b), later(tb, b, ta, a)
		if x && y || !x && !y && (ta != tb || a != b) {
			t.Errorf("later(%d, %d, %d, %d): %t, and the other way round %t", ta, a, tb, b, x, y)
		}
	})
}
