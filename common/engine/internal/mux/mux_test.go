package mux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xtaci/smux"

	"turbotunnel/common/engine"
)

func updated(id, consumed uint32) []byte {
	return update(id, consumed, streamWindow)
}

func join(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

// accept returns the next stream of a server.
func accept(t *testing.T, s *Session) *Stream {
	t.Helper()
	st, err := s.Accept(context.Background())
	if err != nil {
		t.Fatalf("Accept: %v", err)
	}
	return st.(*Stream)
}

func open(t *testing.T, s *Session) *Stream {
	t.Helper()
	st, err := s.Open(context.Background())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return st.(*Stream)
}

// TestFrames: what a peer may send, and what ends the session.
func TestFrames(t *testing.T) {
	syn, psh, fin := frame(cmdSYN, 3), frame(cmdPSH, 3, 'x'), frame(cmdFIN, 3)
	version1 := bytes.Clone(syn)
	version1[0] = 1
	for _, test := range []struct {
		name string
		sent []byte
		err  error // of the session; nil: it lives
	}{
		{"stream", join(syn, psh, fin), nil},
		{"streams in any order", join(frame(cmdSYN, 9), frame(cmdSYN, 1), frame(cmdSYN, 3)), nil},
		{"keepalive", join(frame(cmdNOP, 0), frame(cmdNOP, 77)), nil},
		{"end twice", join(syn, fin, fin), nil},
		{"data after the end", join(syn, fin, psh), nil}, // a plain smux that closes during a Write
		{"consumed less than before", join(syn, updated(3, 0), updated(3, 1<<31)), nil},
		{"empty data", join(syn, frame(cmdPSH, 3)), nil},
		{"frames of no stream", join(psh, fin, updated(3, 0), notice(noticeStop, 3)), nil},
		{"notices", join(syn, notice(noticeStop, 3), notice(noticeReset, 3)), nil},
		{"window", join(syn, updated(3, 0)), nil},
		{"version", version1, errFormat},
		{"command", frame(cmdUPD+1, 3), errFormat},
		{"opening with a body", frame(cmdSYN, 3, 0), errFormat},
		{"end with a body", join(syn, frame(cmdFIN, 3, 0)), errFormat},
		{"keepalive with a body", frame(cmdNOP, 0, 0), errFormat},
		{"short update", join(syn, frame(cmdUPD, 3, 0, 0, 0, 0)), errFormat},
		{"short notice", frame(cmdPSH, 0, 0, 3, 0, 0), errFormat},
		{"unknown notice", notice(noticeReset+1, 3), errFormat},
		{"even stream", frame(cmdSYN, 2), errFormat},
		{"stream twice", join(syn, syn), errFormat},
		{"consumed what was not sent", join(syn, updated(3, 1)), errWindow},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				a, b := connect(1 << 20)
				server := start(t, b, false)
				a.Write(test.sent)
				synctest.Wait()
				if err := b.Err(); !errors.Is(err, test.err) || test.err == nil && err != nil {
					t.Errorf("the session: %v; want %v", err, test.err)
				}
				server.Close()
			})
		})
	}
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 20)
		start(t, b, true)
		a.Write(frame(cmdSYN, 2))
		synctest.Wait()
		if err := b.Err(); err != errFormat {
			t.Errorf("a server that opens a stream: %v", err)
		}
	})
}

// TestWire: what stands on the wire for a stream's life, both ways.
func TestWire(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 20)
		client := start(t, a, true)
		expect := func(what string, frames ...[]byte) {
			t.Helper()
			time.Sleep(2 * engine.OpenDelay)
			got := make([]byte, 1000)
			n := 0
			if b.in.mu.Lock(); len(b.in.buf) > 0 {
				n = copy(got, b.in.buf)
				b.in.buf = nil
			}
			b.in.mu.Unlock()
			if want := join(frames...); !bytes.Equal(got[:n], want) {
				t.Errorf("%s: %x; want %x", what, got[:n], want)
			}
		}
		c := open(t, client)
		expect("Open", frame(cmdSYN, 3), updated(3, 0))
		io.WriteString(c, "hello")
		expect("Write", frame(cmdPSH, 3, []byte("hello")...))
		c.CloseWrite()
		expect("CloseWrite", frame(cmdFIN, 3))
		c.Close()
		expect("Close after that", notice(noticeStop, 3), frame(cmdFIN, 3))
		c = open(t, client)
		expect("Open", frame(cmdSYN, 5), updated(5, 0))
		c.Reset()
		expect("Reset", notice(noticeReset, 5), frame(cmdFIN, 5))
		c = open(t, client)
		expect("Open", frame(cmdSYN, 7), updated(7, 0))
		b.Write(frame(cmdFIN, 7))
		synctest.Wait()
		c.Close()
		expect("Close after the other side's end", frame(cmdFIN, 7))
	})
}

// TestWindowIgnored: a peer that ignores a stream's window ends its session
// before the stream holds more.
func TestWindowIgnored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 20)
		server := start(t, b, false)
		a.Write(frame(cmdSYN, 3))
		st := accept(t, server)
		block := frame(cmdPSH, 3, make([]byte, frameSize)...)
		for range streamWindow / frameSize {
			a.Write(block)
			synctest.Wait()
		}
		if err := b.Err(); err != nil || st.unread != streamWindow {
			t.Fatalf("at the window %d bytes are unread: %v", st.unread, err)
		}
		for range 1 + maxFrame/frameSize { // a frame more is let pass
			a.Write(block)
		}
		synctest.Wait()
		if err := b.Err(); err != errWindow || st.unread > streamWindow+maxFrame {
			t.Errorf("beyond the window: %v with %d bytes unread", err, st.unread)
		}
	})
}

// TestHeld: a session that holds as much as it may reads no more, whatever its
// streams are, until some of it was read.
func TestHeld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 20)
		server := start(t, b, false)
		block := make([]byte, frameSize)
		const streams = 1 + maxHeld/streamWindow
		var all []*Stream
		for i := range streams {
			id := uint32(3 + 2*i)
			a.Write(frame(cmdSYN, id))
			all = append(all, accept(t, server))
		}
		for _, st := range all {
			for range streamWindow / frameSize {
				a.Write(frame(cmdPSH, st.id, block...))
				synctest.Wait()
			}
		}
		if err := b.Err(); err != nil {
			t.Fatal(err)
		}
		if server.held > maxHeld+cost(frameSize) {
			t.Errorf("%d bytes are held; want %d at most", server.held, maxHeld)
		}
		if waits := a.Waiting(); waits < frameSize {
			t.Errorf("only %d bytes wait at the peer: the session read on", waits)
		}
		// What is read makes room, and what was closed as well.
		if _, err := io.ReadFull(all[0], make([]byte, streamWindow)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for _, st := range all[1:] {
			st.Close()
		}
		synctest.Wait()
		if waits := a.Waiting(); waits > 0 || server.held != streamCost {
			t.Errorf("%d bytes wait and %d are held when nothing is unread", waits, server.held)
		}
	})
}

// TestTooMany: streams that nobody accepts or closes are refused beyond a limit,
// and the others live, until they are far too many.
func TestTooMany(t *testing.T) {
	const room = maxStreams
	bubble(t, func(t *testing.T) {
		client, server := pair(t)
		for range engine.MaxStreams {
			open(t, client)
		}
		if _, err := client.Open(context.Background()); err != engine.ErrTooMany {
			t.Errorf("Open beyond the limit: %v", err)
		}
		for range engine.MaxStreams {
			accept(t, server)
		}
	})
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 20)
		server := start(t, b, false)
		next := uint32(3)
		syn := func(n int) {
			for range n {
				a.Write(frame(cmdSYN, next))
				next += 2
			}
			synctest.Wait()
		}
		syn(room)
		a.in.Clear()
		syn(1)
		got := make([]byte, 1000)
		got = got[:copy(got, a.in.buf)]
		if want := join(notice(noticeReset, next-2), frame(cmdFIN, next-2)); !bytes.Equal(got, want) {
			t.Errorf("a stream too many is answered by %x; want %x", got, want)
		}
		a.Write(join(frame(cmdPSH, next-2, content(1000)...), frame(cmdFIN, next-2)))
		syn(4096)
		if server.smux.NumStreams() != room || len(server.streams) != room || server.held != room*streamCost {
			t.Errorf("smux has %d streams, we have %d, and hold %d bytes", server.smux.NumStreams(), len(server.streams), server.held)
		}
		accept(t, server).Close()
		syn(1)
		a.Write(frame(cmdPSH, next-2, 'x'))
		for range room - 1 {
			accept(t, server)
		}
		if got, err := accept(t, server).Read(make([]byte, 2)); got != 1 || err != nil {
			t.Errorf("a stream for which there was room again: %d, %v", got, err)
		}
		if syn(4096); b.Err() != nil {
			t.Errorf("with thousands refused the session ends: %v", b.Err())
		}
	})
}

// TestRefused: for the client a stream that the server has no room for was reset.
func TestRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		client, server := pair(t)
		for range maxStreams { // that the server does not close
			c := open(t, client)
			accept(t, server)
			c.Close()
		}
		c := open(t, client)
		time.Sleep(2 * engine.OpenDelay)
		if _, err := c.Write(content(100)); !errors.Is(err, engine.ErrReset) {
			t.Errorf("Write: %v", err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, engine.ErrReset) {
			t.Errorf("Read: %v", err)
		}
		c.Close()
		if client.held != 0 {
			t.Errorf("%d held", client.held)
		}
	})
}

// TestFlood: who asks for answers and does not take them ends its session.
func TestFlood(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 20)
		server := start(t, b, false)
		for id := uint32(3); b.Err() == nil && id < 1<<20; id += 2 {
			a.Write(frame(cmdSYN, id))
			if st, err := server.Accept(context.Background()); err == nil {
				st.Close()
			}
			synctest.Wait()
		}
		if err := b.Err(); err != errFlood {
			t.Errorf("the session: %v", err)
		}
		if waits := b.Waiting(); waits > maxAnswers+1<<10 {
			t.Errorf("%d bytes of answers wait", waits)
		}
	})
}

// TestBlockedChannel: without room nothing but Write waits, and a Write that gives
// up has sent nothing.
func TestBlockedChannel(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(0)
		client, server := start(t, a, true), start(t, b, false)
		start := time.Now()
		c := open(t, client)
		s := accept(t, server)
		c.SetWriteDeadline(start.Add(time.Second))
		if n, err := c.Write(make([]byte, frameSize)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write without room: %d, %v", n, err)
		}
		d := open(t, client)
		d.CloseWrite()
		d.Close()
		c.CloseWrite()
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %v; want the second of the Write alone", took)
		}
		if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("the peer reads %d, %v", n, err)
		}
	})
}

// content is n bytes of which no two neighbours are alike.
func content(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 7)
	}
	return p
}

// TestSmallWrites: what is written in small pieces leaves at once, and arrives whole
// whatever ends the stream, except for a reset, and whatever becomes of the pieces.
func TestSmallWrites(t *testing.T) {
	for _, end := range []struct {
		name string
		call func(*Stream) error
		want error
	}{{"CloseWrite", (*Stream).CloseWrite, nil}, {"Close", (*Stream).Close, nil}, {"Reset", (*Stream).Reset, engine.ErrReset}} {
		bubble(t, func(t *testing.T) {
			client, server := pair(t)
			c, s := open(t, client), accept(t, server)
			want := content(1 << 20)
			go func() {
				for rest := want; len(rest) > 0; {
					piece := bytes.Clone(rest[:min(1+len(rest)%300, len(rest))])
					c.Write(piece)
					rest = rest[len(piece):]
					clear(piece) // it is the caller's again
				}
				if end.want != nil {
					synctest.Wait() // all that was written may leave
				}
				end.call(c)
			}()
			got, err := io.ReadAll(s)
			if !bytes.Equal(got, want) || !errors.Is(err, end.want) || end.want == nil && err != nil {
				t.Errorf("%s: %d bytes came of %d, %v", end.name, len(got), len(want), err)
			}
		})
	}
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 30)
		c := open(t, start(t, a, true))
		time.Sleep(2 * engine.OpenDelay)
		before := b.in.Len()
		c.Write([]byte("alone"))
		if n := b.in.Len() - before; n != headerSize+5 {
			t.Errorf("when Write returns %d bytes have left", n)
		}
	})
}

// TestOrder: streams that write at once have their turns one after the other.
func TestOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1)
		client := start(t, a, true)
		const streams, frames = 5, 20
		for range streams {
			c := open(t, client)
			time.Sleep(2 * engine.OpenDelay) // from then on there is no room
			go c.Write(make([]byte, frames*1000))
			go c.Write(make([]byte, frames*1000))
		}
		synctest.Wait()
		var order []uint32
		head := make([]byte, headerSize)
		for len(order) < streams*frames/10 {
			if _, err := io.ReadFull(b, head); err != nil {
				t.Fatal(err)
			}
			body := make([]byte, binary.LittleEndian.Uint16(head[2:]))
			io.ReadFull(b, body)
			if head[1] == cmdPSH {
				order = append(order, binary.LittleEndian.Uint32(head[4:]))
			}
			synctest.Wait()
		}
		count := make(map[uint32]int)
		for _, id := range order[:streams] {
			count[id]++
		}
		if len(count) != streams {
			t.Errorf("the first frames are of streams %v", order)
		}
	})
}

// TestPlainPeer: the other end may be any smux, in either role: bytes, ends and
// closes pass, and notices do it no harm.
func TestPlainPeer(t *testing.T) {
	config := smux.DefaultConfig()
	config.Version, config.KeepAliveDisabled = 2, true
	for _, role := range []string{"client", "server"} {
		t.Run(role, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				a, b := connect(64 << 10)
				ours := start(t, a, role == "client")
				plain := smux.Client
				if role == "client" {
					plain = smux.Server
				}
				theirs, err := plain(b, config)
				if err != nil {
					t.Fatal(err)
				}
				defer theirs.Close()
				streams := func() (engine.Stream, *smux.Stream) {
					t.Helper()
					if role == "client" {
						x := open(t, ours)
						y, err := theirs.AcceptStream()
						if err != nil {
							t.Fatal(err)
						}
						return x, y
					}
					y, err := theirs.OpenStream()
					if err != nil {
						t.Fatal(err)
					}
					return accept(t, ours), y
				}
				x, y := streams()
				const size = 1 << 20 // beyond smux's first window
				content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
				go func() { x.Write(content); x.CloseWrite() }()
				if got, err := io.ReadAll(y); err != nil || !bytes.Equal(got, content) {
					t.Errorf("theirs reads %d bytes, %v", len(got), err)
				}
				go func() { y.Write(content); y.CloseWrite() }()
				if got, err := io.ReadAll(x); err != nil || !bytes.Equal(got, content) {
					t.Errorf("ours reads %d bytes, %v", len(got), err)
				}
				x.Close()
				y.Close()
				x, y = streams()
				x.Reset()
				if _, err := y.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("a reset is for a plain smux %v; it knows an end only", err)
				}
				x, y = streams()
				y.Write([]byte("still well"))
				y.Close()
				if got, err := io.ReadAll(x); err != nil || string(got) != "still well" {
					t.Errorf("ours reads %q, %v", got, err)
				}
			})
		})
	}
}

// TestSessionEnd: what had come can still be read, and all calls return.
func TestSessionEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		client, server := pair(t)
		c := open(t, client)
		s := accept(t, server)
		io.WriteString(c, "last words")
		synctest.Wait()
		blocked := make(chan error, 2)
		go func() { _, err := server.Accept(context.Background()); blocked <- err }()
		go func() { _, err := s.Write(make([]byte, 2*streamWindow)); blocked <- err }()
		synctest.Wait()
		client.Close()
		for range 2 {
			if err := <-blocked; !errors.Is(err, engine.ErrReset) {
				t.Errorf("a call that was waiting: %v", err)
			}
		}
		got, err := io.ReadAll(s)
		if string(got) != "last words" || !errors.Is(err, engine.ErrReset) {
			t.Errorf("read %q, %v", got, err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write after Close: %v", err)
		}
	})
}

// TestLibrary fails with a smux in which something is different that this
// package relies on.
func TestLibrary(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 30)
		config := smux.DefaultConfig()
		config.Version, config.KeepAliveDisabled = 2, true
		plain, err := smux.Client(b, config)
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		st, err := plain.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		st.SetWriteDeadline(time.Now().Add(time.Second))
		if n, _ := st.Write(make([]byte, 2*firstWindow)); n != firstWindow {
			t.Errorf("smux's first window is %d bytes; want %d", n, firstWindow)
		}
		// A frame of a stream that it does not know is ignored.
		a.Write(notice(noticeReset, 3))
		a.Write(frame(cmdPSH, 3, []byte("hello")...))
		got := make([]byte, 10)
		if n, err := st.Read(got); err != nil || string(got[:n]) != "hello" {
			t.Errorf("after a notice smux reads %q, %v", got[:n], err)
		}
	})
}

// FuzzTap: no bytes of a peer make a session panic, wait for ever, or lose count
// of what it holds.
func FuzzTap(f *testing.F) {
	f.Add(join(frame(cmdSYN, 3), frame(cmdPSH, 3, 'x'), updated(3, 0), notice(noticeStop, 3), frame(cmdFIN, 3)), 1)
	f.Add(join(frame(cmdSYN, 3), frame(cmdSYN, 5), frame(cmdPSH, 5, make([]byte, 300)...), notice(noticeReset, 5)), 7)
	f.Add(frame(cmdNOP, 0), 3)
	f.Fuzz(func(t *testing.T, sent []byte, step int) {
		a, b := connect(1 << 20)
		a.Write(sent)
		b.Fail(io.EOF)
		s := &Session{carrier: b, channel: b, streams: make(map[uint32]*Stream), arrivals: make(chan struct{}, maxStreams), drained: make(chan struct{}, 1)}
		peer := &tap{s: s}
		for p := make([]byte, max(step%64, 1)); ; {
			if _, err := peer.Read(p); err != nil {
				break
			}
		}
		unread, held := 0, 0
		for _, st := range s.streams {
			unread += st.unread
			held += st.cost + streamCost
		}
		if unread > len(sent) || held != s.held || len(s.arrivals) != len(s.streams) {
			t.Errorf("%d bytes unread of %d, %d held of %d, %d pending of %d",
				unread, len(sent), held, s.held, len(s.arrivals), len(s.streams))
		}
	})
}
