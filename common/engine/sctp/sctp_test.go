package sctp

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/sctp"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
)

func TestConformance(t *testing.T) { enginetest.Run(t, Engine{}) }

func TestAccount(t *testing.T) { enginetest.RunAccount(t, Engine{}) }

func BenchmarkEngine(b *testing.B) { enginetest.Benchmark(b, Engine{}) }

// TestWire: what both sides write is what the package comment says, to which
// watched holds it in every test; here with losses, and in full packets.
func TestWire(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		client, server, _ := connect(t, enginetest.Path{Delay: 50 * time.Millisecond, Loss: 0.02})
		for _, pair := range [][2]*conn{{client, server}, {server, client}} {
			go pair[0].send(4 << 20)
			receive(t, pair[1], 4<<20)
		}
		client.Close() // of which the other side need not hear on this path
		for _, c := range []*conn{client, server} {
			if n := c.count(); n.largest != mtu || n.again == 0 {
				t.Errorf("%+v; want full packets, and some again", n)
			}
		}
	})
}

// packet makes an SCTP packet of chunks.
func packet(chunks ...[]byte) []byte {
	p := make([]byte, packetHeaderSize)
	binary.BigEndian.PutUint32(p, 5000<<16|5000)
	for _, c := range chunks {
		p = append(p, c...)
		p = append(p, make([]byte, -len(c)&3)...)
	}
	return p
}

// data makes a DATA chunk with one message in its place.
func data(tsn uint32, message string) []byte { return chunk(tsn, 0, uint16(tsn-firstTSN), message) }

// chunk makes a DATA chunk.
func chunk(tsn uint32, stream, ssn uint16, message string) []byte {
	p := binary.BigEndian.AppendUint16([]byte{chunkData, wholeMessage}, uint16(dataHeaderSize+len(message)))
	p = binary.BigEndian.AppendUint32(p, tsn)
	p = binary.BigEndian.AppendUint16(p, stream)
	p = binary.BigEndian.AppendUint16(p, ssn)
	p = binary.BigEndian.AppendUint32(p, 0)
	return append(p, message...)
}

// sack makes a SACK chunk with gap blocks of two numbers each.
func sack(cumulative uint32, gaps ...uint16) []byte {
	p := binary.BigEndian.AppendUint16([]byte{chunkSack, 0}, uint16(sackHeaderSize+2*len(gaps)))
	p = binary.BigEndian.AppendUint32(p, cumulative)
	p = binary.BigEndian.AppendUint32(p, receiveBuffer)
	p = binary.BigEndian.AppendUint16(p, uint16(len(gaps)/2))
	p = binary.BigEndian.AppendUint16(p, 0)
	for _, g := range gaps {
		p = binary.BigEndian.AppendUint16(p, g)
	}
	return p
}

// TestForeignPackets: what is not a packet of this engine is ignored.
func TestForeignPackets(t *testing.T) {
	change := func(p []byte, offset int, value byte) []byte {
		p[offset] = value
		return p
	}
	hello := func() []byte { return data(firstTSN, "hello") }
	for name, p := range map[string][]byte{
		"empty":               {},
		"short":               packet(hello())[:8],
		"no chunk":            packet(),
		"not a multiple of 4": append(packet(hello()), 0),
		"cut":                 packet(hello())[:20],
		"chunk of length 0":   packet([]byte{chunkData, wholeMessage, 0, 0}),
		"chunk of length 3":   packet([]byte{chunkData, wholeMessage, 0, 3}),
		"chunk cut":           packet(hello()[:dataHeaderSize-4]),
		"INIT":                packet(clientToken),
		"INIT ACK":            packet(change(token(1), 0, 2)),
		"HEARTBEAT":           packet([]byte{4, 0, 0, 8, 0, 1, 0, 4}),
		"SHUTDOWN":            packet([]byte{7, 0, 0, 8, 0, 0, 0, 0}),
		"SHUTDOWN ACK":        packet([]byte{8, 0, 0, 4}),
		"ERROR":               packet([]byte{9, 0, 0, 4}),
		"COOKIE ECHO":         packet([]byte{10, 0, 0, 4}),
		"I-DATA":              packet(change(hello(), 0, 64)),
		"RE-CONFIG":           packet([]byte{130, 0, 0, 20, 0, 13, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}),
		"FORWARD TSN":         packet([]byte{192, 0, 0, 8, 0, 0, 0, 9}),
		"unknown chunk":       packet([]byte{99, 0, 0, 4}),
		"empty message":       packet(data(firstTSN, "")),
		"long message":        packet(data(firstTSN, strings.Repeat("x", maxMessage+4))),
		"fragment":            packet(change(hello(), 1, 2)),
		"unordered":           packet(change(hello(), 1, 7)),
		"protocol":            packet(change(hello(), 15, 51)),
		"other stream":        packet(chunk(firstTSN, 1, 0, "hello")),
		"other sequence":      packet(chunk(firstTSN, 0, 1, "hello")),
		"TSN too high":        packet(data(firstTSN+maxAhead, "hello")),
		"short SACK":          packet(change(sack(0)[:12], 3, 12)),
		"SACK of unsent":      packet(sack(100)),
		"SACK from behind":    packet(sack(1 << 31)),
		"gap from behind":     packet(sack(1<<31-999, 1, 2000)),
		"gap of unsent":       packet(sack(0, 2, 2)),
		"gap of nothing":      packet(sack(0, 0, 1)),
		"gap backwards":       packet(sack(0, 1, 0)),
		"gaps overlap":        packet(sack(0, 1, 1, 1, 1)),
		"gap count":           packet(append(change(sack(0), 3, 20), 0, 0, 0, 0)),
	} {
		t.Run(name, func(t *testing.T) {
			enginetest.Bubble(t, func(t *testing.T) {
				client, server, network := connect(t, ordinary)
				server.Append([]byte("outstanding"))
				if _, err := network.WriteTo(p[:min(len(p), engine.MaxDatagram)], network.RemoteAddr()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(49 * time.Millisecond)
				before := server.assoc.BytesReceived()
				time.Sleep(2 * time.Millisecond)
				if n := server.assoc.BytesReceived() - before; n > 0 {
					t.Errorf("the library was given %d bytes", n)
				}
				client.Append([]byte("still well"))
				receive(t, server, 10)
			})
		})
	}
}

// TestHeld: what a client can make a server hold, unread or out of order, is
// bounded in bytes and in number.
func TestHeld(t *testing.T) {
	for name, test := range map[string]struct{ first, size int }{
		"out of order": {1, maxMessage},
		"small ones":   {1, 4},
		"unread":       {0, maxMessage},
		"small unread": {0, 4},
	} {
		t.Run(name, func(t *testing.T) {
			enginetest.Bubble(t, func(t *testing.T) {
				a, b := enginetest.Connect(enginetest.Path{}, ordinary, 1)
				server := newEnd(t, b, false)
				message := strings.Repeat("x", test.size)
				for i := test.first; i < 3*maxAhead; i++ {
					a.WriteTo(packet(data(firstTSN+uint32(i), message)), a.RemoteAddr())
				}
				time.Sleep(time.Second)
				server.mu.Lock()
				number, bytes := len(server.in.came), server.in.unread
				server.mu.Unlock()
				if number > maxAhead || bytes > receiveBuffer+maxMessage || number < maxAhead-1 && bytes < receiveBuffer {
					t.Errorf("%d messages of %d bytes are held", number, bytes)
				}
				a.Close()
			})
		})
	}
}

// TestHeldOnce: a message that comes again is not counted again, neither while it
// waits nor after it was read.
func TestHeldOnce(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		a, b := enginetest.Connect(enginetest.Path{}, ordinary, 1)
		server := newEnd(t, b, false)
		again := func(number int) {
			for range 10 {
				a.WriteTo(packet(data(firstTSN+uint32(number), "hello")), a.RemoteAddr())
			}
			time.Sleep(time.Second)
		}
		again(1)
		if n := b.Held() - sessionCost; n != 5+inCost {
			t.Errorf("%d bytes are held; want %d for one message", n, 5+inCost)
		}
		again(0)
		receive(t, server, 10)
		again(0)
		again(1)
		if n := b.Held() - sessionCost; n != 0 {
			t.Errorf("%d bytes are held when everything was read", n)
		}
		a.Close()
	})
}

// TestEvilPeer: a peer that says what it may not, plausibly. Neither does it make
// the other side panic or hang, nor does that doubt what it has sent.
func TestEvilPeer(t *testing.T) {
	for seed := range uint64(20) {
		enginetest.Bubble(t, func(t *testing.T) { evil(t, rand.New(rand.NewPCG(seed, 7))) })
	}
}

func evil(t *testing.T, r *rand.Rand) {
	a, b := enginetest.Connect(enginetest.Path{Delay: time.Millisecond}, ordinary, 1)
	server := newEnd(t, b, false)
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { io.Copy(io.Discard, server) })
	group.Go(func() {
		for size := 1; server.send(size) == nil; size = (size*3 + 1) % 20000 {
			time.Sleep(time.Millisecond)
		}
	})
	for tsn := uint32(firstTSN); tsn < 1000; {
		server.mu.Lock()
		una, sent, next := server.out.una, server.out.sent, server.out.next
		server.mu.Unlock()
		if int32(sent-una) < 0 || int32(next-sent) < 0 || next-una > maxOutstanding {
			t.Fatalf("una %d, sent %d, next %d", una, sent, next)
		}
		var chunks [][]byte
		for range 1 + r.IntN(4) {
			x := tsn
			switch n := r.IntN(50); {
			case n == 0:
				x = r.Uint32()
			case n < 9:
				x += uint32(r.IntN(6)) - 2
			default:
				tsn++
			}
			chunks = append(chunks, data(x, "anything"[:1+r.IntN(8)]))
		}
		if r.IntN(2) == 0 {
			cumulative := una - 2 + uint32(r.IntN(5))
			if r.IntN(5) == 0 {
				cumulative = una - 1 + uint32(r.IntN(int(sent-una)+1))
			}
			var gaps []uint16
			for at := uint16(0); len(gaps) < 2*r.IntN(6); {
				at += uint16(1 + r.IntN(4))
				gaps = append(gaps, at, at+uint16(r.IntN(3)))
				at = gaps[len(gaps)-1]
			}
			chunks = [][]byte{sack(cumulative, gaps...)}
		}
		a.WriteTo(packet(chunks...), a.RemoteAddr())
		if r.IntN(10) == 0 {
			time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
		}
	}
	start := time.Now()
	server.Close()
	if d := time.Since(start); d > time.Second {
		t.Errorf("Close took %v", d)
	}
	a.Close()
}

// TestLibrary pins what this package relies upon and the library's
// documentation does not promise.
func TestLibrary(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		client, server, network := connect(t, ordinary)

		// A heartbeat is nothing but a chunk to be written.
		for range 3 {
			client.assoc.ActiveHeartbeat()
		}
		time.Sleep(time.Second)
		if n := network.Sent().Datagrams; n != 0 {
			t.Errorf("heartbeats sent %d datagrams", n)
		}

		// An association needs no handshake, and neither side computes checksums.
		for _, c := range []*conn{client, server} {
			m, ok := c.assoc.Metadata()
			if !ok || m != (sctp.AssociationMetadata{ZeroChecksumSendingEnabled: true, ZeroChecksumReceivingEnabled: true}) {
				t.Errorf("%+v, %v", m, ok)
			}
			if c.assoc.CWND() < maxOutstanding || c.assoc.RWND() < maxOutstanding {
				t.Errorf("a congestion window of %d messages, a receive window of %d", c.assoc.CWND(), c.assoc.RWND())
			}
		}

		// What has come is acknowledged, and not kept for a reader of the library's.
		client.Append([]byte("there"))
		time.Sleep(time.Second)
		if n := client.assoc.BufferedAmount(); n != 0 {
			t.Errorf("%d messages were not acknowledged", n)
		}
		server.stream.SetReadDeadline(time.Now())
		if n, err := server.stream.Read(make([]byte, 5)); n != 0 || !errors.Is(err, sctp.ErrReadDeadlineExceeded) {
			t.Errorf("Read: %d, %v", n, err)
		}
	})
}

// FuzzPackets feeds packets to a server that has something outstanding: neither
// this package nor the library panics or hangs, and a message that is delivered
// was in a packet.
func FuzzPackets(f *testing.F) {
	f.Add(packet(data(1, "hello")))
	f.Add(packet(sack(firstTSN)))
	f.Add(packet(sack(0, 2, 2)))
	f.Add(packet(data(3, "hello"), data(2, "x")))
	f.Add(farewell)
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > engine.MaxDatagram {
			return
		}
		a, b := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
		defer a.Close()
		server := newEnd(t, b, false)
		for range 3 {
			server.Append([]byte("outstanding"))
		}
		for i := 0; i < len(p); i += packetHeaderSize + 64 { // as several packets, too
			a.WriteTo(p[i:], a.RemoteAddr())
		}
		a.WriteTo(farewell, a.RemoteAddr())
		<-server.Done()
		if got, _ := io.ReadAll(server); len(got) > 2*len(p) {
			t.Errorf("%d bytes came of %d", len(got), len(p))
		}
		server.mu.Lock()
		defer server.mu.Unlock()
		if held := b.Held() - sessionCost; held < 0 || held > 3*(48+outCost)+(1+inCost)*len(p) {
			t.Errorf("%d bytes are held", held)
		}
		if o := server.out; int32(o.sent-o.una) < 0 || int32(o.next-o.sent) < 0 {
			t.Errorf("una %d, sent %d, next %d", o.una, o.sent, o.next)
		}
	})
}
