package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

var testKey = NewKey([32]byte{1, 2, 3}, ChaCha20Poly1305)

// unit seals a plaintext in a buffer of its own.
func unit(kind Kind, number uint64, plain []byte) []byte {
	b := append(make([]byte, HeaderSize, BufferSize), plain...)
	return testKey.Seal(b, kind, number)
}

func TestUnitRoundTrip(t *testing.T) {
	body := []byte{}
	type want struct {
		kind   Kind
		number uint64
		plain  []byte
	}
	var all []want
	for _, size := range []int{0, 1, 15, 16, 17, 1000, MaxPlaintext - 1, MaxPlaintext} {
		for _, number := range []uint64{0, 1, 1<<32 - 1, MaxNumber} {
			for _, kind := range []Kind{RecordKind, HeadKind} {
				plain := bytes.Repeat([]byte{byte(size)}, size)
				b := unit(kind, number, plain)
				if len(b) != size+Overhead {
					t.Fatalf("%d bytes of plaintext: a unit of %d", size, len(b))
				}
				body = append(body, b...)
				all = append(all, want{kind, number, plain})
			}
		}
	}
	for name, r := range map[string]io.Reader{
		"whole":        bytes.NewReader(body),
		"halves":       iotest.HalfReader(bytes.NewReader(body)),
		"single bytes": iotest.OneByteReader(bytes.NewReader(body)),
		"data and EOF": iotest.DataErrReader(bytes.NewReader(body)),
	} {
		buf := make([]byte, 0, BufferSize)
		for i, w := range all {
			u, err := testKey.Next(r, buf)
			if err != nil || u.Kind != w.kind || u.Number != w.number || !bytes.Equal(u.Payload, w.plain) {
				t.Fatalf("%s: unit %d: %d %d, %d bytes, %v", name, i, u.Kind, u.Number, len(u.Payload), err)
			}
		}
		if _, err := testKey.Next(r, buf); err != io.EOF {
			t.Errorf("%s: at the end: %v, want io.EOF", name, err)
		}
	}
}

func TestSealBounds(t *testing.T) {
	for name, seal := range map[string]func(){
		"no header room":   func() { testKey.Seal(make([]byte, HeaderSize-1), RecordKind, 0) },
		"too long":         func() { testKey.Seal(make([]byte, HeaderSize+MaxPlaintext+1), RecordKind, 0) },
		"number too large": func() { testKey.Seal(make([]byte, HeaderSize), RecordKind, MaxNumber+1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: sealed", name)
				}
			}()
			seal()
		}()
	}
	plain := append(make([]byte, HeaderSize), "small"...)
	if got := testKey.Seal(plain[:len(plain):len(plain)], RecordKind, 3); !bytes.Equal(got, unit(RecordKind, 3, []byte("small"))) {
		t.Error("a buffer without room gives other bytes")
	}
}

// Every byte of a unit is protected, and so are its kind and number.
func TestAltered(t *testing.T) {
	good := unit(RecordKind, 5, []byte("some datagrams"))
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			// What the header says may ask for more than there is.
			_, err := testKey.Next(bytes.NewReader(bad), make([]byte, BufferSize))
			if !errors.Is(err, ErrForged) && !errors.Is(err, ErrMalformed) && err != io.ErrUnexpectedEOF {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
		}
	}
	if _, err := NewKey([32]byte{9}, ChaCha20Poly1305).Next(bytes.NewReader(good), make([]byte, BufferSize)); err == nil {
		t.Error("opened with another key")
	}
}

func TestCutShort(t *testing.T) {
	good := unit(HeadKind, 0, make([]byte, 40))
	boom := errors.New("boom")
	for n := range len(good) {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if _, err := testKey.Next(bytes.NewReader(good[:n]), make([]byte, BufferSize)); err != want {
			t.Errorf("%d bytes: %v, want %v", n, err, want)
		}
		r := io.MultiReader(bytes.NewReader(good[:n]), iotest.ErrReader(boom))
		if _, err := testKey.Next(r, make([]byte, BufferSize)); err != boom {
			t.Errorf("%d bytes and an error: %v", n, err)
		}
	}
}

// To whoever lacks the key, bodies are noise: no byte of a unit stands out
// over many of them.
func TestNoise(t *testing.T) {
	const units = 4000
	var ones [HeaderSize + 16][8]int
	for i := range units {
		b := unit(Kind(i%2), uint64(i), nil)
		for j := range ones {
			for bit := range 8 {
				ones[j][bit] += int(b[j] >> bit & 1)
			}
		}
	}
	for j := range ones {
		for bit, n := range ones[j] {
			if n < units/2-units/10 || n > units/2+units/10 { // 12 standard deviations
				t.Errorf("bit %d of byte %d is set in %d of %d units", bit, j, n, units)
			}
		}
	}
}

func TestAllocations(t *testing.T) {
	buf := make([]byte, BufferSize)
	plain := bytes.Repeat([]byte{7}, MaxPlaintext)
	var sealed []byte
	if n := testing.AllocsPerRun(100, func() {
		b := append(buf[:HeaderSize], plain...)
		sealed = testKey.Seal(b, RecordKind, 9)
	}); n > 0 {
		t.Errorf("Seal allocates %v times", n)
	}
	body, opened := bytes.Clone(sealed), make([]byte, BufferSize)
	r := bytes.NewReader(nil)
	if n := testing.AllocsPerRun(100, func() {
		r.Reset(body)
		if _, err := testKey.Next(r, opened); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("Next allocates %v times", n)
	}
}

func TestDatagrams(t *testing.T) {
	for _, c := range []struct {
		name  string
		plain []byte
		want  int // datagrams
		err   error
	}{
		{"nothing", nil, 0, io.EOF},
		{"padding", []byte{0, 0, 1, 2, 3}, 0, io.EOF},
		{"one byte", []byte{0}, 0, ErrMalformed},
		{"too long", []byte{0, 3, 1, 2}, 0, ErrMalformed},
		{"one and padding", []byte{0, 1, 9, 0, 0}, 1, io.EOF},
		{"one and half a length", []byte{0, 1, 9, 0}, 1, ErrMalformed},
		{"largest", AppendDatagram(nil, make([]byte, RecordRoom)), 1, io.EOF},
	} {
		n, rest := 0, c.plain
		var err error
		for {
			var next []byte
			if _, next, err = CutDatagram(rest); err != nil {
				break
			}
			rest = next
			n++
		}
		if n != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %d datagrams, %v", c.name, n, err)
		}
	}
	if n := HeaderSize + len(AppendDatagram(nil, make([]byte, RecordRoom))); n != HeaderSize+MaxPlaintext {
		t.Errorf("the largest datagram makes a plaintext of %d bytes", n-HeaderSize)
	}
}

// FuzzNext: bodies that are not ours end in an error, whatever they are; what
// does open is what Seal makes of it.
func FuzzNext(f *testing.F) {
	good := append(unit(HeadKind, 1, make([]byte, 30)), unit(RecordKind, 2, []byte("\x00\x01a"))...)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte("<html>"), 100))
	f.Add(unit(RecordKind, MaxNumber, make([]byte, MaxPlaintext)))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := bytes.NewReader(body)
		buf := make([]byte, BufferSize)
		for {
			before := len(body) - r.Len()
			u, err := testKey.Next(r, buf)
			if err != nil {
				if err == io.EOF && r.Len() > 0 || err != io.EOF && err != io.ErrUnexpectedEOF &&
					!errors.Is(err, ErrForged) && !errors.Is(err, ErrMalformed) {
					t.Fatalf("%v with %d bytes left", err, r.Len())
				}
				return
			}
			if again := unit(u.Kind, u.Number, u.Payload); !bytes.Equal(again, body[before:len(body)-r.Len()]) {
				t.Fatalf("%x opened and sealed again is %x", body[before:len(body)-r.Len()], again)
			}
		}
	})
}

// FuzzNextPlain seals what the fuzzer makes, so that it gets behind the seal.
func FuzzNextPlain(f *testing.F) {
	f.Add([]byte("plain"), uint64(3), true)
	f.Add([]byte{}, uint64(MaxNumber), false)
	f.Fuzz(func(t *testing.T, plain []byte, number uint64, head bool) {
		plain, number = plain[:min(len(plain), MaxPlaintext)], number&MaxNumber
		kind := RecordKind
		if head {
			kind = HeadKind
		}
		u, err := testKey.Next(bytes.NewReader(unit(kind, number, plain)), make([]byte, BufferSize))
		if err != nil || u.Kind != kind || u.Number != number || !bytes.Equal(u.Payload, plain) {
			t.Fatalf("%d %d %x, %v", u.Kind, u.Number, u.Payload, err)
		}
	})
}

// FuzzDatagrams: what is cut off and put together again is the same plaintext,
// up to the padding.
func FuzzDatagrams(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 1, 9, 0, 2, 8, 7})
	f.Add([]byte{0, 1, 9, 0, 0, 5})
	f.Add([]byte{0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, plain []byte) {
		var again []byte
		rest := plain
		for {
			p, next, err := CutDatagram(rest)
			if err != nil {
				if err != io.EOF && !errors.Is(err, ErrMalformed) {
					t.Fatal(err)
				}
				break
			}
			if len(p) == 0 {
				t.Fatal("an empty datagram")
			}
			again, rest = AppendDatagram(again, p), next
		}
		if !bytes.Equal(again, plain[:len(plain)-len(rest)]) {
			t.Fatalf("%x became %x", plain, again)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for name, by := range map[string]Cipher{"ChaCha20Poly1305": ChaCha20Poly1305, "AES256GCM": AES256GCM} {
		b.Run(name, func(b *testing.B) {
			key, buf := NewKey([32]byte{1}, by), make([]byte, BufferSize)
			b.SetBytes(MaxUnit)
			b.ReportAllocs()
			for i := range b.N {
				key.Seal(buf[:HeaderSize+MaxPlaintext], RecordKind, uint64(i))
			}
		})
	}
}

func BenchmarkNext(b *testing.B) {
	plain := make([]byte, MaxPlaintext)
	for i := range plain {
		plain[i] = byte(rand.Int())
	}
	body, buf, r := unit(RecordKind, 1, plain), make([]byte, BufferSize), bytes.NewReader(nil)
	b.SetBytes(MaxUnit)
	b.ReportAllocs()
	for range b.N {
		r.Reset(body)
		if _, err := testKey.Next(r, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzParts: what is cut off and put together again is the same plaintext, up to the
// padding, and a plaintext without parts is cut as CutDatagram does.
func FuzzParts(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 1, 9, 0, 2, 8, 7})
	f.Add([]byte{0x80, 1, 9})
	f.Add([]byte{0x40, 1, 9, 0, 2, 8, 7})
	f.Add([]byte{0xc0, 2, 9, 9, 0, 0, 5})
	f.Add([]byte{0x40, 0, 0})
	f.Add([]byte{0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, plain []byte) {
		var again []byte
		rest := plain
		for {
			p, next, err := CutPart(rest)
			whole, after, errWhole := CutDatagram(rest)
			if part := p.Continues || p.GoesOn; !part && err == nil && (errWhole != nil || !bytes.Equal(whole, p.Bytes) || !bytes.Equal(after, next)) {
				t.Fatalf("%x: a part %x, but a datagram %x, %v", rest, p.Bytes, whole, errWhole)
			} else if part && errWhole == nil {
				t.Fatalf("%x: a part is taken for a datagram", rest)
			}
			if err != nil {
				if err != io.EOF && !errors.Is(err, ErrMalformed) {
					t.Fatal(err)
				}
				break
			}
			if len(p.Bytes) == 0 {
				t.Fatal("an empty part")
			}
			again, rest = AppendPart(again, p), next
		}
		if !bytes.Equal(again, plain[:len(plain)-len(rest)]) {
			t.Fatalf("%x became %x", plain, again)
		}
	})
}
