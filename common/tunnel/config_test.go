package tunnel

import (
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"unicode"
)

const testKey = "fZwkMWU5glwYluV_KBl3Rnk85gy-46012p0HuF-lXio"

func TestConfigSet(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        string // in the error; empty: none
	}{
		{"url", "https://cdn.example/path", ""},
		{"url", "http://127.0.0.1:8000", ""},
		{"url", "http://[::1]:8000/", ""},
		{"url", "cdn.example/path", "write https:// or http:// before it"},
		{"url", "ftp://cdn.example/", "only http and https"},
		{"url", "https://", "names no host"},
		{"url", "https://cdn.example:70000/", "port"},
		{"url", "https://user:secret@cdn.example/", "only scheme, host, port and path"},
		{"url", "https://cdn.example/?q", "only scheme, host, port and path"},
		{"url", "https://cdn.example/#f", "only scheme, host, port and path"},
		{"url", "https://%zz/", "cannot be read as a URL"},
		{"url", "", "empty"},
		{"key", testKey, ""},
		{"key", testKey[1:], "not a public key"},
		{"key", "", "empty"},
		{"front", "front.example", ""},
		{"front", "a.example,b.example", "fronts takes several"},
		{"front", "not a name", "front"},
		{"fronts", "a.example,b.example", ""},
		{"fronts", "a.example,,b.example", "empty name"},
		{"addr", "192.0.2.1:443", ""},
		{"addr", "192.0.2.1", "addr"},
		{"engine", "kcp", ""},
		{"engine", "steam", "one of"},
		{"mode", "poll", ""},
		{"mode", "guess", "auto, poll, stream"},
		{"utls", "firefox", ""},
		{"utls", "none", ""},
		{"utls", "lynx", "utls"},
		{"utls", "chrome,HelloFirefox_Auto,randomized", ""},
		{"utls", "chrome,,firefox", "utls"},
		{"ech", "dns", ""},
		{"ech", testECH, ""},
		{"ech", strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(testECH), "="), ""},
		{"ech", "AAT+DQAA", "without a key"},
		{"ech", "A" + testECH, "ech"},
		{"ech", "AAX+DQAA", "no ECHConfigList"},
		{"ech", "***", "neither dns nor base64"},
		{"doh", "https://dns.example/dns-query", ""},
		{"doh", "https://192.0.2.1/dns-query{?dns}", ""},
		{"doh", "http://dns.example/", "no URL such as"},
		{"doh", "dns.example", "no URL such as"},
		{"doh", "https://not a name/", "no URL such as"},
		{"doh", "https://user:secret@dns.example/", "no URL such as"},
		{"colour", "blue", `unknown argument "colour"`},
		{"URL", "https://cdn.example/", "unknown argument"},
		{"", "x", "unknown argument"},
	} {
		for _, start := range []Config{{}, {URL: "https://server.example/"}} {
			got := start
			err := got.Set(c.name, c.value)
			if c.want == "" {
				if err != nil {
					t.Errorf("%s=%s: %v", c.name, c.value, err)
				}
				continue
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s=%s: %v, want %q in it", c.name, c.value, err, c.want)
			}
			if got != start {
				t.Errorf("%s=%s is refused, and the Config is now %+v", c.name, c.value, got)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("%v shows a password", err)
			}
		}
	}
	if err := (Config{Key: testKey}).Check(); err == nil || !strings.HasPrefix(err.Error(), "url: missing") {
		t.Errorf("without a URL: %v", err)
	}
}

// testECH is an ECHConfigList whose public name is public.example.
const testECH = "AEH+DQA9AQAgACDentt9e33BtNNbYcLs5DU3P4NDyFt4Z02t/H4Ub4grTwAEAAEAAQAOcHVibGljLmV4YW1wbGUAAA=="

// A name that shall be encrypted is not shown in clear because a browser without ECH
// is imitated, wherever its key comes from.
func TestECHNeedsABrowserWithIt(t *testing.T) {
	for _, ech := range []string{"dns", testECH} {
		for _, utls := range []string{"safari", "chrome,randomized"} {
			c := Config{URL: "https://server.example/", UTLS: utls, ECH: ech}
			if err := c.Check(); err == nil || !strings.HasPrefix(err.Error(), "ech: ") {
				t.Errorf("ech=%s with utls=%s: %v", ech, utls, err)
			}
		}
	}
}

// FuzzConfigSet: what is accepted can be used, what is refused changes nothing,
// and errors can be printed.
func FuzzConfigSet(f *testing.F) {
	f.Add("url", "https://cdn.example/path")
	f.Add("url", "http://[::1%25eth0]:80")
	f.Add("key", testKey)
	f.Add("key", testKey+"\n")
	f.Add("fronts", "a.example, b.example")
	f.Add("addr", "[::1]:443")
	f.Add("engine", "kcp\x1b[31m")
	f.Add("utls", "chrome")
	f.Add("ech", testECH)
	f.Add("ech", "dns")
	f.Add("doh", "https://dns.example/dns-query")
	f.Add("mode", "auto")
	f.Add("\x00", strings.Repeat("x", 5000))
	f.Fuzz(func(t *testing.T, name, value string) {
		start := Config{URL: "https://server.example/"}
		c := start
		if err := c.Set(name, value); err != nil {
			if c != start {
				t.Fatalf("refused, and the Config is now %+v", c)
			}
			if text := err.Error(); len(text) > 1000+4*len(value) || strings.ContainsFunc(text, unicode.IsControl) {
				t.Fatalf("error %q", text)
			}
			return
		}
		if err := c.Check(); err != nil {
			t.Fatalf("accepted, and then: %v", err)
		}
		d, err := NewDialer(c, Options{})
		if err != nil {
			t.Fatalf("accepted, and then: %v", err)
		}
		d.Close()
		field := map[string]string{"url": "URL", "utls": "UTLS", "ech": "ECH", "doh": "DoH", "front": "Fronts"}[name]
		if field == "" {
			field = strings.ToUpper(name[:1]) + name[1:]
		}
		if got := reflect.ValueOf(c).FieldByName(field).String(); got != value {
			t.Fatalf("%s is %q, set was %q", field, got, value)
		}
	})
}

func TestKey(t *testing.T) {
	key := NewKey()
	text := key.Marshal()
	again, err := ParseKey(text)
	if err != nil || again.Public() != key.Public() || string(again.Marshal()) != string(text) {
		t.Errorf("%v, %v", again, err)
	}
	secret := strings.TrimSuffix(strings.TrimPrefix(string(text), keyPrefix), "\n")
	for _, s := range []string{fmt.Sprint(key), fmt.Sprintf("%+v", key), fmt.Sprintf("%#v", key)} {
		if strings.Contains(s, secret) || s != key.Public() {
			t.Errorf("a key prints as %q", s)
		}
	}
	line := keyPrefix + secret
	for _, good := range []string{line, line + "\r\n", line + "\n\n\n", " \t" + line + " ", "\ufeff" + line + "\r\n", "\n" + line, strings.Replace(line, " ", "  ", 1)} {
		if k, err := ParseKey([]byte(good)); err != nil || k.Public() != key.Public() {
			t.Errorf("%q: %v, %v", strings.Replace(good, secret, "SECRET", 1), k, err)
		}
	}
	for _, bad := range []string{
		"", "\n", secret, keyPrefix, keyPrefix + secret[1:], keyPrefix + secret + "=", strings.ToUpper(line),
		string(text) + "more", keyPrefix + secret[:20] + "\n" + secret[20:], line + "\x00", "\ufeff\ufeff" + line,
		strings.Replace(string(text), "1", "2", 1),
	} {
		_, err := ParseKey([]byte(bad))
		if err == nil {
			t.Errorf("%q is a key", bad)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%v shows the key", err)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	key := NewKey()
	f.Add(key.Marshal())
	f.Add([]byte(keyPrefix))
	f.Add([]byte("\ufeff" + keyPrefix + strings.Repeat("A", 43) + "\r\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := ParseKey(text)
		words := strings.Fields(strings.TrimPrefix(string(text), "\ufeff"))
		if err == nil && string(k.Marshal()) != strings.Join(words, " ")+"\n" {
			t.Fatalf("%q was read, and is written as %q", text, k.Marshal())
		}
	})
}

func TestClientAddr(t *testing.T) {
	trusted := []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:1::/48"),
	}
	for _, c := range []struct {
		name      string
		remote    string
		forwarded []string
		want      string // empty: unknown
	}{
		{"a client", "192.0.2.1:1234", nil, "192.0.2.1"},
		{"a client of IPv6", "[2001:db8::1]:1234", nil, "2001:db8::1"},
		{"a client of mapped IPv4", "[::ffff:192.0.2.1]:1234", nil, "192.0.2.1"},
		{"a client with a zone", "[fe80::1%eth0]:1234", nil, "fe80::1"},
		{"a client that claims", "192.0.2.1:1234", []string{"203.0.113.9"}, "192.0.2.1"},
		{"a proxy", "127.0.0.1:1234", []string{"192.0.2.1"}, "192.0.2.1"},
		{"a proxy, IPv6", "[2001:db8:1::5]:80", []string{"2001:db8:2::7"}, "2001:db8:2::7"},
		{"brackets", "127.0.0.1:1234", []string{"[2001:db8:2::7]"}, "2001:db8:2::7"},
		{"brackets and port", "127.0.0.1:1234", []string{"[2001:db8:2::7]:443"}, "2001:db8:2::7"},
		{"port", "127.0.0.1:1234", []string{"192.0.2.1:443"}, "192.0.2.1"},
		{"two proxies", "127.0.0.1:1234", []string{"192.0.2.1, 198.51.100.7"}, "192.0.2.1"},
		{"two proxies, two headers", "127.0.0.1:1234", []string{"192.0.2.1", "198.51.100.7"}, "192.0.2.1"},
		{"a claim before a proxy's word", "127.0.0.1:1234", []string{"203.0.113.9, 192.0.2.1"}, "192.0.2.1"},
		{"a claim of a proxy", "127.0.0.1:1234", []string{"198.51.100.9, 192.0.2.1"}, "192.0.2.1"},
		{"spaces", "127.0.0.1:1234", []string{"  192.0.2.1\t"}, "192.0.2.1"},
		{"a proxy that says nothing", "127.0.0.1:1234", nil, ""},
		{"an empty header", "127.0.0.1:1234", []string{""}, ""},
		{"all proxies", "127.0.0.1:1234", []string{"198.51.100.9, 198.51.100.8"}, ""},
		{"junk", "127.0.0.1:1234", []string{"unknown"}, ""},
		{"junk before a proxy", "127.0.0.1:1234", []string{"_hidden, 198.51.100.8"}, ""},
		{"junk before a client", "127.0.0.1:1234", []string{"junk, 192.0.2.1"}, "192.0.2.1"},
		{"a comma at the end", "127.0.0.1:1234", []string{"192.0.2.1,"}, ""},
		{"half a bracket", "127.0.0.1:1234", []string{"[192.0.2.1"}, ""},
		{"brackets around IPv4", "127.0.0.1:1234", []string{"192.0.2.1]"}, ""},
		{"loopback behind a proxy", "198.51.100.1:80", []string{"::1"}, ""},
		{"no address", "127.0.0.1:1234", []string{"0.0.0.0"}, ""},
		{"no remote address", "@", []string{"192.0.2.1"}, ""},
		{"a control character", "127.0.0.1:1234", []string{"192.0.2.1\x00"}, ""},
	} {
		r := &http.Request{RemoteAddr: c.remote, Header: http.Header{"X-Forwarded-For": c.forwarded}}
		got := clientAddr(r, trusted)
		if c.want == "" && got.IsValid() || c.want != "" && got.String() != c.want {
			t.Errorf("%s: %v, want %q", c.name, got, c.want)
		}
	}
	r := &http.Request{RemoteAddr: "127.0.0.1:80", Header: http.Header{"X-Forwarded-For": {"192.0.2.1"}}}
	if got := clientAddr(r, nil); got.IsValid() {
		t.Errorf("nobody is trusted, and the client is %v", got)
	}
}

// FuzzClientAddr: a header never makes an address that tor could not parse, nor
// one of a proxy, and whoever is not trusted changes nothing.
func FuzzClientAddr(f *testing.F) {
	f.Add("192.0.2.1", "[2001:db8::1]:80, 127.0.0.1")
	f.Add("", ",,,")
	f.Add("::ffff:127.0.0.1", "fe80::1%eth0")
	trusted := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	f.Fuzz(func(t *testing.T, one, two string) {
		header := http.Header{"X-Forwarded-For": {one, two}}
		a := clientAddr(&http.Request{RemoteAddr: "127.0.0.1:80", Header: header}, trusted)
		if a.IsValid() && (a.Zone() != "" || a.Is4In6() || trusts(trusted, a) || a.IsLoopback() || a.IsUnspecified()) {
			t.Fatalf("%q, %q: %v", one, two, a)
		}
		if a := clientAddr(&http.Request{RemoteAddr: "192.0.2.9:80", Header: header}, trusted); a.String() != "192.0.2.9" {
			t.Fatalf("%q, %q: %v", one, two, a)
		}
	})
}
