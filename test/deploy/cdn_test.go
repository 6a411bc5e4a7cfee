package deploy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"turbotunnel/test/cdn"
	"turbotunnel/test/guide"
	"turbotunnel/test/netpath"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
)

// slow is a path to addr on which 8 MB take two seconds, so that something can
// happen meanwhile.
func slow(t *testing.T, addr string) *netpath.Path {
	t.Helper()
	l, err := netpath.New(netpath.Config{RTT: 20 * time.Millisecond, Rate: 32_000_000}, addr)
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
	cdn    *guide.CDN
	path   *netpath.Path
	client *programs.Tunnel
	move   func(t *testing.T, events map[float64]func())
}

func fronted(t *testing.T, k *guide.Kind, pairs ...string) *setup {
	t.Helper()
	s := new(setup)
	to := startTarget(t)
	origin, state := programs.Addr(t), programs.Folder(t)
	startServer(t, origin, state, to.Addr(), "-trusted-proxies", "127.0.0.1")
	s.cdn = guide.StartCDN(t, k, cdn.Front, origin, pairs...)
	s.path = slow(t, s.cdn.Addr)
	s.client = startClient(t, s.cdn.CAFile, "https://"+cdn.Origin+"/updates",
		"-key", programs.Key(t, state), "-front", cdn.Front, "-addr", s.path.Addr())
	s.move = func(t *testing.T, events map[float64]func()) {
		t.Helper()
		move(t, to, s.client, size, events)
	}
	return s
}

func eachKind(t *testing.T, test func(t *testing.T, k *guide.Kind)) {
	t.Parallel()
	for _, k := range guide.Kinds {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			test(t, k)
		})
	}
}

// TestFronting: TLS names the front, the Host header the origin, and all bytes
// pass both ways over HTTP/2.
func TestFronting(t *testing.T) {
	eachKind(t, func(t *testing.T, k *guide.Kind) {
		s := fronted(t, k)
		s.move(t, nil)
		s.cdn.CheckRequests(t, cdn.Front, "/updates/")
	})
}

// TestStrictCDN: a CDN that refuses fronting is named as the cause.
func TestStrictCDN(t *testing.T) {
	eachKind(t, func(t *testing.T, k *guide.Kind) {
		s := fronted(t, k, k.Strict...)
		programs.Await(t, "the cause in the client's log", func() error {
			c, err := net.Dial("tcp", s.client.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(programs.WaitLimit))
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
	eachKind(t, func(t *testing.T, k *guide.Kind) { fronted(t, k, k.Buffers...).move(t, nil) })
}

// TestBodyLimit: larger requests get 413. The guide's 1 MB is more than what a
// client sends on a path like this one; 32 KB are less. haproxy looks at the length
// that a request says, or at what is there of the body when it decides, so it may let a
// streamed upload pass.
func TestBodyLimit(t *testing.T) {
	eachKind(t, func(t *testing.T, k *guide.Kind) {
		fronted(t, k, k.Limits...).move(t, nil)

		s := fronted(t, k, k.Tight...)
		s.move(t, nil)
		refused := 0
		for _, request := range s.cdn.Requests(t) {
			if request[3] == "413" {
				refused++
			}
		}
		if refused == 0 && k.Name != "haproxy" {
			t.Error("no request was refused")
		}
		t.Logf("%d requests were refused", refused)
	})
}

// TestReload: the CDN takes a new configuration in the middle of a transfer and
// cuts what goes on for longer than a second.
func TestReload(t *testing.T) {
	eachKind(t, func(t *testing.T, k *guide.Kind) {
		var pairs []string
		if k.Name == "nginx" {
			pairs = []string{"daemon off;", "daemon off;\nworker_shutdown_timeout 1s;"}
		}
		s := fronted(t, k, pairs...)
		reload := func() {
			if err := s.cdn.Signal(k.Reload); err != nil {
				t.Error(err)
			}
		}
		s.move(t, map[float64]func(){0.1: reload, 0.6: reload})
	})
}

// TestResets: every connection between client and CDN is reset, again and
// again.
func TestResets(t *testing.T) {
	eachKind(t, func(t *testing.T, k *guide.Kind) {
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
	retries 0
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

// TestTwoFronts: of two fronts the one that carries is killed in the middle of
// a transfer, comes back, and carries again when the other one is killed. What
// the client tells tor says which one carries, and why one was left, and names
// neither of them.
func TestTwoFronts(t *testing.T) {
	t.Parallel()
	to := startTarget(t)
	origin, state := programs.Addr(t), programs.Folder(t)
	startServer(t, origin, state, to.Addr())
	const first, second = "first.example", "second.example"
	byNumber := map[string]string{"1/2": first, "2/2": second}
	fronts := map[string]*guide.CDN{
		first:  guide.StartCDN(t, guide.Nginx, first, origin),
		second: guide.StartCDN(t, guide.Haproxy, second, origin),
	}
	network, dir := programs.Addr(t), programs.Folder(t)
	guide.WriteHaproxy(t, dir, fmt.Sprintf(splitter, network, fronts[first].Addr, fronts[second].Addr))
	guide.StartHaproxy(t, dir, network)
	var authorities []byte
	for _, f := range fronts {
		text, err := os.ReadFile(f.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		authorities = append(authorities, text...)
	}
	caFile := filepath.Join(dir, "both.pem")
	programs.Write(t, caFile, string(authorities))
	c := programs.StartTransport(t, []string{"SSL_CERT_FILE=" + caFile},
		"url=https://"+cdn.Origin+"/updates", "key="+programs.Key(t, state),
		"fronts="+first+","+second, "addr="+slow(t, network).Addr())

	killed := make(map[string]bool)
	for _, direction := range []int{1, 2} { // down, then up
		begun := 0
		var dead *guide.CDN
		move(t, to, c, size, map[float64]func(){0.3: func() {
			if begun++; begun != direction {
				return
			}
			told := toldOfFronts(t, c)
			name := byNumber[told[len(told)-1].number]
			dead, killed[name] = fronts[name], true
			if err := dead.Kill(); err != nil {
				t.Error(err)
			}
		}})
		dead.Restart(t)
	}
	if len(killed) != 2 {
		t.Errorf("of the two fronts %v were killed", killed)
	}

	told := toldOfFronts(t, c)
	if len(told) != 5 {
		t.Fatalf("tor was told %+v, want that one front carries, is left, another one carries, is left, and the first one carries", told)
	}
	for i, what := range []string{"using", "leaving", "using", "leaving", "using"} {
		if told[i].what != what || (told[i].number == told[0].number) != (i != 2 && i != 3) || (what == "leaving") != told[i].why {
			t.Errorf("tor was told %+v: the line of number %d is not what it should be", told, i+1)
		}
	}
}

// A frontNews is what tor is told of a front.
type frontNews struct {
	what, number string
	why          bool // a reason is given
}

var frontTold = regexp.MustCompile(`(?m)^LOG SEVERITY=\w+ MESSAGE="(using|leaving) a front front=\[scrubbed\] number=(\S+) .*?(err=.+)?$`)

func toldOfFronts(t *testing.T, c *programs.Tunnel) (told []frontNews) {
	t.Helper()
	text, err := os.ReadFile(c.Log())
	if err != nil {
		t.Error(err)
	}
	if strings.Contains(string(text), ".example") {
		t.Errorf("a name stands in the log:\n%s", text)
	}
	for _, m := range frontTold.FindAllStringSubmatch(string(text), -1) {
		told = append(told, frontNews{m[1], m[2], m[3] != ""})
	}
	return told
}
