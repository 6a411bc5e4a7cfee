package carrier

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

// oneConn is a listener with one connection.
type oneConn struct {
	conn chan net.Conn
	once sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.conn; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { l.once.Do(func() { close(l.conn) }); return nil }
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// webServer serves h over one connection in memory, whose client's end it
// returns, by HTTP/1 and HTTP/2.
func webServer(t *testing.T, h http.Handler) net.Conn {
	near, far := net.Pipe()
	ln := &oneConn{conn: make(chan net.Conn, 1)}
	ln.conn <- far
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ln)
	}()
	t.Cleanup(func() {
		near.Close()
		s.Close()
		<-done
	})
	return near
}

// A prober makes one request for a path of a server's whose handler is h, and
// returns all that it learns.
type prober func(t *testing.T, h http.Handler, path string) string

// by1 is a prober that writes parts over HTTP/1, one after the other as long
// as nothing has come but a 100 Continue.
func by1(parts ...string) prober {
	return func(t *testing.T, h http.Handler, path string) string {
		conn := webServer(t, h)
		start := time.Now()
		_ = conn.SetReadDeadline(start.Add(5 * time.Minute))
		heard := make(chan string)
		go func() {
			var all bytes.Buffer
			_, err := io.Copy(&all, conn)
			heard <- fmt.Sprintf("%s\n%v after %v", all.Bytes(), err, time.Since(start))
		}()
		for _, part := range parts {
			synctest.Wait()
			if part == hangUp {
				conn.Close()
				break
			}
			_ = conn.SetWriteDeadline(start.Add(5 * time.Minute))
			io.WriteString(conn, strings.ReplaceAll(part, "PATH", path))
		}
		return <-heard
	}
}

const hangUp = "hang up"

// by2 is a prober over HTTP/2.
func by2(method string, length int64, body func() io.Reader) prober {
	return func(t *testing.T, h http.Handler, path string) string {
		conn := webServer(t, h)
		tr := &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
			Protocols:   new(http.Protocols),
		}
		tr.Protocols.SetUnencryptedHTTP2(true)
		defer tr.CloseIdleConnections()
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, "http://server.example"+path, body())
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = length
		req.Trailer = http.Header{"X-Late": {"1"}}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return fmt.Sprintf("%v after %v", err, time.Since(start))
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %v %s %v after %v", resp.StatusCode, resp.Header, text, err, time.Since(start))
	}
}

// head is that of a request over HTTP/1.
func head(method, version, more string) string {
	return method + " PATH HTTP/" + version + "\r\nHost: a\r\nConnection: close\r\n" + more + "\r\n"
}

var din = strings.Repeat("0123456789abcdef", 2<<10) // 32 KB

// chunks are din of n bytes in chunks of 1000.
func chunks(n int) string {
	var b strings.Builder
	for begin := 0; begin < n; begin += 1000 {
		end := min(begin+1000, n)
		fmt.Fprintf(&b, "%x\r\n%s\r\n", end-begin, din[begin:end])
	}
	return b.String()
}

// forever is a body that begins with so many bytes of din and does not end.
func forever(n int) func() io.Reader {
	return func() io.Reader {
		r, w := io.Pipe()
		go io.WriteString(w, din[:n])
		return r
	}
}

func probers() map[string]prober {
	const chunked = "Transfer-Encoding: chunked\r\nTrailer: X-Late\r\n"
	all := map[string]prober{
		"bad chunks":         by1(head("POST", "1.1", chunked), chunks(3000), "junk\r\n"),
		"chunks that end":    by1(head("POST", "1.1", chunked), chunks(3000), hangUp),
		"no body":            by1(head("POST", "1.1", "Content-Length: 0\r\n")),
		"no length":          by1(head("POST", "1.1", "")),
		"1.0 without length": by1(head("POST", "1.0", ""), din[:200]),
		"1.0 and Expect":     by1(head("POST", "1.0", "Content-Length: 200\r\nExpect: 100-continue\r\n"), din[:200]),
		"odd Expect":         by1(head("POST", "1.1", "Content-Length: 200\r\nExpect: 200-ok\r\n"), din[:200]),
		"pipelined":          by1(strings.Replace(head("POST", "1.1", "Content-Length: 200\r\n"), "close", "keep-alive", 1) + din[:200] + head("GET", "1.1", "")),
		"h2 no body":         by2("POST", 0, func() io.Reader { return nil }),
		"h2 slow":            by2("POST", 300, forever(200)),
		"h2 slow, no length": by2("POST", -1, forever(200)),
		"h2 late":            by2("POST", -1, forever(10_000)),
	}
	// Around the smallest and the largest first message, and beyond a unit.
	for _, n := range []int{127, 200, handshake.MaxMessage1, openingSize, 20_000} {
		length := fmt.Sprintf("Content-Length: %d\r\n", n)
		name := func(s string) string { return fmt.Sprintf("%s, %d bytes", s, n) }
		all[name("at once")] = by1(head("POST", "1.1", length) + din[:n])
		all[name("1.0")] = by1(head("POST", "1.0", length), din[:n])
		all[name("other method")] = by1(head("PUT", "1.1", length), din[:n])
		all[name("withheld")] = by1(head("POST", "1.1", length))
		all[name("slow")] = by1(head("POST", "1.1", length), din[:n-n/3-1])
		all[name("cut")] = by1(head("POST", "1.1", length), din[:n-n/3-1], hangUp)
		all[name("Expect")] = by1(head("POST", "1.1", length+"Expect: 100-continue\r\n"), din[:n])
		all[name("Expect, withheld")] = by1(head("POST", "1.1", length+"Expect: 100-continue\r\n"))
		all[name("chunked")] = by1(head("POST", "1.1", chunked), chunks(n), "0\r\nX-Late: 1\r\n\r\n")
		all[name("chunked, slow")] = by1(head("POST", "1.1", chunked), chunks(n))
		all[name("h2")] = by2("POST", int64(n), func() io.Reader { return strings.NewReader(din[:n]) })
		all[name("h2 without length")] = by2("POST", -1, func() io.Reader { return strings.NewReader(din[:n]) })
	}
	return all
}

var date = regexp.MustCompile(`Date:[^\r\n\]]*|Date:\[[^\]]*\]`)

// A path tells a prober nothing, be it of a session that is open, was open or
// might be, be its tag wrong, or be it any other: what the prober hears, and
// when, and what the decoy is given, is the same for all.
func TestPathsAreAlike(t *testing.T) {
	for name, probe := range probers() {
		for _, reads := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/decoy reads=%v", strings.ReplaceAll(name, " ", "-"), reads), func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T, w *world) { comparePaths(t, w, probe, reads) })
			})
		}
	}
}

func comparePaths(t *testing.T, w *world, probe prober, reads bool) {
	given := ""
	w.server.cfg.Decoy = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		var body []byte
		var err error
		if reads {
			http.NewResponseController(rw).SetReadDeadline(time.Now().Add(40 * time.Second))
			body, err = io.ReadAll(r.Body)
		}
		given += fmt.Sprintf("%s %s %s %v, %d bytes, %v, of %d bytes of din: %v, %v, after %v\n", r.Proto, r.Method, r.Host, r.Header,
			r.ContentLength, r.TransferEncoding, len(body), strings.HasPrefix(din, string(body)), err, time.Since(begin))
		given += fmt.Sprint(r.Trailer)
		io.WriteString(rw, "the decoy's answer")
	})
	learned := func(path string) string {
		given = ""
		heard := date.ReplaceAllString(probe(t, w.server, path), "")
		synctest.Wait()
		return fmt.Sprintf("heard: %s\ngiven: %s", heard, given)
	}
	open, confirmed, ended := w.raw(w.hello()), w.raw(w.hello()), w.raw(w.hello())
	for _, c := range []*raw{open, confirmed, ended} {
		c.greet()
	}
	confirmed.isOurs("a request", confirmed.post(confirmed.body(wire.Head{})))
	ended.isOurs("a farewell", ended.post(ended.body(wire.Head{Close: wire.CloseDone})))
	wrong := []byte(handshake.NewID(w.key.Public(), handshake.DayOf(time.Now())).String())
	wrong[31] ^= 1
	want := learned("/nothing/at-all")
	if !strings.Contains(want, "decoy's answer") && !strings.Contains(want, "given: HTTP") && !strings.Contains(want, "417") {
		t.Errorf("the decoy was not asked: %s", want)
	}
	for name, path := range map[string]string{
		"new": handshake.NewID(w.key.Public(), handshake.DayOf(time.Now())).Segment(), "wrong": string(wrong),
		"open": open.id.String(), "confirmed": confirmed.id.String(), "ended": ended.id.String(),
	} {
		if got := learned("/nothing/" + path); got != want {
			t.Errorf("%s:\n%s\nwant, as elsewhere:\n%s", name, got, want)
		}
	}
}

// A request of a client's is taken in as it comes, not when its beginning is
// here.
func TestClientsAreNotHeldUp(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		c := w.raw(w.hello())
		c.greet()
		s := <-w.accepted
		conn := webServer(t, w.server)
		defer conn.Close()
		body := c.body(wire.Head{}, "hello")
		fmt.Fprintf(conn, "POST /%s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", c.id, len(body)+1, body)
		buf := make([]byte, 100)
		if n, _, err := s.Conn().ReadFrom(buf); string(buf[:n]) != "hello" {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		start := time.Now()
		if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%v, %v", resp, err)
		}
		if took := time.Since(start); took != bodyPatience {
			t.Errorf("answered after %v", took)
		}
	})
}

// What was read of a body is read again.
func FuzzOpening(f *testing.F) {
	f.Add([]byte("hello"), 0, 2)
	f.Add([]byte(din), 100, 7)
	f.Add([]byte(din[:handshake.MaxMessage1]), 9000, 9000)
	f.Fuzz(func(t *testing.T, body []byte, first, step int) {
		o := newOpening(io.NopCloser(inSteps{bytes.NewReader(body), max(step, 1)}))
		seen, err := io.ReadAll(io.LimitReader(o, int64(first)))
		if err != nil || len(seen) > openingSize || !bytes.HasPrefix(body, seen) {
			t.Fatalf("%d bytes, %v", len(seen), err)
		}
		if whole := o.whole(); len(body) < openingSize && !bytes.Equal(whole, body) || len(body) >= openingSize && whole != nil {
			t.Errorf("of %d bytes the whole is %d", len(body), len(whole))
		}
		o.replay()
		if again, err := io.ReadAll(o); err != nil || !bytes.Equal(again, body) {
			t.Errorf("%d bytes the second time, %v, want %d", len(again), err, len(body))
		}
	})
}

// inSteps gives at most n bytes at a time.
type inSteps struct {
	r io.Reader
	n int
}

func (r inSteps) Read(p []byte) (int, error) { return r.r.Read(p[:min(len(p), r.n)]) }
