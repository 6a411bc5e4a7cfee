// Package e2e tests both programs from outside: with a real Tor network, real
// reverse proxies, and the programs that people put at the ends of a tunnel.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"turbotunnel/test/proc"
)

// buildFlags are go build's. Tests under the race detector run programs under
// the race detector.
var buildFlags []string

// raceLog is the start of the names of the files to which programs built with
// the race detector write what it finds.
var raceLog string

// Both programs, built by TestMain.
var clientProgram, serverProgram string

// engines are tested one by one.
var engines = []string{"kcp", "kcp-smux", "quic", "sctp"}

// waitLimit bounds the wait for what takes a second on an idle machine.
const waitLimit = time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if testing.Short() {
		fmt.Println("nothing is tested end to end with -short")
		return 0
	}
	// kcp-go, which the tunnel's packages bring along, starts some by itself.
	before := goleak.IgnoreCurrent()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	for program, folder := range map[*string]string{&clientProgram: "client", &serverProgram: "server"} {
		*program = filepath.Join(dir, "turbotunnel-"+folder)
		args := append([]string{"build", "-o", *program}, buildFlags...)
		cmd := exec.Command("go", append(args, "turbotunnel/"+folder)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Printf("go build %s: %v\n%s", folder, err, out)
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

// raceEnv is added to the environment of programs.
func raceEnv() string { return "GORACE=log_path=" + raceLog }

// needs fails the test when a program is missing: a test that passes because
// it did not run hides what it is for.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: make test installs it", err)
		}
	}
}

// logDir is a folder for logs, kept when the test fails.
func logDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs kept in %s", dir)
			return
		}
		os.RemoveAll(dir)
	})
	return dir
}

// runCommand starts a program that the test ends.
func runCommand(t *testing.T, cmd *exec.Cmd) *proc.Process {
	t.Helper()
	name := filepath.Base(cmd.Path)
	log, err := os.CreateTemp(logDir(t), name+".")
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
	cmd.Env = append(cmd.Environ(), raceEnv())
	p, err := proc.Start(name, log.Name(), cmd)
	if err != nil {
		t.Fatal(err)
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

// runListener starts a program and waits until somebody listens on addr.
func runListener(t *testing.T, addr string, cmd *exec.Cmd) *proc.Process {
	t.Helper()
	p := runCommand(t, cmd)
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	err := p.Wait(ctx, "a listener on "+addr, func() error {
		return proc.Listening(addr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// freeAddr is a host:port on which nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	ports, err := proc.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0])
}

// runServer starts the server in forwarding mode and returns its address.
func runServer(t *testing.T, forward string, flags ...string) (string, *proc.Process) {
	t.Helper()
	addr := freeAddr(t)
	return addr, runServerAt(t, addr, forward, flags...)
}

func runServerAt(t *testing.T, addr, forward string, flags ...string) *proc.Process {
	t.Helper()
	return runListener(t, addr, exec.Command(serverProgram, append(flags, addr, forward)...))
}

// runClient starts the client in forwarding mode and returns its address.
func runClient(t *testing.T, url string, flags ...string) (string, *proc.Process) {
	t.Helper()
	addr := freeAddr(t)
	return addr, runListener(t, addr, exec.Command(clientProgram, append(flags, addr, url)...))
}

// dial connects to addr. A read or write that hangs fails after waitLimit.
func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, waitLimit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(waitLimit)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}
