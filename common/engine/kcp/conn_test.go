package kcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
)

// pipe is a Conn whose reader keeps what arrives.
type pipe struct {
	*Conn
	mu  sync.Mutex
	in  bytes.Buffer // guarded by mu, like err
	err error
}

func newPipe(pc engine.Carrier, client bool) *pipe {
	p := &pipe{Conn: prepare(pc, client)}
	p.start()
	return p
}

func (p *pipe) start() {
	p.group.Go(p.readDatagrams)
	p.group.Go(p.drive)
	p.group.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := p.Read(buf)
			p.mu.Lock()
			p.in.Write(buf[:n])
			p.err = err
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
}

func (p *pipe) send(b []byte) { p.Append(b) }

func (p *pipe) received() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.in.Bytes())
}

func (p *pipe) arrived() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.in.Len()
}

// connect returns the two ends of a session over path both ways.
func connect(t *testing.T, path enginetest.Path) (a, b *pipe, x *enginetest.Conn) {
	x, y := enginetest.Connect(path, path, 1)
	a, b = newPipe(x, true), newPipe(y, false)
	t.Cleanup(func() { a.Close() })
	t.Cleanup(func() { b.Close() })
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
				a, b, x := connect(t, path)
				transfer(t, a, b, 4<<20)
				if sent := x.Sent().Bytes; sent > 4<<20+4<<20/40 {
					t.Errorf("%d bytes were sent for 4 MB", sent)
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
		sent := x.Sent()
		if again := sent.Bytes - 16<<20 - 16<<20/40; sent.Lost == 0 || again > 3*sent.Lost*engine.MaxDatagram {
			t.Errorf("%d bytes were sent again for %d lost datagrams", again, sent.Lost)
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
		if n := x.Sent().Datagrams; n != 2 {
			t.Errorf("%d datagrams for one that was lost once", n)
		}
	})
}

// TestLongOutage: during an outage little is sent beyond what is written, and after it
// everything arrives soon, however much of it was lost for good.
func TestLongOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 16 << 20
		a, b, x := connect(t, enginetest.Path{Delay: 50 * time.Millisecond})
		transfer(t, a, b, 1<<20)
		x.SetDown(true)
		before := x.Sent().Bytes
		a.send(content(size))
		time.Sleep(10 * time.Minute)
		if sent := x.Sent().Bytes - before - size; sent > size/20 {
			t.Errorf("%d bytes were sent again into an outage of ten minutes", sent)
		}
		x.SetDown(false)
		start := time.Now()
		for b.arrived() < 1<<20+size && time.Since(start) < time.Hour {
			time.Sleep(10 * time.Millisecond)
		}
		if !bytes.Equal(b.received()[1<<20:], content(size)) {
			t.Errorf("%d bytes arrived", b.arrived())
		}
		if d := time.Since(start); d > maxTimeout+time.Second {
			t.Errorf("the transfer took %v after the outage", d)
		}
	})
}

// A stalling carrier has a WriteTo wait now and then.
type stalling struct {
	*enginetest.Conn
	writes int
	stall  time.Duration
}

func (s *stalling) WriteTo(p []byte, to net.Addr) (int, error) {
	if s.writes++; s.writes%500 == 0 {
		time.Sleep(s.stall)
	}
	return s.Conn.WriteTo(p, to)
}

// TestRepairsWhileStalled: where the carrier stalls for longer than a time-out, what it
// loses for good costs no time-out for each, in both directions at once: 20 s go where
// nothing is lost.
func TestRepairsWhileStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 24 << 20
		path := enginetest.Path{Delay: 50 * time.Millisecond, Rate: 100e6 / 8, Queue: 1 << 20, Loss: 0.01}
		x, y := enginetest.Connect(path, path, 1)
		a, b := newPipe(&stalling{x, 0, 3 * time.Second}, true), newPipe(&stalling{y, 0, 2 * time.Second}, false)
		defer a.Close()
		defer b.Close()
		start := time.Now()
		for _, p := range []*pipe{a, b} {
			p.Append()
			p.group.Go(func() { stream{p.Conn}.Write(make([]byte, size)) })
		}
		for (a.arrived() < size || b.arrived() < size) && time.Since(start) < time.Hour {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(start); took > 40*time.Second {
			t.Errorf("%d and %d bytes of %d arrived in %v", a.arrived(), b.arrived(), size, took)
		}
	})
}

// TestOutageThatLosesNothing: what a carrier delivers when it is well again is not sent
// twice, however late it comes, and what is written meanwhile goes on.
func TestOutageThatLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 8 << 20
		a, b, x := connect(t, enginetest.Path{Delay: 50 * time.Millisecond, Rate: 8 << 20, Repair: 100 * time.Millisecond})
		a.send(content(size))
		time.Sleep(300 * time.Millisecond)
		x.SetDown(true)
		for range 10 {
			time.Sleep(time.Minute)
			a.send(content(1 << 20))
		}
		x.SetDown(false)
		for b.arrived() < size+10<<20 {
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		const tries = 10 * time.Minute / maxTimeout // and some before those
		if again := x.Sent().Bytes - (size + 10<<20) - (size+10<<20)/40; again > int(tries+10)*3*SegmentSize {
			t.Errorf("%d bytes were sent twice", again)
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
		a.Conn.mu.Lock()
		if a.flight.una != a.flight.next {
			t.Error("a lone segment was not acknowledged in time")
		}
		a.Conn.mu.Unlock()
		time.Sleep(restAfter) // a timer that was set for a repair may still run
		for _, p := range []*pipe{a, b} {
			p.Conn.mu.Lock()
			if wait := p.wait(time.Now()); wait < never || p.runs || time.Until(p.alarm) < never/2 {
				t.Errorf("a session that is quiet wants to wake up in %v, runs %t or is woken up at %v", wait, p.runs, p.alarm)
			}
			p.Conn.mu.Unlock()
		}
		if n := x.Sent().Datagrams; n != 1 {
			t.Errorf("%d datagrams for one message", n)
		}
	})
}

// TestBacklogFollowsTheCarrier: what is said next waits behind little.
func TestBacklogFollowsTheCarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := connect(t, enginetest.Path{Rate: 1 << 20, Queue: 32 << 10})
		a.Append()
		var writer sync.WaitGroup
		writer.Go(func() { stream{a.Conn}.Write(content(8 << 20)) })
		time.Sleep(3 * time.Second)
		a.Conn.mu.Lock()
		held := a.waiting() + a.packed.bytes
		a.Conn.mu.Unlock()
		if held > 4*minBacklog {
			t.Errorf("%d bytes wait in front of a slow carrier", held)
		}
		time.Sleep(time.Minute)
		writer.Wait()
		if !bytes.Equal(b.received(), content(8<<20)) {
			t.Errorf("%d bytes arrived", b.arrived())
		}
	})
}

// TestFarewell: the other side learns that the session has ended.
func TestFarewell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := connect(t, enginetest.Path{Delay: 50 * time.Millisecond})
		a.Close()
		a.Close()
		<-b.Done()
		b.Close()
		if !errors.Is(a.Err(), engine.ErrClosed) || !errors.Is(b.Err(), errPeerClosed) || !errors.Is(b.Err(), engine.ErrReset) {
			t.Errorf("ended with %v and %v", a.Err(), b.Err())
		}
	})
}

// TestBuffers: kcp-go's buffers hold a segment. They are from a pool, so a
// smaller one shows here and not only in use.
func TestBuffers(t *testing.T) {
	x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	a, b := prepare(x, true), prepare(y, false)
	if n := a.kcp.Send(make([]byte, SegmentSize)); n != 0 {
		t.Fatalf("Send returned %d for a full segment", n)
	}
	flush(a.kcp, kcp.IKCP_FLUSH_FULL)
	if len(a.packed.list) != 1 {
		t.Fatalf("%d datagrams for one segment", len(a.packed.list))
	}
	if n := b.kcp.Input(a.packed.list[0], kcp.IKCP_PACKET_REGULAR, false); n != 0 {
		t.Fatalf("Input returned %d for a full segment", n)
	}
	if n := b.kcp.PeekSize(); n != SegmentSize {
		t.Errorf("%d bytes arrived of %d", n, SegmentSize)
	}
}

// TestFlush: KCP's flush puts out at once what it was given and what it has to
// acknowledge, which no exported method does.
func TestFlush(t *testing.T) {
	var out []byte
	k := kcp.NewKCP(conversation, func(p []byte, n int) { out = append(out, p[:n]...) })
	k.NoDelay(1, 0, 2, 1)
	k.Input(encode(kcp.IKCP_CMD_PUSH, 7, 0, 0, []byte("x")), kcp.IKCP_PACKET_REGULAR, false)
	k.Send([]byte("hello"))
	if len(out) != 0 {
		t.Fatalf("%d bytes were put out before the flush", len(out))
	}
	flush(k, kcp.IKCP_FLUSH_FULL)
	if want := headerSize + headerSize + len("hello"); len(out) != want {
		t.Fatalf("%d bytes were put out; want %d: an acknowledgement and a segment", len(out), want)
	}
	if out[4] != kcp.IKCP_CMD_ACK || out[headerSize+4] != kcp.IKCP_CMD_PUSH {
		t.Errorf("%x was put out; want an acknowledgement and a segment", out)
	}
}

// encode is one KCP segment on the wire.
func encode(cmd byte, ts, sn, una uint32, body []byte) []byte {
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

// TestWindowsInOneDatagram: if the segments of a datagram announce different windows, as
// those do that were put out before and after a Read, the last one counts for KCP as
// well as for the Conn. Else the writer finds for ever that KCP may send, which does not.
func TestWindowsInOneDatagram(t *testing.T) {
	announce := func(cmd byte, una uint32, wnd uint16) []byte {
		p := encode(cmd, 0, 0, una, nil)
		binary.LittleEndian.PutUint16(p[wndAt:], wnd)
		return p
	}
	for _, wnd := range []uint16{0, 100} {
		x, _ := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
		c := prepare(x, true) // nothing runs
		c.Append([]byte("one"))
		c.flush(time.Now())
		c.receive(append(announce(kcp.IKCP_CMD_ACK, 1, 100-wnd), announce(kcp.IKCP_CMD_WINS, 1, wnd)...), nil)
		c.Append([]byte("two"))
		c.flush(time.Now())
		if sent := c.flight.next == 2; c.flight.una != 1 || sent != (wnd > 0) {
			t.Errorf("a window of %d segments: una is %d, and more was sent: %t", wnd, c.flight.una, sent)
		}
		c.timer.Stop()
	}
}

func TestScanRefuses(t *testing.T) {
	good := encode(kcp.IKCP_CMD_PUSH, 0, 0, 0, []byte("x"))
	var b block
	if _, ok := b.scan(good); !ok {
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
		"no data":             encode(kcp.IKCP_CMD_PUSH, 0, 0, 0, nil),
		"longer than buffers": encode(kcp.IKCP_CMD_PUSH, 0, 0, 0, make([]byte, SegmentSize+1)),
		"length above 2^31":   change(23, 0xFF),
		"una of the future":   encode(kcp.IKCP_CMD_PUSH, 0, 0, 1, []byte("x")),
		"ack of the future":   encode(kcp.IKCP_CMD_ACK, 0, 0, 0, nil),
		"window with data":    encode(kcp.IKCP_CMD_WINS, 0, 0, 0, []byte("x")),
		"question with data":  encode(kcp.IKCP_CMD_WASK, 0, 0, 0, []byte("x")),
	} {
		if _, ok := b.scan(p); ok {
			t.Errorf("%s: was accepted", name)
		}
	}
}

// FuzzInput: no datagram makes a session panic or doubt what it has sent, and
// what is accepted is accepted by KCP as well.
func FuzzInput(f *testing.F) {
	f.Add(encode(kcp.IKCP_CMD_PUSH, 1, 0, 3, []byte("hello")))
	f.Add(append(encode(kcp.IKCP_CMD_ACK, 1, 2, 1, nil), encode(kcp.IKCP_CMD_PUSH, 7, 5, 2, []byte("x"))...))
	f.Add(encode(kcp.IKCP_CMD_ACK, 1<<31, 1<<31, 1<<31, nil))
	f.Add(append(encode(kcp.IKCP_CMD_WASK, 0, 0, 0, nil), encode(kcp.IKCP_CMD_WINS, 0, 0, 0, nil)...))
	f.Add([]byte{0})
	x, _ := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, client := range []bool{true, false} {
			a := prepare(x, client)
			defer a.timer.Stop() // it would keep a for ever
			a.Append(content(10 * (SegmentSize - 1)))
			a.flush(time.Now()) // ten segments on their way
			if len(p) > engine.MaxDatagram {
				p = p[:engine.MaxDatagram]
			}
			for range 3 {
				_, good := a.scan(bytes.Clone(p))
				if fresh := prepare(x, client); good && fresh.kcp.Input(p, kcp.IKCP_PACKET_REGULAR, false) < 0 {
					t.Errorf("KCP refuses what scan accepts: %x", p)
				} else {
					fresh.timer.Stop()
				}
				a.receive(bytes.Clone(p), nil)
				if una, next := a.flight.una, a.flight.next; una > next || next > 10 {
					t.Errorf("una %d, next %d of 10 segments", una, next)
				}
				if a.Err() == nil {
					a.flush(time.Now())
				}
			}
			got := make([]byte, 4*engine.MaxDatagram)
			if n, _ := a.recv(got, nil); n > 3*engine.MaxDatagram {
				t.Errorf("%d bytes arrived in a datagram of %d", n, len(p))
			}
			a.end(markEnd | markStop)
			a.receive(bytes.Clone(p), nil)
			if n := a.kcp.PeekSize(); n >= 0 && a.Err() == nil {
				t.Errorf("%d bytes wait in a stream that is closed", n)
			}
		}
	})
}
