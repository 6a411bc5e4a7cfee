package e2e

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path"
	"testing"

	"turbotunnel/test/cdn"
	"turbotunnel/test/guide"
)

// runPlainProxy starts a reverse proxy over HTTP/1.1 in front of origin, whose
// clients all come from the address client.
func runPlainProxy(t *testing.T, origin, client string) *cdn.CDN {
	t.Helper()
	c, err := cdn.Start(cdn.Config{Origin: origin, Client: client})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// sessionCount is how many different sessions the paths of requests named.
func sessionCount(c *cdn.CDN) int {
	sessions := map[string]bool{}
	for _, request := range c.Seen() {
		sessions[path.Base(request.Path)] = true
	}
	return len(sessions)
}

// TestCDN proves the CDNs without a tunnel.
func TestCDN(t *testing.T) {
	heard := make(chan string, 1)
	origin := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		heard <- r.Proto + " " + r.Host + " " + r.Header.Get("X-Forwarded-For")
	}))
	defer origin.Close()
	for _, k := range guide.Kinds {
		c := guide.StartCDN(t, k, cdn.Front, origin.Listener.Addr().String(), k.Claims("192.0.2.1")...)
		cmd := exec.Command("curl", "-sS", "--cacert", c.CAFile, "--connect-to", "::"+c.Addr,
			"-H", "Host: "+cdn.Origin, "https://"+cdn.Front+"/path")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: curl: %v: %s", k.Name, err, out)
		}
		if got, want := <-heard, "HTTP/1.1 "+cdn.Origin+" "+cdn.Forged+", 192.0.2.1"; got != want {
			t.Errorf("%s: the origin heard %q, want %q", k.Name, got, want)
		}
		c.CheckRequests(t, cdn.Front, "/path")
	}
}
