package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
)

// Behind a proxy that speaks HTTP/2, requests that show no client and whose bodies do
// not come, or whose answers nobody takes, are held up to a bound: the oldest are given
// up for others, a client's never, and the connection, which is everybody's, stays.
func TestGuests(t *testing.T) {
	for _, test := range []struct {
		name  string
		serve func(w http.ResponseWriter, r *http.Request)
	}{
		{"body", func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }},
		{"answer", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1<<20)) }},
	} {
		t.Run(test.name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { testGuests(t, test.serve) }) })
	}
}

func testGuests(t *testing.T, serve func(w http.ResponseWriter, r *http.Request)) {
	ended := make(chan string, 100)
	c, _, stop := startH2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/client") {
			isClients(r)
		}
		serve(w, r)
		ended <- r.URL.Path
	}))
	defer stop()
	c.d.trusted = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	c.d.guests = newGuests(3 * requestCost)
	near, far := newBufferedPipe()
	c.ln.conns <- addrConn{far, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}}
	s := newH2Stranger(t, near)
	defer near.Close()
	next := uint32(1)
	post := func(path string) {
		s.post(next, path)
		next += 2
		synctest.Wait()
	}
	gone := func() (paths string) {
		synctest.Wait()
		for len(ended) > 0 {
			paths += <-ended
		}
		return paths
	}

	post("/client")
	for i := range 3 {
		post(fmt.Sprint("/", i))
	}
	if paths := gone(); paths != "" {
		t.Errorf("%s ended, and there was room", paths)
	}
	post("/3")
	post("/client")
	post("/4")
	// The second client's took the place of one, until it had shown itself.
	if paths := gone(); paths != "/0/1" {
		t.Errorf("%s were given up, want the oldest of strangers", paths)
	}
	if c.d.open() != 1 {
		t.Error("the proxy's connection is closed")
	}
	near.Close()
	if paths := gone(); strings.Count(paths, "/client") != 2 || c.d.guests.waiting.Len() != 0 || c.d.guests.held != 0 {
		t.Errorf("in the end %s ended, and %d are counted for %d bytes", paths, c.d.guests.waiting.Len(), c.d.guests.held)
	}
}
