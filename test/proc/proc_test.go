package proc

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, script string) *Process {
	t.Helper()
	p, err := Start("sh", filepath.Join(t.TempDir(), "log"), exec.Command("sh", "-c", script))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	return p
}

// printed waits until the program's log ends with text.
func printed(t *testing.T, p *Process, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := p.Wait(ctx, text, func() error {
		if !strings.HasSuffix(p.Tail(), text+"\n") {
			return errors.New("not printed")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestStopByTerm(t *testing.T) {
	p := start(t, `trap "echo term; exit 3" TERM; echo ready; while :; do sleep 0.01; done`)
	printed(t, p, "ready")
	if err := p.Stop(); err != nil {
		t.Errorf("Stop: %v", err)
	}
	printed(t, p, "term")
	var exit *exec.ExitError
	if !errors.As(p.Status(), &exit) || exit.ExitCode() != 3 {
		t.Errorf("Status: %v, want exit code 3", p.Status())
	}
	if err := p.Stop(); err != nil {
		t.Errorf("Stop again: %v", err)
	}
}

func TestStopKillsTheDeaf(t *testing.T) {
	p := start(t, `trap "" TERM; echo ready; while :; do sleep 0.01; done`)
	printed(t, p, "ready")
	if err := p.Stop(); err != nil {
		t.Errorf("Stop: %v", err)
	}
	var exit *exec.ExitError
	if !errors.As(p.Status(), &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("Status: %v, want killed", p.Status())
	}
}

func TestStopFindsWhatIsLeft(t *testing.T) {
	p := start(t, `(trap "" TERM; exec sleep 1000) & echo ready; wait`)
	printed(t, p, "ready")
	if left := p.Group(); len(left) != 2 {
		t.Errorf("in the group: %d, want sh and its child", left)
	}
	err := p.Stop()
	if err == nil || !strings.Contains(err.Error(), "left behind") {
		t.Errorf("Stop: %v, want the child named", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(group(p.cmd.Process.Pid)) > 0 {
		if ctx.Err() != nil {
			t.Fatal("still there after Stop")
		}
	}
}

func TestKillLeavesNothing(t *testing.T) {
	p := start(t, `trap "" TERM; (trap "" TERM; exec sleep 1000) & echo ready; wait`)
	printed(t, p, "ready")
	if err := p.Kill(); err != nil {
		t.Errorf("Kill: %v", err)
	}
	var exit *exec.ExitError
	if !errors.As(p.Status(), &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("Status: %v, want killed", p.Status())
	}
	if left := group(p.cmd.Process.Pid); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("Stop after Kill: %v", err)
	}
}

func TestWaitSaysWhyAndShowsTheLog(t *testing.T) {
	p := start(t, `echo the last words`)
	err := p.Wait(t.Context(), "the impossible", func() error { return errors.New("not yet") })
	for _, want := range []string{"sh ended", "the impossible", "not yet", "the last words"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

func TestStartServing(t *testing.T) {
	addrs, err := FreeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command("sh", "-c", "echo elsewhere; exec sleep 100")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = StartServing(ctx, "sh", log, cmd, addrs[0])
	for _, want := range []string{addrs[0], "elsewhere"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
	if left := group(cmd.Process.Pid); len(left) > 0 {
		t.Errorf("left running: %v", left)
	}
}

func TestFreePorts(t *testing.T) {
	ports, err := FreePorts(50)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, port := range ports {
		if port < firstPort || port > lastPort || seen[port] {
			t.Errorf("port %d out of range or twice", port)
		}
		seen[port] = true
	}
	if len(seen) != 50 {
		t.Errorf("%d ports, want 50", len(seen))
	}
}

func TestListening(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := Listening(l.Addr().String()); err != nil {
		t.Error(err)
	}
	l.Close()
	if err := Listening(l.Addr().String()); err == nil {
		t.Error("a closed listener still listens")
	}
}
