package kcpsmux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
	"turbotunnel/common/engine/internal/duplex"
)

func TestConformance(t *testing.T) { enginetest.Run(t, Engine{}) }

func TestEarly(t *testing.T) { enginetest.RunEarly(t, Engine{}) }

func BenchmarkEngine(b *testing.B) { enginetest.Benchmark(b, Engine{}) }

// offline returns a session that has no goroutines and no network.
func offline(client bool) *session {
	pc, _ := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	return prepare(pc, client)
}

// handleAll handles a segment as Arrived does.
func (s *session) handleAll(p []byte) error {
	for len(p) > 0 {
		rest, err := s.handle(p)
		if err != nil {
			return err
		}
		p = rest
	}
	return nil
}

func frame(cmd byte, id uint32, body ...byte) []byte {
	p := make([]byte, headerSize)
	putHeader(p, cmd, len(body), id)
	return append(p, body...)
}

func updFrame(id, consumed, window uint32) []byte {
	body := binary.LittleEndian.AppendUint32(nil, consumed)
	return frame(cmdUPD, id, binary.LittleEndian.AppendUint32(body, window)...)
}

func lndFrame(limit uint32) []byte {
	return frame(cmdLND, 0, binary.LittleEndian.AppendUint32(nil, limit)...)
}

// left is what of the budget is in no stream's window, in bytes.
func (s *session) left() int { return s.budget.Free + s.budget.Lent*duplex.Piece }

func join(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

// TestFrames: what each kind of frame does, and which end the session.
func TestFrames(t *testing.T) {
	syn, psh := frame(cmdSYN, 1), frame(cmdPSH, 1, 'x')
	otherVersion := bytes.Clone(syn)
	otherVersion[0] = 1
	for _, test := range []struct {
		name    string
		client  bool
		segment []byte
		err     error
	}{
		{"stream", false, join(syn, psh, frame(cmdFIN, 1)), nil},
		{"next stream", false, join(syn, frame(cmdSYN, 3), frame(cmdSYN, 9)), nil},
		{"nothing", false, join(frame(cmdNOP, 0), frame(cmdNOP, 77)), nil},
		{"stop", false, join(syn, frame(cmdSTP, 1), psh), nil},
		{"forgotten", false, join(syn, frame(cmdFIN, 1), frame(cmdSTP, 1), psh, updFrame(1, 0, 0)), nil},
		{"update", false, join(syn, updFrame(1, 0, 1<<20)), nil},
		{"loan", true, join(lndFrame(4), lndFrame(4), lndFrame(9)), nil},
		{"piece", false, join(syn, frame(cmdTAK, 1)), nil},
		{"piece for the forgotten", false, join(syn, frame(cmdFIN, 1), frame(cmdSTP, 1), frame(cmdTAK, 1)), nil},
		{"short header", false, syn[:headerSize-1], errFormat},
		{"short body", false, join(syn, psh[:headerSize]), errFormat},
		{"version", false, otherVersion, errFormat},
		{"command", false, frame(cmdTAK+1, 1), errFormat},
		{"empty data", false, join(syn, frame(cmdPSH, 1)), errFormat},
		{"long end", false, join(syn, frame(cmdFIN, 1, 0)), errFormat},
		{"short update", false, join(syn, frame(cmdUPD, 1, 0, 0, 0, 0)), errFormat},
		{"stream twice", false, join(syn, syn), errFormat},
		{"stream of the past", false, join(frame(cmdSYN, 3), syn), errFormat},
		{"even stream", false, frame(cmdSYN, 2), errFormat},
		{"server opens", true, syn, errFormat},
		{"data after the end", false, join(syn, frame(cmdFIN, 1), psh), errFormat},
		{"data without a stream", false, psh, errStream},
		{"data for an even stream", false, join(frame(cmdSYN, 3), frame(cmdPSH, 2, 'x')), errStream},
		{"short loan", false, frame(cmdLND, 0, 1, 0, 0), errFormat},
		{"loan for a stream", false, join(syn, frame(cmdLND, 1, 1, 0, 0, 0)), errFormat},
		{"loan taken back", false, join(lndFrame(9), lndFrame(8)), errWindow},
		{"piece with a body", false, join(syn, frame(cmdTAK, 1, 0)), errFormat},
		{"piece without a stream", false, frame(cmdTAK, 1), errStream},
		{"piece for no stream", false, join(syn, frame(cmdTAK, 0)), errStream},
		{"piece after the end", false, join(syn, frame(cmdFIN, 1), frame(cmdTAK, 1)), errFormat},
		{"consumed too much", false, join(syn, updFrame(1, 1, 1<<20)), errWindow},
	} {
		s := offline(test.client)
		if err := s.handleAll(test.segment); !errors.Is(err, test.err) {
			t.Errorf("%s: %v; want %v", test.name, err, test.err)
		}
	}
}

// TestWindowIsEnforced: a peer that ignores flow control fills no memory.
func TestWindowIsEnforced(t *testing.T) {
	s := offline(false)
	if err := s.handleAll(frame(cmdSYN, 1)); err != nil {
		t.Fatal(err)
	}
	block := frame(cmdPSH, 1, make([]byte, 1024)...)
	for range s.streams[1].window.Size / 1024 {
		if err := s.handleAll(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.handleAll(block); err != errWindow {
		t.Errorf("beyond the window: %v", err)
	}

	// Pieces are limited, whatever stream they are for, and whatever became of it.
	for _, id := range []uint32{1, 3} {
		s = offline(false)
		s.handleAll(join(frame(cmdSYN, 1), frame(cmdSYN, 3), frame(cmdFIN, 3), frame(cmdSTP, 3)))
		n := 0
		for s.handleAll(frame(cmdTAK, id)) == nil && n < 1000 {
			n++
			if held := s.streams[1].window.Size - InitialWindow; held+s.left() != windowBudget {
				t.Fatalf("%d bytes in the window and %d left are not %d", held, s.left(), windowBudget)
			}
		}
		switch {
		case id == 1 && n > windowBudget/duplex.Piece:
			t.Errorf("%d pieces were taken", n)
		case id == 3 && n < 1000:
			t.Errorf("of a stream that is gone %d pieces are held", n)
		}
	}

	// Many streams, each within its window, are limited together.
	s = offline(false)
	var err error
	id := uint32(1)
	for ; err == nil && id < 4*maxStreams; id += 2 {
		err = s.handleAll(frame(cmdSYN, id))
		for i := 0; err == nil && i < InitialWindow/1024; i++ {
			err = s.handleAll(frame(cmdPSH, id, block[headerSize:]...))
		}
	}
	if err != errWindow || s.unread > maxUnread+1024 {
		t.Errorf("%d streams hold %d bytes: %v", id/2, s.unread, err)
	}
}

// TestStreamsAreLimited: opened streams that nobody accepts or closes.
func TestStreamsAreLimited(t *testing.T) {
	for name, rest := range map[string][]byte{"open": nil, "over": {cmdFIN, cmdSTP}} {
		s := offline(false)
		var err error
		n := 0
		for ; err == nil && n < 1<<20; n++ {
			id := uint32(2*n + 1)
			p := frame(cmdSYN, id)
			for _, cmd := range rest {
				p = append(p, frame(cmd, id)...)
			}
			err = s.handleAll(p)
		}
		if err != errTooMany || n > 2*maxStreams+1 {
			t.Errorf("%s: %d streams, then %v", name, n, err)
		}
	}

	s := offline(true)
	ctx := context.Background()
	for range maxStreams {
		if _, err := s.Open(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Open(ctx); err != errTooMany {
		t.Errorf("Open: %v", err)
	}
}

// TestStreamsAreForgotten: no stream stays in the session when it is over, in
// whatever order it ends.
func TestStreamsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := enginetest.Path{Delay: 50 * time.Millisecond}
		x, y := enginetest.Connect(path, path, 1)
		client, server := newSession(x, true), newSession(y, false)
		defer client.Close()
		defer server.Close()
		ctx := context.Background()
		for i := range 64 {
			c, err := client.Open(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if i&1 != 0 {
				c.Write(make([]byte, 1<<20)) // takes a piece
			}
			s, err := server.Accept(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if i&2 != 0 {
				s.Write(make([]byte, 1<<20))
			}
			if i&4 != 0 {
				time.Sleep(time.Second)
			}
			if i&8 != 0 {
				c.CloseWrite()
			}
			if i&16 != 0 {
				s.Close()
			}
			if i&32 != 0 {
				time.Sleep(time.Second)
			}
			c.Close()
			s.Close()
		}
		time.Sleep(time.Minute)
		for _, s := range []*session{client, server} {
			s.link.Mu.Lock()
			if len(s.streams) > 0 || s.unread != 0 || s.left() != windowBudget {
				t.Errorf("%d streams are left, %d bytes unread, window budget %d", len(s.streams), s.unread, s.left())
			}
			s.link.Mu.Unlock()
		}
	})
}

func TestNewStreamsNeedNoRoundTrip(t *testing.T) { enginetest.RunNewStreams(t, Engine{}) }

// TestStoppedReaders: streams that nobody reads hold no more than is
// documented, leave something to the others, and give it back.
func TestStoppedReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := enginetest.Path{Delay: 50 * time.Millisecond}
		x, y := enginetest.Connect(path, path, 1)
		client, server := newSession(x, true), newSession(y, false)
		defer client.Close()
		defer server.Close()
		const n = 20
		for range n {
			c, err := client.Open(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for block := make([]byte, 1<<20); ; {
					if _, err := c.Write(block); err != nil {
						return
					}
				}
			}()
			time.Sleep(10 * time.Second)
		}
		server.link.Mu.Lock()
		unread, left := server.unread, server.left()
		first := server.streams[1].window.Size
		server.link.Mu.Unlock()
		if most := windowBudget + n*InitialWindow; unread > most || left < 0 {
			t.Errorf("%d bytes unread, at most %d are documented; %d left", unread, most, left)
		}
		if most := InitialWindow + duplex.MaxPieces*duplex.Piece; first != most {
			t.Errorf("a stream that nobody has read has a window of %d; want %d", first, most)
		}

		// The last one still works, and the budget is whole in the end.
		var last engine.Stream
		for range n {
			s, err := server.Accept(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if last != nil {
				last.Close()
			}
			last = s
		}
		if _, err := io.CopyN(io.Discard, last, 64<<20); err != nil {
			t.Error(err)
		}
		last.Close()
		time.Sleep(time.Minute)
		server.link.Mu.Lock()
		defer server.link.Mu.Unlock()
		if len(server.streams) > 0 || server.left() != windowBudget {
			t.Errorf("%d streams, %d of the budget", len(server.streams), server.left())
		}
	})
}

// TestLoansAreForTheRefused: a loan is looked at by the streams that were refused
// a piece, and by no others; one that is not larger, by none.
func TestLoansAreForTheRefused(t *testing.T) {
	s := offline(false)
	handle := func(frames ...[]byte) {
		t.Helper()
		if err := s.handleAll(join(frames...)); err != nil {
			t.Fatal(err)
		}
	}
	waits := func(id uint32) *stream {
		t.Helper()
		handle(frame(cmdSYN, id), updFrame(id, 0, 0)) // a window of nothing
		st := s.streams[id]
		st.Write([]byte("x"))
		if _, ok := s.refused[st]; !ok {
			t.Fatal("a stream is not refused a piece that is not there")
		}
		return st
	}
	// If somebody looked at it, the first would take a piece, and the third be
	// refused no more.
	unseen, refused, stopped := waits(1), waits(3), waits(5)
	delete(s.refused, unseen)
	handle(frame(cmdSTP, 5), lndFrame(0))
	if _, ok := s.refused[stopped]; !ok {
		t.Error("the streams have looked at a loan that is not larger")
	}
	handle(lndFrame(2))
	if refused.pieces != 1 || unseen.pieces != 0 || len(s.refused) != 0 {
		t.Errorf("of a larger loan the streams that wait took %d pieces, others %d; %d still wait",
			refused.pieces, unseen.pieces, len(s.refused))
	}

	s.loan.Take()
	waits(7)
	handle(frame(cmdFIN, 7), frame(cmdSTP, 7))
	if len(s.refused) != 0 {
		t.Error("a forgotten stream waits for a loan")
	}
}

// TestServerDoesNotOpen and the client does not accept.
func TestServerDoesNotOpen(t *testing.T) {
	if _, err := offline(false).Open(context.Background()); err != errServerOpen {
		t.Errorf("Open on the server: %v", err)
	}
	if _, err := offline(true).Accept(context.Background()); err != errClient {
		t.Errorf("Accept on the client: %v", err)
	}
}

// FuzzHandle: no segment makes a session panic or hold more than it was sent,
// nor do the streams that it has opened.
func FuzzHandle(f *testing.F) {
	f.Add(join(frame(cmdSYN, 1), frame(cmdPSH, 1, []byte("hello")...), frame(cmdFIN, 1)))
	f.Add(join(frame(cmdSYN, 3), frame(cmdSYN, 5), frame(cmdSTP, 3), updFrame(5, 0, 9)))
	f.Add(join(frame(cmdSYN, 1), updFrame(1, 0, ^uint32(0)), frame(cmdNOP, 4)))
	f.Add(join(lndFrame(3), frame(cmdSYN, 1), frame(cmdTAK, 1), frame(cmdSTP, 1), frame(cmdTAK, 1)))
	f.Add(join(frame(cmdSYN, 1), frame(cmdFIN, 1), frame(cmdSTP, 1), frame(cmdTAK, 1), lndFrame(1<<31)))
	f.Fuzz(func(t *testing.T, p []byte) {
		s := offline(false)
		s.handleAll(p)
		if s.unread > len(p) {
			t.Errorf("%d bytes unread of %d", s.unread, len(p))
		}
		streams := slices.Collect(maps.Values(s.streams))
		sum := s.left()
		for _, st := range streams {
			sum += st.window.Size - InitialWindow
		}
		if sum != windowBudget || s.budget.Free < 0 || s.budget.Lent < 0 {
			t.Errorf("the budget is %d bytes: %+v", sum, s.budget)
		}
		for _, st := range streams {
			st.Write([]byte("answer"))
			st.Close()
		}
		s.handleAll(p)
		for st := range s.refused {
			if s.streams[st.id] != st {
				t.Errorf("stream %d is forgotten and waits for a loan", st.id)
			}
		}
		if s.unread != 0 {
			t.Errorf("%d bytes unread in closed streams", s.unread)
		}
	})
}

// FuzzWrites: whatever streams write, in whatever portions, comes out of the
// right one in the right order. Two bytes of ops are a stream and a size.
func FuzzWrites(f *testing.F) {
	f.Add([]byte{0, 1, 1, 255, 0, 255, 2, 0, 0, 3})
	f.Add(bytes.Repeat([]byte{0, 200, 1, 9}, 50))
	f.Fuzz(func(t *testing.T, ops []byte) {
		synctest.Test(t, func(t *testing.T) {
			x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
			client, server := newSession(x, true), newSession(y, false)
			defer client.Close()
			defer server.Close()
			var streams []engine.Stream
			want := make([][]byte, 3)
			for range want {
				c, err := client.Open(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				streams = append(streams, c)
			}
			for ; len(ops) >= 2; ops = ops[2:] {
				i := int(ops[0]) % len(want)
				p := bytes.Repeat(ops[:1], 16*int(ops[1]))
				if len(want[i])+len(p) > InitialWindow {
					break // nobody reads yet
				}
				want[i] = append(want[i], p...)
				if _, err := streams[i].Write(p); err != nil {
					t.Fatal(err)
				}
			}
			for i, c := range streams {
				c.Close()
				s, err := server.Accept(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want[i]) {
					t.Errorf("stream %d: %d bytes arrived of %d: %v", i, len(got), len(want[i]), err)
				}
				s.Close()
			}
		})
	})
}
