package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"turbotunnel/test/link"
	"turbotunnel/test/middlebox"
)

var (
	fast = link.Config{RTT: 100 * time.Millisecond, Rate: 100e6}
	fat  = link.Config{RTT: 200 * time.Millisecond, Rate: 500e6}
)

// bytesFor is how much to move on a path so that it takes about the wanted
// time; loopback gets a fixed amount.
func (b *bench) bytesFor(c link.Config) int64 {
	if c.Rate == 0 {
		return 512 << 20
	}
	return int64(float64(c.Rate) / 8 * b.seconds)
}

// figures are what a scenario measured. Ratios are to raw HTTP/2.
type figures struct {
	scenario
	down, up       float64 // MB/s of one stream
	down8, up8     float64 // of eight together
	rawDown, rawUp float64
	gap            time.Duration
	cpuPerGB       float64
	first          time.Duration // the first stream of all: first byte back
	open           time.Duration // a new stream: first byte back
	ping           time.Duration // an idle link
	loaded         time.Duration // beside a download
	memory         int64
	err            error
}

func mbps(n int64, d time.Duration) float64 { return float64(n) / 1e6 / d.Seconds() }

func (b *bench) run(suite, only string, engines []string, out string) error {
	if err := b.setUp(); err != nil {
		return err
	}
	defer b.load.Close()
	var list []scenario
	add := func(s scenario) {
		if strings.Contains(s.name, only) {
			list = append(list, s)
		}
	}
	if len(engines) == 0 {
		engines = []string{""}
	}
	for _, e := range engines {
		suffix := ""
		if e != "" {
			suffix = " " + e
		}
		add(scenario{name: "loopback" + suffix, engine: e})
		add(scenario{name: "100ms/100M" + suffix, link: fast, engine: e})
		add(scenario{name: "200ms/500M" + suffix, link: fat, engine: e})
		if suite == "quick" {
			continue
		}
		add(scenario{name: "100ms/100M poll-only" + suffix, link: fast, habits: &middlebox.Habits{BufferRequests: true, BufferResponses: true}, engine: e})
		add(scenario{name: "200ms/500M poll-only" + suffix, link: fat, habits: &middlebox.Habits{BufferRequests: true, BufferResponses: true}, engine: e})
		add(scenario{name: "100ms/100M 1% lost" + suffix, link: fast, habits: &middlebox.Habits{LoseRequests: 0.01, LoseResponses: 0.01}, engine: e})
		add(scenario{name: "100ms/100M resets" + suffix, link: fast, resets: 2500 * time.Millisecond, engine: e})
		add(scenario{name: "100ms/100M outage" + suffix, link: fast, outage: 5 * time.Second, engine: e})
	}
	var all []figures
	raws := map[link.Config][2]float64{}
	for i, s := range list {
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
		fmt.Printf("[%d/%d] %s\n", i+1, len(list), s.name)
		f := b.measure(s, raws)
		f.print()
		all = append(all, f)
	}
	_ = out
	return nil
}

func (f *figures) print() {
	if f.err != nil {
		fmt.Printf("    FAILED: %v\n", f.err)
	}
	fmt.Printf("    down %7.1f MB/s %.2f of raw   up %7.1f MB/s %.2f of raw   (raw %.1f, %.1f)\n", f.down, f.down/f.rawDown, f.up, f.up/f.rawUp, f.rawDown, f.rawUp)
	fmt.Printf("    8x down %7.1f  8x up %7.1f   CPU %.1f s/GB   gap %v   memory %d MB\n", f.down8, f.up8, f.cpuPerGB, f.gap.Round(time.Millisecond), f.memory>>20)
	fmt.Printf("    first %v  open %v  ping %v  loaded %v\n", ms(f.first), ms(f.open), ms(f.ping), ms(f.loaded))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1fms", float64(d.Microseconds())/1000) }

// measure runs everything on one scenario.
func (b *bench) measure(s scenario, raws map[link.Config][2]float64) (f figures) {
	f.scenario = s
	n := b.bytesFor(s.link)
	r, err := b.startRaw(s.link, s.plain)
	if err != nil {
		f.err = err
		return f
	}
	if cached, ok := raws[s.link]; ok && s.link.Rate > 0 {
		f.rawDown, f.rawUp = cached[0], cached[1]
	} else {
		_, f.err = r.download(1 << 20)
		d, err := r.download(n)
		f.err = errors.Join(f.err, err)
		f.rawDown = mbps(n, d)
		d, err = r.upload(n)
		f.err = errors.Join(f.err, err)
		f.rawUp = mbps(n, d)
		raws[s.link] = [2]float64{f.rawDown, f.rawUp}
	}
	r.close()
	t, err := b.startTunnel(s)
	if err != nil {
		f.err = errors.Join(f.err, err)
		return f
	}
	defer t.close()
	fail := func(err error) bool {
		f.err = errors.Join(f.err, err)
		return err != nil
	}
	// The first stream of all, and then another one.
	for i, first := range []*time.Duration{&f.first, &f.open} {
		if i > 0 {
			time.Sleep(500 * time.Millisecond)
		}
		start := time.Now()
		c, err := net.Dial("tcp", t.addr)
		if fail(err) {
			return f
		}
		if fail(ask(c, loadEcho, 0)) {
			return f
		}
		if _, err := echo(c); fail(err) {
			return f
		}
		*first = time.Since(start)
		if i > 0 {
			var pings []time.Duration
			for range 9 {
				time.Sleep(100 * time.Millisecond)
				d, err := echo(c)
				if fail(err) {
					return f
				}
				pings = append(pings, d)
			}
			slices.Sort(pings)
			f.ping = pings[len(pings)/2]
		}
		c.Close()
	}
	if _, _, err := download(t.addr, n/8); fail(err) { // windows open
		return f
	}
	cpu := t.cpu()
	if s.outage > 0 {
		stop := time.AfterFunc(time.Second, func() {
			t.link.SetDown(true)
			time.AfterFunc(s.outage, func() { t.link.SetDown(false) })
		})
		defer stop.Stop()
	}
	d, gap, err := download(t.addr, n)
	if fail(err) {
		return f
	}
	f.down, f.gap = mbps(n, d), gap
	d, _, err = upload(t.addr, n)
	if fail(err) {
		return f
	}
	f.up = mbps(n, d)
	f.cpuPerGB = (t.cpu() - cpu).Seconds() / (float64(2*n) / 1e9)
	f.loaded, err = loadedPing(t.addr, n)
	if fail(err) {
		return f
	}
	f.down8, err = together(8, func() error { _, _, err := download(t.addr, n/8); return err }, n)
	if fail(err) {
		return f
	}
	f.up8, err = together(8, func() error { _, _, err := upload(t.addr, n/8); return err }, n)
	fail(err)
	f.memory = max(peakMemory(t.clientPID), peakMemory(t.serverPID))
	return f
}

func together(k int, one func() error, n int64) (float64, error) {
	start := time.Now()
	errs := make([]error, k)
	var wg sync.WaitGroup
	for i := range k {
		wg.Go(func() { errs[i] = one() })
	}
	wg.Wait()
	return mbps(n, time.Since(start)), errors.Join(errs...)
}

// loadedPing is the median time of a byte there and back beside a download.
func loadedPing(addr string, n int64) (time.Duration, error) {
	done := make(chan error, 1)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := ask(c, loadEcho, 0); err != nil {
		return 0, err
	}
	if _, err := echo(c); err != nil {
		return 0, err
	}
	go func() {
		_, _, err := download(addr, n)
		done <- err
	}()
	time.Sleep(500 * time.Millisecond)
	var pings []time.Duration
	for {
		select {
		case err := <-done:
			if len(pings) == 0 {
				return 0, err
			}
			slices.Sort(pings)
			return pings[len(pings)/2], err
		default:
		}
		d, err := echo(c)
		if err != nil {
			return 0, err
		}
		pings = append(pings, d)
		time.Sleep(20 * time.Millisecond)
	}
}
