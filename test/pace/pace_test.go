//go:build !race

// Package pace tests how much of a path the whole tunnel uses, in the time of
// synctest: processors are infinitely fast there, so what is seen is what round
// trips cost, and it is the same in every run.
//
// It moves ten gigabytes, which takes eight times as long under the race
// detector, and looks for no races: it is left out there.
package pace

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
	"turbotunnel/common/engines"
	"turbotunnel/common/front"
	"turbotunnel/common/handshake"
	"turbotunnel/common/tunnel"
)

// A scene is a client and a server on a path.
type scene struct {
	t      *testing.T
	path   *path
	server *tunnel.Server
	web    *http.Server
	front  *front.Front
	url    *url.URL
	engine engine.Engine
	mode   carrier.Mode
	known  carrier.Path // what sessions tell one another of the path
	roots  *x509.CertPool
	alone  []*front.Front // of openAlone
	counts []atomic.Int64 // of together: what each session has moved

	mu       sync.Mutex
	sessions []engine.Session // one, or one for each stream; guarded by mu
}

// certificate is for the server of all scenes; it is made outside their time.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"front.example"},
		NotAfter: time.Now().AddDate(100, 0, 0), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	leaf, _ := x509.ParseCertificate(der)
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// act builds the scene of r in a bubble and plays it.
func act(t *testing.T, r row, play func(*scene)) {
	cert, pool := certificate(t)
	enginetest.Bubble(t, func(t *testing.T) {
		s := &scene{t: t, path: newPath(r.rtt, r.rate), mode: carrier.Auto}
		s.engine, _ = engines.Find(r.engine)
		var err error
		s.server = tunnel.NewServer(tunnel.ServerConfig{})
		h := http.Handler(s.server)
		switch r.way {
		case "polled":
			s.mode = carrier.Poll
		case "withheld":
			h = withhold(h)
		case "collected":
			h = collect(h)
		}
		s.web = &http.Server{Handler: h, HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250, MaxReceiveBufferPerStream: 24 << 20, MaxReceiveBufferPerConnection: 32 << 20,
		}}
		served := make(chan struct{})
		go func() {
			defer close(served)
			if r.scheme == "https" {
				s.web.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, Time: func() time.Time { return time.Now() }}
				s.web.ServeTLS(s.path, "", "")
			} else {
				s.web.Serve(s.path)
			}
		}()
		s.url = &url.URL{Scheme: r.scheme, Host: "front.example", Path: "/"}
		s.roots = pool
		if s.front, err = front.New(front.Config{URL: s.url, Dialer: s.path.dial, RootCAs: pool}); err != nil {
			t.Fatal(err)
		}
		go s.serve()
		play(s)
		for _, e := range s.sessions {
			e.Close()
		}
		for _, f := range append(s.alone, s.front) {
			f.Close()
		}
		s.server.Close()
		s.web.Close()
		s.path.Close()
		<-served
		time.Sleep(time.Minute) // what is on its way arrives, and timers end
	})
}

// open opens a stream, on a session of its own if the engine has one for each.
func (s *scene) open() (engine.Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) == 0 || !s.engine.Multiplexes() {
		c := carrier.NewClient(carrier.ClientConfig{
			Transport: way{s.front}, Path: &s.known, URL: s.url, Key: handshake.WellKnown.Public(), Engine: s.engine.Name(), Mode: s.mode,
		})
		e, err := s.engine.Client(c.Conn())
		if err != nil {
			return nil, err
		}
		s.sessions = append(s.sessions, e)
	}
	return s.sessions[len(s.sessions)-1].Open(context.Background())
}

// A way is a front as a session asks for it.
type way struct{ *front.Front }

func (w way) Slots() (n int, crowded bool) { return w.MaxInFlight(), false }
func (way) Rest() time.Duration            { return 0 }
func (way) Foreign(*http.Response)         {}

// serve sends n bytes to each stream that asks for them by its first 8 bytes,
// or takes them.
func (s *scene) serve() {
	for {
		st, err := s.server.Accept()
		if err != nil {
			return
		}
		go func() {
			defer st.Close()
			var kind byte
			var n int64
			if _, err := fmt.Fscanf(st, "%c%d\n", &kind, &n); err != nil {
				return
			}
			switch kind {
			case 'd':
				io.CopyN(st, zeros{}, n)
				st.CloseWrite()
				io.Copy(io.Discard, st)
			case 'c':
				io.Copy(counter{&s.counts[n]}, st)
			case 'e':
				io.Copy(st, st)
			case 'u':
				io.CopyN(io.Discard, st, n)
				st.Write([]byte{'!'})
			}
		}()
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// move moves n bytes on a new stream and returns how long that took.
func (s *scene) move(kind byte, n int64) time.Duration {
	start := time.Now()
	st := s.start(kind, n)
	if kind == 'u' {
		return s.moveOn(st, 0, n)
	}
	defer st.Close()
	if got, err := io.CopyN(io.Discard, st, n); err != nil {
		s.t.Fatalf("after %d bytes: %v", got, err)
	}
	return time.Since(start)
}

// start opens a stream on which n bytes will move.
func (s *scene) start(kind byte, n int64) engine.Stream {
	st, err := s.open()
	if err != nil {
		s.t.Fatal(err)
	}
	fmt.Fprintf(st, "%c%d\n", kind, n)
	return st
}

// moveOn uploads n bytes on st after a pause and returns how long that took.
func (s *scene) moveOn(st engine.Stream, after time.Duration, n int64) time.Duration {
	defer st.Close()
	time.Sleep(after)
	start := time.Now()
	if _, err := io.CopyN(st, zeros{}, n); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
		s.t.Fatal(err)
	}
	return time.Since(start)
}

// withhold is a CDN that hands on requests and answers when they are complete.
func withhold(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		all := httptest.NewRecorder()
		h.ServeHTTP(all, r)
		maps.Copy(w.Header(), all.Header())
		w.WriteHeader(all.Code)
		w.Write(all.Body.Bytes())
	})
}

// collect is a proxy that hands on requests when they are complete, and answers as
// they are written: single uploads are the way to send there.
func collect(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		h.ServeHTTP(w, r)
	})
}

// ping measures bytes there and back on a stream of its own until stop is
// closed, and returns the median.
func (s *scene) ping(stop chan struct{}) time.Duration {
	st, err := s.open()
	if err != nil {
		s.t.Error(err)
		return 0
	}
	defer st.Close()
	fmt.Fprintf(st, "e0\n")
	var all []time.Duration
	for {
		start := time.Now()
		st.Write([]byte{'?'})
		if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
			s.t.Error(err)
			return 0
		}
		select {
		case <-stop:
			slices.Sort(all)
			return all[len(all)/2]
		default:
		}
		all = append(all, time.Since(start))
		time.Sleep(20 * time.Millisecond)
	}
}

// A row is a scene and what is expected of it.
type row struct {
	engine string
	rtt    time.Duration
	rate   float64 // bytes a second
	scheme string
	way    string // streamed, both ways; polled: the client's mode; withheld, collected: see withhold and collect
	kind   byte   // of move
	limits
}

// limits are the least that a row has reached in several runs, less 0.03, and
// the longest ping, with two fifths more. What differs from one run to the next
// is chance: lengths are padded, pauses drawn, and goroutines run in any order.
// Chance decides most in the first transfer, where the carrier's window doubles
// a round trip sooner or later, so that may take 0.04 less, and 0.12 where all
// of it is a dozen round trips. Each transfer of kcp is a session's first, and the
// second begins with what the first has found of the path. On the slow path that
// reaches 0.89 to 0.965 by chance: the window that is recalled shows no queue at
// first, so it grows, up to twelve times what the path holds, and is less than that
// for some round trips after the queue has gone, unless one of them ends just then.
// Over HTTP/1.1 it is half of what was reached. An upload of kcp-smux and of sctp
// waits a round trip for its stream's window: see TestPaceUsedStream.
type limits struct {
	first, second float64       // least share of the path, of the first transfer and of another
	ping          time.Duration // at most, during the second; 0: says nothing
}

func (r row) String() string {
	return fmt.Sprintf("%v/%.0fMbit/%s/%s/%s/%c", r.rtt, r.rate*8/1e6, r.scheme, r.way, r.engine, r.kind)
}

// slow and fast are paths.
func slow(engine, scheme, way string, kind byte, l limits) row {
	return row{engine, 100 * time.Millisecond, 12.5e6, scheme, way, kind, l}
}

func fast(engine, scheme, way string, kind byte, l limits) row {
	return row{engine, 200 * time.Millisecond, 62.5e6, scheme, way, kind, l}
}

const ms = time.Millisecond

var rows = []row{
	slow("kcp-smux", "https", "streamed", 'u', limits{0.86, 0.91, 210 * ms}),
	slow("kcp-smux", "https", "streamed", 'd', limits{0.85, 0.94, 240 * ms}),
	slow("kcp-smux", "https", "polled", 'u', limits{0.86, 0.91, 210 * ms}),
	slow("kcp-smux", "https", "polled", 'd', limits{0.83, 0.94, 240 * ms}),
	slow("kcp-smux", "https", "withheld", 'u', limits{0.85, 0.91, 220 * ms}),
	slow("kcp-smux", "https", "withheld", 'd', limits{0.84, 0.94, 230 * ms}),
	slow("kcp-smux", "https", "collected", 'u', limits{0.86, 0.91, 210 * ms}),
	slow("kcp-smux", "https", "collected", 'd', limits{0.85, 0.94, 240 * ms}),
	slow("kcp-smux", "http", "streamed", 'u', limits{0.44, 0.47, 0}),
	slow("kcp-smux", "http", "streamed", 'd', limits{0.44, 0.47, 0}),
	slow("kcp-smux", "http", "polled", 'u', limits{0.40, 0.42, 0}),
	slow("kcp-smux", "http", "polled", 'd', limits{0.41, 0.42, 0}),
	slow("kcp-smux", "http", "withheld", 'u', limits{0.38, 0.41, 0}),
	slow("kcp-smux", "http", "withheld", 'd', limits{0.43, 0.42, 0}),
	fast("kcp-smux", "https", "streamed", 'u', limits{0.68, 0.88, 560 * ms}),
	fast("kcp-smux", "https", "streamed", 'd', limits{0.66, 0.94, 420 * ms}),
	fast("kcp-smux", "https", "polled", 'u', limits{0.67, 0.88, 590 * ms}),
	fast("kcp-smux", "https", "polled", 'd', limits{0.69, 0.94, 420 * ms}),
	fast("kcp-smux", "https", "withheld", 'u', limits{0.67, 0.88, 580 * ms}),
	fast("kcp-smux", "https", "withheld", 'd', limits{0.68, 0.94, 460 * ms}),
	fast("kcp-smux", "https", "collected", 'u', limits{0.68, 0.88, 560 * ms}),
	fast("kcp-smux", "https", "collected", 'd', limits{0.66, 0.94, 420 * ms}),
	fast("kcp-smux", "http", "streamed", 'u', limits{0.34, 0.40, 0}),
	fast("kcp-smux", "http", "streamed", 'd', limits{0.38, 0.39, 0}),
	fast("kcp-smux", "http", "polled", 'u', limits{0.27, 0.31, 0}),
	fast("kcp-smux", "http", "polled", 'd', limits{0.37, 0.42, 0}),
	fast("kcp-smux", "http", "withheld", 'u', limits{0.27, 0.31, 0}),
	fast("kcp-smux", "http", "withheld", 'd', limits{0.34, 0.38, 0}),
	slow("quic", "https", "streamed", 'u', limits{0.85, 0.94, 270 * ms}),
	slow("quic", "https", "streamed", 'd', limits{0.87, 0.93, 210 * ms}),
	fast("quic", "https", "streamed", 'u', limits{0.57, 0.90, 520 * ms}),
	// The second is 0.957 alone; of 150 runs beside others, whose goroutines come in
	// another order, six had 0.88 to 0.92.
	fast("quic", "https", "streamed", 'd', limits{0.65, 0.86, 390 * ms}),
	slow("sctp", "https", "streamed", 'u', limits{0.88, 0.91, 230 * ms}),
	slow("sctp", "https", "streamed", 'd', limits{0.87, 0.96, 240 * ms}),
	fast("sctp", "https", "streamed", 'u', limits{0.70, 0.88, 580 * ms}),
	fast("sctp", "https", "streamed", 'd', limits{0.68, 0.96, 400 * ms}),
	slow("kcp", "https", "streamed", 'u', limits{0.80, 0.86, 290 * ms}),
	slow("kcp", "https", "streamed", 'd', limits{0.75, 0.86, 320 * ms}),
	fast("kcp", "https", "streamed", 'u', limits{0.58, 0.87, 400 * ms}),
	fast("kcp", "https", "streamed", 'd', limits{0.55, 0.93, 350 * ms}),
}

// TestPace: no change makes the tunnel use less of a path than it did. In short
// tests fewer rows say so.
func TestPace(t *testing.T) {
	for _, r := range rows {
		t.Run(r.String(), func(t *testing.T) {
			brief := r.rate < 50e6 && r.scheme == "https" && r.way == "streamed"
			if testing.Short() && (!brief || r.engine != engines.Default) {
				t.Skip("takes long")
			}
			act(t, r, func(s *scene) { s.judge(r) })
		})
	}
}

// TestPaceUsedStream: what an upload on a new stream of smux lacks is the round
// trip in which its window comes. On a stream that has been used it lacks nothing.
func TestPaceUsedStream(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	for _, engine := range []string{"kcp-smux", "sctp"} {
		for _, r := range []row{slow(engine, "https", "streamed", 'u', limits{}), fast(engine, "https", "streamed", 'u', limits{})} {
			t.Run(r.String(), func(t *testing.T) {
				act(t, r, func(s *scene) {
					s.move('d', 1)
					time.Sleep(3 * time.Second)
					s.move('u', r.bytes()) // windows open
					got := float64(r.rtt+transfer) / float64(s.moveOn(s.start('u', r.bytes()), time.Second, r.bytes()))
					t.Logf("%.3f of the path on a stream that has been used", got)
					if got < 0.94 {
						t.Error("want 0.94 of the path")
					}
				})
			})
		}
	}
}

// Streams that are open and say nothing take nothing away from a transfer.
func TestPaceBesideIdle(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	for _, engine := range []string{"kcp-smux", "sctp", "quic"} {
		for _, kind := range []byte("du") {
			r := fast(engine, "https", "streamed", kind, limits{})
			t.Run(r.String(), func(t *testing.T) {
				act(t, r, func(s *scene) {
					for range 40 {
						st, err := s.open()
						if err != nil {
							t.Fatal(err)
						}
						defer st.Close()
						fmt.Fprintf(st, "e0\n")
					}
					time.Sleep(3 * time.Second)
					s.move(kind, r.bytes()) // windows open
					if got := s.share(r, kind); got < 0.90 {
						t.Errorf("%.3f of the path beside 40 streams that say nothing", got)
					}
				})
			})
		}
	}
}

// What sessions have found of a path helps the next ones, and does no harm when
// the path has become another one: its round trip is measured anew.
func TestPaceAnotherPath(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	for _, kind := range []byte("du") {
		for _, rtts := range [][2]time.Duration{{40 * ms, 80 * ms}, {80 * ms, 20 * ms}} {
			r := row{"kcp", rtts[0], 12.5e6, "https", "streamed", kind, limits{}}
			t.Run(fmt.Sprintf("%v then %v", r, rtts[1]), func(t *testing.T) {
				act(t, r, func(s *scene) {
					s.move('d', 1)
					time.Sleep(3 * time.Second)
					s.share(r, kind)
					s.path.rtt.Store(int64(rtts[1]))
					for i := range 4 {
						if got := s.share(r, kind); got < 0.75 {
							t.Errorf("transfer %d after the change: %.3f of the path", i, got)
						}
						time.Sleep(11 * time.Second)
					}
				})
			})
		}
	}
}

// transfer is how long each transfer would take at the path's full rate.
const transfer = 2500 * time.Millisecond

// share makes a transfer and returns how much of the path it used.
func (s *scene) share(r row, kind byte) float64 {
	return float64(r.rtt+transfer) / float64(s.move(kind, r.bytes()))
}

// bytes is how much a transfer moves.
func (r row) bytes() int64 { return int64(r.rate * transfer.Seconds()) }

// judge plays r.
func (s *scene) judge(r row) {
	line := &s.path.lines[0]
	if r.kind == 'd' {
		line = &s.path.lines[1]
	}
	s.move('d', 1)
	time.Sleep(3 * time.Second) // the client finds out what the path does
	before := line.moved()
	first := s.share(r, r.kind)
	wire := float64(line.moved()-before) / float64(r.bytes())
	stop := make(chan struct{})
	delay := make(chan time.Duration)
	go func() {
		// Of what is known of the path each session of kcp begins with what those before
		// it have left: the transfer's comes first.
		time.Sleep(2 * r.rtt)
		delay <- s.ping(stop)
	}()
	second := s.share(r, r.kind)
	close(stop)
	ping := <-delay
	s.t.Logf("%.3f of the path, then %.3f; %.3f on the wire; ping %v", first, second, wire, ping.Round(time.Millisecond))
	if first < r.first || second < r.second {
		s.t.Errorf("want %.2f of the path, then %.2f", r.first, r.second)
	}
	if r.ping > 0 && ping > r.ping {
		s.t.Errorf("want a ping of %v", r.ping)
	}
	if wire > mostWire {
		s.t.Errorf("want %.2f on the wire", mostWire)
	}
}

// mostWire is how many bytes may be on the path for each byte moved: headers,
// seals and padding are 0.03, and nothing is sent twice.
const mostWire = 1.05
