package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A torrc has lines of other kinds, which are passed over; the flags are the
// defaults.
func TestLinesOf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "torrc")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := "url=https://a.example/ key=" + strings.Repeat("A", 43)
	write("\ufeffBridge turbo 192.0.2.1:443 " + args + "\r\nUseBridges 1\nBridge webtunnel 192.0.2.1:1 url=https://w.example/ ver=0.0.1\nsnowflake 192.0.2.3:80 url=https://s.example/ front=x\n" +
		"ServerTransportOptions turbo url=https://o.example/\n# Bridge turbo 1 url=no\n\nBridge obfs4 192.0.2.1:1 cert=x\n" +
		"Bridge turbo 192.0.2.2:443 " + args + " utls=safari front=b.example # a friend's")
	got, err := linesOf(file, config{UTLS: "firefox", Fronts: "c.example"})
	if err != nil || len(got) != 2 || got[0].UTLS != "firefox" || got[0].Fronts != "c.example" || got[1].UTLS != "safari" || got[1].Fronts != "b.example" {
		t.Errorf("%+v, %v", got, err)
	}
	write("Bridge turbo 192.0.2.1:443 url=https://a.example/")
	if got, err := linesOf(file, config{Key: strings.Repeat("A", 43)}); err != nil || got[0].Key == "" {
		t.Errorf("the key of the flags: %+v, %v", got, err)
	}
	for _, line := range []string{"Bridge 192.0.2.1:443 " + args, "Bridge Turbo 192.0.2.1:443 " + args, "url=", "Bridge url=x"} {
		write(line)
		if _, err := linesOf(file, config{}); err == nil || !strings.Contains(err.Error(), "line 1 of the file") {
			t.Errorf("%s: %v", line, err)
		}
	}
	write("\nurl=https://secret.example:443/ key=x\n")
	if _, err := linesOf(file, config{}); err == nil || !strings.Contains(err.Error(), "line 2 of the file: key:") || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
	write(strings.Repeat(args+"\n", maxLines+1))
	if _, err := linesOf(file, config{}); err == nil {
		t.Error("there is no limit")
	}
}

// What a line says comes before the flags, and what it does not say, from them.
func TestCheckArguments(t *testing.T) {
	key := strings.Repeat("A", 43)
	line := "url=https://a.example/ key=" + key
	for _, c := range []struct {
		args []string
		want config
		err  string
	}{
		{[]string{"-front", "f.example", line}, config{Fronts: "f.example"}, ""},
		{[]string{"-front", "f.example", line + " front=g.example"}, config{Fronts: "g.example"}, ""},
		{[]string{"-fronts", "f.example,g.example", line + " fronts=h.example"}, config{Fronts: "h.example"}, ""},
		{[]string{"url=https://a.example/", "-key", key}, config{}, ""},
		{[]string{"-url", "https://b.example/", "-utls", "safari", line + " utls=firefox"}, config{UTLS: "firefox"}, ""},
		{[]string{"-mode", "poll", "-front", "f.example", "url=https://a.example/", "-key", key}, config{Mode: "poll", Fronts: "f.example"}, ""},
		{[]string{"url=https://a.example/"}, config{}, "needs key="},
		{[]string{"-front", "f.example", "-fronts", "g.example", line}, config{}, "both given"},
		{[]string{"-key", key, "127.0.0.1:1", "https://a.example/"}, config{}, ""},
		{strings.Fields(line), config{}, "between quotes"},
		{[]string{"turbo", line}, config{}, "between quotes"},
	} {
		c.want.URL, c.want.Key = "https://a.example/", key
		s, err := parse(append([]string{"-check"}, c.args...))
		if c.err == "" && (err != nil || s.tunnel != c.want) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), key)) {
			t.Errorf("%q: %+v, %v", c.args, s.tunnel, err)
		}
	}
}
