package names

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"turbotunnel/common/front"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A zone answers questions.
type zone struct {
	a, aaaa string
	ech     []byte
	rcode   dnsmessage.RCode
}

// answer answers a question as a resolver does.
func (z *zone) answer(t testing.TB, message []byte) []byte {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(message); err != nil {
		t.Error(err)
		return nil
	}
	if len(message)%block != 0 {
		t.Errorf("a question of %d bytes is not padded", len(message))
	}
	q := m.Questions[0]
	header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
	m.Response, m.RCode, m.Additionals = true, z.rcode, nil
	switch {
	case z.rcode != dnsmessage.RCodeSuccess:
	case q.Type == dnsmessage.TypeA && z.a != "":
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: netip.MustParseAddr(z.a).As4()}}}
	case q.Type == dnsmessage.TypeAAAA && z.aaaa != "":
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(z.aaaa).As16()}}}
	case q.Type == dnsmessage.TypeHTTPS && z.ech != nil:
		for _, r := range []dnsmessage.SVCBResource{
			{Priority: 0, Target: dnsmessage.MustNewName("alias.example.")},
			{Priority: 3, Target: dnsmessage.MustNewName("."), Params: []dnsmessage.SVCParam{{Key: dnsmessage.SVCParamECH, Value: []byte("worse")}}},
			{Priority: 1, Target: dnsmessage.MustNewName("."), Params: []dnsmessage.SVCParam{{Key: dnsmessage.SVCParamALPN, Value: []byte("\x02h2")}, {Key: dnsmessage.SVCParamECH, Value: z.ech}}},
			{Priority: 1, Target: dnsmessage.MustNewName("other.example."), Params: []dnsmessage.SVCParam{{Key: dnsmessage.SVCParamECH, Value: []byte("another host's")}}},
		} {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.HTTPSResource{SVCBResource: r}})
		}
	}
	packed, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return packed
}

// resolverOf is a Resolver by HTTPS for z, and those header fields of its questions
// that say what they are.
func resolverOf(t *testing.T, z *zone) *Resolver {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.RequestURI() != "/dns-query?x=1" || r.Header.Get("Content-Type") != "application/dns-message" {
			t.Errorf("%s %s, a body of type %q", r.Method, r.URL, r.Header.Get("Content-Type"))
		}
		message, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/dns-message")
		w.Write(z.answer(t, message)) //nolint:errcheck // the client says so
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	r, err := New(&url.URL{Scheme: "https", Host: "example.com", Path: "/dns-query", RawQuery: "x=1"}, front.Config{
		RootCAs: roots,
		Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestAddresses(t *testing.T) {
	for name, c := range map[string]struct {
		zone zone
		want []string
		err  string
	}{
		"both":         {zone{a: "192.0.2.1", aaaa: "2001:db8::1"}, []string{"192.0.2.1", "2001:db8::1"}, ""},
		"one":          {zone{aaaa: "2001:db8::1"}, []string{"2001:db8::1"}, ""},
		"none":         {zone{}, nil, "no address"},
		"no such name": {zone{rcode: dnsmessage.RCodeNameError}, nil, "no such host"},
		"failure":      {zone{rcode: dnsmessage.RCodeServerFailure}, nil, "the resolver fails"},
	} {
		t.Run(name, func(t *testing.T) {
			found, err := resolverOf(t, &c.zone).Addresses(t.Context(), "front.example")
			var got []string
			for _, a := range found {
				got = append(got, a.String())
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("addresses %v", got)
			}
			var dns *net.DNSError
			if c.err != "" && (!errors.As(err, &dns) || !strings.Contains(err.Error(), c.err)) || c.err == "" && err != nil {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestECH(t *testing.T) {
	for _, want := range []string{"", "a list"} {
		z := &zone{}
		if want != "" {
			z.ech = []byte(want)
		}
		got, err := resolverOf(t, z).ECH(t.Context(), "front.example")
		if string(got) != want || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// A name that DNS cannot ask for is an error, and every question is whole blocks.
func TestQuestion(t *testing.T) {
	for n := range 260 {
		host := strings.TrimSuffix(strings.Repeat(strings.Repeat("a", 50)+".", 6)[:n], ".")
		message, err := question(host, dnsmessage.TypeA, 7)
		if n < 250 && (err != nil || len(message)%block != 0) {
			t.Errorf("%d: %d bytes, %v", n, len(message), err)
		}
	}
	if _, err := question(strings.Repeat("a", 300), dnsmessage.TypeA, 7); err == nil {
		t.Error("a name of 300 bytes")
	}
}

func FuzzParse(f *testing.F) {
	q, _ := question("front.example", dnsmessage.TypeHTTPS, 0)
	f.Add(q)
	f.Add((&zone{ech: []byte("x")}).answer(f, q))
	f.Fuzz(func(t *testing.T, text []byte) {
		isTruncated(text)
		resources, err := parse(text, "front.example", 0)
		if err != nil && resources != nil {
			t.Error("both resources and an error")
		}
		addressesIn(resources)
		echIn(resources)
	})
}
