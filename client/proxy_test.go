package main

import (
	"strings"
	"testing"

	"turbotunnel/common/tunnel"
)

func TestReadProxy(t *testing.T) {
	const server = "https://cdn.example/path"
	for name, c := range map[string]struct {
		value string
		env   map[string]string
		want  string // of the URL; empty: direct
		err   string
	}{
		"none":                 {"", map[string]string{"HTTPS_PROXY": "http://a.example:1"}, "", ""},
		"given":                {"socks5://127.0.0.1:1080", nil, "socks5://127.0.0.1:1080", ""},
		"socks5h":              {"socks5h://user:password@127.0.0.1:1080/", nil, "socks5://user:password@127.0.0.1:1080", ""},
		"no port":              {"http://proxy.example", nil, "http://proxy.example", ""},
		"no port of all":       {"env", map[string]string{"ALL_PROXY": "socks5h://a.example"}, "socks5://a.example", ""},
		"not known":            {"gopher://127.0.0.1:70", nil, "", "not supported"},
		"no URL":               {"127.0.0.1:1080", nil, "", "no URL"},
		"password":             {"http://user:se%cret@a.example:1", nil, "", "no URL"},
		"environment":          {"env", map[string]string{"HTTPS_PROXY": "http://a.example:3128"}, "http://a.example:3128", ""},
		"of all":               {"env", map[string]string{"ALL_PROXY": "socks5h://a.example:1080"}, "socks5://a.example:1080", ""},
		"of https first":       {"env", map[string]string{"ALL_PROXY": "socks5://a.example:1080", "https_proxy": "http://b.example:1"}, "http://b.example:1", ""},
		"of http only":         {"env", map[string]string{"http_proxy": "http://b.example:1"}, "", ""},
		"exception":            {"env", map[string]string{"HTTPS_PROXY": "http://a.example:1", "NO_PROXY": "cdn.example"}, "", ""},
		"exception of another": {"env", map[string]string{"HTTPS_PROXY": "http://a.example:1", "NO_PROXY": "front.example"}, "http://a.example:1", ""},
		"environment wrong":    {"env", map[string]string{"HTTPS_PROXY": "gopher://secret@a.example:1"}, "", "-proxy env"},
		"environment silent":   {"env", nil, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"} {
				t.Setenv(name, c.env[name])
			}
			u, err := readProxy(c.value, tunnel.Config{URL: server})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "cret") {
					t.Errorf("error %v", err)
				}
				return
			}
			got := ""
			if u != nil {
				got = u.String()
			}
			if err != nil || got != c.want {
				t.Errorf("%s, %v; want %s", got, err, c.want)
			}
		})
	}
	if _, err := parse([]string{"-proxy", "socks5://127.0.0.1:1080"}); err == nil || !strings.Contains(err.Error(), "torrc") {
		t.Errorf("under tor: %v", err)
	}
}
