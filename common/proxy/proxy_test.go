package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestCheck(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, good := range []string{
		"http://proxy.example:8080", "http://u:p@[::1]:1/", "http://u@h:1", "socks4a://h:65535", "socks4a://u@h:1", "socks5://h:1", "socks5://u:p@h:1",
		"http://h", "http://h:/", "socks5://u:p@[::1]",
	} {
		u, err := url.Parse(good)
		if err != nil {
			t.Fatal(err)
		}
		if err := Check(u); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		"https://h:1", "socks4://h:1", "socks5h://h:1", "http://h:0", "http://", "http://u:p@", "http://:1", "socks5://::1", "socks5://::1:1080", "socks5://2001:db8::1:1080", "http://h:1/path", "http://h:1?q",
		"http://h_%C3%A9:1", "http://a..b:1", "http://h:65536",
		"socks5://u@h:1", "socks5://:p@h:1", "socks5://u:" + long + "@h:1", "socks4a://u:p@h:1", "http://u%3av:p@h:1", "http://u:p%0a@h:1",
	} {
		u, err := url.Parse(bad)
		if err != nil {
			t.Fatal(err)
		}
		if err := Check(u); err == nil {
			t.Errorf("%s was accepted", bad)
		} else if strings.Contains(err.Error(), "u:p") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

// A proxy whose URL names no port is reached at the one of its kind.
func TestDefaultPort(t *testing.T) {
	for text, want := range map[string]string{
		"http://proxy.example": "proxy.example:80", "http://proxy.example:/": "proxy.example:80", "http://[::1]": "[::1]:80",
		"socks4a://proxy.example": "proxy.example:1080", "socks5://u:p@192.0.2.1": "192.0.2.1:1080", "socks5://[::1]": "[::1]:1080",
		"http://proxy.example:3128": "proxy.example:3128", "socks5://[::1]:9050": "[::1]:9050",
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		d, err := New(u, nil, "agent")
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if d.Addr() != want {
			t.Errorf("%s is reached at %s, want %s", text, d.Addr(), want)
		}
	}
}

// A proxy that could not reach the address is told from one that refuses the client.
func TestUnreachable(t *testing.T) {
	for _, c := range []struct {
		scheme, says string
		unreachable  bool
	}{
		{"socks5", "\x05\x00\x05\x01\x00\x01", false},
		{"socks5", "\x05\x00\x05\x02\x00\x01", false},
		{"socks5", "\x05\x00\x05\x03\x00\x01", true},
		{"socks5", "\x05\x00\x05\x04\x00\x01", true},
		{"socks5", "\x05\x00\x05\x05\x00\x01", true},
		{"socks5", "\x05\x00\x05\x06\x00\x01", true},
		{"socks5", "\x05\x00\x05\x07\x00\x01", false},
		{"socks5", "\x05\xff", false},
		{"socks4a", "\x00\x5b      ", false},
		{"http", "HTTP/1.1 403 Forbidden\r\n\r\n", false},
		{"http", "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", false},
		{"http", "HTTP/1.1 500 Internal Server Error\r\n\r\n", false},
		{"http", "HTTP/1.1 502 Bad Gateway\r\n\r\n", true},
		{"http", "HTTP/1.1 503 Service Unavailable\r\n\r\n", true},
		{"http", "HTTP/1.0 504 Gateway Timeout\r\n\r\n", true},
	} {
		dial := func(context.Context, string, string) (net.Conn, error) {
			return &scripted{Reader: strings.NewReader(c.says)}, nil
		}
		d, err := New(&url.URL{Scheme: c.scheme, Host: "192.0.2.2:1"}, dial, "agent")
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.Dial(t.Context(), d.Addr(), "front.example:443")
		if refusal := (*Error)(nil); !errors.As(err, &refusal) || refusal.Unreachable != c.unreachable {
			t.Errorf("%s says %q: %+v", c.scheme, c.says, err)
		}
	}
}

// A proxy that says nothing, too little or too much.
func TestMisbehavingProxy(t *testing.T) {
	for _, c := range []struct{ scheme, says, want string }{
		{"http", "", "unexpected EOF"},
		{"http", "HTTP/1.1 200 OK\r\n", "unexpected EOF"},
		{"http", strings.Repeat("x", maxHead), "a head of more than 16384 bytes"},
		{"http", "HTTP/1.1 100 Continue\r\n\r\n", "unexpected EOF"},
		{"http", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 403 No\r\n\r\n", `answered "HTTP/1.1 403 No"`},
		{"http", "HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", `answered "HTTP/1.1 101 Switching Protocols"`},
		{"http", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", maxHead/20), "a head of more than 16384 bytes"},
		{"http", "\r\n\r\n", "answered with an empty line"},
		{"http", "SSH-2.0-x\n\n", `answered "SSH-2.0-x"`},
		{"http", "HTTP/1.1 2000 OK\r\n\r\n", `answered "HTTP/1.1 2000 OK"`},
		{"socks4a", "\x00\x5a", "unexpected EOF"},
		{"socks4a", "\x05\x5a      ", "not SOCKS4a"},
		{"socks4a", "\x00\x01      ", "answered 1 (unknown)"},
		{"socks5", "\x04\x00", "not SOCKS5"},
		{"socks5", "\x05\x02", "not offered: 2"},
		{"socks5", "\x05\x00\x05\x00\x00\x09", "unknown type 9"},
		{"socks5", "\x05\x00\x05\x63\x00\x01", "answered 99 (unknown)"},
		{"socks5", "\x05\x00\x05\x00\x00\x03\xff", "unexpected EOF"},
	} {
		conn := &scripted{Reader: strings.NewReader(c.says)}
		dial := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
		d, err := New(&url.URL{Scheme: c.scheme, Host: "192.0.2.2:1"}, dial, "agent")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Dial(t.Context(), d.Addr(), "front.example:443"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s says %.20q: error %v, want %q", c.scheme, c.says, err, c.want)
		}
		if !conn.closed {
			t.Errorf("%s says %.20q: connection left open", c.scheme, c.says)
		}
	}
}

// Interim answers before the one to CONNECT are passed over, several in a row, and
// what follows it is the tunnel's.
func TestInterimAnswers(t *testing.T) {
	conn := &scripted{Reader: strings.NewReader("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" +
		"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 Connection established\r\n\r\ntunnel")}
	dial := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	d, err := New(&url.URL{Scheme: "http", Host: "192.0.2.2:1"}, dial, "agent")
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := d.Dial(t.Context(), d.Addr(), "front.example:443")
	if err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(tunnel); string(rest) != "tunnel" || err != nil {
		t.Errorf("%q %v", rest, err)
	}
}

// A scripted connection says what it has to say whatever it is told.
type scripted struct {
	net.Conn
	io.Reader
	closed bool
}

func (s *scripted) Read(p []byte) (int, error)  { return s.Reader.Read(p) }
func (s *scripted) Write(p []byte) (int, error) { return len(p), nil }
func (s *scripted) Close() error                { s.closed = true; return nil }
func (s *scripted) SetDeadline(time.Time) error { return nil }

// What a proxy answers is read to its end and no further, and refused or
// accepted without a panic.
func FuzzAnswer(f *testing.F) {
	f.Add(byte(0), []byte("HTTP/1.1 200 OK\r\n\r\ntunnel"))
	f.Add(byte(0), []byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\ntunnel"))
	f.Add(byte(0), []byte("HTTP/1.0 407 No\n\n"))
	f.Add(byte(1), []byte("\x00\x5a\x00\x00\x00\x00\x00\x00tunnel"))
	f.Add(byte(2), []byte("\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00tunnel"))
	f.Add(byte(2), []byte("\x05\x02\x01\x00\x05\x00\x00\x03\x01x\x00\x00tunnel"))
	f.Add(byte(2), []byte("\x05\xff"))
	f.Fuzz(func(t *testing.T, kind byte, answer []byte) {
		scheme := []string{"http", "socks4a", "socks5"}[kind%3]
		d := &Dialer{scheme: scheme, user: "u", pass: "p", auth: true}
		r := bytes.NewReader(answer)
		err := d.handshake(struct {
			io.Reader
			io.Writer
		}{r, io.Discard}, "front.example:443")
		read := answer[:len(answer)-r.Len()]
		if len(read) > maxHead {
			t.Errorf("read %d bytes", len(read))
		}
		if err != nil {
			if e := (*Error)(nil); !errors.As(err, &e) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("neither a refusal nor too short: %v", err)
			}
			return
		}
		// An accepted answer is accepted again without what follows it, and not
		// without its last byte.
		for _, c := range []struct {
			answer []byte
			ok     bool
		}{{read, true}, {read[:len(read)-1], false}} {
			err := d.handshake(struct {
				io.Reader
				io.Writer
			}{bytes.NewReader(c.answer), io.Discard}, "front.example:443")
			if (err == nil) != c.ok {
				t.Errorf("answer %q: %v", c.answer, err)
			}
		}
	})
}
