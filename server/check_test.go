package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/check"
	"turbotunnel/internal/check/checktest"
	"turbotunnel/server/decoy"
)

// A checkRig is a server that runs, with what is in front of it, and its check.
type checkRig struct {
	*testing.T
	check   serverCheck
	handler http.Handler // what the URL leads to
}

// newCheckRig makes one with which all is well.
func newCheckRig(t *testing.T) *checkRig {
	dir := t.TempDir()
	key, err := loadKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	site, err := decoy.New("", time.Now(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { site.Close() })
	server := tunnel.NewServer(tunnel.ServerConfig{Key: key, Decoy: site})
	t.Cleanup(func() { server.Close() })
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	r := &checkRig{T: t, handler: server}
	r.check = serverCheck{
		ctx: t.Context(), limit: 1 << 20, forward: target.Addr().String(),
		set: settings{stateDir: dir, disableTLS: true, trustedProxies: "127.0.0.1"},
	}
	return r
}

// run starts the web server and checks. The result is the report and the text.
func (r *checkRig) run() (*serverReport, string) {
	r.Helper()
	web := httptest.NewUnstartedServer(r.handler)
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.Start()
	defer web.Close()
	if r.check.listen == "" {
		r.check.listen = web.Listener.Addr().String()
	}
	if r.check.set.url == "" {
		r.check.set.url = web.URL + "/hidden"
	}
	if r.check.set.fronts != "" { // by which alone it is reached
		r.check.set.url = strings.Replace(r.check.set.url, "127.0.0.1", "origin.invalid", 1)
	}
	var out bytes.Buffer
	p := &check.Printer{Out: &out}
	r.check.Recorder = &check.Recorder{Observer: p}
	report := r.check.run()
	r.check.say(p, report)
	return report, out.String()
}

// closedAddress is one where nobody listens, nor can begin to: it is a connection's.
func closedAddress(t *testing.T) string {
	t.Helper()
	conn, _ := tcpPair(t)
	return conn.LocalAddr().String()
}

// certificateFiles writes a certificate for a name, which is valid until a time.
func certificateFiles(t *testing.T, name string, until time.Time) (certFile, keyFile string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: until.Add(-1000 * time.Hour), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// oneFolder is a proxy that passes one folder on, and has a site of its own.
func oneFolder(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/hidden") {
			h.ServeHTTP(w, r)
			return
		}
		io.WriteString(w, "a site")
	})
}

// wholeAnswers is a proxy that has each answer before it passes on any of it.
func wholeAnswers(t *testing.T, h http.Handler) http.Handler {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req := r.Clone(r.Context())
		req.RequestURI, req.URL.Scheme, req.URL.Host = "", "http", server.Listener.Addr().String()
		resp, err := server.Client().Transport.RoundTrip(req)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		w.Write(body)
	})
}

// Where there are fronts, clients use these, and the host of -url need not be reached.
func TestServerCheckOfFronts(t *testing.T) {
	r := newCheckRig(t)
	r.check.set.fronts = "127.0.0.1,127.0.0.1:1"
	report, text := r.run()
	if report.Verdict != &withNotes || !strings.Contains(text, "- Number 2 of -fronts") || !strings.Contains(text, "are alike") {
		t.Errorf("verdict %s:\n%s", report.Verdict.Name, text)
	}
}

// TestServerCheck: each thing that can be wrong has its verdict, its remedy, and its
// text.
func TestServerCheck(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(r *checkRig)
		want  *check.Verdict
	}{
		{"works", func(*checkRig) {}, &soundServer},
		{"settings", func(r *checkRig) { r.check.set.tlsCert = "x" }, &wrongSettings},
		{"open key", func(r *checkRig) { os.Chmod(filepath.Join(r.check.set.stateDir, keyFile), 0o644) }, &wrongState},
		{"no folder", func(r *checkRig) { r.check.set.stateDir = filepath.Join(r.check.set.stateDir, "gone") }, &wrongState},
		{"few files", func(r *checkRig) { r.check.limit = 1024 }, &withNotes},
		{"expired", func(r *checkRig) {
			r.check.set.disableTLS = false
			r.check.set.tlsCert, r.check.set.tlsKey = certificateFiles(r.T, "bridge.example", time.Now().Add(-time.Hour))
		}, &wrongCert},
		{"runs out", func(r *checkRig) {
			r.check.set.disableTLS = false
			r.check.set.tlsCert, r.check.set.tlsKey = certificateFiles(r.T, "127.0.0.1", time.Now().Add(73*time.Hour))
		}, &withNotes},
		{"another name", func(r *checkRig) {
			r.check.set.disableTLS = false
			r.check.set.tlsCert, r.check.set.tlsKey = certificateFiles(r.T, "another.example", time.Now().Add(1000*time.Hour))
		}, &withNotes},
		{"not started", func(r *checkRig) { r.check.listen = closedAddress(r.T) }, &notServing},
		{"no target", func(r *checkRig) { r.check.forward = closedAddress(r.T) }, &noTarget},
		{"another server", func(r *checkRig) {
			r.handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "a site") })
		}, &noWay},
		{"bad gateway", func(r *checkRig) {
			r.handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
		}, &noWay},
		{"unreachable", func(r *checkRig) { r.check.set.url = "http://" + closedAddress(r.T) + "/hidden" }, &noWay},
		{"held back", func(r *checkRig) { r.handler = wholeAnswers(r.T, r.handler) }, &withNotes},
		{"one folder", func(r *checkRig) { r.handler = oneFolder(r.handler) }, &notAlike},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newCheckRig(t)
			c.fault(r)
			report, text := r.run()
			if report.Verdict != c.want {
				t.Errorf("verdict %q, want %q", report.Verdict.Name, c.want.Name)
			}
			if (len(report.Mend) == 0) != (c.want == &soundServer) {
				t.Errorf("to mend: %q", report.Mend)
			}
			for _, secret := range []string{"hidden", "127.0.0.1"} {
				if strings.Contains(text, secret) {
					t.Errorf("%q is shown", secret)
				}
			}
			checktest.Golden(t, "testdata/check", c.name, text)
		})
	}
}

// Nothing of a check stays in the state folder.
func TestServerCheckLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	c := serverCheck{set: settings{stateDir: dir}}
	if f := c.state(); f.State == check.Failed || f.Text != "no key yet; the first start makes one" {
		t.Errorf("%+v", f)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

// The manual page has the exit code of each verdict.
func TestServerManualHasEveryVerdict(t *testing.T) {
	manual, err := os.ReadFile("../doc/turbotunnel-server.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range serverVerdicts {
		if line := fmt.Sprintf(".B %d %s\n", v.Exit, strings.ReplaceAll(v.Name, "-", `\-`)); !strings.Contains(string(manual), line) {
			t.Errorf("the manual lacks %q", line)
		}
	}
}
