package tornet

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"turbotunnel/test/target"
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
	if tors, transports := n.Processes(); len(tors) != authorityCount+2 || len(transports) != 2 {
		t.Errorf("%d tors and %d programs of transports run, want %d and 2", len(tors), len(transports), authorityCount+2)
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
	if seen["zz"] == 0 {
		t.Errorf("clients seen: %v, want some from zz", seen)
	}

	// tor on top of obfs4 makes 15 to 40 MB/s here: a second or two.
	const size = 20e6
	web, err := target.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	transport := &http.Transport{DialContext: c.DialContext}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	start := time.Now()
	if err := web.Get(ctx, client); err != nil {
		t.Error(err)
	}
	if err := web.Download(ctx, client, 1, size, io.Discard); err != nil {
		t.Error(err)
	}
	if err := web.Upload(ctx, client, 2, size, io.Discard); err != nil {
		t.Error(err)
	}
	t.Logf("20 MB each way in %v", time.Since(start))
}
