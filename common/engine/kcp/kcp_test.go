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
)

func TestConformance(t *testing.T) { enginetest.Run(t, Engine{}) }

func TestEarly(t *testing.T) { enginetest.RunEarly(t, Engine{}) }

func BenchmarkEngine(b *testing.B) { enginetest.Benchmark(b, Engine{}) }

// TestMarks: what the last byte of a message says, and which end the session.
func TestMarks(t *testing.T) {
	type messages []string
	for _, test := range []struct {
		name     string
		client   bool
		messages messages
		content  string
		err      error // after the content; nil: more may come
	}{
		{"open", false, messages{"\x01"}, "", nil},
		{"open with content", false, messages{"hi\x01"}, "hi", nil},
		{"everything", false, messages{"hi\x01", "ho\x06"}, "hiho", io.EOF},
		{"end alone", false, messages{"hi\x01", "\x02"}, "hi", io.EOF},
		{"content after the end", false, messages{"hi\x03", "ho\x00"}, "hi", io.EOF},
		{"answer", true, messages{"hi\x00", "\x04", "ho\x02"}, "hiho", io.EOF},
		{"reset", true, messages{"hi\x00", "\x08"}, "hi", engine.ErrReset},
		{"reset after an end that was not read", true, messages{"hi\x02", "\x08"}, "hi", engine.ErrReset},
		{"no open", false, messages{"hi\x00"}, "", errFormat},
		{"open twice", false, messages{"hi\x01", "ho\x01"}, "hi", errFormat},
		{"server opens", true, messages{"hi\x01"}, "", errFormat},
		{"reserved", true, messages{"hi\x00", "ho\x10"}, "hi", errFormat},
	} {
		x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
		from, to := prepare(x, !test.client), prepare(y, test.client)
		for _, m := range test.messages {
			from.kcp.Send([]byte(m))
			from.flush(time.Now())
		}
		for _, d := range from.packed.list {
			to.receive(d, nil)
		}
		for _, size := range []int{1, 4096} { // by bytes, and at once
			if size == 1 && len(test.content) > 0 {
				var b [1]byte
				if n, err := to.recv(b[:], nil); n != 1 || err != nil || b[0] != test.content[0] {
					t.Errorf("%s: read %d, %v", test.name, n, err)
				}
				continue
			}
			got := make([]byte, size)
			n, err := to.recv(got, nil)
			if want := test.content[min(1, len(test.content)):]; size > 1 && string(got[:n]) != want {
				t.Errorf("%s: %q arrived; want %q", test.name, got[:n], want)
			}
			if n > 0 {
				n, err = to.recv(got, nil)
			}
			if n != 0 || !errors.Is(err, test.err) {
				t.Errorf("%s: at the end %d, %v; want %v", test.name, n, err, test.err)
			}
		}
	}
}

// open returns both ends of a session, which end with the test, the client's stream and
// its carrier.
func open(t *testing.T) (client, server *session, c engine.Stream, x *enginetest.Conn) {
	x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	client, server = newSession(x, true), newSession(y, false)
	t.Cleanup(func() { client.Close() })
	t.Cleanup(func() { server.Close() })
	c, err := client.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return client, server, c, x
}

// TestMalformedEndsSession: and what had arrived before can still be read.
func TestMalformedEndsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, c, _ := open(t)
		io.WriteString(c, "good")
		time.Sleep(time.Second)
		client.mu.Lock()
		client.out.marks = markOpen // once more: malformed
		client.poke()
		client.mu.Unlock()
		s, err := server.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(s)
		if string(got) != "good" || !errors.Is(err, errFormat) {
			t.Errorf("read %q, %v", got, err)
		}
		<-server.Done()
		if _, err := server.Open(context.Background()); !errors.Is(err, errFormat) || !errors.Is(err, engine.ErrReset) {
			t.Errorf("the session ended with %v", err)
		}
	})
}

// TestWriteAfterTheStream: who writes to a stream that the other side has closed hears of
// that, also when the session has ended by itself because nothing more is to come.
func TestWriteAfterTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, server, c, x := open(t)
		s, err := server.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if _, err := io.ReadAll(s); err != nil {
			t.Fatal(err)
		}
		time.Sleep(restAfter / 2)
		x.SetDown(true) // the farewell is lost
		<-server.Done()
		if _, err := s.Write([]byte("x")); !errors.Is(err, engine.ErrReset) || errors.Is(err, engine.ErrClosed) {
			t.Errorf("a Write after the other side's Close: %v", err)
		}
	})
}

// TestSlowReader: the session lasts until all that was written was read, since who
// hears of its end closes it, and what was not read is lost then.
func TestSlowReader(t *testing.T) {
	for name, end := range map[string]func(c engine.Stream) error{
		"Close":      engine.Stream.Close,
		"CloseWrite": engine.Stream.CloseWrite,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, server, c, _ := open(t)
				s, err := server.Accept(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				s.CloseWrite()
				io.ReadAll(c)
				want := content(100 << 10)
				c.Write(want)
				end(c)
				closed := make(chan struct{})
				go func() {
					<-server.Done()
					server.Close()
					close(closed)
				}()
				time.Sleep(time.Hour)
				if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
					t.Errorf("read %d bytes of %d, %v", len(got), len(want), err)
				}
				<-closed
			})
		})
	}
}

// TestClientEndsFirst: a session that is over is ended by the client, who would take the
// end by the server for a loss, whoever has spoken last.
func TestClientEndsFirst(t *testing.T) {
	for _, last := range []string{"client", "server"} {
		synctest.Test(t, func(t *testing.T) {
			client, server, c, _ := open(t)
			s, err := server.Accept(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			c.CloseWrite()
			s.CloseWrite()
			first, second := s, c
			if last == "server" {
				first, second = c, s
			}
			io.ReadAll(first)
			time.Sleep(time.Minute)
			io.ReadAll(second)
			<-client.Done()
			<-server.Done()
			if client.Err() != engine.ErrClosed || !errors.Is(server.Err(), errPeerClosed) {
				t.Errorf("the %s has spoken last: client %v, server %v", last, client.Err(), server.Err())
			}
		})
	}
}

// TestCloseWriteAgain: a second CloseWrite leaves the other direction alone, also when
// Read has seen its end and not returned all that stood before it.
func TestCloseWriteAgain(t *testing.T) {
	x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	from, to := prepare(x, true), prepare(y, false) // nothing runs
	from.Append([]byte("hi"))
	from.end(markEnd)
	from.flush(time.Now())
	to.receive(from.packed.list[0], nil)
	var got [1]byte
	to.recv(got[:], nil)
	for range 2 {
		if err := (stream{to}).CloseWrite(); err != nil {
			t.Error(err)
		}
	}
	if n, err := to.recv(got[:], nil); n != 1 || got[0] != 'i' {
		t.Errorf("after a second CloseWrite Read returns %q, %v", got[:n], err)
	}
	if _, err := to.recv(got[:], nil); err != io.EOF {
		t.Errorf("and at the end %v", err)
	}
}

// TestEndsAfterEnd: what follows the end of file that Read has returned is nobody's, and
// keeps the session from neither rest nor end.
func TestEndsAfterEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, server, c, _ := open(t)
		c.CloseWrite()
		s, err := server.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(s); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite() // says END once more
		time.Sleep(2 * restAfter)
		server.mu.Lock()
		if server.kcp != resting {
			t.Error("a session whose stream has ended does not rest")
		}
		server.mu.Unlock()
		s.CloseWrite()
		io.ReadAll(c)
		select {
		case <-server.Done():
		case <-time.After(time.Minute):
			t.Error("nor does it end")
		}
	})
}

// TestEmptyRead: a Read of nothing does not return the end before what stands there.
func TestEmptyRead(t *testing.T) {
	x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
	from, to := prepare(x, true), prepare(y, false) // nothing runs
	from.Append([]byte("hi"))
	from.end(markEnd)
	from.flush(time.Now())
	to.receive(from.packed.list[0], nil)
	var got [1]byte
	for _, want := range "hi" {
		if n, err := to.recv(nil, nil); n != 0 || err != nil {
			t.Errorf("a Read of nothing before %q returns %d, %v", want, n, err)
		}
		if n, err := to.recv(got[:], nil); n != 1 || err != nil || rune(got[0]) != want {
			t.Errorf("Read returns %q, %v; want %q", got[:n], err, want)
		}
	}
	if to.in.ate {
		t.Error("the end counts as read")
	}
}
