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

	// torBytes go each way in each run: the kernel's ticks of 10 ms, by which it
	// counts what a process uses, are a quarter of a second for a gigabyte.
	torBytes = 40e6

	// torRuns is how often all are measured, one after the other. The median
	// counts.
	torRuns = 5

	// torLimit bounds the scenario, which takes about a minute and a half.
	torLimit = 4 * time.Minute
)

// torFigures are what a private Tor network on loopback carries.
type torFigures struct {
	Alone, Tunnel torWay
	Obfs4         torWay // nothing: obfs4proxy is not installed
	Skipped       string // why it was not measured
	Error         string
}

// A torWay is how a tor client reaches its bridge, run by run.
type torWay struct {
	Down, Up                 []float64 // MB/s
	First                    []float64 // ms until a page has come over a new stream
	CPUDown, CPUUp           []float64 // seconds for a GB of all: tors, programs and load
	ProgramsDown, ProgramsUp []float64 // of them of the transport's two programs
}

// median of what may be empty.
func median(x []float64) float64 {
	if len(x) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(x))
	return s[len(s)/2]
}

// ratios are those of the tunnel's medians. 0: not measured.
func (f *torFigures) ratios() (down, up float64) {
	if f.Error != "" {
		return 0, 0
	}
	return f.Tunnel.of(&f.Alone)
}

// of is which share of another way's rates a way has. 0: not measured.
func (w *torWay) of(alone *torWay) (down, up float64) {
	return share(median(w.Down), median(alone.Down)), share(median(w.Up), median(alone.Up))
}

// bound is the same for what another way takes of the processors: with all of them
// busy no rate has a larger share than that.
func (w *torWay) bound(alone *torWay) (down, up float64) {
	return share(median(alone.CPUDown), median(w.CPUDown)), share(median(alone.CPUUp), median(w.CPUUp))
}

// tor measures, with tor clients that go to a bridge directly, through both programs,
// and, where that is installed, through obfs4.
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
	fmt.Printf("    down %.1f MB/s (%.2f of tor alone), up %.1f (%.2f)\n", median(f.Tunnel.Down), down, median(f.Tunnel.Up), up)
	return f
}

func (b *bench) torMeasure(f *torFigures) (err error) {
	ctx, cancel := context.WithTimeout(b.ctx, torLimit)
	defer cancel()
	web, err := target.Start()
	if err != nil {
		return err
	}
	defer web.Close()
	network, err := b.torNetwork(ctx, "turbo", fmt.Sprintf("%s %s -url https://%s/bench", filepath.Join(b.bin, "turbotunnel-server"),
		strings.Join(b.tlsFlags(), " "), cdn.Front))
	if err != nil {
		return err
	}
	defer network.Close() //nolint:errcheck // it has been measured
	args, err := network.BridgeArgs("turbo_bridgeline.txt")
	if err != nil {
		return err
	}
	ways := []*torPath{
		{"tor alone", &f.Alone, network, tornet.ClientOptions{Addr: network.ORAddr()}, web, nil},
		{"the tunnel", &f.Tunnel, network, tornet.ClientOptions{
			Transport: "turbo",
			Exec:      filepath.Join(b.bin, "turbotunnel-client"),
			Addr:      "192.0.2.3:80", // means nothing to the transport
			Args:      fmt.Sprintf("%s addr=%s engine=%s", args, network.BridgeAddr(), engines.Default),
		}, web, nil},
	}
	if obfs4, err := exec.LookPath("obfs4proxy"); err == nil {
		network, err := b.torNetwork(ctx, "obfs4", obfs4)
		if err != nil {
			return err
		}
		defer network.Close() //nolint:errcheck // likewise
		args, err := network.BridgeArgs("obfs4_bridgeline.txt")
		if err != nil {
			return err
		}
		ways = append(ways, &torPath{"obfs4", &f.Obfs4, network, tornet.ClientOptions{Transport: "obfs4", Exec: obfs4, Args: args}, web, nil})
	}
	for _, p := range ways {
		if err := p.open(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		defer p.client.CloseIdleConnections()
	}
	for range torRuns {
		for _, measure := range []func(*torPath, context.Context) error{(*torPath).first, (*torPath).down, (*torPath).up} {
			for _, p := range ways {
				if err := measure(p, ctx); err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
			}
		}
	}
	return nil
}

// torNetwork starts one whose bridge has that transport.
func (b *bench) torNetwork(ctx context.Context, transport, server string) (*tornet.Network, error) {
	dir := filepath.Join(b.dir, "tor-"+transport)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	return tornet.Start(ctx, tornet.Options{Dir: dir, Transport: transport, ServerExec: server, Env: []string{"SSL_CERT_FILE=" + b.ca}})
}

// A torPath is a way in use.
type torPath struct {
	name    string
	figures *torWay
	network *tornet.Network
	options tornet.ClientOptions
	web     *target.Server
	client  *http.Client // whose connection is open, and has moved something both ways
}

// open starts the tor client.
func (p *torPath) open(ctx context.Context) error {
	c, err := p.network.StartClient(ctx, p.options)
	if err != nil {
		return err
	}
	if err := c.Bootstrap(ctx, nil); err != nil {
		return err
	}
	p.client = &http.Client{Transport: &http.Transport{DialContext: c.DialContext}}
	if err := p.web.Download(ctx, p.client, transfers.Add(1), torBytes/8, io.Discard); err != nil {
		return err
	}
	return p.web.Upload(ctx, p.client, transfers.Add(1), torBytes/8, io.Discard)
}

// first measures how soon a page comes over a new stream.
func (p *torPath) first(ctx context.Context) error {
	p.client.CloseIdleConnections()
	start := time.Now()
	err := p.web.Get(ctx, p.client)
	p.figures.First = append(p.figures.First, float64(time.Since(start).Microseconds())/1000)
	return err
}

func (p *torPath) down(ctx context.Context) error {
	f := p.figures
	return p.move(ctx, "down", p.web.Download, &f.Down, &f.CPUDown, &f.ProgramsDown)
}

func (p *torPath) up(ctx context.Context) error {
	f := p.figures
	return p.move(ctx, "up", p.web.Upload, &f.Up, &f.CPUUp, &f.ProgramsUp)
}

// move measures a transfer.
func (p *torPath) move(ctx context.Context, way string, move func(context.Context, *http.Client, uint64, int64, io.Writer) error, rates, all, programs *[]float64) error {
	tors, transports := p.network.Processes()
	torsBefore, programsBefore := cpuOfAll(append(tors, os.Getpid())), cpuOfAll(transports)
	start := time.Now()
	if err := move(ctx, p.client, transfers.Add(1), torBytes, io.Discard); err != nil {
		return fmt.Errorf("%s: %w", way, err)
	}
	rate := mbps(torBytes, time.Since(start))
	used := (cpuOfAll(transports) - programsBefore).Seconds() / torBytes * 1e9
	*rates, *programs = append(*rates, rate), append(*programs, used)
	*all = append(*all, used+(cpuOfAll(append(tors, os.Getpid()))-torsBefore).Seconds()/torBytes*1e9)
	fmt.Printf("    %s, %s: %.1f MB/s\n", p.name, way, rate)
	return nil
}

// cpuOfAll is cpuOf of them together.
func cpuOfAll(ids []int) (sum time.Duration) {
	for _, id := range ids {
		sum += cpuOf(id)
	}
	return sum
}

func (f *torFigures) text(s *strings.Builder) {
	if f.Skipped != "" {
		fmt.Fprintf(s, "\nThrough tor: not measured, because %s.\n", f.Skipped)
		return
	}
	fmt.Fprintf(s, "\nThrough tor: private Tor networks on loopback, whose clients reach a bridge directly, through both programs over HTTPS, or through obfs4 (Debian's obfs4proxy); %d MB each way, by turns, %d times; medians, and of the rates all of them in brackets. CPU is seconds for a gigabyte, down / up. What it allows is what all takes with tor alone, as a share of what all takes this way: with all processors busy, no rate is a larger share of tor alone's.\n\n", int(torBytes/1e6), torRuns)
	rates := func(x []float64) string {
		all := make([]string, len(x))
		for i, x := range x {
			all[i] = fmt.Sprintf("%.1f", x)
		}
		return fmt.Sprintf("%s (%s)", orDash(median(x), "%.1f"), strings.Join(all, ", "))
	}
	both := func(format string) func(down, up float64) string {
		return func(down, up float64) string { return orDash(down, format) + " / " + orDash(up, format) }
	}
	t := table{{"", "down, MB/s", "up, MB/s", "share of tor alone", "a page, new stream", "CPU of all", "of the programs", "CPU allows"}}
	for _, w := range []struct {
		name string
		*torWay
	}{{"tor alone", &f.Alone}, {"through the tunnel", &f.Tunnel}, {"through obfs4", &f.Obfs4}} {
		t = append(t, []string{
			w.name, rates(w.Down), rates(w.Up), both("%.2f")(w.of(&f.Alone)), orDash(median(w.First), "%.1f ms"),
			both("%.1f")(median(w.CPUDown), median(w.CPUUp)), both("%.1f")(median(w.ProgramsDown), median(w.ProgramsUp)), both("%.2f")(w.bound(&f.Alone)),
		})
	}
	s.WriteString(t.String())
	if f.Error != "" {
		fmt.Fprintf(s, "\nFailed: %s: `%s`.\n", torName, strings.Join(strings.Fields(f.Error), " "))
	}
}
