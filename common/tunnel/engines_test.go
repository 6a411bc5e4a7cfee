package tunnel

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
	"turbotunnel/common/engines"
	"turbotunnel/common/handshake"
)

// TestEngines runs what every engine must do over the carrier, on HTTP of both
// versions, streamed and not. No engine sees which it is, so each runs on the two
// ways that have least in common, and the default on the mixtures of them, too.
// The test of bulk is 100 MB each way for the default on the way that is used most.
func TestEngines(t *testing.T) {
	for _, name := range engines.Names() {
		e, _ := engines.Find(name)
		for _, over := range []struct {
			name string
			http2
			mode    carrier.Mode
			mixture bool
		}{
			{"HTTP1/poll", false, carrier.Poll, false},
			{"HTTP1/auto", false, carrier.Auto, true},
			{"HTTP2/poll", true, carrier.Poll, true},
			{"HTTP2/auto", true, carrier.Auto, false},
		} {
			if over.mixture && (testing.Short() || name != engines.Default) {
				continue
			}
			t.Run(name+"/"+over.name, func(t *testing.T) {
				size := 8 << 20
				if !testing.Short() && name == engines.Default && over.name == "HTTP2/auto" {
					size = 100 << 20
				}
				enginetest.RunOver(t, e, size, func(t *testing.T) (client, server engine.Carrier) {
					return carry(t, name, over.http2, over.mode)
				})
			})
		}
	}
}

type http2 bool

// transport is net/http's client. It has room for some exchanges.
type transport struct {
	*http.Transport
	exchanges int
}

func (t transport) Slots() (n int, crowded bool) { return t.exchanges, false }
func (transport) Name() string                   { return "" }
func (transport) Feeds() bool                    { return true }
func (transport) Rest() time.Duration            { return 0 }
func (transport) Foreign(*http.Response)         {}

// carry returns the ends of a session of the carrier.
func carry(t *testing.T, name string, h2 http2, mode carrier.Mode) (client, server engine.Carrier) {
	key := handshake.GenerateKey()
	sessions, over := make(chan *carrier.Session, 1), make(chan struct{})
	handler := carrier.NewServer(carrier.ServerConfig{
		Key:     key,
		Decoy:   http.NotFoundHandler(),
		Engines: []string{name},
		Serve: func(s *carrier.Session) {
			sessions <- s
			<-over // the engine is run by the test
		},
		Log: testLog(),
	})
	web := httptest.NewUnstartedServer(handler)
	way := transport{&http.Transport{MaxConnsPerHost: 6}, 6}
	if h2 {
		web.EnableHTTP2 = true
		web.StartTLS()
		roots := web.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
		way = transport{&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}, 100}
	} else {
		web.Start()
	}
	u, err := url.Parse(web.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := carrier.NewClient(carrier.ClientConfig{
		Transport: way,
		URL:       u.JoinPath("x"),
		Key:       key.Public(),
		Engine:    name,
		Mode:      mode,
		Log:       testLog(),
	})
	t.Cleanup(func() {
		c.Close()
		close(over)
		handler.Close()
		way.CloseIdleConnections()
		web.Close()
	})
	select {
	case s := <-sessions:
		return c.Conn(), s.Conn()
	case <-c.Done():
		t.Fatal(c.Err())
		return nil, nil
	}
}
