package sctp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
)

var ordinary = enginetest.Path{Delay: 50 * time.Millisecond}

// newEnd starts one end, which the test's cleanup closes.
func newEnd(t testing.TB, pc engine.Carrier, client bool) *conn {
	t.Helper()
	c, err := newConn(pc, client)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// connect returns both ends over path both ways, watched.
func connect(t testing.TB, path enginetest.Path) (client, server *conn, network *enginetest.Conn) {
	t.Helper()
	a, b := enginetest.Connect(path, path, 1)
	return newEnd(t, &watched{Conn: a, t: t}, true), newEnd(t, &watched{Conn: b, t: t}, false), a
}

// watched checks that what is written is what the package comment says.
type watched struct {
	*enginetest.Conn
	t testing.TB

	mu sync.Mutex // guards what follows
	stats
}

// stats are counts of what was written.
type stats struct {
	datagrams int
	messages  int // sent for the first time
	again     int // messages sent once more
	largest   int // datagram, in bytes
}

func (w *watched) WriteTo(p []byte, to net.Addr) (int, error) {
	w.look(p)
	return w.Conn.WriteTo(p, to)
}

func (w *watched) look(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.datagrams++
	w.largest = max(w.largest, len(p))
	if !bytes.Equal(p[:4], []byte{0x13, 0x88, 0x13, 0x88}) || !bytes.Equal(p[8:12], make([]byte, 4)) || len(p) > mtu {
		w.t.Errorf("a packet of %d bytes that begins with %x", len(p), p[:12])
	}
	for first, rest := true, p[packetHeaderSize:]; len(rest) > 0; first = false {
		chunk, after := nextChunk(rest)
		switch {
		case chunk == nil:
			w.t.Errorf("a malformed chunk: %x", rest)
			return
		case chunk[0] == chunkSack || chunk[0] == chunkAbort:
			if !first || len(after) > 0 || chunk[1] != 0 {
				w.t.Errorf("a chunk of type %d in company, or with flags: %x", chunk[0], chunk[:4])
			}
		case chunk[0] == chunkData:
			w.lookAtData(chunk)
		default:
			w.t.Errorf("a chunk of type %d", chunk[0])
		}
		rest = after
	}
}

func (w *watched) lookAtData(chunk []byte) {
	tsn := binary.BigEndian.Uint32(chunk[4:])
	if w.messages == int(tsn-firstTSN) {
		w.messages++
	} else {
		w.again++
	}
	want := []byte{0, wholeMessage | chunk[1]&answerAtOnce, chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7], 0, 0, byte((tsn - 1) >> 8), byte(tsn - 1), 0, 0, 0, 0}
	if !bytes.Equal(chunk[:dataHeaderSize], want) || len(chunk) == dataHeaderSize {
		w.t.Errorf("a DATA chunk with header %x; want %x", chunk[:dataHeaderSize], want)
	}
}

func (c *conn) count() stats {
	w := c.pc.(*watched)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// waiting is how many bytes the carrier has not taken.
func (c *conn) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.unsent
}

// send writes size bytes as a mux does: a frame whenever there is room.
func (c *conn) send(size int) error {
	for frame := make([]byte, 32<<10); size > 0; size -= len(frame) {
		for room, ok := c.Room(); !ok; room, ok = c.Room() {
			<-room
		}
		frame = frame[:min(size, len(frame))]
		if _, err := c.Append(frame); err != nil {
			return err
		}
	}
	return nil
}

// receive reads size bytes.
func receive(t *testing.T, c *conn, size int) {
	t.Helper()
	if n, err := io.CopyN(io.Discard, c, int64(size)); err != nil {
		t.Fatalf("%d bytes have come of %d: %v", n, size, err)
	}
}

func TestBytes(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		client, server, _ := connect(t, enginetest.Path{Delay: 50 * time.Millisecond, Loss: 0.05})
		want := make([]byte, 1<<20)
		for i := range want {
			want[i] = byte(i * i >> 8)
		}
		for rest, n := want, 1; len(rest) > 0; n = n*2%65521 + 1 {
			n := min(n, len(rest))
			client.Append(rest[:n/2], rest[n/2:n])
			rest = rest[n:]
		}
		got, n := make([]byte, len(want)), 0
		for at := 0; at < len(got); at += n {
			n, _ = server.Read(got[at:min(at+1+at%20000, len(got))])
		}
		if !bytes.Equal(got, want) {
			t.Error("other bytes came than were sent")
		}
	})
}

// TestGathers: what is appended while the carrier is busy goes in full messages.
func TestGathers(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		client, server, _ := connect(t, enginetest.Path{Rate: 1 << 20, Queue: 8 << 10})
		for range 10000 {
			client.Append(make([]byte, 100))
		}
		receive(t, server, 10000*100)
		if n := client.count().messages; n > 10000*100/maxMessage+8 { // the path takes a few at once
			t.Errorf("%d messages for a megabyte", n)
		}
	})
}

// TestNothingTwice: on a path that loses nothing, nothing is sent twice:
// neither in bursts of any length with pauses between them, nor when a queue
// grows to many round trips.
func TestNothingTwice(t *testing.T) {
	slow := enginetest.Path{Delay: 50 * time.Millisecond, Rate: 4 << 20, Queue: 2 << 20}
	repaired := enginetest.Path{Delay: 50 * time.Millisecond, Rate: 8 << 20, Queue: 1 << 20, Loss: 0.02, Repair: 400 * time.Millisecond}
	for _, path := range []enginetest.Path{ordinary, slow, repaired, {}} {
		enginetest.Bubble(t, func(t *testing.T) {
			client, server, network := connect(t, path)
			for size := 1; size < 4<<20; size = size*3 + 1 {
				for _, pair := range [][2]*conn{{client, server}, {server, client}} {
					go pair[0].send(size)
					receive(t, pair[1], size)
				}
				time.Sleep(time.Duration(size%1000) * time.Millisecond)
			}
			for _, c := range []*conn{client, server} {
				// While something is repaired, in either direction, nothing comes for more
				// than two round trips, and the newest goes again.
				most := 2 * network.Sent().Lost
				if stats := c.count(); stats.again > most || stats.messages == 0 {
					t.Errorf("on %+v: %+v", path, stats)
				}
			}
		})
	}
}

// TestAcknowledgements: a fast download is acknowledged now and then, and what the
// client writes meanwhile does not wait for that.
func TestAcknowledgements(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		const rtt = 200 * time.Millisecond
		client, server, _ := connect(t, enginetest.Path{Delay: rtt / 2, Rate: 500e6 / 8})
		client.Append([]byte("get"))
		receive(t, server, 3)
		go server.send(100 << 20)
		receive(t, client, 50<<20)
		before := client.count().datagrams
		receive(t, client, 40<<20)
		if n := client.count().datagrams - before; n > 40<<20/maxMessage/4 {
			t.Errorf("%d datagrams acknowledge 40 MB", n)
		}
		client.Append([]byte("ping"))
		start := time.Now()
		receive(t, server, 4)
		if took := time.Since(start); took > rtt/2+time.Millisecond {
			t.Errorf("a ping arrived after %v", took)
		}
	})
}

// outage sends 32 MB over path, which is cut for so long after 8 MB, and returns
// how long after that the rest took.
func outage(t *testing.T, path enginetest.Path, long time.Duration) (time.Duration, stats) {
	const size = 32 << 20
	client, server, network := connect(t, path)
	go client.send(size)
	receive(t, server, 8<<20)
	network.SetDown(true)
	time.Sleep(long)
	network.SetDown(false)
	start := time.Now()
	receive(t, server, size-8<<20)
	t.Logf("after the outage %v, %+v", time.Since(start), client.count())
	return time.Since(start), client.count()
}

// TestOutage: the carrier keeps what was on its way during an outage, so that
// hardly anything need be sent again.
func TestOutage(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		path := enginetest.Path{Delay: 50 * time.Millisecond, Rate: 8 << 20, Queue: 4 << 20, Repair: 150 * time.Millisecond}
		if _, stats := outage(t, path, 20*time.Second); stats.again > stats.messages/20 {
			t.Errorf("%+v", stats)
		}
	})
}

// TestLostOutage: what a carrier has lost in an outage, all of it and for good,
// goes again soon after the end: one look brings the evidence, the next uses it.
func TestLostOutage(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		const most = 6500 * time.Millisecond // two looks, each 2 s after the last, and the rest itself
		path := enginetest.Path{Delay: 50 * time.Millisecond, Rate: 12 << 20, Queue: 2 << 20}
		if took, _ := outage(t, path, 10*time.Second); took > most {
			t.Errorf("the rest took %v; want at most %v", took, most)
		}
	})
}

// TestBacklog: what is said next waits for what the carrier holds and for a small
// backlog.
func TestBacklog(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		client, server, _ := connect(t, enginetest.Path{Delay: 50 * time.Millisecond, Rate: 1 << 20, Queue: 128 << 10})
		go io.Copy(io.Discard, server)
		go client.send(64 << 20)
		for range 20 {
			time.Sleep(time.Second)
			if n := client.waiting(); n > backlog+32<<10 {
				t.Errorf("%d bytes wait before a slow carrier", n)
			}
		}
	})
}

// TestIdleIsSilent: an idle session sends nothing at all, and holds nothing.
func TestIdleIsSilent(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		client, server, _ := connect(t, ordinary)
		for _, pair := range [][2]*conn{{client, server}, {server, client}} {
			go pair[0].send(1 << 20)
			receive(t, pair[1], 1<<20)
		}
		time.Sleep(time.Second)
		before := client.count().datagrams + server.count().datagrams
		time.Sleep(24 * time.Hour)
		if n := client.count().datagrams + server.count().datagrams - before; n > 0 {
			t.Errorf("%d datagrams in an idle day", n)
		}
		for _, c := range []*conn{client, server} {
			c.mu.Lock()
			in, out := c.in.came, c.out.packets
			c.mu.Unlock()
			if in != nil || out != nil {
				t.Errorf("an idle session holds %d and %d messages", len(in), len(out))
			}
		}
	})
}

// TestUnread: a session that is not read stops the other side, and goes on when
// it is read.
func TestUnread(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		client, server, network := connect(t, ordinary)
		const size = 100 << 20
		go client.send(size)
		time.Sleep(10 * time.Minute)
		if n := network.Sent().Bytes; n > receiveBuffer+4<<20 || n < receiveBuffer/2 {
			t.Errorf("%d bytes were sent, and nobody read", n)
		}
		start := time.Now()
		receive(t, server, size)
		if d := time.Since(start); d > 5*time.Second { // two looks, see maxTimeout
			t.Errorf("the rest took %v", d)
		}
		if stats := client.count(); stats.again > 1000 {
			t.Errorf("%+v", stats)
		}
	})
}

// TestEnds: how a session ends is known on both sides.
func TestEnds(t *testing.T) {
	lost := errors.New("lost")
	for name, test := range map[string]struct {
		end         func(client *conn, network *enginetest.Conn)
		here, there error
	}{
		"closed": {func(c *conn, _ *enginetest.Conn) { c.Close() }, engine.ErrClosed, errPeerClosed},
		"failed": {func(c *conn, _ *enginetest.Conn) { c.Fail(lost) }, lost, errPeerClosed},
		"broken": {func(_ *conn, n *enginetest.Conn) { n.Break(lost) }, lost, nil},
	} {
		t.Run(name, func(t *testing.T) {
			enginetest.Bubble(t, func(t *testing.T) {
				client, server, network := connect(t, ordinary)
				var group sync.WaitGroup
				for _, c := range []*conn{client, server} {
					group.Go(func() { io.ReadAll(c) })
				}
				client.Append([]byte("last words"))
				time.Sleep(time.Second)
				test.end(client, network)
				<-client.Done()
				if test.there != nil {
					<-server.Done()
				}
				if err := client.Err(); !errors.Is(err, test.here) || test.here == lost && !errors.Is(err, engine.ErrReset) {
					t.Errorf("here: %v", err)
				}
				if err := server.Err(); !errors.Is(err, test.there) || test.there != nil && !errors.Is(err, engine.ErrReset) {
					t.Errorf("there: %v", err)
				}
				if _, err := client.Append([]byte("x")); err != client.Err() {
					t.Errorf("Append: %v", err)
				}
				if _, ok := client.Room(); !ok {
					t.Error("a session that has ended has no room")
				}
				server.Close()
				group.Wait()
			})
		})
	}
}

// TestReadAfterTheEnd: what had arrived before the end can still be read.
func TestReadAfterTheEnd(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		client, server, _ := connect(t, ordinary)
		client.Append([]byte("last words"))
		time.Sleep(time.Second)
		client.Close()
		<-server.Done()
		receive(t, server, 10)
		if n, err := server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errPeerClosed) {
			t.Errorf("Read: %d, %v", n, err)
		}
		server.Close()
		if n, err := client.Read(make([]byte, 1)); n != 0 || err != engine.ErrClosed {
			t.Errorf("Read after Close: %d, %v", n, err)
		}
	})
}
