package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"turbotunnel/test/programs"
)

// An application, both programs, and the web server between them, that meet at Unix
// sockets. The client's address is what the web server says, as it is of this machine.
func TestUnixSockets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket := func(name string) string { return filepath.Join(dir, name) }
	app, err := net.Listen("unix", socket("app"))
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	go func() {
		for {
			conn, err := app.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
				conn.(*net.UnixConn).CloseWrite()
			}()
		}
	}()
	server := programs.Start(t, exec.Command(programs.Server, "-state-dir", socket("state"), "-trusted-proxies", "127.0.0.1", "unix:"+socket("server"), "unix:"+socket("app")))
	reach := func(of interface {
		Wait(context.Context, string, func() error) error
	}, name string,
	) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), programs.WaitLimit)
		defer cancel()
		if err := of.Wait(ctx, name, func() error {
			conn, err := net.Dial("unix", socket(name))
			if err == nil {
				conn.Close()
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	reach(server, "server")
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "server"})
	proxy.FlushInterval = -1
	proxy.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket("server"))
	}}
	web := httptest.NewServer(proxy)
	defer web.Close()
	client := programs.Start(t, exec.Command(programs.Client, "-key", programs.Key(t, socket("state")), "unix:"+socket("client"), web.URL))
	reach(client, "client")

	conn, err := net.Dial("unix", socket("client"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(programs.WaitLimit)); err != nil {
		t.Fatal(err)
	}
	tell(t, conn, "hello")
	says(t, conn, "hello")
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(conn); len(rest) > 0 || err != nil {
		t.Errorf("%q after the end, %v", rest, err)
	}
}
