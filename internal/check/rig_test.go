package check

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/common/handshake"
	"turbotunnel/common/tunnel"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

// The names and the address of the site, as DNS and certificates have them.
const (
	originName = "origin.secret"
	frontName  = "front.secret"
	siteAddr   = "192.88.99.1"
)

// authority signs certificates for names.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{}
	a.cert, a.key = sign(t, nil, "test authority", true, time.Now().Add(time.Hour))
	return a
}

// sign makes a certificate for a name.
func sign(t *testing.T, by *authority, name string, ca bool, until time.Time) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: until.Add(-2 * time.Hour), NotAfter: until,
		IsCA: ca, BasicConstraintsValid: true, DNSNames: []string{name},
	}
	parent, parentKey := template, key
	if by != nil {
		parent, parentKey = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// A rig is a server behind a CDN on loopback, and the network to it.
type rig struct {
	t      *testing.T
	ca     *authority
	key    *tunnel.Key
	server *tunnel.Server
	web    *httptest.Server // of the CDN
	cfg    tunnel.Config
	opts   Options

	// What faults turn.
	handler http.Handler
	names   []string // that the certificate is for
	signer  *authority
	until   time.Time
	clear   http.Handler // at port 80; nil: nobody
	wrap    func(net.Conn, string) (net.Conn, error)
	addrs   []netip.Addr
	dnsErr  error
}

func newRig(t *testing.T) *rig {
	key := tunnel.NewKey()
	r := &rig{
		t: t, ca: newAuthority(t), key: key, names: []string{frontName, originName},
		until: time.Now().Add(time.Hour), addrs: []netip.Addr{netip.MustParseAddr(siteAddr)},
	}
	r.signer = r.ca
	r.server = tunnel.NewServer(tunnel.ServerConfig{Key: key})
	r.handler = r.server
	t.Cleanup(func() { r.server.Close() })
	r.cfg = tunnel.Config{URL: "https://" + originName + "/secret-path", Key: key.Public(), Fronts: frontName}
	r.opts.Dial = r.dial
	r.opts.Lookup = func(context.Context, string) ([]netip.Addr, error) { return r.addrs, r.dnsErr }
	r.opts.RootCAs = x509.NewCertPool()
	r.opts.RootCAs.AddCert(r.ca.cert)
	return r
}

// start starts the CDN with the faults that are set.
func (r *rig) start() {
	r.t.Helper()
	r.web = httptest.NewUnstartedServer(r.handler)
	r.web.Config.ErrorLog = quiet()
	if strings.HasPrefix(r.cfg.URL, "http://") {
		r.web.Start()
	} else {
		r.web.EnableHTTP2 = true
		r.web.TLS = &tls.Config{GetCertificate: r.certificate}
		r.web.StartTLS()
	}
	r.t.Cleanup(r.web.Close)
}

// certificate makes one for the name that a client names, if it is one of ours,
// else for the first.
func (r *rig) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := r.names[0]
	for _, n := range r.names {
		if n == hello.ServerName {
			name = n
		}
	}
	cert, key := sign(r.t, r.signer, name, false, r.until)
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}, nil
}

// dial is the network: every address leads to the CDN, but port 80.
func (r *rig) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if _, port, _ := net.SplitHostPort(addr); port == "80" && !strings.HasPrefix(r.cfg.URL, "http://") {
		if r.clear == nil {
			return nil, syscall.ECONNREFUSED
		}
		return r.pipe(r.clear), nil
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, r.web.Listener.Addr().String())
	if err == nil && r.wrap != nil {
		return r.wrap(conn, addr)
	}
	return conn, err
}

// pipe returns a connection to a web server of its own.
func (r *rig) pipe(h http.Handler) net.Conn {
	web := httptest.NewServer(h)
	r.t.Cleanup(web.Close)
	conn, err := net.Dial("tcp", web.Listener.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	return conn
}

// byProxy has a SOCKS 5 proxy that answers every request for a connection by a code.
func (r *rig) byProxy(code byte) {
	r.opts.Proxy = &url.URL{Scheme: "socks5", Host: "proxy.secret"}
	r.opts.Dial = func(context.Context, string, string) (net.Conn, error) {
		return &refusingProxy{answers: bytes.NewReader([]byte{5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0})}, nil
	}
}

// A refusingProxy is a connection to one whose answers are known before.
type refusingProxy struct {
	net.Conn
	answers io.Reader
}

func (p *refusingProxy) Read(b []byte) (int, error)  { return p.answers.Read(b) }
func (p *refusingProxy) Write(b []byte) (int, error) { return len(b), nil }
func (p *refusingProxy) SetDeadline(time.Time) error { return nil }
func (p *refusingProxy) Close() error                { return nil }

// check checks the way as it is, and returns the report and the text.
func (r *rig) check() (*BridgeReport, string) {
	r.t.Helper()
	var out bytes.Buffer
	p := &Printer{Out: &out, Details: r.opts.Secret}
	report, err := Bridge(r.t.Context(), r.cfg, r.opts, p)
	if err != nil {
		r.t.Fatal(err)
	}
	p.Verdict(report.Verdict)
	return report, out.String()
}

// A cutter resets its connection when something is written that has a text in it.
type cutter struct {
	net.Conn
	text string
	cut  bool
}

func (c *cutter) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(c.text)) {
		c.cut = true
		c.Conn.Close()
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *cutter) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.cut {
		return 0, syscall.ECONNRESET
	}
	return n, err
}

// holdBack is a CDN that passes answers on when they are complete.
func holdBack(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		whole := httptest.NewRecorder()
		h.ServeHTTP(&deadlines{whole, w}, r)
		for name, values := range whole.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(whole.Code)
		io.Copy(w, whole.Body)
	})
}

// deadlines lets a recorder have the deadlines of a real answer.
type deadlines struct {
	*httptest.ResponseRecorder
	real http.ResponseWriter
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	return http.NewResponseController(d.real).SetReadDeadline(t)
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	return http.NewResponseController(d.real).SetWriteDeadline(t)
}

func (d *deadlines) EnableFullDuplex() error {
	return http.NewResponseController(d.real).EnableFullDuplex()
}

// oldServer is one that measures nothing, and has one engine.
func oldServer(r *rig, engine string) http.Handler {
	key := handshake.GenerateKey()
	r.cfg.Key = key.Public().String()
	server := carrier.NewServer(carrier.ServerConfig{
		Key: key, Decoy: http.NotFoundHandler(), Engines: []string{engine},
		Serve: func(s *carrier.Session) { io.Copy(io.Discard, reader{s.Conn()}) },
	})
	r.t.Cleanup(func() { server.Close() })
	return server
}

// reader reads datagrams.
type reader struct{ *carrier.Conn }

func (r reader) Read(p []byte) (int, error) {
	n, _, err := r.ReadFrom(p)
	return n, err
}

// onlyFirst lets the first so many requests through, and answers no other.
func onlyFirst(h http.Handler, n int64) http.Handler {
	var seen atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if seen.Add(1) > n {
			panic(http.ErrAbortHandler)
		}
		h.ServeHTTP(w, r)
	})
}

// limitBodies refuses requests of more than so many bytes.
func limitBodies(h http.Handler, most int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, most+1))
		if err != nil || int64(len(body)) > most {
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
		h.ServeHTTP(w, r)
	})
}

// byHost is a CDN that has an answer for the front's own host, one for the server's,
// and one for every other.
func byHost(own, origin, other http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Host {
		case frontName:
			own.ServeHTTP(w, r)
		case originName:
			origin.ServeHTTP(w, r)
		default:
			other.ServeHTTP(w, r)
		}
	})
}

func status(code int, header ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		io.WriteString(w, "<html>")
	})
}
