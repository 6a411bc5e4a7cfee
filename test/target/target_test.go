package target

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T) (*Server, *http.Client) {
	t.Helper()
	s, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return s, &http.Client{Transport: tr}
}

func TestTraffic(t *testing.T) {
	s, client := start(t)
	const size = 300_001
	var down, up bytes.Buffer
	if err := s.Get(t.Context(), client); err != nil {
		t.Error(err)
	}
	if err := s.Download(t.Context(), client, 1, size, &down); err != nil {
		t.Error(err)
	}
	if err := s.Upload(t.Context(), client, 2, size, &up); err != nil {
		t.Error(err)
	}
	if down.Len() != size || up.Len() != size {
		t.Errorf("%d bytes down and %d up seen, want %d", down.Len(), up.Len(), size)
	}
}

// damage flips one bit of every response's, or request's, 1000th byte.
type damage struct {
	http.RoundTripper
	request bool
}

type flipper struct {
	io.ReadCloser
	at int
}

func (f *flipper) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if f.at >= 0 && f.at < n {
		p[f.at] ^= 1
	}
	f.at -= n
	return n, err
}

func (d damage) RoundTrip(r *http.Request) (*http.Response, error) {
	if d.request {
		r = r.Clone(r.Context())
		r.Body = &flipper{r.Body, 1000}
	}
	resp, err := d.RoundTripper.RoundTrip(r)
	if err == nil && !d.request {
		resp.Body = &flipper{resp.Body, 1000}
	}
	return resp, err
}

func TestDamageIsSeen(t *testing.T) {
	s, client := start(t)
	plain := client.Transport
	client.Transport = damage{plain, false}
	err := s.Download(t.Context(), client, 1, 5000, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "changed") {
		t.Errorf("damaged download: %v", err)
	}
	client.Transport = damage{plain, true}
	err = s.Upload(t.Context(), client, 1, 5000, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "changed") {
		t.Errorf("damaged upload: %v", err)
	}
}
