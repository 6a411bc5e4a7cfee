package main

import (
	"flag"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

// Every flag stands in the help, and the help names no other.
func TestHelpNamesEveryFlag(t *testing.T) {
	var set settings
	var flags, described []string
	set.flags().VisitAll(func(f *flag.Flag) { flags = append(flags, f.Name) })
	_, list, _ := strings.Cut(help, "\nFlags:\n")
	for line := range strings.Lines(list) {
		if name, ok := strings.CutPrefix(line, "  -"); ok && !strings.HasPrefix(name, "h ") {
			described = append(described, strings.Fields(name)[0])
		}
	}
	for _, name := range flags {
		if !strings.Contains(list, "\n  -"+name+" ") && !strings.HasPrefix(list, "  -"+name+" ") {
			t.Errorf("the help does not name -%s", name)
		}
	}
	if len(flags) != len(described) {
		t.Errorf("flags %q, described %q", flags, described)
	}
}

// Every flag can be an option, and an option overrides the flag.
func TestOptionsOverrideFlags(t *testing.T) {
	set := settings{url: "https://flag.example/", decoy: "/flag"}
	options := pt.Args{
		"tls-cert": {"c"}, "tls-key": {"k"}, "disable-tls": {"1"}, "state-dir": {"s"}, "url": {"https://option.example/"},
		"trusted-proxies": {"::1"}, "log": {"l"}, "unsafe-logging": {"true"}, "acme-hostnames": {"h"}, "acme-email": {"e"},
		"acme-directory": {"d"}, "proxy-protocol": {"1"}, "metrics": {"m"},
	}
	if err := set.apply(options); err != nil {
		t.Fatal(err)
	}
	want := settings{
		tlsCert: "c", tlsKey: "k", disableTLS: true, stateDir: "s", url: "https://option.example/",
		trustedProxies: "::1", decoy: "/flag", log: "l", unsafeLogging: true,
		acmeHostnames: "h", acmeEmail: "e", acmeDirectory: "d", proxyProtocol: true, metrics: "m",
	}
	if set != want {
		t.Errorf("got %+v, want %+v", set, want)
	}
}

func TestBadOptions(t *testing.T) {
	for _, c := range []struct {
		options pt.Args
		want    []string
	}{
		{pt.Args{"colour": {"red"}}, []string{`"colour"`, "acme-directory, acme-email, acme-hostnames, decoy, disable-tls, drain, fronts, log, log-format, log-level, memory-limit, metrics, proxy-protocol, state-dir, tls-cert, tls-key, trusted-proxies, unsafe-logging, url"}},
		{pt.Args{"version": {"1"}}, []string{`"version"`}},
		{pt.Args{"": {""}}, []string{`""`}},
		{pt.Args{"\x00\xff": {""}}, []string{`"\x00\xff"`}},
		{pt.Args{"disable-tls": {"maybe"}}, []string{"disable-tls", "maybe", "1 or 0"}},
		{pt.Args{"url": {"a", "b"}}, []string{"url", "2 times"}},
	} {
		var set settings
		err := set.apply(c.options)
		if err == nil {
			t.Errorf("%v: no error", c.options)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: the error lacks %q: %v", c.options, want, err)
			}
		}
	}
}

func TestParsePrefixes(t *testing.T) {
	for list, want := range map[string][]string{
		"":                              nil,
		" ":                             nil,
		"192.0.2.1":                     {"192.0.2.1/32"},
		"2001:db8::1":                   {"2001:db8::1/128"},
		"::ffff:192.0.2.1":              {"192.0.2.1/32"},
		"10.1.2.3/8, 2001:db8:1::/32":   {"10.0.0.0/8", "2001:db8::/32"},
		"0.0.0.0/0,::/0,192.0.2.128/25": {"0.0.0.0/0", "::/0", "192.0.2.128/25"},
	} {
		got, err := parsePrefixes(list)
		if err != nil {
			t.Errorf("%q: %v", list, err)
		}
		var texts []string
		for _, p := range got {
			texts = append(texts, p.String())
		}
		if !reflect.DeepEqual(texts, want) {
			t.Errorf("%q: got %q, want %q", list, texts, want)
		}
	}
	for _, list := range []string{",", "10.0.0.0/8,", "10.0.0.0/33", "10.0.0", "host.example", "fe80::1%eth0", "::ffff:10.0.0.0/104", "10.0.0.0/-1", "\x00"} {
		if got, err := parsePrefixes(list); err == nil {
			t.Errorf("%q: got %v, want an error", list, got)
		}
	}
}

func FuzzParsePrefixes(f *testing.F) {
	for _, s := range []string{"", "192.0.2.1,2001:db8::/32", "::ffff:1.2.3.4", "fe80::1%x", ",,", "10.0.0.0/8 , ::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, list string) {
		prefixes, err := parsePrefixes(list)
		if err != nil {
			return
		}
		var texts []string
		for _, p := range prefixes {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
				t.Fatalf("%q: prefix %v", list, p)
			}
			texts = append(texts, p.String())
		}
		again, err := parsePrefixes(strings.Join(texts, ","))
		if err != nil || !reflect.DeepEqual(again, prefixes) {
			t.Fatalf("%q: %v, written and read again: %v, %v", list, prefixes, again, err)
		}
	})
}

func TestCheckForward(t *testing.T) {
	for _, a := range []string{"127.0.0.1:80", "[::1]:80", "host.example:8080"} {
		if err := checkForward(a); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
	for _, a := range []string{"", "127.0.0.1", ":80", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "::1:80", "http://127.0.0.1:80"} {
		if err := checkForward(a); err == nil || !strings.Contains(err.Error(), "FORWARD") {
			t.Errorf("%q: error %v", a, err)
		}
	}
}

// FuzzUserAddr: tor gets nothing, or an address that parses and is the
// client's.
func FuzzUserAddr(f *testing.F) {
	for _, s := range []string{"", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "fe80::1%eth0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, err := netip.ParseAddr(s)
		text := userAddr(addr)
		if err != nil {
			if text != "" {
				t.Fatalf("%q: tor is told %q of nobody", s, text)
			}
			return
		}
		got, err := netip.ParseAddrPort(text)
		if err != nil || got.Port() != 1 || got.Addr() != addr.Unmap().WithZone("") {
			t.Fatalf("%q: tor is told %q: %v", s, text, err)
		}
	})
}
