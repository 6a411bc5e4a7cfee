package scrub

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"
	"unicode"
)

func TestAddresses(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"nothing to hide at 15:04:05 on 2026-11-22", "nothing to hide at 15:04:05 on 2026-11-22"},
		{"dial tcp 192.0.2.1:443: connect: connection refused", "dial tcp [scrubbed]: connect: connection refused"},
		{"addr=192.0.2.1.", "addr=[scrubbed]."},
		{"from ::1, to 2001:db8::7", "from [scrubbed], to [scrubbed]"},
		{"read tcp [2001:db8::1]:1234->[2001:db8::2]:443: i/o timeout", "read tcp [scrubbed]->[scrubbed]: i/o timeout"},
		{"[fe80::1%eth0]:80 and fe80::1%eth0", "[scrubbed] and [scrubbed]"},
		{"1:2:3:4:5:6:7:8", "[scrubbed]"},
		{"::ffff:192.0.2.1", "[scrubbed]"},
		{"dial tcp: lookup front.example on 127.0.0.53:53: no such host", "dial tcp: lookup [scrubbed] on [scrubbed]: no such host"},
		{`Post "https://user:pw@front.example/a/b?c": EOF`, `Post "https://[scrubbed]": EOF`},
		{"proxy socks5://10.0.0.1:1080 is slow", "proxy socks5://[scrubbed] is slow"},
		{"connect to front.example:443 failed", "connect to [scrubbed] failed"},
		{`front "cdn.example": TLS handshake: EOF`, `front [scrubbed]: TLS handshake: EOF`},
		{"net::x and 12:30", "net::x and 12:30"},
	} {
		if got := Addresses(c.in); got != c.want {
			t.Errorf("Addresses(%q)\n got %q\nwant %q", c.in, got, c.want)
		}
	}
}

func TestName(t *testing.T) {
	for _, hidden := range []string{"cdn.example", "xn--a.b-c.example.", "192.0.2.1"} {
		if got := Name(hidden); got != Hidden {
			t.Errorf("Name(%q) = %q", hidden, got)
		}
	}
	for _, shown := range []string{"", "kcp-smux", "1.5s", "30.25", "two words. And more", "/etc/tor/torrc.d"} {
		if got := Name(shown); got != shown {
			t.Errorf("Name(%q) = %q", shown, got)
		}
	}
}

func TestErrorKnowsTypedNames(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&net.DNSError{Err: "no such host", Name: "front.example", Server: "ns.example"}, "lookup [scrubbed] on [scrubbed]: no such host"},
		{fmt.Errorf("front %q: %w", "front.example", &net.DNSError{Err: "no such host", Name: "front.example"}), `front [scrubbed]: lookup [scrubbed]: no such host`},
		{&net.OpError{Op: "dial", Net: "tcp", Addr: &net.UnixAddr{Name: "/run/secret"}, Err: errors.New("refused")}, "dial tcp [scrubbed]: refused"},
		{&url.Error{Op: "Post", URL: "https://front.example/x", Err: errors.New("front.example is down")}, `Post "https://[scrubbed]": [scrubbed] is down`},
		{errors.Join(x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"cdn.example"}}, Host: "front.example"}, errors.New("last")), "x509: certificate is valid for [scrubbed], not [scrubbed]\nlast"},
	} {
		if got := Error(c.err); got != c.want {
			t.Errorf("Error(%q)\n got %q\nwant %q", c.err, got, c.want)
		}
	}
}

func TestEscapes(t *testing.T) {
	const in = "a\x00\x1b[2J\r\n\té\u202e\U0001F9C5\xff\ufffd\"\\"
	if got, want := Line(in), `a\x00\x1b[2J\r\n\té\u202e`+"\U0001F9C5"+`\xff`+"\ufffd"+`"\`; got != want {
		t.Errorf("Line:\n got %q\nwant %q", got, want)
	}
	if got, want := ASCII(in), `a\x00\x1b[2J\r\n\t\u00e9\u202e\U0001f9c5\xff\ufffd"\`; got != want {
		t.Errorf("ASCII:\n got %q\nwant %q", got, want)
	}
}

// Whatever stands around an address, the address does not get through.
func FuzzAddresses(f *testing.F) {
	f.Add("dial tcp ", []byte{192, 0, 2, 1}, uint16(443), ": refused")
	f.Add("x:[", []byte("0123456789abcdef"), uint16(0), "]::")
	f.Add("", []byte{32: 0}[:16], uint16(1), "\x00")
	f.Add("http://", make([]byte, 16), uint16(9), "/")
	f.Fuzz(func(t *testing.T, before string, ip []byte, port uint16, after string) {
		addr, ok := netip.AddrFromSlice(ip)
		if !ok || addr.IsUnspecified() {
			return
		}
		for _, text := range []string{addr.String(), netip.AddrPortFrom(addr, port).String()} {
			got := Addresses(before + " " + text + " " + after)
			if strings.Contains(got, " "+text+" ") {
				t.Errorf("%q got through in %q", text, got)
			}
		}
	})
}

func FuzzEscapes(f *testing.F) {
	f.Add("a\n\x7f\u0085\xc3")
	f.Fuzz(func(t *testing.T, s string) {
		for i, r := range ASCII(s) {
			if r < ' ' || r > '~' {
				t.Fatalf("ASCII left %q at %d", r, i)
			}
		}
		for i, r := range Line(s) {
			if !unicode.IsPrint(r) {
				t.Fatalf("Line left %q at %d", r, i)
			}
		}
	})
}

func TestErrorOfARealDial(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	_, err = net.Dial("tcp", addr)
	if err == nil {
		t.Skip("another program took the port")
	}
	if got := Error(err); strings.Contains(got, "127.0.0.1") || !strings.Contains(got, Hidden) {
		t.Errorf("got %q", got)
	}
	if got := Error(os.ErrDeadlineExceeded); got != os.ErrDeadlineExceeded.Error() {
		t.Errorf("changed an error without an address to %q", got)
	}
}
