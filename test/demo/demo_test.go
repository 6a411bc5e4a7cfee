package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"turbotunnel/test/proc"
)

// runLimit bounds one run of the demo, which takes about half a minute.
const runLimit = 5 * time.Minute

// A run is the demo as a process of its own, started as make demo does.
type run struct {
	process *proc.Process
	tmp     string // all that it writes is in here
}

func start(t *testing.T, env ...string) *run {
	t.Helper()
	if testing.Short() {
		t.Skip("runs the demo")
	}
	program := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := &run{tmp: t.TempDir()}
	cmd := exec.Command(program)
	cmd.Dir = "../.."
	cmd.Env = append(append(os.Environ(), "TMPDIR="+r.tmp), env...)
	var err error
	if r.process, err = proc.Start("demo", filepath.Join(t.TempDir(), "log"), cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.process.Stop() })
	return r
}

// output waits for the demo's end and returns its exit code and what it said.
// It checks that nothing is left of it.
func (r *run) output(t *testing.T) (int, string) {
	t.Helper()
	select {
	case <-r.process.Exited():
	case <-time.After(runLimit):
		t.Fatalf("the demo does not end\n%s", r.process.Tail())
	}
	if err := r.process.Stop(); err != nil {
		t.Error(err)
	}
	out, err := os.ReadFile(r.process.Log())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", out)

	files, err := filepath.Glob(filepath.Join(r.tmp, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		// The go command leaves its folder when it is killed.
		if !strings.HasPrefix(filepath.Base(name), "go-build") {
			t.Errorf("%s is left", name)
		}
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range lines {
		if line, err := os.ReadFile(name); err == nil && bytes.Contains(line, []byte(r.tmp)) {
			t.Errorf("still running: %q", line)
		}
	}

	code := 0
	if err := r.process.Status(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatal(err)
		}
		code = exit.ExitCode()
	}
	return code, string(out)
}

// check checks that a run succeeded, and said what it has to say in plain text.
func check(t *testing.T, code int, out string, want ...string) {
	t.Helper()
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, text := range want {
		if !strings.Contains(out, text) {
			t.Errorf("the demo did not say %q", text)
		}
	}
	if strings.ContainsAny(out, "\r\x1b") {
		t.Error("control codes in a file")
	}
}

func TestDemo(t *testing.T) {
	if !testing.Short() {
		for _, program := range []string{"tor", "tor-gencert"} {
			if _, err := exec.LookPath(program); err != nil {
				t.Fatalf("%v: make test installs it", err)
			}
		}
	}
	code, out := start(t).output(t)
	check(t, code, out, "100 % Done", "Down through tor and the tunnel: 20.0 of 20.0 MB",
		"Up through tor and the tunnel: 20.0 of 20.0 MB", "Down through tor alone", "front.example")
}

// TestDemoWithoutTor gives the demo a PATH with everything but tor and what
// would install it.
func TestDemoWithoutTor(t *testing.T) {
	bin := t.TempDir()
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		programs, _ := os.ReadDir(dir) // a PATH may name folders that are not there
		for _, program := range programs {
			switch name := program.Name(); name {
			case "tor", "tor-gencert", "apt-get", "dpkg-query":
			default:
				err := os.Symlink(filepath.Join(dir, name), filepath.Join(bin, name))
				if err != nil && !errors.Is(err, os.ErrExist) {
					t.Fatal(err)
				}
			}
		}
	}
	code, out := start(t, "PATH="+bin).output(t)
	check(t, code, out, "tor cannot be installed here", "Down through the tunnel: 20.0 of 20.0 MB",
		"Up through the tunnel: 20.0 of 20.0 MB", "front.example")
}

// TestDemoInterrupted ends the demo while its Tor network starts.
func TestDemoInterrupted(t *testing.T) {
	r := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	err := r.process.Wait(ctx, "the authorities' vote", func() error {
		if !strings.Contains(r.process.Tail(), "authorities vote") {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	code, out := r.output(t)
	if code != 130 || !strings.Contains(out, "Interrupted") {
		t.Errorf("exit code %d, want 130", code)
	}
}
