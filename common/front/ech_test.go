package front

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
)

const publicName = "public.example"

// echOf makes a server's key for ECH and the ECHConfigList with it.
func echOf(t *testing.T, id uint8) (tls.EncryptedClientHelloKey, []byte) {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddUint16(0xfe0d) // RFC 9849 section 4
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(id)
		b.AddUint16(0x20) // DHKEM(X25519, HKDF-SHA256)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key.PublicKey().Bytes()) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint16(1) // HKDF-SHA256
			b.AddUint16(1) // AES-128-GCM
		})
		b.AddUint8(0) // no longest name
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(publicName)) })
		b.AddUint16(0) // no extensions
	})
	config := b.BytesOrPanic()
	var list cryptobyte.Builder
	list.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(config) })
	return tls.EncryptedClientHelloKey{Config: config, PrivateKey: key.Bytes(), SendAsRetry: true}, list.BytesOrPanic()
}

// What is seen of a front's name is the public name of its key, by each browser that
// is imitated, on each connection, whether the key comes from the bridge line or from
// DNS, and after the front has changed it.
func TestECH(t *testing.T) {
	key, list := echOf(t, 1)
	_, old := echOf(t, 2)
	for name, change := range map[string]func(*Config){
		"given":   func(c *Config) { c.ECH = list },
		"changed": func(c *Config) { c.ECH = old },
		"DNS": func(c *Config) {
			c.LookupECH = func(_ context.Context, host string) ([]byte, error) {
				if host != frontName {
					t.Errorf("asks for %s", host)
				}
				return list, nil
			}
		},
	} {
		for _, look := range []string{"chrome", "firefox", "none", "chrome_133"} {
			t.Run(name+"/"+look, func(t *testing.T) {
				cert := certFor(false, frontName, publicName)
				s := serve(t, serverOptions{cert: &cert, ech: []tls.EncryptedClientHelloKey{key}}, echo)
				f := newFront(t, s, func(c *Config) {
					c.UTLS = look
					change(c)
				})
				for range 3 {
					if got := exchange(t, f, "hello"); got != "hello" {
						t.Errorf("answer %q", got)
					}
					f.pool.change(func() { f.pool.conns.closeIf(func(*conn) bool { return true }) })
				}
				if n := s.encrypted(); n != 3 {
					t.Errorf("%d of 3 connections were encrypted; names %q", n, s.sni())
				}
			})
		}
	}
}

// A browser that has no ECH is not made to look as if it had, and does not show a name
// that shall be encrypted.
func TestBrowserWithoutECH(t *testing.T) {
	_, list := echOf(t, 1)
	for _, look := range []string{"ios", "safari", "randomized", "chrome,firefox_102"} {
		lookup := func(context.Context, string) ([]byte, error) { return list, nil }
		for _, cfg := range []Config{{ECH: list}, {LookupECH: lookup}} {
			cfg.URL, cfg.UTLS = &url.URL{Scheme: "https", Host: originName}, look
			if err := cfg.Check(); err == nil || !strings.HasPrefix(err.Error(), "ech: ") {
				t.Errorf("%s: error %v", look, err)
			}
		}
	}
}

// A front whose key DNS does not know is reached as ever.
func TestNoECH(t *testing.T) {
	for name, answer := range map[string]struct {
		list []byte
		err  error
	}{
		"none": {}, "failure": {nil, errors.New("no answer")}, "nonsense": {[]byte("nonsense"), nil},
		"no config": {[]byte("\x00\x04junk"), nil}, "of a later version": {echLater(t), nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, serverOptions{}, echo)
			f := newFront(t, s, func(c *Config) {
				c.LookupECH = func(context.Context, string) ([]byte, error) { return answer.list, answer.err }
			})
			if got := exchange(t, f, "hello"); got != "hello" {
				t.Errorf("answer %q", got)
			}
		})
	}
}

// echLater is a list of which only a later version can use the key.
func echLater(t *testing.T) []byte {
	_, list := echOf(t, 1)
	list[3]++ // the version of the only config
	return list
}

// A list is accepted if a handshake can be made with it, by either library.
func FuzzECH(f *testing.F) {
	key, _ := ecdh.X25519().GenerateKey(rand.Reader)
	list := append([]byte("\x00\x3c\xfe\x0d\x00\x38\x01\x00\x20\x00\x20"), key.PublicKey().Bytes()...)
	list = append(list, "\x00\x04\x00\x01\x00\x01\x00\x0epublic.example\x00\x00"...)
	list[1], list[5] = byte(len(list)-2), byte(len(list)-6)
	if err := checkECH(list); err != nil {
		f.Fatal(err)
	}
	f.Add(list)
	f.Add([]byte("\x00\x04junk"))
	f.Fuzz(func(t *testing.T, list []byte) {
		if len(list) == 0 || checkECH(list) != nil {
			return
		}
		for _, look := range []string{"chrome", "none"} {
			hellos, err := hellosNamed(look)
			if err != nil {
				t.Fatal(err)
			}
			h := &handshaker{serverName: frontName, hello: hellos[0], ech: &echKey{list: list}}
			if _, _, err := h.handshake(t.Context(), nowhere{}); !errors.Is(err, errNowhere) {
				t.Errorf("as %s: %v", look, err)
			}
		}
	})
}
