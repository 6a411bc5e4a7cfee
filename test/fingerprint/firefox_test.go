package fingerprint

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// ofFirefox returns the connections of a Firefox that loads the page.
func ofFirefox(t *testing.T, program, protocol string) []*Connection {
	t.Helper()
	all, err := firefox(program, t.TempDir(), protocol, page)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// golden is what a Firefox has sent, as text. Its first line is the version.
const golden = "testdata/firefox.txt"

// TestRecordFirefox writes the golden anew, by the Firefox that the variable
// names.
func TestRecordFirefox(t *testing.T) {
	program := os.Getenv("TEST_FIREFOX")
	if program == "" {
		t.Skip("TEST_FIREFOX names no Firefox to record")
	}
	version, err := exec.Command(program, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	text := string(version) + portrait(t, ofFirefox(t, program, "h2"), ofFirefox(t, program, "http/1.1"))
	if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestFirefox compares utls=firefox with the golden.
func TestFirefox(t *testing.T) {
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	version, want, _ := strings.Cut(string(text), "\n")
	_, agent, _ := strings.Cut(want, "user-agent: ")
	agent, _, _ = strings.Cut(agent, "\n")
	linux := http.Header{"User-Agent": {agent}}
	got := portrait(t, ofOurs(t, "h2", "firefox", linux), ofOurs(t, "http/1.1", "firefox", linux))
	wants, gots := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(wants), len(gots)) {
		var w, g string
		if i < len(wants) {
			w = wants[i]
		}
		if i < len(gots) {
			g = gots[i]
		}
		if w != g {
			t.Errorf("line %d: %s has %q, ours %q", i+2, version, w, g)
		}
	}
	// What ours says of itself is the recorded version's.
	own := ofOurs(t, "h2", "firefox", nil)[0].Requests()[0].Fields
	i := slices.IndexFunc(own, func(f hpack.HeaderField) bool { return f.Name == "user-agent" })
	_, after, _ := strings.Cut(agent, "; rv:")
	if i < 0 || !strings.HasSuffix(own[i].Value, "; rv:"+after) {
		t.Errorf("ours is not the agent %q in %q", agent, own)
	}
}

// portrait is what classifiers see of a Firefox, or of a client that claims to
// be one: its first and its later connection over HTTP/2, and its first request
// over HTTP/1.1. Ports are left out, as they are chance.
func portrait(t *testing.T, h2, h1 []*Connection) string {
	t.Helper()
	var b strings.Builder
	for _, c := range []*Connection{
		find(t, h2, func(c *Connection) bool { return !c.Resumed && c.asks(firstPaths[0]) }),
		find(t, h2, func(c *Connection) bool { return c.Resumed && c.asks(secondPaths[0]) }),
	} {
		fmt.Fprintf(&b, "\nconnection, TLS session resumed: %t\n", c.Resumed)
		fmt.Fprintf(&b, "JA4: %s\nJA3: %s\n", c.Hello.JA4(), c.Hello.JA3())
		for _, e := range c.Hello.Extensions {
			fmt.Fprintf(&b, "extension: %d, %d bytes\n", e.Type, len(e.Data))
		}
		fmt.Fprintf(&b, "HTTP/2: %s\n", Akamai(c.Frames))
		post := c.Requests()[slices.IndexFunc(c.Requests(), func(f Frame) bool { return f.Fields[0].Value == "POST" })]
		fmt.Fprintf(&b, "request: flags %#x, weight %d, depends on %d\n", uint8(post.Flags), post.Priority.Weight, post.Priority.StreamDep)
		for _, f := range post.Fields {
			fmt.Fprintf(&b, "%s: %s\n", f.Name, port.ReplaceAllString(f.Value, ""))
		}
		last := c.Requests()[len(c.Requests())-1]
		fmt.Fprintf(&b, "bytes of the compressed head of the last request: %d\n", last.Length)
		for _, f := range c.Frames {
			if f.Kind == http2.FrameWindowUpdate && f.Stream == post.Stream {
				fmt.Fprintf(&b, "its window grows by: %d\n", f.Window)
				break
			}
		}
	}
	fmt.Fprint(&b, "\nHTTP/1.1\n")
	for _, c := range h1 {
		for _, h := range c.Heads {
			if strings.HasPrefix(h.Line, "POST "+firstPaths[0]+" ") {
				fmt.Fprintln(&b, h.Line)
				for _, f := range h.Fields {
					fmt.Fprintf(&b, "%s: %s\n", f.Name, port.ReplaceAllString(f.Value, ""))
				}
			}
		}
	}
	return b.String()
}
