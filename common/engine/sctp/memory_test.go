//go:build !race

// The race detector has other buffers than the program without it.

package sctp

import (
	"math/bits"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"turbotunnel/common/engine/enginetest"
)

// memory is what the heap and the stacks hold, but for pools. Of a stack it has the
// usual size: the runtime's own count is of spans, which others leave behind half empty.
func memory() int64 {
	const stack = 3 << 10
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc) + int64(runtime.NumGoroutine())*stack
}

// settled waits until c holds so many messages that were not read.
func settled(c *conn, messages int) {
	for came := -1; came < messages; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		came = len(c.in.came)
		c.mu.Unlock()
	}
}

// drain reads and throws away what comes.
func drain(a *enginetest.Conn) {
	for p := make([]byte, 9000); ; {
		if _, _, err := a.ReadFrom(p); err != nil {
			return
		}
	}
}

func expectCost(t *testing.T, held, grown int64) {
	t.Helper()
	t.Logf("%d held, memory has grown by %d", held, grown)
	if f := float64(held) / float64(grown); f < 0.75 || f > 1.25 {
		t.Errorf("%d held, memory has grown by %d: %.2f", held, grown, f)
	}
}

// expectFreed wants of some thousand messages all but one to be let go, and what they were in.
func expectFreed(t *testing.T, grown int64) {
	t.Helper()
	if grown > 64<<10 {
		t.Errorf("memory has grown by %d for one message", grown)
	}
}

// TestHeldIsMemory: what the account says is what is held, within a quarter.
func TestHeldIsMemory(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("costs are those of pointers of 64 bits; others take less")
	}
	for name, test := range map[string]struct {
		first, step, size int
	}{
		"unread":               {0, 1, maxMessage},
		"unread, of a byte":    {0, 1, 1},
		"out of order":         {1, 1, maxMessage},
		"out of order, a byte": {1, 1, 1},
		"every second, a byte": {1, 2, 1},
		"every second, 100":    {1, 2, 100},
		"out of order, 1000":   {1, 1, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			enginetest.Bubble(t, func(t *testing.T) {
				a, b := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
				server := newEnd(t, b, false)
				go drain(a)
				time.Sleep(10 * time.Millisecond)
				before, idle := memory(), b.Held()
				sent := 0
				message := strings.Repeat("x", test.size)
				for i := test.first; i < maxOutstanding; i += test.step {
					sent++
					a.WriteTo(packet(data(firstTSN+uint32(i), message)), a.RemoteAddr())
				}
				settled(server, sent)
				time.Sleep(10 * time.Millisecond)
				expectCost(t, int64(b.Held()-idle), memory()-before)
				if test.first == 0 {
					receive(t, server, (sent-1)*test.size)
					expectFreed(t, memory()-before)
				}
				a.Close()
			})
		})
	}
}

// TestHeldScattered: a byte far ahead does not keep the packet that it came in.
func TestHeldScattered(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		a, b := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
		server := newEnd(t, b, false)
		go drain(a)
		message := strings.Repeat("x", maxMessage-100)
		before, idle := memory(), b.Held()
		const packets = 2000
		for i := range packets {
			far := data(firstTSN+uint32(packets+1+i), "x")
			a.WriteTo(packet(data(firstTSN+uint32(i), message), far), a.RemoteAddr())
			receive(t, server, len(message))
		}
		held, grown := int64(b.Held()-idle), memory()-before
		t.Logf("%d held, memory has grown by %d", held, grown)
		if held != packets*(1+inCost) || grown > 4*held {
			t.Errorf("%d held, memory has grown by %d", held, grown)
		}
		a.Close()
	})
}

// say has c send messages of size bytes, one in a packet, which a takes and does not
// acknowledge.
func say(c *conn, a net.PacketConn, messages, size int) {
	for range messages {
		c.Append(make([]byte, size))
		for c.waiting() > 0 {
			time.Sleep(10 * time.Microsecond)
		}
		a.ReadFrom(make([]byte, 9000))
	}
}

// TestHeldUnacknowledged: what was sent and not acknowledged is held, too, and
// nothing when all was.
func TestHeldUnacknowledged(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("costs are those of pointers of 64 bits; others take less")
	}
	enginetest.Bubble(t, func(t *testing.T) {
		for _, size := range []int{1, 1000, maxMessage} {
			a, b := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
			server := newEnd(t, b, false)
			time.Sleep(10 * time.Millisecond)
			before, idle := memory(), b.Held()
			say(server, a, 1000, size)
			expectCost(t, int64(b.Held()-idle), memory()-before)
			a.WriteTo(packet(sack(999)), a.RemoteAddr())
			time.Sleep(10 * time.Millisecond)
			expectFreed(t, memory()-before)
			a.WriteTo(packet(sack(1000)), a.RemoteAddr())
			for b.Held() != idle {
				time.Sleep(time.Millisecond)
			}
			a.Close()
		}
	})
}

// TestSessionCost: what an idle session takes is what its price says.
func TestSessionCost(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("costs are those of pointers of 64 bits; others take less")
	}
	enginetest.Bubble(t, func(t *testing.T) {
		const sessions = 50
		before := memory()
		for range sessions {
			_, b := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
			newEnd(t, b, false)
		}
		time.Sleep(10 * time.Millisecond)
		expectCost(t, sessions*sessionCost, memory()-before)
	})
}

// TestHeldBehindGap: what the other side has before its turn is held as well, until
// the gap in front of it is filled.
func TestHeldBehindGap(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("costs are those of pointers of 64 bits; others take less")
	}
	enginetest.Bubble(t, func(t *testing.T) {
		a, b := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
		server := newEnd(t, b, false)
		time.Sleep(10 * time.Millisecond)
		before, idle := memory(), b.Held()
		say(server, a, 1000, maxMessage)
		go drain(a)
		a.WriteTo(packet(sack(firstTSN-1, 2, 1000)), a.RemoteAddr())
		for reported := false; !reported; time.Sleep(time.Millisecond) {
			server.mu.Lock()
			reported = server.out.reported != 0
			server.mu.Unlock()
		}
		held, grown := int64(b.Held()-idle), memory()-before
		t.Logf("%d held, memory has grown by %d", held, grown)
		if 4*held < 3*grown {
			t.Errorf("%d held, memory has grown by %d", held, grown)
		}
		a.Close()
	})
}
