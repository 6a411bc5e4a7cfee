package handshake

import (
	"fmt"
	"strings"
	"testing"
)

func TestKeysAsText(t *testing.T) {
	key := GenerateKey()
	if s := fmt.Sprintf("%v %s %#v %+v", key, key, key, struct{ K PrivateKey }{key}); strings.Count(s, "(private key)") != 4 {
		t.Errorf("a private key prints as %q", s)
	}
	pub := key.Public()
	if got, err := ParsePublicKey(pub.String()); err != nil || got != pub {
		t.Errorf("%v became %v, %v", pub, got, err)
	}
	for _, s := range []string{
		"", "x", pub.String()[1:], pub.String() + "A", pub.String() + "=", " " + pub.String(), pub.String() + "\n",
		pub.String()[:42] + "+", pub.String()[:42] + "_", // the last has bits beyond the key
		strings.Repeat("A", 1<<20),
	} {
		if _, err := ParsePublicKey(s); err == nil {
			t.Errorf("%.50q is a key", s)
		} else if len(err.Error()) > 300 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
}

func TestID(t *testing.T) {
	pub := GenerateKey().Public()
	id := NewID(pub)
	if id == NewID(pub) {
		t.Error("two sessions have one ID")
	}
	s := id.String()
	if got, err := ParseID(s, pub); err != nil || got != id {
		t.Errorf("%v became %v, %v", id, got, err)
	}
	if _, err := ParseID(s, GenerateKey().Public()); err == nil {
		t.Error("an ID for one server is one for another")
	}
	for i := range id {
		bad := id
		bad[i] ^= 1
		if _, err := ParseID(bad.String(), pub); err == nil {
			t.Errorf("byte %d altered: still an ID", i)
		}
	}
	for _, bad := range []string{"", s[1:], s + "A", s + "=", s[:31] + "+", s[:31] + "\n", "index.html"} {
		if _, err := ParseID(bad, pub); err == nil {
			t.Errorf("%q is an ID", bad)
		}
	}
	if n := testing.AllocsPerRun(100, func() { ParseID("a-page-that-has-thirty-two-bytes", pub) }); n > 4 {
		t.Errorf("looking at a stranger's path allocates %v times", n)
	}
}

func FuzzParseID(f *testing.F) {
	pub := GenerateKey().Public()
	f.Add(NewID(pub).String())
	f.Add("")
	f.Add("index.html")
	f.Add(strings.Repeat("A", 31) + "\n") // once a panic: the decoder skips line breaks
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseID(s, pub); err == nil && id.String() != s {
			t.Fatalf("%q was read as %v", s, id)
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add(GenerateKey().Public().String())
	f.Add("")
	f.Add(strings.Repeat("A", 43))
	f.Add(strings.Repeat("_", 43))
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParsePublicKey(s); err == nil && k.String() != s {
			t.Fatalf("%q was read as %v", s, k)
		}
	})
}
