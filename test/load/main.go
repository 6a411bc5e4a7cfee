// Load puts a server of its own under the load of a large bridge, and prints a line
// for each thing that it measures, with the limit that it is held to. It exits with
// 1 when one is passed.
//
// Clients are common/tunnel's, in processes of their own. Where more sessions are
// wanted than one process has descriptors for, they come through fronts, which share
// few connections to the server, as a CDN's do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/test/netpath"
)

func main() {
	if code, ok := runHelper(os.Args[1:]); ok {
		os.Exit(code)
	}
	server := flag.String("server", "bin/turbotunnel-server", "the server's program")
	engine := flag.String("engine", engines.Default, "the clients' engine")
	only := flag.String("only", "", "one load only: idle, direct, busy, new")
	flag.Parse()
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	fmt.Printf(lineFormat, *engine, "measured", "limit", "")
	held := true
	for _, l := range loads(full) {
		if *only != "" && *only != l.name {
			continue
		}
		rows, err := l.try(ctx, binaries{*server, self}, *engine)
		for _, row := range rows {
			fmt.Print(row.line())
			held = held && row.held()
		}
		if err != nil {
			fmt.Printf("%s FAILED: %v\n", l.name, err)
			held = false
		}
	}
	if !held {
		os.Exit(1)
	}
}

// runHelper runs what this program was started again for, if it was.
func runHelper(args []string) (code int, ok bool) {
	var err error
	switch {
	case len(args) > 0 && args[0] == clientsCommand:
		err = runClients(os.Stdin, os.Stdout)
	case len(args) > 0 && args[0] == frontCommand:
		err = runFront(args[1:], os.Stdin)
	case len(args) > 0 && args[0] == plainCommand:
		err = runPlain(args[1:], os.Stdin)
	default:
		return 0, false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

// A size is how much load there is, and what it may cost.
type size struct {
	idle, direct  int           // sessions at rest: through fronts, and on connections of their own
	settle, watch time.Duration // they are left alone for so long, and then looked at for so long

	busy         int           // sessions that share a path
	rate         int64         // of the path, in bit/s each way
	warm, window time.Duration // they have so long to find their shares, which are measured for so long

	enough int64 // bytes of each, in the mean, that are measured at least

	begin  int           // sessions begin in a second
	span   time.Duration // for so long
	atOnce int           // of them are about to begin, at most; else the rate is not kept
	late   time.Duration // that the last may be; 0: not judged

	memory      float64 // bytes of the server's for a session at rest, without TLS; 0: not judged
	descriptors float64 // of it
	processor   float64 // share of a core of all that are at rest; 0: not judged
	share       float64 // of the mean, that each busy session gets at least
}

var (
	full = size{
		idle: 10000, direct: 2000, settle: 3 * time.Minute, watch: 2 * time.Minute,
		busy: 500, rate: 200e6, warm: 15 * time.Second, window: 30 * time.Second,
		begin: 300, span: 30 * time.Second, atOnce: 600, late: 2 * time.Second,
		memory: 130e3, descriptors: 2, processor: 0.05, share: 1. / 3,
	}

	// small is what a test does. Its programs may be built with the race detector,
	// under which stacks are larger and everything is slower, on a machine that does
	// other things.
	small = size{
		idle: 200, direct: 20, settle: 12 * time.Second, watch: time.Second,
		busy: 20, rate: 8e6, warm: 3 * time.Second, window: 5 * time.Second,
		enough: 256 << 10,
		begin:  20, span: 5 * time.Second, atOnce: 10,
		memory: 150e3, descriptors: 3, share: 1. / 10,
	}
)

// until is when the last new session has to be there, in seconds after the first began;
// 0: it is not judged.
func (s size) until() float64 {
	if s.late == 0 {
		return 0
	}
	return (s.span + s.late).Seconds()
}

// A load is one kind of it.
type load struct {
	name  string
	setup setup
	run   func(context.Context, *rig) ([]row, error)
}

func loads(s size) []load {
	// At most 5000 clients are in a process, and at a front.
	many := (s.idle + 4999) / 5000
	return []load{
		{"idle", setup{fronts: many, clients: many}, func(ctx context.Context, r *rig) ([]row, error) {
			rows, every, err := idle(ctx, r, s, s.idle, fmt.Sprintf("%d at rest, through fronts", s.idle), s.memory)
			if err != nil || s.processor == 0 {
				return rows, err
			}
			// What is left where all that is ours is left out, in the same minutes.
			cores, err := r.plain(ctx, s.idle, every, s.watch)
			return append(rows, told("  processor of net/http alone, as many requests", "cores", cores)), err
		}},
		{"direct", setup{clients: 1}, func(ctx context.Context, r *rig) ([]row, error) {
			rows, _, err := idle(ctx, r, s, s.direct, fmt.Sprintf("%d at rest, each over TLS", s.direct), 0)
			return rows, err
		}},
		{"busy", setup{clients: 1, path: netpath.Config{RTT: 50 * time.Millisecond, Rate: s.rate}}, func(ctx context.Context, r *rig) ([]row, error) {
			down, err := busy(ctx, r, s, askSource, "down")
			if err != nil {
				return down, err
			}
			up, err := busy(ctx, r, s, askSink, "up")
			return append(down, up...), err
		}},
		{"new", setup{fronts: 1, clients: 1}, func(ctx context.Context, r *rig) ([]row, error) {
			return newcomers(ctx, r, s)
		}},
	}
}

// try runs a load on a server of its own.
func (l load) try(ctx context.Context, bin binaries, engine string) ([]row, error) {
	r, err := newRig(ctx, bin, engine, l.setup)
	if err != nil {
		return nil, err
	}
	rows, err := l.run(ctx, r)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, r.tails())
	}
	return rows, errors.Join(err, r.close())
}

// A row is something measured.
type row struct {
	name, unit string
	value      float64
	limit      float64
	least      bool // the limit is the least that is allowed, and not the most
	judged     bool
}

func most(name, unit string, value, limit float64) row {
	return row{name, unit, value, limit, false, limit > 0}
}

func least(name, unit string, value, limit float64) row {
	return row{name, unit, value, limit, true, true}
}

func told(name, unit string, value float64) row { return row{name: name, unit: unit, value: value} }

// held tells whether the limit is kept.
func (r row) held() bool {
	switch {
	case !r.judged:
		return true
	case r.least:
		return r.value >= r.limit
	}
	return r.value <= r.limit
}

const lineFormat = "%-46s %14s %14s  %s\n"

func (r row) line() string {
	limit, verdict := "", ""
	if r.judged {
		limit, verdict = fmt.Sprintf("%.4g %s", r.limit, r.unit), "held"
		if !r.held() {
			verdict = "MISSED"
		}
	}
	return fmt.Sprintf(lineFormat, r.name, fmt.Sprintf("%.4g %s", r.value, r.unit), limit, verdict)
}

// idle opens n sessions and looks what they cost when they do nothing. Each makes a
// request every so often then.
func idle(ctx context.Context, r *rig, s size, n int, name string, memory float64) (rows []row, every time.Duration, err error) {
	empty, err := r.held(ctx)
	if err != nil {
		return nil, 0, err
	}
	begun, err := r.server.Usage()
	if err != nil {
		return nil, 0, err
	}
	start := time.Now()
	opened, err := r.order(ctx, order{Do: orderOpen, What: askEcho}, n)
	if err != nil {
		return nil, 0, err
	}
	took := time.Since(start)
	if err := sleep(ctx, s.settle); err != nil {
		return nil, 0, err
	}
	asked, err := r.scrape(ctx)
	if err != nil {
		return nil, 0, err
	}
	before, err := r.server.Usage()
	if err != nil {
		return nil, 0, err
	}
	if err := sleep(ctx, s.watch); err != nil {
		return nil, 0, err
	}
	after, err := r.server.Usage()
	if err != nil {
		return nil, 0, err
	}
	answered, err := r.scrape(ctx)
	if err != nil {
		return nil, 0, err
	}
	const requests = "turbotunnel_http_requests_total"
	full, err := r.held(ctx)
	if err != nil {
		return nil, 0, err
	}
	m, err := r.scrape(ctx)
	if err != nil {
		return nil, 0, err
	}
	alive, err := r.order(ctx, order{Do: orderPing}, n)
	if err != nil {
		return nil, 0, err
	}
	each := func(x float64) float64 { return x / float64(n) }
	rows = []row{
		least(name+": sessions that opened", "", float64(len(opened.Took)), float64(n)),
		told("  in", "s", took.Seconds()),
		most("  heap and stacks each, after a collection", "KB", each(full-empty)/1e3, memory/1e3),
		told("  what the server says that each holds", "KB", each(m["turbotunnel_memory_bytes"])/1e3),
		told("  resident each", "KB", each(float64(after.Resident-begun.Resident))/1e3),
		most("  descriptors each", "", each(float64(after.Descriptors-begun.Descriptors)), s.descriptors),
		most("  processor of all", "cores", (after.CPU-before.CPU).Seconds()/s.watch.Seconds(), s.processor),
		told("  requests a minute, each", "", each(answered[requests]-asked[requests])/s.watch.Minutes()),
		least("  sessions that answer afterwards", "", float64(len(alive.Took)), float64(n)),
	}
	every = time.Duration(float64(s.watch) / each(answered[requests]-asked[requests]))
	return rows, every, errors.Join(why(opened), why(alive))
}

// busyLimit is how long it may take until they have carried enough.
const busyLimit = time.Minute

// busy has sessions carry all that they can over one path.
func busy(ctx context.Context, r *rig, s size, what byte, name string) ([]row, error) {
	opened, err := r.order(ctx, order{Do: orderOpen, What: what}, s.busy)
	if err != nil {
		return nil, err
	}
	if _, err := r.order(ctx, order{Do: orderBusy}, s.busy); err != nil {
		return nil, err
	}
	counts := func() ([]int64, error) {
		if what == askSink {
			return r.target.sinks(s.busy), nil
		}
		all, err := r.order(ctx, order{Do: orderCount}, s.busy)
		return all.Counts, err
	}
	if err := sleep(ctx, s.warm); err != nil {
		return nil, err
	}
	before, err := counts()
	if err != nil {
		return nil, err
	}
	begun, err := r.server.Usage()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	after := before
	for time.Since(start) < s.window || sum(after)-sum(before) < s.enough*int64(s.busy) && time.Since(start) < busyLimit {
		if err := sleep(ctx, s.window); err != nil {
			return nil, err
		}
		if after, err = counts(); err != nil {
			return nil, err
		}
	}
	took := time.Since(start).Seconds()
	ended, err := r.server.Usage()
	if err != nil {
		return nil, err
	}
	if _, err := r.order(ctx, order{Do: orderClose}, s.busy); err != nil {
		return nil, err
	}
	shares := make([]float64, len(after))
	for i := range after {
		shares[i] = float64(after[i] - before[i])
	}
	all := float64(sum(after) - sum(before))
	mean := all / float64(len(shares))
	mbit := float64(s.rate) / 1e6
	return []row{
		least(fmt.Sprintf("%d that share %.4g Mbit/s, %s: opened", s.busy, mbit, name), "", float64(len(opened.Took)), float64(s.busy)),
		told("  all together", "Mbit/s", all*8/1e6/took),
		least("  the least of the mean", "", slices.Min(shares)/mean, s.share),
		told("  the most of the mean", "", slices.Max(shares)/mean),
		told("  processor", "cores", (ended.CPU-begun.CPU).Seconds()/took),
	}, why(opened)
}

func sum(counts []int64) (n int64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// newcomers has new sessions begin at a steady rate.
func newcomers(ctx context.Context, r *rig, s size) ([]row, error) {
	n := int(float64(s.begin) * s.span.Seconds())
	others := func() (sum time.Duration) {
		for _, h := range r.helpers {
			u, _ := h.Usage() // one that has ended is reported by what it did not do
			sum += u.CPU
		}
		return sum
	}
	before := others()
	begun, err := r.server.Usage()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	all, err := r.order(ctx, order{Do: orderBegin, Every: time.Second / time.Duration(s.begin), AtOnce: s.atOnce}, n)
	if err != nil {
		return nil, err
	}
	took := time.Since(start)
	ended, err := r.server.Usage()
	if err != nil {
		return nil, err
	}
	return []row{
		least(fmt.Sprintf("%d new ones a second: answered of %d", s.begin, n), "", float64(len(all.Took)), float64(n)),
		most("  in", "s", took.Seconds(), s.until()),
		told("  the answer after, median", "ms", quantile(all.Took, 0.5)),
		told("  95 of 100", "ms", quantile(all.Took, 0.95)),
		told("  processor", "cores", (ended.CPU-begun.CPU).Seconds()/took.Seconds()),
		told("  processor of fronts and clients", "cores", (others()-before).Seconds()/took.Seconds()),
	}, why(all)
}

// quantile is the q-quantile of sorted times, in milliseconds.
func quantile(took []time.Duration, q float64) float64 {
	if len(took) == 0 {
		return 0
	}
	return float64(took[min(int(q*float64(len(took))), len(took)-1)].Microseconds()) / 1e3
}

// why is an error that tells of sessions that have failed.
func why(r report) error {
	if len(r.Failed) == 0 {
		return nil
	}
	return fmt.Errorf("%d sessions have failed; one of them: %s", len(r.Failed), r.Failed[0])
}
