package main

import (
	"os"
	"strings"
	"testing"

	"turbotunnel/common/tunnel"
)

// The help and the manual name everything that the command line takes.
func TestDocumentationNamesEveryFlag(t *testing.T) {
	manual, err := os.ReadFile("../doc/turbotunnel-client.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{"drain", "memory-limit", "log", "unsafe-logging", "version", "h", "check", "check-file", "json", "long"}, tunnel.Arguments...) {
		if !strings.Contains(help, "\n  -"+name+" ") {
			t.Errorf("the help does not name -%s", name)
		}
		if dashed := `\-` + strings.ReplaceAll(name, "-", `\-`); !strings.Contains(string(manual), dashed+"\n") &&
			!strings.Contains(string(manual), dashed+` "`) {
			t.Errorf("the manual does not name -%s", name)
		}
	}
}

// An argument overrides the flag, field by field.
func TestArgumentsOverrideFlags(t *testing.T) {
	s, err := parse([]string{"-url", "https://a.example/", "-fronts", "b.example,c.example", "-mode", "poll"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.tunnel.With(map[string]string{"front": "d.example", "engine": "kcp"})
	if err != nil {
		t.Fatal(err)
	}
	want := config{URL: "https://a.example/", Fronts: "d.example", Mode: "poll", Engine: "kcp"}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
