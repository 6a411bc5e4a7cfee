package cdn

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFronting(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Proto+" "+r.Host+" "+r.Header.Get("X-Forwarded-For"))
	}))
	defer origin.Close()
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	c, err := Start(Config{Origin: origin.Listener.Addr().String(), Client: "192.0.2.1", CAFile: caFile})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	roots, err := ReadCA(caFile)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: Front},
		ForceAttemptHTTP2: true,
	}
	defer transport.CloseIdleConnections()

	for host, want := range map[string]string{
		Origin:          "HTTP/1.1 " + Origin + " " + Forged + ", 192.0.2.1",
		"other.example": "404 page not found\n",
	} {
		req, err := http.NewRequest(http.MethodGet, "https://"+c.Addr()+"/path", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != want {
			t.Errorf("%s: %q, %v; want %q", host, body, err, want)
		}
	}
	if seen := c.Seen(); len(seen) != 2 {
		t.Errorf("%d requests seen, want 2", len(seen))
	} else if seen[0].SNI != Front || seen[0].Proto != "HTTP/2.0" || seen[0].Path != "/path" {
		t.Errorf("seen: %+v", seen[0])
	}
}
