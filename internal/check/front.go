package check

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"turbotunnel/common/front"
	"turbotunnel/common/handshake"
	"turbotunnel/common/proxy"
	"turbotunnel/internal/scrub"
)

const (
	// stepTime is how long a step may take that a healthy path has done within a
	// second: three lost packets cost 7 s.
	stepTime = 15 * time.Second

	// addressTime is the least of it that each of several addresses has to be
	// connected to: one lost packet costs 1 s.
	addressTime = 3 * time.Second

	// innocentName is named in TLS to see whether the front's name is what is
	// blocked. It belongs to nobody (RFC 6761), and no list of a censor has it.
	innocentName = "www.example.com"

	// answerKept is how much of a foreign answer is read.
	answerKept = 64 << 10
)

// looks are tried, in this order, where a TLS handshake is blocked.
var looks = []string{"firefox", "chrome", "safari", "none"}

// A frontCheck looks at one front. One goroutine uses it.
type frontCheck struct {
	*Recorder
	ctx   context.Context
	way   front.Config
	key   handshake.PublicKey
	opts  *Options
	probe *front.Probe

	oddDNS  bool // DNS has said an address that no site of the web has
	asked   bool // DNS was asked
	addrs   []string
	via     string // the address that answered
	look    string // of TLS, that passes where the given one does not
	suspect *Verdict
	clock   time.Duration // how far this clock is behind the one of who answers
	down    int           // bytes a second
	trip    time.Duration
}

// run takes the steps until one is the last, and returns the verdict.
func (c *frontCheck) run() *Verdict {
	probe, err := front.NewProbe(c.way)
	if err != nil { // the Config was checked
		return &silence
	}
	c.probe = probe
	defer probe.Close()
	for _, step := range []struct {
		name string
		look func() (Finding, *Verdict)
	}{
		{"DNS", c.resolve},
		{"TCP", c.connect},
		{"TLS", c.secure},
		{"HTTP", c.exchange},
	} {
		var v *Verdict
		c.Take(step.name, func() (f Finding) {
			f, v = step.look()
			return f
		})
		if v != nil {
			return v
		}
	}
	return c.session()
}

// Take is Recorder.Take, until the check is told to end: what is under way then says
// nothing of the way.
func (c *frontCheck) Take(name string, look func() Finding) State {
	if c.ctx.Err() != nil {
		return Skipped
	}
	return c.Recorder.Take(name, func() Finding {
		f := look()
		if c.ctx.Err() != nil {
			f = Finding{State: Skipped, Text: "not finished"}
		}
		return f
	})
}

// limit is a context for one step.
func (c *frontCheck) limit() (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.ctx, stepTime)
}

// failed is the finding of a step that err ended.
func failed(err error) Finding {
	return Finding{State: Failed, Text: reason(err), Details: err.Error()}
}

// reason is why a step failed, without addresses.
func reason(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "no such name"
	case errors.As(err, &dns):
		return "DNS does not answer"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "no route"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "cut"
	}
	return scrub.Error(err)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (c *frontCheck) resolve() (Finding, *Verdict) {
	ctx, cancel := c.limit()
	defer cancel()
	var err error
	c.addrs, c.asked, err = c.probe.Resolve(ctx)
	switch {
	case err != nil && c.way.Proxy != nil:
		return failed(err), &proxyFails
	case err != nil:
		return failed(err), &noDNS
	case c.way.Proxy != nil:
		return Finding{State: Skipped, Text: "left to the proxy"}, nil
	case !c.asked:
		return Finding{State: Skipped, Text: "the address is given"}, nil
	}
	f := Finding{Text: plural(len(c.addrs), "address", "addresses"), Details: strings.Join(c.addrs, " ")}
	for _, addr := range c.addrs {
		if ap, err := netip.ParseAddrPort(addr); err == nil && front.IsOdd(ap.Addr()) && !isLocal(c.probe.Name()) {
			c.oddDNS = true
		}
	}
	if c.oddDNS {
		f.State = Odd
		f.Text += ", of a kind that no site of the web has"
	}
	return f, nil
}

// isLocal tells whether a name may well have an address of a private network.
func isLocal(name string) bool {
	if !strings.Contains(name, ".") {
		return true
	}
	for _, end := range []string{".localhost", ".local", ".lan", ".internal", ".home.arpa", ".test"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}

func (c *frontCheck) connect() (Finding, *Verdict) {
	var err error
	for i, addr := range c.addrs {
		ctx, cancel := context.WithTimeout(c.ctx, max(stepTime/time.Duration(len(c.addrs)), addressTime))
		err = c.probe.Connect(ctx, addr)
		cancel()
		if err == nil {
			c.via = addr
			f := Finding{Text: "connected", Details: addr}
			if i > 0 {
				f.State, f.Text = Odd, fmt.Sprintf("connected, but not to the first %s", plural(i, "address", "addresses"))
			}
			return f, nil
		}
		if c.ctx.Err() != nil {
			break
		}
	}
	f := failed(err)
	var refusal *proxy.Error
	switch {
	case errors.As(err, &refusal) && refusal.Unreachable:
		f.Text = "the proxy cannot reach the front"
		return f, &blockedBeyondProxy
	case errors.As(err, &refusal):
		f.Text = "the proxy refuses"
		return f, &proxyFails
	case c.way.Proxy != nil:
		return f, &proxyFails
	case c.portalAnswers(c.addrs[0]):
		return f, &portal
	case c.oddDNS:
		return f, &dnsLies
	case c.way.Front == "":
		return f, &unreachable
	}
	return f, &blocked
}

func (c *frontCheck) secure() (Finding, *Verdict) {
	if !c.probe.Secure() {
		return Finding{State: Skipped, Text: "the URL begins with http:// and not https://"}, nil
	}
	ctx, cancel := c.limit()
	defer cancel()
	protocol, err := c.probe.Handshake(ctx)
	if err == nil {
		version := "HTTP/1.1"
		if protocol == "h2" {
			version = "HTTP/2"
		}
		f := Finding{
			Text:    fmt.Sprintf("%s, as %s, by %s; the certificate is right", version, shown(looksOf(c.way.UTLS)[0]), c.nameOf(ctx)),
			Details: c.probe.Name(),
		}
		if c.way.LookupECH != nil && !c.probe.Encrypts(ctx) {
			f.State = Odd
		}
		return f, nil
	}
	f := failed(err)
	if v := c.certificate(err, &f); v != nil {
		return f, v
	}
	if c.oddDNS {
		return f, &dnsLies
	}
	return c.blockedTLS(f, err)
}

// looksOf are the looks that a line names by utls=, in their order.
func looksOf(utls string) []string {
	if utls == "" {
		return []string{"chrome"}
	}
	return strings.Split(strings.ReplaceAll(utls, " ", ""), ",")
}

// shown is a look as a report may say it: the path of a file may name its user.
func shown(look string) string {
	if strings.HasPrefix(look, "file:") {
		return "a recorded browser"
	}
	return look
}

// shownAll are looks as a report may say them.
func shownAll(looks []string) string {
	var all []string
	for _, look := range looks {
		all = append(all, shown(look))
	}
	return strings.Join(all, ",")
}

// nameOf says which name stands in the handshake, without saying it.
func (c *frontCheck) nameOf(ctx context.Context) string {
	switch {
	case c.probe.Encrypts(ctx):
		return "a name that is encrypted"
	case c.way.LookupECH != nil:
		return "a name in the clear, since DNS has no key to encrypt it"
	case c.way.Front != "":
		return "the front's name"
	}
	return "the URL's name"
}

// certificate judges a handshake that has failed because of the certificate.
func (c *frontCheck) certificate(err error, f *Finding) *Verdict {
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var authority x509.UnknownAuthorityError
	switch {
	case front.RefusesECH(err):
		f.Text = "the front does not take the encrypted name"
		return &echFails
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		f.Text = "the certificate is not valid at the time that this clock shows"
		return &clockOffTLS
	case errors.As(err, &host):
		f.Text = "the certificate is for another name"
		if c.portalAnswers(c.via) {
			return &portal
		}
		return &dnsLies
	case errors.As(err, &authority), errors.As(err, &invalid):
		f.Text = "nobody vouches for the certificate"
		switch {
		case c.portalAnswers(c.via):
			return &portal
		case c.oddDNS:
			return &dnsLies
		}
		return &intercepted
	}
	return nil
}

// portalAnswers tells whether who answers HTTP in clear at an address of the front is
// a captive portal: to the same place it leads those who ask for the front, which has
// a site of its own, and those who ask for a name that is not there.
func (c *frontCheck) portalAnswers(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil || c.way.Proxy != nil {
		return false
	}
	to := c.ledAway(host, innocentName)
	if c.way.ECH != nil || c.way.LookupECH != nil { // nor is the name shown here
		return to != ""
	}
	return to != "" && to == c.ledAway(host, c.probe.Name())
}

// ledAway is where a host leads those who ask it for another one's first page in
// clear; "" if that is nowhere.
func (c *frontCheck) ledAway(host, name string) string {
	way := c.way
	way.URL = &url.URL{Scheme: "http", Host: name}
	way.Addr, way.Front, way.ECH, way.LookupECH = net.JoinHostPort(host, "80"), "", nil, nil
	f, err := front.New(way)
	if err != nil {
		return ""
	}
	defer f.Close()
	ctx, cancel := c.limit()
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, way.URL.String()+"/", nil)
	if err != nil {
		return ""
	}
	resp, err := f.RoundTrip(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	return leadsAway(resp, name)
}

// leadsAway is where the answer of a captive portal leads: it sends the browser to
// another host, or says what it is (RFC 6585 section 6). "" for any other answer.
func leadsAway(resp *http.Response, name string) string {
	if resp.StatusCode == http.StatusNetworkAuthenticationRequired {
		return "a portal"
	}
	to, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || resp.StatusCode/100 != 3 || sameSite(to.Hostname(), name) {
		return ""
	}
	return to.Hostname()
}

// sameSite tells whether two names are one, but for a www in front.
func sameSite(a, b string) bool {
	return strings.EqualFold(strings.TrimPrefix(a, "www."), strings.TrimPrefix(b, "www."))
}

// blockedTLS finds out what it is of a handshake that is blocked, and has failed for
// err: the name, the look, or all of it.
func (c *frontCheck) blockedTLS(f Finding, err error) (Finding, *Verdict) {
	named := looksOf(c.way.UTLS)
	for i, look := range slices.Concat(named[1:], looks) {
		if look == named[0] || c.shake("", look) < agreed {
			continue
		}
		c.look = look
		f.Text += fmt.Sprintf(" as %s; answered when it looks like %s", shown(named[0]), shown(look))
		if i < len(named)-1 { // the tunnel will use it, too
			f.State = Odd
			return f, nil
		}
		return f, &helloBlocked
	}
	if c.shake(innocentName, "") > cameTo(err) {
		f.Text += "; answered when another name is named"
		ctx, cancel := c.limit()
		defer cancel()
		if c.probe.Encrypts(ctx) {
			return f, &echFails
		}
		return f, &sniBlocked
	}
	f.Text += "; by another name or look, too"
	if c.portalAnswers(c.via) {
		return f, &portal
	}
	return f, &tlsFails
}

// How far a handshake has come.
const (
	unanswered = iota // nothing came, or no TLS
	alerted           // an alert: somebody has read the ClientHello
	certified         // a certificate, which is not trusted
	agreed
)

// cameTo tells how far a handshake has come that has ended with err.
func cameTo(err error) int {
	var host x509.HostnameError
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var op *net.OpError
	switch {
	case err == nil:
		return agreed
	case errors.As(err, &host), errors.As(err, &authority), errors.As(err, &invalid):
		return certified
	case errors.As(err, &op) && op.Op == "remote error": // as crypto/tls has it
		return alerted
	}
	return unanswered
}

// shake tells how far a handshake by a name and a look comes; "" stands for those of
// the line. A name that shall be encrypted is not shown in clear for it.
func (c *frontCheck) shake(name, look string) int {
	p, err := c.probe.As(name, look, c.via)
	if err != nil {
		return unanswered
	}
	defer p.Close()
	ctx, cancel := c.limit()
	defer cancel()
	if p.Connect(ctx, c.via) != nil {
		return unanswered
	}
	_, err = p.Handshake(ctx)
	return cameTo(err)
}

// exchange makes one request, which nobody can tell from a first message.
func (c *frontCheck) exchange() (Finding, *Verdict) {
	c.probe.Close()
	fr, err := front.New(c.way)
	if err != nil {
		return failed(err), &silence
	}
	defer fr.Close()
	ctx, cancel := c.limit()
	defer cancel()
	begun := time.Now()
	resp, err := fr.RoundTrip(strangersRequest(ctx, c.way.URL))
	if err != nil {
		f := failed(err)
		if c.oddDNS {
			return f, &dnsLies
		}
		return f, &silence
	}
	c.trip = time.Since(begun)
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, answerKept)) // it is not looked at
	return c.judge(resp)
}

// judge says what follows from the answer to a stranger's request.
func (c *frontCheck) judge(resp *http.Response) (Finding, *Verdict) {
	if t, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		c.clock = time.Until(t).Round(time.Second)
	}
	f := Finding{
		Text:    fmt.Sprintf("%s, status %d", strings.TrimSuffix(resp.Proto, ".0"), resp.StatusCode),
		Details: fmt.Sprintf("Server %q, Content-Type %q, Location %q", resp.Header.Get("Server"), resp.Header.Get("Content-Type"), resp.Header.Get("Location")),
	}
	clear := !c.probe.Secure()
	switch {
	case resp.StatusCode == http.StatusMisdirectedRequest:
		f.State = Failed
		f.Text += ": fronting is refused"
		return f, &frontingRefused
	case leadsAway(resp, c.way.URL.Hostname()) != "" && (clear || resp.StatusCode == http.StatusNetworkAuthenticationRequired):
		f.State = Failed
		f.Text += ", which leads to another site"
		return f, &portal
	case (resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusBadRequest) && c.fronted() && c.refusesHosts(resp):
		f.State = Odd
		f.Text += ", which the front's own host does not get, and another one does"
		c.suspect = &frontingRefused
	case resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented:
		f.State = Odd
		f.Text += ": the gateway cannot reach the server"
		c.suspect = &serverDown
	case clear && resp.StatusCode == http.StatusOK && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html"):
		f.State = Odd
		f.Text += ", a page, which no site answers to what was sent"
		c.suspect = &portal
	case c.fronted():
		f.Text += "; fronting is let through"
	}
	return f, nil
}

// fronted tells whether the Host header differs from the name in TLS.
func (c *frontCheck) fronted() bool {
	return c.probe.Secure() && !strings.EqualFold(c.probe.Name(), c.way.URL.Hostname())
}

// refusesHosts tells whether the answer to a stranger's request is one that the CDN
// gives for every host but the one that TLS names. The server's own site may refuse
// strangers likewise: so a host is asked for, too, that no server of a CDN has, and
// for the front's own, which must be let through. Neither is told the path.
//
// It is a suspicion, which counts where the server does not answer under its key.
func (c *frontCheck) refusesHosts(refusal *http.Response) bool {
	other := c.answerFor(innocentName)
	if other == nil || other.StatusCode != refusal.StatusCode || other.Header.Get("Server") != refusal.Header.Get("Server") ||
		other.Header.Get("Content-Type") != refusal.Header.Get("Content-Type") {
		return false
	}
	own := c.answerFor(c.probe.Name())
	return own != nil && own.StatusCode != refusal.StatusCode
}

// answerFor is what the front answers to a stranger's request for a host, without its
// body; nil: nothing.
func (c *frontCheck) answerFor(host string) *http.Response {
	way := c.way
	way.URL = &url.URL{Scheme: c.way.URL.Scheme, Host: host}
	if port := c.way.URL.Port(); port != "" {
		way.URL.Host = net.JoinHostPort(host, port)
	}
	fr, err := front.New(way)
	if err != nil {
		return nil
	}
	defer fr.Close()
	ctx, cancel := c.limit()
	defer cancel()
	resp, err := fr.RoundTrip(strangersRequest(ctx, way.URL))
	if err != nil {
		return nil
	}
	resp.Body.Close()
	return resp
}

// strangersRequest has the size and the path of a first message, and means nothing.
func strangersRequest(ctx context.Context, server *url.URL) *http.Request {
	size, _ := rand.Int(rand.Reader, big.NewInt(1500)) // never fails
	random := make([]byte, 24+2048+int(size.Int64()))
	rand.Read(random) // never fails
	u := strings.TrimSuffix(server.String(), "/") + "/" + base64.RawURLEncoding.EncodeToString(random[:24])
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, bytes.NewReader(random[24:]))
	if err != nil {
		panic(err) // the URL was checked
	}
	return req
}
