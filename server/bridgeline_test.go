package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"turbotunnel/common/tunnel"

	"rsc.io/qr"
)

const someFingerprint = "0123456789ABCDEF0123456789ABCDEF01234567"

// The file holds the line as far as it is known, and is written when that changes.
func TestBridgeLine(t *testing.T) {
	data := t.TempDir()
	dir := filepath.Join(data, "pt_state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, bridgeLineFile)
	write := func(l bridgeLine, want string) os.FileInfo {
		t.Helper()
		l.fingerprint = fingerprint(dir)
		if err := l.write(dir); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if want = strings.ReplaceAll(want, "ADDRESS", l.address().String()) + "\n"; err != nil || string(text) != want {
			t.Fatalf("got %q, %v; want %q", text, err, want)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	write(bridgeLine{key: "KEY"}, "Bridge turbo ADDRESS <FINGERPRINT> url=<URL> key=KEY")
	if err := os.WriteFile(filepath.Join(data, fingerprintFile), []byte("nick "+strings.ToLower(someFingerprint)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := bridgeLine{key: "KEY", url: "https://www.example.com/x", fronts: "a.example,b.example"}
	want := "Bridge turbo ADDRESS " + someFingerprint + " url=https://www.example.com/x fronts=a.example,b.example key=KEY"
	before := write(l, want)
	old := time.Unix(1e9, 0)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	if after := write(l, want); !os.SameFile(before, after) || !after.ModTime().Equal(old) {
		t.Error("a file that says the same was written again")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
	if err := l.write(filepath.Join(dir, "gone")); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a folder that is not there: %v", err)
	}
	l.fingerprint = someFingerprint
	if got, err := readBridgeLine(dir); err != nil || got != l {
		t.Errorf("read %v, %v; want %v", got, err, l)
	}
	// A path may look like a fingerprint.
	if err := os.Remove(filepath.Join(data, fingerprintFile)); err != nil {
		t.Fatal(err)
	}
	l = bridgeLine{key: "KEY", url: "https://www.example.com/" + someFingerprint}
	for _, l.fingerprint = range []string{"", strings.Repeat("AB", 20)} {
		if err := l.write(dir); err != nil {
			t.Fatal(err)
		}
		if got, err := readBridgeLine(dir); err != nil || got != l {
			t.Errorf("read %v, %v; want %v", got, err, l)
		}
	}
}

// Each server has an address of its own, of those that lead nowhere.
func TestBridgeAddress(t *testing.T) {
	documentation := netip.MustParsePrefix("2001:db8::/32")
	seen := make(map[netip.AddrPort]bool)
	for range 100 {
		l := bridgeLine{key: tunnel.NewKey().Public()}
		a := l.address()
		if !documentation.Contains(a.Addr()) || a != l.address() {
			t.Errorf("%s for the key %s", a, l.key)
		}
		seen[a] = true
	}
	if len(seen) != 100 {
		t.Errorf("100 servers have %d addresses", len(seen))
	}
}

func TestCheckBridgeLine(t *testing.T) {
	key := strings.Repeat("k", 43)
	long := "https://www.example.com/" + strings.Repeat("x", 400)
	for _, l := range []bridgeLine{
		{url: "https://www.example.com/"},
		{url: "http://192.0.2.1:8080/a/b"},
		{url: "https://[2001:db8::1]/x", fronts: "a.example,b.example"},
		{url: long},
		{},
	} {
		l.key = key
		if err := l.check(); err != nil {
			t.Errorf("%v: %v", l, err)
		}
	}
	for want, l := range map[string]bridgeLine{
		"percent-encode":                {url: "https://www.example.com/a b"},
		"that is not printable":         {url: "https://www.example.com/ü"},
		"www.example.com":               {url: "www.example.com"},
		"-url":                          {url: "https://"},
		"-fronts":                       {url: "https://www.example.com/", fronts: "a.example,,"},
		"510":                           {url: long + long},
		"-url and -fronts are too long": {url: long, fronts: strings.Repeat("a.example,", 9) + "a.example"},
	} {
		l.key = key
		if err := l.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", l, err, want)
		}
	}
}

// What is drawn is the code, with light around it.
func TestDrawQR(t *testing.T) {
	code, err := qr.Encode("Bridge turbo [2001:db8::1]:443 "+someFingerprint, qr.L)
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(strings.TrimSuffix(drawQR(code), "\n"), "\n")
	for y := -quiet; y < code.Size+quiet; y++ {
		row := []rune(rows[(y+quiet)/2])
		if len(row) != code.Size+2*quiet {
			t.Fatalf("row %d has %d squares", y, len(row))
		}
		for x := -quiet; x < code.Size+quiet; x++ {
			light := map[rune]string{'█': "both", '▀': "upper", '▄': "lower", ' ': "none"}[row[x+quiet]]
			is := light == "both" || light == "upper" && (y+quiet)%2 == 0 || light == "lower" && (y+quiet)%2 == 1
			if is == code.Black(x, y) {
				t.Fatalf("the square %d, %d is drawn as the other one", x, y)
			}
		}
	}
}
