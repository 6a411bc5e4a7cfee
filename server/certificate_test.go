package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newPair returns a self-signed certificate with this serial number and its
// key, as PEM.
func newPair(t *testing.T, serial int64, until time.Time) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: "site.example"},
		DNSNames:     []string{"site.example"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    until.Add(-48 * time.Hour),
		NotAfter:     until,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// replaceFile writes a file as careful programs do, by renaming a new one.
func replaceFile(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// startWeb serves h until the end of the test.
func startWeb(t *testing.T, h http.Handler, config *tls.Config, log *slog.Logger) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web := newWebServer(h, config, log)
	done := make(chan error, 1)
	go func() { done <- serveWeb(web, ln) }()
	t.Cleanup(func() {
		web.Close()
		if err := <-done; err != http.ErrServerClosed {
			t.Errorf("the web server ended with %v", err)
		}
	})
	return ln.Addr().String()
}

func TestCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	soon := time.Now().Add(24 * time.Hour)
	install := func(serial int64) {
		cert, key := newPair(t, serial, soon)
		replaceFile(t, certFile, cert)
		replaceFile(t, keyFile, key)
	}
	install(1)
	log, text := newLog()
	cert, err := newCertificate(certFile, keyFile, log)
	if err != nil {
		t.Fatal(err)
	}
	addr := startWeb(t, http.NotFoundHandler(), cert.tlsConfig(), log)
	serial := func() int64 {
		t.Helper()
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	check := func(want int64, what string) {
		t.Helper()
		if got := serial(); got != want {
			t.Errorf("%s: certificate %d, want %d\n%s", what, got, want, text)
		}
	}
	check(1, "at the start")
	install(2)
	check(2, "both files replaced")

	// One file first: the old pair serves until the second has come.
	newCert, newKey := newPair(t, 3, soon)
	replaceFile(t, certFile, newCert)
	check(2, "certificate without its key")
	if !strings.Contains(text.String(), "the old one stays") {
		t.Errorf("the log does not say why:\n%s", text)
	}
	lines := strings.Count(text.String(), "\n")
	check(2, "again")
	if n := strings.Count(text.String(), "the old one stays"); n != 1 {
		t.Errorf("%d log lines about one change, %d before", n, lines)
	}
	replaceFile(t, keyFile, newKey)
	check(3, "its key")

	replaceFile(t, certFile, []byte("junk"))
	check(3, "junk")
	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	check(3, "no file")
	install(4)
	check(4, "back again")
}

func TestUnusableCertificates(t *testing.T) {
	dir := t.TempDir()
	cert, key := newPair(t, 1, time.Now().Add(-time.Hour))
	certFile, keyFile, junk := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "junk")
	replaceFile(t, certFile, cert)
	replaceFile(t, keyFile, key)
	replaceFile(t, junk, []byte("junk"))
	log, text := newLog()
	for _, files := range [][2]string{{certFile, junk}, {junk, keyFile}, {certFile, certFile}, {keyFile, certFile}, {filepath.Join(dir, "gone"), keyFile}} {
		_, err := newCertificate(files[0], files[1], log)
		if err == nil || !strings.Contains(err.Error(), files[0]) || !strings.Contains(err.Error(), files[1]) {
			t.Errorf("%q: %v", files, err)
		}
	}
	if _, err := newCertificate(certFile, keyFile, log); err != nil || !strings.Contains(text.String(), "expired") {
		t.Errorf("expired: %v, log:\n%s", err, text)
	}
}
