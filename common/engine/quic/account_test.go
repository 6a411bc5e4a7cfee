package quic

import (
	"io"
	"math"
	"math/bits"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/qlog"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
)

// gate is a client's end of the network that loses what the client writes, or
// keeps it until it is told in which order to send it.
type gate struct {
	*enginetest.Conn
	mu   sync.Mutex
	lose bool
	keep bool
	kept [][]byte
}

func (g *gate) WriteTo(p []byte, to net.Addr) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.lose:
		return len(p), nil
	case g.keep:
		g.kept = append(g.kept, slices.Clone(p))
		return len(p), nil
	}
	return g.Conn.WriteTo(p, to)
}

func (g *gate) set(lose, keep bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lose, g.keep = lose, keep
}

// reverse sends what was kept, the last first and the first never, and loses what
// follows.
func (g *gate) reverse() {
	g.set(true, false)
	for _, p := range slices.Backward(g.kept[1:]) {
		g.Conn.WriteTo(p, g.RemoteAddr())
	}
	g.kept = nil
}

// heap is what the heap holds, and the stacks.
func heap() int {
	for range 3 { // the pools, and what hangs on cleanups
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// attacked is a session whose client is hostile.
type attacked struct {
	t              *testing.T
	near           *gate
	far            *enginetest.Conn
	client, server *session
}

func attack(t *testing.T) *attacked {
	t.Helper()
	x, y := enginetest.Connect(enginetest.Path{Delay: delay}, enginetest.Path{Delay: delay}, 1)
	a := &attacked{t: t, near: &gate{Conn: x}, far: y}
	a.client = newClient(a.near)
	a.server = newServer(y)
	t.Cleanup(func() {
		a.disappear()
		a.server.Close()
	})
	return a
}

// disappear ends the client, and leaves nothing of it in memory.
func (a *attacked) disappear() {
	if a.client != nil {
		a.near.set(true, false)
		a.client.Close()
		a.client = nil
	}
}

// write writes n bytes, in writes of size bytes that each make a datagram.
func (a *attacked) write(st engine.Stream, n, size int) {
	for ; n > 0; n -= size {
		if _, err := st.Write(make([]byte, size)); err != nil {
			a.t.Error(err)
			return
		}
		if size < packetSize {
			time.Sleep(time.Microsecond)
			synctest.Wait()
		}
	}
}

// TestHeld: what a server says that it holds is what it holds, whatever a client
// does; and nothing more when all was read and closed.
func TestHeld(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("costs are those of pointers of 64 bits; others take less")
	}
	const mega = 1 << 20
	eight := make([]byte, 8*mega)
	for _, test := range []struct {
		name string
		run  func(a *attacked, c, s engine.Stream)
	}{
		{"Unread", func(a *attacked, c, _ engine.Stream) { a.write(c, 8*mega, 32<<10) }},
		{"MiddlingFrames", func(a *attacked, c, _ engine.Stream) { a.write(c, mega, smallFrame) }},
		{"OneByteFrames", func(a *attacked, c, _ engine.Stream) { a.write(c, 20000, 1) }},
		{"OutOfOrder", func(a *attacked, c, _ engine.Stream) {
			a.near.set(false, true)
			a.write(c, 18000, 1)
			a.near.reverse()
		}},
		{"ManyFramesInAPacket", func(a *attacked, _, _ engine.Stream) {
			var streams []engine.Stream
			for range engine.MaxStreams - 1 {
				streams = append(streams, open(a.t, a.client))
			}
			time.Sleep(time.Second)
			for range 200 {
				for _, st := range streams {
					st.Write([]byte{1})
				}
				time.Sleep(10 * time.Millisecond)
			}
			a.near.set(true, false)
		}},
		{"Unacknowledged", func(a *attacked, c, s engine.Stream) {
			go io.Copy(io.Discard, c)
			a.near.set(true, false)
			go s.Write(eight) // the window at first has room for half
		}},
		{"ClosedUnread", func(a *attacked, c, s engine.Stream) {
			a.write(c, 8*mega, 32<<10)
			time.Sleep(time.Second)
			a.near.set(true, false) // and so never ends the stream
			s.Close()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := attack(t)
				c, s := exchange(t, a.client, a.server)
				time.Sleep(time.Second)
				idle, before := a.far.Held(), heap()
				test.run(a, c, s)
				time.Sleep(time.Second)
				a.disappear()
				c = nil
				said, grown := a.far.Held()-idle, heap()+sessionCost-before
				t.Logf("idle %d, said %d, grown %d: %.2f", idle, said, grown, float64(said)/float64(grown))
				if ratio := float64(said) / float64(grown); math.Abs(ratio-1) > 0.25 || grown < mega {
					t.Errorf("it says %d bytes, and has %d: %.2f", said, grown, ratio)
				}
				runtime.KeepAlive(eight)
			})
		})
	}
}

// TestHeldReturns: nothing is held any more when all was read and closed.
func TestHeldReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := attack(t)
		idle := a.far.Held()
		for range 10 {
			c, s := exchange(t, a.client, a.server)
			go a.write(c, 4<<20, 32<<10)
			go a.write(s, 4<<20, 32<<10)
			for _, st := range []engine.Stream{c, s} {
				if _, err := io.CopyN(io.Discard, st, 4<<20); err != nil {
					t.Fatal(err)
				}
			}
			c.Close()
			if _, err := io.ReadAll(s); err != nil {
				t.Fatal(err)
			}
			s.Close()
		}
		c, s := exchange(t, a.client, a.server)
		a.write(c, 4<<20, 32<<10)
		time.Sleep(time.Second)
		s.Close() // unread
		c.Close()
		time.Sleep(time.Minute)
		c, s = nil, nil
		for range 10 {
			heap()
			if a.far.Held()-idle < 20<<10 {
				break
			}
			time.Sleep(time.Second)
		}
		if held := a.far.Held() - idle; held < 0 || held > 20<<10 {
			t.Errorf("%d bytes are held when all is closed", held)
		}
		if held := a.near.Held(); held != sessionCost {
			t.Errorf("the client holds %d bytes when all is closed", held)
		}
	})
}

// TestHeldUnaccepted: streams are counted that nobody has accepted, by whatever frame
// they came to be.
func TestHeldUnaccepted(t *testing.T) {
	const last = 4 * (engine.MaxStreams - 1)
	for _, frame := range []any{
		&qlog.StreamFrame{StreamID: last},
		&qlog.ResetStreamFrame{StreamID: last},
		&qlog.StopSendingFrame{StreamID: last},
		&qlog.StreamDataBlockedFrame{StreamID: last},
		&qlog.MaxStreamDataFrame{StreamID: last},
	} {
		x, _ := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
		newAccount(x).RecordEvent(qlog.PacketReceived{Frames: []qlog.Frame{{Frame: frame}}})
		if held, least := x.Held()-sessionCost, engine.MaxStreams*streamCost; held < least {
			t.Errorf("%T: %d bytes are held; want %d at least", frame, held, least)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		a := attack(t)
		exchange(t, a.client, a.server)
		time.Sleep(time.Second)
		idle := a.far.Held()
		for range engine.MaxStreams - 2 {
			a.client.conn.OpenStream()
		}
		str, err := a.client.conn.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		str.CancelRead(stopCode)
		time.Sleep(time.Second)
		if held, least := a.far.Held()-idle, (engine.MaxStreams-1)*streamCost; held < least {
			t.Errorf("%d bytes are held for streams that one frame opened; want %d at least", held, least)
		}
	})
}

// TestHeldUntilEnded: a stream that only the server has closed is held, and counted,
// until the client has ended it too.
func TestHeldUntilEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := attack(t)
		exchange(t, a.client, a.server)
		time.Sleep(time.Second)
		idle := a.far.Held()
		var accepted []engine.Stream
		for range engine.MaxStreams - 1 {
			open(t, a.client)
			accepted = append(accepted, accept(t, a.server))
		}
		time.Sleep(time.Second)
		a.near.set(true, false)
		for _, s := range accepted {
			s.Close()
		}
		time.Sleep(time.Second)
		if held, least := a.far.Held()-idle, len(accepted)*streamCost; held < least {
			t.Errorf("%d bytes are held for %d streams that the client has not ended; want %d at least", held, len(accepted), least)
		}
		a.near.set(false, false)
		accepted = nil
		for range 10 { // the opening bytes were not read: they are held until the library forgets the streams
			time.Sleep(time.Minute)
			heap()
			if a.far.Held()-idle < 20<<10 {
				break
			}
		}
		if held := a.far.Held() - idle; held < 0 || held > 20<<10 {
			t.Errorf("%d bytes are held when the client has ended them", held)
		}
	})
}

// TestHeldLost: what was lost and waits to be sent again is counted when its stream was
// closed, too.
func TestHeldLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := attack(t)
		_, s := exchange(t, a.client, a.server)
		time.Sleep(time.Second)
		idle := a.far.Held()
		const size = 3 << 20
		a.far.SetDown(true)
		a.write(s, size, size)
		s.Close()
		time.Sleep(delay)
		a.far.SetDown(false)
		for a.server.conn.ConnectionStats().PacketsLost < size/packetSize/2 {
			time.Sleep(time.Microsecond)
			synctest.Wait()
		}
		if held := a.far.Held() - idle; held < size {
			t.Errorf("%d bytes are held of %d that were lost", held, size)
		}
	})
}

// TestHeldAtRest: sessions and streams at rest take what they are said to.
func TestHeldAtRest(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("costs are those of pointers of 64 bits; others take less")
	}
	synctest.Test(t, func(t *testing.T) {
		const sessions = 50
		var all []*attacked
		said := func() (n int) {
			for _, a := range all {
				n += a.near.Held() + a.far.Held()
			}
			return n
		}
		expect := func(what string, said, grown int) {
			t.Helper()
			t.Logf("%s: said %d, grown %d", what, said, grown)
			if ratio := float64(said) / float64(grown); math.Abs(ratio-1) > 0.25 {
				t.Errorf("%s: it says %d bytes, and has %d: %.2f", what, said, grown, ratio)
			}
		}
		before := heap()
		for range sessions {
			a := attack(t)
			exchange(t, a.client, a.server)
			all = append(all, a)
		}
		time.Sleep(time.Minute)
		atRest, saidAtRest := heap(), said()
		expect("a session", saidAtRest/2/sessions, (atRest-before)/2/sessions)
		for _, a := range all[:10] {
			for range engine.MaxStreams - 1 {
				open(t, a.client)
			}
		}
		time.Sleep(time.Minute)
		n := 2 * 10 * (engine.MaxStreams - 1)
		expect("a stream", (said()-saidAtRest)/n, (heap()-atRest)/n)
		runtime.KeepAlive(all)
	})
}
