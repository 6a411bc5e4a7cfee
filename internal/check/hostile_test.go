package check

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// resolverName is the host of doh=.
const resolverName = "dns.secret"

// echOfFront is an ECHConfigList whose public name is the front's.
func echOfFront() []byte {
	const key = "\xde\x9e\xdb\x7d\x7b\x7d\xc1\xb4\xd3\x5b\x61\xc2\xec\xe4\x35\x37\x3f\x83\x43\xc8\x5b\x78\x67\x4d\xad\xfc\x7e\x14\x6f\x88\x2b\x4f"
	config := "\x01\x00\x20\x00\x20" + key + "\x00\x04\x00\x01\x00\x01\x00" + string(rune(len(frontName))) + frontName + "\x00\x00"
	config = "\xfe\x0d\x00" + string(rune(len(config))) + config
	return []byte("\x00" + string(rune(len(config))) + config)
}

// resolve has the CDN answer for a resolver by HTTPS, too, with these addresses and
// this ECHConfigList for every name.
func (r *rig) resolve(ech []byte, addrs ...string) {
	site := r.handler
	r.names = append(r.names, resolverName)
	r.cfg.DoH = "https://" + resolverName + "/dns-query"
	r.handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Host != resolverName {
			site.ServeHTTP(w, req)
			return
		}
		question, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		answer, err := answerTo(question, ech, addrs)
		if err != nil {
			r.t.Error(err)
		}
		w.Header().Set("Content-Type", "application/dns-message")
		w.Write(answer) //nolint:errcheck // the client says so
	})
}

func answerTo(question, ech []byte, addrs []string) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil, err
	}
	m.Response, m.Additionals = true, nil
	header := dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: m.Questions[0].Type, Class: dnsmessage.ClassINET, TTL: 60}
	switch header.Type {
	case dnsmessage.TypeA:
		for _, a := range addrs {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()}})
		}
	case dnsmessage.TypeHTTPS:
		if ech != nil {
			body := dnsmessage.SVCBResource{
				Priority: 1, Target: dnsmessage.MustNewName("."),
				Params: []dnsmessage.SVCParam{{Key: dnsmessage.SVCParamECH, Value: ech}},
			}
			m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.HTTPSResource{SVCBResource: body}}}
		}
	}
	return m.Pack()
}

// A clearServer answers whatever is said to it by HTTP in clear.
type clearServer struct {
	net.Conn
	said bool
}

func (c *clearServer) Write(p []byte) (int, error) { return len(p), nil }

func (c *clearServer) Read(p []byte) (int, error) {
	if c.said {
		return 0, io.EOF
	}
	c.said = true
	return copy(p, "HTTP/1.1 400 Bad Request\r\n\r\n"), nil
}

// What is not a censor's work is not said to be, and what encrypts a name or answers
// in DNS's place is judged as what it is.
func TestHostileVerdicts(t *testing.T) {
	redirect := status(http.StatusFound, "Location", "http://login.portal/")
	for _, c := range []struct {
		name  string
		fault func(r *rig)
		want  *Verdict
		text  string // in the text; "": whatever
	}{
		{"no TLS at the port", func(r *rig) {
			r.wrap = func(c net.Conn, _ string) (net.Conn, error) { return &clearServer{Conn: c}, nil }
		}, &tlsFails, ""},
		{"ECH list of junk by DNS", func(r *rig) {
			r.cfg.ECH = "dns"
			r.resolve([]byte("\x00\x04junk"), siteAddr)
		}, &works, "in the clear, since DNS has no key"},
		{"no ECH in DNS", func(r *rig) {
			r.cfg.ECH = "dns"
			r.resolve(nil, siteAddr)
		}, &works, "in the clear, since DNS has no key"},
		{"front without ECH, key by DNS", func(r *rig) {
			r.cfg.ECH = "dns"
			r.resolve(echOfFront(), siteAddr)
		}, &echFails, ""},
		{"front without ECH, key in the line", func(r *rig) {
			r.cfg.ECH = base64.StdEncoding.EncodeToString(echOfFront())
		}, &echFails, ""},
		{"ECH dropped", func(r *rig) {
			r.cfg.ECH = base64.StdEncoding.EncodeToString(echOfFront())
			// What is seen of the name is the public one.
			r.wrap = func(c net.Conn, _ string) (net.Conn, error) { return &cutter{Conn: c, text: frontName}, nil }
		}, &echFails, ""},
		{"portal that refuses port 443", func(r *rig) {
			r.opts.Dial = r.refusing443
			r.clear = redirect
		}, &portal, ""},
		{"portal that cuts TLS", func(r *rig) {
			r.wrap = func(c net.Conn, _ string) (net.Conn, error) { return &cutter{Conn: c, text: "\x16\x03"}, nil }
			r.clear = redirect
		}, &portal, ""},
		{"front whose port 80 leads to another site", func(r *rig) {
			r.opts.Dial = r.refusing443
			r.clear = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.Host == frontName {
					http.Redirect(w, req, "https://other.site/", http.StatusFound)
				}
			})
		}, &blocked, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			c.fault(r)
			r.start()
			report, text := r.check()
			if report.Verdict != c.want || !strings.Contains(text, c.text) {
				t.Errorf("verdict %q, want %q:\n%s", report.Verdict.Name, c.want.Name, text)
			}
		})
	}
}

// refusing443 is a network in which nobody listens at port 443.
func (r *rig) refusing443(ctx context.Context, network, addr string) (net.Conn, error) {
	if _, port, _ := net.SplitHostPort(addr); port == "443" {
		return nil, syscall.ECONNREFUSED
	}
	return r.dial(ctx, network, addr)
}

// A resolver that says thousands of addresses does not make the check last: as many
// are tried as the tunnel would try.
func TestManyAddresses(t *testing.T) {
	r := newRig(t)
	var addrs []string
	for i := range 3500 {
		addrs = append(addrs, fmt.Sprintf("99.1.%d.%d", i>>8, i&255))
	}
	r.resolve(nil, addrs...)
	var dials atomic.Int64
	r.opts.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, resolverName) {
			return r.dial(ctx, network, addr)
		}
		dials.Add(1)
		return nil, syscall.ECONNREFUSED
	}
	r.start()
	if report, text := r.check(); report.Verdict != &blocked || dials.Load() > 25 {
		t.Errorf("%d dials:\n%s", dials.Load(), text)
	}
}

// With a name that shall be encrypted, none of what the check tries shows it in clear.
func TestNameStaysEncrypted(t *testing.T) {
	r := newRig(t)
	r.cfg.ECH = "dns"
	list := echOfFront()
	public := []byte("public.domain")[:len(frontName)]
	copy(list[len(list)-2-len(frontName):], public)
	r.resolve(list, siteAddr)
	var shown atomic.Bool
	r.wrap = func(c net.Conn, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, resolverName) {
			return c, nil
		}
		return &watched{&cutter{Conn: c, text: string(public)}, frontName, &shown}, nil
	}
	r.clear = http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		if req.Host == frontName {
			shown.Store(true)
		}
	})
	r.start()
	if report, text := r.check(); report.Verdict != &echFails || shown.Load() {
		t.Errorf("verdict %s, the name was shown: %v\n%s", report.Verdict.Name, shown.Load(), text)
	}
}

// watched is a connection that notes when a text is written.
type watched struct {
	net.Conn
	text  string
	shown *atomic.Bool
}

func (w *watched) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.text) {
		w.shown.Store(true)
	}
	return w.Conn.Write(p)
}
