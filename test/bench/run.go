package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/test/middlebox"
	"turbotunnel/test/netpath"
)

// scenario is a path and what is measured on it.
type scenario struct {
	name      string
	path      string // what the report calls the path
	netpath   netpath.Config
	bare      bool // without TLS
	habits    *middlebox.Habits
	resets    time.Duration // cut every connection of this age
	outage    time.Duration // once, a second after a transfer has begun
	blackhole bool          // the connections that the outage meets never come back
	bytes     int64         // of a transfer; 0: what fits the path
	mode      string        // empty: the default
	engine    string        // empty: the default
	brief     bool          // throughput only
	before    bool          // the programs of the commit to compare with
}

// The paths of the suites, and their names.
var (
	fast = netpath.Config{RTT: 100 * time.Millisecond, Rate: 100e6}
	fat  = netpath.Config{RTT: 200 * time.Millisecond, Rate: 500e6}
)

const (
	fastName = "100 ms, 100 Mbit/s"
	fatName  = "200 ms, 500 Mbit/s"
	bareName = "loopback, no TLS"
)

// loopbackRate is about what loopback carries here, in bytes a second. It only
// sets how much is moved there.
const loopbackRate = 300e6

// maxTransfers is how long the scenarios of a run may take together; those that
// have not begun by then are failures; twice as long where they are compared with
// another commit. On top come tor, about two minutes, idle sessions, as long, and
// their memory, five minutes for four engines.
const maxTransfers = 16 * time.Minute

// bytesFor is how much to move on a path so that it takes about the wanted
// time.
func (b *bench) bytesFor(c netpath.Config) int64 {
	if c.Rate == 0 {
		return int64(loopbackRate * b.seconds)
	}
	return int64(float64(c.Rate) / 8 * b.seconds)
}

func suiteFull() []scenario {
	buffers := &middlebox.Habits{BufferRequests: true, BufferResponses: true}
	return []scenario{
		{name: "loopback"},
		{name: bareName, bare: true},
		{name: fastName, netpath: fast},
		{name: fatName, netpath: fat},
		{name: fastName + ", CDN buffers", netpath: fast, habits: buffers},
		{name: fatName + ", CDN buffers", netpath: fat, habits: buffers},
		{name: fastName + ", 1 % lost", netpath: fast, habits: &middlebox.Habits{LoseRequests: 0.01, LoseResponses: 0.01}},
		{name: fastName + ", 1 % lost, polled", netpath: fast, habits: &middlebox.Habits{LoseRequests: 0.01, LoseResponses: 0.01}, mode: "poll"},
		{name: fastName + ", resets", netpath: fast, resets: 2500 * time.Millisecond, bytes: 60e6},
		{name: fastName + ", outage", netpath: fast, outage: 5 * time.Second, bytes: 60e6, brief: true},
		{name: fastName + ", outage, connections dead", netpath: fast, outage: 5 * time.Second, blackhole: true, bytes: 60e6, brief: true},
	}
}

func suiteQuick() []scenario {
	return slices.DeleteFunc(suiteFull()[:5], func(s scenario) bool { return s.bare })
}

// suiteEngines has each engine on each path, and beside it, if compare is set,
// itself in the programs of another commit.
func suiteEngines(names []string, compare bool) []scenario {
	var all []scenario
	add := func(s scenario) {
		s.path = s.name
		for _, e := range names {
			s.name, s.engine, s.brief = s.path+", "+e, e, true
			all = append(all, s)
			if compare {
				s := s
				s.name, s.before = s.name+beforeMark, true
				all = append(all, s)
			}
		}
	}
	modes := []string{"stream", "poll"}
	for _, mode := range modes {
		add(scenario{name: "loopback, " + mode, mode: mode})
		add(scenario{name: fastName + ", " + mode, netpath: fast, mode: mode})
		add(scenario{name: fatName + ", " + mode, netpath: fat, mode: mode})
	}
	for _, mode := range modes {
		add(scenario{name: fastName + ", 1 % lost, " + mode, netpath: fast, mode: mode, habits: &middlebox.Habits{LoseRequests: 0.01, LoseResponses: 0.01}})
	}
	return all
}

// commit is the one to compare with: make names the folder after it.
func (b *bench) commit() string {
	if b.before == "" {
		return ""
	}
	return filepath.Base(b.before)
}

// beforeMark tells an engine in the programs of another commit.
const beforeMark = ", before"

// label is what the report calls the engine of a scenario.
func (s *scenario) label() string {
	if s.before {
		return s.engine + beforeMark
	}
	return s.engine
}

// figures are what a scenario measured. Rates are in MB/s (millions of bytes),
// ratios are to raw HTTP/2 on the same path in the same run; 0 is what was not
// measured.
type figures struct {
	Name, Path, Engine string
	RTT                time.Duration
	Raw                rawFigures
	Down, Up           float64 // one stream
	Down8, Up8         float64 // eight together
	UpWarm             float64 // one stream that has been used before
	WireDown, WireUp   float64 // bytes on the path for each byte moved, one stream
	ColdDown, ColdUp   float64 // what a session moves first, for coldTime at the path's rate
	CPU                float64 // seconds of both programs per GB moved, one stream
	CPUDown, CPUUp     float64 // the same, each way
	Client, Server     int64   // the most memory that the programs had, in bytes
	Gap                time.Duration
	Cuts               int64 // connections reset
	Requests, Lost     int64 // what the middlebox saw, and of that the bodies it lost
	First              time.Duration
	Open               time.Duration // median
	Ping, Ping95       time.Duration
	Loaded, Loaded95   time.Duration
	// After an outage: the first byte, and when half a second began in which
	// 80 % of the rate came. -1: never.
	Resumed, ResumedUp time.Duration
	Full, FullUp       time.Duration
	Series, SeriesUp   []float64 // MB/s in each tenth of a second, where something happened
	Error              string
}

// share is x as a share of raw. 0: raw was not measured.
func share(x, raw float64) float64 {
	if raw == 0 {
		return 0
	}
	return x / raw
}

func (b *bench) run(suite, only string, names []string) (*results, error) {
	var list []scenario
	switch suite {
	case "quick":
		list = suiteQuick()
	case "full":
		list = suiteFull()
	case "engines":
		if len(names) == 0 {
			names = engines.Names()
		}
		list = suiteEngines(names, b.before != "")
	default:
		return nil, fmt.Errorf("there is no suite %q: take quick, full or engines", suite)
	}
	list = slices.DeleteFunc(list, func(s scenario) bool { return !strings.Contains(s.name, only) })
	if suite != "engines" && len(names) == 1 {
		for i := range list {
			list[i].engine = names[0]
		}
	}
	if err := b.setUp(); err != nil {
		return nil, err
	}
	defer b.load.close()
	res := &results{Suite: suite, Before: b.commit(), Seconds: b.seconds, Machine: describe()}
	type wire struct {
		path netpath.Config
		bare bool
	}
	raws := make(map[wire]rawFigures)
	lastPath := ""
	limit := maxTransfers
	if b.before != "" {
		limit *= 2
	}
	for i, s := range list {
		if err := b.ctx.Err(); err != nil {
			return nil, err
		}
		fmt.Printf("%s [%d/%d] %s\n", time.Now().Format(time.TimeOnly), i+1, len(list), s.name)
		if time.Since(res.Machine.Date) > limit {
			f := figures{Name: s.name, Path: s.path, Engine: s.label(), RTT: s.netpath.RTT, Error: "not begun, because the run took too long"}
			f.print()
			res.Figures = append(res.Figures, f)
			continue
		}
		over := wire{s.netpath, s.bare}
		raw, ok := raws[over]
		// Loopback depends on the machine's mood, so raw is measured anew for
		// each group of scenarios there.
		if !ok || s.netpath.Rate == 0 && s.path != lastPath {
			var err error
			raw, err = b.measureRaw(s.netpath, s.bare, suite != "engines" && !ok, suite == "full" && !ok && !s.bare)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			raws[over] = raw
			fmt.Printf("    raw HTTP/2: down %.1f, up %.1f MB/s", raw.Down, raw.Up)
			if raw.MeekDown > 0 {
				fmt.Printf("; as meek: down %.2f, up %.2f MB/s", raw.MeekDown, raw.MeekUp)
			}
			if raw.Ping > 0 {
				fmt.Printf("; ping %s (95 %%: %s)", ms(raw.Ping), ms(raw.Ping95))
			}
			fmt.Println()
		}
		lastPath = s.path
		f := figures{Name: s.name, Path: s.path, Engine: s.label(), RTT: s.netpath.RTT, Raw: raw}
		if err := b.measure(s, &f); err != nil {
			if b.ctx.Err() != nil {
				return nil, b.ctx.Err()
			}
			f.Error = err.Error()
		}
		f.print()
		res.Figures = append(res.Figures, f)
	}
	if suite == "full" && strings.Contains(torName, only) {
		res.Tor = b.tor()
	}
	if suite == "quick" || only != "" && !strings.Contains("idle", only) {
		res.Machine.end()
		return res, nil
	}
	res.Idle = b.idle(names)
	if suite == "engines" {
		res.Sessions = b.memory(names)
	}
	res.Machine.end()
	return res, b.ctx.Err()
}

func (f *figures) print() {
	fmt.Printf("    one stream: down %.1f MB/s (%.2f of raw), up %.1f (%.2f); eight: down %.1f (%.2f), up %.1f (%.2f)\n",
		f.Down, share(f.Down, f.Raw.Down), f.Up, share(f.Up, f.Raw.Up), f.Down8, share(f.Down8, f.Raw.Down), f.Up8, share(f.Up8, f.Raw.Up))
	if f.UpWarm > 0 {
		fmt.Printf("    one stream that has been used before: up %.1f (%.2f)\n", f.UpWarm, share(f.UpWarm, f.Raw.Up))
	}
	if f.ColdDown > 0 {
		fmt.Printf("    the first of a session: down %.1f (%.2f), up %.1f (%.2f)\n", f.ColdDown, share(f.ColdDown, f.Raw.Down), f.ColdUp, share(f.ColdUp, f.Raw.Up))
	}
	fmt.Printf("    CPU %.1f and %.1f s/GB, memory of client %d MB, of server %d MB, longest pause %v, wire %.3f down %.3f up", f.CPUDown, f.CPUUp, f.Client>>20, f.Server>>20, f.Gap.Round(time.Millisecond), f.WireDown, f.WireUp)
	if f.Cuts > 0 || f.Lost > 0 {
		fmt.Printf(", %d connections reset, %d bodies lost of %d requests", f.Cuts, f.Lost, f.Requests)
	}
	fmt.Println()
	if f.First > 0 {
		fmt.Printf("    first stream %s, new stream %s, ping %s (95 %%: %s), loaded %s (95 %%: %s)\n",
			ms(f.First), ms(f.Open), ms(f.Ping), ms(f.Ping95), ms(f.Loaded), ms(f.Loaded95))
	}
	if f.Resumed != 0 {
		fmt.Printf("    after the outage: first byte down %s, up %s; full rate down %s, up %s\n", ms(f.Resumed), ms(f.ResumedUp), ms(f.Full), ms(f.FullUp))
	}
	if f.Error != "" {
		fmt.Printf("    FAILED: %s\n", f.Error)
	}
}

func ms(d time.Duration) string {
	switch {
	case d == 0:
		return "–"
	case d < 0:
		return "never"
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// quantile of sorted values.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// coldTime is how long the first transfer of a session takes at the rate of the
// path.
const coldTime = 5

// cold moves the first bytes of a session that has said nothing but a byte there and
// back, on programs that have just been started.
func (b *bench) cold(s scenario, move func(*rig, int64) (*meter, error)) (rate float64, err error) {
	t, err := b.startRig(s)
	if err != nil {
		return 0, err
	}
	defer t.close()
	if _, err := t.opened(); err != nil {
		return 0, err
	}
	n := s.netpath.Rate / 8 * coldTime
	start := time.Now()
	if _, err := move(t, n); err != nil {
		return 0, err
	}
	return mbps(n, time.Since(start)), nil
}

// isPlain tells whether a scenario is of a path that nothing happens on.
func (s *scenario) isPlain() bool {
	return !s.brief && s.netpath.Rate > 0 && s.habits == nil && s.resets == 0
}

// measure runs everything on one scenario.
func (b *bench) measure(s scenario, f *figures) (err error) {
	n := s.bytes
	if n == 0 {
		n = b.bytesFor(s.netpath)
	}
	if s.isPlain() {
		if f.ColdDown, err = b.cold(s, (*rig).download); err != nil {
			return err
		}
		if f.ColdUp, err = b.cold(s, (*rig).upload); err != nil {
			return err
		}
	}
	t, err := b.startRig(s)
	if err != nil {
		return err
	}
	defer t.close()
	defer func() {
		f.Client, f.Server = peakMemory(t.client.ID()), peakMemory(t.server.ID())
		f.Cuts = t.cuts.Load()
		f.Requests, f.Lost = t.requests()
	}()
	if s.brief {
		// The client connects, and in mode auto finds out what the path does.
		if _, err := t.opened(); err != nil {
			return err
		}
	} else if err := t.delays(f); err != nil {
		return err
	}
	// Windows open.
	if _, err := t.download(n / 8); err != nil {
		return err
	}
	if _, err := t.upload(n / 8); err != nil {
		return err
	}
	if s.outage > 0 {
		return b.outage(t, s, f, n)
	}
	cpu := t.cpu()
	_, wire := t.bytes()
	start := time.Now()
	m, err := t.download(n)
	if err != nil {
		return err
	}
	f.Down, f.Gap = mbps(n, time.Since(start)), m.gap
	_, after := t.bytes()
	f.WireDown = float64(after-wire) / float64(n)
	perGB := func(spent time.Duration) float64 { return spent.Seconds() / (float64(n) / 1e9) }
	half := t.cpu()
	f.CPUDown = perGB(half - cpu)
	if s.resets > 0 {
		f.Series = m.series()
	}
	wire, _ = t.bytes()
	start = time.Now()
	if m, err = t.upload(n); err != nil {
		return err
	}
	f.Up, f.Gap = mbps(n, time.Since(start)), max(f.Gap, m.gap)
	after, _ = t.bytes()
	f.WireUp = float64(after-wire) / float64(n)
	f.CPUUp = perGB(t.cpu() - half)
	f.CPU = (f.CPUDown + f.CPUUp) / 2
	if s.resets > 0 {
		f.SeriesUp = m.series()
	}
	if !s.brief {
		if err := t.loadedPing(f, n); err != nil {
			return err
		}
	} else if f.UpWarm, err = t.uploadWarm(n); err != nil {
		return err
	}
	const streams = 8
	each := n / streams
	if f.Down8, err = together(streams, each, t.download); err != nil {
		return err
	}
	f.Up8, err = together(streams, each, t.upload)
	return err
}

// together moves n bytes on each of k streams and returns the sum of the rates.
func together(k int, n int64, one func(int64) (*meter, error)) (float64, error) {
	start := time.Now()
	errs := make([]error, k)
	var wg sync.WaitGroup
	for i := range k {
		wg.Go(func() { _, errs[i] = one(n) })
	}
	wg.Wait()
	failed := slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(failed) > 0 {
		return 0, fmt.Errorf("%d of %d streams: %w", len(failed), k, failed[0])
	}
	return mbps(int64(k)*n, time.Since(start)), nil
}

// opened opens a stream, pings once, and returns how long both took together.
func (t *rig) opened() (time.Duration, error) {
	start := time.Now()
	c, _, err := t.open(loadEcho, 0)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_, err = echo(c)
	return time.Since(start), err
}

// delays measures without load: the first stream of all, other streams, pings.
func (t *rig) delays(f *figures) (err error) {
	if f.First, err = t.opened(); err != nil {
		return err
	}
	t.pause(3 * time.Second) // the client finds out what the path does
	var opens []time.Duration
	for range 9 {
		t.pause(100 * time.Millisecond)
		d, err := t.opened()
		if err != nil {
			return err
		}
		opens = append(opens, d)
	}
	c, _, err := t.open(loadEcho, 0)
	if err != nil {
		return err
	}
	defer c.Close()
	slices.Sort(opens)
	f.Open = quantile(opens, 0.5)
	f.Ping, f.Ping95, err = pings(t.ctx, c)
	return err
}

func (t *rig) pause(d time.Duration) { pause(t.ctx, d) }

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// pings measures a byte there and back on c: the median and the 95th
// percentile.
func pings(ctx context.Context, c io.ReadWriter) (median, most time.Duration, err error) {
	var all []time.Duration
	for range 21 {
		pause(ctx, 50*time.Millisecond)
		d, err := echo(c)
		if err != nil {
			return 0, 0, err
		}
		all = append(all, d)
	}
	all = all[1:] // the first one may have had to open something
	slices.Sort(all)
	return quantile(all, 0.5), quantile(all, 0.95), nil
}

// loadedPing measures a byte there and back beside a download.
func (t *rig) loadedPing(f *figures, n int64) error {
	c, _, err := t.open(loadEcho, 0)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := echo(c); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		_, err := t.download(n)
		done <- err
	}()
	t.pause(500 * time.Millisecond) // until the download has come to speed
	var pings []time.Duration
	for {
		select {
		case err := <-done:
			slices.Sort(pings)
			f.Loaded, f.Loaded95 = quantile(pings, 0.5), quantile(pings, 0.95)
			return err
		default:
		}
		d, err := echo(c)
		if err != nil {
			return errors.Join(err, <-done)
		}
		pings = append(pings, d)
		t.pause(20 * time.Millisecond)
	}
}

// outage stops the path in the middle of a download and then of an upload.
func (b *bench) outage(t *rig, s scenario, f *figures, n int64) error {
	rate := float64(s.netpath.Rate) / 8 * 0.8
	one := func(move func(int64) (*meter, error), first, full *time.Duration, series *[]float64) (float64, error) {
		var ended time.Time
		var wg sync.WaitGroup
		start := time.Now()
		wg.Go(func() {
			t.pause(time.Second)
			t.netpath.SetDown(true)
			if s.blackhole {
				t.netpath.Blackhole()
			}
			t.pause(s.outage)
			ended = time.Now()
			t.netpath.SetDown(false)
		})
		m, err := move(n)
		took := time.Since(start)
		wg.Wait()
		if err != nil {
			return 0, err
		}
		*first, *full = m.resumed(ended, rate)
		*series = m.series()
		f.Gap = max(f.Gap, m.gap)
		return mbps(n, took), nil
	}
	var err error
	if f.Down, err = one(t.download, &f.Resumed, &f.Full, &f.Series); err != nil {
		return err
	}
	f.Up, err = one(t.upload, &f.ResumedUp, &f.FullUp, &f.SeriesUp)
	return err
}

// idleFigures are what one session without traffic costs.
type idleFigures struct {
	Name     string
	Requests float64 // a minute
	Bytes    float64 // a minute, both ways, TLS included
	CPU      time.Duration
	Ping     time.Duration // afterwards
	Error    string
}

// idleTime is how long idle sessions are watched, after settleTime in which
// the client finds out what the path does.
const (
	idleTime   = time.Minute
	settleTime = 20 * time.Second
)

// idle watches sessions with one open stream, all at the same time.
func (b *bench) idle(names []string) []idleFigures {
	buffers := &middlebox.Habits{BufferRequests: true, BufferResponses: true}
	list := []scenario{
		{name: "streamed", habits: &middlebox.Habits{}},
		{name: "CDN buffers", habits: buffers},
	}
	if len(names) > 1 {
		list = nil
		for _, e := range names {
			list = append(list,
				scenario{name: e + ", streamed", engine: e, habits: &middlebox.Habits{}},
				scenario{name: e + ", CDN buffers", engine: e, habits: buffers})
		}
	}
	fmt.Printf("%s idle sessions, %v\n", time.Now().Format(time.TimeOnly), settleTime+idleTime)
	all := make([]idleFigures, len(list))
	var wg sync.WaitGroup
	for i, s := range list {
		s.netpath = fast
		f := &all[i]
		f.Name = s.name
		wg.Go(func() {
			if err := b.idleOne(s, f); err != nil {
				f.Error = err.Error()
			}
		})
	}
	wg.Wait()
	for _, f := range all {
		fmt.Printf("    %s: %.1f requests and %.0f bytes a minute, CPU %v, ping afterwards %s %s\n", f.Name, f.Requests, f.Bytes, f.CPU, ms(f.Ping), f.Error)
	}
	return all
}

func (b *bench) idleOne(s scenario, f *idleFigures) error {
	t, err := b.startRig(s)
	if err != nil {
		return err
	}
	defer t.close()
	t.limit = settleTime + idleTime + 30*time.Second
	c, _, err := t.open(loadEcho, 0)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := echo(c); err != nil {
		return err
	}
	t.pause(settleTime)
	requests, _ := t.middlebox.Requests()
	up, down := t.netpath.Bytes()
	cpu := t.cpu()
	t.pause(idleTime)
	requests2, _ := t.middlebox.Requests()
	up2, down2 := t.netpath.Bytes()
	f.CPU = t.cpu() - cpu
	f.Requests = float64(requests2-requests) / idleTime.Minutes()
	f.Bytes = float64(up2-up+down2-down) / idleTime.Minutes()
	f.Ping, err = echo(c)
	return err
}
