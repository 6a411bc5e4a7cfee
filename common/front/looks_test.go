package front

import (
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	utls "github.com/refraction-networking/utls"
)

// isChromes tells whether a ClientHello begins its ciphers as Chrome does, with GREASE.
func isChromes(h *tls.ClientHelloInfo) bool { return h.CipherSuites[0]&0x0f0f == 0x0a0a }

// A ClientHello that does not get through is left for the next one, whose HTTP is
// its own, and later connections begin with that, until its time is over.
func TestNextLook(t *testing.T) {
	for name, refuse := range map[string]func(*tls.ClientHelloInfo) error{
		"alert": func(*tls.ClientHelloInfo) error { return errors.New("not this one") },
		"reset": func(h *tls.ClientHelloInfo) error { return errors.Join(h.Conn.Close(), errors.New("closed")) },
		"silence": func(h *tls.ClientHelloInfo) error {
			h.Conn.Read(make([]byte, 1)) //nolint:errcheck // until the client closes it
			return errors.New("nobody hears it")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var seen []string
				network := newMemory()
				network.delay = 50 * time.Millisecond
				s := serve(t, serverOptions{listener: network, hello: func(h *tls.ClientHelloInfo) error {
					mu.Lock()
					chromes := isChromes(h)
					seen = append(seen, map[bool]string{true: "chrome", false: "other"}[chromes])
					mu.Unlock()
					if chromes {
						return refuse(h)
					}
					return nil
				}}, func(w http.ResponseWriter, r *http.Request) {
					w.Write([]byte(r.UserAgent()))
				})
				f := newFront(t, s, func(c *Config) { c.Dialer, c.UTLS = network.dial, "chrome, firefox" })
				defer f.endWith(s)
				ask := func() (hellos string) {
					t.Helper()
					begin := time.Now()
					if agent := exchange(t, f, "x"); agent != firefox.agent {
						t.Errorf("dressed as %q", agent)
					}
					if took := time.Since(begin); took > helloPatience+2*time.Second {
						t.Errorf("took %v", took)
					}
					f.pool.change(func() { f.pool.conns.closeIf(func(*conn) bool { return true }) })
					time.Sleep(time.Second) // dials beside have ended
					mu.Lock()
					defer mu.Unlock()
					defer func() { seen = nil }()
					return strings.Join(seen, " ")
				}
				if hellos := ask(); !strings.HasPrefix(hellos, "chrome ") {
					t.Errorf("the server has seen %s at first", hellos)
				}
				if hellos := ask(); hellos != "other" {
					t.Errorf("the server has seen %s then", hellos)
				}
				time.Sleep(minBad)
				if hellos := ask(); !strings.HasPrefix(hellos, "chrome ") {
					t.Errorf("the server has seen %s in the end", hellos)
				}
			})
		})
	}
}

// Where no ClientHello gets through, none is to blame, and a certificate that is not
// the front's says nothing about them.
func TestNoLookIsToBlame(t *testing.T) {
	for name, o := range map[string]serverOptions{
		"all refused":       {hello: func(*tls.ClientHelloInfo) error { return errors.New("none") }},
		"wrong certificate": {cert: new(certFor(false, "other.example"))},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, o, echo)
			f := newFront(t, s, func(c *Config) { c.UTLS = "firefox,chrome,none" })
			failure(t, f, t.Context(), OpTLS)
			for i, l := range f.pool.dials.connector.looks.all {
				if !l.works() {
					t.Errorf("number %d is to blame", i)
				}
			}
			if n := len(s.sni()); o.cert != nil && n > 2 { // an address is tried twice at most
				t.Errorf("%d handshakes", n)
			}
		})
	}
}

// Names as other transports' bridge lines spell them.
func TestHelloNames(t *testing.T) {
	for text, want := range map[string]string{
		"HelloRandomizedALPN": "randomized", "hellochrome_auto": "chrome", "HelloFirefox_120": "firefox_120",
		" Chrome ": "chrome", "HelloIOS_Auto": "ios", "HelloGolang": "none", "HelloSafari_Auto": "safari",
	} {
		if got, _ := helloName(text); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
		if _, err := hellosNamed(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"chrome,", ",", "chrome,HelloChrome_Auto", "none,none", "hello", "lynx,chrome"} {
		if _, err := hellosNamed(text); err == nil || !strings.HasPrefix(err.Error(), "utls: ") {
			t.Errorf("%q: error %v", text, err)
		}
	}
}

// What is made up is of TLS 1.3, offers both versions of HTTP, is made up anew for
// each Front, and stays the same for all its connections.
func TestRandomized(t *testing.T) {
	distinct := make(map[string]bool)
	for range 100 {
		list, err := hellosNamed("randomized")
		if err != nil {
			t.Fatal(err)
		}
		first := ciphersOf(t, list[0].id)
		if second := ciphersOf(t, list[0].id); first != second {
			t.Fatalf("one Front has %s, then %s", first, second)
		}
		distinct[first] = true
	}
	if len(distinct) < 30 {
		t.Errorf("%d of 100 differ", len(distinct))
	}
}

// ciphersOf is what a randomized ClientHello offers.
func ciphersOf(t *testing.T, id utls.ClientHelloID) string {
	t.Helper()
	c := utls.UClient(nil, &utls.Config{ServerName: frontName}, id)
	if err := c.BuildHandshakeState(); err != nil {
		t.Fatal(err)
	}
	hello := c.HandshakeState.Hello
	if len(hello.SupportedVersions) == 0 || hello.SupportedVersions[0] != utls.VersionTLS13 {
		t.Errorf("versions %x", hello.SupportedVersions)
	}
	if got := strings.Join(hello.AlpnProtocols, ","); got != "h2,http/1.1" {
		t.Errorf("protocols %s", got)
	}
	var b strings.Builder
	for _, suite := range hello.CipherSuites {
		b.WriteString(utls.CipherSuiteName(suite) + " ")
	}
	return b.String()
}
