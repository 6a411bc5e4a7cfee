package kcp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
	"turbotunnel/common/engine/internal/arq"
)

func TestConformance(t *testing.T) { enginetest.Run(t, Engine{}) }

func TestEarly(t *testing.T) { enginetest.RunEarly(t, Engine{}) }

func BenchmarkEngine(b *testing.B) { enginetest.Benchmark(b, Engine{}) }

// offline returns a session that has no goroutines and no network.
func offline(client bool) *session {
	pc, _ := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	return prepare(pc, client)
}

func TestMarks(t *testing.T) {
	open, stop, end := []byte{0, 0}, []byte{0xFF, 0xFE}, []byte{0xFF, 0xFF}
	data := []byte{0, 2, 'h', 'i'}
	join := func(marks ...[]byte) []byte { return bytes.Join(marks, nil) }
	for _, test := range []struct {
		name    string
		client  bool
		segment []byte
		ok      bool
		content string
	}{
		{"open", false, open, true, ""},
		{"everything", false, join(open, data, data, end, stop), true, "hihi"},
		{"after the end", false, join(open, data, end, data), true, "hi"},
		{"answer", true, join(data, stop, end), true, "hi"},
		{"no open", false, data, false, ""},
		{"open twice", false, join(open, open), false, ""},
		{"server opens", true, open, false, ""},
		{"half a mark", false, join(open, end[:1]), false, ""},
		{"data cut", false, join(open, data[:3]), false, ""},
		{"reserved", false, join(open, []byte{0xFF, 0xFD}), false, ""},
	} {
		s := offline(test.client)
		if ok := s.handle(test.segment); ok != test.ok {
			t.Errorf("%s: well formed: %t; want %t", test.name, ok, test.ok)
			continue
		}
		got := make([]byte, 10)
		n := 0
		if s.stream.Buffered() > 0 {
			n, _ = s.stream.Read(got)
		}
		if string(got[:n]) != test.content {
			t.Errorf("%s: %q arrived; want %q", test.name, got[:n], test.content)
		}
	}
}

// TestMalformedEndsSession: and what had arrived before can still be read.
func TestMalformedEndsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
		client, server := newSession(x, true), newSession(y, false)
		defer client.Close()
		defer server.Close()
		c, err := client.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "good")
		synctest.Wait()
		time.Sleep(time.Second)
		client.link.Mu.Lock()
		client.openDue = true // once more: malformed
		client.link.Ready(0)
		client.link.Mu.Unlock()
		<-server.Done()
		if _, err := server.Open(context.Background()); !errors.Is(err, errFormat) || !errors.Is(err, engine.ErrReset) {
			t.Errorf("the session ended with %v", err)
		}
		s, err := server.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(s)
		if string(got) != "good" || !errors.Is(err, errFormat) {
			t.Errorf("read %q, %v", got, err)
		}
	})
}

// TestWindowGrows: a fast reader gets a large window, one that stops keeps the
// small one.
func TestWindowGrows(t *testing.T) {
	for name, test := range map[string]struct {
		reads bool
		limit int
	}{
		"fast":    {true, arq.MaxWindow},
		"stopped": {false, InitialWindow},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := enginetest.Path{Delay: 100 * time.Millisecond}
				x, y := enginetest.Connect(path, path, 1)
				client, server := newSession(x, true), newSession(y, false)
				defer client.Close()
				defer server.Close()
				c, _ := client.Open(context.Background())
				s, err := server.Accept(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				c.SetWriteDeadline(time.Now().Add(time.Minute))
				done := make(chan int)
				go func() {
					n, _ := c.Write(make([]byte, 64<<20))
					c.Close()
					done <- n
				}()
				if test.reads {
					io.Copy(io.Discard, s)
				}
				written := <-done
				server.link.Mu.Lock()
				defer server.link.Mu.Unlock()
				if server.window.Size != test.limit {
					t.Errorf("the window is %d segments; want %d", server.window.Size, test.limit)
				}
				if !test.reads && written > 2*InitialWindow*arq.SegmentSize {
					t.Errorf("%d bytes were written and nobody read", written)
				}
			})
		})
	}
}

// FuzzHandle: no segment makes a session panic or hold more than it was sent.
func FuzzHandle(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 'h', 'i', 0xFF, 0xFE, 0xFF, 0xFF})
	f.Add([]byte{0, 0, 0, 9, 1})
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, client := range []bool{true, false} {
			s := offline(client)
			s.handle(p)
			if n := s.stream.Buffered(); n > len(p) {
				t.Errorf("%d bytes in the stream of %d", n, len(p))
			}
			s.stream.Write([]byte("answer"))
			s.stream.Close()
			s.handle(p)
			if n := s.stream.Buffered(); n != 0 {
				t.Errorf("%d bytes in a closed stream", n)
			}
		}
	})
}
