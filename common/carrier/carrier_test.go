package carrier

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"testing"
	"time"

	"turbotunnel/common/handshake"
)

// plainTransport is net/http's client with room for many exchanges.
type plainTransport struct {
	*http.Transport
	max int
}

func (t plainTransport) Slots() (n int, crowded bool) { return t.max, false }
func (plainTransport) Name() string                   { return "" }
func (plainTransport) Feeds() bool                    { return true }
func (plainTransport) Rest() time.Duration            { return 0 }
func (plainTransport) Foreign(*http.Response)         {}

// pair is a client and a server that serve one session's Conn to a test.
type pair struct {
	server *Server
	client *Client
	http   *httptest.Server
	remote chan *Session
}

func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func newPair(t testing.TB, mode Mode, h2 bool) *pair {
	key := handshake.GenerateKey()
	p := &pair{remote: make(chan *Session, 16)}
	p.server = NewServer(ServerConfig{
		Key:     key,
		Decoy:   http.NotFoundHandler(),
		Engines: []string{"raw"},
		Log:     testLog(t),
		Serve: func(s *Session) {
			p.remote <- s
			<-s.link.closed
		},
	})
	p.http = httptest.NewUnstartedServer(p.server)
	p.http.EnableHTTP2 = h2
	p.http.Config.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 16 << 20, MaxReceiveBufferPerConnection: 32 << 20, MaxConcurrentStreams: 250}
	max := 6
	if h2 {
		max = 100
		p.http.StartTLS()
	} else {
		p.http.Start()
	}
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: h2,
		MaxConnsPerHost:   6,
		HTTP2:             &http.HTTP2Config{MaxReceiveBufferPerStream: 16 << 20, MaxReceiveBufferPerConnection: 32 << 20},
	}
	u, _ := url.Parse(p.http.URL)
	p.client = NewClient(ClientConfig{
		Transport: plainTransport{tr, max},
		URL:       u.JoinPath("x"),
		Key:       key.Public(),
		Engine:    "raw",
		Mode:      mode,
		Log:       testLog(t),
	})
	t.Cleanup(func() {
		p.client.Conn().Close()
		<-p.client.Done()
		p.server.Close()
		tr.CloseIdleConnections()
		p.http.Close()
	})
	return p
}

func BenchmarkDatagrams(b *testing.B) {
	for _, h2 := range []bool{false, true} {
		for _, mode := range []Mode{Poll, Stream} {
			for _, down := range []bool{true, false} {
				b.Run(fmt.Sprintf("h2=%v/%v/down=%v", h2, mode, down), func(b *testing.B) {
					p := newPair(b, mode, h2)
					p.client.Conn().WriteTo([]byte("hello"), nil)
					s := <-p.remote
					buf := make([]byte, 2000)
					s.Conn().ReadFrom(buf)
					from, to := p.client.Conn(), s.Conn()
					if down {
						from, to = to, from
					}
					const size = 1400
					b.SetBytes(size)
					b.ReportAllocs()
					b.ResetTimer()
					done := make(chan error)
					go func() {
						got := make([]byte, 2000)
						for i := range b.N {
							n, _, err := to.ReadFrom(got)
							if err != nil || n != size || binary.BigEndian.Uint64(got) != uint64(i) {
								done <- fmt.Errorf("datagram %d: %d bytes, %v, %x", i, n, err, got[:8])
								return
							}
						}
						done <- nil
					}()
					out := make([]byte, size)
					for i := range b.N {
						binary.BigEndian.PutUint64(out, uint64(i))
						if _, err := from.WriteTo(out, nil); err != nil {
							b.Fatal(err)
						}
					}
					select {
					case err := <-done:
						if err != nil {
							b.Fatal(err)
						}
					case <-time.After(30 * time.Second):
						b.Fatal("stuck")
					}
					b.ReportMetric(float64(p.client.link.out.resent.Load()+s.link.out.resent.Load()), "resent-bytes")
				})
			}
		}
	}
}
