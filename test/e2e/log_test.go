package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
)

// TestLogsNameNoSession: neither program logs a part of the path by which a
// session goes, however much it logs and whatever goes wrong with the session.
// Who finds one in a log could send requests to it.
func TestLogsNameNoSession(t *testing.T) {
	t.Parallel()
	addr := programs.Addr(t)
	forward := listen(t, anyPort, echo).Addr().String()
	flags := []string{"-log-level", "debug", "-unsafe-logging"}
	servers := []*proc.Process{programs.StartServer(t, addr, forward, flags...)}
	cdn := newForgetfulCDN(t, "http://"+addr)
	client, process := runClient(t, cdn.url, "-unsafe-logging", "-mode", "poll")
	converse := func() {
		programs.Await(t, "an answer", func() error { return once(t, client) })
	}
	for cdn.requests() < 3*faults {
		converse()
	}
	cdn.repeatAll()
	if err := servers[0].Kill(); err != nil {
		t.Fatal(err)
	}
	servers = append(servers, programs.StartServer(t, addr, forward, flags...))
	converse() // the session that was is lost
	cdn.repeatAll()
	var logged []byte
	for _, p := range append(servers, process) {
		text, err := os.ReadFile(p.Log())
		if err != nil {
			t.Fatal(err)
		}
		logged = append(logged, text...)
	}
	if !bytes.Contains(logged, []byte(" debug ")) {
		t.Error("not all is logged")
	}
	for _, part := range cdn.parts(t) {
		if bytes.Contains(logged, []byte(part)) {
			t.Errorf("%q is part of a session's path, and logged", part)
		}
	}
}

// once has as much come back through the tunnel as several requests carry.
func once(t *testing.T, addr string) error {
	said := strings.Repeat(part, 20_000)
	conn := dial(t, addr)
	defer conn.Close()
	go io.WriteString(conn, said) //nolint:errcheck // then it does not come back
	got := make([]byte, len(said))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != said {
		return errors.New("something else came back")
	}
	return nil
}

// faults is in how many requests to a forgetfulCDN each fault happens once, but for
// what every fourth body suffers that is more than largeBody: it has records.
const (
	faults    = 20
	largeBody = 4000 // bytes
)

// A forgetfulCDN passes requests on, and loses some of them and of their answers.
// It keeps one body of each path. Safe for concurrent use.
type forgetfulCDN struct {
	url string
	to  string

	mu    sync.Mutex
	n     int // requests; guarded by mu, like what follows
	large int // of them
	kept  map[string][]byte
}

func newForgetfulCDN(t *testing.T, to string) *forgetfulCDN {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.FlushInterval = -1
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	cdn := &forgetfulCDN{to: to, kept: make(map[string][]byte)}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		cdn.mu.Lock()
		cdn.n++
		n := cdn.n
		large := len(body) > largeBody
		if large {
			cdn.large++
		}
		cut := large && cdn.large%4 == 1
		if cdn.kept[r.URL.Path] == nil {
			cdn.kept[r.URL.Path] = body
		}
		cdn.mu.Unlock()
		switch {
		case cut: // the head opens, and what follows does not come
			r.Body = io.NopCloser(bytes.NewReader(body[:len(body)/2]))
			r.ContentLength = int64(len(body) / 2)
			proxy.ServeHTTP(w, r)
		case n%faults == 3:
			http.Redirect(w, r, r.URL.Path+"/", http.StatusFound)
		case n%faults == 4:
			http.Error(w, "no", http.StatusBadGateway)
		case n%faults == 5: // the beginning, and garbage in place of the rest
			proxy.ServeHTTP(httptest.NewRecorder(), r)
			w.Write(make([]byte, 100))
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	cdn.url = s.URL
	return cdn
}

// requests is how many have come.
func (c *forgetfulCDN) requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// repeatAll sends to each path what it was sent first, half of that, something
// else, and nothing.
func (c *forgetfulCDN) repeatAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, body := range c.kept {
		for _, b := range [][]byte{body, body[:len(body)/2], bytes.Repeat([]byte("x"), 300), nil} {
			if resp, err := http.Post(c.to+path, "text/plain", bytes.NewReader(b)); err == nil {
				io.Copy(io.Discard, resp.Body) //nolint:errcheck // whatever ends it
				resp.Body.Close()
			}
		}
	}
}

// parts are all parts of sessions' IDs that are no chance, as paths have them and
// in hexadecimal numbers.
func (c *forgetfulCDN) parts(t *testing.T) (parts []string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	const id, long = 32, 8 // characters: of an ID in a path, and of no chance
	for path := range c.kept {
		segment := path[strings.LastIndexByte(path, '/')+1:]
		raw, err := base64.RawURLEncoding.DecodeString(segment[:id])
		if err != nil {
			t.Fatalf("%q is no session's path", path)
		}
		for _, whole := range []string{segment, hex.EncodeToString(raw)} {
			for i := range len(whole) - long + 1 {
				parts = append(parts, whole[i:i+long])
			}
		}
	}
	return parts
}
