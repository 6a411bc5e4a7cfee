package check

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/tunnel"

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

// site serves h without sockets, and returns how it is checked.
func site(t *testing.T, key *tunnel.Key, h http.Handler) (tunnel.Config, Options) {
	ln := &memory{conns: make(chan net.Conn), done: make(chan struct{})}
	web := &http.Server{Handler: h, ErrorLog: quiet()}
	served := make(chan struct{})
	go func() {
		defer close(served)
		web.Serve(ln) //nolint:errcheck // it says that it was closed
	}()
	t.Cleanup(func() {
		web.Close()
		<-served
	})
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		here, there := net.Pipe()
		select {
		case ln.conns <- there:
			return here, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return tunnel.Config{URL: "http://192.0.2.1/secret", Key: key.Public()}, Options{Dial: dial}
}

// A tap lets answers through until they have so many bytes together. Then it cuts them,
// and answers nothing.
type tap struct {
	http.Handler
	left atomic.Int64
}

func (h *tap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.left.Load() <= 0 {
		if _, err := io.Copy(io.Discard, r.Body); err == nil { // else the client has gone
			<-r.Context().Done()
		}
		return
	}
	h.Handler.ServeHTTP(tapped{w, h}, r)
}

type tapped struct {
	http.ResponseWriter
	tap *tap
}

func (w tapped) Write(p []byte) (int, error) {
	if w.tap.left.Add(-int64(len(p))) <= 0 {
		panic(http.ErrAbortHandler)
	}
	return w.ResponseWriter.Write(p)
}

func (w tapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// What ends after some kilobytes does not work, however fast it was until then.
func TestEndsAfterSomeBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := tunnel.NewKey()
		server := tunnel.NewServer(tunnel.ServerConfig{Key: key})
		defer server.Close()
		h := &tap{Handler: server}
		h.left.Store(200 << 10)
		cfg, opts := site(t, key, h)
		report, err := Bridge(t.Context(), cfg, opts, Silent{})
		if err != nil || report.Verdict != &stalls {
			t.Fatalf("%v, %+v", err, report)
		}
		for _, s := range report.Fronts[0].Steps {
			if s.Name == "download" && !strings.Contains(s.Text, " kbit/s") {
				t.Errorf("download: %s", s.Text)
			}
		}
	})
}

// A check that is told to end while it waits for the server does so at once, and says
// of the step that it was not finished.
func TestEndedWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := tunnel.NewKey()
		server := tunnel.NewServer(tunnel.ServerConfig{Key: key})
		defer server.Close()
		h := &tap{Handler: server}
		h.left.Store(1 << 30)
		cfg, opts := site(t, key, h)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o := &ending{begin: func() {
			h.left.Store(0)
			time.AfterFunc(time.Second, cancel)
		}}
		_, err := Bridge(ctx, cfg, opts, o)
		if !errors.Is(err, context.Canceled) || o.last.State != Skipped || o.last.Took > 2*time.Second {
			t.Errorf("%v, last step %+v", err, o.last)
		}
	})
}

// ending calls begin when the check begins to load.
type ending struct {
	Silent
	begin func()
	last  Step
}

func (e *ending) Begin(name string) {
	if name == "download" {
		e.begin()
	}
}

func (e *ending) End(s Step) { e.last = s }

// What a peer says cannot move the cursor of who reads it.
func TestPlain(t *testing.T) {
	r := Recorder{Observer: Silent{}, Secret: true}
	r.Take("TLS", func() Finding { return Finding{Text: "a\x1b[31mb", Details: "for other\r\x9bname\u202e"} })
	if s := r.Steps[0]; s.Text != "a?[31mb" || strings.ContainsAny(s.Details, "\r\u009b\u202e") {
		t.Errorf("%q, %q", s.Text, s.Details)
	}
}
