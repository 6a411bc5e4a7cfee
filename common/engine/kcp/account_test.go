package kcp

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xtaci/kcp-go/v5"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
)

// heap is what the heap holds.
func heap() int {
	runtime.GC()
	runtime.GC() // once more for what the pools hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// expectHeld fails if the carrier was told much else than what the heap grew by.
func expectHeld(t *testing.T, held, grown int) {
	t.Helper()
	if 4*held < 3*grown || 4*held > 5*grown {
		t.Errorf("the heap has grown by %d bytes and the carrier was told of %d", grown, held)
	}
}

// early is a datagram full of segments of one byte from number sn on, or of sn alone.
func early(sn uint32, repeat bool) (d []byte) {
	for len(d)+headerSize+1 <= engine.MaxDatagram {
		d = append(d, encode(kcp.IKCP_CMD_PUSH, 0, sn, 0, []byte{0})...)
		if !repeat {
			sn++
		}
	}
	return d
}

// TestHeldEarly: who fills KCP's receive buffer with segments of a byte is charged
// for the buffers that they take.
func TestHeldEarly(t *testing.T) {
	const sessions = 2
	before := heap()
	var all []*Conn
	held := 0
	for range sessions {
		_, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
		c := prepare(y, false) // writes nothing: nothing runs
		for sn := uint32(1); sn < 16700; sn += engine.MaxDatagram / (headerSize + 1) {
			d := early(sn, false)
			c.receive(d, nil)
		}
		c.packed = packed{} // acknowledgements have their own test
		c.count()
		held += y.Held()
		all = append(all, c)
	}
	expectHeld(t, held, heap()-before)
	runtime.KeepAlive(all)
}

// TestFloodStops: who sends the same again and again and takes nothing is not listened
// to any more before acknowledgements pile up, is charged for them, and is listened to
// again when it has taken them. They are never more than what it sends.
func TestFloodStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{Queue: 16 << 10}, 1)
		c := prepare(y, false)
		c.group.Go(c.drive)
		d := early(1, true)
		before := heap()
		came := 0
		flood := func() {
			for range 5000 {
				c.receive(bytes.Clone(d), nil)
				came += len(d)
			}
		}
		flood()
		synctest.Wait()
		expectHeld(t, y.Held(), heap()-before)
		c.mu.Lock()
		waiting := c.packed.bytes
		c.mu.Unlock()
		if most := maxPacked + engine.MaxDatagram; waiting > most || waiting < most/2 {
			t.Errorf("%d bytes of acknowledgements wait; want %d at most, and some", waiting, most)
		}
		drain := func() (n int) {
			for buf := make([]byte, engine.MaxDatagram); ; {
				x.SetReadDeadline(time.Now().Add(time.Second))
				got, _, err := x.ReadFrom(buf)
				if err != nil {
					return n
				}
				n += got
			}
		}
		sent := drain()
		flood()
		again := drain()
		if sent > came || again < sent/2 {
			t.Errorf("%d bytes came, and %d and %d went", came, sent, again)
		}
		if left := y.Held() - sessionCost; left > 4*bufferCost {
			t.Errorf("%d bytes are held for one segment", left)
		}
		c.Close()
	})
}

// TestSessionCost: what a session takes that holds nothing is what its price says, and
// so it is at rest.
func TestSessionCost(t *testing.T) {
	const pairs = 100
	const stack = 2 << 10 // of a goroutine that waits
	memory := func() int { return heap() + runtime.NumGoroutine()*stack }
	var ends [2 * pairs]*enginetest.Conn
	for i := range pairs {
		ends[2*i], ends[2*i+1] = enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	}
	before := memory()
	var all []*Conn
	for i := range pairs {
		x, y := ends[2*i], ends[2*i+1]
		a, b := NewConn(x, true), NewConn(y, false)
		defer a.Close()
		defer b.Close()
		a.Append([]byte("ping"))
		b.Read(make([]byte, 4))
		all = append(all, a, b)
	}
	expect := func(what string, cost int) {
		each := (memory() - before) / len(all)
		t.Logf("%d bytes for each of %d sessions%s", each, len(all), what)
		if 4*each < 3*cost || 4*each > 5*cost {
			t.Errorf("%d bytes for each session%s; want %d", each, what, cost)
		}
	}
	expect("", sessionCost)
	for _, c := range all {
		for still := false; !still; {
			c.mu.Lock()
			if still = c.isStill(); still { // an acknowledgement may still be owed
				c.rest()
			}
			c.mu.Unlock()
			runtime.Gosched()
		}
	}
	expect(" at rest", restCost)
}

// TestHeldEnds: what was read and acknowledged is held no more.
func TestHeldEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := enginetest.Path{Delay: 50 * time.Millisecond, Rate: 500e6 / 8, Queue: 8 << 20}
		x, y := enginetest.Connect(path, path, 1)
		a, b := newPipe(x, true), newPipe(y, false)
		defer a.Close()
		defer b.Close()
		var most int
		a.send(content(8 << 20))
		for b.arrived() < 8<<20 {
			time.Sleep(time.Millisecond)
			most = max(most, x.Held())
		}
		time.Sleep(time.Second)
		// What stays are the places in KCP's queues.
		if most < 8<<20 || x.Held() > sessionCost+most/10 || y.Held() > sessionCost+most/10 {
			t.Errorf("%d bytes are held by who sent, %d at most before, and %d by who read", x.Held(), most, y.Held())
		}
		time.Sleep(2 * restAfter)
		if x.Held() != restCost || y.Held() != restCost {
			t.Errorf("at rest %d bytes are held by who sent, and %d by who read", x.Held(), y.Held())
		}
	})
}

// TestBothStalled: two sides that send all that they can do not wait for each
// other after a carrier that took nothing for long.
func TestBothStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 32 << 20
		path := enginetest.Path{Delay: 50 * time.Millisecond, Rate: 500e6 / 8, Queue: 256 << 10, Loss: 0.01, Repair: 200 * time.Millisecond}
		a, b, x := connect(t, path)
		for _, p := range []*pipe{a, b} {
			p.Append()
			p.group.Go(func() { stream{p.Conn}.Write(make([]byte, size)) })
		}
		for range 3 {
			time.Sleep(300 * time.Millisecond)
			x.SetDown(true)
			time.Sleep(10 * time.Minute)
			x.SetDown(false)
		}
		for start := time.Now(); a.arrived() < size || b.arrived() < size; time.Sleep(time.Second) {
			if time.Since(start) > time.Hour {
				t.Fatalf("%d and %d bytes arrived of %d", a.arrived(), b.arrived(), size)
			}
		}
	})
}

// FuzzReceived: a received never knows of less than KCP holds, in whatever order
// segments come and are read, and of as much when they come in order, once.
func FuzzReceived(f *testing.F) {
	f.Add(uint64(1), uint32(0))
	f.Add(uint64(2), uint32(Window))
	f.Fuzz(func(t *testing.T, seed uint64, spread uint32) {
		b := block{kcp: resting, window: Window, output: func([]byte, int) {}}
		has := make(map[uint32]bool) // segments that KCP holds
		var next uint32              // that it waits for
		advance := func() {
			for has[next] && next-b.taken < Window {
				next++
			}
		}
		random := rand.New(rand.NewPCG(seed, seed))
		spread %= 3 * Window
		for range 2 * Window {
			if random.IntN(8) == 0 && b.kcp.PeekSize() >= 0 {
				b.kcp.Recv(make([]byte, 1))
				delete(has, b.taken)
				b.read()
			} else {
				sn := next
				if spread > 0 {
					sn += uint32(random.IntN(4)+1) / 4 * random.Uint32N(spread)
					sn -= uint32(random.IntN(4)+1) / 4 * random.Uint32N(spread)
				}
				if sn-next < Window {
					has[sn] = true
				}
				p := encode(kcp.IKCP_CMD_PUSH, 0, sn, 0, []byte{0})
				sum, ok := b.scan(p)
				if !ok {
					t.Fatal("a good segment was refused")
				}
				b.came, b.fresh = sum.came, b.fresh+sum.fresh
				b.control().Input(p, kcp.IKCP_PACKET_REGULAR, false)
			}
			advance()
			if (b.kcp.PeekSize() >= 0) != (next != b.taken) {
				t.Fatalf("%d segments should be ready, and KCP's next has %d bytes", next-b.taken, b.kcp.PeekSize())
			}
			if said := b.held(); said < len(has) || spread == 0 && said > len(has) {
				t.Fatalf("%d segments are said to be held, and %d are", said, len(has))
			}
		}
	})
}

// TestAccountCosts: the sizes that the account knows are those of this runtime.
func TestAccountCosts(t *testing.T) {
	if n := cap(append([]byte(nil), make([]byte, SegmentSize)...)); n != bufferCost {
		t.Errorf("a buffer takes %d bytes", n)
	}
}
