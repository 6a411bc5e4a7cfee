package tornet

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start starts a network for a test. A test that fails keeps its folder.
func start(t *testing.T, opts Options) *Network {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a Tor network")
	}
	dir, err := os.MkdirTemp("", "tornet")
	if err != nil {
		t.Fatal(err)
	}
	opts.Dir = dir
	opts.Progress = func(text string) { t.Log(text) }
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n, err := Start(ctx, opts)
	if err != nil {
		t.Fatalf("%v\nlogs kept in %s", err, dir)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if t.Failed() {
			t.Logf("logs kept in %s", dir)
			return
		}
		os.RemoveAll(dir)
	})
	return n
}

// TestObfs4 proves the network with transports that are not this project's:
// none, and obfs4. When the tests of the tunnel fail and this one does not, the
// tunnel is to blame.
func TestObfs4(t *testing.T) {
	n := start(t, Options{
		Transport:   "obfs4",
		ServerExec:  "/usr/bin/obfs4proxy",
		GeoIP:       map[netip.Prefix]string{netip.MustParsePrefix("127.0.0.0/8"): "zz"},
		LogUserAddr: true,
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	args, err := n.BridgeArgs("obfs4_bridgeline.txt")
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.StartClient(ctx, ClientOptions{
		Transport: "obfs4",
		Exec:      "/usr/bin/obfs4proxy",
		Args:      args,
	})
	if err != nil {
		t.Fatal(err)
	}
	stages := 0
	err = c.Bootstrap(ctx, func(percent int, what string) {
		stages++
		t.Logf("%d %% %s", percent, what)
	})
	if err != nil {
		t.Fatal(err)
	}
	if stages < 2 {
		t.Errorf("%d stages of bootstrapping seen", stages)
	}
	if err := n.WaitUserAddr(ctx, netip.MustParseAddr("127.0.0.1")); err != nil {
		t.Error(err)
	}
	seen, err := n.ClientsSeen()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("clients seen: %v", seen)
}
