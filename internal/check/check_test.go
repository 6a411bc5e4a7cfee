package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/check/checktest"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// TestVerdicts: each fault of a path has its verdict, and its text.
func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(r *rig)
		want  *Verdict
	}{
		{"works", func(*rig) {}, &works},
		{"clear", func(r *rig) { r.cfg.URL, r.cfg.Fronts = "http://"+originName+"/secret-path", "" }, &works},
		{"held back", func(r *rig) { r.handler = holdBack(r.handler) }, &heldBack},
		{"uploads held back", func(r *rig) { r.handler = limitBodies(r.handler, 64<<20) }, &heldBack},
		{"stalls", func(r *rig) { r.handler, r.opts.tripTime = onlyFirst(r.handler, 2), time.Second }, &stalls},
		{"no name", func(r *rig) {
			r.addrs, r.dnsErr = nil, &net.DNSError{Err: "no such host", Name: frontName, IsNotFound: true}
		}, &noDNS},
		{"no name by doh", func(r *rig) { r.resolve(nil) }, &noDoH},
		{"dns lies by doh", func(r *rig) {
			r.resolve(nil, siteAddr)
			r.names = []string{resolverName, "block.page"}
		}, &dohLies},
		{"dns lies by a private address", func(r *rig) {
			r.addrs = []netip.Addr{netip.MustParseAddr("10.10.34.35")}
			r.opts.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
		}, &dnsLies},
		{"dns lies by another site", func(r *rig) { r.names = []string{"block.page"} }, &dnsLies},
		{"blocked", func(r *rig) {
			r.opts.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
		}, &blocked},
		{"server unreachable", func(r *rig) {
			r.cfg.URL, r.cfg.Fronts = "https://"+originName+"/secret-path", ""
			r.opts.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
		}, &unreachable},
		{"proxy", func(r *rig) {
			r.opts.Proxy = &url.URL{Scheme: "http", Host: "proxy.secret:3128"}
			r.opts.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
		}, &proxyFails},
		{"proxy refuses", func(r *rig) { r.byProxy(2) }, &proxyFails},
		{"front unreachable by the proxy", func(r *rig) { r.byProxy(4) }, &blockedBeyondProxy},
		{"old server", func(r *rig) { r.handler = oldServer(r, "kcp-smux") }, &works},
		{"no engine", func(r *rig) { r.handler = oldServer(r, "quic") }, &refused},
		{"sni blocked", func(r *rig) {
			r.wrap = func(c net.Conn, _ string) (net.Conn, error) { return &cutter{Conn: c, text: frontName}, nil }
		}, &sniBlocked},
		{"hello blocked", func(r *rig) {
			// The number of the extension that Chrome alone has, with its length.
			r.wrap = func(c net.Conn, _ string) (net.Conn, error) { return &cutter{Conn: c, text: "\xca\x34\x00\xba"}, nil }
		}, &helloBlocked},
		{"hello blocked and another named", func(r *rig) {
			r.cfg.UTLS = "chrome,safari"
			r.wrap = func(c net.Conn, _ string) (net.Conn, error) { return &cutter{Conn: c, text: "\xca\x34\x00\xba"}, nil }
		}, &works},
		{"tls broken", func(r *rig) {
			r.wrap = func(c net.Conn, _ string) (net.Conn, error) { return &cutter{Conn: c, text: "\x16\x03"}, nil }
		}, &tlsFails},
		{"intercepted", func(r *rig) { r.signer = newAuthority(r.t) }, &intercepted},
		{"portal behind TLS", func(r *rig) {
			r.signer = newAuthority(r.t)
			r.clear = status(http.StatusFound, "Location", "http://login.portal/")
		}, &portal},
		{"portal by redirect", func(r *rig) {
			r.cfg.URL, r.cfg.Fronts = "http://"+originName+"/secret-path", ""
			r.handler = status(http.StatusFound, "Location", "http://login.portal/")
		}, &portal},
		{"portal by page", func(r *rig) {
			r.cfg.URL, r.cfg.Fronts = "http://"+originName+"/secret-path", ""
			r.handler = status(http.StatusOK, "Content-Type", "text/html")
		}, &portal},
		{"fronting refused", func(r *rig) { r.handler = status(http.StatusMisdirectedRequest) }, &frontingRefused},
		{"fronting refused by 403", func(r *rig) {
			r.handler = byHost(status(http.StatusNotFound), status(http.StatusForbidden), status(http.StatusForbidden))
		}, &frontingRefused},
		{"site that refuses strangers", func(r *rig) {
			r.handler = byHost(status(http.StatusNotFound), status(http.StatusForbidden), status(http.StatusForbidden, "Server", "cdn"))
		}, &wrongKey},
		{"front that refuses strangers", func(r *rig) { r.handler = status(http.StatusForbidden) }, &wrongKey},
		{"site behind a front that lets hosts through", func(r *rig) {
			r.handler = byHost(status(http.StatusNotFound), status(http.StatusForbidden), status(http.StatusNotFound))
		}, &wrongKey},
		{"server whose decoy refuses strangers", func(r *rig) {
			refuses := status(http.StatusForbidden)
			r.server.Close()
			r.server = tunnel.NewServer(tunnel.ServerConfig{Key: r.key, Decoy: refuses})
			r.handler = byHost(status(http.StatusNotFound), r.server, refuses)
		}, &works},
		{"wrong key", func(r *rig) { r.cfg.Key = tunnel.NewKey().Public() }, &wrongKey},
		{"another site", func(r *rig) { r.handler = status(http.StatusOK, "Content-Type", "text/html") }, &wrongKey},
		{"server down", func(r *rig) { r.handler = status(http.StatusBadGateway) }, &serverDown},
		{"old certificate", func(r *rig) { r.until = time.Now().Add(-time.Minute) }, &clockOffTLS},
		{"clock off", func(r *rig) {
			h := r.handler
			r.handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Date", time.Now().Add(72*time.Hour).UTC().Format(http.TimeFormat))
				h.ServeHTTP(w, req)
			})
		}, &clockOff},
		{"body limit", func(r *rig) { r.handler = limitBodies(r.handler, 16<<10) }, &bodyLimit},
		{"no body passes", func(r *rig) { r.handler = limitBodies(r.handler, 1<<10) }, &bodiesRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			c.fault(r)
			r.start()
			report, text := r.check()
			if report.Verdict != c.want {
				t.Errorf("verdict %q, want %q", report.Verdict.Name, c.want.Name)
			}
			for _, secret := range []string{"secret", siteAddr, "127.0.0.1", r.key.Public(), r.cfg.Key} {
				if strings.Contains(text, secret) {
					t.Errorf("%q is shown", secret)
				}
			}
			checktest.Golden(t, "testdata", c.name, text)
		})
	}
}

// With leave, everything is shown.
func TestSecret(t *testing.T) {
	r := newRig(t)
	r.opts.Secret = true
	r.start()
	report, text := r.check()
	if !strings.Contains(text, siteAddr) || report.Best != r.cfg.Line() || report.Fronts[0].Name != frontName {
		t.Errorf("%+v\n%s", report, text)
	}
}

// The line that works best has the fronts that work, the best first, and a look that
// passes.
func TestBestLine(t *testing.T) {
	cfg := tunnel.Config{URL: "https://origin.secret/", Key: tunnel.NewKey().Public(), Fronts: "a.secret,b.secret,c.secret,d.secret"}
	front := func(n int, v *Verdict, down int, look string) *FrontReport {
		return &FrontReport{Number: n, Verdict: v, down: down, look: look}
	}
	for _, c := range []struct {
		name   string
		fronts []*FrontReport
		line   string // what the line has behind fronts=
		change string
		want   *Verdict
	}{
		{"all work", []*FrontReport{front(1, &works, 1<<20, ""), front(2, &works, 1<<20, ""), front(3, &works, 1<<20, ""), front(4, &works, 1<<20, "")}, "a.secret,b.secret,c.secret,d.secret", "", &works},
		{"some work", []*FrontReport{front(1, &blocked, 0, ""), front(2, &works, 1<<20, ""), front(3, &bodyLimit, 1<<20, ""), front(4, &works, 2<<20, "")}, "d.secret,b.secret,c.secret", "fronts= with number 4, then 2, then 3", &works},
		{"one needs another look", []*FrontReport{front(1, &helloBlocked, 0, "firefox"), front(2, &works, 1<<20, ""), front(3, &blocked, 0, ""), front(4, &blocked, 0, "")}, "b.secret,a.secret utls=chrome,firefox", "utls=chrome,firefox and fronts= with number 2, then 1", &works},
		{"each needs another look", []*FrontReport{front(1, &helloBlocked, 0, "firefox"), front(2, &helloBlocked, 0, "safari"), front(3, &blocked, 0, ""), front(4, &blocked, 0, "")}, "a.secret,b.secret utls=firefox,safari", "utls=firefox,safari and fronts= with number 1, then 2", &helloBlocked},
		{"another look", []*FrontReport{front(1, &helloBlocked, 0, "firefox"), front(2, &blocked, 0, ""), front(3, &sniBlocked, 0, ""), front(4, &silence, 0, "")}, "a.secret utls=firefox", "utls=firefox and fronts= with number 1", &helloBlocked},
	} {
		r := &BridgeReport{Fronts: c.fronts}
		r.conclude(cfg, true)
		want := "url=https://origin.secret/ key=" + cfg.Key + " fronts=" + c.line
		if r.Best != want || r.Change != c.change || r.Verdict != c.want {
			t.Errorf("%s: %q, %q, %s, want %q", c.name, r.Best, r.Change, r.Verdict.Name, want)
		}
		if r.conclude(cfg, false); strings.Contains(r.Change, "secret") {
			t.Errorf("%s: %q is shown", c.name, r.Change)
		}
	}
	down := front(2, &serverDown, 0, "")
	down.Steps, down.trip = make([]Step, 5), time.Millisecond
	several := &BridgeReport{Fronts: []*FrontReport{front(1, &blocked, 0, ""), down, front(3, &noDNS, 0, "")}}
	if several.conclude(cfg, false); several.Verdict != &serverDown {
		t.Errorf("of fronts that do not work, the verdict is %s, and not that of the one that gets furthest", several.Verdict.Name)
	}
	r := &BridgeReport{Fronts: []*FrontReport{front(1, &blocked, 0, "")}}
	if r.conclude(cfg, true); r.Best != "" {
		t.Errorf("nothing works, and the best line is %q", r.Best)
	}
}

// The JSON says what the text says, and no more.
func TestJSON(t *testing.T) {
	r := newRig(t)
	r.cfg.Key = tunnel.NewKey().Public()
	r.start()
	report, _ := r.check()
	var out bytes.Buffer
	if err := WriteJSON(&out, report); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{`"name": "wrong-key"`, `"exit": 21`, `"name": "DNS"`, `"state": "failed"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "secret") || strings.Contains(text, siteAddr) {
		t.Errorf("addresses are shown:\n%s", text)
	}
}

// A check that is ended says so, and judges nothing.
func TestEnded(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	r.handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { cancel() })
	r.start()
	if report, err := Bridge(ctx, r.cfg, r.opts, Silent{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", report, err)
	}
}

// The manual page has the exit code of each verdict.
func TestManualHasEveryVerdict(t *testing.T) {
	manual, err := os.ReadFile("../../doc/turbotunnel-client.1")
	if err != nil {
		t.Fatal(err)
	}
	codes := make(map[int]bool)
	for _, v := range Verdicts() {
		if codes[v.Exit] {
			t.Errorf("two verdicts have the exit code %d", v.Exit)
		}
		codes[v.Exit] = true
		line := fmt.Sprintf(".B %d %s\n", v.Exit, strings.ReplaceAll(v.Name, "-", `\-`))
		if !strings.Contains(string(manual), line) {
			t.Errorf("the manual lacks %q", line)
		}
	}
}
