//go:build !race

// The race detector has other buffers than the program without it.

package mux

import (
	"bytes"
	"math/bits"
	"runtime"
	"testing"
	"testing/synctest"
)

// TestHeldIsMemory: what the account says is what is held, within a quarter, and
// nothing when nothing is.
func TestHeldIsMemory(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("costs are those of pointers of 64 bits; others take less")
	}
	// unread lets that many frames of so many bytes come on a stream.
	unread := func(n, size int) func(a *memory) {
		return func(a *memory) { a.Write(bytes.Repeat(frame(cmdPSH, 3, make([]byte, size)...), n)) }
	}
	for _, test := range []struct {
		name string
		fill func(a *memory)
	}{
		{"frames of a byte, queue almost full", unread(1<<16, 1)},
		{"frames of a byte, queue half empty", unread(1<<15+1, 1)},
		{"frames of 100 bytes", unread(40000, 100)},
		{"frames of 1000 bytes", unread(4000, 1000)},
		{"full frames", unread(200, frameSize)},
		{"frames of a little more than a power of two", unread(400, 1<<13+1)},
		{"streams, and more that are refused", func(a *memory) {
			for i := range 4000 {
				a.Write(frame(cmdSYN, uint32(5+2*i)))
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				a, b := connect(1 << 20)
				server := start(t, b, false)
				a.Write(frame(cmdSYN, 3))
				st := accept(t, server)
				drained := func() {
					synctest.Wait() // smux has taken in all
					a.out.Clear()
					a.in.Clear()
				}
				drained()
				idle, before := b.held.Load(), heap()
				test.fill(a)
				drained()
				grown, held := heap()-before, b.held.Load()-idle
				t.Logf("%d held, the heap has grown by %d", held, grown)
				if f := float64(held) / float64(grown); f < 0.75 || f > 1.25 {
					t.Errorf("%d held, the heap has grown by %d: %.2f", held, grown, f)
				}
				st.Close()
				for len(server.arrivals) > 0 {
					<-server.arrivals
					server.use()
					st, err := server.next()
					server.life.RUnlock()
					if err != nil {
						t.Fatal(err)
					}
					st.Close()
				}
				if n := b.held.Load(); n != sessionCost || server.held != 0 {
					t.Errorf("%d held when everything is closed; want %d", n, sessionCost)
				}
			})
		})
	}
}

// TestSessionCost: what an idle session takes is what its price says, and so it is at
// rest.
func TestSessionCost(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("costs are those of pointers of 64 bits; others take less")
	}
	bubble(t, func(t *testing.T) {
		const sessions = 100
		const stack = 2 << 10 // of a goroutine that waits; the runtime's own count is of spans, which others leave behind half empty
		memory := func() int64 { return heap() + int64(runtime.NumGoroutine())*stack }
		before := memory()
		var all []*Session
		for range sessions {
			a, b := connect(1 << 20)
			all = append(all, start(t, b, false))
			a.Write(frame(cmdNOP, 0))
		}
		expect := func(what string, cost float64) {
			each := (memory() - before) / sessions
			t.Logf("%d bytes for each of %d %s sessions", each, sessions, what)
			if f := float64(each) / cost; f < 0.75 || f > 1.25 {
				t.Errorf("%d bytes for each %s session; want %.0f", each, what, cost)
			}
		}
		synctest.Wait()
		expect("idle", sessionCost)
		for range 2 { // it was busy at first
			for _, s := range all {
				hurry(s)
			}
			synctest.Wait()
		}
		expect("resting", restCost)
	})
}

// heap is what the heap holds, but for pools.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
