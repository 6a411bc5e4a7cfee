package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"turbotunnel/internal/logtest"

	"golang.org/x/net/dns/dnsmessage"
)

// A pebble is a running ACME server: it orders, asks challenges by the network
// and signs.
type pebble struct {
	directory string
	env       []string // for programs that shall trust its web server
	caFile    string
	httpPort  int // where it asks HTTP-01 challenges
	tlsPort   int // and TLS-ALPN-01
	log       *logtest.Buffer
}

// startPebble starts pebble, whose certificates are valid for life, until the
// end of the test.
func startPebble(t *testing.T, life time.Duration) *pebble {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and runs an ACME server")
	}
	dir := t.TempDir()
	// It is a tool of the tests' module, so that nobody who imports this one
	// gets it. This builds it, once.
	out, err := exec.Command("go", "-C", "../test", "tool", "-n", "pebble").Output()
	if err != nil {
		t.Fatalf("go tool: %v", err)
	}
	program := strings.TrimSpace(string(out))
	p := &pebble{caFile: filepath.Join(dir, "ca.pem"), httpPort: freePort(t), tlsPort: freePort(t), log: new(logtest.Buffer)}
	p.env = []string{"SSL_CERT_FILE=" + p.caFile}
	cert, key := newPair(t, 1, time.Now().Add(time.Hour))
	replaceFile(t, p.caFile, cert)
	replaceFile(t, filepath.Join(dir, "key.pem"), key)
	listen := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	p.directory = "https://" + listen + "/dir"
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": listen,
		"certificate":   p.caFile,
		"privateKey":    filepath.Join(dir, "key.pem"),
		"httpPort":      p.httpPort,
		"tlsPort":       p.tlsPort,
		"profiles":      map[string]any{"default": map[string]any{"validityPeriod": int(life / time.Second)}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	replaceFile(t, filepath.Join(dir, "config.json"), config)
	cmd := exec.Command(program, "-config", filepath.Join(dir, "config.json"), "-dnsserver", startDNS(t))
	// By default it sleeps before it validates, and refuses one nonce of twenty,
	// for which a client rests seconds: longer than these certificates can wait.
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0")
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("pebble:\n%s", p.log)
		}
	})
	await(t, "pebble", func() error {
		c, err := net.Dial("tcp", listen)
		if err == nil {
			c.Close()
		}
		return err
	})
	return p
}

var newOrder = regexp.MustCompile(`There are now \d+ orders in the db`)

// orders is how many orders pebble has had.
func (p *pebble) orders() int { return len(newOrder.FindAllString(p.log.String(), -1)) }

// await calls check until it returns nil.
func await(t *testing.T, what string, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// freePort is a TCP port of 127.0.0.1 on which nobody listens.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// startDNS answers over TCP, until the end of the test, that every name has the
// address 127.0.0.1.
func startDNS(t *testing.T) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if err := answerDNS(c); err != nil {
				t.Errorf("DNS: %v", err)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().String()
}

// answerDNS answers one question (RFC 1035, section 4.2.2).
func answerDNS(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return err
	}
	text := make([]byte, int(size[0])<<8|int(size[1]))
	if _, err := io.ReadFull(c, text); err != nil {
		return err
	}
	var m dnsmessage.Message
	if err := m.Unpack(text); err != nil {
		return err
	}
	m.Response, m.Additionals = true, nil
	for _, q := range m.Questions {
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
				Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
			})
		}
	}
	text, err := m.Pack()
	if err != nil {
		return err
	}
	_, err = c.Write(append([]byte{byte(len(text) >> 8), byte(len(text))}, text...))
	return err
}

// shown is the certificate that the server at addr shows for name.
func shown(addr, name string, protocols ...string) (*x509.Certificate, error) {
	c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	cert := c.ConnectionState().PeerCertificates[0]
	return cert, cert.VerifyHostname("www.example.com")
}

// The program gets its certificate by TLS-ALPN-01, serves the next start from
// its folder, and keeps what is there private.
func TestCertificateByTLSALPN(t *testing.T) {
	ca := startPebble(t, 90*24*time.Hour)
	state := filepath.Join(t.TempDir(), "state")
	addr := fmt.Sprintf("127.0.0.1:%d", ca.tlsPort)
	run := func() (*program, *x509.Certificate) {
		t.Helper()
		p := start(t, ca.env, "-unsafe-logging", "-state-dir", state, "-acme-hostnames", "www.Example.com,example.com", "-acme-email", "admin@example.com",
			"-acme-directory", ca.directory, addr, "127.0.0.1:1")
		p.said(`a certificate is in use host=www.example.com`)
		p.said(`a certificate is in use host=example.com`)
		cert, err := shown(addr, "www.example.com", "h2", "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		return p, cert
	}
	p, first := run()
	for _, name := range []string{"", "WWW.example.COM", "unknown.example"} {
		if cert, err := shown(addr, name); err != nil || !cert.Equal(first) {
			t.Errorf("server name %q: %v, %v", name, cert.Subject, err)
		}
	}
	if cert, _ := shown(addr, "example.com"); cert == nil || cert.VerifyHostname("example.com") != nil {
		t.Errorf("the second name's certificate: %v", cert)
	}
	if _, err := shown(addr, "www.example.com", "acme-tls/1"); err == nil {
		t.Error("a stranger got a certificate for a challenge that there is not")
	}
	orders := ca.orders()
	if orders < 2 {
		t.Errorf("pebble had %d orders", orders)
	}
	_ = p.cmd.Process.Signal(os.Interrupt)
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d; stderr:\n%s", code, p.stderr)
	}

	if info, err := os.Stat(filepath.Join(state, "acme")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
	files, err := filepath.Glob(filepath.Join(state, "acme", "*"))
	if err != nil || len(files) < 3 { // an account and two certificates
		t.Errorf("files: %q, %v", files, err)
	}
	for _, name := range files {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}

	_, second := run()
	if !second.Equal(first) || ca.orders() != orders {
		t.Errorf("a new start has ordered anew: %d orders before, %d now", orders, ca.orders())
	}
}

// autoCertificateFor returns one for tests within the process.
func autoCertificateFor(t *testing.T, ca *pebble) (*autoCertificate, *logtest.Buffer) {
	t.Helper()
	log, text := newLog()
	auto, err := newAutoCertificate(settings{acmeHostnames: "www.example.com", acmeDirectory: ca.directory, stateDir: t.TempDir()}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		auto.close()
		if t.Failed() {
			t.Logf("log:\n%s", text)
		}
	})
	pemText, err := os.ReadFile(ca.caFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pemText)
	auto.asked.below.TLSClientConfig = &tls.Config{RootCAs: roots}
	return auto, text
}

var site = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	http.Error(w, "the site", http.StatusTeapot)
})

// Where nobody can ask at the main port, HTTP-01 gets the certificate.
// Questions that are no challenge's see the site.
func TestCertificateByHTTP(t *testing.T) {
	ca := startPebble(t, 90*24*time.Hour)
	auto, text := autoCertificateFor(t, ca)
	addr := startWeb(t, site, auto.tlsConfig(), auto.log) // not pebble's port
	if _, err := shown(addr, "www.example.com"); err == nil {
		t.Error("a certificate from nowhere")
	}
	port80 := fmt.Sprintf("127.0.0.1:%d", ca.httpPort)
	auto.start(port80, listenTCP, site)
	await(t, "certificate", func() error {
		_, err := shown(addr, "www.example.com")
		return err
	})
	if !strings.Contains(text.String(), "a certificate is in use") {
		t.Errorf("log:\n%s", text)
	}
	for _, path := range []string{"/", challengePath, challengePath + "nothing"} {
		if status, body := get(t, "http://"+port80+path); status != http.StatusTeapot || !strings.Contains(body, "the site") {
			t.Errorf("%s: %d %q, want the site", path, status, body)
		}
	}
}

// A certificate is renewed before it ends, and connections go on.
func TestCertificateIsRenewed(t *testing.T) {
	ca := startPebble(t, 24*time.Second) // renewed after 16
	auto, text := autoCertificateFor(t, ca)
	ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", ca.tlsPort))
	if err != nil {
		t.Fatal(err)
	}
	web := newWebServer(site, auto.tlsConfig(), auto.log)
	done := make(chan error)
	go func() { done <- serveWeb(web, ln) }()
	defer func() {
		web.Close()
		<-done
	}()
	// Port 80 is taken: that costs a log line.
	auto.start(ln.Addr().String(), listenTCP, site)
	var first *x509.Certificate
	await(t, "certificate", func() (err error) {
		first, err = shown(ln.Addr().String(), "www.example.com")
		return err
	})
	if !strings.Contains(text.String(), "no HTTP-01 challenges") {
		t.Errorf("log:\n%s", text)
	}
	await(t, "renewal", func() error {
		cert, err := shown(ln.Addr().String(), "www.example.com")
		if err != nil {
			t.Fatalf("while it is renewed: %v", err)
		}
		if cert.Equal(first) {
			return fmt.Errorf("still the first; log:\n%s", text)
		}
		if cert.NotBefore.After(first.NotAfter) {
			t.Fatal("it was renewed after it had ended")
		}
		return nil
	})
	await(t, "log line", func() error {
		if strings.Count(text.String(), "a certificate is in use") < 2 {
			return fmt.Errorf("log:\n%s", text)
		}
		return nil
	})
}

// When no challenge can be answered, the log says why, and nobody is served a
// wrong certificate.
func TestCertificateCannotBeHad(t *testing.T) {
	ca := startPebble(t, time.Hour)
	auto, text := autoCertificateFor(t, ca)
	addr := startWeb(t, site, auto.tlsConfig(), auto.log)
	auto.start("127.0.0.1:0", listenTCP, site)
	await(t, "log line", func() error {
		for _, want := range []string{"no certificate", "host=www.example.com", "tls-alpn-01: ", "http-01: ", "refused"} {
			if !strings.Contains(text.String(), want) {
				return fmt.Errorf("the log lacks %q:\n%s", want, text)
			}
		}
		return nil
	})
	if _, err := shown(addr, "www.example.com"); err == nil {
		t.Error("a certificate from nowhere")
	}
}

// The end of the server does not wait for a certificate authority.
func TestCloseWhileOrdering(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	log, _ := newLog()
	auto, err := newAutoCertificate(settings{acmeHostnames: "www.example.com", acmeDirectory: "https://" + ln.Addr().String(), stateDir: t.TempDir()}, log)
	if err != nil {
		t.Fatal(err)
	}
	auto.start("127.0.0.1:0", listenTCP, site)
	c, err := ln.Accept() // it has begun to ask, and gets no answer
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	auto.close()
}

func FuzzParseHostnames(f *testing.F) {
	for _, s := range []string{"www.example.com", "a.example,b.example", "bücher.example", "localhost", "*.a.example", "192.0.2.1", ",", "a..b", ".", "\xc3.0", "0.0.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, list string) {
		names, err := parseHostnames(list)
		if err != nil {
			return
		}
		again, err := parseHostnames(strings.Join(names, ","))
		if err != nil || strings.Join(again, ",") != strings.Join(names, ",") {
			t.Fatalf("%q: %q, read again: %q, %v", list, names, again, err)
		}
		for _, name := range names {
			if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
				t.Fatalf("%q: %q", list, name)
			}
		}
	})
}

func listenTCP(address string) (net.Listener, error) { return net.Listen("tcp", address) }
