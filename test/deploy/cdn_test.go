package deploy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"turbotunnel/test/link"
	"turbotunnel/test/proc"
)

const (
	frontName  = "front.example"
	originName = "origin.example"
)

// A kind of CDN is a program with a file of the guide.
type kind struct {
	name   string
	file   string
	start  func(t *testing.T, dir, listen, text string) *proc.Process
	reload syscall.Signal

	// What to change in the file for habits of CDNs.
	strict, buffers, limits, tight []string

	log func(c *cdn) string // where it logs
}

var kinds = []kind{
	{
		name:    "nginx",
		file:    "cdn.conf",
		start:   startNginx,
		reload:  syscall.SIGHUP,
		strict:  []string{"#if ($ssl_server_name", "if ($ssl_server_name"},
		buffers: []string{"proxy_request_buffering off", "proxy_request_buffering on"},
		limits:  []string{"client_max_body_size 0", "client_max_body_size 1m"},
		tight:   []string{"client_max_body_size 0", "client_max_body_size 32k"},
		log:     func(c *cdn) string { return filepath.Join(c.dir, "cdn.log") },
	},
	{
		name:    "haproxy",
		file:    "cdn.cfg",
		start:   startHaproxy,
		reload:  syscall.SIGUSR2,
		strict:  []string{"#http-request return status 421", "http-request return status 421"},
		buffers: []string{"#option http-buffer-request", "option http-buffer-request"},
		limits:  []string{"#http-request deny status 413", "http-request deny status 413"},
		tight:   []string{"#http-request deny status 413", "http-request deny status 413", "gt 1048576", "gt 32768"},
		log:     func(c *cdn) string { return c.Log() },
	},
}

// A cdn is one of the guide's, running.
type cdn struct {
	*proc.Process
	kind   kind
	addr   string
	dir    string
	caFile string // for its clients
}

// startCDN starts a CDN in front of origin, which is changed by pairs, and has
// a certificate for name.
func startCDN(t *testing.T, k kind, name, origin string, pairs ...string) *cdn {
	t.Helper()
	c := &cdn{kind: k, addr: addr(t), dir: folder(t)}
	c.caFile = writeCertificate(t, c.dir, name)
	text := adapt(t, printed(t, "deploy-cdn.md", k.file), append([]string{"127.0.0.1:8443", c.addr, "127.0.0.1:8080", origin}, pairs...)...)
	c.Process = k.start(t, c.dir, c.addr, text)
	return c
}

// requests are the lines of the CDN's log that are about requests for the
// origin's name.
func (c *cdn) requests(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(c.kind.log(c))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[1] == originName {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// slow is a path to addr on which 8 MB take two seconds, so that something can
// happen meanwhile.
func slow(t *testing.T, addr string) *link.Link {
	t.Helper()
	l, err := link.New(link.Config{RTT: 20 * time.Millisecond, Rate: 32_000_000}, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// size is how many bytes go each way.
const size = 8 << 20

// A setup is a server, a CDN in front of it, a path to that, and a client.
type setup struct {
	cdn    *cdn
	path   *link.Link
	client *client
	move   func(t *testing.T, events map[float64]func())
}

func fronted(t *testing.T, k kind, pairs ...string) *setup {
	t.Helper()
	s := new(setup)
	to := startTarget(t)
	origin, state := addr(t), folder(t)
	startServer(t, origin, state, to.Addr(), "-trusted-proxies", "127.0.0.1")
	s.cdn = startCDN(t, k, frontName, origin, pairs...)
	s.path = slow(t, s.cdn.addr)
	s.client = startClient(t, s.cdn.caFile, "https://"+originName+"/updates",
		"-key", key(t, state), "-front", frontName, "-addr", s.path.Addr())
	s.move = func(t *testing.T, events map[float64]func()) {
		t.Helper()
		move(t, to, s.client, size, events)
	}
	return s
}

func eachKind(t *testing.T, test func(t *testing.T, k kind)) {
	t.Parallel()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			test(t, k)
		})
	}
}

// TestFronting: TLS names the front, the Host header the origin, and all bytes
// pass both ways over HTTP/2.
func TestFronting(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := fronted(t, k)
		s.move(t, nil)
		lines := s.cdn.requests(t)
		for _, line := range lines {
			fields := strings.Fields(line)
			if fields[0] != frontName || fields[2] != "HTTP/2.0" || !strings.HasPrefix(fields[len(fields)-1], "/updates/") {
				t.Fatalf("the CDN saw %q", line)
			}
		}
		if len(lines) == 0 {
			t.Error("the CDN saw no request")
		}
		t.Logf("%d requests", len(lines))
	})
}

// TestStrictCDN: a CDN that refuses fronting is named as the cause.
func TestStrictCDN(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := fronted(t, k, k.strict...)
		await(t, "the cause in the client's log", func() error {
			c, err := net.Dial("tcp", s.client.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(waitLimit))
			if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Fatal("a byte came from nowhere")
			}
			if text := proc.Tail(s.client.Log()); !strings.Contains(text, "refuses domain fronting (status 421)") {
				return errors.New(text)
			}
			return nil
		})
	})
}

// TestBufferingCDN: the origin sees a request when all of it has come.
func TestBufferingCDN(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) { fronted(t, k, k.buffers...).move(t, nil) })
}

// TestBodyLimit: larger requests get 413. The guide's 1 MB is more than what a
// client sends on a path like this one; 32 KB are less.
func TestBodyLimit(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		fronted(t, k, k.limits...).move(t, nil)

		s := fronted(t, k, k.tight...)
		s.move(t, nil)
		refused := 0
		for _, line := range s.cdn.requests(t) {
			if strings.Fields(line)[3] == "413" {
				refused++
			}
		}
		if refused == 0 {
			t.Error("no request was refused")
		}
		t.Logf("%d requests were refused", refused)
	})
}

// TestReload: the CDN takes a new configuration in the middle of a transfer and
// cuts what goes on for longer than a second.
func TestReload(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		var pairs []string
		if k.name == "nginx" {
			pairs = []string{"daemon off;", "daemon off;\nworker_shutdown_timeout 1s;"}
		}
		s := fronted(t, k, pairs...)
		reload := func() {
			if err := s.cdn.Signal(k.reload); err != nil {
				t.Error(err)
			}
		}
		s.move(t, map[float64]func(){0.1: reload, 0.6: reload})
	})
}

// TestResets: every connection between client and CDN is reset, again and
// again.
func TestResets(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		s := fronted(t, k)
		events := make(map[float64]func())
		for i := range 10 {
			events[float64(i+1)/12] = func() { s.path.Reset(0) }
		}
		s.move(t, events)
	})
}

// splitter is the network between clients and two CDNs, which leads by the
// name in the TLS handshake.
const splitter = `
global
	maxconn 1000
defaults
	mode tcp
	timeout connect 5s
	timeout client 3m
	timeout server 3m
frontend network
	bind %s
	tcp-request inspect-delay 5s
	tcp-request content accept if { req_ssl_hello_type 1 }
	use_backend second if { req_ssl_sni second.example }
	default_backend first
backend first
	server first %s
backend second
	server second %s
`

// TestTwoFronts: of two fronts one dies in the middle of a transfer, comes
// back, and then the other one dies.
func TestTwoFronts(t *testing.T) {
	t.Parallel()
	to := startTarget(t)
	origin, state := addr(t), folder(t)
	startServer(t, origin, state, to.Addr())
	fronts := []*cdn{
		startCDN(t, kinds[0], "first.example", origin),
		startCDN(t, kinds[1], "second.example", origin),
	}
	network := addr(t)
	dir := folder(t)
	startHaproxy(t, dir, network, fmt.Sprintf(splitter, network, fronts[0].addr, fronts[1].addr))
	var certs strings.Builder
	for _, f := range fronts {
		text, err := os.ReadFile(f.caFile)
		if err != nil {
			t.Fatal(err)
		}
		certs.Write(text)
	}
	caFile := filepath.Join(dir, "both.pem")
	write(t, caFile, certs.String())
	path := slow(t, network)
	c := startClient(t, caFile, "https://"+originName+"/updates", "-key", key(t, state),
		"-fronts", "first.example,second.example", "-addr", path.Addr())

	move(t, to, c, size, nil)
	for i, dying := range fronts {
		move(t, to, c, size, map[float64]func(){0.3: func() {
			if err := dying.Stop(); err != nil {
				t.Error(err)
			}
		}})
		if i == 0 {
			// It comes back where it was.
			text, err := os.ReadFile(filepath.Join(dying.dir, "nginx.conf"))
			if err != nil {
				t.Fatal(err)
			}
			startNginx(t, dying.dir, dying.addr, strings.TrimPrefix(string(text), "user root;\n"))
		}
	}
	for i, f := range fronts {
		t.Logf("front %s carried %d requests", strconv.Itoa(i+1), len(f.requests(t)))
	}
}
