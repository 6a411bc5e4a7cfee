package front

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/proxy"
)

// A testProxy speaks all three protocols, as its tests ask, and connects
// whatever it is asked for to one address.
type testProxy struct {
	scheme     string
	user, pass string // wanted, if any
	target     string // address connected to; empty: refuses
	asked      chan string
}

// start returns the proxy's address. Everything ends with the test.
func (p *testProxy) start(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.asked = make(chan string, 16)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				defer stop()
				defer conn.Close()
				p.serve(ctx, conn)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		running.Wait()
	})
	return l.Addr().String()
}

func (p *testProxy) serve(ctx context.Context, conn net.Conn) {
	r := bufio.NewReader(conn)
	var asked string
	var ok bool
	var yes, no []byte
	switch p.scheme {
	case "http":
		req, err := http.ReadRequest(r)
		if err != nil || req.Method != http.MethodConnect || !strings.HasPrefix(req.UserAgent(), "Mozilla/") {
			return
		}
		want := ""
		if p.user != "" {
			want = "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user+":"+p.pass))
		}
		if req.Header.Get("Proxy-Authorization") != want {
			io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 5\r\n\r\nsorry")
			return
		}
		asked, ok = req.RequestURI, req.Host == req.RequestURI
		yes = []byte("HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
		no = []byte("HTTP/1.1 502 Bad Gateway\r\n\r\n")
	case "socks4a":
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err != nil || head[0] != 4 || head[1] != 1 {
			return
		}
		user, err := r.ReadString(0)
		if err != nil {
			return
		}
		host := net.IP(head[4:8]).String()
		if head[4] == 0 && head[5] == 0 && head[6] == 0 && head[7] != 0 {
			if host, err = r.ReadString(0); err != nil {
				return
			}
			host = strings.TrimSuffix(host, "\x00")
		}
		asked = net.JoinHostPort(host, fmt.Sprint(binary.BigEndian.Uint16(head[2:])))
		if ok = user == p.user+"\x00"; !ok {
			conn.Write([]byte{0, 93, 0, 0, 0, 0, 0, 0})
			return
		}
		yes, no = []byte{0, 90, 0, 0, 0, 0, 0, 0}, []byte{0, 91, 0, 0, 0, 0, 0, 0}
	case "socks5":
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil || head[0] != 5 {
			return
		}
		methods := make([]byte, head[1])
		if _, err := io.ReadFull(r, methods); err != nil {
			return
		}
		want := byte(0)
		if p.user != "" {
			want = 2
		}
		if !bytes.Contains(methods, []byte{want}) {
			conn.Write([]byte{5, 0xff})
			return
		}
		conn.Write([]byte{5, want})
		if want == 2 {
			login := make([]byte, 3+len(p.user)+len(p.pass))
			if _, err := io.ReadFull(r, login); err != nil {
				return
			}
			right := append([]byte{1, byte(len(p.user))}, p.user...)
			right = append(append(right, byte(len(p.pass))), p.pass...)
			if !bytes.Equal(login, right) {
				conn.Write([]byte{1, 1})
				return
			}
			conn.Write([]byte{1, 0})
		}
		var req [4]byte
		if _, err := io.ReadFull(r, req[:]); err != nil {
			return
		}
		size := map[byte]int{1: 4, 4: 16}[req[3]]
		if req[3] == 3 {
			n, _ := r.ReadByte()
			size = int(n)
		}
		addr := make([]byte, size+2)
		if _, err := io.ReadFull(r, addr); err != nil {
			return
		}
		host := string(addr[:size])
		if req[3] != 3 {
			host = net.IP(addr[:size]).String()
		}
		asked, ok = net.JoinHostPort(host, fmt.Sprint(binary.BigEndian.Uint16(addr[size:]))), true
		yes = append([]byte{5, 0, 0, 3, 4}, "name\x00\x01"...)
		no = []byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0}
	}
	p.asked <- asked
	if !ok || p.target == "" {
		conn.Write(no)
		return
	}
	target, err := net.Dial("tcp", p.target)
	if err != nil {
		conn.Write(no)
		return
	}
	stop := context.AfterFunc(ctx, func() { target.Close() })
	defer stop()
	defer target.Close()
	conn.Write(yes)
	var both sync.WaitGroup
	both.Go(func() { io.Copy(target, r); target.Close() })
	both.Go(func() { io.Copy(conn, target); conn.Close() })
	both.Wait()
}

func TestProxy(t *testing.T) {
	for _, scheme := range []string{"http", "socks4a", "socks5"} {
		for _, user := range []*url.Userinfo{nil, url.UserPassword("user", "pass:word")} {
			t.Run(fmt.Sprintf("%s %v", scheme, user != nil), func(t *testing.T) {
				s := serve(t, serverOptions{}, echo)
				p := &testProxy{scheme: scheme, target: s.addr}
				if user != nil {
					p.user = user.Username()
					p.pass, _ = user.Password()
				}
				if scheme == "socks4a" && user != nil {
					user = url.User("user")
				}
				u := &url.URL{Scheme: scheme, User: user, Host: p.start(t)}
				f := newFront(t, s, func(c *Config) { c.Proxy, c.Addr = u, "" })
				if got := exchange(t, f, "hello"); got != "hello" {
					t.Errorf("read %q", got)
				}
				// The name arrived as a name: it was not resolved here.
				if got := <-p.asked; got != frontName+":443" {
					t.Errorf("the proxy was asked for %q", got)
				}
				if got := s.sni(); len(got) != 1 || got[0] != frontName {
					t.Errorf("SNI was %q", got)
				}
			})
		}
	}
}

func TestProxyToAddress(t *testing.T) {
	for _, scheme := range []string{"http", "socks4a", "socks5"} {
		s := serve(t, serverOptions{clear: true}, echo)
		p := &testProxy{scheme: scheme, target: s.addr}
		u := &url.URL{Scheme: scheme, Host: p.start(t)}
		for _, addr := range []string{"192.0.2.7:99", "[2001:db8::7]:99"} {
			f := newFront(t, s, func(c *Config) { c.URL.Scheme, c.Proxy, c.Addr = "http", u, addr })
			if scheme == "socks4a" && addr[0] == '[' {
				if e := failure(t, f, t.Context(), OpProxy); !strings.Contains(e.Error(), "no IPv6") {
					t.Errorf("error %v", e)
				}
				continue
			}
			exchange(t, f, "x")
			if got := <-p.asked; got != addr {
				t.Errorf("%s proxy was asked for %q, want %q", scheme, got, addr)
			}
		}
	}
}

func TestProxyRefuses(t *testing.T) {
	for _, c := range []struct {
		scheme string
		wants  string
		given  *url.Userinfo
		answer string
	}{
		{"http", "", nil, `http proxy answered "HTTP/1.1 502 Bad Gateway"`},
		{"http", "u", nil, `http proxy answered "HTTP/1.1 407 Proxy Authentication Required"`},
		{"http", "u", url.UserPassword("u", "wrong"), `http proxy answered "HTTP/1.1 407 Proxy Authentication Required"`},
		{"socks4a", "", nil, "socks4a proxy answered 91 (request rejected or failed)"},
		{"socks4a", "u", url.User("x"), "socks4a proxy answered 93 (identd and user id differ)"},
		{"socks5", "", nil, "socks5 proxy answered 5 (connection refused)"},
		{"socks5", "u", nil, "socks5 proxy answered that it wants credentials; none were given"},
		{"socks5", "u", url.UserPassword("u", "q"), "socks5 proxy answered 1 (user name or password wrong)"},
	} {
		p := &testProxy{scheme: c.scheme, user: c.wants}
		if c.wants != "" {
			p.pass = "p"
		}
		u := &url.URL{Scheme: c.scheme, User: c.given, Host: p.start(t)}
		f := newFront(t, &server{addr: "192.0.2.1:443"}, func(cfg *Config) { cfg.Proxy = u })
		e := failure(t, f, t.Context(), OpProxy)
		var refused *proxy.Error
		if !errors.As(e, &refused) || refused.Scheme != c.scheme {
			t.Errorf("%s: %T, want a *proxy.Error: %v", c.scheme, e.Err, e)
		} else if refused.Error() != c.answer {
			t.Errorf("error %q, want %q", refused, c.answer)
		}
		if !e.Unsent {
			t.Error("not marked as unsent")
		}
		if c.given != nil {
			if pass, ok := c.given.Password(); ok && strings.Contains(e.Error(), pass) && len(pass) > 1 {
				t.Errorf("the password is in the error: %v", e)
			}
		}
	}
}

func TestProxyUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	f := newFront(t, &server{addr: "192.0.2.1:443"}, func(c *Config) {
		c.Proxy = &url.URL{Scheme: "socks5", Host: addr}
	})
	failure(t, f, t.Context(), OpProxy)
}

// A proxy that never answers costs dialTimeout and no more.
func TestProxyIsSilent(t *testing.T) {
	for _, scheme := range []string{"http", "socks4a", "socks5"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFront(t, &server{addr: "192.0.2.1:443"}, func(c *Config) {
				c.Proxy = &url.URL{Scheme: scheme, Host: "192.0.2.2:1"}
				c.Dialer = func(context.Context, string, string) (net.Conn, error) {
					client, silent := net.Pipe()
					go io.Copy(io.Discard, silent)
					return client, nil
				}
			})
			begun := time.Now()
			e := failure(t, f, t.Context(), OpProxy)
			if !errors.Is(e, os.ErrDeadlineExceeded) || time.Since(begun) != dialTimeout {
				t.Errorf("after %v: %v", time.Since(begun), e)
			}
		})
	}
}
