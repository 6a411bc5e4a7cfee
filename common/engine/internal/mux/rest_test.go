package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

// isResting tells whether a session has no smux, and little unread.
func isResting(s *Session) bool { return s.channel.(*memory).held.Load() < sessionCost }

// hurry has a session look at once whether it may rest, or wakes it.
func hurry(s *Session) {
	half.Signal(s.nudge)
	runtime.Gosched()
}

// rests waits until a server's session rests.
func rests(t *testing.T, s *Session) {
	t.Helper()
	time.Sleep(2*restAfter + time.Second) // fake time
	synctest.Wait()
	if !isResting(s) {
		t.Fatal("the session does not rest")
	}
}

// TestRest: whatever follows a rest, the other side cannot tell it from a session that
// has not rested. Streams carry megabytes between rests, so that their counts matter.
func TestRest(t *testing.T) {
	for _, test := range []struct {
		name string
		next func(t *testing.T, client, server *Session, c, s *Stream)
	}{
		{"client writes", func(t *testing.T, _, _ *Session, c, s *Stream) { pass(t, c, s, 100) }},
		{"server writes", func(t *testing.T, _, _ *Session, c, s *Stream) { pass(t, s, c, 100) }},
		{"client writes much", func(t *testing.T, _, _ *Session, c, s *Stream) { passMuch(t, c, s) }},
		{"server writes much", func(t *testing.T, _, _ *Session, c, s *Stream) { passMuch(t, s, c) }},
		{"client opens another", func(t *testing.T, client, server *Session, c, s *Stream) {
			another, accepted := open(t, client), accept(t, server)
			pass(t, another, accepted, 1000)
			pass(t, accepted, another, 1000)
		}},
		{"client closes", func(t *testing.T, _, _ *Session, c, s *Stream) {
			c.Close()
			ends(t, s, io.EOF)
		}},
		{"server closes", func(t *testing.T, _, _ *Session, c, s *Stream) {
			s.Close()
			ends(t, c, io.EOF)
		}},
		{"server ends its direction", func(t *testing.T, _, _ *Session, c, s *Stream) {
			s.CloseWrite()
			ends(t, c, io.EOF)
			pass(t, c, s, 1000)
		}},
		{"client ends its direction", func(t *testing.T, _, server *Session, c, s *Stream) {
			c.CloseWrite()
			rests(t, server)
			ends(t, s, io.EOF)
			pass(t, s, c, 1000)
			rests(t, server)
			s.CloseWrite()
			ends(t, c, io.EOF)
			rests(t, server)
			s.Close()
		}},
		{"client resets", func(t *testing.T, _, _ *Session, c, s *Stream) {
			c.Reset()
			ends(t, s, engine.ErrReset)
		}},
		{"server resets", func(t *testing.T, _, _ *Session, c, s *Stream) {
			s.Reset()
			ends(t, c, engine.ErrReset)
		}},
		{"session ends", func(t *testing.T, client, server *Session, c, s *Stream) {
			client.Close()
			ends(t, s, engine.ErrReset)
		}},
		{"server ends the session", func(t *testing.T, client, server *Session, c, s *Stream) {
			server.Close()
			ends(t, c, engine.ErrReset)
			ends(t, s, engine.ErrClosed)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				client, server := pair(t)
				c, other := open(t, client), open(t, client)
				s, _ := accept(t, server), accept(t, server)
				for range 2 {
					pass(t, c, s, 3<<20)
					pass(t, s, c, 3<<20)
					rests(t, server)
				}
				if held := server.channel.(*memory).held.Load(); held != restCost+2*streamCost {
					t.Errorf("%d bytes are held at rest; want %d", held, restCost+2*streamCost)
				}
				test.next(t, client, server, c, s)
				_ = other
				client.Close()
				server.Close()
			})
		})
	}
}

// pass writes bytes at one end of a stream and reads them at the other.
func pass(t *testing.T, from, to *Stream, size int) {
	t.Helper()
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i>>8 ^ i)
	}
	var writing sync.WaitGroup
	writing.Go(func() {
		if _, err := from.Write(want); err != nil {
			t.Errorf("Write: %v", err)
		}
	})
	got := make([]byte, size)
	if _, err := io.ReadFull(to, got); err != nil {
		t.Errorf("Read: %v", err)
	}
	writing.Wait()
	if !bytes.Equal(got, want) {
		t.Error("other bytes have come")
	}
}

// passMuch passes more than a window, and looks whether the reader tells what it has
// read of all, and not of what came since the rest.
func passMuch(t *testing.T, from, to *Stream) {
	t.Helper()
	pass(t, from, to, streamWindow+2<<20)
	synctest.Wait()
	from.session.mu.Lock()
	defer from.session.mu.Unlock()
	if untold := from.sent - from.consumed; untold > updateEvery {
		t.Errorf("%d bytes are said to be unread", untold)
	}
}

// ends reads the end of a stream.
func ends(t *testing.T, st *Stream, want error) {
	t.Helper()
	if n, err := st.Read(make([]byte, 1)); n != 0 || !errors.Is(err, want) {
		t.Errorf("read %d bytes and %v; want %v", n, err, want)
	}
}

// TestNoRest: a session does not rest while something is under way on it.
func TestNoRest(t *testing.T) {
	for _, test := range []struct {
		name string
		busy func(t *testing.T, client, server *Session, c, s *Stream)
	}{
		{"unread", func(t *testing.T, _, _ *Session, c, s *Stream) { c.Write([]byte("x")) }},
		{"being closed", func(t *testing.T, _, server *Session, c, s *Stream) {
			server.mu.Lock()
			defer server.mu.Unlock()
			s.closed = true // where Close has come so far
		}},
		{"not accepted", func(t *testing.T, client, _ *Session, c, s *Stream) { open(t, client) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				client, server := pair(t)
				c := open(t, client)
				s := accept(t, server)
				test.busy(t, client, server, c, s)
				time.Sleep(10 * restAfter)
				synctest.Wait()
				if isResting(server) {
					t.Error("the session rests")
				}
				client.Close()
				server.Close()
			})
		})
	}
}

// TestRestRaces: streams that are used, opened and closed whenever a session is about
// to rest or does. Run it under the race detector.
func TestRestRaces(t *testing.T) {
	client, server := pair(t)
	var group sync.WaitGroup
	done := make(chan struct{})
	var rested atomic.Int64
	group.Go(func() {
		for {
			st, err := server.Accept(context.Background())
			if err != nil {
				return
			}
			group.Go(func() {
				io.Copy(st, st)
				st.Close()
			})
		}
	})
	group.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				hurry(server)
				if isResting(server) {
					rested.Add(1)
				}
			}
		}
	})
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			for n := 0; n < 50 || rested.Load() == 0; n++ { // when it rests is chance
				st := open(t, client)
				for size := 1; size < 64<<10; size *= 7 {
					pass(t, st, st, size)
				}
				st.Close()
			}
		})
	}
	users.Wait()
	close(done)
	client.Close()
	server.Close()
	group.Wait()
}
