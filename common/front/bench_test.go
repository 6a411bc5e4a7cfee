package front

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
)

const benchBytes = 32 << 20 // of one exchange

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// roundTrippers are what is compared: the Fronts, and net/http's client as it
// comes.
func roundTrippers(b *testing.B, run func(b *testing.B, rt http.RoundTripper, scheme string)) {
	handler := func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		if n > 1 {
			return
		}
		buf := make([]byte, 64<<10)
		for range benchBytes / len(buf) {
			w.Write(buf)
		}
	}
	for _, name := range []string{"chrome", "firefox", "none"} {
		b.Run("h2-"+name, func(b *testing.B) {
			s := serve(b, serverOptions{}, handler)
			run(b, newFront(b, s, func(c *Config) { c.UTLS = name }), "https")
		})
	}
	b.Run("h1-chrome", func(b *testing.B) {
		s := serve(b, serverOptions{noH2: true}, handler)
		run(b, newFront(b, s, nil), "https")
	})
	b.Run("clear", func(b *testing.B) {
		s := serve(b, serverOptions{clear: true}, handler)
		run(b, newFront(b, s, func(c *Config) { c.URL.Scheme = "http" }), "http")
	})
	b.Run("nethttp-h2", func(b *testing.B) {
		s := serve(b, serverOptions{}, handler)
		t := &http.Transport{
			ForceAttemptHTTP2: true,
			TLSClientConfig:   &tls.Config{RootCAs: roots(), ServerName: frontName},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, s.addr)
			},
		}
		defer t.CloseIdleConnections()
		run(b, t, "https")
	})
}

func BenchmarkDownload(b *testing.B) {
	roundTrippers(b, func(b *testing.B, rt http.RoundTripper, scheme string) {
		buf := make([]byte, 64<<10)
		b.SetBytes(benchBytes)
		for b.Loop() {
			req := post(b.Context(), "x")
			req.URL.Scheme = scheme
			resp, err := rt.RoundTrip(req)
			if err != nil {
				b.Fatal(err)
			}
			var n int64
			for {
				m, err := resp.Body.Read(buf)
				n += int64(m)
				if err == io.EOF {
					break
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			resp.Body.Close()
			if n != benchBytes {
				b.Fatalf("read %d bytes", n)
			}
		}
	})
}

func BenchmarkUpload(b *testing.B) {
	roundTrippers(b, func(b *testing.B, rt http.RoundTripper, scheme string) {
		b.SetBytes(benchBytes)
		for b.Loop() {
			req := postBody(b.Context(), io.NopCloser(io.LimitReader(zeros{}, benchBytes)), benchBytes)
			req.URL.Scheme = scheme
			resp, err := rt.RoundTrip(req)
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}

// BenchmarkSmall is a poll: a small body each way.
func BenchmarkSmall(b *testing.B) {
	roundTrippers(b, func(b *testing.B, rt http.RoundTripper, scheme string) {
		for b.Loop() {
			req := post(b.Context(), "xx")
			req.URL.Scheme = scheme
			resp, err := rt.RoundTrip(req)
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}
