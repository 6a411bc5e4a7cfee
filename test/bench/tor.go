package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/test/cdn"
	"turbotunnel/test/target"
	"turbotunnel/test/tornet"
)

const (
	torName = "through tor"

	// torBytes go each way in each run.
	torBytes = 20e6

	// torRuns is how often both are measured, one after the other. The median
	// counts.
	torRuns = 3

	// torLimit bounds the scenario, which takes about a minute.
	torLimit = 4 * time.Minute
)

// torFigures are MB/s through a private Tor network on loopback, run by run, by
// tor alone and through the tunnel.
type torFigures struct {
	AloneDown, AloneUp []float64
	Down, Up           []float64
	Skipped            string // why it was not measured
	Error              string
}

// median of what may be empty.
func median(x []float64) float64 {
	if len(x) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(x))
	return s[len(s)/2]
}

// ratios are those of the medians. 0: not measured.
func (f *torFigures) ratios() (down, up float64) {
	if f.Error != "" {
		return 0, 0
	}
	return median(f.Down) / median(f.AloneDown), median(f.Up) / median(f.AloneUp)
}

// tor measures, with two tor clients of one network: one goes to the bridge
// directly, one through both programs.
func (b *bench) tor() *torFigures {
	fmt.Printf("%s %s\n", time.Now().Format(time.TimeOnly), torName)
	f := new(torFigures)
	for _, program := range []string{"tor", "tor-gencert"} {
		if _, err := exec.LookPath(program); err != nil {
			f.Skipped = fmt.Sprintf("%s is not installed: install the Debian package tor", program)
			fmt.Printf("    skipped: %s\n", f.Skipped)
			return f
		}
	}
	if err := b.torMeasure(f); err != nil {
		f.Error = err.Error()
		fmt.Printf("    FAILED: %s\n", f.Error)
		return f
	}
	down, up := f.ratios()
	fmt.Printf("    down %.1f MB/s (%.2f of tor alone), up %.1f (%.2f)\n", median(f.Down), down, median(f.Up), up)
	return f
}

func (b *bench) torMeasure(f *torFigures) (err error) {
	ctx, cancel := context.WithTimeout(b.ctx, torLimit)
	defer cancel()
	dir := filepath.Join(b.dir, "tor")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	web, err := target.Start()
	if err != nil {
		return err
	}
	defer web.Close()
	network, err := tornet.Start(ctx, tornet.Options{
		Dir:       dir,
		Transport: "turbo",
		ServerExec: fmt.Sprintf("%s %s -url https://%s/bench", filepath.Join(b.bin, "turbotunnel-server"),
			strings.Join(b.tlsFlags(), " "), cdn.Front),
		Env: []string{"SSL_CERT_FILE=" + b.ca},
	})
	if err != nil {
		return err
	}
	defer network.Close() //nolint:errcheck // it has been measured
	args, err := network.BridgeArgs("turbo_bridgeline.txt")
	if err != nil {
		return err
	}
	alone, err := torClient(ctx, network, web, tornet.ClientOptions{Addr: network.ORAddr()})
	if err != nil {
		return fmt.Errorf("tor alone: %w", err)
	}
	defer alone.CloseIdleConnections()
	tunnel, err := torClient(ctx, network, web, tornet.ClientOptions{
		Transport: "turbo",
		Exec:      filepath.Join(b.bin, "turbotunnel-client"),
		Addr:      "192.0.2.3:80", // means nothing to the transport
		Args:      fmt.Sprintf("%s addr=%s engine=%s", args, network.BridgeAddr(), engines.Default),
	})
	if err != nil {
		return fmt.Errorf("the tunnel: %w", err)
	}
	defer tunnel.CloseIdleConnections()
	for range torRuns {
		for _, one := range []struct {
			name   string
			client *http.Client
			move   func(context.Context, *http.Client, uint64, int64, io.Writer) error
			rates  *[]float64
		}{
			{"tor alone, down", alone, web.Download, &f.AloneDown},
			{"the tunnel, down", tunnel, web.Download, &f.Down},
			{"tor alone, up", alone, web.Upload, &f.AloneUp},
			{"the tunnel, up", tunnel, web.Upload, &f.Up},
		} {
			start := time.Now()
			if err := one.move(ctx, one.client, transfers.Add(1), torBytes, io.Discard); err != nil {
				return fmt.Errorf("%s: %w", one.name, err)
			}
			*one.rates = append(*one.rates, mbps(torBytes, time.Since(start)))
			fmt.Printf("    %s: %.1f MB/s\n", one.name, mbps(torBytes, time.Since(start)))
		}
	}
	return nil
}

// torClient starts a tor client and returns an HTTP client through it, whose
// connection is open and has moved something both ways.
func torClient(ctx context.Context, network *tornet.Network, web *target.Server, opts tornet.ClientOptions) (*http.Client, error) {
	c, err := network.StartClient(ctx, opts)
	if err != nil {
		return nil, err
	}
	if err := c.Bootstrap(ctx, nil); err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: c.DialContext}}
	if err := web.Download(ctx, client, transfers.Add(1), torBytes/8, io.Discard); err != nil {
		return nil, err
	}
	return client, web.Upload(ctx, client, transfers.Add(1), torBytes/8, io.Discard)
}

func (f *torFigures) text(s *strings.Builder) {
	if f.Skipped != "" {
		fmt.Fprintf(s, "\nThrough tor: not measured, because %s.\n", f.Skipped)
		return
	}
	fmt.Fprintf(s, "\nThrough tor: a private Tor network on loopback, whose clients reach one bridge directly or through both programs over HTTPS; %d MB each way, by turns, %d times. Megabytes a second, the median, and in brackets all of them:\n\n", int(torBytes/1e6), torRuns)
	list := func(x []float64) string {
		all := make([]string, len(x))
		for i, x := range x {
			all[i] = fmt.Sprintf("%.1f", x)
		}
		return fmt.Sprintf("%s (%s)", orDash(median(x), "%.1f"), strings.Join(all, ", "))
	}
	down, up := f.ratios()
	s.WriteString(table{
		{"", "tor alone", "through the tunnel", "ratio"},
		{"down", list(f.AloneDown), list(f.Down), orDash(down, "%.2f")},
		{"up", list(f.AloneUp), list(f.Up), orDash(up, "%.2f")},
	}.String())
	if f.Error != "" {
		fmt.Fprintf(s, "\nFailed: %s: `%s`.\n", torName, strings.Join(strings.Fields(f.Error), " "))
	}
}
