package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"

	"turbotunnel/common/proxy"
	"turbotunnel/common/tunnel"

	"golang.org/x/net/http/httpproxy"
)

// proxyFromEnv is the value of -proxy that stands for the environment's variables.
const proxyFromEnv = "env"

// readProxy reads what -proxy says: the URL of a proxy, or env for the usual variables:
// HTTPS_PROXY, HTTP_PROXY and NO_PROXY, as net/http reads them for the host to which
// connections are made, then ALL_PROXY. It returns nil for a direct way. Its errors
// show no password.
func readProxy(value string, server tunnel.Config) (*url.URL, error) {
	if value == "" {
		return nil, nil
	}
	if value != proxyFromEnv {
		return parseProxy("-proxy", value)
	}
	ways, err := server.Ways()
	if err != nil {
		return nil, err // checked before
	}
	target := &url.URL{Scheme: ways[0].URL.Scheme, Host: cmp.Or(ways[0].Addr, ways[0].Front, ways[0].URL.Host)}
	env := httpproxy.FromEnvironment()
	for _, name := range []string{"ALL_PROXY", "all_proxy"} {
		if all := os.Getenv(name); all != "" {
			env.HTTPSProxy, env.HTTPProxy = first(env.HTTPSProxy, all), first(env.HTTPProxy, all)
		}
	}
	u, err := env.ProxyFunc()(target)
	switch {
	case err != nil:
		return nil, errors.New("-proxy env: what the environment says is no URL of a proxy")
	case u == nil:
		return nil, nil
	}
	return parseProxy("-proxy env", u.String())
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// parseProxy reads the URL of a proxy that a flag named. socks5h is what others call a
// SOCKS5 proxy that resolves names, as all ours do.
func parseProxy(flag, text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("%s: no URL of a proxy such as socks5://127.0.0.1:1080 or http://user:password@proxy.example:3128", flag)
	}
	if u.Scheme == "socks5h" {
		u.Scheme = "socks5"
	}
	if u.Path == "/" {
		u.Path = ""
	}
	if err := proxy.Check(u); err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return u, nil
}
