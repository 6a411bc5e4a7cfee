package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"turbotunnel/test/cdn"
	"turbotunnel/test/guide"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
	"turbotunnel/test/tornet"
)

// testClientProxies has tor reach its bridge through real proxies, of which it
// tells the transport by TOR_PT_PROXY. The proxy gets the front's name: it says
// so, or is the only one that knows the name.
func testClientProxies(t *testing.T, tt *torTest) {
	const user, password = "somebody", "secret"
	// runs starts a proxy that has its address and port as these arguments.
	runs := func(name string, args ...string) func(ctx context.Context, t *testing.T) (string, *proc.Process) {
		return func(_ context.Context, t *testing.T) (string, *proc.Process) {
			addr := programs.Addr(t)
			host, port, _ := net.SplitHostPort(addr)
			cmd := exec.Command(name)
			for _, arg := range args {
				cmd.Args = append(cmd.Args, strings.NewReplacer("HOST", host, "PORT", port).Replace(arg))
			}
			return addr, programs.Listen(t, addr, cmd)
		}
	}
	// A tor without a transport, which knows where the front is, is the SOCKS4a
	// proxy.
	runsTor := func(ctx context.Context, t *testing.T) (string, *proc.Process) {
		return tt.start(ctx, t, tornet.ClientOptions{
			Addr:  tt.network.ORAddr(),
			Torrc: []string{"MapAddress " + cdn.Front + " 127.0.0.1"},
		}).SOCKS(), nil
	}
	for _, p := range []struct {
		name  string
		start func(ctx context.Context, t *testing.T) (addr string, p *proc.Process)
		front string
		says  string // by the proxy, of the front
		torrc []string
	}{
		{
			"http", runs("ncat", "-lkvvv", "--proxy-type", "http", "HOST", "PORT"), "localhost", "CONNECT to %s",
			[]string{"HTTPSProxy ADDR"},
		},
		{
			"http with credentials", runs("ncat", "-lkvvv", "--proxy-type", "http", "--proxy-auth", user+":"+password, "HOST", "PORT"), "localhost", "CONNECT to %s",
			[]string{"HTTPSProxy ADDR", "HTTPSProxyAuthenticator " + user + ":" + password},
		},
		{
			"socks5", runs("microsocks", "-i", "HOST", "-p", "PORT"), "localhost", "connected to %s",
			[]string{"Socks5Proxy ADDR"},
		},
		{
			"socks5 with credentials", runs("microsocks", "-i", "HOST", "-p", "PORT", "-u", user, "-P", password), "localhost", "connected to %s",
			[]string{"Socks5Proxy ADDR", "Socks5ProxyUsername " + user, "Socks5ProxyPassword " + password},
		},
		{
			"socks4a", runsTor, cdn.Front, "",
			[]string{"Socks4Proxy ADDR"},
		},
	} {
		t.Run(p.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), transferLimit)
			defer cancel()
			addr, proxy := p.start(ctx, t)
			c := guide.StartCDN(t, guide.Haproxy, p.front, tt.network.BridgeAddr())
			_, port, _ := net.SplitHostPort(c.Addr)
			front := net.JoinHostPort(p.front, port)
			opts := tornet.ClientOptions{
				Args: "url=https://" + cdn.Origin + "/path front=" + front,
				Env:  []string{"SSL_CERT_FILE=" + c.CAFile},
			}
			for _, line := range p.torrc {
				opts.Torrc = append(opts.Torrc, strings.ReplaceAll(line, "ADDR", addr))
			}
			client := tt.client(ctx, t, opts)
			if err := tt.web.Download(ctx, client, 1, 1e6, io.Discard); err != nil {
				t.Error(err)
			}
			c.CheckRequests(t, p.front, "/path/")
			if proxy != nil {
				programs.Logged(t, proxy, regexp.QuoteMeta(fmt.Sprintf(p.says, front)))
			}
		})
	}
}
