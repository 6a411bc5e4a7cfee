package front

//lint:file-ignore SA1019 net/http, which x/net/http2 points to, speaks HTTP/2 over TLS of crypto/tls only, and has no ping.

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
)

const (
	// maxStreams is how many exchanges a Front has in flight over HTTP/2. It
	// is what RFC 9113 section 6.5.2 recommends that servers allow at least.
	maxStreams = 100

	// streamWindow and connWindow are the largest HTTP/2 receive windows in
	// bytes, to which those of a browser's preface grow. 200 ms at 500 Mbit/s
	// are 12.5 MB in flight, and an h2Mask may hold back 3 MB of what was read.
	// Unread responses hold at most connWindow in memory.
	streamWindow = 20 << 20
	connWindow   = 32 << 20

	// dataFrame is the most octets of a body in one HTTP/2 frame. It is
	// Chrome's (net/spdy/spdy_session.cc): with its head a frame fills a TLS
	// record, of which 16 KB would need two.
	dataFrame = 16<<10 - frameHead

	// readFrame is the size in bytes of the largest HTTP/2 frame that a server
	// may send. It is the protocol's default, and browsers ask for no other:
	// 1 MB saved a tenth of the CPU time of BenchmarkDownload, and only with a
	// server that sends such frames, and 256 KB nothing that could be measured.
	readFrame = 16 << 10

	// maxResponseHead is the limit on a response's header in bytes, the one
	// that Chrome announces.
	maxResponseHead = 256 << 10

	// buffer is the size in bytes of an HTTP/1.1 connection's buffers. A
	// request of a few KB leaves in one TLS record.
	buffer = 32 << 10
)

// A wire speaks one version of HTTP on one connection that is ready for it.
// This is all that the rest of the package knows of an implementation. It is
// safe for concurrent use.
type wire interface {
	// roundTrip is http.RoundTripper's, with the first Read of the request's
	// body after its head was written.
	roundTrip(*http.Request) (*http.Response, error)

	// usable reports whether the connection would take one more exchange, as
	// far as this side knows. It does not wait for the network.
	usable() bool

	// limit is how many exchanges may be in flight at once. known is false
	// until the server has said so.
	limit() (n int, known bool)

	// ping returns nil when the server has answered. It is for HTTP/2 only.
	ping(context.Context) error

	// close ends the connection and its exchanges.
	close()
}

// A wireMaker makes wires out of connections. It is safe for concurrent use.
type wireMaker struct {
	h1    *http.Transport
	h2    *http2.Transport
	look  *h2Look // nil: connections look like Go's
	order fieldOrder
	never []string // headers that are not sent over HTTP/1.1
}

// connKey carries the connection to the HTTP/1.1 implementation, which wants
// to dial.
type connKey struct{}

// wireMakers makes, once each, the wireMaker of every browser that is built in, and of
// none. One costs 4 KB and keeps nothing of the Fronts that use it.
var wireMakers = map[*browser]func() (*wireMaker, error){
	nil:      onceWireMaker(nil),
	&chrome:  onceWireMaker(&chrome),
	&firefox: onceWireMaker(&firefox),
	&safari:  onceWireMaker(&safari),
}

// wireMakerFor returns one whose connections look like b's, or like Go's if b
// is nil.
func wireMakerFor(b *browser) (*wireMaker, error) {
	if make, builtIn := wireMakers[b]; builtIn {
		return make()
	}
	return newWireMaker(b)
}

// onceWireMaker puts off the making until somebody wants it.
func onceWireMaker(b *browser) func() (*wireMaker, error) {
	return sync.OnceValues(func() (*wireMaker, error) { return newWireMaker(b) })
}

// newWireMaker returns a wireMaker for b, without sharing it.
func newWireMaker(b *browser) (*wireMaker, error) {
	t1 := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ctx.Value(connKey{}).(net.Conn), nil
		},
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxResponseHead,
		ReadBufferSize:         buffer,
		WriteBufferSize:        buffer,
	}
	// The HTTP/2 implementation takes its windows from a Transport, on which
	// it must not change the protocols of the one above.
	t2 := &http.Transport{
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxResponseHead,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			MaxReadFrameSize:              readFrame,
			MaxDecoderHeaderTableSize:     maxHeaderTable,
			// An exchange above the server's limit waits for its turn.
			StrictMaxConcurrentRequests: true,
		},
	}
	if b != nil {
		t2.HTTP2.MaxEncoderHeaderTableSize = innerTable
	}
	h2, err := http2.ConfigureTransports(t2)
	if err != nil {
		return nil, err
	}
	m := &wireMaker{h1: t1, h2: h2}
	if b != nil {
		m.look, m.order, m.never = &b.h2, b.fieldOrder(), b.onlyH2
	}
	return m, nil
}

// make returns a wire that speaks HTTP/2 or HTTP/1.1 on conn and owns it.
func (m *wireMaker) make(ctx context.Context, conn net.Conn, h2 bool) (wire, error) {
	if h2 {
		if m.look != nil {
			conn = newH2Mask(conn, m.look, m.order)
		}
		cc, err := m.h2.NewClientConn(conn)
		if err != nil {
			return nil, err
		}
		return &wire2{cc: cc}, nil
	}
	var mask *h1Mask
	if m.look != nil {
		mask = &h1Mask{Conn: conn, order: m.order, never: m.never}
		conn = mask
	}
	// The host does not matter: it names the connection in errors only.
	cc, err := m.h1.NewClientConn(context.WithValue(ctx, connKey{}, conn), "http", "front.invalid:80")
	if err != nil {
		return nil, err
	}
	return wire1{cc, mask}, nil
}

// wire1 is HTTP/1.1.
type wire1 struct {
	cc   *http.ClientConn
	mask *h1Mask // nil: none
}

func (w wire1) roundTrip(req *http.Request) (*http.Response, error) {
	if w.mask != nil {
		w.mask.begin()
	}
	return w.cc.RoundTrip(req)
}
func (w wire1) usable() bool               { return w.cc.Err() == nil && w.cc.Available() > 0 }
func (w wire1) limit() (int, bool)         { return 1, true }
func (w wire1) ping(context.Context) error { return nil }
func (w wire1) close()                     { w.cc.Close() }

// wire2 is HTTP/2.
type wire2 struct {
	cc  *http2.ClientConn
	max atomic.Uint32 // the server's limit on streams, 0 until known
}

func (w *wire2) roundTrip(req *http.Request) (*http.Response, error) {
	resp, err := w.cc.RoundTrip(req)
	if err == nil && w.max.Load() == 0 {
		// The server's SETTINGS precede its first response. State waits for
		// the connection's writer, which usable and limit must not.
		w.max.Store(w.cc.State().MaxConcurrentStreams)
	}
	return resp, err
}

func (w *wire2) limit() (int, bool) {
	n := w.max.Load()
	if n == 0 {
		return maxStreams, false
	}
	return int(min(n, maxStreams)), true
}

func (w *wire2) usable() bool                   { return w.cc.CanTakeNewRequest() }
func (w *wire2) ping(ctx context.Context) error { return w.cc.Ping(ctx) }
func (w *wire2) close()                         { w.cc.Close() }
