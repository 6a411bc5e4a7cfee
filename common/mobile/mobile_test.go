package mobile

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/socks/sockstest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

// listener is an Observer that says what it is told.
type listener chan string

func (l listener) OnConnected()        { l <- "connected" }
func (l listener) OnFailed(why string) { l <- "failed: " + why }
func (l listener) OnLost(why string)   { l <- "lost: " + why }

func TestTunnel(t *testing.T) {
	key := tunnel.NewKey()
	server := tunnel.NewServer(tunnel.ServerConfig{Key: key})
	web := httptest.NewServer(server)
	defer web.Close()
	defer server.Close()
	told := make(listener, 16)
	tun, err := Start(fmt.Sprintf("Bridge turbo 192.0.2.1:443 url=%s/secret key=%s", web.URL, key.Public()), 0, told)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", tun.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	remote, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(remote, "220 ready")
	remote.CloseWrite()
	if text, err := io.ReadAll(conn); err != nil || string(text) != "220 ready" {
		t.Errorf("%q, %v", text, err)
	}
	if what := <-told; what != "connected" {
		t.Error(what)
	}
	if _, err := Start("url="+web.URL+" key="+key.Public(), tun.Port(), nil); err == nil || strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("a second tunnel on one port: %v", err)
	}
	tun.Stop()
	tun.Stop()
	var unmade Tunnel
	if unmade.Stop(); unmade.Port() != 0 {
		t.Error("a tunnel that was not started has a port")
	}
	if c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", tun.Port())); err == nil {
		c.Close()
		t.Error("a stopped tunnel listens")
	}
}

// TestSocks: connections go where their arguments say, and those with equal ones
// share a session; wrong ones are refused.
func TestSocks(t *testing.T) {
	told := make(listener, 16)
	tun, err := StartSocks(0, told)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Stop()
	ask := func(args string) (net.Conn, byte) {
		conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", tun.Port()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		code, err := sockstest.Request(conn, args)
		if err != nil {
			t.Fatal(err)
		}
		return conn, code
	}
	for _, text := range []string{"one server", "another"} {
		key := tunnel.NewKey()
		server := tunnel.NewServer(tunnel.ServerConfig{Key: key})
		defer server.Close()
		web := httptest.NewServer(server)
		defer web.Close()
		for range 2 {
			conn, code := ask("url=" + web.URL + "/secret;key=" + key.Public())
			if code != 0 {
				t.Fatalf("refused: %d", code)
			}
			remote, err := server.Accept()
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(remote, text)
			remote.Close()
			if got, err := io.ReadAll(conn); err != nil || string(got) != text {
				t.Errorf("%q, %v, want %q", got, err, text)
			}
		}
	}
	if _, code := ask("url=http://192.0.2.1/;key=short"); code != 8 {
		t.Errorf("reply %d to a wrong key", code)
	}
	tun.Stop()
	close(told)
	sessions := 0
	for what := range told {
		if sessions++; what != "connected" {
			t.Error(what)
		}
	}
	if sessions != 2 {
		t.Errorf("%d sessions with two servers", sessions)
	}
}

// Where there are as many connections as there may be, others wait for their turn.
func TestFullTunnelHasOthersWait(t *testing.T) {
	tun := newTunnel()
	tun.places = 2
	tun.close = func() {}
	var open, most atomic.Int32
	tun.carry = func(conn net.Conn) {
		defer conn.Close()
		if n := open.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer open.Add(-1)
		stop := context.AfterFunc(tun.ctx, func() { conn.Close() })
		defer stop()
		io.Copy(conn, conn)
	}
	if _, err := tun.listen(0); err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for range 5 {
		conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", tun.Port()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "x")
		conns = append(conns, conn)
	}
	for i, conn := range conns[:4] { // the last one waits when the tunnel is stopped
		if i >= 2 {
			conns[i-2].Close() // not before both have had an answer: two were open at once
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	tun.Stop()
	if n := most.Load(); n != 2 {
		t.Errorf("%d connections at once, of 2", n)
	}
	if n := open.Load(); n != 0 {
		t.Errorf("%d connections after Stop", n)
	}
}

// Connections leave descriptors to the app, whatever the limit is.
func TestPlaces(t *testing.T) {
	for limit, want := range map[uint64]int{0: 256, 1: 1, 64: 32, 256: 128, 32768: 256, 1 << 63: 256} {
		if got := places(limit); got != want {
			t.Errorf("of %d descriptors %d are for connections, want %d", limit, got, want)
		}
	}
}

// What fails is told without addresses.
func TestFailures(t *testing.T) {
	web := httptest.NewServer(nil)
	defer web.Close()
	told := make(listener, 16)
	key := tunnel.NewKey().Public()
	tun, err := Start("url="+web.URL+"/secret key="+key, 0, told)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Stop()
	conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", tun.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	what := <-told
	if !strings.HasPrefix(what, "failed: ") || strings.Contains(what, "127.0.0.1") || strings.Contains(what, "secret") {
		t.Error(what)
	}
	if err := CheckBridgeLine("url=" + web.URL + "/secret"); err == nil || !strings.Contains(err.Error(), "key=") || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
	if err := CheckBridgeLine("url=" + web.URL + " key=" + key); err != nil {
		t.Error(err)
	}
}
