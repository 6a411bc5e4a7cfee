package carrier

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"turbotunnel/common/wire"
)

// pipes is a listener in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return Addr("pipe") }

// serveWeb has Go's web server serve the world's server, and returns how to connect
// to it. What is written waits until it is read.
func (w *world) serveWeb() (dial func() net.Conn, stop func()) {
	p := make(pipes)
	web := &http.Server{Handler: w.server, Protocols: new(http.Protocols)}
	web.Protocols.SetHTTP1(true)
	web.Protocols.SetUnencryptedHTTP2(true)
	go web.Serve(p)
	dial = func() net.Conn {
		client, server := net.Pipe()
		p <- server
		return client
	}
	return dial, func() { close(p); web.Close() }
}

// request2 sends a request by HTTP/2 to which the server may answer nothing but
// heads of frames, and reads what comes.
func request2(t *testing.T, c net.Conn, path string, body []byte) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "x"}, {":path", path}} {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	go io.Copy(io.Discard, c)
	io.WriteString(c, http2.ClientPreface)
	f := http2.NewFramer(c, nil)
	f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	if err := f.WriteData(1, true, body); err != nil {
		t.Error(err)
	}
}

// A client that takes nothing of its answers holds nothing for longer than a session
// lives, whatever it asked for.
func TestStuckClient(t *testing.T) {
	for _, version := range []string{"HTTP/1.1", "HTTP/2"} {
		for name, ask := range map[string]wire.Head{
			"stream":        {Stream: 10 * time.Minute, Quiet: time.Second, Limit: 256 << 20},
			"silent stream": {Stream: 10 * time.Minute, Quiet: time.Hour, Limit: 256 << 20},
			"poll":          {Hold: 2 * time.Minute, Limit: 1 << 20},
			"answer":        {Limit: 1 << 20},
		} {
			t.Run(version+" "+name, func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					time.Sleep(time.Second)
					dial, stop := w.serveWeb()
					defer stop()
					c := w.raw(w.hello())
					c.greet()
					c.isOurs("a request", c.post(c.body(wire.Head{})))
					session := <-w.accepted
					go func() {
						for session.link.put(make([]byte, 9000)) || !isClosed(session.link.closed) {
							if _, err := session.Conn().WriteTo(make([]byte, 9000), nil); err != nil {
								return
							}
						}
					}()
					synctest.Wait() // much is there to say
					conn := dial()
					defer conn.Close()
					body := c.body(ask)
					path := "/any/path/" + c.id.String()
					if version == "HTTP/2" {
						request2(t, conn, path, body)
					} else {
						fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
					}
					began := time.Now()
					time.Sleep(Lifetime + 2*janitorEvery)
					w.empty(fmt.Sprintf("after %v", time.Since(began)))
					if n := w.server.Stats().AnswersCut; n != 1 {
						t.Errorf("%d answers were broken off, as is counted", n)
					}
				})
			})
		}
	}
}

// A connection takes for hours what a silent answer says, though nobody reads it. A
// session from which no other request comes ends in its time all the same.
func TestSilentAnswer(t *testing.T) {
	for name, ask := range map[string]wire.Head{
		"streamed": {Stream: time.Hour, Quiet: minQuiet, Limit: 1 << 20},
		"polled":   {Hold: time.Hour, Limit: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				time.Sleep(time.Second)
				dial, stop := w.serveWeb()
				defer stop()
				c := w.raw(w.hello())
				c.greet()
				conn := dial()
				defer conn.Close()
				body := c.body(ask)
				fmt.Fprintf(conn, "POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", c.id, len(body), body)
				go io.Copy(io.Discard, conn)
				time.Sleep(Lifetime - 2*janitorEvery)
				if n := w.server.Stats().Sessions; n != 1 {
					t.Errorf("%d sessions before its time has come", n)
				}
				time.Sleep(4 * janitorEvery)
				w.empty("after its time")
			})
		})
	}
}

// An answer of which a little is taken now and then goes on.
func TestSlowClient(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		time.Sleep(time.Second)
		dial, stop := w.serveWeb()
		defer stop()
		c := w.raw(w.hello())
		c.greet()
		session := <-w.accepted
		for range 15 {
			session.Conn().WriteTo(make([]byte, 9000), nil)
		}
		conn := dial()
		defer conn.Close()
		body := c.body(wire.Head{Limit: 1 << 20})
		fmt.Fprintf(conn, "POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", c.id, len(body), body)
		began, got := time.Now(), 0
		for got < 15*9000 {
			n, err := conn.Read(make([]byte, 4096))
			if err != nil {
				t.Fatalf("after %v and %d bytes: %v", time.Since(began), got, err)
			}
			got += n
			time.Sleep(writePatience / 16) // an answer's record in a quarter of it
		}
		if n := w.server.Stats(); n.AnswersCut != 0 || n.BodiesCut != 0 {
			t.Errorf("%d answers and %d bodies are counted as cut", n.AnswersCut, n.BodiesCut)
		}
	})
}

// An answer that streams ends, and is silent, no later than the server allows, and no
// poll waits for longer, whatever the client has asked for.
func TestAges(t *testing.T) {
	for name, c := range map[string]struct {
		ask  wire.Head
		want time.Duration
	}{
		"stream": {wire.Head{Stream: 1000 * time.Hour, Quiet: 1000 * time.Hour, Limit: 1 << 20}, maxAge},
		"poll":   {wire.Head{Hold: 1000 * time.Hour, Limit: 1 << 20}, maxHold},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				time.Sleep(time.Second)
				dial, stop := w.serveWeb()
				defer stop()
				a := w.raw(w.hello())
				a.greet()
				conn := dial()
				defer conn.Close()
				body := a.body(c.ask)
				fmt.Fprintf(conn, "POST /%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", a.id, len(body), body)
				began, silent, last := time.Now(), time.Duration(0), time.Now()
				for {
					if _, err := conn.Read(make([]byte, 64<<10)); err != nil {
						break
					}
					silent = max(silent, time.Since(last))
					last = time.Now()
				}
				if took := time.Since(began); took != c.want || silent > maxHold || silent < maxHold/2 {
					t.Errorf("ended after %v, silent for %v", took, silent)
				}
			})
		})
	}
}

// Of many polls that wait only so many do, the newest; the others are answered at once.
func TestManyPolls(t *testing.T) {
	for name, ask := range map[string]wire.Head{
		"polls":   {Hold: 2 * time.Minute, Limit: 1 << 20},
		"streams": {Stream: 10 * time.Minute, Quiet: time.Minute, Limit: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				time.Sleep(time.Second)
				c := w.raw(w.hello())
				c.greet()
				<-w.accepted
				var waiting atomic.Int64
				const many = 3 * maxWaiting
				ended := make(chan int, many)
				for i := range many {
					body := c.body(ask)
					waiting.Add(1)
					go func() {
						r := httptest.NewRequest(http.MethodPost, "/"+c.id.String(), bytes.NewReader(body))
						w.server.ServeHTTP(httptest.NewRecorder(), r)
						waiting.Add(-1)
						ended <- i
					}()
					synctest.Wait()
				}
				if n := waiting.Load(); n != maxWaiting {
					t.Errorf("%d of %d wait, want %d", n, many, maxWaiting)
				}
				for i := range many - maxWaiting {
					if n := <-ended; n != i {
						t.Errorf("number %d was answered before number %d", n, i)
					}
				}
				if held := w.server.Stats().Memory; held > sessionCost+(maxWaiting+1)*requestCost {
					t.Errorf("%d bytes are held", held)
				}
			})
		})
	}
}

// Polls and bodies that stand still are counted as long as they are there, and do
// not outlive a session that is ended for what it holds.
func TestRequestsCount(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.restart(limits{maxUnconfirmed, maxSessions, 8 << 20})
		time.Sleep(time.Second)
		dial, stop := w.serveWeb()
		defer stop()
		c := w.raw(w.hello())
		c.greet()
		session := <-w.accepted
		share := w.server.budget.share
		var conns []net.Conn
		for n := int64(0); n < share/(requestCost+unitCost)+2 && !isClosed(session.link.closed); n++ {
			conn := dial()
			conns = append(conns, conn)
			body := c.body(wire.Head{}, "the beginning")
			fmt.Fprintf(conn, "POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n%s", c.id, body)
			synctest.Wait()
		}
		if !isClosed(session.link.closed) {
			t.Errorf("%d requests hold %d bytes of %d", len(conns), session.link.held.bytes(), share)
		}
		time.Sleep(2 * lastWords)
		if n := session.answers.written(); n != 0 {
			t.Errorf("%d requests are left", n)
		}
		for range 5 { // nobody counts what these take
			conn := dial()
			conns = append(conns, conn)
			body := c.body(wire.Head{}, "the beginning")
			fmt.Fprintf(conn, "POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n%s", c.id, body)
		}
		synctest.Wait()
		if n := session.answers.written(); n != 5 {
			t.Errorf("%d requests of a session that has ended; want 5", n)
		}
		time.Sleep(2 * lastWords)
		if n := session.answers.written(); n != 0 {
			t.Errorf("%d later requests are left", n)
		}
		for _, conn := range conns {
			conn.Close()
		}
	})
}

// A first message that comes at a wrong time, which anybody can send who has recorded
// one, makes nobody known as a client and takes nothing of what sessions may hold,
// though its answer is not taken.
func TestUntimelyHoldsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var known atomic.Int64
		cfg := w.config()
		cfg.Known = func(*http.Request) { known.Add(1) }
		w.server.Close()
		w.server = NewServer(cfg)
		time.Sleep(time.Hour)
		dial, stop := w.serveWeb()
		defer stop()
		hello := w.hello()
		hello.Time = hello.Time.Add(-time.Hour)
		hello.Ask = (&wire.Head{Stream: maxAge, Quiet: maxHold}).Append(nil)
		old := w.raw(hello)
		const many = 20
		for range many {
			conn := dial()
			defer conn.Close()
			request2(t, conn, "/"+old.id.String(), old.first)
		}
		synctest.Wait()
		if n := w.server.Stats(); n.Untimely != many || n.Memory != 0 || known.Load() != 0 {
			t.Errorf("%d messages came at a wrong time, %d bytes of sessions' memory are held, and %d clients are known; want %d, 0 and 0",
				n.Untimely, n.Memory, known.Load(), many)
		}
		c := w.raw(w.hello())
		c.greet()
		if known.Load() == 0 {
			t.Error("a client is not known by a first message that is admitted")
		}
	})
}
