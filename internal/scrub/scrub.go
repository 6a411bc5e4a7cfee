// Package scrub makes text fit to be shown: it hides network addresses, and it
// writes bytes that could deceive a reader or break a protocol line as escapes.
//
// A log outlives its moment and is shown to strangers. Whoever reads it should
// learn what happened and not who talked to whom. The package errs on the side
// of hiding: a few harmless words that look like an address go as well.
//
// It does not find secrets, nor names that stand in the text without anything
// that marks them as a network name.
package scrub

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Hidden stands where an address was.
const Hidden = "[scrubbed]"

// The patterns for addresses, in the order in which they are applied. Each
// takes the port along, so that no part of an address stays behind.
var (
	// location is a URL, of which what follows the scheme is hidden: a bridge's path
	// names it as surely as its host does.
	location = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s"'\\<>]+`)

	// lookup is what a resolver's error says after that word: the name, or the
	// server that was asked.
	lookup = regexp.MustCompile(`(\blookup )[^\s:]+`)

	// front is one that an error names.
	front = regexp.MustCompile(`(\bfront )"[^"]*"`)

	// bracketed is an IPv6 address as in host:port.
	bracketed = regexp.MustCompile(`\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[^\]\s]*)?\](?::[0-9]+)?`)

	// colonRun may be a bare IPv6 address: looksLikeIPv6 decides.
	colonRun = regexp.MustCompile(`[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[0-9A-Za-z_.-]+)?`)

	// quad is four numbers with dots, wherever they stand.
	quad = regexp.MustCompile(`[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?::[0-9]{1,5})?`)

	// hostPort is a domain name with a port. The name ends in a label that starts
	// with a letter, as top-level domains do.
	hostPort = regexp.MustCompile(`(?:[A-Za-z0-9_-]+\.)+[A-Za-z][A-Za-z0-9-]*\.?:[0-9]{1,5}`)
)

// Addresses returns s with every network address replaced by Hidden: IPv4 and
// IPv6 addresses, with or without a port, domain names with a port, all of a
// URL but its scheme, and the names in errors of resolvers and fronts.
func Addresses(s string) string {
	s = location.ReplaceAllString(s, "${1}"+Hidden)
	s = lookup.ReplaceAllString(s, "${1}"+Hidden)
	s = front.ReplaceAllString(s, "${1}"+Hidden)
	s = bracketed.ReplaceAllString(s, Hidden)
	s = colonRun.ReplaceAllStringFunc(s, func(run string) string {
		if looksLikeIPv6(run) {
			return Hidden
		}
		return run
	})
	s = quad.ReplaceAllString(s, Hidden)
	return hostPort.ReplaceAllString(s, Hidden)
}

// name is a domain name of two labels or more, and nothing else.
var name = regexp.MustCompile(`^(?:[A-Za-z0-9_-]+\.)+[A-Za-z][A-Za-z0-9-]+\.?$`)

// Name returns Hidden for a text that is a domain name, and any other text
// without the network addresses in it. A file name with an extension counts as
// a domain name.
func Name(s string) string {
	if name.MatchString(s) {
		return Hidden
	}
	return Addresses(s)
}

// looksLikeIPv6 tells an address from a time of day: an address has eight
// groups, or a gap beside a digit. A trailing colon belongs to the sentence.
func looksLikeIPv6(run string) bool {
	return strings.Count(run, ":") >= 5 ||
		strings.Contains(run, "::") && strings.Trim(run, ":.") != ""
}

// Error returns err's text without network addresses. It finds more than
// Addresses does: names that typed errors in err's tree are known to hold.
func Error(err error) string {
	text := err.Error()
	names := names(err)
	// Longest first: one name may be the end of another.
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) })
	for _, name := range names {
		text = strings.ReplaceAll(text, name, Hidden)
	}
	return Addresses(text)
}

// names collects the network names that err and the errors it wraps hold.
func names(err error) []string {
	var found []string
	add := func(name string) {
		// Names of a byte or two would take unrelated letters with them.
		if len(name) > 2 {
			found = append(found, name)
		}
	}
	switch e := err.(type) {
	case *net.DNSError:
		add(e.Name)
		add(e.Server)
	case *net.OpError:
		if e.Addr != nil {
			add(e.Addr.String())
		}
		if e.Source != nil {
			add(e.Source.String())
		}
	case *net.AddrError:
		add(e.Addr)
	case *url.Error:
		if u, err := url.Parse(e.URL); err == nil {
			add(u.Host)
			add(u.Hostname())
		}
	case x509.HostnameError:
		add(e.Host)
		if e.Certificate != nil {
			for _, name := range e.Certificate.DNSNames {
				add(name)
			}
			add(e.Certificate.Subject.CommonName)
		}
	}
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			found = append(found, names(err)...)
		}
	default:
		if err := errors.Unwrap(err); err != nil {
			found = append(found, names(err)...)
		}
	}
	return found
}

// Line returns s as text for one line of a log: every byte that is not part of
// a printable character is written as an escape. Characters that change the
// direction of writing, line ends and terminal controls are not printable.
func Line(s string) string {
	return escape(s, func(r rune) bool { return unicode.IsPrint(r) })
}

// ASCII returns s in printable ASCII, which every line of the
// pluggable-transport protocol has to be; everything else becomes an escape.
func ASCII(s string) string {
	return escape(s, func(r rune) bool { return ' ' <= r && r <= '~' })
}

// escape writes the characters of s that keep does not take as Go escapes.
func escape(s string, keep func(rune) bool) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case keep(r):
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	return b.String()
}
