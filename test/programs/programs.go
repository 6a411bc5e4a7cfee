// Package programs builds both programs for tests that look at them from
// outside, and runs them and others for as long as a test runs.
//
// A test package calls [Main] from its TestMain; everything else works after
// that, and is for the goroutine that runs the test.
package programs

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/proxy"

	"turbotunnel/test/proc"
)

// Root is the folder of the module of both programs, for tests, each of which
// runs in the folder of its package.
const Root = "../.."

// WaitLimit bounds the wait for what takes seconds on an idle machine.
const WaitLimit = time.Minute

// pollInterval is how often a state is looked at that gives no notice.
const pollInterval = 20 * time.Millisecond

// Client and Server are the files of both programs, built by Main.
var Client, Server string

// buildFlags are go build's. Tests under the race detector run programs under
// the race detector.
var buildFlags []string

// raceLog is the start of the names of the files to which programs built with
// the race detector write what it finds.
var raceLog string

// Main builds both programs, runs the tests and returns the exit code. Left
// goroutines and data races in the programs are failures. With -short it runs
// nothing: every test of a package that needs both programs takes seconds.
func Main(m *testing.M) int {
	flag.Parse()
	if testing.Short() {
		fmt.Println("the programs are not run with -short")
		return 0
	}
	// kcp-go, which the tunnel's packages bring along, starts some by itself.
	before := goleak.IgnoreCurrent()
	dir, err := os.MkdirTemp("", "programs")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	for program, folder := range map[*string]string{&Client: "client", &Server: "server"} {
		*program = filepath.Join(dir, "turbotunnel-"+folder)
		if err := build(*program, folder); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	raceLog = filepath.Join(dir, "race")

	code := m.Run()
	if err := goleak.Find(before); err != nil {
		fmt.Println(err)
		code = 1
	}
	races, err := filepath.Glob(raceLog + ".*")
	if err != nil {
		panic(err) // the pattern has no special characters
	}
	for _, name := range races {
		fmt.Println("a program has a data race:")
		fmt.Println(proc.Tail(name))
		code = 1
	}
	return code
}

// build makes a program, with more flags, in its own module, so that it is made as
// users make it.
func build(program, folder string, flags ...string) error {
	args := append([]string{"-C", Root, "build", "-o", program}, buildFlags...)
	args = append(append(args, flags...), "./"+folder)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", folder, err, out)
	}
	return nil
}

// WithFile makes the program of a folder, client or server, with a file more in it
// whose text is given, and returns the program's name.
func WithFile(t *testing.T, folder, text string) string {
	t.Helper()
	dir := Folder(t)
	root, err := filepath.Abs(Root)
	if err != nil {
		t.Fatal(err)
	}
	file, overlay, program := filepath.Join(dir, "more.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, folder)
	Write(t, file, text)
	Write(t, overlay, fmt.Sprintf(`{"Replace": {%q: %q}}`, filepath.Join(root, folder, "of_a_test_more.go"), file))
	if err := build(program, folder, "-overlay", overlay); err != nil {
		t.Fatal(err)
	}
	return program
}

// RaceEnv is what the environment of a program needs that was built by Main.
// Start adds it by itself. The race detector would hold each program back for a
// second at its end.
func RaceEnv() string { return "GORACE=atexit_sleep_ms=0 log_path=" + raceLog }

// Folder is a new one, kept when the test fails.
func Folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "turbotunnel-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("files kept in %s", dir)
			return
		}
		os.RemoveAll(dir)
	})
	return dir
}

// Write writes a file that nobody else may read.
func Write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Addrs are n of 127.0.0.1, host:port, on which nobody listens.
func Addrs(t *testing.T, n int) []string {
	t.Helper()
	addrs, err := proc.FreeAddrs(n)
	if err != nil {
		t.Fatal(err)
	}
	return addrs
}

// Addr is one of Addrs.
func Addr(t *testing.T) string { return Addrs(t, 1)[0] }

// Start starts a program, which ends with the test. One that is not installed
// fails the test: a test that passes because it did not run hides what it is
// for.
func Start(t *testing.T, cmd *exec.Cmd) *proc.Process {
	t.Helper()
	name := filepath.Base(cmd.Path)
	log, err := os.CreateTemp(Folder(t), name+".")
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
	cmd.Env = append(cmd.Environ(), RaceEnv())
	p, err := proc.Start(name, log.Name(), cmd)
	if err != nil {
		t.Fatalf("%v: make test installs it", err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(p.Tail())
		}
	})
	return p
}

// Listen starts a program and waits until somebody listens on addr.
func Listen(t *testing.T, addr string, cmd *exec.Cmd) *proc.Process {
	t.Helper()
	p := Start(t, cmd)
	ctx, cancel := context.WithTimeout(t.Context(), WaitLimit)
	defer cancel()
	if err := p.Wait(ctx, "a listener on "+addr, func() error { return proc.Listening(addr) }); err != nil {
		t.Fatal(err)
	}
	return p
}

// Await calls check until it returns nil.
func Await(t *testing.T, what string, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(WaitLimit); ; time.Sleep(pollInterval) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// Logged waits until what p has printed matches the regular expression pattern,
// and returns what its last group matched.
func Logged(t *testing.T, p *proc.Process, pattern string) (group string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	Await(t, fmt.Sprintf("%q", pattern), func() error {
		text, err := os.ReadFile(p.Log())
		if err != nil {
			return err
		}
		m := re.FindStringSubmatch(string(text))
		if m == nil {
			return fmt.Errorf("not in\n%s", text)
		}
		group = m[len(m)-1]
		return nil
	})
	return group
}

// StartServer starts turbotunnel-server as a program that serves on listen and
// connects streams to forward.
func StartServer(t *testing.T, listen, forward string, flags ...string) *proc.Process {
	t.Helper()
	return Listen(t, listen, exec.Command(Server, append(flags, listen, forward)...))
}

// Key is what clients need of a server whose -state-dir is state. The server listens
// before it has written that.
func Key(t *testing.T, state string) string {
	t.Helper()
	var line []byte
	Await(t, "turbo_bridgeline.txt", func() (err error) {
		line, err = os.ReadFile(filepath.Join(state, "turbo_bridgeline.txt"))
		return err
	})
	_, key, ok := strings.Cut(strings.TrimSpace(string(line)), "key=")
	if !ok {
		t.Fatalf("no key in %q", line)
	}
	key, _, _ = strings.Cut(key, " ")
	return key
}

// A Tunnel is a running turbotunnel-client.
type Tunnel struct {
	*proc.Process
	Addr string       // where it listens
	HTTP *http.Client // whose connections go through it, one for each request
}

func newTunnel(t *testing.T, p *proc.Process, addr string, dial func(ctx context.Context) (net.Conn, error)) *Tunnel {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &Tunnel{Process: p, Addr: addr, HTTP: &http.Client{Transport: transport}}
}

// StartClient starts turbotunnel-client as a program that forwards what is
// dialed at its Addr, with env added to its environment.
func StartClient(t *testing.T, url string, env []string, flags ...string) *Tunnel {
	t.Helper()
	addr := Addr(t)
	cmd := exec.Command(Client, append(flags, addr, url)...)
	cmd.Env = append(os.Environ(), env...)
	return newTunnel(t, Listen(t, addr, cmd), addr, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	})
}

// cmethod is how a transport tells tor where its SOCKS proxy is.
const cmethod = `CMETHOD turbo socks5 (\S+)`

// maxUser is the longest user name of a SOCKS request, in bytes (RFC 1929).
const maxUser = 255

// StartTransport starts turbotunnel-client as tor does, and uses it as tor
// does: its HTTP makes each connection by a SOCKS request with the arguments of
// a bridge line. What it tells tor stands in its log.
func StartTransport(t *testing.T, env []string, args ...string) *Tunnel {
	t.Helper()
	cmd := exec.Command(Client)
	cmd.Env = append(os.Environ(),
		"TOR_PT_MANAGED_TRANSPORT_VER=1", "TOR_PT_CLIENT_TRANSPORTS=turbo", "TOR_PT_STATE_LOCATION="+Folder(t))
	cmd.Env = append(cmd.Env, env...)
	p := Start(t, cmd)
	addr := Logged(t, p, cmethod)
	// What does not fit into the user name stands in the password, which
	// cannot be empty.
	user, password := strings.Join(args, ";"), "\x00"
	if len(user) > maxUser {
		user, password = user[:maxUser], user[maxUser:]
	}
	socks, err := proxy.SOCKS5("tcp", addr, &proxy.Auth{User: user, Password: password}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return newTunnel(t, p, addr, func(ctx context.Context) (net.Conn, error) {
		// The address in a bridge line means nothing.
		return socks.(proxy.ContextDialer).DialContext(ctx, "tcp", "192.0.2.3:80")
	})
}
