package fingerprint

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"turbotunnel/common/front"
	"turbotunnel/test/cdn"
)

// newRecorder returns a Recorder, and the file of whom its clients have to trust.
func newRecorder(t *testing.T, protocol string) (*Recorder, string) {
	t.Helper()
	dir := t.TempDir()
	rec, _, err := record(dir, protocol, page)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rec.Close() })
	return rec, filepath.Join(dir, "ca.pem")
}

// ofChromium returns the connections of a Chromium that loads the page.
func ofChromium(t *testing.T, protocol string) []*Connection {
	t.Helper()
	return ofChromiumWith(t, protocol, page)
}

// ofChromiumWith returns those of one that loads another page.
func ofChromiumWith(t *testing.T, protocol, page string) []*Connection {
	t.Helper()
	if testing.Short() {
		t.Skip("starts Chromium")
	}
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v: make test installs it", err)
	}
	all, err := chromium(program, t.TempDir(), protocol, page)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ofOurs returns the connections of this project's client. The headers given
// stand in for its own: those that say on what computer a browser runs.
func ofOurs(t *testing.T, protocol, utls string, header http.Header) []*Connection {
	t.Helper()
	rec, ca := newRecorder(t, protocol)
	roots, err := cdn.ReadCA(ca)
	if err != nil {
		t.Fatal(err)
	}
	f, err := front.New(front.Config{
		URL:     &url.URL{Scheme: "https", Host: cdn.Front, Path: "/"},
		Addr:    rec.Addr(),
		UTLS:    utls,
		RootCAs: roots,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	post := func(path string) {
		ctx, cancel := context.WithTimeout(t.Context(), startTime)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+cdn.Front+path, strings.NewReader(strings.Repeat("x", bodySize)))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header = header.Clone()
		resp, err := f.RoundTrip(req)
		if err != nil {
			t.Error(err)
			return
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	for _, path := range append(firstPaths, secondPaths[0]) {
		post(path)
	}
	var all sync.WaitGroup
	for _, path := range secondPaths[1:4] {
		all.Go(func() { post(path) })
	}
	all.Wait()
	post(secondPaths[4])
	f.Close()
	if err := rec.Close(); err != nil {
		t.Error(err)
	}
	return rec.Connections()
}

// computer are the headers that say on what computer a browser runs, as
// Chromium sent them.
func computer(head []hpack.HeaderField) http.Header {
	h := make(http.Header)
	for _, f := range head {
		switch strings.ToLower(f.Name) {
		case "user-agent", "sec-ch-ua", "sec-ch-ua-platform":
			h.Set(f.Name, f.Value)
		}
	}
	return h
}

// A sheet compares what the two clients sent, side by side.
type sheet struct {
	t     *testing.T
	lines []string
}

func (s *sheet) compare(what string, chromium, ours any) {
	verdict := "same"
	if !reflect.DeepEqual(chromium, ours) {
		verdict = "DIFFERS"
		s.t.Errorf("%s: Chromium %v, ours %v", what, chromium, ours)
	}
	s.lines = append(s.lines, fmt.Sprintf("%s: %s\n    Chromium  %v\n    ours      %v", what, verdict, chromium, ours))
}

// TestHTTP2 is the proof that utls=chrome looks like Chromium: in JA3 and JA4,
// first and later connections, and in all that HTTP/2 shows.
func TestHTTP2(t *testing.T) {
	first := func(c *Connection) bool { return !c.Resumed }
	later := func(c *Connection) bool { return c.Resumed && c.asks(secondPaths[0]) }
	all := ofChromium(t, "h2")
	// Chromium may open one more connection in advance, before it has a ticket.
	// It is not used, or used in place of a later one that would be resumed: then
	// there is nothing to compare in this run of the browser. Nor if its second
	// request there depends on the first, which had not quite ended for it.
	comparable := func(c *Connection) bool {
		return later(c) && (len(c.Requests()) < 2 || c.Requests()[1].Priority == nil || c.Requests()[1].Priority.StreamDep == 0)
	}
	for range 9 {
		if slices.ContainsFunc(all, comparable) {
			break
		}
		all = ofChromium(t, "h2")
	}
	theirs := []*Connection{find(t, all, first), find(t, all, later)}
	all = ofOurs(t, "h2", "", computer(theirs[1].Requests()[0].Fields))
	if len(all) != 2 {
		t.Fatalf("our client made %d connections", len(all))
	}
	ours := []*Connection{
		find(t, all, func(c *Connection) bool { return !c.Resumed && c.asks(firstPaths[0]) }),
		find(t, all, later),
	}
	s := &sheet{t: t}
	for i, which := range []string{"first connection", "later connection"} {
		a, b := theirs[i], ours[i]
		s.compare(which+", JA4", a.Hello.JA4(), b.Hello.JA4())
		s.compare(which+", JA3 with sorted extensions", a.Hello.SortedJA3(), b.Hello.SortedJA3())
		s.compare(which+", every byte that lasts", lastingOf(a.Hello), lastingOf(b.Hello))
		if len(a.Requests()) > 0 {
			s.compare(which+", HTTP/2", Akamai(a.Frames), Akamai(b.Frames))
		}
	}
	heads := theirs[1].Requests()
	for i, b := range ours[1].Requests() {
		a := heads[i]
		what := fmt.Sprintf("later connection, request %d", i+1)
		s.compare(what+", priority", *a.Priority, *b.Priority)
		if i == 0 || i == len(heads)-1 { // the others' order is chance
			s.compare(what+", head", a.Fields, b.Fields)
			s.compare(what+", bytes of the compressed head", a.Length, b.Length)
		}
	}
	s.compare("later connection, sizes of TLS records", slices.Sorted(slices.Values(theirs[1].Records)), slices.Sorted(slices.Values(ours[1].Records)))
	t.Log("\n" + strings.Join(s.lines, "\n"))
}

// find returns the first connection that is as wanted.
func find(t *testing.T, conns []*Connection, wanted func(*Connection) bool) *Connection {
	t.Helper()
	i := slices.IndexFunc(conns, wanted)
	if i < 0 {
		t.Fatalf("none of %d connections is the one to compare", len(conns))
	}
	return conns[i]
}

// TestHTTP1 is the same for HTTP/1.1.
func TestHTTP1(t *testing.T) {
	theirs, sizes := firstPost(t, ofChromium(t, "http/1.1"))
	ours, ourSizes := firstPost(t, ofOurs(t, "http/1.1", "", computer(theirs.Fields)))
	s := &sheet{t: t}
	s.compare("request", theirs, ours)
	s.compare("sizes of its TLS records", sizes, ourSizes)
	t.Log("\n" + strings.Join(s.lines, "\n"))
}

// firstPost returns the first request of the script, and the sizes of the TLS
// records that carried it: one for its head and one for its body.
func firstPost(t *testing.T, conns []*Connection) (Head, []int) {
	t.Helper()
	for _, c := range conns {
		records := c.Records
		for _, h := range c.Heads {
			n := 1
			if strings.HasPrefix(h.Line, "POST") {
				n = 2
			}
			if len(records) < n {
				t.Fatalf("%d TLS records for %d requests", len(c.Records), len(c.Heads))
			}
			if strings.HasPrefix(h.Line, "POST "+firstPaths[0]+" ") {
				return h, records[:2]
			}
			records = records[n:]
		}
	}
	t.Fatal("no request " + firstPaths[0])
	return Head{}, nil
}

// lastingOf is Lasting, with GREASE extensions where they are and the others, which
// Chromium permutes, sorted.
func lastingOf(h *ClientHello) []string {
	lines := h.Lasting()
	grease := func(line string) bool { return strings.HasPrefix(line, "extension 2570: ") }
	sorted := slices.DeleteFunc(slices.Clone(lines), grease)
	slices.Sort(sorted)
	for i, line := range lines {
		if grease(line) {
			sorted = slices.Insert(sorted, i, line)
		}
	}
	return sorted
}

// Every name that utls= accepts has the HTTP/2 preface of its browser.
func TestPrefaces(t *testing.T) {
	want := map[string]string{
		"chrome":  "1:65536;2:0;4:6291456;6:262144|15663105|0|m,a,s,p",
		"firefox": "1:65536;2:0;4:131072;5:16384|12517377|0|m,p,a,s",
		"safari":  "2:0;4:4194304;3:100|10485760|0|m,s,p,a",
	}
	for name, akamai := range want {
		for i, c := range ofOurs(t, "h2", name, nil) {
			// The published capture of which the HTTP/2 is.
			if got := JA3Hash(c.Hello.JA3()); name == "safari" && got != "773906b0efdefa24a7f2b8eb6985bf37" {
				t.Errorf("%s, connection %d: JA3 %s, %s", name, i, got, c.Hello.JA3())
			}
			if got := Akamai(c.Frames); got != akamai {
				t.Errorf("%s, connection %d: %s, want %s", name, i, got, akamai)
			}
			for _, f := range c.Frames {
				if f.Kind == http2.FrameHeaders && (f.Priority == nil || f.Length == 0) {
					t.Errorf("%s: a request without priority", name)
				}
			}
		}
	}
	for _, c := range ofOurs(t, "h2", "none", nil) {
		for _, f := range c.Requests()[0].Fields {
			if strings.Contains(f.Value, "Go-http-client") {
				t.Errorf("none says %s: %s", f.Name, f.Value)
			}
		}
	}
}
