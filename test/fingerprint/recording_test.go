package fingerprint

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"turbotunnel/common/front"
)

// helloOf reads a ClientHello of a recording.
func helloOf(t *testing.T, record []byte) *ClientHello {
	t.Helper()
	if len(record) < 5 {
		t.Fatal("no ClientHello")
	}
	h, err := ParseHello(record[5:])
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// imitates compares our client, which looks like a recording, with that.
func imitates(t *testing.T, utls string, rec front.Recording, lasting func(*ClientHello) []string) {
	t.Helper()
	all := ofOurs(t, "h2", utls, http.Header{})
	for i, record := range [][]byte{rec.First, rec.Resumed} {
		want := helloOf(t, record)
		c := find(t, all, func(c *Connection) bool { return c.Resumed == (i == 1) })
		w, g := lasting(want), lasting(c.Hello)
		for i := range max(len(w), len(g)) {
			if i >= len(w) || i >= len(g) || w[i] != g[i] {
				t.Errorf("resumed %t: recorded %q, ours %q", c.Resumed, w[min(i, len(w)-1):], g[min(i, len(g)-1):])
				break
			}
		}
		// What is secret or drawn by lot is nobody else's.
		if bytes.Equal(c.Message[6:38], record[11:43]) || bytes.Contains(c.Message, record[44:44+32]) {
			t.Error("the random or the session ID is the recorded one")
		}
		for _, e := range c.Hello.Extensions {
			same := slices.ContainsFunc(want.Extensions, func(o Extension) bool { return o.Type == e.Type && bytes.Equal(o.Data, e.Data) })
			if same && (e.Type == extKeyShare || e.Type == extECH || e.Type == extPSK) {
				t.Errorf("extension %d is the recorded one", e.Type)
			}
		}
	}
}

// The looks that are built in are those of their files in every byte that lasts. The
// order of a Firefox never changes.
func TestBuiltIn(t *testing.T) {
	for name, lasting := range map[string]func(*ClientHello) []string{"chrome": lastingOf, "firefox": (*ClientHello).Lasting} {
		file := filepath.Join("../../common/front", name+".json")
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var rec front.Recording
		if err := json.Unmarshal(data, &rec); err != nil {
			t.Fatal(err)
		}
		imitates(t, name, rec, lasting)
		imitates(t, "file:"+file, rec, lasting)
	}
}

// What is recorded now of the installed Chromium is a look that the client takes.
func TestRecord(t *testing.T) {
	h1 := ofChromiumWith(t, "http/1.1", fullPage)
	rec, err := NewRecording("Chromium", ofChromiumWith(t, "h2", fullPage), h1)
	for range 9 {
		if err == nil {
			break
		}
		rec, err = NewRecording("Chromium", ofChromiumWith(t, "h2", fullPage), h1)
	}
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "look.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	imitates(t, "file:"+file, rec, lastingOf)
	for _, c := range ofOurs(t, "h2", "file:"+file, nil) {
		if got, want := Akamai(c.Frames), "1:65536;2:0;4:6291456;6:262144|15663105|0|m,a,s,p"; got != want {
			t.Errorf("HTTP/2 %s, want %s", got, want)
		}
	}
}

// The brands of Google Chrome stand in the order that follows from the version.
func TestAsGoogle(t *testing.T) {
	for list, want := range map[string]string{
		`"Not:A-Brand";v="8", "Chromium";v="156"`:                            `"Not:A-Brand";v="8", "Chromium";v="156", "Google Chrome";v="156"`,
		`"Chromium";v="140", "HeadlessChrome";v="140", "Not=A?Brand";v="24"`: `"Chromium";v="140", "Not=A?Brand";v="24", "Google Chrome";v="140"`,
		`"Lynx";v="2"`: `"Lynx";v="2"`,
	} {
		if got := asGoogle(list); got != want {
			t.Errorf("%s: %s, want %s", list, got, want)
		}
	}
}
