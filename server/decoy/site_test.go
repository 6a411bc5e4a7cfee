package decoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What the other site is told of the stranger, and the stranger of the site.
func TestSiteLearnsNothing(t *testing.T) {
	var got *http.Request
	var body string
	site := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		b, _ := io.ReadAll(r.Body)
		body = string(b)
		w.Header().Set("Alt-Svc", `h3=":443"`)
		w.Header().Set("Location", "http://"+r.Host+"/base/next?x")
		w.Header().Set("Server", "theirs")
		w.WriteHeader(302)
	}))
	ours := serve(t, newDecoy(t, site.URL+"/base/"))
	req, err := http.NewRequest("POST", ours.URL+"/form?a=b", strings.NewReader("field=1"))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "ours.example"
	req.Header.Set("X-Forwarded-For", "192.0.2.1")
	req.Header.Set("Forwarded", "for=192.0.2.1")
	req.Header.Set("Connection", "Upgrade, X-Hop")
	req.Header.Set("X-Hop", "1")
	req.Header.Set("Upgrade", "websocket")
	req.Header.Set("X-Kept", "1")
	resp, err := ours.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 302 || resp.Header.Get("Location") != "/next?x" || resp.Header.Get("Alt-Svc") != "" {
		t.Errorf("answer: %v", resp)
	}
	if s := resp.Header["Server"]; len(s) != 1 || s[0] != "theirs" {
		t.Errorf("Server: %q", s)
	}
	if got.URL.String() != "/base/form?a=b" || body != "field=1" || got.Host != strings.TrimPrefix(site.URL, "http://") {
		t.Errorf("request: %v, body %q", got, body)
	}
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "X-Hop", "Upgrade", "Connection"} {
		if v, ok := got.Header[name]; ok {
			t.Errorf("%s: %q", name, v)
		}
	}
	if got.Header.Get("X-Kept") == "" {
		t.Error("an ordinary header was dropped")
	}
}

func TestSiteFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close() // nobody listens there now
	var log strings.Builder
	d, err := New("http://"+ln.Addr().String(), changed, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w := httptest.NewRecorder()
		d.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if w.Code != 502 || w.Header().Get("Server") != "nginx" || !strings.Contains(w.Body.String(), "<h1>502 Bad Gateway</h1>") {
			t.Errorf("answer %d: %s", w.Code, w.Body)
		}
	}
	if n := strings.Count(log.String(), "does not answer"); n != 1 {
		t.Errorf("%d log lines about it, want 1:\n%s", n, log.String())
	}
	d.Close()
}

func TestRelocate(t *testing.T) {
	d, _ := http.NewRequest("GET", "https://site.example/base/", nil)
	for in, want := range map[string]string{
		"https://site.example/base/x":   "/x",
		"https://site.example/base":     "/",
		"https://site.example/base?x":   "/?x",
		"https://site.example/basement": "https://site.example/basement",
		"https://other.example/":        "https://other.example/",
		"/x":                            "/x",
		"":                              "",
	} {
		if got := relocate(in, d.URL); got != want {
			t.Errorf("relocate(%q) = %q, want %q", in, got, want)
		}
	}
}

// The other site gets every byte of a request, as it came.
func TestSiteGetsTheRequest(t *testing.T) {
	given := make(chan string, 1)
	site := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		given <- fmt.Sprintf("%s %s %d %v %v %d %v %v", r.Method, r.RequestURI, r.ContentLength, r.TransferEncoding, r.Trailer, len(body), err, r.Header)
	}))
	ours := serve(t, newDecoy(t, site.URL))
	for _, c := range []struct{ request, want string }{
		{"POST /a?x;y=%zz HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345", "POST /a?x;y=%zz 5 [] map[] 5 <nil> map[Content-Length:[5]]"},
		{"POST /a%2fb HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n12345", "POST /a%2fb 5 [] map[] 5 <nil> map[Content-Length:[5]]"},
		{"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Late\r\n\r\n3\r\nabc\r\n0\r\nX-Late: 1\r\n\r\n", "PUT / -1 [chunked] map[X-Late:[1]] 3 <nil> map[]"},
		{"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "POST / 0 [] map[] 0 <nil> map[Content-Length:[0]]"},
	} {
		conn, err := net.Dial("tcp", ours.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, c.request)
		if got := <-given; got != c.want {
			t.Errorf("%q: the site was given\n%s, want\n%s", c.request, got, c.want)
		}
		conn.Close()
	}
}

// near is a decoy for a site in memory.
func near(t *testing.T, h http.Handler, log *slog.Logger) (*Decoy, *site) {
	t.Helper()
	d, err := New("http://site.example", changed, log)
	if err != nil {
		t.Fatal(err)
	}
	s := d.site.(*site)
	ln := &oneConn{conn: make(chan net.Conn)}
	server := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln)
	}()
	s.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		a, b := net.Pipe()
		ln.conn <- b
		return a, nil
	}
	t.Cleanup(func() {
		d.Close()
		server.Close()
		<-done
	})
	return d, s
}

// asked is what d answers, and after how long.
func asked(d *Decoy, body io.Reader) (*httptest.ResponseRecorder, time.Duration) {
	w, start := httptest.NewRecorder(), time.Now()
	d.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", body))
	return w, time.Since(start)
}

// A body without a length is cut at the limit, and the site does not see it.
func TestSiteBodyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := near(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the site was asked") }), quiet)
		body := struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 2*maxBody))}
		if w, _ := asked(d, body); w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("answer %d", w.Code)
		}
		if s.room.used != 0 || len(s.room.guests) != 0 {
			t.Errorf("%d bytes are kept for %d", s.room.used, len(s.room.guests))
		}
	})
}

// A site that does not answer is not waited for without end, be it by those who
// have a place in front of it or by those who wait for one.
func TestSiteIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		release := make(chan struct{})
		d, s := near(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }), slog.New(slog.NewTextHandler(&log, nil)))
		defer close(release)
		var all sync.WaitGroup
		for i := range siteConns + 3 {
			all.Go(func() {
				time.Sleep(time.Duration(i))
				code, want := http.StatusGatewayTimeout, siteTimeout
				if i >= siteConns {
					code, want = http.StatusServiceUnavailable, siteQueue
				}
				if w, took := asked(d, strings.NewReader("hello")); w.Code != code || took != want {
					t.Errorf("number %d got %d after %v", i, w.Code, took)
				}
			})
		}
		all.Wait()
		if n := d.Stats(); n != (Stats{Refused: 3}) {
			t.Errorf("counted is %+v", n)
		}
		if n := strings.Count(log.String(), "does not answer"); n != 1 || len(s.slots) != 0 || s.room.used != 0 {
			t.Errorf("%d lines in the log, %d places and %d bytes are taken", n, len(s.slots), s.room.used)
		}
	})
}

// stuck is a stranger who neither sends what he has promised nor reads.
type stuck struct {
	*httptest.ResponseRecorder
	ended chan struct{}
	once  *sync.Once
}

func newStuck() stuck {
	return stuck{httptest.NewRecorder(), make(chan struct{}), new(sync.Once)}
}

func (s stuck) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && t.Before(time.Now()) {
		s.once.Do(func() { close(s.ended) })
	}
	return nil
}

func (s stuck) SetWriteDeadline(t time.Time) error { return s.SetReadDeadline(t) }

func (s stuck) Read([]byte) (int, error) {
	<-s.ended
	return 0, os.ErrDeadlineExceeded
}

func (s stuck) Write([]byte) (int, error) { return s.Read(nil) }

// serve has d answer the stranger, who gets nothing.
func (s stuck) serve(d *Decoy, body io.Reader) {
	defer func() { _ = recover() }() // http.ErrAbortHandler
	r := httptest.NewRequest(http.MethodPost, "/", body)
	d.ServeHTTP(s, r.WithContext(context.WithValue(r.Context(), http.ServerContextKey, new(http.Server))))
}

// Whoever sends or reads nothing keeps nobody from the site, and when all of
// them together hold too much, those go who hold most, or read longest.
func TestSlowStrangersKeepNobodyOut(t *testing.T) {
	for name, c := range map[string]struct {
		sent, answer int
		left         int // of 2 * siteConns strangers
	}{
		"sending":       {sent: 1000, left: 2 * siteConns},
		"sending much":  {sent: maxBody - 10_000, left: roomSize / maxBody},
		"reading":       {answer: 100_000, left: 2 * siteConns},
		"reading much":  {answer: maxKept - 1, left: roomSize / maxKept},
		"reading on":    {answer: maxKept + 1, left: maxLong},
		"much and slow": {answer: 3 * maxKept, left: maxLong},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, s := near(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.ContentLength == 1 {
						return
					}
					// Without a length each write would be flushed at once.
					w.Header().Set("Content-Length", fmt.Sprint(c.answer))
					w.Write(make([]byte, c.answer))
				}), quiet)
				var all sync.WaitGroup
				var strangers []stuck
				for range 2 * siteConns {
					one := newStuck()
					strangers = append(strangers, one)
					all.Go(func() {
						body := io.Reader(bytes.NewReader(make([]byte, 2)))
						if c.sent > 0 {
							body = io.MultiReader(bytes.NewReader(make([]byte, c.sent)), one)
						}
						one.serve(d, body)
					})
					synctest.Wait()
				}
				if w, took := asked(d, strings.NewReader("x")); w.Code != http.StatusOK || took != 0 {
					t.Errorf("somebody else got %d after %v", w.Code, took)
				}
				synctest.Wait()
				if n := len(s.room.guests); n > c.left || n < c.left*9/10 {
					t.Errorf("%d of %d strangers are left, want %d", n, len(strangers), c.left)
				}
				if s.room.used > roomSize {
					t.Errorf("%d bytes are kept", s.room.used)
				}
				if n := d.Stats(); n.Kept != s.room.used || n.Exchanges != len(s.slots) || n.Refused != 0 || int(n.Crowded) < 2*siteConns-c.left {
					t.Errorf("counted is %+v", n)
				}
				for _, one := range strangers {
					one.SetReadDeadline(time.Unix(1, 0))
				}
				all.Wait()
				if s.room.used != 0 || len(s.slots) != 0 || len(s.room.queue) != 0 {
					t.Errorf("in the end %d bytes, %d places and %d long answers are taken", s.room.used, len(s.slots), len(s.room.queue))
				}
			})
		})
	}
}

// An answer is whole, be it kept or passed on.
func TestSiteAnswerIsWhole(t *testing.T) {
	for _, n := range []int{0, 1, maxKept - 1, maxKept, maxKept + 1, 3 * maxKept} {
		for _, length := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				text := strings.Repeat("0123456789", n/10+1)[:n]
				d, _ := near(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if length {
						w.Header().Set("Content-Length", fmt.Sprint(n))
					}
					io.WriteString(w, text)
				}), quiet)
				w, _ := asked(d, strings.NewReader("x"))
				if w.Code != 200 || w.Body.String() != text {
					t.Errorf("of %d bytes %d came, status %d", n, w.Body.Len(), w.Code)
				}
			})
		}
	}
}

// What is kept is what was written, in pieces that are charged as they are.
func FuzzKept(f *testing.F) {
	f.Add([]byte("hello"), 3)
	f.Add(make([]byte, 100_000), 40_000)
	f.Fuzz(func(t *testing.T, all []byte, step int) {
		r := newRoom(1<<30, 1)
		k := &kept{guest: r.enter(nil)}
		for rest := all; len(rest) > 0; {
			n := min(max(step, 1), len(rest))
			if m, err := k.Write(rest[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[n:]
		}
		got, err := io.ReadAll(k.reader())
		if err != nil || !bytes.Equal(got, all) || r.used < len(all) || r.used > 2*len(all)+maxPiece {
			t.Errorf("%d bytes of %d, charged %d, %v", len(got), len(all), r.used, err)
		}
		k.guest.leave()
		if _, err := k.Write(make([]byte, 2*maxPiece)); r.used != 0 || !errors.Is(err, errNoRoom) {
			t.Errorf("after the guest has left %d bytes are charged, %v", r.used, err)
		}
	})
}
