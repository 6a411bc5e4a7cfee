package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
	"turbotunnel/common/engines"
	"turbotunnel/common/handshake"
)

// pipes is a network in memory. It is a net.Listener, too.
type pipes struct {
	accept chan net.Conn
	cut    chan struct{} // closed: nobody gets through any more
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.accept <- far:
		return near, nil
	case <-p.cut:
		return nil, errors.New("the network is cut")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.cut:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// plainTransport makes a carrier.Transport of an http.Transport.
type plainTransport struct{ *http.Transport }

func (plainTransport) Slots() (n int, crowded bool) { return 6, false }
func (plainTransport) Name() string                 { return "" }
func (plainTransport) Feeds() bool                  { return true }
func (plainTransport) Rest() time.Duration          { return 0 }
func (plainTransport) Foreign(*http.Response)       {}

// TestKilledClient: when a client is gone without a word, its streams end after
// the session's lifetime, with an error and not before.
func TestKilledClient(t *testing.T) {
	for _, name := range engines.Names() {
		t.Run(name, func(t *testing.T) {
			e, _ := engines.Find(name)
			enginetest.Bubble(t, func(t *testing.T) { testKilledClient(t, e) })
		})
	}
}

func testKilledClient(t *testing.T, e engine.Engine) {
	key := NewKey()
	server := NewServer(ServerConfig{Key: key, Log: testLog()})
	network := &pipes{make(chan net.Conn), make(chan struct{})}
	web := &http.Server{Handler: server}
	served := make(chan error)
	go func() { served <- web.Serve(network) }()

	public, err := handshake.ParsePublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: network.dial}
	client := carrier.NewClient(carrier.ClientConfig{
		Transport: plainTransport{transport},
		URL:       &url.URL{Scheme: "http", Host: "server.example", Path: "/x"},
		Key:       public,
		Engine:    e.Name(),
		Mode:      carrier.Auto,
		Log:       testLog(),
	})
	session, err := e.Client(client.Conn())
	if err != nil {
		t.Fatal(err)
	}
	near, err := session.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(near, "hello"); err != nil {
		t.Fatal(err)
	}
	far, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the server", far, "hello")
	if _, err := io.WriteString(far, "welcome"); err != nil {
		t.Fatal(err)
	}
	expect(t, "the client", near, "welcome")
	// What comes under the session's keys confirms it: until then it is short.
	if _, err := io.WriteString(near, "thanks"); err != nil {
		t.Fatal(err)
	}
	expect(t, "the server", far, "thanks")

	// The client lives on in this process. The network does not.
	killed := time.Now()
	close(network.cut)
	web.Close()
	<-served
	transport.CloseIdleConnections()

	n, err := far.Read(make([]byte, 1))
	if n > 0 || err == nil || err == io.EOF {
		t.Errorf("the server reads %d bytes, %v; want an error that is not the stream's end", n, err)
	}
	// A minute more than the lifetime is more than the engines' own time.
	if took := time.Since(killed); took < carrier.Lifetime-time.Minute || took > carrier.Lifetime+time.Minute {
		t.Errorf("the stream has ended after %v, want about %v", took, carrier.Lifetime)
	}
	if stats := server.Stats(); stats.Sessions != 0 || stats.Expired != 1 {
		t.Errorf("the server: %+v, want no session, and one whose time was over", stats)
	}
	far.Close()
	session.Close()
	<-client.Done()
	server.Close()
}
