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
	write("UseBridges 1\n# Bridge turbo 1 url=no\n\nBridge obfs4 192.0.2.1:1 cert=x\nBridge turbo 192.0.2.1:443 " + args + "\r\n" +
		"Bridge turbo 192.0.2.2:443 " + args + " utls=safari front=b.example")
	got, err := linesOf(file, config{UTLS: "firefox", Fronts: "c.example"})
	if err != nil || len(got) != 2 || got[0].UTLS != "firefox" || got[0].Fronts != "c.example" || got[1].UTLS != "safari" || got[1].Fronts != "b.example" {
		t.Errorf("%+v, %v", got, err)
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
