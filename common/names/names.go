// Package names asks DNS by HTTPS (RFC 8484), so that who watches the network, or
// answers in DNS's place, neither learns a front's name from DNS nor lies about its
// addresses, and for the key with which the front's name is encrypted in TLS (ECH, RFC
// 9848), which the system's resolver is not asked for by Go.
//
// Its one idea is that a question to a resolver is an exchange with one more front: it
// has a browser's TLS and HTTP, too.
package names

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"turbotunnel/common/front"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxMessage is the size in bytes of the largest answer, DNS's own limit.
	maxMessage = 64 << 10

	// block is what questions are padded to a multiple of, in bytes (RFC 8467
	// section 4.1), so that their size does not tell the name.
	block = 128

	// patience is how long a resolver may take to answer.
	patience = 10 * time.Second

	// maxDatagram is the size in bytes of the largest answer in a datagram that is
	// asked for (RFC 6891; what DNS Flag Day 2020 recommends). HTTPS does not care.
	maxDatagram = 1232
)

// A Resolver asks one resolver by HTTPS. It is safe for concurrent use. It must be
// closed.
type Resolver struct {
	front *front.Front
	path  string // with the query
}

// New returns a Resolver at a URL such as https://dns.example/dns-query, which is
// reached like a server by cfg, whose URL, Front, Addr, ECH and Lookups are not used.
// Its errors are those of front.Config.Check. It does not use the network yet.
func New(u *url.URL, cfg front.Config) (*Resolver, error) {
	if u.Scheme != "https" {
		return nil, fmt.Errorf("scheme %.20q; accepted: https", u.Scheme)
	}
	cfg.URL = &url.URL{Scheme: u.Scheme, Host: u.Host}
	cfg.Front, cfg.Addr, cfg.ECH, cfg.Lookup, cfg.LookupECH = "", "", nil, nil, nil
	f, err := front.New(cfg)
	if err != nil {
		return nil, err
	}
	return &Resolver{front: f, path: (&url.URL{Path: u.Path, RawQuery: u.RawQuery}).String()}, nil
}

// Close ends the connections to the resolver.
func (r *Resolver) Close() error { return r.front.Close() }

// Addresses returns the IP addresses of a host.
func (r *Resolver) Addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	type answer struct {
		found []netip.Addr
		err   error
	}
	answers := make(chan answer, 2)
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		go func() {
			resources, err := r.ask(ctx, host, kind)
			answers <- answer{addressesIn(resources), err}
		}()
	}
	a, b := <-answers, <-answers
	found := append(a.found, b.found...)
	switch {
	case len(found) > 0:
		return found, nil
	case a.err != nil:
		return nil, a.err
	case b.err != nil:
		return nil, b.err
	}
	return nil, &net.DNSError{Err: "no address", Name: host, IsNotFound: true}
}

// ECH returns the ECHConfigList of a host, nil if it has none.
func (r *Resolver) ECH(ctx context.Context, host string) ([]byte, error) {
	resources, err := r.ask(ctx, host, dnsmessage.TypeHTTPS)
	return echIn(resources), err
}

// ask returns the resources of an answer.
func (r *Resolver) ask(ctx context.Context, host string, kind dnsmessage.Type) ([]dnsmessage.Resource, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	message, err := question(host, kind, 0)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.path, bytes.NewReader(message))
	if err != nil {
		return nil, fmt.Errorf("doh: %w", err)
	}
	req.Header.Set("Content-Type", "application/dns-message")
	req.Header.Set("Accept", "application/dns-message")
	resp, err := r.front.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("doh: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("doh: the resolver answers with status %d", resp.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if err != nil {
		return nil, fmt.Errorf("doh: %w", err)
	}
	return parse(text, host, 0)
}

// question is a question for resources of a kind, padded. HTTPS needs no id.
func question(host string, kind dnsmessage.Type, id uint16) ([]byte, error) {
	name, err := dnsmessage.NewName(strings.TrimSuffix(host, ".") + ".")
	if err != nil {
		return nil, &net.DNSError{Err: "no name for DNS", Name: host, IsNotFound: true}
	}
	const padding = 12 // the option's code (RFC 7830)
	pack := func(pad int) ([]byte, error) {
		var extended dnsmessage.ResourceHeader
		if err := extended.SetEDNS0(maxDatagram, dnsmessage.RCodeSuccess, false); err != nil {
			return nil, err
		}
		m := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: name, Type: kind, Class: dnsmessage.ClassINET}},
			Additionals: []dnsmessage.Resource{{
				Header: extended,
				Body:   &dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: padding, Data: make([]byte, pad)}}},
			}},
		}
		return m.Pack()
	}
	bare, err := pack(0)
	if err != nil {
		return nil, err
	}
	return pack((block - len(bare)%block) % block)
}

// parse returns the resources of an answer to the question with that id.
func parse(text []byte, host string, id uint16) ([]dnsmessage.Resource, error) {
	var m dnsmessage.Message
	if err := m.Unpack(text); err != nil {
		return nil, &net.DNSError{Err: "malformed answer: " + err.Error(), Name: host}
	}
	switch {
	case !m.Response || m.ID != id:
		return nil, &net.DNSError{Err: "answer to another question", Name: host}
	case m.RCode == dnsmessage.RCodeNameError:
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	case m.RCode != dnsmessage.RCodeSuccess:
		return nil, &net.DNSError{Err: "the resolver fails: " + m.RCode.String(), Name: host, IsTemporary: true}
	}
	return m.Answers, nil
}

// addressesIn are the addresses among resources.
func addressesIn(resources []dnsmessage.Resource) []netip.Addr {
	var found []netip.Addr
	for _, r := range resources {
		switch body := r.Body.(type) {
		case *dnsmessage.AResource:
			found = append(found, netip.AddrFrom4(body.A))
		case *dnsmessage.AAAAResource:
			found = append(found, netip.AddrFrom16(body.AAAA))
		}
	}
	return found
}

// echIn is the ECHConfigList of the resource with the least priority that is for the
// name itself; nil if there is none.
func echIn(resources []dnsmessage.Resource) []byte {
	var found []byte
	least := uint16(0)
	for _, r := range resources {
		body, ok := r.Body.(*dnsmessage.HTTPSResource)
		if !ok || body.Priority == 0 || body.Target.String() != "." && body.Target.String() != r.Header.Name.String() {
			continue // an alias, or another host's
		}
		if found != nil && body.Priority >= least {
			continue
		}
		for _, p := range body.Params {
			if p.Key == dnsmessage.SVCParamECH {
				found, least = bytes.Clone(p.Value), body.Priority
			}
		}
	}
	return found
}
