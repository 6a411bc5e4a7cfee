// Hostile runs attacks on a server of its own: those of somebody who holds the
// bridge line, and of strangers. A healthy client works beside each. It prints a
// line for each attack: the bytes that the attacker has sent, by how much the
// server's resident memory (RSS) and its own account of it (memory_bytes) have
// grown at most, how long the healthy client's questions took, and the verdict.
// It exits with 1 when an attack succeeds.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// maxGrowth is by how much a server's memory may grow, in bytes, whatever
	// the attack: its limit of 1 GiB, a quarter, and what it takes for itself.
	maxGrowth = 1<<30*5/4 + 64<<20

	// worthCounting is the growth in bytes from which on the account must be
	// right: below, the pages of the runtime itself weigh more.
	worthCounting = 64 << 20

	// maxPing is what 95 of 100 of the healthy client's questions may take. It
	// is judged at full size only, on a machine that does nothing else.
	maxPing = 50 * time.Millisecond
)

func main() {
	var bin binaries
	flag.StringVar(&bin.client, "client", "bin/turbotunnel-client", "the client's program")
	flag.StringVar(&bin.server, "server", "bin/turbotunnel-server", "the server's program")
	only := flag.String("only", "", "run the attacks whose names match this regular expression")
	flag.Parse()
	chosen, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "-only:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if !runAll(ctx, bin, chosen) {
		os.Exit(1)
	}
}

// runAll runs the attacks one after the other, and those that mostly wait beside
// the others.
func runAll(ctx context.Context, bin binaries, chosen *regexp.Regexp) (held bool) {
	list := slices.DeleteFunc(slices.Clone(attacks), func(a attack) bool { return !chosen.MatchString(a.name) })
	if len(list) == 0 {
		fmt.Fprintln(os.Stderr, "no attack has such a name")
		return false
	}
	fmt.Println(title)
	var mu sync.Mutex
	held = true
	one := func(a attack) {
		res := a.try(ctx, bin, true)
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(res.line())
		held = held && res.err == nil
	}
	var waiting sync.WaitGroup
	for _, a := range list {
		if a.waits {
			waiting.Go(func() { one(a) })
		}
	}
	for _, a := range list {
		if !a.waits && ctx.Err() == nil {
			one(a)
		}
	}
	waiting.Wait()
	return held && ctx.Err() == nil
}

// An attack is something that must not succeed.
type attack struct {
	name  string
	setup setup
	waits bool // it takes minutes, in which nothing is computed
	calm  bool // the healthy client's time counts for nothing: the attack needs all of this machine

	// run attacks, and returns an error that says what has succeeded.
	run func(context.Context, *rig) error
}

// A result is what came of an attack.
type result struct {
	name    string
	sent    int64
	grown   memory
	took    []time.Duration // the healthy client's, sorted
	err     error           // what the attack has reached; nil: nothing
	seconds float64
}

// try runs the attack against a new server.
func (a attack) try(ctx context.Context, bin binaries, full bool) result {
	res := result{name: a.name}
	start := time.Now()
	r, err := newRig(ctx, bin, full, a.setup)
	if err != nil {
		res.err = err
		return res
	}
	err = a.run(ctx, r)
	r.health.again(ctx) // a small attack may be over before the first question
	res.sent = r.sent.Load()
	res.grown = r.watch.grown()
	r.health.mu.Lock()
	res.took = slices.Sorted(slices.Values(r.health.took))
	lost := slices.Clone(r.health.lost)
	r.health.mu.Unlock()
	if ended := r.close(); err == nil {
		err = ended
	}
	if err == nil {
		err = res.judge(lost, full, !a.calm)
	}
	res.err = err
	res.seconds = time.Since(start).Seconds()
	return res
}

// judge says what is wrong with how the server has fared. A small attack is judged
// by whether the healthy client noticed it: the programs may be built with the
// race detector then, whose memory is many times theirs.
func (r *result) judge(lost []error, full, timed bool) error {
	switch {
	case len(lost) > 0:
		return fmt.Errorf("the healthy client lost %d streams: %w", len(lost), lost[0])
	case len(r.took) == 0:
		return fmt.Errorf("the healthy client got no answer")
	case full && timed && r.quantile(0.95) > maxPing:
		return fmt.Errorf("the healthy client waits")
	case full && r.grown.rss > maxGrowth:
		return fmt.Errorf("too much memory")
	case full && r.grown.rss > worthCounting && (4*r.grown.said < 3*r.grown.rss || 4*r.grown.said > 5*r.grown.rss):
		return fmt.Errorf("memory_bytes is wrong by more than a quarter")
	}
	return nil
}

// quantile is the q-quantile of the healthy client's times.
func (r *result) quantile(q float64) time.Duration {
	if len(r.took) == 0 {
		return 0
	}
	return r.took[min(int(q*float64(len(r.took))), len(r.took)-1)]
}

var title = fmt.Sprintf("%-14s %9s %9s %9s %8s %8s %8s %5s  %s", "attack", "sent, MB", "RSS, MB", "said, MB", "p50, ms", "p95, ms", "max, ms", "s", "verdict")

func (r *result) line() string {
	mb := func(n int64) float64 { return float64(n) / 1e6 }
	ms := func(q float64) float64 { return float64(r.quantile(q).Microseconds()) / 1e3 }
	verdict := "held"
	if r.err != nil {
		verdict = "FELL: " + strings.ReplaceAll(r.err.Error(), "\n", "\n    ")
	}
	return fmt.Sprintf("%-14s %9.1f %9.1f %9.1f %8.1f %8.1f %8.1f %5.0f  %s", r.name,
		mb(r.sent), mb(r.grown.rss), mb(r.grown.said), ms(0.5), ms(0.95), ms(1), r.seconds, verdict)
}
