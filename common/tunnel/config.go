package tunnel

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"turbotunnel/common/carrier"
	"turbotunnel/common/engines"
	"turbotunnel/common/front"
	"turbotunnel/common/handshake"
	"turbotunnel/common/names"
)

// Config says how a client reaches its server. Its fields are the arguments of
// a bridge line, as text. The zero value of a field is its default. Two equal
// values reach the same server in the same way.
type Config struct {
	URL    string // of the server, as its CDN or DNS knows it; required
	Key    string // the server's public key, base64url without padding; empty: unauthenticated
	Fronts string // comma-separated domains to dial and to name in SNI; empty: the URL's host
	Addr   string // host:port to dial instead of resolving the front
	Engine string // one of engines.Names; empty: engines.Default
	Mode   string // auto, poll or stream; empty: auto
	UTLS   string // TLS ClientHellos to imitate, with commas between; none for Go's own; empty: chrome
	ECH    string // base64 of the fronts' ECHConfigList, or "dns": DNS has it; empty: names are not encrypted
	DoH    string // URL of the resolver that is asked by HTTPS for addresses and ECH; empty: the system's
}

// Arguments are the names that Set knows, in the order of the manual.
var Arguments = []string{"url", "key", "front", "fronts", "addr", "engine", "mode", "utls", "ech", "doh"}

var modes = []string{string(carrier.Auto), string(carrier.Poll), string(carrier.Stream)}

// Set sets the field that a bridge line's argument names: one of Arguments. An
// unknown name or a malformed value is an error that says what is accepted.
func (c *Config) Set(name, value string) error {
	next := *c
	switch name {
	case "url":
		next.URL = value
	case "key":
		next.Key = value
	case "front":
		if strings.Contains(value, ",") {
			return fmt.Errorf("front: one domain, not %.100q; fronts takes several", value)
		}
		next.Fronts = value
	case "fronts":
		next.Fronts = value
	case "addr":
		next.Addr = value
	case "engine":
		next.Engine = value
	case "mode":
		next.Mode = value
	case "utls":
		next.UTLS = value
	case "ech":
		next.ECH = value
	case "doh":
		next.DoH = value
	default:
		return fmt.Errorf("unknown argument %.40q: the known ones are %s", name, strings.Join(Arguments, ", "))
	}
	if value == "" {
		return fmt.Errorf("%s: empty: give a value, or leave the argument out", name)
	}
	if next.URL == "" {
		// The others can be checked without: any server will do.
		probe := next
		probe.URL = "https://server.invalid/"
		if err := probe.Check(); err != nil {
			return err
		}
	} else if err := next.Check(); err != nil {
		return err
	}
	*c = next
	return nil
}

// Check tells whether a client can be made from c. Its error begins with the
// name of the argument that is wrong.
func (c Config) Check() error {
	_, err := c.parse()
	return err
}

// Ways are how c leads to its server, one for each front. It is for package check,
// which looks at each of them, and no part of the API.
func (c Config) Ways() ([]front.Config, error) {
	p, err := c.parse()
	if err != nil {
		return nil, err
	}
	return p.fronts, nil
}

// ServerKey is the key of c's server. It is for package check, and no part of the
// API.
func (c Config) ServerKey() (handshake.PublicKey, error) {
	p, err := c.parse()
	if err != nil {
		return handshake.PublicKey{}, err
	}
	return p.key, nil
}

// parsed is a Config that was checked.
type parsed struct {
	url    *url.URL
	key    handshake.PublicKey
	fronts []front.Config
	engine string
	mode   carrier.Mode
	doh    *url.URL // nil: the system's resolver is asked
}

// dnsECH is the value of ech= that stands for what DNS has.
const dnsECH = "dns"

func (c Config) parse() (*parsed, error) {
	p := &parsed{engine: c.Engine, mode: carrier.Mode(c.Mode), key: handshake.WellKnown.Public()}
	if c.URL == "" {
		return nil, fmt.Errorf("url: missing: give the server's URL, such as https://cdn.example/path")
	}
	u, err := parseURL(c.URL)
	if err != nil {
		return nil, err
	}
	p.url = u
	if c.Key != "" {
		if p.key, err = handshake.ParsePublicKey(c.Key); err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
	}
	if p.engine == "" {
		p.engine = engines.Default
	}
	if _, ok := engines.Find(p.engine); !ok {
		return nil, fmt.Errorf("engine: unknown: %.40q: one of %s", p.engine, strings.Join(engines.Names(), ", "))
	}
	if p.mode == "" {
		p.mode = carrier.Auto
	}
	if !slices.Contains(modes, string(p.mode)) {
		return nil, fmt.Errorf("mode: unknown: %.40q: one of %s", c.Mode, strings.Join(modes, ", "))
	}
	if err := c.parseDoH(p); err != nil {
		return nil, err
	}
	list, lookup, err := c.parseECH(u)
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Split(c.Fronts, ",") {
		cfg := front.Config{URL: u, Front: strings.TrimSpace(name), Addr: c.Addr, UTLS: c.UTLS, ECH: list, LookupECH: lookup}
		if cfg.Front == "" && c.Fronts != "" {
			return nil, fmt.Errorf("fronts: an empty name in %.200q", c.Fronts)
		}
		if err := cfg.Check(); err != nil {
			return nil, err
		}
		p.fronts = append(p.fronts, cfg)
	}
	return p, nil
}

// parseDoH reads which resolver is asked by HTTPS into p.
func (c Config) parseDoH(p *parsed) (err error) {
	if c.DoH == "" {
		return nil
	}
	if p.doh, err = url.Parse(c.DoH); err != nil || p.doh.Scheme != "https" || p.doh.Hostname() == "" || p.doh.User != nil || p.doh.Fragment != "" {
		return fmt.Errorf("doh: no URL such as https://dns.example/dns-query")
	}
	if err := (front.Config{URL: &url.URL{Scheme: "https", Host: p.doh.Host}}).Check(); err != nil {
		return fmt.Errorf("doh: %w", err)
	}
	return nil
}

// parseECH returns the ECHConfigList for the names of a server's fronts, or who knows
// it, or neither. That is the system's resolver, until lookUp knows better.
func (c Config) parseECH(server *url.URL) (list []byte, lookup func(context.Context, string) ([]byte, error), err error) {
	switch {
	case c.ECH == "":
		return nil, nil, nil
	case server.Scheme != "https":
		return nil, nil, fmt.Errorf("ech: http:// has no TLS in which a name is encrypted")
	case c.ECH == dnsECH:
		return nil, names.System, nil
	}
	list, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(c.ECH), "="))
	if err != nil || len(list) == 0 {
		return nil, nil, fmt.Errorf("ech: %.40q is neither %s nor base64 of an ECHConfigList", c.ECH, dnsECH)
	}
	return list, nil, nil
}

func parseURL(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		return nil, fmt.Errorf("url: %.100q has no scheme: write https:// or http:// before it", s)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("url: %.100q cannot be read as a URL", s)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("url: scheme %.20q: only http and https are possible", u.Scheme)
	case u.Hostname() == "":
		return nil, fmt.Errorf("url: %.100q names no host", s)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, fmt.Errorf("url: only scheme, host, port and path can stand in it, not %.100q", u.Redacted())
	}
	if port := u.Port(); port != "" {
		if _, err := net.LookupPort("tcp", port); err != nil {
			return nil, fmt.Errorf("url: port %.20q is none", port)
		}
	}
	return u, nil
}
