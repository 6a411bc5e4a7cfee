package front

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	utls "github.com/refraction-networking/utls"
)

// What is built in can be made again, and has a place for an encrypted hello; the one
// browser permutes and the other does not.
func TestBuiltInRecordings(t *testing.T) {
	for name, r := range map[string]*recorded{"chrome": chromeRecorded, "firefox": firefoxRecorded} {
		if err := r.check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !r.encrypts || r.shuffles != (name == "chrome") {
			t.Errorf("%s: encrypts %t, shuffles %t", name, r.encrypts, r.shuffles)
		}
	}
}

// What a browser draws by lot for each connection, no two of ours share for long.
func TestRecordingDrawsAnew(t *testing.T) {
	grease, orders := make(map[utls.SignatureScheme]bool), make(map[string]bool)
	for range 100 {
		spec, err := chromeRecorded.spec(false)
		if err != nil {
			t.Fatal(err)
		}
		var order strings.Builder
		for _, e := range spec.Extensions {
			fmt.Fprintf(&order, "%T ", e)
			if e, ok := e.(*utls.SignatureAlgorithmsExtension); ok {
				grease[e.SupportedSignatureAlgorithms[0]] = true
			}
		}
		orders[order.String()] = true
	}
	if len(grease) < 8 || len(orders) < 90 {
		t.Errorf("100 hellos have %d GREASE signatures and %d orders", len(grease), len(orders))
	}
}

// A recording in a file is a look as the built-in ones are, alone and in a list.
func TestRecordingInFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "Look.json")
	data := strings.ReplaceAll(string(firefoxFile), "Firefox/153.0", "Firefox/999.0")
	if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, serverOptions{}, func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(r.UserAgent() + "|" + r.Header.Get("Te") + "|" + r.Header.Get("Cookie") + r.Header.Get("Pragma")))
	})
	for _, utls := range []string{"file:" + file, "file:" + file + ",chrome"} {
		f := newFront(t, s, func(c *Config) { c.UTLS = utls })
		if got := exchange(t, f, "x"); !strings.HasSuffix(got, "Firefox/999.0|trailers|") {
			t.Errorf("%s says %q", utls, got)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What is no recording, and what the client could not imitate without breaking what
// the browser promises, is refused with a reason.
func TestRecordingRefused(t *testing.T) {
	change := func(old, with string) []byte {
		text := strings.ReplaceAll(string(chromeFile), old, with)
		if text == string(chromeFile) {
			t.Fatalf("no %q there", old)
		}
		return []byte(text)
	}
	edit := func(f func(*Recording)) []byte {
		var rec Recording
		if err := json.Unmarshal(chromeFile, &rec); err != nil {
			t.Fatal(err)
		}
		f(&rec)
		data, err := json.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":         {nil, "not a recording"},
		"no JSON":       {[]byte("GET / HTTP/1.1\r\n"), "not a recording"},
		"unknown field": {change(`"browser"`, `"later": 1, "browser"`), "not a recording"},
		"no hello":      {edit(func(r *Recording) { r.First = nil }), "first ClientHello"},
		"cut":           {edit(func(r *Recording) { r.Resumed = r.Resumed[:1000] }), "resumed ClientHello"},
		"no session":    {edit(func(r *Recording) { r.Resumed = r.First }), "offers no session"},
		"no TLS 1.3":    {edit(func(r *Recording) { r.First = bytes.Replace(r.First, []byte{3, 4, 3, 3}, []byte{3, 3, 3, 3}, 1) }), "TLS 1.3"},
		"unknown group": {edit(func(r *Recording) {
			r.First = bytes.Replace(r.First, []byte{0, 0x1d, 0, 0x20}, []byte{0x12, 0x34, 0, 0x20}, 1)
		}), "first ClientHello"},
		"pushes":          {edit(func(r *Recording) { r.HTTP2.Settings = nil }), "pushes"},
		"large table":     {edit(func(r *Recording) { r.HTTP2.Settings[0][1] = maxHeaderTable + 1 }), "cannot be kept"},
		"large frames":    {edit(func(r *Recording) { r.HTTP2.Settings[0] = [2]uint32{5, readFrame + 1} }), "cannot be kept"},
		"large window":    {edit(func(r *Recording) { r.HTTP2.Window = connWindow }), "window"},
		"large stream":    {edit(func(r *Recording) { r.HTTP2.StreamWindow = streamWindow }), "stream's window"},
		"pseudo-headers":  {change(":method: POST", ":protocol: x"), "pseudo-headers"},
		"line break":      {change("?0", `?0\r\nX: y`), "field"},
		"no agent":        {change("user-agent: ", "x-agent: "), "User-Agent"},
		"unknown coding":  {change("br, zstd", "br, lzma"), "lzma"},
		"no content-type": {change("Content-Type: ", "X-Content-Type: "), "Content-Type"},
		"two orders":      {change("priority: u=1, i", `priority: u=1, i", "content-length: 1`), "elsewhere"},
		"many fields":     {edit(func(r *Recording) { r.Head1 = slices.Repeat(r.Head1, maxFields) }), "fields"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "look.json")
			if err := os.WriteFile(file, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := hellosNamed("file:" + file); err == nil || !strings.HasPrefix(err.Error(), "utls: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// A file's name that comes with a bridge line leads to a file of this computer only,
// and never to one that does not end.
func TestRecordingFileRefused(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, maxRecording+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "missing"): "no such file",
		dir:                           "regular",
		large:                         "at most",
		`\\host\share\look.json`:      "another computer",
		"//host/share/look.json":      "another computer",
		`/\host\share\look.json`:      "another computer",
		`\/host/share/look.json`:      "another computer",
		`\??\UNC\host\look.json`:      "another computer",
		filepath.Join(dir, "a look"):  "a space",
		"":                            "unknown name",
	} {
		if _, err := hellosNamed("file:" + path); err == nil || !strings.HasPrefix(err.Error(), "utls: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", path, err, want)
		}
	}
}

// FuzzRecording: whatever is accepted makes ClientHellos, again and again, each with
// the same extensions.
func FuzzRecording(f *testing.F) {
	for _, file := range [][]byte{chromeFile, firefoxFile} {
		var rec Recording
		if err := json.Unmarshal(file, &rec); err != nil {
			f.Fatal(err)
		}
		first, resumed := rec.First, rec.Resumed
		rec.First, rec.Resumed = nil, nil
		rest, err := json.Marshal(rec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(first, resumed, rest)
	}
	f.Fuzz(func(t *testing.T, first, resumed, rest []byte) {
		var rec Recording
		if json.Unmarshal(rest, &rec) != nil {
			return
		}
		rec.First, rec.Resumed = first, resumed
		data, err := json.Marshal(rec)
		if err != nil {
			return
		}
		r, err := parseRecording(data)
		if err != nil || r.check() != nil {
			return
		}
		if err := r.check(); err != nil {
			t.Errorf("accepted once, then: %v", err)
		}
		if r.browser.agent == "" || len(r.browser.h2.pseudo) != 4 || r.browser.h2.initialWindow()+int(r.browser.h2.openBump) > streamWindow {
			t.Errorf("accepted: %+v", r.browser)
		}
		if _, known := r.browser.fieldOrder()["content-type"]; !known {
			t.Error("no place for what a script sets")
		}
	})
}
