package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"turbotunnel/internal/logtest"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

// leakless fails a run of tests that leaves a goroutine behind.
type leakless struct{ *testing.M }

func (m leakless) Run() int {
	code := m.M.Run()
	err := goleak.Find(
		// autocert's, which ends with its next request after ours has ended.
		goleak.IgnoreAnyFunction("golang.org/x/crypto/acme/autocert.(*Manager).deactivatePendingAuthz"),
		// kcp-go starts these when it is loaded.
		goleak.IgnoreTopFunction("github.com/xtaci/kcp-go/v5.(*TimedSched).run"),
	)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// TestMain also makes this binary the program itself, for scripts and for
// start.
func TestMain(m *testing.M) {
	testscript.Main(leakless{m}, map[string]func(){"turbotunnel-server": main})
}

// TestScript runs the program as people and tor do. Each script has an address
// that is taken in $TAKEN.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			env.Defer(func() { ln.Close() })
			env.Setenv("TAKEN", ln.Addr().String())
			return nil
		},
	})
}

func newLog() (*slog.Logger, *logtest.Buffer) {
	b := new(logtest.Buffer)
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug})), b
}

// A port that is given back is taken, and one that is not is an error.
func TestListenPatiently(t *testing.T) {
	old, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address, waited := old.Addr().String(), 0
	ln, err := listenPatiently(t.Context(), address, patience, func() { waited++; old.Close() })
	if err != nil || waited != 1 {
		t.Fatalf("%v; waited %d times", err, waited)
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := listenPatiently(ctx, address, patience, cancel); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("told to stop: %v", err)
	}
	if _, err := listenPatiently(t.Context(), address, time.Nanosecond, func() {}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("after some time: %v", err)
	}
}
