package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"turbotunnel/common/engines"
)

func testLog() *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// bench is a server on loopback and a dialer for it.
func newTunnel(t testing.TB, engine, mode string, secure bool) (*Dialer, *Server) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	server, err := NewServer(ServerConfig{Key: key, Log: testLog()})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(server)
	web.EnableHTTP2 = true
	web.Config.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 16 << 20, MaxReceiveBufferPerConnection: 32 << 20, MaxConcurrentStreams: 250}
	if secure {
		web.StartTLS()
		os.Setenv("SSL_CERT_FILE", "")
	} else {
		web.Start()
	}
	_ = tls.Config{}
	d, err := NewDialer(Config{URL: web.URL + "/x", Key: key.Public(), Engine: engine, Mode: mode}, Options{Log: testLog()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Close()
		server.Close()
		web.Close()
	})
	return d, server
}

func TestEcho(t *testing.T) {
	for _, e := range engines.Names() {
		for _, mode := range []string{"poll", "stream"} {
			t.Run(e+"/"+mode, func(t *testing.T) {
				d, s := newTunnel(t, e, mode, false)
				go func() {
					for {
						st, err := s.Accept()
						if err != nil {
							return
						}
						go func() {
							io.Copy(st, st)
							st.CloseWrite()
						}()
					}
				}()
				st, err := d.Dial(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				data := bytes.Repeat([]byte("0123456789"), 1<<20/10)
				go func() {
					st.Write(data)
					st.CloseWrite()
				}()
				start := time.Now()
				got, err := io.ReadAll(st)
				if err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%d bytes back of %d, %v", len(got), len(data), err)
				}
				t.Log(time.Since(start))
				st.Close()
			})
		}
	}
}

func BenchmarkThroughput(b *testing.B) {
	for _, e := range engines.Names() {
		for _, mode := range []string{"poll", "stream"} {
			for _, down := range []bool{true, false} {
				b.Run(fmt.Sprintf("%s/%s/down=%v", e, mode, down), func(b *testing.B) {
					d, s := newTunnel(b, e, mode, false)
					c, err := d.Dial(context.Background())
					if err != nil {
						b.Fatal(err)
					}
					c.Write([]byte("x"))
					var from, to Stream
					st, err := s.Accept()
					if err != nil {
						b.Fatal(err)
					}
					st.Read(make([]byte, 1))
					from, to = c, st
					if down {
						from, to = st, c
					}
					buf := make([]byte, 64<<10)
					b.SetBytes(int64(len(buf)))
					b.ReportAllocs()
					b.ResetTimer()
					done := make(chan struct{})
					go func() {
						io.CopyN(io.Discard, to, int64(b.N*len(buf)))
						close(done)
					}()
					for range b.N {
						from.Write(buf)
					}
					<-done
				})
			}
		}
	}
}
