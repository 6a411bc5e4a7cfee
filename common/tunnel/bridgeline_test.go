package tunnel

import (
	"reflect"
	"strings"
	"testing"
	"unicode"
)

func TestParseBridgeLine(t *testing.T) {
	full := Config{URL: "https://cdn.example/path", Key: testKey, Fronts: "a.example,b.example", Engine: "kcp"}
	args := "url=https://cdn.example/path key=" + testKey + " fronts=a.example,b.example engine=kcp"
	for _, c := range []struct {
		line string
		want string // in the error; empty: none
	}{
		{"Bridge turbo 192.0.2.1:443 0123456789ABCDEF0123456789ABCDEF01234567 " + args, ""},
		{"bridge turbo 192.0.2.1:443 " + args, ""},
		{"turbo [2001:db8::1]:443 " + args, ""},
		{"  " + strings.ReplaceAll(args, " ", "\t") + "\r\n", ""},
		{args, ""},
		{args + " # of a friend", ""},
		{"#" + args, "needs url="},
		{"", "needs url="},
		{"Bridge turbo 192.0.2.1:443", "needs url="},
		{"Bridge obfs4 192.0.2.1:443 " + args, `the word "obfs4"`},
		{"Bridge turbo 192.0.2.1:443 FINGERPRINT stray " + args, `the word "stray"`},
		{args + " engine=quic", `"engine" twice`},
		{args + " front=c.example", "front and fronts are both given"},
		{args + " colour=blue", `unknown argument "colour"`},
		{args + " mode=", "mode: empty"},
		{"url=https://cdn.example/path", "needs key="},
		{"key=" + testKey, "needs url="},
		{"url=cdn.example key=" + testKey, "write https:// or http:// before it"},
	} {
		got, err := ParseBridgeLine(c.line)
		switch {
		case c.want == "" && (err != nil || got != full):
			t.Errorf("%q: %+v, %v", c.line, got, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || got != Config{}):
			t.Errorf("%q: %+v, %v, want %q in the error", c.line, got, err, c.want)
		}
	}
}

// What a Config lacks, a bridge line overrides, field by field.
func TestConfigWith(t *testing.T) {
	start := Config{URL: "https://a.example/", Fronts: "b.example,c.example", Mode: "poll"}
	got, err := start.With(map[string]string{"front": "d.example", "engine": "kcp"})
	if want := (Config{URL: "https://a.example/", Fronts: "d.example", Mode: "poll", Engine: "kcp"}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for range 10 {
		_, err := start.With(map[string]string{"mode": "x", "engine": "y", "colour": "z"})
		if err == nil || !strings.Contains(err.Error(), "colour") {
			t.Fatalf("of several errors another one is shown now: %v", err)
		}
	}
}

// Every field has its word in Line.
func TestConfigLine(t *testing.T) {
	c := Config{
		URL: "https://cdn.example/path", Key: testKey, Fronts: "a.example,b.example", Addr: "192.0.2.1:443",
		Engine: "quic", Mode: "poll", UTLS: "firefox",
		ECH: "dns", DoH: "https://dns.example/dns-query",
	}
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Fatalf("this test knows nothing of %s", v.Type().Field(i).Name)
		}
	}
	if got, err := ParseBridgeLine(c.Line()); err != nil || got != c {
		t.Errorf("%+v, %v", got, err)
	}
}

// FuzzParseBridgeLine: whatever a line holds, it becomes a configuration that is
// complete and is written as a line that says the same, or an error of one line.
func FuzzParseBridgeLine(f *testing.F) {
	f.Add("Bridge turbo 192.0.2.1:443 FINGERPRINT url=http://a.example/ key=" + testKey)
	f.Add("url=http://a.example/ front=a fronts=b key=" + testKey)
	f.Add("url=https://[::1]/ fronts=a,b addr=[::1]:1 key=" + testKey)
	f.Add("turbo é= =\x00 \nmode=\x1b[31m")
	f.Fuzz(func(t *testing.T, line string) {
		c, err := ParseBridgeLine(line)
		if err != nil {
			if text := err.Error(); strings.ContainsFunc(text, unicode.IsControl) || len(text) > 1000+4*len(line) {
				t.Fatalf("error %q", text)
			}
			return
		}
		if c.URL == "" || c.Key == "" {
			t.Fatalf("%q gave %+v", line, c)
		}
		if again, err := ParseBridgeLine(c.Line()); err != nil || again != c {
			t.Fatalf("%q became %q, and that %+v, %v", line, c.Line(), again, err)
		}
	})
}
