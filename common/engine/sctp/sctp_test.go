package sctp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/sctp"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
	"turbotunnel/common/engine/internal/duplex"
)

func TestConformance(t *testing.T) { enginetest.Run(t, Engine{}) }

func BenchmarkEngine(b *testing.B) { enginetest.Benchmark(b, Engine{}) }

var ordinary = enginetest.Path{Delay: 50 * time.Millisecond}

// connect returns a session with both its ends.
func connect(t testing.TB, up, down net.PacketConn) (client, server *session) {
	t.Helper()
	c, err := Engine{}.Client(up)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := Engine{}.Server(down)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c.(*session), s.(*session)
}

func open(t testing.TB, client, server *session) (c, s engine.Stream) {
	t.Helper()
	c, err := client.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	s, err = server.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

// left is what of the budget is in no stream's window, in bytes.
func (s *session) left() int { return s.budget.Free + s.budget.Lent*duplex.Piece }

// echo sends back what comes on each stream until the session ends.
func echo(server *session) {
	for {
		s, err := server.Accept(context.Background())
		if err != nil {
			return
		}
		go func() {
			defer s.Close()
			io.Copy(s, s)
		}()
	}
}

// TestManyLives opens more streams on one session than SCTP has identifiers.
func TestManyLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := connect2(t, ordinary, ordinary)
		go echo(server)
		const width, rounds = 700, 100
		for range rounds {
			var group sync.WaitGroup
			for range width {
				group.Go(func() {
					c, err := client.Open(context.Background())
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					text := fmt.Sprintf("stream %d", c.(*stream).id)
					io.WriteString(c, text)
					c.CloseWrite()
					if got, err := io.ReadAll(c); string(got) != text || err != nil {
						t.Errorf("%q came back as %q, %v", text, got, err)
					}
				})
			}
			group.Wait()
		}
		time.Sleep(time.Second)
		for _, s := range []*session{client, server} {
			s.mu.Lock()
			if len(s.streams) > 0 || len(s.accepts) > 0 || s.unread != 0 || s.left() != windowBudget || s.conn.messages != nil {
				t.Errorf("left over: %d streams, %d to accept, %d bytes unread, %d of the windows, %d messages",
					len(s.streams), len(s.accepts), s.unread, windowBudget-s.left(), len(s.conn.messages))
			}
			s.mu.Unlock()
		}
		if n := client.nextID; n < 1<<16 {
			t.Errorf("only %d streams were opened", n)
		}
	})
}

func connect2(t testing.TB, up, down enginetest.Path) (client, server *session) {
	a, b := enginetest.Connect(up, down, 1)
	return connect(t, a, b)
}

// TestNothingTwice: on a path that loses nothing, nothing is sent twice:
// neither in bursts of any length with pauses between them, nor when a queue
// grows to many round trips.
func TestNothingTwice(t *testing.T) {
	slow := enginetest.Path{Delay: 50 * time.Millisecond, Rate: 4 << 20, Queue: 2 << 20}
	for _, path := range []enginetest.Path{ordinary, slow, {}} {
		synctest.Test(t, func(t *testing.T) {
			client, server := connect2(t, path, path)
			c, s := open(t, client, server)
			go io.Copy(s, s)
			for size := 1; size < 4<<20; size = size*3 + 1 {
				go c.Write(make([]byte, size))
				if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(size%1000) * time.Millisecond)
			}
			for _, s := range []*session{client, server} {
				if stats := s.Stats(); stats.Retransmitted > 0 || stats.Messages == 0 {
					t.Errorf("on %+v: %+v", path, stats)
				}
			}
		})
	}
}

// TestAcknowledgements: a fast download is acknowledged a few times a round
// trip, and what the client writes meanwhile does not wait for that.
func TestAcknowledgements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rtt = 200 * time.Millisecond
		path := enginetest.Path{Delay: rtt / 2, Rate: 500e6 / 8}
		client, server := connect2(t, path, path)
		c, s := open(t, client, server)
		go s.Write(make([]byte, 100<<20))
		if _, err := io.CopyN(io.Discard, c, 50<<20); err != nil {
			t.Fatal(err)
		}
		before, start := client.Stats().Datagrams, time.Now()
		if _, err := io.CopyN(io.Discard, c, 40<<20); err != nil {
			t.Fatal(err)
		}
		trips := float64(time.Since(start)) / float64(rtt)
		if got := float64(client.Stats().Datagrams-before) / trips; got > 3*ackShare {
			t.Errorf("%.1f datagrams a round trip", got)
		}
		c.Write([]byte("ping"))
		start = time.Now()
		if _, err := io.ReadFull(s, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > rtt/2+time.Millisecond {
			t.Errorf("a ping arrived after %v", took)
		}
	})
}

// TestOutage: the carrier keeps what was on its way during an outage, so that
// hardly anything need be sent again.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 32 << 20
		path := enginetest.Path{Delay: 50 * time.Millisecond, Rate: 8 << 20, Queue: 4 << 20, Repair: 150 * time.Millisecond}
		a, b := enginetest.Connect(path, path, 1)
		client, server := connect(t, a, b)
		c, s := open(t, client, server)
		go func() {
			c.Write(make([]byte, size))
			c.CloseWrite()
		}()
		if _, err := io.CopyN(io.Discard, s, 8<<20); err != nil {
			t.Fatal(err)
		}
		a.SetDown(true)
		time.Sleep(20 * time.Second)
		a.SetDown(false)
		if n, err := io.Copy(io.Discard, s); n != size-8<<20 || err != nil {
			t.Errorf("%d bytes after the outage, %v", n, err)
		}
		if stats := client.Stats(); stats.Retransmitted > stats.Messages/20 {
			t.Errorf("%+v", stats)
		}
	})
}

// TestLostOutage: what a carrier has lost in an outage, all of it and for good,
// goes again soon after the end: one look brings the evidence, the next uses it.
// SCTP left alone sends one burst of a few packets for each look, and looks
// every 10 s: 33 s.
func TestLostOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 16 << 20
		path := enginetest.Path{Delay: 50 * time.Millisecond, Rate: 12 << 20, Queue: 2 << 20}
		a, b := enginetest.Connect(path, path, 1)
		client, server := connect(t, a, b)
		c, s := open(t, client, server)
		go func() {
			c.Write(make([]byte, size))
			c.CloseWrite()
		}()
		if _, err := io.CopyN(io.Discard, s, 4<<20); err != nil {
			t.Fatal(err)
		}
		a.SetDown(true)
		time.Sleep(10 * time.Second)
		a.SetDown(false)
		start := time.Now()
		if n, err := io.Copy(io.Discard, s); n != size-4<<20 || err != nil {
			t.Errorf("%d bytes after the outage, %v", n, err)
		}
		const most = 6 * time.Second // two looks, each 2 s after the last, and the rest itself
		if took := time.Since(start); took > most {
			t.Errorf("the rest took %v; want at most %v", took, most)
		}
	})
}

// TestNewStreamDoesNotQueue: the first bytes of a stream wait for what the
// carrier holds and for a small backlog, not for all that another has to send.
func TestNewStreamDoesNotQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1 << 20
		path := enginetest.Path{Delay: 50 * time.Millisecond, Rate: rate, Queue: 128 << 10}
		client, server := connect2(t, path, path)
		c, s := open(t, client, server)
		go io.Copy(io.Discard, s)
		go c.Write(make([]byte, 64<<20))
		time.Sleep(20 * time.Second)
		start := time.Now()
		c, err := client.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "now")
		s, err = server.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(s, make([]byte, 3))
		most := path.Queue + minBacklog + 4*mtu // what may lie before it, in bytes
		if waited := time.Since(start) - path.Delay; waited > time.Duration(most)*time.Second/rate {
			t.Errorf("the first bytes waited %v, longer than %d bytes take", waited, most)
		}
	})
}

// TestIdleIsSilent: an idle session sends nothing at all.
func TestIdleIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := enginetest.Connect(ordinary, ordinary, 1)
		client, server := connect(t, a, b)
		c, s := open(t, client, server)
		go io.Copy(s, s)
		io.WriteString(c, "ping")
		io.ReadFull(c, make([]byte, 4))
		time.Sleep(time.Second)
		before := a.Sent().Datagrams + b.Sent().Datagrams
		time.Sleep(24 * time.Hour)
		if n := a.Sent().Datagrams + b.Sent().Datagrams - before; n > 0 {
			t.Errorf("%d datagrams in an idle day", n)
		}
	})
}

// watched checks that what is written is what the package comment says.
type watched struct {
	*enginetest.Conn
	t       *testing.T
	largest int
}

func (w *watched) WriteTo(p []byte, to net.Addr) (int, error) {
	w.largest = max(w.largest, len(p))
	if !bytes.Equal(p[:4], []byte{0x13, 0x88, 0x13, 0x88}) || binary.BigEndian.Uint32(p[8:]) != 0 || len(p) > mtu {
		w.t.Errorf("a packet of %d bytes that begins with %x", len(p), p[:12])
	}
	for rest := p[packetHeaderSize:]; len(rest) > 0; {
		chunk, after, ok := nextChunk(rest)
		if !ok {
			w.t.Fatalf("a malformed chunk: %x", rest)
		}
		rest = after
		switch chunk[0] {
		case chunkSack, chunkAbort:
		case chunkData:
			if chunk[1]&^answerAtOnce != wholeMessage || binary.BigEndian.Uint16(chunk[8:]) >= lanes ||
				binary.BigEndian.Uint32(chunk[12:]) != 0 {
				w.t.Errorf("a DATA chunk with header %x", chunk[:dataHeaderSize])
			}
		default:
			w.t.Errorf("a chunk of type %d", chunk[0])
		}
	}
	return w.Conn.WriteTo(p, to)
}

func TestWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lossy := enginetest.Path{Delay: 50 * time.Millisecond, Loss: 0.02}
		a, b := enginetest.Connect(lossy, lossy, 1)
		x, y := &watched{Conn: a, t: t}, &watched{Conn: b, t: t}
		client, server := connect(t, x, y)
		c, s := open(t, client, server)
		go io.Copy(s, s)
		go c.Write(make([]byte, 4<<20))
		io.ReadFull(c, make([]byte, 4<<20))
		client.Close()
		<-server.Done()
		if x.largest != mtu || y.largest != mtu {
			t.Errorf("the largest packets had %d and %d bytes", x.largest, y.largest)
		}
		if stats := client.Stats(); stats.Retransmitted == 0 {
			t.Errorf("%+v: nothing was lost, choose another seed", stats)
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

// data makes a DATA chunk with one message.
func data(tsn uint32, lane, ssn uint16, message string) []byte {
	p := binary.BigEndian.AppendUint16([]byte{chunkData, wholeMessage}, uint16(dataHeaderSize+len(message)))
	p = binary.BigEndian.AppendUint32(p, tsn)
	p = binary.BigEndian.AppendUint16(p, lane)
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
	tests := map[string][]byte{
		"empty":               {},
		"short":               packet()[:8],
		"not a multiple of 4": append(packet(), 0),
		"cut":                 packet(data(1, 1, 0, "\x01\x00\x00\x00\x01hello"))[:20],
		"chunk of length 0":   packet([]byte{chunkData, wholeMessage, 0, 0}),
		"INIT":                packet(clientToken),
		"SHUTDOWN":            packet([]byte{7, 0, 0, 8, 0, 0, 0, 0}),
		"RE-CONFIG":           packet([]byte{130, 0, 0, 20, 0, 13, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}),
		"empty message":       packet(data(1, 1, 0, "")),
		"fragment":            packet(append([]byte{chunkData, 2}, data(1, 1, 0, "\x01\x00\x00\x00\x01hello")[2:]...)),
		"stream too high":     packet(data(1, lanes, 0, "\x01\x00\x00\x00\x08hello")),
		"TSN too high":        packet(data(firstTSN+maxOutstanding, 1, 0, "\x01\x00\x00\x00\x01hello")),
		"SACK of unsent":      packet(sack(100)),
		"gap of unsent":       packet(sack(0, 2, 2)),
		"gaps overlap":        packet(sack(0, 1, 1, 1, 1)),
		"gap count":           packet(append(sack(0), 0, 0, 0, 0)),
	}
	for name, p := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := enginetest.Connect(ordinary, ordinary, 1)
				client, server := connect(t, a, b)
				before := server.assoc.BytesReceived()
				if _, err := a.WriteTo(p, a.RemoteAddr()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if n := server.assoc.BytesReceived() - before; n > 0 {
					t.Errorf("SCTP was given %d bytes", n)
				}
				c, s := open(t, client, server)
				io.WriteString(c, "still well")
				if _, err := io.ReadFull(s, make([]byte, 10)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestMalformedMessages: a message that breaks the rules ends the session on
// both sides, and says why.
func TestMalformedMessages(t *testing.T) {
	const begin, take = "\x01\x00\x00\x00\x01", "\x10\x00\x00\x00\x01"
	tests := []struct {
		name, message string
		want          error
	}{
		{"short", "\x01\x00\x00\x00", errFormat},
		{"unknown flag", "\x21\x00\x00\x00\x01", errFormat},
		{"nothing", "\x00\x00\x00\x00\x01", errFormat},
		{"stream 0", "\x01\x00\x00\x00\x00", errFormat},
		{"wrong SCTP stream", "\x01\x00\x00\x00\x02", errFormat},
		{"never opened", "\x00\x00\x00\x00\x09x", errStream},
		{"opened twice", begin, errFormat},
		{"short credit", "\x08\x00\x00\x00\x01\x00\x00\x00\x00", errFormat},
		{"credit for the unsent", "\x08\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x10\x00", errWindow},
		{"bytes after the end", "\x02\x00\x00\x00\x01 \x00\x00\x00\x00\x01x", errFormat},
		{"piece after the end", "\x02\x00\x00\x00\x01 \x10\x00\x00\x00\x01", errFormat},
		{"piece never lent", strings.Repeat(take+" ", windowBudget/duplex.Piece) + take, errWindow},
		{"end after the end", "\x02\x00\x00\x00\x01 \x02\x00\x00\x00\x01", errFormat},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := enginetest.Connect(ordinary, ordinary, 1)
				server, err := Engine{}.Server(b)
				if err != nil {
					t.Fatal(err)
				}
				defer server.Close()
				for i, message := range append([]string{begin}, strings.Split(tt.message, " ")...) {
					a.WriteTo(packet(data(firstTSN+uint32(i), 1, uint16(i), message)), a.RemoteAddr())
				}
				s, err := server.Accept(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				<-server.Done()
				_, err = s.Write([]byte("x"))
				if !errors.Is(err, engine.ErrReset) || !errors.Is(err, tt.want) {
					t.Errorf("Write: %v; want %v", err, tt.want)
				}
				for p := make([]byte, engine.MaxDatagram); ; {
					n, _, err := a.ReadFrom(p)
					if err != nil {
						t.Fatal(err)
					}
					if bytes.Equal(p[:n], farewell) {
						return
					}
				}
			})
		})
	}
}

// TestWindow: bytes beyond the window end the session.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := enginetest.Connect(ordinary, ordinary, 1)
		server, err := Engine{}.Server(b)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		content := strings.Repeat("x", maxMessage-headerSize)
		for i := 0; i*len(content) <= InitialWindow; i++ {
			message := "\x00\x00\x00\x00\x01" + content
			if i == 0 {
				message = "\x01" + message[1:]
			}
			a.WriteTo(packet(data(firstTSN+uint32(i), 1, uint16(i), message)), a.RemoteAddr())
		}
		<-server.Done()
		if err := server.(*session).err; !errors.Is(err, errWindow) {
			t.Errorf("%v; want %v", err, errWindow)
		}
	})
}

// TestLoan: what is said about loans, and what ends the session.
func TestLoan(t *testing.T) {
	const (
		open = "\x01\x00\x00\x00\x01"
		over = "\x06\x00\x00\x00\x01"
		take = "\x10\x00\x00\x00\x01"
		loan = "\x00\x00\x00\x00\x00\x00\x00\x00"
	)
	for _, tt := range []struct {
		name     string
		lane     uint32
		messages []string
		err      error
	}{
		{"loan", 0, []string{loan + "\x04", loan + "\x04", loan + "\x09"}, nil},
		{"taken back", 0, []string{loan + "\x04", loan + "\x03"}, errWindow},
		{"wrong SCTP stream", 1, []string{loan + "\x04"}, errFormat},
		{"short", 0, []string{loan}, errFormat},
		{"long", 0, []string{loan + "\x04\x00"}, errFormat},
		{"flags", 0, []string{take[:1] + loan[1:] + "\x04"}, errFormat},
		{"taken", 1, []string{open, take + "x", take}, nil},
		{"taken for the forgotten", 1, []string{open, over, take}, nil},
		{"taken for a stream never opened", 1, []string{take}, errStream},
	} {
		pc, _ := enginetest.Connect(ordinary, ordinary, 1)
		s, err := newSession(pc, false)
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		for i, m := range tt.messages {
			last := i == len(tt.messages)-1
			switch err := s.handle(tt.lane, []byte(m)); {
			case !last && err != nil:
				t.Errorf("%s: %q: %v", tt.name, m, err)
			case last && !errors.Is(err, tt.err):
				t.Errorf("%s: %v; want %v", tt.name, err, tt.err)
			}
			held := 0
			for _, st := range s.streams {
				held += st.window.Size - InitialWindow
			}
			if held+s.left() != windowBudget {
				t.Errorf("%s: %d bytes in windows and %d left are not %d", tt.name, held, s.left(), windowBudget)
			}
		}
		s.mu.Unlock()
		s.Close()
	}
}

// TestLoansAreForTheRefused: a loan is looked at by the streams that were refused
// a piece, and by no others; one that is not larger, by none.
func TestLoansAreForTheRefused(t *testing.T) {
	pc, _ := enginetest.Connect(ordinary, ordinary, 1)
	s, err := newSession(pc, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	handle := func(flags byte, id uint32, rest ...byte) {
		t.Helper()
		s.mu.Lock()
		defer s.mu.Unlock()
		p := binary.BigEndian.AppendUint32([]byte{flags}, id)
		if err := s.handle(id%lanes, append(p, rest...)); err != nil {
			t.Fatal(err)
		}
	}
	loan := func(pieces byte) { handle(0, 0, 0, 0, 0, pieces) }
	waits := func(id uint32) *stream {
		t.Helper()
		handle(flagOpen|flagCredit, id, make([]byte, creditSize)...) // a window of nothing
		st := s.streams[id]
		st.Write([]byte("x"))
		if _, ok := s.refused[st]; !ok {
			t.Fatal("a stream is not refused a piece that is not there")
		}
		return st
	}
	// If somebody looked at it, the first would be queued, and the third be
	// refused no more.
	unseen, refused, stopped := waits(1), waits(2), waits(3)
	delete(s.refused, unseen)
	handle(flagStop, 3)
	loan(0)
	if _, ok := s.refused[stopped]; !ok {
		t.Error("the streams have looked at a loan that is not larger")
	}
	loan(1)
	if s.bulk.pop() != refused || s.bulk.pop() != nil || len(s.refused) != 0 {
		t.Errorf("of a larger loan others hear than those that wait; %d still do", len(s.refused))
	}

	s.loan.Take()
	waits(4)
	handle(flagFin|flagStop, 4)
	if len(s.refused) != 0 {
		t.Error("a forgotten stream waits for a loan")
	}
}

func TestNewStreamsNeedNoRoundTrip(t *testing.T) { enginetest.RunNewStreams(t, Engine{}) }

// TestHeldOutOfOrder: what a client can make a server hold by leaving out the
// first message is bounded.
func TestHeldOutOfOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := enginetest.Connect(enginetest.Path{}, ordinary, 1)
		server, err := Engine{}.Server(b)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		message := "\x00\x00\x00\x00\x01" + strings.Repeat("x", maxMessage-headerSize)
		const n = 3 * maxOutstanding
		for i := 1; i < n; i++ {
			a.WriteTo(packet(data(firstTSN+uint32(i), 1, uint16(i), message)), a.RemoteAddr())
		}
		time.Sleep(time.Second)
		got := int(server.(*session).assoc.BytesReceived())
		if most := maxOutstanding * mtu; got > most || got < most/2 {
			t.Errorf("SCTP was given %d bytes; want at most %d", got, most)
		}
	})
}

// TestLibrary pins what this package relies upon and the library's
// documentation does not promise.
func TestLibrary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := enginetest.Connect(ordinary, ordinary, 1)
		client, server := connect(t, a, b)

		// A write of nothing wakes the writer, sends nothing and can be repeated.
		for range 3 {
			client.wake()
		}
		synctest.Wait()
		if n := a.Sent().Datagrams; n != 0 {
			t.Errorf("a write of nothing sent %d datagrams", n)
		}

		// An association needs no handshake, and neither side computes checksums.
		for _, s := range []*session{client, server} {
			m, ok := s.assoc.Metadata()
			if !ok || m != (sctp.AssociationMetadata{ZeroChecksumSendingEnabled: true, ZeroChecksumReceivingEnabled: true}) {
				t.Errorf("%+v, %v", m, ok)
			}
			if s.assoc.CWND() < minWindow {
				t.Errorf("a congestion window of %d bytes", s.assoc.CWND())
			}
		}

		// A Read after its deadline does not block, and returns what there is.
		server.mu.Lock()
		n, err := server.sctp[0].Read(server.buf[:])
		server.mu.Unlock()
		if n != 0 || !errors.Is(err, sctp.ErrReadDeadlineExceeded) {
			t.Errorf("Read: %d, %v", n, err)
		}
		c, s := open(t, client, server)
		io.WriteString(c, "there")
		if _, err := io.ReadFull(s, make([]byte, 5)); err != nil {
			t.Error(err)
		}
	})
}

// FuzzPackets feeds packets to a server that has something outstanding: neither
// this package nor the library may panic.
func FuzzPackets(f *testing.F) {
	f.Add(packet(data(1, 1, 0, "\x01\x00\x00\x00\x01hello"), sack(firstTSN)))
	f.Add(packet(sack(0, 1, 1)))
	f.Add(packet(data(3, 1, 2, "\x01\x00\x00\x00\x01hello"), data(2, 1, 1, "\x02\x00\x00\x00\x01")))
	f.Add(packet(data(2, 1, 1, "\x10\x00\x00\x00\x01x"), data(3, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x00\x09")))
	f.Add(farewell)
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > engine.MaxDatagram {
			return
		}
		a, b := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
		defer a.Close()
		server, err := Engine{}.Server(b)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		a.WriteTo(packet(data(firstTSN, 1, 0, "\x01\x00\x00\x00\x01")), a.RemoteAddr())
		s, err := server.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			s.Write([]byte("outstanding"))
		}
		for i := 0; i < len(p); i += packetHeaderSize + 64 { // as several packets, too
			a.WriteTo(p[i:], a.RemoteAddr())
		}
		a.WriteTo(farewell, a.RemoteAddr())
		<-server.Done()
	})
}
