package check

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engines"
	"turbotunnel/common/tunnel"
)

// Options say how to check.
type Options struct {
	Long   bool     // find out how long the path may be silent, too
	Secret bool     // show addresses, and the line
	Proxy  *url.URL // for every connection; nil: none

	// Sockets and roots of a test's own; see front.Config.
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	Lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	RootCAs *x509.CertPool

	tripTime time.Duration // bounds a round trip; 0: tripTime

	// Of the line that is being checked.
	engine, mode string
	noKey        bool
}

// A FrontReport is what was found of one front.
type FrontReport struct {
	Number  int      `json:"number"`
	Name    string   `json:"front,omitempty"`
	Steps   []Step   `json:"steps"`
	Verdict *Verdict `json:"verdict"`

	look string
	down int // bytes a second
	trip time.Duration
}

// A BridgeReport is what was found of one bridge line.
type BridgeReport struct {
	Number  int            `json:"number"`
	Fronts  []*FrontReport `json:"fronts,omitempty"`
	Verdict *Verdict       `json:"verdict"`
	Change  string         `json:"change,omitempty"` // what is better about the best line
	Best    string         `json:"best,omitempty"`   // the line that works best here
}

// Bridge checks all fronts of a configuration, which has been checked itself, and
// tells o of the steps while they are taken.
func Bridge(ctx context.Context, cfg tunnel.Config, opts Options, o Observer) (*BridgeReport, error) {
	ways, err := cfg.Ways()
	if err != nil {
		return nil, err
	}
	key, err := cfg.ServerKey()
	if err != nil {
		return nil, err
	}
	opts.engine, opts.mode, opts.noKey = cmp.Or(cfg.Engine, engines.Default), cmp.Or(cfg.Mode, string(carrier.Auto)), cfg.Key == ""
	r := &BridgeReport{Number: 1}
	for i := range ways {
		w := &ways[i]
		w.Proxy, w.Dialer, w.Lookup, w.RootCAs = opts.Proxy, opts.Dial, opts.Lookup, opts.RootCAs
	}
	resolver, err := cfg.LookUp(ways)
	if err != nil {
		return nil, err
	}
	defer resolver.Close()
	for i, way := range ways {
		o.Title(fmt.Sprintf("Front %d of %d", i+1, len(ways)))
		c := &frontCheck{Recorder: &Recorder{Observer: o, Secret: opts.Secret}, ctx: ctx, way: way, key: key, opts: &opts}
		f := &FrontReport{Number: i + 1, Verdict: c.run()}
		if cfg.DoH != "" {
			f.Verdict = ofDoH(f.Verdict)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if opts.Secret {
			f.Name = cmp.Or(way.Front, way.URL.Host)
		}
		f.Steps, f.look, f.down, f.trip = c.Steps, c.look, c.down, c.trip
		r.Fronts = append(r.Fronts, f)
	}
	r.conclude(cfg, opts.Secret)
	return r, nil
}

// conclude finds the verdict on the whole line, and the line that works best.
func (r *BridgeReport) conclude(cfg tunnel.Config, secret bool) {
	best := slices.Clone(r.Fronts)
	slices.SortStableFunc(best, func(a, b *FrontReport) int {
		if c := cmp.Compare(rank(a), rank(b)); c != 0 || !a.Verdict.Works() {
			return cmp.Or(c, cmp.Compare(len(b.Steps), len(a.Steps))) // who gets further says more
		}
		return cmp.Or(cmp.Compare(b.down/rateStep, a.down/rateStep), cmp.Compare(a.trip, b.trip))
	})
	r.Verdict = best[0].Verdict
	next, change := improve(cfg, best)
	r.Change = change
	if secret && (best[0].Verdict.Works() || best[0].look != "") {
		r.Best = next.Line()
	}
}

// rateStep is bytes a second: rates are compared in steps of this, since a
// measurement of seconds tells no finer.
const rateStep = 64 << 10

// rank puts fronts that work before those that do with another look, and these
// before all others.
func rank(f *FrontReport) int {
	switch {
	case f.Verdict.Exit == 0:
		return 0
	case f.Verdict.Works():
		return 1
	case f.look != "":
		return 2
	}
	return 3
}

// improve is the line that works best here, and what has changed in it: it has the
// fronts that work, with another look if need be, and the looks that these need.
func improve(cfg tunnel.Config, best []*FrontReport) (tunnel.Config, string) {
	var kept []*FrontReport
	for _, f := range best {
		if f.Verdict.Works() || f.look != "" {
			kept = append(kept, f)
		}
	}
	if len(kept) == 0 {
		return cfg, ""
	}
	var changes []string
	if all := looksFor(kept, looksOf(cfg.UTLS)); !slices.Equal(all, looksOf(cfg.UTLS)) {
		cfg.UTLS = strings.Join(all, ",")
		changes = append(changes, "utls="+shownAll(all))
	}
	if fronts, numbers := frontsOf(cfg, kept); fronts != cfg.Fronts {
		cfg.Fronts = fronts
		changes = append(changes, "fronts= with number "+numbers)
	}
	return cfg, strings.Join(changes, " and ")
}

// looksFor are the looks that fronts need, those of the first ones first. given are
// the line's, which a front needs that was reached without another one.
func looksFor(fronts []*FrontReport, given []string) []string {
	var all []string
	for _, f := range fronts {
		need := given
		if f.look != "" {
			need = []string{f.look}
		}
		for _, look := range need {
			if !slices.Contains(all, look) {
				all = append(all, look)
			}
		}
	}
	return all
}

// frontsOf is what a line has behind fronts= that names these, and their numbers in
// words. It is the line's own text where they are those of the line in its order.
func frontsOf(cfg tunnel.Config, fronts []*FrontReport) (text, numbers string) {
	names := strings.Split(cfg.Fronts, ",")
	var keep, order []string
	moved := len(fronts) < len(names)
	for i, f := range fronts {
		moved = moved || f.Number != i+1
		keep = append(keep, strings.TrimSpace(names[f.Number-1]))
		order = append(order, fmt.Sprint(f.Number))
	}
	if !moved {
		return cfg.Fronts, ""
	}
	return strings.Join(keep, ","), strings.Join(order, ", then ")
}
