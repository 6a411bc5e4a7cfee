package handshake

import (
	"fmt"
	"strings"
	"testing"
	"time"
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
	pub, now := GenerateKey().Public(), time.Now()
	id := NewID(pub, DayOf(now))
	if id == NewID(pub, DayOf(now)) {
		t.Error("two sessions have one ID")
	}
	s := id.String()
	if got, err := ParseID(s); err != nil || got != id || !got.IsFor(pub, now) {
		t.Errorf("%v became %v, %v", id, got, err)
	}
	if id.IsFor(GenerateKey().Public(), now) {
		t.Error("an ID for one server is one for another")
	}
	for i := range id {
		bad := id
		bad[i] ^= 1
		if bad.IsFor(pub, now) {
			t.Errorf("byte %d altered: still the server's", i)
		}
	}
	for _, bad := range []string{
		"", s[1:], s[:31] + "+", s[:31] + "\n", "index.html",
		s + "=", s + "+", s + "\n", s + "A/", s + "\xff", s + strings.Repeat("A", 33), strings.Repeat("A", 1<<20),
	} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q is an ID", bad)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		id, _ := ParseID("a-page-that-has-thirty-two-bytes")
		id.IsFor(pub, now)
	}); n > 8 {
		t.Errorf("looking at a stranger's path allocates %v times", n)
	}
}

// A tag is good on its day, the day before and the day after: clocks differ, and
// days begin.
func TestTagsAge(t *testing.T) {
	pub := GenerateKey().Public()
	noon := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	id := NewID(pub, DayOf(noon))
	for _, c := range []struct {
		at time.Time
		ok bool
	}{
		{noon, true},
		{noon.Add(36*time.Hour - time.Second), true},
		{noon.Add(36 * time.Hour), false},
		{noon.Add(-36 * time.Hour), true},
		{noon.Add(-36*time.Hour - time.Second), false},
		{noon.AddDate(1, 0, 0), false},
		{time.Unix(0, 0), false},
		{time.Unix(-1, 0), false},
	} {
		if id.IsFor(pub, c.at) != c.ok {
			t.Errorf("at %v: %v", c.at, !c.ok)
		}
	}
	// A server whose clock begins in 1970 has a yesterday, too.
	for _, at := range []time.Time{time.Unix(0, 0), time.Unix(-90_000, 0), time.Unix(1<<40, 0)} {
		if !NewID(pub, DayOf(at)).IsFor(pub, at) {
			t.Errorf("at %v the day's own tag is refused", at)
		}
	}
}

// Paths of many sessions have many lengths, and each names its session.
func TestSegment(t *testing.T) {
	pub := GenerateKey().Public()
	lengths, tails := make(map[int]int), make(map[string]bool)
	for range 3300 {
		id := NewID(pub, 1)
		s := id.Segment()
		if got, err := ParseID(s); err != nil || got != id {
			t.Fatalf("%q became %v, %v", s, got, err)
		}
		lengths[len(s)]++
		tails[s[32:]] = true
	}
	// 100 of each are expected, with a deviation of 10.
	for n := 32; n <= 64; n++ {
		if lengths[n] < 40 {
			t.Errorf("%d of 3300 have %d characters", lengths[n], n)
		}
	}
	if len(tails) < 3000 { // one in 33 is empty, and some are very short
		t.Errorf("3300 sessions have %d tails", len(tails))
	}
	full := NewID(pub, 1).String() + strings.Repeat("Az09-_xy", 4)
	if _, err := ParseID(full); err != nil {
		t.Errorf("%q: %v", full, err)
	}
}

func BenchmarkIsFor(b *testing.B) {
	pub, now := GenerateKey().Public(), time.Now()
	id := NewID(GenerateKey().Public(), DayOf(now))
	b.ReportAllocs()
	for b.Loop() {
		id.IsFor(pub, now)
	}
}

func FuzzParseID(f *testing.F) {
	pub := GenerateKey().Public()
	f.Add(NewID(pub, 20000).String())
	f.Add(NewID(pub, 20000).Segment())
	f.Add("")
	f.Add("index.html")
	f.Add(strings.Repeat("A", 31) + "\n") // once a panic: the decoder skips line breaks
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if again, err := ParseID(id.String()); !strings.HasPrefix(s, id.String()) || len(s) > 64 || again != id || err != nil {
			t.Fatalf("%q was read as %v, which is read as %v, %v", s, id, again, err)
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
