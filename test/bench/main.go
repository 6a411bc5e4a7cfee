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

func main() {
	suite := flag.String("suite", "quick", "what to measure: quick, full, engines")
	only := flag.String("only", "", "run only scenarios whose name contains this")
	engine := flag.String("engine", "", "engines to measure, separated by commas (default: the default, or all with -suite engines)")
	out := flag.String("o", "", "folder for the report and its plots; none: print only")
	bin := flag.String("bin", "bin", "folder of turbotunnel-client and turbotunnel-server")
	seconds := flag.Float64("seconds", 4, "how long a transfer should take at the speed of the path")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "turbotunnel-bench-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer os.RemoveAll(dir)
	abs, err := filepath.Abs(*bin)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	b := &bench{ctx: ctx, dir: dir, bin: abs, seconds: *seconds}
	var engines []string
	if *engine != "" {
		engines = strings.Split(*engine, ",")
	}
	if err := b.run(*suite, *only, engines, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
