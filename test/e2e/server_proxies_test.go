package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"turbotunnel/test/cdn"
	"turbotunnel/test/guide"
	"turbotunnel/test/programs"
)

// A relation is one between a server and a proxy in front of it.
type relation struct {
	name  string
	kind  *guide.Kind
	pairs []string // what to change in the proxy's file
	host  string   // where the server listens; empty: 127.0.0.1
	flags []string // of the server
	want  string   // the client's address as tor hears it; empty: none
}

// proxyProtocol makes the server want PROXY headers of trusted proxies.
const proxyProtocol = "-proxy-protocol"

// haproxy changes its file, for a client that claims another address: from is
// whom haproxy takes for its client, and options are of its connections to the
// server.
func haproxy(from, options string) []string {
	return []string{
		guide.Haproxy.Sent, "http-request set-header X-Forwarded-For " + cdn.Forged + "\n\t" + guide.Haproxy.Sent + "\n\thttp-request set-src " + from,
		"server origin 127.0.0.1:8080", "server origin ORIGIN " + options,
	}
}

// relations are all that a server may stand in. Addresses differ, so that one is
// not taken for another.
var relations = []relation{
	{
		name: "HTTP-1.0", kind: guide.Nginx, want: "192.0.2.100",
		pairs: append(guide.Nginx.Claims("192.0.2.100"), "proxy_http_version 1.1;", "", `proxy_set_header Connection "";`, ""),
	},
	{name: "HTTP-1.1", kind: guide.Haproxy, pairs: haproxy("ipv4(192.0.2.101)", ""), want: "192.0.2.101"},
	{name: "HTTP-2 without TLS", kind: guide.Haproxy, pairs: haproxy("ipv4(192.0.2.102)", "proto h2"), want: "192.0.2.102"},
	{name: "IPv6 client", kind: guide.Haproxy, pairs: haproxy("ipv6(2001:db8::103)", ""), want: "2001:db8::103"},
	{name: "IPv6 proxy", kind: guide.Haproxy, pairs: haproxy("ipv4(192.0.2.104)", ""), host: "::1", want: "192.0.2.104"},
	{
		name: "PROXY 1", kind: guide.Haproxy, pairs: haproxy("ipv4(192.0.2.105)", "send-proxy"),
		flags: []string{proxyProtocol}, want: "192.0.2.105",
	},
	{
		name: "PROXY 1 over IPv6", kind: guide.Haproxy, pairs: haproxy("ipv6(2001:db8::106)", "send-proxy"),
		host: "::1", flags: []string{proxyProtocol}, want: "2001:db8::106",
	},
	{
		name: "PROXY 2 and HTTP-2", kind: guide.Haproxy, pairs: haproxy("ipv4(192.0.2.107)", "send-proxy-v2 proto h2"),
		flags: []string{proxyProtocol}, want: "192.0.2.107",
	},
	{
		name: "PROXY 2 over IPv6", kind: guide.Haproxy, pairs: haproxy("ipv6(2001:db8::108)", "send-proxy-v2"),
		host: "::1", flags: []string{proxyProtocol}, want: "2001:db8::108",
	},
	{
		// The server does not believe it, and its own address says nothing.
		name: "untrusted proxy", kind: guide.Haproxy, pairs: haproxy("ipv4(192.0.2.109)", "source 127.0.0.109"),
	},
	{
		// One that the server trusts says whom it speaks for, and that one, whom
		// nobody trusts, says something else.
		name: "untrusted proxy behind a trusted one", kind: guide.Haproxy,
		pairs: []string{
			guide.Haproxy.Sent, "http-request set-header X-Forwarded-For " + cdn.Forged + "\n\thttp-request set-src ipv4(192.0.2.110)",
			"server origin 127.0.0.1:8080", "server origin ORIGIN send-proxy",
		},
		flags: []string{proxyProtocol}, want: "192.0.2.110",
	},
}

// testServerProxies puts real proxies in front of the server, which is started
// as tor starts it and joined to tor's ExtORPort, and lets tor say who the
// client was.
func testServerProxies(t *testing.T, tt *torTest) {
	extOR, cookie, err := tt.network.ExtORPort()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range relations {
		t.Run(r.name, func(t *testing.T) {
			host, port, _ := net.SplitHostPort(programs.Addr(t))
			if r.host != "" {
				host = r.host
			}
			origin, state := net.JoinHostPort(host, port), programs.Folder(t)
			cmd := exec.Command(programs.Server, append(r.flags, "-disable-tls", "-trusted-proxies=127.0.0.1,::1")...)
			cmd.Env = append(os.Environ(),
				"TOR_PT_MANAGED_TRANSPORT_VER=1", "TOR_PT_STATE_LOCATION="+state,
				"TOR_PT_SERVER_TRANSPORTS=turbo", "TOR_PT_SERVER_BINDADDR=turbo-"+origin,
				"TOR_PT_ORPORT="+tt.network.ORAddr(),
				"TOR_PT_EXTENDED_SERVER_PORT="+extOR, "TOR_PT_AUTH_COOKIE_FILE="+cookie)
			programs.Logged(t, programs.Start(t, cmd), "SMETHODS DONE")
			pairs := slices.Clone(r.pairs)
			for i := range pairs {
				pairs[i] = strings.ReplaceAll(pairs[i], "ORIGIN", origin)
			}
			c := guide.StartCDN(t, r.kind, cdn.Front, origin, pairs...)
			client := programs.StartClient(t, "https://"+cdn.Origin+"/path", []string{"SSL_CERT_FILE=" + c.CAFile},
				"-key", programs.Key(t, state), "-front", cdn.Front, "-addr", c.Addr)

			// tor ends what does not begin with a TLS handshake: so it had it.
			conn := dial(t, client.Addr)
			tell(t, conn, "this is no tor\r\n")
			if n, err := conn.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d bytes from tor, %v; want the end", n, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), programs.WaitLimit)
			defer cancel()
			if r.want != "" {
				if err := tt.network.WaitUserAddr(ctx, netip.MustParseAddr(r.want)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	none, cancel := context.WithCancel(t.Context())
	cancel()
	for _, wrong := range []string{cdn.Forged, "192.0.2.109", "127.0.0.109", "127.0.0.1", "::1"} {
		if err := tt.network.WaitUserAddr(none, netip.MustParseAddr(wrong)); err == nil {
			t.Errorf("tor was told that %s is a client", wrong)
		}
	}
}
