package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// binaryHeader makes a header of version 2.
func binaryHeader(versionCommand, family byte, payload ...byte) string {
	head := append([]byte(signature), versionCommand, family)
	head = binary.BigEndian.AppendUint16(head, uint16(len(payload)))
	return string(append(head, payload...))
}

var (
	payload4 = []byte{192, 0, 2, 7, 198, 51, 100, 1, 0x10, 0, 0x01, 0xbb}
	payload6 = append(append(append([]byte{},
		netip.MustParseAddr("2001:db8::7").AsSlice()...),
		netip.MustParseAddr("2001:db8::1").AsSlice()...), 0x10, 0, 0x01, 0xbb)
	payloadMixed = append(append(append([]byte{},
		netip.MustParseAddr("::ffff:192.0.2.7").AsSlice()...),
		netip.MustParseAddr("2001:db8::1").AsSlice()...), 0x10, 0, 0x01, 0xbb)
)

var headers = []struct {
	name, header string
	client       string // empty: not said
}{
	{"IPv4", "PROXY TCP4 192.0.2.7 198.51.100.1 4096 443\r\n", "192.0.2.7:4096"},
	{"IPv6", "PROXY TCP6 2001:db8::7 2001:db8::1 4096 443\r\n", "[2001:db8::7]:4096"},
	{"the longest", "PROXY TCP6 ffff:f000:ffff:ffff:ffff:ffff:ffff:ffff ffff:f000:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", "[ffff:f000:ffff:ffff:ffff:ffff:ffff:ffff]:65535"},
	{"IPv4 in IPv6", "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 4096 443\r\n", "192.0.2.7:4096"},
	{"unknown", "PROXY UNKNOWN\r\n", ""},
	{"unknown with addresses", "PROXY UNKNOWN 192.0.2.7 198.51.100.1 1 2\r\n", ""},
	{"binary IPv4", binaryHeader(0x21, 0x11, payload4...), "192.0.2.7:4096"},
	{"binary IPv6", binaryHeader(0x21, 0x21, payload6...), "[2001:db8::7]:4096"},
	{"binary IPv4 in IPv6", binaryHeader(0x21, 0x21, payloadMixed...), "192.0.2.7:4096"},
	{"binary with fields", binaryHeader(0x21, 0x11, append(payload4[:12:12], 4, 0, 1, 0)...), "192.0.2.7:4096"},
	{"binary, as large as can be", binaryHeader(0x21, 0x11, append(payload4[:12:12], make([]byte, maxPayload-12)...)...), "192.0.2.7:4096"},
	{"the proxy itself", binaryHeader(0x20, 0), ""},
	{"the proxy itself with an address", binaryHeader(0x20, 0x11, payload4...), ""},
	{"unspecified", binaryHeader(0x21, 0), ""},
	{"UDP", binaryHeader(0x21, 0x12, payload4...), ""},
	{"unix", binaryHeader(0x21, 0x31, make([]byte, 216)...), ""},
}

var badHeaders = []struct {
	name, header string
	err          error
}{
	{"HTTP", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", errNone},
	{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00", errNone},
	{"small letters", "proxy tcp4 192.0.2.7 198.51.100.1 1 2\r\n", errNone},
	{"nothing", "", io.EOF},
	{"half a signature", signature[:7], io.ErrUnexpectedEOF},
	{"half a line", "PROXY TCP4 192.0.2.7", io.ErrUnexpectedEOF},
	{"a line feed alone", "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n", io.ErrUnexpectedEOF},
	{"no end", "PROXY TCP4 " + strings.Repeat("1", 200), errLine},
	{"no end of unknown", "PROXY UNKNOWN " + strings.Repeat("x", 200), errLine},
	{"another protocol", "PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n", errLine},
	{"two spaces", "PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n", errLine},
	{"a field too many", "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n", errLine},
	{"wrong family", "PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n", errLine},
	{"wrong family again", "PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n", errLine},
	{"a zone", "PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n", errLine},
	{"a large port", "PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n", errLine},
	{"a port with a zero", "PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n", errLine},
	{"version 1 in binary", binaryHeader(0x11, 0x11, payload4...), errVersion},
	{"version 3", binaryHeader(0x31, 0x11, payload4...), errVersion},
	{"another command", binaryHeader(0x22, 0x11, payload4...), errBinary},
	{"no room for the address", binaryHeader(0x21, 0x21, payload4...), errBinary},
	{"too large", binaryHeader(0x21, 0x11, make([]byte, maxPayload+1)...), errBinary},
	{"cut before its size", signature + "\x21\x11\x00", io.ErrUnexpectedEOF},
	{"cut in its payload", binaryHeader(0x21, 0x11, payload4...)[:20], io.ErrUnexpectedEOF},
}

func TestReadHeader(t *testing.T) {
	for _, c := range headers {
		const rest = "GET / HTTP/1.1"
		for _, r := range []io.Reader{strings.NewReader(c.header + rest), iotest.OneByteReader(strings.NewReader(c.header + rest))} {
			client, err := ReadHeader(r)
			if err != nil || client.IsValid() != (c.client != "") || client.IsValid() && client.String() != c.client {
				t.Errorf("%s: %v, %v; want %q", c.name, client, err, c.client)
			}
			if left, _ := io.ReadAll(r); string(left) != rest {
				t.Errorf("%s: %q is left, want %q", c.name, left, rest)
			}
		}
	}
	for _, c := range badHeaders {
		if client, err := ReadHeader(strings.NewReader(c.header)); !errors.Is(err, c.err) || client.IsValid() {
			t.Errorf("%s: %v, %v; want %v", c.name, client, err, c.err)
		}
	}
}

// FuzzReadHeader: what is read is bounded, and an address that is found is
// found again in a header made from it.
func FuzzReadHeader(f *testing.F) {
	for _, c := range headers {
		f.Add([]byte(c.header))
	}
	for _, c := range badHeaders {
		f.Add([]byte(c.header))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		client, err := ReadHeader(r)
		read := len(data) - r.Len()
		if read > len(signature)+4+maxPayload {
			t.Fatalf("%d bytes read", read)
		}
		if !client.IsValid() {
			return
		}
		if err != nil {
			t.Fatalf("%v and %v", client, err)
		}
		family := byte(0x11)
		if client.Addr().Is6() {
			family = 0x21
		}
		payload := client.Addr().AsSlice()
		payload = append(append(payload, payload...), byte(client.Port()>>8), byte(client.Port()), 0, 0)
		again, err := ReadHeader(strings.NewReader(binaryHeader(0x21, family, payload...)))
		if err != nil || again != client {
			t.Fatalf("%v is %v, %v when written and read again", client, again, err)
		}
	})
}

// pipeListener accepts one end of each pipe, from an address that it is given.
type pipeListener chan pipeConn

type pipeConn struct {
	net.Conn
	from net.Addr
}

func (c pipeConn) RemoteAddr() net.Addr { return c.from }

func (l pipeListener) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l pipeListener) Close() error   { close(l); return nil }
func (l pipeListener) Addr() net.Addr { return nil }

// dial returns the dialing end and the accepted one.
func (l pipeListener) dial(t *testing.T, on *Listener, from string) (far, near net.Conn) {
	t.Helper()
	far, end := net.Pipe()
	var addr net.Addr = &net.UnixAddr{Name: from, Net: "unix"}
	if a, err := netip.ParseAddr(from); err == nil {
		addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 50000))
	}
	go func() { l <- pipeConn{end, addr} }()
	near, err := on.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		far.Close()
		near.Close()
	})
	return far, near
}

const timeout = 20 * time.Second

func newListener(refused func(error)) (pipeListener, *Listener) {
	below := make(pipeListener)
	return below, &Listener{
		Listener: below,
		Trusted:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:1::/48")},
		Timeout:  timeout,
		Refused:  refused,
	}
}

func TestListener(t *testing.T) {
	below, ln := newListener(func(err error) { t.Errorf("refused: %v", err) })
	for _, c := range []struct{ from, header, remote string }{
		{"10.1.2.3", "PROXY TCP4 192.0.2.7 198.51.100.1 4096 443\r\n", "192.0.2.7:4096"},
		{"::ffff:10.1.2.3", "PROXY TCP4 192.0.2.7 198.51.100.1 4096 443\r\n", "192.0.2.7:4096"},
		{"2001:db8:1::5", binaryHeader(0x21, 0x21, payload6...), "[2001:db8::7]:4096"},
		{"10.1.2.3", "PROXY UNKNOWN\r\n", ":0"},
		// A header from elsewhere is not one: it is left to whoever reads on.
		{"192.0.2.66", "", "192.0.2.66:50000"},
		{"/run/socket", "", "/run/socket"},
	} {
		far, near := below.dial(t, ln, c.from)
		const rest = "PROXY TCP4 203.0.113.66 198.51.100.1 1 2\r\n"
		go io.WriteString(far, c.header+rest)
		if got := near.RemoteAddr().String(); got != c.remote {
			t.Errorf("%s: RemoteAddr %q, want %q", c.from, got, c.remote)
		}
		got := make([]byte, len(rest))
		if _, err := io.ReadFull(near, got); err != nil || string(got) != rest {
			t.Errorf("%s: read %q, %v", c.from, got, err)
		}
	}
}

// A trusted peer that sends no header, or too slowly, is cut, and its address
// is not taken for a client's.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refused error
		below, ln := newListener(func(err error) { refused = err })

		far, near := below.dial(t, ln, "10.1.2.3")
		go io.WriteString(far, "GET / HTTP/1.1\r\n")
		if got := near.RemoteAddr().String(); got != ":0" {
			t.Errorf("RemoteAddr %q", got)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, errNone) || !errors.Is(refused, errNone) {
			t.Errorf("read: %v; refused: %v", err, refused)
		}
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the peer sees %v, want the end", err)
		}

		// Slowly: a byte at a time does not extend the time.
		var writers sync.WaitGroup
		defer writers.Wait()
		slow, near := below.dial(t, ln, "10.1.2.3")
		writers.Go(func() {
			for _, b := range []byte("PROXY TCP4 192.0.2.7 198.51.100.1 4096 443\r\n") {
				if _, err := slow.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		start := time.Now()
		near.RemoteAddr()
		if d := time.Since(start); d != timeout {
			t.Errorf("cut after %v, want %v", d, timeout)
		}
		if !errors.Is(refused, os.ErrDeadlineExceeded) {
			t.Errorf("refused: %v, want a timeout", refused)
		}

		// Afterwards there is no limit of ours.
		late, near := below.dial(t, ln, "10.1.2.3")
		writers.Go(func() {
			io.WriteString(late, "PROXY UNKNOWN\r\n")
			time.Sleep(time.Hour)
			io.WriteString(late, "x")
		})
		if _, err := near.Read(make([]byte, 1)); err != nil {
			t.Errorf("after an hour: %v", err)
		}
	})
}

// A deadline that was set before the header has come holds after it.
func TestDeadlineOutlivesHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		below, ln := newListener(func(err error) { t.Errorf("refused: %v", err) })
		far, near := below.dial(t, ln, "10.1.2.3")
		if err := near.SetDeadline(time.Now().Add(timeout / 2)); err != nil {
			t.Fatal(err)
		}
		go io.WriteString(far, "PROXY UNKNOWN\r\n")
		start := time.Now()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != timeout/2 {
			t.Errorf("read after %v: %v", time.Since(start), err)
		}
		if err := near.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		go io.WriteString(far, "x")
		if _, err := near.Read(make([]byte, 1)); err != nil {
			t.Errorf("without a deadline: %v", err)
		}
	})
}

// A proxy that only looks whether somebody listens is no news.
func TestHealthCheck(t *testing.T) {
	below, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer below.Close()
	ln := &Listener{
		Listener: below,
		Trusted:  []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Timeout:  timeout,
		Refused:  func(err error) { t.Errorf("refused: %v", err) },
	}
	far, err := net.Dial("tcp", below.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v, want the end", err)
	}
}
