package wire

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

func sameSet(a, b *Set) bool { return a.Low == b.Low && slices.Equal(a.Spans, b.Spans) }

// valid tells whether s has the form that the format can express.
func (s *Set) valid() bool {
	at := s.Low
	for _, p := range s.Spans {
		if p.First <= at || p.End <= p.First {
			return false
		}
		at = p.End
	}
	return len(s.Spans) <= MaxSpans
}

// checkAgainst compares s with a map of what was added to it. Nothing but a
// set that would have grown too large may hold more.
func checkAgainst(t *testing.T, s *Set, model map[uint64]bool, domain uint64, overflowed bool) {
	t.Helper()
	if !s.valid() {
		t.Fatalf("not well formed: %+v", *s)
	}
	var end uint64
	for n := range domain {
		if model[n] {
			end = n + 1
		}
		if has := s.Has(n); has != model[n] && !(has && overflowed) {
			t.Fatalf("Has(%d) is %v, added: %v; %+v", n, has, model[n], *s)
		}
	}
	if s.End() != end {
		t.Fatalf("End is %d, want %d; %+v", s.End(), end, *s)
	}
}

func TestSet(t *testing.T) {
	orders := map[string]func(n int) []int{
		"up":     func(n int) []int { return seq(n, 1) },
		"down":   func(n int) []int { s := seq(n, 1); slices.Reverse(s); return s },
		"even":   func(n int) []int { return append(seq(n/2, 2), seq(n, 1)...) },
		"random": func(n int) []int { return rand.New(rand.NewPCG(1, 2)).Perm(n) },
	}
	for name, order := range orders {
		t.Run(name, func(t *testing.T) {
			const domain = 2 * MaxSpans // at most MaxSpans spans fit
			var s Set
			model := make(map[uint64]bool)
			for _, n := range order(domain) {
				if missing := s.Add(uint64(n)); missing == model[uint64(n)] {
					t.Fatalf("Add(%d) says %v", n, missing)
				}
				model[uint64(n)] = true
				checkAgainst(t, &s, model, domain, false)
			}
			if s.Low != domain || len(s.Spans) != 0 {
				t.Errorf("%+v, want everything below %d", s, domain)
			}
		})
	}
}

func seq(n, step int) (s []int) {
	for i := range n {
		s = append(s, i*step)
	}
	return s
}

// A peer that leaves out every other number makes the set forget gaps, not grow.
func TestSetStaysSmall(t *testing.T) {
	var s Set
	for n := uint64(1); n < 8*MaxSpans; n += 2 {
		if !s.Add(n) {
			t.Fatalf("Add(%d) says that it is there", n)
		}
		if !s.valid() {
			t.Fatalf("%d spans", len(s.Spans))
		}
	}
	if s.Low == 0 || s.End() != 8*MaxSpans {
		t.Errorf("below %d, %d spans, end %d", s.Low, len(s.Spans), s.End())
	}
}

func TestSetFill(t *testing.T) {
	s := Set{2, []Span{{4, 6}, {9, 10}}}
	for _, want := range []Set{{6, []Span{{9, 10}}}, {10, nil}, {10, nil}} {
		if s.Fill(); !sameSet(&s, &want) {
			t.Fatalf("%+v, want %+v", s, want)
		}
	}
}

func TestSetParse(t *testing.T) {
	for _, c := range []struct {
		name  string
		plain []byte
		want  Set
		ok    bool
	}{
		{"empty", headBytes(0, 0), Set{}, true},
		{"full", headBytes(MaxNumber+1, 0), Set{Low: MaxNumber + 1}, true},
		{"last number", headBytes(MaxNumber-1, 1, 1, 0), Set{MaxNumber - 1, []Span{{MaxNumber, MaxNumber + 1}}}, true},
		{"beyond the last number", headBytes(MaxNumber-1, 1, 1, 1), Set{}, false},
		{"wide gap", headBytes(MaxNumber, 1, MaxNumber, MaxNumber), Set{}, false},
		{"no gap", headBytes(5, 1, 0, 0), Set{}, false},
		{"too many spans", headBytes(5, MaxSpans+1), Set{}, false},
		{"fewer spans than told", headBytes(5, 2, 1, 1), Set{}, false},
		{"nothing", nil, Set{}, false},
	} {
		var s Set
		_, err := s.parse(c.plain)
		if (err == nil) != c.ok || c.ok && !sameSet(&s, &c.want) || !c.ok && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", c.name, s, err)
		}
	}
}

// FuzzSetParse: what is read is well formed, and written it is read again.
func FuzzSetParse(f *testing.F) {
	f.Add(headBytes(0, 0))
	f.Add(headBytes(10, 2, 1, 0, 3, 5))
	f.Add(headBytes(MaxNumber, 1, MaxNumber+1, MaxNumber))
	f.Add(headBytes(5, MaxSpans+1))
	f.Fuzz(func(t *testing.T, plain []byte) {
		var s, again Set
		rest, err := s.parse(plain)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if !s.valid() {
			t.Fatalf("%x was read as %+v", plain, s)
		}
		b := s.append(nil)
		if len(b) > len(plain)-len(rest) {
			t.Fatalf("%d bytes for what stood in %d", len(b), len(plain)-len(rest))
		}
		if left, err := again.parse(b); err != nil || len(left) != 0 || !sameSet(&s, &again) || !bytes.Equal(again.append(nil), b) {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	})
}

// FuzzSetAdd compares a set with a map. Each byte adds the number that is so
// much more or less than the one before.
func FuzzSetAdd(f *testing.F) {
	f.Add([]byte{1, 1, 1, 1})
	f.Add([]byte{2, 2, 2, 0xfd, 0xff, 1})
	f.Add(bytes.Repeat([]byte{2}, 2*MaxSpans))
	f.Fuzz(func(t *testing.T, steps []byte) {
		const domain = 4 * MaxSpans
		var s Set
		model := make(map[uint64]bool)
		at, overflowed := 0, false
		for i, b := range steps[:min(len(steps), 2*domain)] {
			at = ((at+int(int8(b)))%domain + domain) % domain
			n := uint64(at)
			had := s.Has(n)
			full := len(s.Spans) == MaxSpans
			if s.Add(n) == had {
				t.Fatalf("Add(%d) says %v, Has said so too", n, had)
			}
			model[n] = true
			overflowed = overflowed || full && !had
			if !s.Has(n) || !s.valid() {
				t.Fatalf("after Add(%d): %+v", n, s)
			}
			if i%64 == 0 {
				checkAgainst(t, &s, model, domain, overflowed)
			}
		}
		checkAgainst(t, &s, model, domain, overflowed)
	})
}

func TestSetFillBelow(t *testing.T) {
	for _, c := range []struct {
		n    uint64
		want Set
	}{
		{3, Set{4, []Span{{6, 8}, {9, 12}}}},
		{5, Set{5, []Span{{6, 8}, {9, 12}}}},
		{6, Set{8, []Span{{9, 12}}}},
		{7, Set{8, []Span{{9, 12}}}},
		{8, Set{8, []Span{{9, 12}}}},
		{9, Set{12, nil}},
		{20, Set{20, nil}},
	} {
		s := Set{4, []Span{{6, 8}, {9, 12}}}
		if s.FillBelow(c.n); !sameSet(&s, &c.want) {
			t.Errorf("below %d: %v, want %v", c.n, s, c.want)
		}
	}
}
