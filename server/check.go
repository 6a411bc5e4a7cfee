package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"turbotunnel/common/front"
	"turbotunnel/common/tunnel"
	"turbotunnel/internal/check"
	"turbotunnel/internal/ptproc"
	"turbotunnel/internal/scrub"
)

const (
	// checkTime bounds each thing that is looked at on this machine or asked of a
	// web server.
	checkTime = 15 * time.Second

	// renewTime is how long a certificate must still be valid: whoever renews it,
	// does so a month before its end as a rule.
	renewTime = 14 * 24 * time.Hour

	// pageKept is how much of a stranger's page is compared.
	pageKept = 1 << 20
)

// The verdicts on a server's configuration. Their exit codes stand in the manual
// page; from 30 on the server works.
var (
	soundServer   = check.Verdict{Name: "works", Exit: 0, Text: "It works, as far as can be seen from here."}
	wrongSettings = check.Verdict{Name: "settings", Exit: 10, Text: "The flags cannot be used together."}
	wrongState    = check.Verdict{Name: "state", Exit: 11, Text: "The state folder or the key in it cannot be used."}
	wrongCert     = check.Verdict{Name: "certificate", Exit: 12, Text: "Clients will refuse the certificate."}
	notServing    = check.Verdict{Name: "not-serving", Exit: 13, Text: "The server does not run, or listens elsewhere."}
	noTarget      = check.Verdict{Name: "target", Exit: 14, Text: "Nobody takes the streams: what FORWARD names does not answer."}
	noWay         = check.Verdict{Name: "url", Exit: 15, Text: "Clients cannot use the URL."}
	notAlike      = check.Verdict{Name: "not-alike", Exit: 16, Text: "Strangers can tell the server's path from the rest of the site."}
	noSite        = check.Verdict{Name: "decoy", Exit: 17, Text: "Strangers see no site."}
	withNotes     = check.Verdict{Name: "notes", Exit: 30, Text: "It works, with something to mend."}
)

// serverVerdicts are all of them, the gravest first: what comes later may be for
// what has come before.
var serverVerdicts = []*check.Verdict{
	&wrongSettings, &wrongState, &wrongCert, &notServing, &noTarget, &noWay, &noSite, &notAlike, &withNotes, &soundServer,
}

// A serverCheck looks at a server's configuration, from the inside to the outside.
// One goroutine uses it.
type serverCheck struct {
	*check.Recorder
	ctx             context.Context
	set             settings
	listen, forward string // empty: under tor
	limit           uint64 // of open files
	roots           *x509.CertPool

	key   *tunnel.Key // nil: none was found
	mends []string
	worst *check.Verdict
}

// serverReport is what -json shows.
type serverReport struct {
	Verdict *check.Verdict      `json:"verdict"`
	Mend    []string            `json:"mend,omitempty"`
	Steps   []check.Step        `json:"steps"`
	URL     *check.BridgeReport `json:"url,omitempty"` // as a client sees it
}

// runCheck checks what the command line says, and returns the verdict's exit code.
func runCheck(p *ptproc.Process, set settings, args []string) int {
	printer := &check.Printer{Out: os.Stdout, Details: set.unsafeLogging}
	var observer check.Observer = printer
	if set.json {
		printer.Out, observer = io.Discard, check.Silent{}
	}
	c := &serverCheck{
		Recorder: &check.Recorder{Observer: observer, Secret: set.unsafeLogging},
		ctx:      p.Stopping(), set: set, limit: ptproc.DescriptorLimit(),
	}
	if len(args) == 2 {
		c.listen, c.forward = args[0], args[1]
	}
	r := c.run()
	if p.Stopping().Err() != nil {
		p.Say("the check was not finished")
		return 1
	}
	c.say(printer, r)
	if set.json {
		if err := check.WriteJSON(os.Stdout, r); err != nil {
			p.Say("%v", err)
			return 1
		}
	}
	return r.Verdict.Exit
}

// run takes all steps.
func (c *serverCheck) run() *serverReport {
	if c.listen != "" && c.set.tlsCert == "" && c.set.tlsKey == "" && c.set.acmeHostnames == "" {
		c.set.disableTLS = true
	}
	if c.set.stateDir == "" && c.listen == "" {
		c.set.stateDir = os.Getenv("TOR_PT_STATE_LOCATION")
	}
	c.worst = &soundServer
	c.Title("This machine")
	c.step("settings", c.settings)
	c.step("state", c.state)
	c.step("open files", c.files)
	c.step("certificate", c.certificate)
	c.step("listener", c.listener)
	c.step("target", c.target)
	r := &serverReport{}
	switch way := c.way(); {
	case way == nil:
		c.Title("From outside")
		c.step("url", func() finding { return skipped("-url does not say how clients reach the server") })
	case c.worst == &notServing && c.set.url == "":
		c.Title("From outside")
		c.step("url", func() finding { return skipped("where the server shall listen nobody does") })
	default:
		if r.URL = c.outside(way); c.answered(r.URL, way) {
			c.Title("As a stranger sees it")
			c.step("site", func() finding { return c.site(way) })
			c.step("alike", func() finding { return c.alike(way) })
		}
	}
	r.Verdict, r.Mend, r.Steps = c.worst, c.mends, c.Steps
	return r
}

// say shows the verdict and what to mend.
func (c *serverCheck) say(p *check.Printer, r *serverReport) {
	p.Verdict(r.Verdict)
	for _, m := range r.Mend {
		fmt.Fprintf(p.Out, "- %s\n", m)
	}
}

// A finding is a check.Finding, and what follows.
type finding struct {
	check.Finding
	verdict *check.Verdict // where it failed
	mend    string
}

// step takes a step and keeps what follows from it.
func (c *serverCheck) step(name string, look func() finding) {
	var f finding
	c.Take(name, func() check.Finding {
		f = look()
		return f.Finding
	})
	c.follows(f)
}

// follows keeps what follows from a finding.
func (c *serverCheck) follows(f finding) {
	if f.mend != "" {
		c.mends = append(c.mends, f.mend)
	}
	v := f.verdict
	if v == nil && f.State == check.Odd && f.mend != "" {
		v = &withNotes
	}
	for _, graver := range serverVerdicts {
		if graver == c.worst {
			return
		}
		if graver == v {
			c.worst = v
			return
		}
	}
}

func good(format string, args ...any) finding {
	return finding{Finding: check.Finding{Text: fmt.Sprintf(format, args...)}}
}

func skipped(text string) finding {
	return finding{Finding: check.Finding{State: check.Skipped, Text: text}}
}

func odd(text, mend string) finding {
	return finding{Finding: check.Finding{State: check.Odd, Text: text}, mend: mend}
}

// bad is a step that err has ended. The error says what to do, as all of the
// program's do.
func bad(text string, err error, v *check.Verdict) finding {
	return finding{Finding: check.Finding{State: check.Failed, Text: text, Details: err.Error()}, verdict: v, mend: scrub.Error(err)}
}

// settings tells whether the flags fit together.
func (c *serverCheck) settings() finding {
	_, err := parsePrefixes(c.set.trustedProxies)
	if err == nil {
		err = checkTLS(c.set)
	}
	if err == nil {
		_, err = ptproc.MemoryLimit(c.set.memoryLimit, leastMemory)
	}
	if err == nil && c.set.proxyProtocol && c.set.trustedProxies == "" {
		err = errors.New("-proxy-protocol needs -trusted-proxies")
	}
	if err == nil && c.set.url != "" {
		err = bridgeLine{url: c.set.url, fronts: c.set.fronts}.check()
	}
	if err == nil && c.forward != "" {
		err = checkForward(c.forward)
	}
	switch {
	case err != nil:
		return bad("cannot be used", err, &wrongSettings)
	case c.set.disableTLS && c.set.trustedProxies == "" && c.set.url != "":
		return odd("no proxy is trusted", "Name the proxy in front with -trusted-proxies: without it its clients cannot be told from each other.")
	}
	return good("fit together")
}

// state looks at the state folder, without making anything that stays.
func (c *serverCheck) state() finding {
	dir := c.set.stateDir
	if dir == "" {
		return odd("none, and so no key", "Give -state-dir: without a key whoever finds the server can use it, and whoever is in between can read along.")
	}
	key, err := readKey(filepath.Join(dir, keyFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(dir); err != nil {
			return bad("there is no such folder", errors.New("name the state folder of the running server, or start the server once, which makes it"), &wrongState)
		}
		if err := c.writable(dir); err != nil {
			return bad("no key, and none can be made", fmt.Errorf("the state folder: %w", err), &wrongState)
		}
		return good("no key yet; the first start makes one")
	case err != nil:
		return bad("the key cannot be used", fmt.Errorf("the server's key: %w", err), &wrongState)
	}
	c.key = key
	if err := c.writable(dir); err != nil {
		return odd("a key; nothing can be written", "Let the server write into its state folder: else first messages that came before a restart may be let in again after it.")
	}
	return good("a key, and room to write")
}

// writable tells whether a file can be made in dir.
func (c *serverCheck) writable(dir string) error {
	tmp, err := writeTemporary(dir, nil)
	if err != nil {
		return explainWrite(withoutPath(err))
	}
	return os.Remove(tmp)
}

// files compares the limit of open files with what a bridge wants.
func (c *serverCheck) files() finding {
	b := newBudget(c.limit)
	text := fmt.Sprintf("enough for %d connections and %d streams", b.conns, b.streams)
	if b.isSmall() {
		return odd(text, "Raise the limit of open files (LimitNOFILE= in a systemd unit, ulimit -n in a shell); 30000 are good. What counts is the limit where the server is started.")
	}
	return good("%s", text)
}

// certificate looks at the files of the certificate.
func (c *serverCheck) certificate() finding {
	switch {
	case c.set.disableTLS:
		return skipped("the proxy in front does TLS")
	case c.set.acmeHostnames != "":
		return skipped("got by ACME; seen from outside below")
	case c.set.tlsCert == "" || c.set.tlsKey == "":
		return skipped("none is named")
	}
	pair, err := tls.LoadX509KeyPair(c.set.tlsCert, c.set.tlsKey)
	if err != nil {
		return bad("cannot be read", err, &wrongCert)
	}
	left := time.Until(pair.Leaf.NotAfter)
	switch {
	case time.Now().Before(pair.Leaf.NotBefore):
		return bad("not valid yet", errors.New("the certificate is not valid yet: set the clock, or get another one"), &wrongCert)
	case left < 0:
		return bad("expired", errors.New("the certificate has expired: renew it; the server takes the new files by itself"), &wrongCert)
	}
	days := int(left.Hours() / 24)
	if left < renewTime {
		return odd(fmt.Sprintf("valid for %d more days", days), "Renew the certificate soon; the server takes the new files by itself.")
	}
	if u, err := url.Parse(c.set.url); err == nil && u.Hostname() != "" && pair.Leaf.VerifyHostname(u.Hostname()) != nil {
		return odd("not for the URL's name", "The certificate is not for the host of -url. That is right only behind a CDN that asks for another name.")
	}
	return good("valid for %d more days", days)
}

// listener tells whether somebody listens where the server shall.
func (c *serverCheck) listener() finding {
	switch c.listen {
	case "":
		return skipped("tor says where; give LISTEN and FORWARD to look")
	case systemdWord:
		return skipped("systemd holds the socket")
	}
	if err := c.dial(c.listen); err != nil {
		return bad("nobody listens", fmt.Errorf("start the server, and see its log if it does not stay: %w", err), &notServing)
	}
	return good("somebody listens")
}

// target tells whether somebody takes the streams.
func (c *serverCheck) target() finding {
	if c.forward == "" {
		return skipped("tor's ORPort, which tor tells the server itself")
	}
	if err := c.dial(c.forward); err != nil {
		return bad("does not answer", fmt.Errorf("start what listens at FORWARD, or name another address: %w", err), &noTarget)
	}
	return good("somebody listens")
}

// dial connects, and no more.
func (c *serverCheck) dial(address string) error {
	d := net.Dialer{Timeout: checkTime}
	network, addr := ptproc.Network(address)
	conn, err := d.DialContext(c.ctx, network, addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// way is how the server is reached from outside, or, where -url does not say it, at
// the address where it listens in clear. Nil: that is not known.
func (c *serverCheck) way() *front.Config {
	text := c.set.url
	if network, addr := ptproc.Network(c.listen); text == "" && c.set.disableTLS && network == "tcp" && addr != systemdWord {
		text = "http://" + addr // of tor's, there is none
	}
	if text == "" || (bridgeLine{url: text}).check() != nil {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil
	}
	return &front.Config{URL: u, RootCAs: c.roots}
}

// outside checks the URL as a client does, with the server's own key.
func (c *serverCheck) outside(way *front.Config) *check.BridgeReport {
	cfg := tunnel.Config{URL: way.URL.String(), Fronts: c.set.fronts}
	if c.key != nil {
		cfg.Key = c.key.Public()
	}
	c.Title("As a client sees it")
	observer := c.Observer
	if !strings.Contains(c.set.fronts, ",") {
		observer = untitled{observer}
	}
	r, err := check.Bridge(c.ctx, cfg, check.Options{Secret: c.set.unsafeLogging, RootCAs: c.roots}, observer)
	if err != nil {
		c.follows(bad("cannot be checked", err, &noWay))
		return nil
	}
	switch v := r.Verdict; {
	case v.Name == "wrong-key":
		c.follows(finding{mend: "What answers at the URL is not this server: let the proxy or CDN pass all requests of the URL's host on to it, unchanged and uncached, and compare -state-dir with the running server's.", verdict: &noWay})
	case v.Name == "server-down":
		c.follows(finding{mend: "The proxy or CDN cannot reach the server: compare its upstream address with LISTEN, and see whether the server runs.", verdict: &noWay})
	case v.Name == "dns-lies":
		c.follows(finding{mend: "On this machine the URL's name, or a front's where -fronts names some, leads to an address that is not of the web, as its own name in /etc/hosts does, or to somebody else, and the server does not answer there: see whether it runs, and what the name's DNS entry is. On another computer turbotunnel-client -check says what clients see.", verdict: &noWay})
	case !v.Works():
		c.follows(finding{mend: "From here the URL cannot be used: see its DNS entry, the firewall, and what does TLS in front. A client would be told: " + v.Text, verdict: &noWay})
	case v.Exit != 0 && v.Name != "held-back":
		f := odd("", v.Text+" "+v.Mend)
		c.follows(f)
	}
	for _, f := range r.Fronts {
		if r.Verdict.Works() && !f.Verdict.Works() {
			c.follows(odd("", fmt.Sprintf("Number %d of -fronts cannot be used from here. A client would be told: %s", f.Number, f.Verdict.Text)))
		}
	}
	if held(r, "answers") {
		c.follows(odd("", "The proxy or CDN holds answers back until they are complete, which costs speed: turn off its buffering (proxy_buffering off of nginx)."))
	}
	if held(r, "uploads") {
		c.follows(odd("", "The proxy or CDN holds uploads back until they are complete, which costs speed: have it pass them on while they come (proxy_request_buffering off of nginx)."))
	}
	return r
}

// answered tells whether somebody has answered HTTP at the URL, and has way lead there
// by the first front that did.
func (c *serverCheck) answered(r *check.BridgeReport, way *front.Config) bool {
	if r == nil {
		return false
	}
	for i, f := range r.Fronts {
		for _, s := range f.Steps {
			if s.Name == "HTTP" && s.State != check.Failed {
				way.Front = strings.TrimSpace(strings.Split(c.set.fronts, ",")[i])
				return true
			}
		}
	}
	return false
}

// held tells whether what is so called was seen to be held back: answers, or uploads.
func held(r *check.BridgeReport, what string) bool {
	for _, f := range r.Fronts {
		for _, s := range f.Steps {
			if s.Name == what && s.State == check.Odd {
				return true
			}
		}
	}
	return false
}

// untitled leaves the titles away.
type untitled struct{ check.Observer }

// Title implements check.Observer.
func (untitled) Title(string) {}

// site asks for the first page, as a stranger would.
func (c *serverCheck) site(way *front.Config) finding {
	root := *way.URL
	root.Path = "/"
	p, err := c.stranger(way, http.MethodGet, root.String())
	if err != nil {
		return bad("no answer", err, &noSite)
	}
	switch {
	case p.status >= 500:
		return bad(fmt.Sprintf("status %d", p.status), errors.New("the first page is an error: see whether -decoy can be reached, and the proxy's upstream"), &noSite)
	case c.set.decoy == "":
		return good("status %d: the placeholder, unless the proxy has a site", p.status)
	}
	return good("status %d", p.status)
}

// alike compares what strangers get on and off the server's path.
func (c *serverCheck) alike(way *front.Config) finding {
	const unlikely = "/6vXq2m9TzB/kW3nR8sYpL1" // on no site
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		on, err := c.stranger(way, method, strings.TrimSuffix(way.URL.String(), "/")+unlikely)
		if err != nil {
			return bad("no answer", err, &notAlike)
		}
		elsewhere := *way.URL
		elsewhere.Path = "/q7Jd" + unlikely
		off, err := c.stranger(way, method, elsewhere.String())
		if err != nil {
			return bad("no answer", err, &notAlike)
		}
		if what := on.differs(off); what != "" {
			return bad(what+" differs between the server's path and another one", errors.New("let the proxy or CDN pass all requests of the host to the server, not those of one folder, and give -decoy the site"), &notAlike)
		}
	}
	return good("answers on and off the server's path are alike")
}

// A page is what a stranger gets.
type page struct {
	status int
	header http.Header
	body   []byte
}

// differs says what differs between pages, without what differs each time.
func (p *page) differs(q *page) string {
	switch {
	case p.status != q.status:
		return fmt.Sprintf("the status (%d, %d)", p.status, q.status)
	case !bytes.Equal(p.body, q.body):
		return "the page"
	}
	for _, pair := range [][2]*page{{p, q}, {q, p}} {
		for name, values := range pair[0].header {
			other, both := pair[1].header[name]
			if !both || settled(name) && strings.Join(values, ",") != strings.Join(other, ",") {
				return "the header " + name
			}
		}
	}
	return ""
}

// settled tells whether a header is the same in answers that are alike. Of others,
// such as the date and a CDN's number for the request, it is enough that they are
// there.
func settled(name string) bool {
	switch name {
	case "Server", "Content-Type", "Content-Length", "Cache-Control", "Allow", "Connection", "Via", "X-Powered-By":
		return true
	}
	return false
}

// stranger makes a request that no client makes.
func (c *serverCheck) stranger(way *front.Config, method, target string) (*page, error) {
	f, err := front.New(*way)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(c.ctx, checkTime)
	defer cancel()
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(strings.Repeat("x", 500))
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	resp, err := f.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, pageKept))
	if err != nil {
		return nil, err
	}
	// A page may repeat what it was asked for.
	text = bytes.ReplaceAll(text, []byte(req.URL.Path), nil)
	return &page{resp.StatusCode, resp.Header, text}, nil
}
