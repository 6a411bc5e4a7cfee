// Command bench measures the tunnel: real processes over an emulated path,
// beside raw HTTP/2 on the same path in the same run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// suites are how long a transfer of each should take, in seconds: quick ends
// in about two minutes, full within fourteen, engines within twenty-two.
var suites = map[string]float64{"quick": 2, "full": 5, "engines": 4}

func main() {
	if err := measureAndReport(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func measureAndReport() error {
	if len(os.Args) == 2 && os.Args[1] == holdCommand {
		return hold(os.Stdin, os.Stdout)
	}
	suite := flag.String("suite", "quick", "what to measure: quick, full, engines")
	only := flag.String("only", "", "run only scenarios whose name contains this; \"idle\": only idle sessions")
	engine := flag.String("engine", "", "engines to measure, separated by commas (default: the client's default, or all with -suite engines)")
	out := flag.String("o", "", "folder of the report, which gets tables, plots and numbers; none: print only")
	from := flag.String("from", "", "write the report from this file of numbers and measure nothing")
	bin := flag.String("bin", "bin", "folder of turbotunnel-client and turbotunnel-server")
	before := flag.String("before", "", "folder with the programs of another commit, bench among them, which the suite engines measures beside those of -bin")
	seconds := flag.Float64("seconds", 0, "how long a transfer should take at the speed of the path; 0: as the suite needs")
	flag.Parse()
	if *from != "" {
		r, err := load(*from)
		if err != nil {
			return err
		}
		return r.report(*out)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "turbotunnel-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	abs, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	b := &bench{ctx: ctx, dir: dir, bin: abs, seconds: *seconds}
	if *before != "" {
		if b.before, err = filepath.Abs(*before); err != nil {
			return err
		}
	}
	if b.seconds <= 0 {
		b.seconds = suites[*suite]
	}
	var names []string
	if *engine != "" {
		names = strings.Split(*engine, ",")
	}
	r, err := b.run(*suite, *only, names)
	if err != nil {
		return err
	}
	fmt.Println()
	fmt.Print(r.text())
	if *out == "" {
		return nil
	}
	if err := r.save(*out); err != nil {
		return err
	}
	return r.report(*out)
}
