package fingerprint

import (
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"turbotunnel/common/front"
	"turbotunnel/test/cdn"
)

// A censor is a middlebox before a server that resets connections whose ClientHello
// has a fingerprint that it knows.
type censor struct {
	listener net.Listener
	to       string
	drops    func(ja4 string) bool
	group    sync.WaitGroup

	mu   sync.Mutex
	seen []string // fingerprints, in order
}

func newCensor(t *testing.T, to string, drops func(string) bool) *censor {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &censor{listener: l, to: to, drops: drops}
	c.group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.group.Go(func() { c.inspect(conn.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		c.group.Wait()
	})
	return c
}

// inspect passes a connection on if its ClientHello is none that the censor drops.
func (c *censor) inspect(conn *net.TCPConn) {
	defer conn.Close()
	head := make([]byte, 5)
	if _, err := io.ReadFull(conn, head); err != nil {
		return
	}
	record := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(conn, record); err != nil {
		return
	}
	hello, err := ParseHello(record)
	if err != nil {
		conn.SetLinger(0) //nolint:errcheck // closed all the same
		return
	}
	ja4 := hello.JA4()
	c.mu.Lock()
	c.seen = append(c.seen, ja4)
	c.mu.Unlock()
	if c.drops(ja4) {
		conn.SetLinger(0) //nolint:errcheck // likewise
		return
	}
	server, err := net.Dial("tcp", c.to)
	if err != nil {
		return
	}
	defer server.Close()
	if _, err := server.Write(append(head, record...)); err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		io.Copy(server, conn)              //nolint:errcheck // the end is as good as its reason
		server.(*net.TCPConn).CloseWrite() //nolint:errcheck // likewise
	})
	io.Copy(conn, server) //nolint:errcheck // likewise
	conn.Close()
	both.Wait()
}

// fingerprints are those that came through to the censor since the last call.
func (c *censor) fingerprints() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := c.seen
	c.seen = nil
	return seen
}

// Who drops the fingerprint of one browser is passed by another one of the list, or
// by one that is on no list.
func TestCensorOfOneJA4(t *testing.T) {
	rec, ca := newRecorder(t, "h2")
	roots, err := cdn.ReadCA(filepath.Clean(ca))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	dropped := make(map[string]bool)
	c := newCensor(t, rec.Addr(), func(ja4 string) bool {
		mu.Lock()
		defer mu.Unlock()
		return dropped[ja4]
	})
	post := func(utls string) error {
		f, err := front.New(front.Config{URL: &url.URL{Scheme: "https", Host: cdn.Front, Path: "/"}, Addr: c.listener.Addr().String(), RootCAs: roots, UTLS: utls})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/a", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := f.RoundTrip(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	for _, name := range []string{"chrome", "firefox"} {
		if err := post(name); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		for _, ja4 := range c.fingerprints() {
			dropped[ja4] = true
		}
		mu.Unlock()
		if err := post(name); err == nil {
			t.Errorf("%s passes a censor who knows it", name)
		}
		c.fingerprints()
	}
	if err := post("chrome,firefox"); err == nil {
		t.Error("two that are known pass")
	}
	c.fingerprints()
	if err := post("chrome,firefox,HelloRandomizedALPN"); err != nil {
		t.Errorf("the last of a list: %v", err)
	}
	if seen := c.fingerprints(); len(seen) < 3 || dropped[seen[len(seen)-1]] {
		t.Errorf("the censor has seen %v", seen)
	}
}
