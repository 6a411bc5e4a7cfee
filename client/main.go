// Command turbotunnel-client is the client's end of a turbotunnel: a pluggable
// transport for tor, or a TCP forwarder.
//
// Under tor it offers the transport turbo as a SOCKS5 proxy on the loopback
// interface: see package socks, which says by which codes requests are refused. The
// arguments of the bridge line come with each SOCKS request and override the flags.
//
// With two arguments it forwards: each TCP connection that it accepts is a
// stream through the tunnel.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/common/tunnel"
	"turbotunnel/internal/ptproc"
)

const (
	program = "turbotunnel-client"

	// method is the transport's name in bridge lines and CMETHOD lines.
	method = tunnel.Transport

	// leastMemory is the least that -memory-limit takes, in bytes.
	leastMemory = 8 << 20
)

// Exit codes. Two is what the flag package and most Unix tools use for a wrong
// command line.
const (
	exitOK = iota
	exitFailure
	exitUsage
)

// help is what -h prints; the engines are filled in.
const help = `turbotunnel-client carries TCP through HTTP to a turbotunnel-server.

Under tor:   turbotunnel-client [flags]
             torrc: ClientTransportPlugin turbo exec /usr/bin/turbotunnel-client
                    Bridge turbo ADDRESS FINGERPRINT url=... key=...
Forwarding:  turbotunnel-client [flags] LISTEN URL
             for example: turbotunnel-client 127.0.0.1:2000 http://127.0.0.1:8000
             LISTEN is host:port, or unix:PATH of a Unix socket
Checking:    turbotunnel-client -check 'Bridge turbo ADDRESS FINGERPRINT url=...'

How to reach the server (arguments of a bridge line override these):
  -url URL          the server, as its CDN or DNS knows it
  -key KEY          the server's public key
  -front DOMAIN     domain to dial and to show instead of the URL's host
  -fronts D1,D2,... several of them
  -addr HOST:PORT   dial this instead of resolving the front
  -engine NAME      reliable transport inside: %s
  -mode MODE        use of HTTP: auto, poll, stream
  -utls NAMES       TLS ClientHello to imitate: chrome, firefox, safari, randomized,
                    none, file:PATH of a recorded one; of several, as in
                    chrome,firefox, the next one is tried where TLS fails
  -ech LIST         encrypt the front's name in TLS: base64 of its ECHConfigList,
                    or dns: DNS has it
  -doh URL          ask this resolver by HTTPS for the front's addresses and ECH
  -proxy URL        when forwarding, go through this proxy (http, socks5, socks4a),
                    or by env the one that HTTPS_PROXY, ALL_PROXY, NO_PROXY say

Finding out what is wrong (nothing is carried; the exit code is the verdict's):
  -check 'LINE'     check a bridge line, or what the flags and URL say
  -check-file FILE  check all bridge lines in FILE; - is stdin
  -long             find out how long the path may be silent, too, in two to
                    five minutes more
  -json             show the result as JSON

Running:
  -drain TIME       how long streams may go on when the program is told to end
                    (default: 30s; under tor 2s)
  -memory-limit BYTES
                    what sessions may hold together, as in 64M (default: half
                    of the memory there is, at most 1G)
  -log FILE         append the log to FILE (default: stderr)
  -unsafe-logging   show network addresses in the log, and in a check, which
                    then shows the line that works best, too
  -version          show version, revision, Go and platform, and exit
  -h                show this help and exit
`

// settings is what the command line says.
type settings struct {
	tunnel  config         // from flags, and from URL in forwarding mode
	drain   *time.Duration // nil: as ptproc has it
	memory  int64          // bytes that sessions may hold
	logFile string
	unsafe  bool
	version bool
	listen  string // empty: under tor
	proxy   string // as given

	proxyURL *url.URL // nil: none, or tor's
	checks   checkSettings
}

// parse reads the command line without the program's name. It returns
// flag.ErrHelp when help was asked for.
func parse(args []string) (settings, error) {
	var s settings
	given := make(map[string]string)
	flags := flag.NewFlagSet(program, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Func("drain", "", func(value string) error {
		d, err := ptproc.ParseDrainTime(value)
		s.drain = &d
		return err
	})
	memory := flags.String("memory-limit", "", "")
	flags.StringVar(&s.logFile, "log", "", "")
	flags.StringVar(&s.proxy, "proxy", "", "")
	flags.BoolVar(&s.unsafe, "unsafe-logging", false, "")
	flags.BoolVar(&s.version, "version", false, "")
	flags.BoolVar(&s.checks.check, "check", false, "")
	flags.StringVar(&s.checks.file, "check-file", "", "")
	flags.BoolVar(&s.checks.json, "json", false, "")
	flags.BoolVar(&s.checks.long, "long", false, "")
	for _, name := range tunnel.Arguments {
		flags.Func(name, "", func(value string) error {
			given[name] = value
			return nil
		})
	}
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if s.version {
		return s, nil
	}
	switch {
	case s.checks.wanted():
		var words []string
		for rest := flags.Args(); len(rest) > 0; rest = flags.Args() {
			words = append(words, rest[0])
			if err := flags.Parse(rest[1:]); err != nil { // flags may follow the line
				return s, err
			}
		}
		if err := s.checkArguments(words, given); err != nil {
			return s, err
		}
	case s.checks.json || s.checks.long:
		return s, errors.New("-json and -long belong to -check or -check-file")
	case flags.NArg() == 0:
	case flags.NArg() == 2:
		s.listen = flags.Arg(0)
		given["url"] = flags.Arg(1)
	default:
		return s, fmt.Errorf("%d arguments, but there are none under tor and two otherwise, LISTEN and URL, after all flags", flags.NArg())
	}
	if s.proxy != "" && s.listen == "" && !s.checks.wanted() {
		return s, errors.New("-proxy is for forwarding and -check; under tor, torrc says HTTPSProxy, Socks5Proxy or Socks4Proxy")
	}
	var err error
	if s.memory, err = ptproc.MemoryLimit(*memory, leastMemory); err != nil {
		return s, err
	}
	if s.tunnel, err = s.tunnel.With(given); err != nil {
		return s, err
	}
	if s.tunnel.URL != "" || s.proxy != proxyFromEnv { // else each line of a file says its own
		s.proxyURL, err = readProxy(s.proxy, s.tunnel)
	}
	return s, err
}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	s, err := parse(args)
	// A wrong command line under tor is told to tor too, and a right one
	// without LISTEN means tor even when there is none: the specification
	// wants an ENV-ERROR then.
	managed := s.listen == "" && !s.checks.wanted() && (err == nil || ptproc.HasParent())
	p := ptproc.Start(program, managed && !s.version && !errors.Is(err, flag.ErrHelp))
	defer p.Close()
	switch {
	case errors.Is(err, flag.ErrHelp):
		p.Print(fmt.Sprintf(help, strings.Join(engines.Names(), ", ")))
		return exitOK
	case err != nil:
		p.EnvError(err)
		p.Say("%v; see %s -h", err, program)
		return exitUsage
	case s.version:
		p.Print(ptproc.About(program))
		return exitOK
	}
	if err := p.OpenLog(ptproc.LogConfig{File: s.logFile, Unsafe: s.unsafe}); err != nil {
		p.EnvError(err)
		p.Say("%v", err)
		return exitFailure
	}
	if s.checks.wanted() {
		return runCheck(p, s)
	}
	if s.drain != nil {
		p.SetDrainTime(*s.drain)
	}
	ptproc.FitMemory()
	ptproc.RelaxTimers()
	memory := tunnel.NewMemory(s.memory)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go ptproc.CollectGarbage(ctx, s.memory, memory.Held)
	if s.listen != "" {
		return runForward(p, s, memory)
	}
	return runManaged(p, s, memory)
}
