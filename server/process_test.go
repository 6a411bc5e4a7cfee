package main

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"turbotunnel/internal/logtest"
)

// patience is how long a test waits for a program before it fails.
const patience = 30 * time.Second

// A program is a running turbotunnel-server.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	lines  chan string // of stdout
	stderr *logtest.Buffer
	done   chan struct{} // closed when it has ended
}

// start starts the server. It is killed at the end of the test.
func start(t *testing.T, env []string, args ...string) *program {
	t.Helper()
	cmd := exec.Command("turbotunnel-server", args...)
	cmd.Env = append(os.Environ(), env...)
	return launch(t, cmd)
}

// launch starts cmd, which is the server.
func launch(t *testing.T, cmd *exec.Cmd) *program {
	t.Helper()
	p := &program{t: t, cmd: cmd, lines: make(chan string, 1000), stderr: new(logtest.Buffer), done: make(chan struct{})}
	p.cmd.Stderr = p.stderr
	p.cmd.WaitDelay = patience
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
		close(p.lines)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

// line returns the next line of stdout that begins with prefix.
func (p *program) line(prefix string) string {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("stdout ended before %q; stderr:\n%s", prefix, p.stderr)
			}
			if strings.HasPrefix(line, prefix) {
				return line
			}
		case <-timeout:
			p.t.Fatalf("no line %q on stdout; stderr:\n%s", prefix, p.stderr)
		}
	}
}

// said returns what the pattern's group matches in stderr, as soon as it does.
func (p *program) said(pattern string) string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if m := re.FindStringSubmatch(p.stderr.String()); m != nil {
			return m[len(m)-1]
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("stderr does not match %q:\n%s", pattern, p.stderr)
		}
	}
}

// exit waits for the end and returns the exit code.
func (p *program) exit() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("the program does not end; stderr:\n%s", p.stderr)
	}
	return p.cmd.ProcessState.ExitCode()
}

// torEnv is what tor sets for a server whose state is in dir.
func torEnv(dir, orPort string) []string {
	return []string{
		"TOR_PT_MANAGED_TRANSPORT_VER=1",
		"TOR_PT_STATE_LOCATION=" + dir,
		"TOR_PT_SERVER_TRANSPORTS=obfs4,turbo,webtunnel",
		"TOR_PT_SERVER_BINDADDR=obfs4-127.0.0.1:0,turbo-127.0.0.1:0,webtunnel-127.0.0.1:0",
		"TOR_PT_ORPORT=" + orPort,
	}
}

var smethod = regexp.MustCompile(`^SMETHOD turbo (127\.0\.0\.1:\d+) ARGS:key=([A-Za-z0-9_-]{43})(,url=.*)?$`)

// get returns status and body of a page.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	tr := new(http.Transport)
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: patience}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestManaged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pt state")
	env := append(torEnv(dir, "127.0.0.1:1"), "TOR_PT_SERVER_TRANSPORT_OPTIONS=turbo:url=https://www.example.com/x;other:a=b;turbo:disable-tls=1")
	p := start(t, env)
	p.line("VERSION 1")
	p.line("STATUS TYPE=version IMPLEMENTATION=\"turbotunnel-server\"")
	m := smethod.FindStringSubmatch(p.line("SMETHOD"))
	if m == nil || m[3] != ",url=https://www.example.com/x" {
		t.Fatalf("SMETHOD line: %q", m)
	}
	p.line("SMETHODS DONE")
	if status, _ := get(t, "http://"+m[1]+"/"); status != 200 {
		t.Errorf("/: status %d", status)
	}
	if status, page := get(t, "http://"+m[1]+"/nothing"); status != 404 || !strings.Contains(page, "<center>nginx</center>") {
		t.Errorf("/nothing: status %d\n%s", status, page)
	}
	line, err := os.ReadFile(filepath.Join(dir, bridgeLineFile))
	if want := (bridgeLine{url: "https://www.example.com/x", key: m[2]}).String() + "\n"; err != nil || string(line) != want {
		t.Errorf("bridge line %q, %v; want %q", line, err, want)
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d after SIGTERM; stderr:\n%s", code, p.stderr)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("the state directory holds %v, %v", entries, err)
	}

	// Started again it has the same key. Without -url it says what is missing.
	p = start(t, torEnv(dir, "127.0.0.1:1"), "-disable-tls")
	p.line("LOG SEVERITY=notice MESSAGE=\"the published bridge line will lack url=")
	again := smethod.FindStringSubmatch(p.line("SMETHOD "))
	if again == nil || again[2] != m[2] || again[3] != "" {
		t.Errorf("SMETHOD line after a restart: %q, before %q", again, m)
	}
	p.line("SMETHODS DONE")
}

// tor closes stdin when it ends, or dies.
func TestEndOfStdin(t *testing.T) {
	stdin, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	cmd := exec.Command("turbotunnel-server", "-disable-tls")
	cmd.Env = append(append(os.Environ(), torEnv(t.TempDir(), "127.0.0.1:1")...), "TOR_PT_EXIT_ON_STDIN_CLOSE=1")
	cmd.Stdin = stdin
	p := launch(t, cmd)
	p.line("SMETHODS DONE")
	hold.Close()
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d; stderr:\n%s", code, p.stderr)
	}
}

func TestManagedTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := newPair(t, 7, time.Now().Add(time.Hour))
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	replaceFile(t, certFile, cert)
	replaceFile(t, keyFile, key)
	env := append(torEnv(filepath.Join(dir, "state"), "127.0.0.1:1"), "TOR_PT_SERVER_TRANSPORT_OPTIONS=turbo:tls-key="+keyFile)
	p := start(t, env, "-tls-cert", certFile)
	m := smethod.FindStringSubmatch(p.line("SMETHOD "))
	c, err := tls.Dial("tcp", m[1], &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	state := c.ConnectionState()
	if serial := state.PeerCertificates[0].SerialNumber.Int64(); serial != 7 || state.NegotiatedProtocol != "h2" {
		t.Errorf("certificate %d, protocol %q", serial, state.NegotiatedProtocol)
	}
}

// Two servers that are started on one new directory end with one key.
func TestFirstStartTogether(t *testing.T) {
	dir := t.TempDir()
	programs := make([]*program, 4)
	for i := range programs {
		programs[i] = start(t, torEnv(dir, "127.0.0.1:1"), "-disable-tls")
	}
	keys := map[string]bool{}
	for _, p := range programs {
		m := smethod.FindStringSubmatch(p.line("SMETHOD "))
		if m == nil {
			t.Fatal("no SMETHOD line")
		}
		keys[m[2]] = true
	}
	if len(keys) != 1 {
		t.Errorf("keys: %v", keys)
	}
}

// Nobody has to read stdout and stderr for the program to serve and to end.
func TestNobodyReads(t *testing.T) {
	socket, addr := socketFile(t) // nobody reads which one it is
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := activated([]*os.File{socket}, "systemd", "127.0.0.1:1")
	cmd.Stdout, cmd.Stderr = writer, writer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	reader.Close() // everything written from now on fails
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cmd.Process.Kill()
	ended := make(chan struct{})
	wait.Go(func() {
		defer close(ended)
		_ = cmd.Wait()
	})
	if status, _ := get(t, "http://"+addr+"/"); status != 200 {
		t.Errorf("/: status %d", status)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the program does not end")
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestForwardingMode(t *testing.T) {
	p := start(t, nil, "127.0.0.1:0", "127.0.0.1:1")
	addr := p.said(`serving on (127\.0\.0\.1:\d+), streams go to 127\.0\.0\.1:1`)
	p.said("WARNING: without -state-dir")
	p.said("no proxy is trusted")
	if status, _ := get(t, "http://"+addr+"/"); status != 200 {
		t.Errorf("/: status %d", status)
	}
	_ = p.cmd.Process.Signal(os.Interrupt)
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}

	dir := t.TempDir()
	p = start(t, nil, "-state-dir", dir, "-log", filepath.Join(dir, "log"), "127.0.0.1:0", "127.0.0.1:1")
	key := p.said(`clients need -key ([A-Za-z0-9_-]{43})`)
	if strings.Contains(p.stderr.String(), "WARNING") {
		t.Errorf("a warning in spite of a key:\n%s", p.stderr)
	}
	line, err := os.ReadFile(filepath.Join(dir, bridgeLineFile))
	if want := (bridgeLine{key: key}).String() + "\n"; err != nil || string(line) != want {
		t.Errorf("bridge line %q, %v; want %q", line, err, want)
	}
}
