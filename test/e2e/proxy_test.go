package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A plainProxy is a reverse proxy over HTTP/1.1, as a CDN is one: it says by
// X-Forwarded-For who the client is. What a client claims itself it passes on,
// to the left of that.
type plainProxy struct {
	url string

	mu       sync.Mutex
	sessions map[string]bool // last parts of the paths seen, guarded by mu
}

// runPlainProxy starts a proxy in front of origin, whose clients all come from
// the address client.
func runPlainProxy(t *testing.T, origin, client string) *plainProxy {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	p := &plainProxy{sessions: map[string]bool{}}
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			p.mu.Lock()
			p.sessions[path.Base(r.In.URL.Path)] = true
			p.mu.Unlock()
			r.Out.URL.Scheme, r.Out.URL.Host = "http", origin
			r.Out.Header.Set("X-Forwarded-For", forged+", "+client)
		},
		FlushInterval: -1,
		// What clients break off is not worth a line in the test's output.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: proxy, ReadHeaderTimeout: waitLimit}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
		transport.CloseIdleConnections()
	})
	p.url = "http://" + l.Addr().String()
	return p
}

// sessionCount is how many different sessions the paths of requests named.
func (p *plainProxy) sessionCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sessions)
}

// forged is the address that a client claims for itself: what stands left of a
// trusted proxy's own words must not be believed.
const forged = "203.0.113.66"

// frontName is what the censor sees, originName what the CDN routes by.
const (
	frontName  = "front.example"
	originName = "origin.example"
)

// A cdn is nginx as a CDN that can be used for domain fronting: it ends TLS,
// speaks HTTP/2 with clients and HTTP/1.1 with the origin, and routes by the
// Host header whatever the SNI said.
type cdn struct {
	addr   string
	caFile string // to be trusted by clients
	access string // its log: SNI, Host header, protocol and path of each request
}

// runCDN starts nginx in front of origin, whose clients all come from the
// address client, and writes to caFile whom they have to trust.
func runCDN(t *testing.T, origin, client, caFile string) *cdn {
	t.Helper()
	needs(t, "nginx")
	dir := logDir(t)
	c := &cdn{
		addr:   freeAddr(t),
		caFile: caFile,
		access: filepath.Join(dir, "access.log"),
	}
	writeCertificates(t, c.caFile, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))

	user := ""
	if os.Getuid() == 0 {
		user = "user root;" // the folder is closed to others
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(nginxConf, user, c.addr, origin, originName, forged, client)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	runListener(t, c.addr, exec.Command("nginx", "-p", dir, "-c", conf, "-e", filepath.Join(dir, "error.log")))
	return c
}

const nginxConf = `
daemon off;
worker_processes 1;
%[1]s
pid nginx.pid;
events { worker_connections 1024; }
http {
	log_format names '$ssl_server_name $http_host $server_protocol $request_uri';
	access_log access.log names;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	ssl_certificate cert.pem;
	ssl_certificate_key key.pem;
	upstream origin {
		server %[3]s;
		keepalive 32;
	}
	server {
		listen %[2]s ssl http2 default_server;
		return 404;
	}
	server {
		listen %[2]s ssl http2;
		server_name %[4]s;
		location / {
			proxy_pass http://origin;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For "%[5]s, %[6]s";
		}
	}
}
`

// checkLog checks that every request that the CDN saw had the front's name in
// its SNI, the origin's in its Host header, and came over HTTP/2.
func (c *cdn) checkLog(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(c.access)
	if err != nil {
		t.Fatal(err)
	}
	want := frontName + " " + originName + " HTTP/2.0 "
	requests := 0
	for line := range strings.Lines(string(text)) {
		requests++
		if !strings.HasPrefix(line, want) {
			t.Errorf("the CDN saw %q, want %q and a path", line, want)
			break
		}
	}
	if requests == 0 {
		t.Error("the CDN saw no request")
	}
	t.Logf("%d requests through the CDN", requests)
}

// writeCertificates makes an authority and a certificate of it for the front.
func writeCertificates(t *testing.T, caFile, certFile, keyFile string) {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	sign := func(template, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) []byte {
		template.NotBefore = time.Now().Add(-time.Hour)
		template.NotAfter = time.Now().Add(24 * time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	write := func(name, kind string, der []byte) {
		data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "CA of a test"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	caKey, key := newKey(), newKey()
	write(caFile, "CERTIFICATE", sign(ca, ca, &caKey.PublicKey, caKey))
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: frontName},
		DNSNames:     []string{frontName},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	write(certFile, "CERTIFICATE", sign(leaf, ca, &key.PublicKey, caKey))
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(keyFile, "EC PRIVATE KEY", der)
}

// TestCDN proves the CDN without a tunnel.
func TestCDN(t *testing.T) {
	heard := make(chan string, 1)
	origin := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		heard <- r.Proto + " " + r.Host + " " + r.Header.Get("X-Forwarded-For")
	})}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go origin.Serve(l)
	defer origin.Close()
	c := runCDN(t, l.Addr().String(), "192.0.2.1", filepath.Join(t.TempDir(), "ca.pem"))

	needs(t, "curl")
	cmd := exec.Command("curl", "-sS", "--cacert", c.caFile, "--connect-to", "::"+c.addr,
		"-H", "Host: "+originName, "https://"+frontName+"/path")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("curl: %v: %s", err, out)
	}
	if got, want := <-heard, "HTTP/1.1 "+originName+" "+forged+", 192.0.2.1"; got != want {
		t.Errorf("the origin heard %q, want %q", got, want)
	}
	c.checkLog(t)
}
