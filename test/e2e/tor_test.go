package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/test/cdn"
	"turbotunnel/test/guide"
	"turbotunnel/test/programs"
	"turbotunnel/test/target"
	"turbotunnel/test/tornet"
)

const (
	// transferSize is what goes through tor each way, in bytes.
	transferSize = 20e6

	// transferLimit bounds one transfer: a minute's worth of what takes
	// seconds without the race detector.
	transferLimit = 3 * time.Minute
)

// torTest is a private Tor network whose bridge is behind turbotunnel-server.
type torTest struct {
	network *tornet.Network
	web     *target.Server
	exec    string // of the client's transport
	key     string // argument of the bridge line: key=…
}

func startTorTest(t *testing.T) *torTest {
	t.Helper()
	web, err := target.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { web.Close() })

	ctx, cancel := context.WithTimeout(t.Context(), 2*programs.WaitLimit)
	defer cancel()
	network, err := tornet.Start(ctx, tornet.Options{
		Dir:        programs.Folder(t),
		Transport:  "turbo",
		ServerExec: serverExec(t) + " -url https://" + cdn.Origin + "/path -fronts " + cdn.Front,
		GeoIP: map[netip.Prefix]string{
			netip.MustParsePrefix("192.0.2.0/25"):      "aa",
			netip.MustParsePrefix("192.0.2.128/25"):    "bb",
			netip.MustParsePrefix("198.51.100.0/25"):   "cc",
			netip.MustParsePrefix("198.51.100.128/25"): "dd",
			netip.MustParsePrefix("203.0.113.0/24"):    "ff",
		},
		LogUserAddr: true,
		Env:         []string{programs.RaceEnv()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(network.BridgeTail())
		}
	})

	args, err := network.BridgeArgs("turbo_bridgeline.txt")
	if err != nil {
		t.Fatal(err)
	}
	tt := &torTest{network: network, web: web, exec: clientExec(t)}
	for _, arg := range strings.Fields(args) {
		if strings.HasPrefix(arg, "key=") {
			tt.key = arg
		}
	}
	if tt.key == "" {
		t.Fatalf("the bridge line that the server wrote has no key: %q", args)
	}
	return tt
}

// client starts a tor client with opts and the transport, waits until it is
// connected, and returns a web client that goes through it.
func (tt *torTest) client(ctx context.Context, t *testing.T, opts tornet.ClientOptions) *http.Client {
	t.Helper()
	opts.Transport = "turbo"
	opts.Exec = tt.exec
	opts.Addr = "192.0.2.3:80" // means nothing to the transport
	opts.Args += " " + tt.key
	transport := &http.Transport{DialContext: tt.start(ctx, t, opts).DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// start starts a tor client and waits until it is connected.
func (tt *torTest) start(ctx context.Context, t *testing.T, opts tornet.ClientOptions) *tornet.Client {
	t.Helper()
	c, err := tt.network.StartClient(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(c.Tail())
		}
	})
	start := time.Now()
	if err := c.Bootstrap(ctx, nil); err != nil {
		t.Fatal(err)
	}
	t.Logf("100 %% after %v", time.Since(start).Round(time.Millisecond))
	return c
}

// transfer moves transferSize bytes each way and checks every byte.
func (tt *torTest) transfer(ctx context.Context, t *testing.T, client *http.Client) {
	t.Helper()
	if err := tt.web.Get(ctx, client); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := tt.web.Download(ctx, client, 1, transferSize, io.Discard); err != nil {
		t.Fatal(err)
	}
	middle := time.Now()
	if err := tt.web.Upload(ctx, client, 2, transferSize, io.Discard); err != nil {
		t.Fatal(err)
	}
	t.Logf("20 MB down in %v, 20 MB up in %v",
		middle.Sub(start).Round(time.Millisecond), time.Since(middle).Round(time.Millisecond))
}

// checkAddress checks that tor knows a client by its address, and counts
// clients from that country, but none from the one that clients claim.
func (tt *torTest) checkAddress(ctx context.Context, t *testing.T, address, country string) {
	t.Helper()
	if err := tt.network.WaitUserAddr(ctx, netip.MustParseAddr(address)); err != nil {
		t.Error(err)
	}
	seen, err := tt.network.ClientsSeen()
	if err != nil {
		t.Fatal(err)
	}
	if seen[country] == 0 || seen["ff"] != 0 {
		t.Errorf("clients by country: %v, want some from %s and none from ff", seen, country)
	}
}

// counter counts the bytes written to it. It is safe for concurrent use.
type counter struct{ n atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// busy runs a download without end while during runs, and checks that it moves
// before and throughout.
func (tt *torTest) busy(ctx context.Context, t *testing.T, client *http.Client, during func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	var got counter
	ended := make(chan error, 1)
	go func() { ended <- tt.web.Download(ctx, client, 3, 1<<40, &got) }()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the busy download ended by itself: %v", err)
		}
	}()
	moves := func() {
		t.Helper()
		const enough = 1 << 20
		start := got.n.Load()
		limit := time.Now().Add(programs.WaitLimit)
		for got.n.Load() < start+enough {
			if time.Now().After(limit) {
				t.Fatalf("the busy download stands still at %d bytes", got.n.Load())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	moves()
	during()
	moves()
}

// plain is how a tor client reaches a plain reverse proxy.
func plain(c *cdn.CDN, engine string) tornet.ClientOptions {
	return tornet.ClientOptions{Args: fmt.Sprintf("url=http://%s/path engine=%s", c.Addr(), engine)}
}

// fronted is how a tor client reaches a CDN: by an address, while TLS names the
// front.
func fronted(c *guide.CDN, engine string) tornet.ClientOptions {
	return tornet.ClientOptions{
		Args: fmt.Sprintf("url=https://%s/path front=%s addr=%s engine=%s", cdn.Origin, cdn.Front, c.Addr, engine),
		Env:  []string{"SSL_CERT_FILE=" + c.CAFile},
	}
}

// TestTor runs real tor through the tunnel: one bridge, and for each engine
// clients behind a plain reverse proxy and behind a CDN with domain fronting.
func TestTor(t *testing.T) {
	t.Parallel()
	tt := startTorTest(t)
	for i, engine := range engines.Names() {
		country := []string{"aa", "bb", "cc", "dd"}[i]
		network := []string{"192.0.2.1", "192.0.2.20", "198.51.100.1", "198.51.100.20"}[i] // and a digit
		t.Run(engine, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), transferLimit)
			defer cancel()
			first := runPlainProxy(t, tt.network.BridgeAddr(), network+"1")
			client := tt.client(ctx, t, plain(first, engine))
			tt.checkAddress(ctx, t, network+"1", country)
			tt.transfer(ctx, t, client)
			if sessionCount(first) == 0 {
				t.Error("no session went through the proxy")
			}

			tt.busy(ctx, t, client, func() {
				second := runPlainProxy(t, tt.network.BridgeAddr(), network+"2")
				client := tt.client(ctx, t, plain(second, engine))
				tt.checkAddress(ctx, t, network+"2", country)
				if err := tt.web.Get(ctx, client); err != nil {
					t.Error(err)
				}
				if err := tt.web.Download(ctx, client, 4, 1e6, io.Discard); err != nil {
					t.Error(err)
				}
			})
		})
		// By turns: what the CDN is and what the engine is have nothing to do
		// with each other.
		k := guide.Kinds[i%len(guide.Kinds)]
		t.Run(engine+"-"+k.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), transferLimit)
			defer cancel()
			c := guide.StartCDN(t, k, cdn.Front, tt.network.BridgeAddr(), k.Claims(network+"3")...)
			client := tt.client(ctx, t, fronted(c, engine))
			tt.checkAddress(ctx, t, network+"3", country)
			tt.transfer(ctx, t, client)
			c.CheckRequests(t, cdn.Front, "/path/")
		})
	}
	t.Run("bridge line", func(t *testing.T) { testBridgeLine(t, tt) })
	t.Run("tor restarted", func(t *testing.T) { testTorRestarted(t, tt) })
	t.Run("proxies of clients", func(t *testing.T) { testClientProxies(t, tt) })
	t.Run("proxies of servers", func(t *testing.T) { testServerProxies(t, tt) })
}

// testBridgeLine gives tor the line as the server has written it at its first
// start. The CDN's address is in no DNS, so the client is told it by a flag.
func testBridgeLine(t *testing.T, tt *torTest) {
	ctx, cancel := context.WithTimeout(t.Context(), transferLimit)
	defer cancel()
	line, err := tt.network.BridgeLine("turbo_bridgeline.txt")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(line)
	c := guide.StartCDN(t, guide.Kinds[0], cdn.Front, tt.network.BridgeAddr())
	client := tt.start(ctx, t, tornet.ClientOptions{
		Transport: "turbo",
		Exec:      tt.exec + " -addr " + c.Addr,
		Line:      line,
		Env:       []string{"SSL_CERT_FILE=" + c.CAFile},
	})
	transport := &http.Transport{DialContext: client.DialContext}
	defer transport.CloseIdleConnections()
	if err := tt.web.Get(ctx, &http.Client{Transport: transport}); err != nil {
		t.Fatal(err)
	}
}

// testTorRestarted ends the bridge's tor under a client of each engine: each gets a
// page once it is back, without anything done to the client.
func testTorRestarted(t *testing.T, tt *torTest) {
	ctx, cancel := context.WithTimeout(t.Context(), transferLimit)
	defer cancel()
	clients := make(map[string]*http.Client)
	for _, engine := range engines.Names() {
		clients[engine] = tt.client(ctx, t, plain(runPlainProxy(t, tt.network.BridgeAddr(), "192.0.2.99"), engine))
	}
	if err := tt.network.RestartBridge(ctx); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	for engine, client := range clients {
		client.CloseIdleConnections() // of circuits that are gone
		programs.Await(t, "a page by "+engine, func() error {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			return tt.web.Get(ctx, client)
		})
		t.Logf("%s: a page %v after tor was back", engine, time.Since(back).Round(time.Millisecond))
	}
}
