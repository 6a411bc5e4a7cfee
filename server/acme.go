package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
	"golang.org/x/net/idna"
)

const (
	// acmeFolder is where account and certificates are, in the state directory.
	acmeFolder = "acme"

	// challengePort is where a certificate authority asks for the answer to
	// an HTTP-01 challenge (RFC 8555, section 8.3), under challengePath.
	challengePort = "80"
	challengePath = "/.well-known/acme-challenge/"

	// A failed order is tried again after acmeRetry, doubled each time up to
	// acmeRetryMax. autocert refuses within a minute of a failure; Let's
	// Encrypt within an hour of the fifth for a name.
	acmeRetry    = time.Minute + time.Second
	acmeRetryMax = time.Hour

	// acmeTimeout bounds one request to the certificate authority.
	acmeTimeout = time.Minute

	// maxACMEAnswer is more bytes than any answer of a certificate authority
	// has: a chain is some KB.
	maxACMEAnswer = 1 << 20

	// maxHostnames bounds the certificates, each of which is for one name.
	maxHostnames = 50
)

// An autoCertificate is a certificate for each of some names, from a
// certificate authority that speaks ACME. It is renewed after two thirds of
// its life, or 30 days before its end. Safe for concurrent use.
type autoCertificate struct {
	names   []string
	manager *autocert.Manager
	asked   *acmeTransport
	log     *slog.Logger

	ready map[string]*atomic.Bool // by name: there is a certificate
	web   *http.Server            // on port 80; nil when that is not to be had

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// newAutoCertificate checks what set says about ACME, and makes the folder.
func newAutoCertificate(set settings, log *slog.Logger) (*autoCertificate, error) {
	names, err := parseHostnames(set.acmeHostnames)
	if err != nil {
		return nil, fmt.Errorf("-acme-hostnames: %w", err)
	}
	if set.acmeEmail != "" {
		if a, err := mail.ParseAddress(set.acmeEmail); err != nil || a.Address != set.acmeEmail {
			return nil, fmt.Errorf("-acme-email: %+q is no address such as admin@example.com", set.acmeEmail)
		}
	}
	directory := cmp.Or(set.acmeDirectory, acme.LetsEncryptURL)
	if u, err := url.Parse(directory); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("-acme-directory: %+q is no https URL", directory)
	}
	if set.stateDir == "" {
		return nil, errors.New("-acme-hostnames needs -state-dir: certificates are kept there, since authorities give only a few a week")
	}
	folder := filepath.Join(set.stateDir, acmeFolder)
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("cannot make the folder for certificates: %w", err)
	}
	if err := os.Chmod(folder, 0o700); err != nil {
		return nil, fmt.Errorf("cannot keep others out of the folder for certificates: %w", err)
	}
	a := &autoCertificate{names: names, log: log, ready: make(map[string]*atomic.Bool)}
	for _, name := range names {
		a.ready[name] = new(atomic.Bool)
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.asked = &acmeTransport{
		ctx:     a.ctx,
		below:   http.DefaultTransport.(*http.Transport).Clone(),
		reasons: make(map[string]map[string]string),
	}
	a.manager = &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		Cache:      autocert.DirCache(folder),
		HostPolicy: autocert.HostWhitelist(names...),
		Email:      set.acmeEmail,
		Client: &acme.Client{
			DirectoryURL: directory,
			HTTPClient:   &http.Client{Transport: a.asked, Timeout: acmeTimeout},
		},
	}
	return a, nil
}

// parseHostnames reads a comma-separated list of names that a certificate can
// be for, and returns each once, in ASCII.
func parseHostnames(list string) ([]string, error) {
	var names []string
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		if _, err := netip.ParseAddr(item); err == nil {
			return nil, fmt.Errorf("%+q is an address; certificates are for names", item)
		}
		if strings.Contains(item, "*") {
			return nil, fmt.Errorf("%+q: a wildcard needs a challenge by DNS, which this program cannot answer; give the names one by one", item)
		}
		name, err := idna.Lookup.ToASCII(strings.TrimSuffix(item, "."))
		if err == nil {
			// What is no UTF-8 comes out as a name that is none.
			_, err = idna.Lookup.ToASCII(name)
		}
		if err != nil || strings.Trim(name, ".") != name || !strings.Contains(name, ".") {
			return nil, fmt.Errorf("%+q is no full host name such as www.example.com", item)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) > maxHostnames {
		return nil, fmt.Errorf("%d names, of which %d can be served", len(names), maxHostnames)
	}
	return names, nil
}

// start gets certificates that are not in the folder, and keeps them fresh
// until close. httpAddress is where to answer HTTP-01 challenges; that it is
// not to be had is no error, because TLS-ALPN-01 challenges come to the main
// port. Whoever is no certificate authority sees site there.
func (a *autoCertificate) start(httpAddress string, listen func(string) (net.Listener, error), site http.Handler) {
	ln, err := listen(httpAddress)
	if err != nil {
		a.log.Warn("no HTTP-01 challenges: a certificate can be had if port 443 of the host names leads here", "err", explainListen(httpAddress, err))
	} else {
		a.web = newWebServer(a.answerHTTP(site), nil, a.log)
		a.running.Go(func() {
			if err := serveWeb(a.web, newDoor(ln, fewConns, fewBytes, a.log)); !errors.Is(err, http.ErrServerClosed) {
				a.log.Error("no HTTP-01 challenges any longer", "err", err)
			}
		})
	}
	for _, name := range a.names {
		a.running.Go(func() { a.keep(name) })
	}
}

// answerHTTP answers HTTP-01 challenges. Questions that are none are site's,
// since autocert's own answers to them would tell what runs here.
func (a *autoCertificate) answerHTTP(site http.Handler) http.Handler {
	answers := a.manager.HTTPHandler(http.NotFoundHandler())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, challengePath) {
			asked := r.Clone(r.Context())
			if host, _, err := net.SplitHostPort(r.Host); err == nil {
				asked.Host = host // autocert takes names alone
			}
			answer := answer{status: http.StatusOK, header: make(http.Header)}
			answers.ServeHTTP(&answer, asked)
			if answer.status == http.StatusOK {
				w.Header().Set("Content-Type", "application/octet-stream") // RFC 8555, section 8.3
				w.Write(answer.body.Bytes())                               //nolint:errcheck // the authority will say
				return
			}
		}
		site.ServeHTTP(w, r)
	})
}

// An answer is a http.ResponseWriter that keeps what is written.
type answer struct {
	status int
	header http.Header
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// keep gets the certificate for name, tells the log what becomes of it, and
// warns when autocert, which renews it, does not succeed.
func (a *autoCertificate) keep(name string) {
	retry := acmeRetry
	var until time.Time // of the last certificate seen
	for {
		cert, err := a.get(name)
		if a.ctx.Err() != nil {
			return
		}
		var wait time.Duration
		if err != nil {
			a.log.Warn("no certificate: the host name must lead to this server, and its port 443 or 80 be reachable from outside",
				"host", name, "err", err, "reasons", a.asked.why(name), "again", retry)
			wait = retry
			retry = min(2*retry, acmeRetryMax)
		} else {
			retry = acmeRetry
			life, left := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore), time.Until(cert.Leaf.NotAfter)
			if !cert.Leaf.NotAfter.Equal(until) {
				until = cert.Leaf.NotAfter
				a.log.Info("a certificate is in use", "host", name, "until", until)
			} else if left < life/4 {
				a.log.Warn("the certificate cannot be renewed", "host", name, "until", until, "reasons", a.asked.why(name))
			}
			a.ready[name].Store(true)
			wait = min(life/20+time.Second, acmeRetryMax)
		}
		select {
		case <-a.ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// get asks autocert for name's certificate, always for a key that all clients
// of today can use: by their ClientHellos autocert would order a second one.
func (a *autoCertificate) get(name string) (*tls.Certificate, error) {
	return a.manager.GetCertificate(&tls.ClientHelloInfo{
		ServerName:   name,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	})
}

var errNoCertificate = errors.New("no certificate yet")

// getCertificate is a tls.Config's GetCertificate. A client that asks for
// another name, or for none, gets the first one's, as web servers do. No client
// makes autocert order one: that is keep's, which counts the failures.
func (a *autoCertificate) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) {
		return a.manager.GetCertificate(hello) // a TLS-ALPN-01 challenge
	}
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if a.ready[name] == nil {
		name = a.names[0]
	}
	if !a.ready[name].Load() {
		return nil, errNoCertificate
	}
	return a.get(name)
}

// tlsConfig is that of a server that uses the certificates.
func (a *autoCertificate) tlsConfig() *tls.Config {
	return &tls.Config{
		GetCertificate: a.getCertificate,
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1", acme.ALPNProto},
	}
}

// close ends what start has begun, and waits for it.
func (a *autoCertificate) close() {
	a.cancel()
	if a.web != nil {
		a.web.Close()
	}
	a.running.Wait()
	a.asked.below.CloseIdleConnections()
}

// An acmeTransport carries requests to the certificate authority, ends them at
// the end of ctx, and remembers why challenges have failed, which autocert
// does not tell. Safe for concurrent use.
type acmeTransport struct {
	ctx   context.Context
	below *http.Transport

	mu      sync.Mutex
	reasons map[string]map[string]string // by host name and kind of challenge; guarded by mu
}

// RoundTrip reads the whole answer before it returns.
func (t *acmeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	stop := context.AfterFunc(t.ctx, func() { cancel(errors.New("the server ends")) })
	defer stop()
	resp, err := t.below.RoundTrip(r.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxACMEAnswer+1))
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	if len(body) > maxACMEAnswer {
		return nil, fmt.Errorf("the certificate authority answers with more than %d bytes", maxACMEAnswer)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	t.learn(body)
	return resp, nil
}

// learn takes the reasons from an answer, if it is an authorization (RFC 8555,
// section 7.1.4).
func (t *acmeTransport) learn(body []byte) {
	var authorization struct {
		Identifier struct{ Value string }
		Challenges []struct {
			Type  string
			Error struct{ Detail string }
		}
	}
	if json.Unmarshal(body, &authorization) != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range authorization.Challenges {
		if c.Error.Detail == "" {
			continue
		}
		host := authorization.Identifier.Value
		if t.reasons[host] == nil {
			if len(t.reasons) == maxHostnames {
				return // the authority speaks of names that nobody asked for
			}
			t.reasons[host] = make(map[string]string)
		}
		switch c.Type { // autocert answers these
		case "tls-alpn-01", "http-01":
			t.reasons[host][c.Type] = c.Error.Detail
		}
	}
}

// why says why challenges for host have failed since the last call.
func (t *acmeTransport) why(host string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	reasons := t.reasons[host]
	delete(t.reasons, host)
	var b strings.Builder
	for i, kind := range slices.Sorted(maps.Keys(reasons)) {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %+.300q", kind, reasons[kind])
	}
	return b.String()
}
