package quic

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
	"turbotunnel/common/engine/internal/half"
)

func TestConformance(t *testing.T) { enginetest.Run(t, Engine{}) }

func BenchmarkEngine(b *testing.B) { enginetest.Benchmark(b, Engine{}) }

// bound is a PacketConn with a binding, which may come to be known late.
type bound struct {
	*enginetest.Conn
	secret atomic.Pointer[[]byte]
	asked  atomic.Int32
}

func (b *bound) Binding() []byte {
	b.asked.Add(1)
	if p := b.secret.Load(); p != nil {
		return *p
	}
	return nil
}

func (b *bound) set(secret string) {
	p := []byte(secret)
	b.secret.Store(&p)
}

const delay = 50 * time.Millisecond

// bind returns the two ends of a network as bound ones. An empty secret is none.
func bind(client, server string) (x, y *bound) {
	a, b := enginetest.Connect(enginetest.Path{Delay: delay}, enginetest.Path{Delay: delay}, 1)
	x, y = &bound{Conn: a}, &bound{Conn: b}
	if client != "" {
		x.set(client)
	}
	if server != "" {
		y.set(server)
	}
	return x, y
}

// start starts both ends and has them closed at the end of the test.
func start(t *testing.T, x, y engine.Carrier) (client, server *session) {
	t.Helper()
	c, err := Engine{}.Client(x)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Engine{}.Server(y)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		s.Close()
	})
	return c.(*session), s.(*session)
}

func open(t *testing.T, s *session) engine.Stream {
	t.Helper()
	st, err := s.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func accept(t *testing.T, s *session) engine.Stream {
	t.Helper()
	st, err := s.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// TestBinding: the two ends of two sealed sessions do not become one session.
func TestBinding(t *testing.T) {
	for _, test := range []struct {
		name, client, server string
		good                 bool
	}{
		{"Same", "secret", "secret", true},
		{"None", "", "", true},
		{"Other", "secret", "other", false},
		{"OnlyClient", "secret", "", false},
		{"OnlyServer", "", "secret", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x, y := bind(test.client, test.server)
				client, server := start(t, x, y)
				if test.good {
					exchange(t, client, server)
					return
				}
				if _, err := client.Open(context.Background()); !errors.Is(err, errCertificate) || !errors.Is(err, engine.ErrReset) {
					t.Errorf("the client's Open: %v; want %v", err, errCertificate)
				}
				if _, err := server.Accept(context.Background()); err == nil {
					t.Error("the server accepted a stream")
				}
			})
		})
	}
}

// TestServerChecks: a client that does not look at the server's certificate is
// refused for its own.
func TestServerChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := bind("other", "secret")
		client, server := newSession(x, true), newSession(y, false)
		defer client.Close()
		defer server.Close()
		l, err := server.transport.Listen(tlsConfig(y), config(sessionWindow))
		if err != nil {
			t.Fatal(err)
		}
		careless := tlsConfig(x)
		careless.VerifyConnection = nil
		conn, err := client.transport.Dial(t.Context(), x.RemoteAddr(), careless, config(sessionWindow))
		if err != nil {
			t.Fatal(err) // TLS 1.3: the client is done before the server has seen its certificate
		}
		<-conn.Context().Done()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := l.Accept(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Accept: %v; want none", err)
		}
	})
}

// TestBindingComesLate: the carrier of a client knows its secret only when the
// server has answered. Until then it is not asked.
func TestBindingComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := bind("", "secret")
		client, server := start(t, x, y)
		time.Sleep(delay)
		synctest.Wait()
		if n := x.asked.Load(); n > 0 {
			t.Errorf("asked %d times for a binding that nobody can know", n)
		}
		if sent := x.Sent(); sent.Datagrams != 1 {
			t.Errorf("the first flight is %+v; want one datagram", sent)
		}
		x.set("secret")
		exchange(t, client, server)
	})
}

// TestFirstBytes: what is written first arrives one and a half round trips after
// the session began, whether the stream is still open then or not.
func TestFirstBytes(t *testing.T) {
	for _, end := range []struct {
		name string
		end  func(engine.Stream) error
	}{
		{"CloseWrite", engine.Stream.CloseWrite},
		{"Close", engine.Stream.Close},
	} {
		t.Run(end.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x, y := bind("", "")
				client, server := start(t, x, y)
				begin := time.Now()
				c := open(t, client)
				text := bytes.Repeat([]byte("x"), packetSize)
				if n, err := c.Write(text); n != len(text) || err != nil {
					t.Fatalf("Write: %d, %v", n, err)
				}
				if err := end.end(c); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Write after the end: %v", err)
				}
				got, err := io.ReadAll(accept(t, server))
				if err != nil || !bytes.Equal(got, text) {
					t.Errorf("%d bytes arrived of %d: %v", len(got), len(text), err)
				}
				if d := time.Since(begin); d > 3*delay {
					t.Errorf("the first bytes took %v on a path of %v", d, delay)
				}
			})
		})
	}
}

// expectEnd checks how every call on a stream fails.
func expectEnd(t *testing.T, who string, st engine.Stream, want error) {
	t.Helper()
	if n, err := st.Read(make([]byte, 1)); n != 0 || !errors.Is(err, want) {
		t.Errorf("%s: Read: %d, %v; want %v", who, n, err, want)
	}
	if n, err := st.Write([]byte("x")); n != 0 || !errors.Is(err, want) {
		t.Errorf("%s: Write: %d, %v; want %v", who, n, err, want)
	}
}

// exchange makes a stream and has a byte pass in each direction.
func exchange(t *testing.T, client, server *session) (c, s engine.Stream) {
	t.Helper()
	pass := func(from, to engine.Stream) {
		if _, err := from.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	c = open(t, client)
	s = accept(t, server)
	pass(c, s)
	pass(s, c)
	return c, s
}

// TestReset: whichever side resets, the other one's calls fail by it, those in
// progress too, and this side's as after Close. It holds as well for a
// direction that has ended before, but not for an end that was read.
func TestReset(t *testing.T) {
	for _, byServer := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			x, y := bind("", "")
			client, server := start(t, x, y)
			pair := func() (near, far engine.Stream) {
				if near, far = exchange(t, client, server); byServer {
					near, far = far, near
				}
				return near, far
			}

			near, far := pair()
			blocked := make(chan error, 4)
			for _, st := range []engine.Stream{near, far} {
				go func() {
					_, err := st.Read(make([]byte, 1))
					blocked <- err
				}()
			}
			synctest.Wait()
			begin := time.Now()
			near.Reset()
			if d := time.Since(begin); d > 0 {
				t.Errorf("Reset took %v", d)
			}
			if err := <-blocked; !errors.Is(err, engine.ErrClosed) {
				t.Errorf("Read in progress on this side: %v", err)
			}
			if err := <-blocked; !errors.Is(err, engine.ErrReset) {
				t.Errorf("Read in progress on the other side: %v", err)
			}
			expectEnd(t, "this side", near, engine.ErrClosed)
			expectEnd(t, "the other side", far, engine.ErrReset)
			far.Close()

			near, far = pair()
			for _, st := range []engine.Stream{near, far} {
				go func() {
					_, err := st.Write(make([]byte, 2*maxWindow))
					blocked <- err
				}()
			}
			time.Sleep(time.Minute) // both windows are full
			near.Reset()
			if err := <-blocked; !errors.Is(err, engine.ErrClosed) {
				t.Errorf("Write in progress on this side: %v", err)
			}
			if err := <-blocked; !errors.Is(err, engine.ErrReset) {
				t.Errorf("Write in progress on the other side: %v", err)
			}
			far.Close()

			near, far = pair()
			near.Write([]byte("part"))
			near.CloseWrite()
			far.CloseWrite()
			time.Sleep(time.Minute)
			near.Reset()
			time.Sleep(time.Minute)
			if got, err := io.ReadAll(far); len(got) > 0 || !errors.Is(err, engine.ErrReset) {
				t.Errorf("Read of what had ended and was not read: %q, %v", got, err)
			}

			near, far = pair()
			near.CloseWrite()
			if _, err := io.ReadAll(far); err != nil {
				t.Fatal(err)
			}
			near.Reset()
			time.Sleep(time.Minute)
			if _, err := far.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("Read after an end that was read: %v", err)
			}
			if _, err := far.Write([]byte("x")); !errors.Is(err, engine.ErrReset) {
				t.Errorf("Write after a reset that follows the end: %v", err)
			}
			if client.err() != nil || server.err() != nil {
				t.Errorf("the sessions: %v, %v", client.err(), server.err())
			}
		})
	}
}

// TestResetDropsUnread: the library throws away what has arrived when a reset
// does. If this fails it keeps the order now, and the package comment is wrong.
func TestResetDropsUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := bind("", "")
		client, server := start(t, x, y)
		c, s := exchange(t, client, server)
		c.Write([]byte("unread"))
		time.Sleep(time.Minute)
		c.Reset()
		time.Sleep(time.Minute)
		if got, err := io.ReadAll(s); len(got) > 0 || !errors.Is(err, engine.ErrReset) {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// TestResetEarly: a stream that is reset before the other side has heard of it
// comes to exist there, reset.
func TestResetEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := bind("", "")
		client, server := start(t, x, y)
		silent, next := open(t, client), open(t, client)
		silent.Reset()
		next.Write([]byte("next"))
		st := accept(t, server)
		expectEnd(t, "the server", st, engine.ErrReset)
		st.Close()
		got := make([]byte, 4)
		if _, err := io.ReadFull(accept(t, server), got); err != nil || string(got) != "next" {
			t.Errorf("the stream after it: %q, %v", got, err)
		}
		expectEnd(t, "the client", silent, engine.ErrClosed)
	})
}

// TestResetAfterClose: what was written before a Close arrives with its end,
// whatever follows the Close.
func TestResetAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := bind("", "")
		client, server := start(t, x, y)
		for range 2 {
			c := open(t, client)
			c.Write([]byte("complete"))
			c.Close()
			for range 2 {
				if err := c.Reset(); err != nil {
					t.Error(err)
				}
			}
			s := accept(t, server)
			if got, err := io.ReadAll(s); string(got) != "complete" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
		}
		c, s := exchange(t, client, server)
		c.Reset()
		c.Close()
		expectEnd(t, "the other side", s, engine.ErrReset)
		server.Close()
		if err := s.Reset(); err != nil {
			t.Errorf("Reset after the session: %v", err)
		}
	})
}

// TestResetMakesRoom: streams that were reset do not count any more, neither in
// the library nor in the session.
func TestResetMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := bind("", "")
		client, server := start(t, x, y)
		for range engine.MaxStreams + engine.MaxStreams/2 {
			c := open(t, client)
			c.Reset()
			s := accept(t, server)
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, engine.ErrReset) {
				t.Fatal(err)
			}
			s.Reset()
		}
		time.Sleep(time.Second)
		server.account.mu.Lock()
		defer server.account.mu.Unlock()
		if n := len(server.account.inboxes); n > 0 {
			t.Errorf("%d streams are still known", n)
		}
	})
}

// TestOpenWaits: until the handshake is done Open waits, but not longer than its
// context and the session last.
func TestOpenWaits(t *testing.T) {
	for _, end := range []func(x *bound, s *session) error{
		func(_ *bound, s *session) error { s.Close(); return engine.ErrClosed },
		func(x *bound, _ *session) error { x.Break(io.ErrNoProgress); return io.ErrNoProgress },
	} {
		synctest.Test(t, func(t *testing.T) {
			x, y := bind("", "")
			defer y.Close()
			s := newClient(x)
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			if _, err := s.Open(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Open: %v; want %v", err, context.DeadlineExceeded)
			}
			opened := make(chan error, 1)
			go func() {
				_, err := s.Open(context.Background())
				opened <- err
			}()
			synctest.Wait()
			want := end(x, s)
			if err := <-opened; !errors.Is(err, want) {
				t.Errorf("Open on a session that ends: %v; want %v", err, want)
			}
		})
	}
}

// TestOpening: a stream is known to the server as soon as a datagram can be there,
// and what is written to it at once as well.
func TestOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := bind("", "")
		client, server := start(t, x, y)
		exchange(t, client, server)
		time.Sleep(time.Minute)
		begin := time.Now()
		open(t, client)
		accept(t, server)
		if d := time.Since(begin); d != delay {
			t.Errorf("the server knew of a stream after %v", d)
		}

		time.Sleep(time.Minute)
		before := x.Sent().Datagrams
		begin = time.Now()
		c := open(t, client)
		if _, err := c.Write([]byte("at once")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(accept(t, server), make([]byte, 7)); err != nil {
			t.Fatal(err)
		}
		if d, n := time.Since(begin), x.Sent().Datagrams-before; d != delay || n > 2 {
			t.Errorf("opening with data took %v and %d datagrams", d, n)
		}
	})
}

// TestTooManyStreams: where there are as many streams as there may be, Open waits
// until one is over, its context ends, or the session.
func TestTooManyStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := bind("", "")
		client, server := start(t, x, y)
		var streams []engine.Stream
		for range engine.MaxStreams {
			streams = append(streams, open(t, client))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := client.Open(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Open: %v; want %v", err, context.DeadlineExceeded)
		}
		accepted := accept(t, server)
		opened := make(chan error, 1)
		next := func() {
			_, err := client.Open(context.Background())
			opened <- err
		}
		go next()
		streams[0].Close()
		if _, err := io.ReadAll(accepted); err != nil {
			t.Error(err)
		}
		accepted.Close()
		if err := <-opened; err != nil {
			t.Error(err)
		}
		go next()
		synctest.Wait()
		client.lost(errOpening)
		if err := <-opened; !errors.Is(err, errOpening) {
			t.Errorf("Open on a session that ends: %v", err)
		}
	})
}

// TestOneConnection: a session takes one connection of the library's, of whatever
// number the client begins the handshake. Each would take 100 KB until it ends.
func TestOneConnection(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		var packets [][]byte
		for range 50 {
			x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
			client := newClient(x)
			p := make([]byte, engine.MaxDatagram)
			n, _, err := y.ReadFrom(p)
			if err != nil {
				t.Fatal(err)
			}
			packets = append(packets, p[:n])
			client.Close()
			y.Close()
		}
		x, y := enginetest.Connect(enginetest.Path{}, enginetest.Path{}, 1)
		server := newServer(y)
		x.WriteTo(packets[0], x.RemoteAddr())
		synctest.Wait()
		before := runtime.NumGoroutine()
		for _, p := range packets[1:] {
			x.WriteTo(p, x.RemoteAddr())
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if n := runtime.NumGoroutine() - before; n > 2 {
			t.Errorf("%d goroutines for %d handshakes more", n, len(packets)-1)
		}
		server.Close()
		x.Close()
	})
}

// TestNoOpening: a stream without the opening ends the session; its bytes are
// not delivered with one missing.
func TestNoOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := bind("", "")
		client, server := start(t, x, y)
		<-client.ready
		str, err := client.conn.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		str.Write([]byte("x"))
		s := accept(t, server)
		for range 2 {
			if n, err := s.Read(make([]byte, 10)); n != 0 || !errors.Is(err, errOpening) {
				t.Errorf("Read: %d, %v; want %v", n, err, errOpening)
			}
		}
		<-server.Done()
	})
}

// TestCloseTogether: several calls of Close, during everything, all return when
// the session is gone.
func TestCloseTogether(t *testing.T) {
	for _, after := range []time.Duration{0, delay, 2 * delay, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			x, y := bind("", "")
			client, server := start(t, x, y)
			go client.Open(t.Context())
			time.Sleep(after)
			done := make(chan error)
			for range 3 {
				go func() { done <- client.Close() }()
				go func() { done <- server.Close() }()
			}
			for range 6 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestClock: the time of day may be decades away from the certificates' year.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(50 * 365 * 24 * time.Hour) // the bubble's clock begins in their year
		x, y := bind("", "")
		client, server := start(t, x, y)
		exchange(t, client, server)
	})
}

// TestWindow: the congestion window is the carrier's affair. Acknowledgements
// that are late now and then, as repairs in the carrier make them, do not make
// it small on either side, and a loss does so for a second.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := enginetest.Path{Delay: delay, Rate: 500e6 / 8, Loss: 0.01, Repair: 3 * delay}
		x, y := enginetest.Connect(path, path, 1)
		client, server := start(t, x, y)
		c := open(t, client)
		c.Write([]byte("x"))
		s := accept(t, server)
		s.Read(make([]byte, 1))
		expectWindow(t, server, s, c)
		expectWindow(t, client, c, s)
	})
	synctest.Test(t, func(t *testing.T) {
		path := enginetest.Path{Delay: delay, Rate: 500e6 / 8}
		x, y := enginetest.Connect(path, path, 1)
		client, server := start(t, x, y)
		c := open(t, client)
		cut := time.AfterFunc(6*delay, func() {
			x.SetDown(true)
			time.Sleep(delay)
			x.SetDown(false)
		})
		defer cut.Stop()
		s := accept(t, server)
		transfer(t, c, s)
		if stats := client.conn.ConnectionStats(); stats.PacketsLost == 0 || stats.CongestionWindow == congestionWindow {
			t.Errorf("after a loss: %+v", stats)
		}
		time.Sleep(reopenAfter)
		expectWindow(t, client, c, s)
	})
}

// expectWindow sends 32 MB twice from sender's stream to another one and looks
// at the window afterwards.
func expectWindow(t *testing.T, sender *session, from, to engine.Stream) {
	t.Helper()
	transfer(t, from, to)
	time.Sleep(reopenAfter)
	transfer(t, from, to)
	if stats := sender.conn.ConnectionStats(); stats.CongestionWindow != congestionWindow {
		t.Errorf("%+v", stats)
	}
}

func transfer(t *testing.T, from, to engine.Stream) {
	t.Helper()
	const size = 32 << 20
	done := make(chan error, 1)
	go func() {
		var err error
		for range size / (32 << 10) {
			_, err = from.Write(make([]byte, 32<<10))
		}
		done <- err
	}()
	if _, err := io.CopyN(io.Discard, to, size); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A Read that has timed out has read nothing, also where the deadline passes while it
// copies one frame after the other.
func TestDeadlineBetweenFrames(t *testing.T) {
	const size, chunk = 4 << 20, 256 << 10
	x, y := enginetest.Connect(enginetest.Path{Queue: 1 << 20}, enginetest.Path{Queue: 1 << 20}, 1)
	client, server := start(t, x, y)
	from := open(t, client)
	go func() {
		p := make([]byte, chunk)
		for range size / chunk {
			from.Write(p)
		}
		from.CloseWrite()
	}()
	to, p, total := accept(t, server), make([]byte, chunk), 0
	for wait := time.Duration(1); ; wait = wait%50 + 1 {
		to.SetReadDeadline(time.Now().Add(wait * time.Microsecond))
		n, err := to.Read(p)
		total += n
		switch {
		case err == io.EOF:
			if total != size {
				t.Errorf("%d bytes of %d", total, size)
			}
			return
		case err != nil && (n > 0 || !errors.Is(err, os.ErrDeadlineExceeded)):
			t.Fatalf("after %d bytes: %d more, and %v", total, n, err)
		}
	}
}

// TestReadAfterEnd: what had arrived when the session ended is read, whoever moves the
// deadline meanwhile.
func TestReadAfterEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := bind("", "")
		client, server := start(t, x, y)
		c := open(t, client)
		const size = 64 << 10
		c.Write(make([]byte, size))
		s := accept(t, server)
		time.Sleep(time.Second)
		y.Break(errors.New("lost"))
		<-server.Done()
		over := make(chan struct{})
		moved := make(chan struct{})
		go func() {
			defer close(moved)
			for !half.IsClosed(over) {
				s.SetReadDeadline(time.Time{})
			}
		}()
		n, err := 0, error(nil)
		for ; err == nil && n < size; n++ {
			_, err = s.Read(make([]byte, 1))
		}
		close(over)
		<-moved
		if err != nil {
			t.Errorf("after %d bytes of %d: %v", n-1, size, err)
		}
	})
}

// TestMoveAfterEnd: what waits when the session ends fails then, though somebody moves
// the deadlines over and over.
func TestMoveAfterEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := bind("", "")
		client, server := start(t, x, y)
		_, s := exchange(t, client, server)
		failed := make(chan error, 2)
		go func() {
			_, err := s.Read(make([]byte, 1))
			failed <- err
		}()
		go func() {
			_, err := s.Write(make([]byte, 2*maxWindow))
			failed <- err
		}()
		time.Sleep(time.Minute) // the window is full
		y.Break(errors.New("lost"))
		<-server.Done()
		begin := time.Now()
		var mover sync.WaitGroup
		defer mover.Wait()
		mover.Go(func() {
			for range 100 {
				s.SetDeadline(time.Now().Add(time.Hour))
				time.Sleep(grace / 2)
			}
		})
		for range 2 {
			if err := <-failed; !errors.Is(err, engine.ErrReset) {
				t.Errorf("a call when the session has ended: %v", err)
			}
		}
		if d := time.Since(begin); d > 2*grace {
			t.Errorf("the calls returned %v after the session's end", d)
		}
	})
}
