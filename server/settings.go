package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"turbotunnel/internal/ptproc"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

const help = `Usage:
  turbotunnel-server [flags]                  started by tor, from its torrc
  turbotunnel-server [flags] LISTEN FORWARD   serve HTTP on LISTEN (host:port,
                                              unix:PATH, or the word systemd: on
                                              the socket that it passes) and connect
                                              each stream to FORWARD (host:port or
                                              unix:PATH)
  turbotunnel-server -check [flags] [LISTEN FORWARD]
                                              look at a server that runs with the
                                              same flags, and say what to mend

Example, without tor: make the SSH server of this machine reachable
  turbotunnel-server -state-dir /var/lib/turbotunnel 127.0.0.1:8000 127.0.0.1:22
and on the other side, with the key from turbo_bridgeline.txt in that folder
  turbotunnel-client -key KEY 127.0.0.1:2000 http://127.0.0.1:8000

Flags:
  -tls-cert FILE        certificate chain (PEM) to serve HTTPS with
  -tls-key FILE         its private key; both are read again when they change
  -acme-hostnames LIST  get certificates for these host names by ACME, which
                        means to agree to the authority's terms; wants port 443
                        or port 80, and -state-dir
  -acme-email ADDRESS   where the authority may write to
  -acme-directory URL   the authority (default: Let's Encrypt)
  -disable-tls          serve plain HTTP, behind a proxy that does TLS
                        (the default without tor)
  -state-dir FOLDER     where the server's key is kept; made on first start
                        (under tor: tor's; else none, and no authentication)
  -url URL              how clients reach the server, for the bridge line
  -fronts D1,D2,...     domains that clients dial and show instead, for the same
  -trusted-proxies LIST addresses and networks (10.0.0.0/8,2001:db8::/32) that
                        may say by X-Forwarded-For who the client is
  -proxy-protocol       trusted proxies begin each connection with a PROXY
                        header (version 1 or 2)
  -decoy URL|FOLDER     site shown to whoever is not a client
                        (default: a placeholder page)
  -memory-limit BYTES   what sessions may hold together, as in 512M (default: half
                        of the memory there is, at most 1G)
  -metrics HOST:PORT    show counts for Prometheus there, at /metrics
  -drain TIME           how long streams may go on when the program is told to
                        end (default: 30s; under tor 2s)
  -log FILE             write the log there and not to stderr
  -log-level LEVEL      least that is logged: debug, info, notice, warning, error
                        (default: info)
  -log-format FORMAT    text, or json: an object a line (default: text)
  -unsafe-logging       show addresses in the log, and in a check
  -check                serve nothing; look at the certificate, the state folder,
                        limits, FORWARD, and at -url as clients and strangers
                        see it, and say what to mend
  -json                 show what -check finds as JSON
  -bridge-line          print the bridge line for clients and exit
  -qr                   with -bridge-line: as a QR code, too
  -version              print version, revision, Go and platform
  -h                    print this help

Under tor each flag can also stand in ServerTransportOptions, as in
  ServerTransportOptions turbo disable-tls=1 url=https://www.example.com/x
`

// settings are the flags, as they were given.
type settings struct {
	tlsCert, tlsKey string
	acmeHostnames   string
	acmeEmail       string
	acmeDirectory   string
	disableTLS      bool
	stateDir        string
	url             string
	fronts          string
	trustedProxies  string
	proxyProtocol   bool
	decoy           string
	memoryLimit     string
	metrics         string
	drain           string
	log             string
	logLevel        string
	logFormat       string
	unsafeLogging   bool
	bridgeLine, qr  bool
	version         bool
	check           bool
	json            bool
}

// flags returns a set of flags that writes to s, whose fields are the defaults.
func (s *settings) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("turbotunnel-server", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&s.tlsCert, "tls-cert", s.tlsCert, "")
	fs.StringVar(&s.tlsKey, "tls-key", s.tlsKey, "")
	fs.StringVar(&s.acmeHostnames, "acme-hostnames", s.acmeHostnames, "")
	fs.StringVar(&s.acmeEmail, "acme-email", s.acmeEmail, "")
	fs.StringVar(&s.acmeDirectory, "acme-directory", s.acmeDirectory, "")
	fs.BoolVar(&s.disableTLS, "disable-tls", s.disableTLS, "")
	fs.StringVar(&s.stateDir, "state-dir", s.stateDir, "")
	fs.StringVar(&s.url, "url", s.url, "")
	fs.StringVar(&s.fronts, "fronts", s.fronts, "")
	fs.StringVar(&s.trustedProxies, "trusted-proxies", s.trustedProxies, "")
	fs.BoolVar(&s.proxyProtocol, "proxy-protocol", s.proxyProtocol, "")
	fs.StringVar(&s.decoy, "decoy", s.decoy, "")
	fs.StringVar(&s.memoryLimit, "memory-limit", s.memoryLimit, "")
	fs.StringVar(&s.metrics, "metrics", s.metrics, "")
	fs.StringVar(&s.drain, "drain", s.drain, "")
	fs.StringVar(&s.log, "log", s.log, "")
	fs.BoolVar(&s.unsafeLogging, "unsafe-logging", s.unsafeLogging, "")
	fs.StringVar(&s.logLevel, "log-level", s.logLevel, "")
	fs.StringVar(&s.logFormat, "log-format", s.logFormat, "")
	fs.BoolVar(&s.bridgeLine, "bridge-line", s.bridgeLine, "")
	fs.BoolVar(&s.qr, "qr", s.qr, "")
	fs.BoolVar(&s.version, "version", s.version, "")
	fs.BoolVar(&s.check, "check", s.check, "")
	fs.BoolVar(&s.json, "json", s.json, "")
	return fs
}

// commandLineOnly are the flags with which the program does something else than to
// serve.
var commandLineOnly = []string{"bridge-line", "check", "json", "qr", "version"}

// logConfig is how the log is written.
func (s *settings) logConfig() (ptproc.LogConfig, error) {
	c := ptproc.LogConfig{File: s.log, Unsafe: s.unsafeLogging, JSON: s.logFormat == "json"}
	if s.logFormat != "" && s.logFormat != "json" && s.logFormat != "text" {
		return c, fmt.Errorf("-log-format %+q is neither text nor json", s.logFormat)
	}
	if s.logLevel == "" {
		return c, nil
	}
	var err error
	if c.Level, err = ptproc.ParseLevel(s.logLevel); err != nil {
		err = fmt.Errorf("-log-level: %w", err)
	}
	return c, err
}

// apply sets what ServerTransportOptions hold. They override the flags.
func (s *settings) apply(options pt.Args) error {
	fs := s.flags()
	valid := []string{}
	fs.VisitAll(func(f *flag.Flag) {
		if !slices.Contains(commandLineOnly, f.Name) {
			valid = append(valid, f.Name)
		}
	})
	names := make([]string, 0, len(options))
	for name := range options {
		names = append(names, name)
	}
	slices.Sort(names) // the same error every time
	for _, name := range names {
		if !slices.Contains(valid, name) {
			return fmt.Errorf("unknown option %+q in ServerTransportOptions; valid are %s", name, strings.Join(valid, ", "))
		}
		values := options[name]
		if len(values) > 1 {
			return fmt.Errorf("option %s stands %d times in ServerTransportOptions", name, len(values))
		}
		if err := fs.Set(name, values[0]); err != nil {
			// Only a switch can fail.
			return fmt.Errorf("option %s=%+q in ServerTransportOptions: %w; want 1 or 0", name, values[0], err)
		}
	}
	return nil
}

var errMixedAddress = errors.New("leave out the ::ffff: of an IPv4 network")

// parsePrefixes reads a comma-separated list of addresses and CIDR networks.
// An empty list is none.
func parsePrefixes(list string) ([]netip.Prefix, error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil
	}
	var prefixes []netip.Prefix
	for item := range strings.SplitSeq(list, ",") {
		prefix, err := parsePrefix(strings.TrimSpace(item))
		if err != nil {
			return nil, fmt.Errorf("-trusted-proxies: %+q is neither an address nor a network such as 10.0.0.0/8: %w", item, err)
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			return netip.Prefix{}, err
		}
		if prefix.Addr().Is4In6() {
			return netip.Prefix{}, errMixedAddress
		}
		return prefix.Masked(), nil
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	if addr.Zone() != "" {
		return netip.Prefix{}, errors.New("an address with a zone cannot be trusted")
	}
	addr = addr.Unmap()
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}
