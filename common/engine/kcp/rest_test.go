package kcp

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/engine/enginetest"
)

// resumed is a Conn that has sent and received so many segments, and rests.
func resumed(c *Conn, sent, came uint32) *Conn {
	c.flight.una, c.flight.next = sent, sent
	c.taken, c.came = came, came
	c.rest()
	return c
}

// TestRest: a conversation on which nothing is said rests, on both sides, as if it had
// held nothing, and goes on as if it had not rested, wherever the numbers are.
func TestRest(t *testing.T) {
	for name, path := range map[string]enginetest.Path{
		"clean":    {Delay: 50 * time.Millisecond},
		"lossy":    {Delay: 50 * time.Millisecond, Loss: 0.05},
		"repaired": {Delay: 50 * time.Millisecond, Rate: 8 << 20, Queue: 1 << 20, Loss: 0.02, Repair: 400 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x, y := enginetest.Connect(path, path, 1)
				var ends []*pipe
				for i, pc := range []*enginetest.Conn{x, y} {
					p := &pipe{Conn: resumed(prepare(pc, i == 0), 1<<32-10, 1<<32-10)}
					p.in.Grow(16 << 20)
					p.start()
					ends = append(ends, p)
				}
				var want bytes.Buffer
				for _, size := range []int{1, 4 << 20, 100, 1 << 20} {
					want.Write(content(size))
					for _, p := range ends {
						p.send(content(size))
					}
					for _, p := range ends {
						for begun := time.Now(); p.arrived() < want.Len(); time.Sleep(100 * time.Millisecond) {
							if time.Since(begun) > time.Hour {
								t.Fatalf("%d of %d bytes in an hour", p.arrived(), want.Len())
							}
						}
					}
					time.Sleep(2*maxTimeout + restAfter)
					synctest.Wait()
					for i, pc := range []*enginetest.Conn{x, y} {
						p := ends[i]
						p.Conn.mu.Lock()
						if p.kcp != resting || pc.Held() != restCost {
							t.Errorf("end %d after %d bytes: %d bytes are held, at rest: %t", i, size, pc.Held(), p.kcp == resting)
						}
						p.Conn.mu.Unlock()
					}
				}
				for i, p := range ends {
					if !bytes.Equal(p.received(), want.Bytes()) {
						t.Errorf("end %d: wrong bytes arrived", i)
					}
					p.Close()
				}
			})
		})
	}
}

// TestRestOfDuplicates: what came before the rest and comes again is acknowledged and
// not read again, and an old acknowledgement acknowledges nothing new.
func TestRestOfDuplicates(t *testing.T) {
	x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	a, b := prepare(x, true), prepare(y, false)
	said := func(c *Conn) (d []byte) {
		c.flush(time.Now())
		for _, p := range c.packed.list {
			d = append(d, p...)
		}
		c.packed = packed{}
		return d
	}
	read := func(c *Conn) string {
		p := make([]byte, 100)
		n, err := c.recv(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(p[:n])
	}
	pass := func(d []byte, to *Conn) { to.receive(bytes.Clone(d), nil) }
	a.Append([]byte("one"))
	first := said(a)
	pass(first, b)
	if got := read(b); got != "one" {
		t.Fatalf("read %q", got)
	}
	firstAck := said(b)
	pass(firstAck, a)
	if !a.isStill() || !b.isStill() {
		t.Fatal("something is under way")
	}
	a.rest()
	b.rest()
	pass(first, b)
	if got := read(b); got != "" || b.owes.IsZero() {
		t.Errorf("read %q again; an acknowledgement is owed: %t", got, !b.owes.IsZero())
	}
	a.Append([]byte("two"))
	second := said(a)
	pass(firstAck, a)
	if a.flight.una != 1 {
		t.Errorf("una is %d: an old acknowledgement counts", a.flight.una)
	}
	pass(second, b)
	if got := read(b); got != "two" {
		t.Errorf("read %q", got)
	}
	pass(said(b), a)
	if a.flight.una != 2 {
		t.Errorf("una is %d of 2", a.flight.una)
	}
}

// FuzzShift: whatever is shifted there and back is as it was.
func FuzzShift(f *testing.F) {
	f.Add(encode(0x51, 0, 1, 2, []byte("x")), uint32(1), uint32(1<<31))
	f.Add(append(encode(0x52, 0, 1, 2, nil), 1, 2, 3), uint32(5), uint32(0))
	f.Fuzz(func(t *testing.T, p []byte, along, against uint32) {
		was := bytes.Clone(p)
		s, _ := cut(p)
		if s == nil {
			return
		}
		s.shift(along, against)
		s.shift(-along, -against)
		if !bytes.Equal(p, was) {
			t.Errorf("%x became %x", was, p)
		}
	})
}

// BenchmarkRest lets KCP's control block go, and makes another one.
func BenchmarkRest(b *testing.B) {
	x, _ := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	c := prepare(x, true)
	b.ReportAllocs()
	for b.Loop() {
		c.rest()
		c.control()
	}
}
