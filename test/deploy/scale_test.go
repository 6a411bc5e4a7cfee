package deploy

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"turbotunnel/test/guide"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
)

// A balancer is a program with a file of deploy-scale.md.
type balancer struct {
	name   string
	reload syscall.Signal

	// configure writes its configuration into dir.
	configure func(t *testing.T, dir, listen string, origins []string)
	start     func(t *testing.T, dir, listen string) *proc.Process
}

var balancers = []balancer{
	{
		name:   "haproxy",
		reload: syscall.SIGUSR2,
		configure: func(t *testing.T, dir, listen string, origins []string) {
			configureHaproxy(t, dir, listen, origins, "")
		},
		start: func(t *testing.T, dir, listen string) *proc.Process {
			return guide.StartHaproxy(t, dir, listen)
		},
	},
	{
		name:   "nginx",
		reload: syscall.SIGHUP,
		configure: func(t *testing.T, dir, listen string, origins []string) {
			text := guide.Printed(t, "deploy-scale.md", "/etc/nginx/sites-available/turbotunnel")
			const options = " max_fails=2 fail_timeout=5s;\n"
			var list strings.Builder
			for _, origin := range origins {
				fmt.Fprintf(&list, "\tserver %s%s", origin, options)
			}
			programs.Write(t, filepath.Join(dir, "site"), adaptSite(t, text, dir, listen,
				"\tserver 10.0.0.1:8080"+options, list.String(),
				"\tserver 10.0.0.2:8080"+options, "",
			))
		},
		start: func(t *testing.T, dir, listen string) *proc.Process {
			return guide.StartNginx(t, dir, listen, nginxMain(t))
		},
	},
}

// configureHaproxy writes haproxy.cfg into dir, with options for each server.
func configureHaproxy(t *testing.T, dir, listen string, origins []string, options string) {
	t.Helper()
	var list strings.Builder
	for i, origin := range origins {
		fmt.Fprintf(&list, "\tserver s%d %s%s\n", i+1, origin, options)
	}
	guide.WriteHaproxy(t, dir, guide.Adapt(t, guide.Printed(t, "deploy-scale.md", "/etc/haproxy/haproxy.cfg"),
		"maxconn 20000", "maxconn 1000", // of the test's own limits
		"bind :443", "bind "+listen,
		"/etc/haproxy/www.example.com.pem", filepath.Join(dir, "cdn.pem"),
		"\tserver s1 10.0.0.1:8080\n", list.String(),
		"\tserver s2 10.0.0.2:8080\n", "",
	))
}

func eachBalancer(t *testing.T, test func(t *testing.T, b balancer)) {
	t.Parallel()
	for _, b := range balancers {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			test(t, b)
		})
	}
}

// startEcho starts where the streams of one server go: it says name, and then
// what it hears.
func startEcho(t *testing.T, name string) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				stop := time.AfterFunc(3*programs.WaitLimit+*idleTime, func() { c.Close() })
				defer stop.Stop()
				io.WriteString(c, name+"\n")
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

// A line is a stream to one of the servers, on which bytes go to and fro all
// the time.
type line struct {
	net.Conn
	r      *bufio.Reader
	server string

	rounds atomic.Int64  // of bytes that came back as they were
	ended  chan struct{} // closed when talk has returned
	err    error         // why, after that
}

// open opens a stream through the client at addr and learns whose it is.
func open(addr string) (*line, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(programs.WaitLimit))
	l := &line{Conn: c, r: bufio.NewReader(c), ended: make(chan struct{})}
	name, err := l.r.ReadString('\n')
	if err != nil {
		c.Close()
		return nil, err
	}
	l.server = strings.TrimSpace(name)
	return l, nil
}

// talk sends bytes to and fro until they do not come back as they were.
func (l *line) talk() {
	defer close(l.ended)
	for l.err = l.check(); l.err == nil; l.err = l.check() {
		l.rounds.Add(1)
	}
}

// check sends bytes to and fro once.
func (l *line) check() error {
	_ = l.SetDeadline(time.Now().Add(programs.WaitLimit))
	want := make([]byte, 20_000)
	rand.Read(want)
	sent := make(chan error, 1)
	go func() {
		_, err := l.Write(want)
		sent <- err
	}()
	got := make([]byte, len(want))
	_, err := io.ReadFull(l.r, got)
	if e := <-sent; err == nil {
		err = e
	}
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%d bytes came back changed", len(want))
	}
	return err
}

// further waits until each line has ended or brought bytes that were sent from
// now on, and returns those that have ended.
func further(t *testing.T, lines []*line) (ended []*line) {
	t.Helper()
	begin := make([]int64, len(lines))
	for i, l := range lines {
		begin[i] = l.rounds.Load()
	}
	for i, l := range lines {
		programs.Await(t, "bytes from "+l.server, func() error {
			select {
			case <-l.ended:
				ended = append(ended, l)
				return nil
			default:
			}
			// One round was under way.
			if n := l.rounds.Load() - begin[i]; n < 2 {
				return fmt.Errorf("%d rounds", n)
			}
			return nil
		})
	}
	return ended
}

// reload has a load balancer read its file again, and waits until no process
// works by the old one.
func reload(t *testing.T, b balancer, p *proc.Process) {
	t.Helper()
	before := p.Group()
	if err := p.Signal(b.reload); err != nil {
		t.Fatal(err)
	}
	programs.Await(t, "the end of the old workers", func() error {
		now := p.Group()
		left := 0
		for _, id := range before {
			if slices.Contains(now, id) {
				left++
			}
		}
		if left > 1 || len(now) < len(before) { // the master stays
			return fmt.Errorf("of %v there are %v", before, now)
		}
		return nil
	})
}

// TestScale: sessions on several servers behind a load balancer, with bytes
// under way all the time. They notice nothing when it is reloaded. When a server
// is added, few are lost; when one is killed, its own are, and nobody else's.
// What was lost comes back by itself on another server.
func TestScale(t *testing.T) {
	eachBalancer(t, func(t *testing.T, b balancer) {
		const servers, added, sessions = 3, "server 4", 32
		state, dir, listen := programs.Folder(t), programs.Folder(t), programs.Addr(t)
		origins := programs.Addrs(t, servers+1)
		running := make(map[string]*proc.Process)
		for i, origin := range origins {
			name := fmt.Sprintf("server %d", i+1)
			running[name] = startServer(t, origin, state, startEcho(t, name), "-trusted-proxies", "127.0.0.1")
		}
		caFile := guide.WriteCertificate(t, dir, siteName)
		b.configure(t, dir, listen, origins[:servers])
		p := b.start(t, dir, listen)
		url := "https://" + siteName + "/updates"
		// A session for each stream, and one for all.
		many := startClient(t, caFile, url, "-key", programs.Key(t, state), "-addr", listen, "-engine", "kcp")
		one := startClient(t, caFile, url, "-key", programs.Key(t, state), "-addr", listen, "-engine", "kcp-smux")

		var talking sync.WaitGroup
		var lines []*line
		t.Cleanup(func() {
			for _, l := range lines {
				l.Close()
			}
			talking.Wait()
		})
		begin := func(c *programs.Tunnel) *line {
			t.Helper()
			l, err := open(c.Addr)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, l)
			talking.Go(l.talk)
			return l
		}
		of := make(map[string]int)
		for n := 0; n < sessions || len(of) < servers; n++ {
			if n == 100 {
				t.Fatalf("100 sessions are on %d servers only", len(of))
			}
			of[begin(many).server]++
		}
		t.Logf("sessions: %v", of)

		for range 2 {
			reload(t, b, p)
			if ended := further(t, lines); len(ended) > 0 {
				t.Errorf("%d of %d streams have ended at a reload: %v", len(ended), len(lines), ended[0].err)
			}
		}

		b.configure(t, dir, listen, origins)
		reload(t, b, p)
		moved := further(t, lines)
		t.Logf("%d of %d sessions have moved to a new server", len(moved), len(lines))
		// A quarter, as TestAddingOneMovesFew shows with more of them. Where a
		// session's server depends on the number of servers, it is three
		// quarters.
		if len(moved) > sessions*11/16 {
			t.Errorf("%d of %d sessions have moved, want about a quarter", len(moved), len(lines))
		}
		for n := 0; begin(many).server != added; n++ {
			if n == 100 {
				t.Fatalf("none of 100 new sessions is on the new server")
			}
		}

		dying := begin(one).server
		alive := slices.DeleteFunc(slices.Clone(lines), func(l *line) bool { return slices.Contains(moved, l) })
		if err := running[dying].Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		ended := further(t, alive)
		for _, l := range alive {
			switch has := slices.Contains(ended, l); {
			case has && l.server != dying:
				t.Errorf("a stream of another server has ended: %v", l.err)
			case !has && l.server == dying:
				t.Errorf("a stream of the dead server goes on")
			}
		}
		t.Logf("%d of %d sessions are lost with a server", len(ended), len(alive))
		for _, c := range []*programs.Tunnel{many, one} {
			for range 3 {
				programs.Await(t, "a new stream", func() error {
					l, err := open(c.Addr)
					if err != nil {
						return err
					}
					defer l.Close()
					if l.server == dying {
						t.Fatalf("the dead server speaks")
					}
					return l.check()
				})
			}
		}
		// They would wait for the streams of sessions that have moved.
		for _, server := range running {
			if err := server.Kill(); err != nil {
				t.Error(err)
			}
		}
	})
}

// shares asks for one page of each session through the balancer, and counts
// who answered.
func shares(t *testing.T, listen string, sessions []string) map[string]string {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: siteName}}
	defer tr.CloseIdleConnections()
	answers := make(map[string]string)
	for _, session := range sessions {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+listen+"/updates/"+session, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = siteName
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s, %q, %v", resp.Status, text, err)
		}
		answers[session] = string(text)
	}
	return answers
}

// TestAddingOneMovesFew: with a fourth server beside three, a quarter of the
// sessions moves, and all of those to the new one. What a session is, is the
// last part of the path.
func TestAddingOneMovesFew(t *testing.T) {
	eachBalancer(t, func(t *testing.T, b balancer) {
		var origins []string
		for i := range 4 {
			name := fmt.Sprintf("server %d", i+1)
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) }))
			t.Cleanup(s.Close)
			origins = append(origins, s.Listener.Addr().String())
		}
		sessions := make([]string, 400)
		for i := range sessions {
			id := make([]byte, 24)
			rand.Read(id)
			sessions[i] = base64.RawURLEncoding.EncodeToString(id)
		}
		dir, listen := programs.Folder(t), programs.Addr(t)
		guide.WriteCertificate(t, dir, siteName)
		b.configure(t, dir, listen, origins[:3])
		p := b.start(t, dir, listen)
		before := shares(t, listen, sessions)
		count := make(map[string]int)
		for _, server := range before {
			count[server]++
		}
		for server, n := range count {
			t.Logf("%s: %d of %d", server, n, len(sessions))
		}
		if len(count) != 3 {
			t.Errorf("%d servers of 3 are used", len(count))
		}
		for server, n := range count {
			// A third is 133; the ring's own unevenness and chance are within
			// 50 of it.
			if n < len(sessions)/6 || n > len(sessions)/2 {
				t.Errorf("%s has %d of %d sessions", server, n, len(sessions))
			}
		}
		for session, server := range shares(t, listen, sessions[:20]) {
			if before[session] != server {
				t.Fatal("a session has moved by itself")
			}
		}

		b.configure(t, dir, listen, origins)
		if err := p.Signal(b.reload); err != nil {
			t.Fatal(err)
		}
		// While it reloads, connections may still go to a process with the old
		// file: until two rounds in a row say the same.
		var after map[string]string
		programs.Await(t, "the new server", func() error {
			last := after
			after = shares(t, listen, sessions)
			if !slices.Contains(slices.Collect(maps.Values(after)), "server 4") {
				return fmt.Errorf("none of %d sessions is on it", len(sessions))
			}
			if !maps.Equal(last, after) {
				return errors.New("the sessions still move")
			}
			return nil
		})
		moved := 0
		for session, server := range after {
			if server == before[session] {
				continue
			}
			moved++
			if server != "server 4" {
				t.Errorf("a session has moved from %s to %s", before[session], server)
			}
		}
		t.Logf("%d of %d sessions have moved", moved, len(sessions))
		if share := float64(moved) / float64(len(sessions)); share < 0.1 || share > 0.4 {
			t.Errorf("%.2f of the sessions have moved, want about 0.25", share)
		}
	})
}

// TestTowardsServers: what haproxy can speak to the server, and who the client
// is by the PROXY protocol.
func TestTowardsServers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		options string
		flags   []string
	}{
		"HTTP-1.1":           {"", nil},
		"HTTP-2":             {" proto h2", nil},
		"PROXY-1":            {" send-proxy", []string{"-proxy-protocol"}},
		"PROXY-2-and-HTTP-2": {" send-proxy-v2 proto h2", []string{"-proxy-protocol"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			to := startTarget(t)
			state, dir, listen, origin := programs.Folder(t), programs.Folder(t), programs.Addr(t), programs.Addr(t)
			startServer(t, origin, state, to.Addr(), append([]string{"-trusted-proxies", "127.0.0.1"}, c.flags...)...)
			caFile := guide.WriteCertificate(t, dir, siteName)
			configureHaproxy(t, dir, listen, []string{origin}, c.options)
			guide.StartHaproxy(t, dir, listen)
			client := startClient(t, caFile, "https://"+siteName+"/updates", "-key", programs.Key(t, state), "-addr", listen)
			move(t, to, client, size, nil)
		})
	}
}

// TestHaproxyDoesNotHoldBack: what a server writes bit by bit leaves haproxy bit by
// bit, without TLS, too. Without the option that the guide has for it each bit comes
// as much as 200 ms late.
func TestHaproxyDoesNotHoldBack(t *testing.T) {
	t.Parallel()
	const bits = 10
	seen := make(chan struct{})
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range bits {
			io.WriteString(w, "x")
			http.NewResponseController(w).Flush()
			select {
			case <-seen:
			case <-r.Context().Done():
				return
			}
		}
	}))
	t.Cleanup(origin.Close)
	takes := func(pairs ...string) time.Duration {
		listen, dir := programs.Addr(t), programs.Folder(t)
		configureHaproxy(t, dir, listen, []string{origin.Listener.Addr().String()}, "")
		name := filepath.Join(dir, "haproxy.cfg")
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		programs.Write(t, name, guide.Adapt(t, string(text), append(pairs, " ssl crt "+filepath.Join(dir, "cdn.pem")+" alpn h2,http/1.1", "")...))
		guide.StartHaproxy(t, dir, listen)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: programs.WaitLimit}
		begun := time.Now()
		resp, err := client.Get("http://" + listen + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for range bits {
			if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			seen <- struct{}{}
		}
		return time.Since(begun)
	}
	without, with := takes("\toption http-no-delay\n", ""), takes()
	t.Logf("%d bits took %v, and %v without the option", bits, with, without)
	if with > without/2 {
		t.Errorf("the option makes no difference")
	}
}
