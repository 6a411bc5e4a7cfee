package front

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	frontName  = "front.example"
	originName = "origin.example"
)

// authorityOf makes a certificate authority. Everything it signs is valid in
// the bubble of a synctest, where it is the year 2000.
var authorityOf = sync.OnceValue(func() *x509.Certificate {
	cert, key := sign(nil, nil, false)
	caKey = key
	return cert
})

var caKey *ecdsa.PrivateKey

func sign(parent *x509.Certificate, parentKey *ecdsa.PrivateKey, expired bool, names ...string) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test"},
		NotBefore:             time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  parent == nil,
	}
	if expired {
		template.NotAfter = template.NotBefore.Add(time.Hour)
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert, key
}

func certFor(expired bool, names ...string) tls.Certificate {
	ca := authorityOf()
	cert, key := sign(ca, caKey, expired, names...)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(authorityOf())
	return pool
}

// A server is an HTTP server that remembers what it saw.
type server struct {
	addr  string
	conns atomic.Int32
	http  *http.Server

	mu      sync.Mutex
	snis    []string
	resumed int
	ech     int
}

type serverOptions struct {
	clear    bool
	noH2     bool
	streams  int // HTTP/2 limit, 0: the library's
	cert     *tls.Certificate
	listener net.Listener
	hello    func(*tls.ClientHelloInfo) error // nil: every ClientHello is accepted
	ech      []tls.EncryptedClientHelloKey
}

// serve starts a server on loopback that ends with the test.
func serve(t testing.TB, o serverOptions, h http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	l := o.listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	s.addr = l.Addr().String()
	cert := o.cert
	if cert == nil {
		c := certFor(false, frontName)
		cert = &c
	}
	protos := new(http.Protocols)
	protos.SetHTTP1(true)
	protos.SetHTTP2(!o.noH2)
	s.http = &http.Server{
		Handler:   h,
		Protocols: protos,
		ErrorLog:  log.New(io.Discard, "", 0),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          o.streams,
			MaxReceiveBufferPerStream:     16 << 20,
			MaxReceiveBufferPerConnection: 32 << 20,
		},
		TLSConfig: &tls.Config{
			Certificates:             []tls.Certificate{*cert},
			EncryptedClientHelloKeys: o.ech,
			GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				s.mu.Lock()
				s.snis = append(s.snis, hello.ServerName)
				s.mu.Unlock()
				if o.hello == nil {
					return nil, nil
				}
				return nil, o.hello(hello)
			},
			VerifyConnection: func(state tls.ConnectionState) error {
				s.mu.Lock()
				defer s.mu.Unlock()
				if state.DidResume {
					s.resumed++
				}
				if state.ECHAccepted {
					s.ech++
				}
				return nil
			},
		},
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				s.conns.Add(1)
			}
		},
	}
	var ended sync.WaitGroup
	ended.Go(func() {
		if o.clear {
			s.http.Serve(l)
		} else {
			s.http.ServeTLS(l, "", "")
		}
	})
	t.Cleanup(func() {
		s.http.Close()
		ended.Wait()
	})
	return s
}

// encrypted is how many connections had an encrypted ClientHello.
func (s *server) encrypted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ech
}

func (s *server) sni() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.snis)
}

// newFront returns a Front to s that ends with the test.
func newFront(t testing.TB, s *server, change func(*Config)) *Front {
	t.Helper()
	cfg := Config{
		URL:     &url.URL{Scheme: "https", Host: originName, Path: "/path"},
		Front:   frontName,
		Addr:    s.addr,
		RootCAs: roots(),
	}
	if change != nil {
		change(&cfg)
	}
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func post(ctx context.Context, body string) *http.Request {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+originName+"/path/x", strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	return req
}

// exchange posts body and returns the answer.
func exchange(t testing.TB, f *Front, body string) string {
	t.Helper()
	resp, err := f.RoundTrip(post(t.Context(), body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// failure posts and returns the error, which must be at step op.
func failure(t testing.TB, f *Front, ctx context.Context, op Op) *Error {
	t.Helper()
	resp, err := f.RoundTrip(post(ctx, "x"))
	if err == nil {
		resp.Body.Close()
		t.Fatal("no error")
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error is a %T: %v", err, err)
	}
	if e.Op != op {
		t.Fatalf("failed at step %q, want %q: %v", e.Op, op, err)
	}
	if e.Front != f.Name() {
		t.Errorf("error names front %q", e.Front)
	}
	return e
}

func echo(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	w.Header().Set("Proto", r.Proto)
	w.Header().Set("Host-Seen", r.Host)
	w.Header().Set("Agent-Seen", r.UserAgent())
	w.Write(b)
}

// transports are the ways an exchange can go.
var transports = []struct {
	name  string
	proto string
	utls  string
	opts  serverOptions
}{
	{"h2-chrome", "HTTP/2.0", "", serverOptions{}},
	{"h2-none", "HTTP/2.0", "none", serverOptions{}},
	{"h1-chrome", "HTTP/1.1", "chrome", serverOptions{noH2: true}},
	{"h1-none", "HTTP/1.1", "none", serverOptions{noH2: true}},
	{"clear", "HTTP/1.1", "", serverOptions{clear: true}},
}

// each runs a test over every transport.
func each(t *testing.T, test func(t *testing.T, opts serverOptions, change func(*Config), proto string)) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			test(t, tr.opts, func(c *Config) {
				c.UTLS = tr.utls
				if tr.opts.clear {
					c.URL.Scheme = "http"
				}
			}, tr.proto)
		})
	}
}

// The front goes into DNS and SNI, the origin into the Host header, and one
// connection, the first, carries all exchanges.
func TestFronting(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), proto string) {
		s := serve(t, opts, echo)
		var dialed []string
		f := newFront(t, s, func(c *Config) {
			change(c)
			c.Addr = ""
			c.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dialed = append(dialed, addr)
				return (&net.Dialer{}).DialContext(ctx, network, s.addr)
			}
		})
		if f.Name() != frontName {
			t.Errorf("Name is %q", f.Name())
		}
		for range 3 {
			resp, err := f.RoundTrip(post(t.Context(), "hello"))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			if err != nil || string(b) != "hello" {
				t.Fatalf("read %q, %v", b, err)
			}
			resp.Body.Close()
			if got := resp.Header.Get("Proto"); got != proto {
				t.Errorf("spoke %s, want %s", got, proto)
			}
			if got := resp.Header.Get("Host-Seen"); got != originName {
				t.Errorf("Host was %q", got)
			}
			if got := resp.Header.Get("Agent-Seen"); !strings.HasPrefix(got, "Mozilla/5.0 ") {
				t.Errorf("User-Agent was %q", got)
			}
		}
		if n := s.conns.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
		want, port := []string{frontName}, ":443"
		if opts.clear {
			want, port = nil, ":80"
		}
		if got := s.sni(); !slices.Equal(got, want) {
			t.Errorf("SNI was %q", got)
		}
		if !slices.Equal(dialed, []string{frontName + port}) {
			t.Errorf("dialed %q", dialed)
		}
	})
}

func TestHostHeader(t *testing.T) {
	for _, c := range []struct{ url, front, host, dial string }{
		{"https://Origin.example/p", "", "origin.example", "origin.example:443"},
		{"https://origin.example:443/p", "front.example", "origin.example", "front.example:443"},
		{"https://origin.example:8443/p", "front.example", "origin.example:8443", "front.example:8443"},
		{"https://origin.example:8443/p", "front.example:444", "origin.example:8443", "front.example:444"},
		{"http://origin.example:80/p", "", "origin.example", "origin.example:80"},
		{"http://[2001:db8::1]/p", "", "[2001:db8::1]", "[2001:db8::1]:80"},
		{"https://[2001:db8::1]:8443/p", "2001:db8::2", "[2001:db8::1]:8443", "[2001:db8::2]:8443"},
		{"https://bücher.example/p", "", "xn--bcher-kva.example", "xn--bcher-kva.example:443"},
	} {
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		f, err := New(Config{URL: u, Front: c.front})
		if err != nil {
			t.Fatal(err)
		}
		if f.origin.Host != c.host || f.pool.dials.connector.addr != c.dial {
			t.Errorf("%s by %q: Host %q, dials %q", c.url, c.front, f.origin.Host, f.pool.dials.connector.addr)
		}
		f.Close()
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.URL = nil }, "url: missing"},
		{func(c *Config) { c.URL.Scheme = "ftp" }, `url: scheme "ftp"; accepted: https, http`},
		{func(c *Config) { c.URL.Scheme = "" }, "url: scheme"},
		{func(c *Config) { c.URL.Host = "" }, "url: no host"},
		{func(c *Config) { c.URL.Host = "a b" }, "url: "},
		{func(c *Config) { c.URL.Host = "origin.example:0" }, "url: "},
		{func(c *Config) { c.URL.Host = "origin.example:65536" }, "url: "},
		{func(c *Config) { c.URL.RawQuery = "a=b" }, "url: more than"},
		{func(c *Config) { c.URL.User = url.User("u") }, "url: more than"},
		{func(c *Config) { c.Front = "https://front.example" }, "front: "},
		{func(c *Config) { c.Front = "front.example/path" }, "front: "},
		{func(c *Config) { c.Front = "a..b" }, "front: "},
		{func(c *Config) { c.Front = strings.Repeat("a", 64) + ".example" }, "front: "},
		{func(c *Config) { c.Addr = "192.0.2.1" }, "addr: "},
		{func(c *Config) { c.Addr = ":443" }, "addr: "},
		{func(c *Config) { c.Addr = "192.0.2.1:https" }, "addr: "},
		{func(c *Config) { c.UTLS = "netscape" }, `utls: unknown name "netscape"; accepted: chrome, `},
		{func(c *Config) { c.Proxy = &url.URL{Scheme: "https", Host: "192.0.2.1:1"} }, `proxy: proxy type "https" is not supported; use http, socks4a or socks5`},
		{func(c *Config) { c.Proxy = &url.URL{Scheme: "http", Host: "192.0.2.1:0"} }, "proxy: "},
		{func(c *Config) { c.Proxy = &url.URL{Scheme: "http", Host: "192.0.2.1:1", Path: "/x"} }, "proxy: "},
		{func(c *Config) {
			c.Proxy = &url.URL{Scheme: "socks5", Host: "192.0.2.1:1", User: url.UserPassword(strings.Repeat("u", 256), "p")}
		}, "proxy: a socks5"},
		{func(c *Config) {
			c.Proxy = &url.URL{Scheme: "socks4a", Host: "192.0.2.1:1", User: url.UserPassword("u", "p")}
		}, "proxy: a socks4a"},
		{func(c *Config) { c.Proxy = &url.URL{Scheme: "socks4a", Host: "192.0.2.1:1", User: url.User("u\x00")} }, "proxy: a socks4a"},
		{func(c *Config) { c.Proxy = &url.URL{Scheme: "http", Host: "192.0.2.1:1", User: url.User("a:b")} }, "proxy: an http"},
	} {
		cfg := Config{URL: &url.URL{Scheme: "https", Host: originName}}
		c.change(&cfg)
		f, err := New(cfg)
		if err == nil {
			f.Close()
			t.Errorf("accepted; want an error with %q", c.want)
		} else if !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("error %q, want %q", err, c.want)
		}
	}
}

// Every name that utls= accepts connects and settles HTTP/2.
func TestHellos(t *testing.T) {
	s := serve(t, serverOptions{}, echo)
	for _, name := range Hellos() {
		t.Run(name, func(t *testing.T) {
			f := newFront(t, s, func(c *Config) { c.UTLS = name })
			resp, err := f.RoundTrip(post(t.Context(), "x"))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.ProtoMajor != 2 {
				t.Errorf("spoke %s", resp.Proto)
			}
		})
	}
}

func TestSessionResumption(t *testing.T) {
	for _, name := range []string{"none", "chrome", "chrome_115_pq_psk"} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, serverOptions{}, echo)
			f := newFront(t, s, func(c *Config) { c.UTLS = name })
			exchange(t, f, "x")
			f.pool.abandon()
			exchange(t, f, "x")
			s.mu.Lock()
			defer s.mu.Unlock()
			if n := s.conns.Load(); n != 2 || s.resumed != 1 {
				t.Errorf("%d connections, %d resumed", n, s.resumed)
			}
		})
	}
}

// Tickets are used once, the newest first.
func TestSessionsAreUsedOnce(t *testing.T) {
	var s sessions[int]
	for n := range 4 {
		s.Put("", &n)
	}
	s.Put("", nil)
	for _, want := range []int{3, 2} {
		if got, ok := s.Get(""); !ok || *got != want {
			t.Errorf("got %v, %t, want %d", got, ok, want)
		}
	}
	if _, ok := s.Get(""); ok {
		t.Errorf("more than %d kept", sessionsKept)
	}
}

func TestBadCertificate(t *testing.T) {
	foreign, key := sign(nil, nil, false, frontName)
	expired := certFor(true, frontName)
	origin := certFor(false, originName)
	for _, c := range []struct {
		name  string
		cert  tls.Certificate
		check func(error) bool
	}{
		{"another name", origin, func(err error) bool { return errors.As(err, new(x509.HostnameError)) }},
		{"expired", expired, func(err error) bool {
			var e x509.CertificateInvalidError
			return errors.As(err, &e) && e.Reason == x509.Expired
		}},
		{"unknown authority", tls.Certificate{Certificate: [][]byte{foreign.Raw}, PrivateKey: key}, func(err error) bool {
			return errors.As(err, new(x509.UnknownAuthorityError))
		}},
	} {
		for _, name := range []string{"chrome", "none"} {
			t.Run(c.name+" "+name, func(t *testing.T) {
				s := serve(t, serverOptions{cert: &c.cert}, func(http.ResponseWriter, *http.Request) {
					t.Error("a request arrived")
				})
				f := newFront(t, s, func(cfg *Config) { cfg.UTLS = name })
				e := failure(t, f, t.Context(), OpTLS)
				if !c.check(e) {
					t.Errorf("wrong cause: %v", e)
				}
				if !e.Unsent || e.Reused {
					t.Errorf("Unsent %t, Reused %t", e.Unsent, e.Reused)
				}
			})
		}
	}
}

func TestAddressHasNoSNI(t *testing.T) {
	cert := certFor(false, "127.0.0.1")
	for _, name := range []string{"chrome", "none"} {
		s := serve(t, serverOptions{cert: &cert}, echo)
		f := newFront(t, s, func(c *Config) {
			c.UTLS = name
			c.Front, c.Addr = s.addr, ""
		})
		exchange(t, f, "x")
		if got := s.sni(); !slices.Equal(got, []string{""}) {
			t.Errorf("%s: SNI was %q", name, got)
		}
	}
}

func TestHandshakeRefused(t *testing.T) {
	s := serve(t, serverOptions{clear: true}, echo) // speaks no TLS
	f := newFront(t, s, nil)
	failure(t, f, t.Context(), OpTLS)
}

// Exchanges that start together share one HTTP/2 connection, as in a browser,
// and have six over HTTP/1.1.
func TestConcurrentFirstExchanges(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), proto string) {
		const exchanges = 20
		want, atOnce := int32(1), exchanges
		if proto == "HTTP/1.1" {
			want, atOnce = maxConns, maxConns
		}
		arrived := make(chan struct{}, exchanges)
		release := make(chan struct{})
		s := serve(t, opts, func(w http.ResponseWriter, r *http.Request) {
			arrived <- struct{}{}
			<-release
			echo(w, r)
		})
		f := newFront(t, s, change)
		if n := f.MaxInFlight(); n != maxConns {
			t.Errorf("MaxInFlight is %d before anything is known", n)
		}
		var all sync.WaitGroup
		for range exchanges {
			all.Go(func() {
				resp, err := f.RoundTrip(post(t.Context(), "x"))
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			})
		}
		for range atOnce {
			<-arrived
		}
		close(release)
		all.Wait()
		if n := s.conns.Load(); n != want {
			t.Errorf("%d connections, want %d", n, want)
		}
	})
}

func TestMaxInFlight(t *testing.T) {
	for _, c := range []struct {
		opts serverOptions
		want int
	}{
		{serverOptions{noH2: true}, maxConns},
		{serverOptions{streams: 7}, 7},
		{serverOptions{streams: 1000}, maxStreams},
	} {
		s := serve(t, c.opts, echo)
		f := newFront(t, s, nil)
		exchange(t, f, "x")
		if n := f.MaxInFlight(); n != c.want {
			t.Errorf("MaxInFlight is %d with %+v", n, c.opts)
		}
	}
}

// A body that is written bit by bit does not leave on a connection where the browser
// sends none, whatever the one before was: nothing of it is read, and the front is as
// good as before.
func TestFeedMeetsHTTP1(t *testing.T) {
	served := make(chan int64, 10)
	s := serve(t, serverOptions{noH2: true}, func(w http.ResponseWriter, r *http.Request) { served <- r.ContentLength })
	f := newFront(t, s, func(cfg *Config) { cfg.UTLS = "chrome" })
	body, say := io.Pipe()
	say.Close()
	resp, err := f.RoundTrip(postBody(t.Context(), body, -1))
	var e *Error
	if !errors.As(err, &e) || !e.Unsent || e.Op != OpWait {
		t.Fatalf("%v, %v", resp, err)
	}
	if _, err := body.Read(nil); err != io.ErrClosedPipe {
		t.Errorf("the body is not closed: %v", err)
	}
	exchange(t, f, "x")
	if n := <-served; n != 1 {
		t.Errorf("a body of length %d was served", n)
	}
}

// Bodies that are written bit by bit are for where the browser sends such, and pass
// as they are written.
func TestFeeds(t *testing.T) {
	for _, c := range []struct {
		opts serverOptions
		utls string
		want bool
	}{
		{serverOptions{}, "chrome", true},
		{serverOptions{noH2: true}, "chrome", false},
		{serverOptions{}, "firefox", false},
		{serverOptions{}, "safari", false},
		{serverOptions{}, "none", true},
		{serverOptions{noH2: true}, "none", true},
	} {
		came := make(chan string)
		s := serve(t, c.opts, func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength >= 0 {
				return
			}
			p := make([]byte, 100)
			for n, err := 0, error(nil); err == nil; came <- string(p[:n]) {
				n, err = r.Body.Read(p)
			}
		})
		f := newFront(t, s, func(cfg *Config) { cfg.UTLS = c.utls })
		if f.Feeds() {
			t.Error("before the first connection it is known what suits it")
		}
		exchange(t, f, "x")
		if got := f.Feeds(); got != c.want {
			t.Errorf("%s, %+v: feeds suit it: %v", c.utls, c.opts, got)
		}
		if !c.want {
			continue
		}
		body, say := io.Pipe()
		answered := make(chan error)
		go func() {
			resp, err := f.RoundTrip(postBody(t.Context(), body, -1))
			if err == nil {
				resp.Body.Close()
			}
			answered <- err
		}()
		for _, part := range []string{"one", "two"} {
			io.WriteString(say, part)
			if got := <-came; got != part {
				t.Errorf("%s, %+v: in place of %q came %q", c.utls, c.opts, part, got)
			}
		}
		say.Close()
		if got := <-came; got != "" {
			t.Errorf("%s, %+v: at the end came %q", c.utls, c.opts, got)
		}
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
}

// More exchanges than the server takes wait for their turn.
func TestStreamLimit(t *testing.T) {
	var now, most atomic.Int32
	s := serve(t, serverOptions{streams: 3}, func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		echo(w, r)
		now.Add(-1)
	})
	f := newFront(t, s, nil)
	exchange(t, f, "x")
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() { exchange(t, f, "x") })
	}
	all.Wait()
	if n := s.conns.Load(); n != 1 || most.Load() > 3 {
		t.Errorf("%d connections, %d exchanges at once", n, most.Load())
	}
}

// A watchedBody knows whether it was read and how often it was closed.
type watchedBody struct {
	io.Reader
	onRead func()
	read   atomic.Bool
	closed atomic.Int32
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if !b.read.Swap(true) && b.onRead != nil {
		b.onRead()
	}
	return b.Reader.Read(p)
}

func (b *watchedBody) Close() error {
	b.closed.Add(1)
	return nil
}

func postBody(ctx context.Context, body io.ReadCloser, size int64) *http.Request {
	req := post(ctx, "")
	req.Body, req.ContentLength, req.GetBody = body, size, nil
	return req
}

// The body is not read before the connection, TLS included, is ready.
func TestBodyIsReadLate(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
		s := serve(t, opts, echo)
		body := &watchedBody{Reader: strings.NewReader("late")}
		var ready atomic.Bool
		f := newFront(t, s, func(c *Config) {
			change(c)
			c.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if body.read.Load() {
					t.Error("read before the dial")
				}
				conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
				ready.Store(true)
				return conn, err
			}
		})
		body.onRead = func() {
			if !ready.Load() {
				t.Error("read before the connection was ready")
			}
			if len(s.sni()) == 0 && !opts.clear {
				t.Error("read before the handshake")
			}
			f.pool.mu.Lock()
			defer f.pool.mu.Unlock()
			if len(f.pool.dials.underWay) != 0 || len(f.pool.conns) != 1 {
				t.Error("read before the dial had ended")
			}
		}
		resp, err := f.RoundTrip(postBody(t.Context(), body, 4))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil || string(b) != "late" {
			t.Errorf("read %q, %v", b, err)
		}
		resp.Body.Close()
		if !body.read.Load() || body.closed.Load() != 1 {
			t.Errorf("body read: %t, closed %d times", body.read.Load(), body.closed.Load())
		}
	})
}

// With every connection busy a waiting exchange does not read its body either.
func TestWaitingBodyIsNotRead(t *testing.T) {
	arrived := make(chan struct{}, maxConns)
	release := make(chan struct{})
	s := serve(t, serverOptions{noH2: true}, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-release
	})
	f := newFront(t, s, nil)
	var all sync.WaitGroup
	for range maxConns {
		all.Go(func() { exchange(t, f, "x") })
	}
	for range maxConns {
		<-arrived
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	body := &watchedBody{Reader: strings.NewReader("x")}
	_, err := f.RoundTrip(postBody(ctx, body, 1))
	var e *Error
	if !errors.As(err, &e) || e.Op != OpWait || !e.Unsent {
		t.Errorf("error %v", err)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("does not match a deadline: %v", err)
	}
	if body.read.Load() || body.closed.Load() != 1 {
		t.Errorf("body read: %t, closed %d times", body.read.Load(), body.closed.Load())
	}
	close(release)
	all.Wait()
}

// eventually polls until state holds; it is called with the pool locked.
func eventually(t *testing.T, f *Front, what string, state func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		f.pool.mu.Lock()
		ok := state()
		f.pool.mu.Unlock()
		if ok {
			return
		}
	}
	t.Fatal("not within 20 s: " + what)
}

// idleIsSeen waits until f has noticed that its idle connections have ended.
func idleIsSeen(t *testing.T, f *Front) {
	t.Helper()
	eventually(t, f, "end of the connection noticed", func() bool { return f.pool.conns.pick() == nil })
}

// A server that ends idle connections costs nothing.
func TestServerClosesIdle(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
		s := serve(t, opts, echo)
		var mu sync.Mutex
		var conns []net.Conn
		f := newFront(t, s, func(c *Config) {
			change(c)
			c.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
				mu.Lock()
				defer mu.Unlock()
				conns = append(conns, conn)
				return conn, err
			}
		})
		exchange(t, f, "x")
		mu.Lock()
		conns[0].(*net.TCPConn).CloseRead() // reads end as if the server had closed
		mu.Unlock()
		idleIsSeen(t, f)
		if got := exchange(t, f, "y"); got != "y" {
			t.Errorf("read %q", got)
		}
		if n := s.conns.Load(); n != 2 {
			t.Errorf("%d connections", n)
		}
	})
}

// A connection that ends before its first exchange takes none: another is made.
func TestConnectionEndsUnused(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
		s := serve(t, opts, echo)
		var first atomic.Pointer[net.Conn]
		f := newFront(t, s, func(c *Config) {
			change(c)
			c.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
				first.CompareAndSwap(nil, &conn)
				return conn, err
			}
		})
		if err := f.pool.connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		(*first.Load()).(*net.TCPConn).CloseRead() // reads end as if the server had closed
		idleIsSeen(t, f)
		if got := exchange(t, f, "x"); got != "x" {
			t.Errorf("read %q", got)
		}
		if n := s.conns.Load(); n != 2 {
			t.Errorf("%d connections", n)
		}
	})
}

// A breakable connection fails its next Write when armed.
type breakable struct {
	net.Conn
	armed *atomic.Bool
}

func (c *breakable) Write(p []byte) (int, error) {
	if c.armed.Swap(false) {
		c.Conn.Close()
		return 0, errors.New("connection reset")
	}
	return c.Conn.Write(p)
}

func breakableFront(t *testing.T, s *server, change func(*Config)) (*Front, *atomic.Bool) {
	armed := new(atomic.Bool)
	return newFront(t, s, func(c *Config) {
		change(c)
		c.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			return &breakable{conn, armed}, err
		}
	}), armed
}

// An exchange whose connection had ended unnoticed goes out again by itself
// when nothing of its body was read: the head is written first.
func TestStaleConnection(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
		s := serve(t, opts, echo)
		f, armed := breakableFront(t, s, change)
		exchange(t, f, "x")

		before := s.conns.Load()
		armed.Store(true)
		body := &watchedBody{Reader: strings.NewReader("again")}
		resp, err := f.RoundTrip(postBody(t.Context(), body, 5))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		if string(b) != "again" {
			t.Errorf("read %q", b)
		}
		resp.Body.Close()
		if n := s.conns.Load(); n != before+1 {
			t.Errorf("%d connections after %d", n, before)
		}
		if n := body.closed.Load(); n != 1 {
			t.Errorf("body closed %d times", n)
		}
	})
}

// When part of the body has gone, only the caller knows whether it may go again.
func TestConnectionEndsUnderBody(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
		s := serve(t, opts, echo)
		f, armed := breakableFront(t, s, change)
		exchange(t, f, "x")
		body := &watchedBody{Reader: strings.NewReader("gone"), onRead: func() { armed.Store(true) }}
		_, err := f.RoundTrip(postBody(t.Context(), body, 4))
		var e *Error
		if !errors.As(err, &e) || e.Op != OpHTTP || !e.Reused || e.Unsent {
			t.Fatalf("error %#v", err)
		}
		if n := body.closed.Load(); n != 1 {
			t.Errorf("body closed %d times", n)
		}
		if got := exchange(t, f, "y"); got != "y" {
			t.Errorf("then read %q", got)
		}
	})
}

// A first exchange that fails is not repeated: the front may be at fault.
func TestFreshConnectionFails(t *testing.T) {
	s := serve(t, serverOptions{clear: true}, echo)
	f, armed := breakableFront(t, s, func(c *Config) { c.URL.Scheme = "http" })
	armed.Store(true)
	if e := failure(t, f, t.Context(), OpHTTP); e.Reused {
		t.Error("a fresh connection is said to be re-used")
	}
	if n := s.conns.Load(); n > 1 {
		t.Errorf("%d connections", n)
	}
}

// After GOAWAY new exchanges have a new connection, and old ones end in peace.
func TestGoAway(t *testing.T) {
	release := make(chan struct{})
	s := serve(t, serverOptions{}, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		switch string(b) {
		case "hold":
			w.(http.Flusher).Flush()
			<-release
		case "last":
			w.Header().Set("Connection", "close") // the server's way to ask for GOAWAY
		}
		w.Write(b)
	})
	f := newFront(t, s, nil)
	held, err := f.RoundTrip(post(t.Context(), "hold"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Body.Close()
	exchange(t, f, "last")
	idleIsSeen(t, f)
	if got := exchange(t, f, "next"); got != "next" {
		t.Errorf("read %q", got)
	}
	if n := s.conns.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
	close(release)
	if b, err := io.ReadAll(held.Body); err != nil || string(b) != "hold" {
		t.Errorf("the held exchange read %q, %v", b, err)
	}
}

func TestStatusIsPassedOn(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
		var hits atomic.Int32
		s := serve(t, opts, func(w http.ResponseWriter, r *http.Request) {
			hits.Add(1)
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
		})
		f := newFront(t, s, change)
		resp, err := f.RoundTrip(post(t.Context(), "x"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusTemporaryRedirect || hits.Load() != 1 {
			t.Errorf("status %d, %d requests", resp.StatusCode, hits.Load())
		}
	})
}

// Interim answers, any number of them, are followed by the answer, which may be
// somebody else's.
func TestInterimAnswers(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
		s := serve(t, opts, func(w http.ResponseWriter, r *http.Request) {
			for range 4 {
				w.WriteHeader(http.StatusContinue)
				w.Header().Set("Link", "</style.css>; rel=preload; as=style")
				w.WriteHeader(http.StatusEarlyHints)
				w.WriteHeader(http.StatusProcessing)
			}
			b, _ := io.ReadAll(r.Body)
			if string(b) == "foreign" {
				w.WriteHeader(http.StatusNotFound)
			}
			w.Write(b)
		})
		f := newFront(t, s, change)
		for _, want := range []struct {
			body   string
			status int
		}{{"ours", http.StatusOK}, {"foreign", http.StatusNotFound}, {"ours", http.StatusOK}} {
			resp, err := f.RoundTrip(post(t.Context(), want.body))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != want.status || string(b) != want.body || err != nil {
				t.Errorf("status %d, %q, %v; want %+v", resp.StatusCode, b, err, want)
			}
		}
		if n := len(s.sni()); n > 1 {
			t.Errorf("%d connections", n)
		}
	})
}

// A server that refuses a body before it has read it is heard.
func TestEarlyAnswer(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
		s := serve(t, opts, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		})
		f := newFront(t, s, change)
		// The body ends only after the answer is there.
		r, w := io.Pipe()
		body := &watchedBody{Reader: io.MultiReader(bytes.NewReader(make([]byte, 1000)), r)}
		resp, err := f.RoundTrip(postBody(t.Context(), body, 1<<20))
		w.CloseWithError(errors.New("enough"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("status %d", resp.StatusCode)
		}
		if got := exchangeStatus(t, f); got != http.StatusRequestEntityTooLarge {
			t.Errorf("then status %d", got)
		}
	})
}

func exchangeStatus(t *testing.T, f *Front) int {
	t.Helper()
	resp, err := f.RoundTrip(post(t.Context(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestMegabytes(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
		s := serve(t, opts, func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			io.Copy(w, r.Body)
		})
		f := newFront(t, s, change)
		sent := make([]byte, 5<<20)
		rand.Read(sent)
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				resp, err := f.RoundTrip(postBody(t.Context(), io.NopCloser(bytes.NewReader(sent)), int64(len(sent))))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				got, err := io.ReadAll(resp.Body)
				if err != nil || !bytes.Equal(got, sent) {
					t.Errorf("%d bytes came back, %v", len(got), err)
				}
			})
		}
		all.Wait()
	})
}

func TestHeaders(t *testing.T) {
	seen := make(chan http.Header, 1)
	handler := func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header }
	t.Run("https", func(t *testing.T) {
		s := serve(t, serverOptions{}, handler)
		f := newFront(t, s, nil)
		req := post(t.Context(), "x")
		req.Header.Set("Content-Type", "text/plain")
		req.Header["Accept-Language"] = nil
		resp, err := f.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		h := <-seen
		for name, want := range map[string]string{
			"User-Agent":      chrome.agent,
			"Origin":          "https://" + originName,
			"Sec-Fetch-Mode":  "cors",
			"Accept-Encoding": "gzip, deflate, br, zstd",
			"Content-Type":    "text/plain",
		} {
			if got := h.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if _, sent := h["Accept-Language"]; sent {
			t.Error("a header that the caller emptied was sent")
		}
		if len(req.Header) != 2 {
			t.Errorf("the caller's headers were changed: %v", req.Header)
		}
	})
	t.Run("http", func(t *testing.T) {
		s := serve(t, serverOptions{clear: true}, handler)
		f := newFront(t, s, func(c *Config) { c.URL.Scheme, c.UTLS = "http", "firefox" })
		exchange(t, f, "x")
		h := <-seen
		if h.Get("User-Agent") != firefox.agent || h.Get("Sec-Fetch-Mode") != "" ||
			h.Get("Accept-Encoding") != "gzip, deflate" || h.Values("Content-Type") != nil {
			t.Errorf("headers %v", h)
		}
	})
}

// A CDN may compress what the server did not.
func TestContentCodings(t *testing.T) {
	const text = "opaque octets, opaque octets, opaque octets"
	s := serve(t, serverOptions{}, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Encoding", string(b))
		var to io.WriteCloser
		switch string(b) {
		case "gzip":
			to = gzip.NewWriter(w)
		case "deflate":
			to = zlib.NewWriter(w)
		case "br":
			to = brotli.NewWriter(w)
		case "zstd":
			to, _ = zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
		default:
			io.WriteString(w, text)
			return
		}
		io.WriteString(to, text)
		to.Close()
	})
	f := newFront(t, s, nil)
	for _, coding := range []string{"gzip", "deflate", "br", "zstd", "identity"} {
		if got := exchange(t, f, coding); got != text {
			t.Errorf("%s: read %q", coding, got)
		}
	}
	resp, err := f.RoundTrip(post(t.Context(), "rot13"))
	if err == nil {
		resp.Body.Close()
		t.Fatal("unknown coding accepted")
	}
	if !strings.Contains(err.Error(), `"rot13"`) {
		t.Errorf("error %v", err)
	}
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestUnresolvable(t *testing.T) {
	f, err := New(Config{
		URL:   &url.URL{Scheme: "https", Host: originName},
		Front: "front.invalid",
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "front.invalid", IsNotFound: true}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e := failure(t, f, t.Context(), OpResolve)
	if !e.Unsent || !strings.HasPrefix(e.Error(), `front "front.invalid": resolve: `) {
		t.Errorf("error %v", e)
	}
}

func TestRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	f := newFront(t, &server{addr: addr}, nil)
	e := failure(t, f, t.Context(), OpConnect)
	if !e.Unsent || e.Timeout() || errors.Is(e, net.ErrClosed) {
		t.Errorf("error %v", e)
	}
}

// One failed dial answers everyone who waits for it.
func TestDialFailureIsShared(t *testing.T) {
	const exchanges = 5
	var dials atomic.Int32
	fail := make(chan struct{})
	f := newFront(t, &server{addr: "192.0.2.1:443"}, func(c *Config) {
		c.Dialer = func(context.Context, string, string) (net.Conn, error) {
			dials.Add(1)
			<-fail
			return nil, errors.New("unreachable")
		}
	})
	var all sync.WaitGroup
	for range exchanges {
		all.Go(func() { failure(t, f, t.Context(), OpConnect) })
	}
	eventually(t, f, "all wait", func() bool { return len(f.pool.waiters) == exchanges })
	close(fail)
	all.Wait()
	if n := dials.Load(); n != 1 {
		t.Errorf("%d dials", n)
	}
}

// The body of a response that is cut says which front it came from.
func TestTruncatedResponse(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
		s := serve(t, opts, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "part")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})
		f := newFront(t, s, change)
		resp, err := f.RoundTrip(post(t.Context(), "x"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		var e *Error
		if string(b) != "part" || !errors.As(err, &e) || e.Op != OpHTTP {
			t.Errorf("read %q, %v", b, err)
		}
	})
}

// Close ends what is under way: a dial, an exchange without an answer, a body
// that is being read, and whoever waits.
func TestClose(t *testing.T) {
	t.Run("dial", func(t *testing.T) {
		dialing := make(chan struct{})
		f := newFront(t, &server{addr: "192.0.2.1:443"}, func(c *Config) {
			c.Dialer = func(ctx context.Context, _, _ string) (net.Conn, error) {
				close(dialing)
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		var all sync.WaitGroup
		all.Go(func() {
			if e := failure(t, f, t.Context(), OpWait); !errors.Is(e, net.ErrClosed) {
				t.Errorf("error %v", e)
			}
		})
		<-dialing
		f.Close()
		all.Wait()
	})
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), proto string) {
		arrived := make(chan struct{}, 2)
		s := serve(t, opts, func(w http.ResponseWriter, r *http.Request) {
			if b, _ := io.ReadAll(r.Body); string(b) == "body" {
				w.(http.Flusher).Flush()
			}
			arrived <- struct{}{}
			<-r.Context().Done()
		})
		f := newFront(t, s, change)
		resp, err := f.RoundTrip(post(t.Context(), "body"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var all sync.WaitGroup
		all.Go(func() {
			if e := failure(t, f, t.Context(), OpHTTP); !errors.Is(e, net.ErrClosed) {
				t.Errorf("error %v", e)
			}
		})
		<-arrived
		<-arrived
		f.Close()
		all.Wait()
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, net.ErrClosed) {
			t.Errorf("reading a body: %v", err)
		}
		body := &watchedBody{Reader: strings.NewReader("x")}
		if _, err := f.RoundTrip(postBody(t.Context(), body, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if body.read.Load() || body.closed.Load() != 1 {
			t.Errorf("body read: %t, closed %d times", body.read.Load(), body.closed.Load())
		}
		f.Close()
	})
}

// What carries no exchange is closed when its front is not wanted any more.
func TestAbandon(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
		s := serve(t, opts, echo)
		f := newFront(t, s, change)
		exchange(t, f, "x")
		f.pool.abandon()
		exchange(t, f, "x")
		if n := s.conns.Load(); n != 2 {
			t.Errorf("%d connections", n)
		}
	})
}

// A cancelled exchange over HTTP/2 leaves the connection to the others.
func TestCancel(t *testing.T) {
	each(t, func(t *testing.T, opts serverOptions, change func(*Config), proto string) {
		arrived := make(chan struct{})
		s := serve(t, opts, func(w http.ResponseWriter, r *http.Request) {
			if b, _ := io.ReadAll(r.Body); string(b) != "x" {
				return
			}
			close(arrived)
			<-r.Context().Done()
		})
		f := newFront(t, s, change)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-arrived
			cancel()
		}()
		if e := failure(t, f, ctx, OpHTTP); !errors.Is(e, context.Canceled) || e.Reused {
			t.Errorf("error %v", e)
		}
		exchange(t, f, "next")
		want := int32(1)
		if proto == "HTTP/1.1" {
			want = 2
		}
		if n := s.conns.Load(); n != want {
			t.Errorf("%d connections, want %d", n, want)
		}
	})
}

// The system's roots include what SSL_CERT_FILE names. They are read once in a
// process, so another one does the test.
func TestSystemRoots(t *testing.T) {
	const env = "FRONT_TEST_ADDR"
	if addr := os.Getenv(env); addr != "" {
		for _, name := range []string{"chrome", "none"} {
			f := newFront(t, &server{addr: addr}, func(c *Config) { c.RootCAs, c.UTLS = nil, name })
			exchange(t, f, "x")
		}
		return
	}
	s := serve(t, serverOptions{}, echo)
	file := t.TempDir() + "/roots.pem"
	if err := os.WriteFile(file, pemOf(authorityOf()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file string
		ok   bool
	}{{file, true}, {os.DevNull, false}} {
		cmd := testCommand(t, "TestSystemRoots", env+"="+s.addr, "SSL_CERT_FILE="+c.file, "SSL_CERT_DIR=/nonexistent")
		out, err := cmd.CombinedOutput()
		if ok := err == nil; ok != c.ok {
			t.Errorf("with SSL_CERT_FILE=%s: %v\n%s", c.file, err, out)
		}
		if !c.ok && !bytes.Contains(out, []byte("unknown authority")) {
			t.Errorf("wrong failure:\n%s", out)
		}
	}
}

func Example() {
	u, _ := url.Parse("https://origin.example/path")
	f, err := New(Config{URL: u, Front: "front.example", UTLS: "firefox"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer f.Close()
	fmt.Println(f.Name(), f.MaxInFlight())
	// Output: front.example 6
}
