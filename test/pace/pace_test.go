// Package pace tests how much of a path the whole tunnel uses, in the time of
// synctest: processors are infinitely fast there, so what is seen is what round
// trips cost, and it is the same in every run.
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
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engine"
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
	client *carrier.Client
	engine engine.Session
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

// act builds the scene in a bubble and plays it.
func act(t *testing.T, scheme, way string, p func() *path, play func(*scene)) {
	cert, pool := certificate(t)
	synctest.Test(t, func(t *testing.T) {
		s := &scene{t: t, path: p()}
		var err error
		if s.server, err = tunnel.NewServer(tunnel.ServerConfig{}); err != nil {
			t.Fatal(err)
		}
		mode := carrier.Auto
		h := http.Handler(s.server)
		switch way {
		case "polled":
			mode = carrier.Poll
		case "withheld":
			h = withhold(h)
		}
		s.web = &http.Server{Handler: h, HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250, MaxReceiveBufferPerStream: 8 << 20, MaxReceiveBufferPerConnection: 16 << 20,
		}}
		served := make(chan struct{})
		go func() {
			defer close(served)
			if scheme == "https" {
				s.web.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, Time: func() time.Time { return time.Now() }}
				s.web.ServeTLS(s.path, "", "")
			} else {
				s.web.Serve(s.path)
			}
		}()
		u := &url.URL{Scheme: scheme, Host: "front.example", Path: "/"}
		if s.front, err = front.New(front.Config{URL: u, Dialer: s.path.dial, RootCAs: pool}); err != nil {
			t.Fatal(err)
		}
		e, _ := engines.Find(engines.Default)
		s.client = carrier.NewClient(carrier.ClientConfig{
			Transport: s.front, URL: u, Key: handshake.WellKnown.Public(), Engine: e.Name(), Mode: mode,
		})
		if s.engine, err = e.Client(s.client.Conn()); err != nil {
			t.Fatal(err)
		}
		go s.serve()
		play(s)
		s.engine.Close()
		s.client.Close()
		s.front.Close()
		s.server.Close()
		s.web.Close()
		s.path.Close()
		<-served
		time.Sleep(time.Minute) // what is on its way arrives, and timers end
	})
}

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
	st, err := s.engine.Open(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	defer st.Close()
	fmt.Fprintf(st, "%c%d\n", kind, n)
	if kind == 'd' {
		if got, err := io.CopyN(io.Discard, st, n); err != nil {
			s.t.Fatalf("after %d bytes: %v", got, err)
		}
		return time.Since(start)
	}
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

// ping measures bytes there and back on a stream of its own until stop is
// closed, and returns the median.
func (s *scene) ping(stop chan struct{}) time.Duration {
	st, err := s.engine.Open(context.Background())
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

func TestPace(t *testing.T) {
	for _, p := range []struct {
		rtt  time.Duration
		rate float64
	}{
		{100 * time.Millisecond, 12.5e6},
		{200 * time.Millisecond, 62.5e6},
	} {
		for _, scheme := range []string{"https", "http"} {
			for _, way := range []string{"streamed", "polled", "withheld"} {
				for line, kind := range []byte("ud") {
					t.Run(fmt.Sprintf("%v/%.0fMbit/%s/%s/%c", p.rtt, p.rate*8/1e6, scheme, way, kind), func(t *testing.T) {
						act(t, scheme, way, func() *path { return newPath(p.rtt, p.rate) }, func(s *scene) {
							s.move('d', 1)
							time.Sleep(3 * time.Second) // the client finds out what the path does
							n := int64(p.rate * 5)
							ideal := p.rtt + time.Duration(float64(n)/p.rate*float64(time.Second))
							before := s.path.lines[line].sent
							first := s.move(kind, n)
							wire := float64(s.path.lines[line].sent-before) / float64(n)
							stop := make(chan struct{})
							delay := make(chan time.Duration)
							go func() { delay <- s.ping(stop) }()
							second := s.move(kind, n)
							close(stop)
							t.Logf("%.2f of the path, then %.2f; %.3f on the wire; ping %v", ideal.Seconds()/first.Seconds(), ideal.Seconds()/second.Seconds(), wire, (<-delay).Round(time.Millisecond))
						})
					})
				}
			}
		}
	}
}
