package handshake

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"maps"
	"math"
	"testing"

	"filippo.io/edwards25519"
	"filippo.io/edwards25519/field"
	"gitlab.com/yawning/edwards25519-extra/elligator2"
)

// What a representative stands for is the key that it was made of.
func TestEphemeral(t *testing.T) {
	tries := 0
	for private := [EphemeralSize]byte{}; private[1] < 100; private[1]++ {
		for low := range byte(8) {
			private[0] = low
			tries++
			for _, tweak := range []byte{0, 1, 0x40, 0x81, 0xff} {
				e := ephemeralOf(private, tweak)
				if e == nil {
					continue
				}
				if got := publicOf(e.representative[:]); !bytes.Equal(got[:], e.key.Public) {
					t.Fatalf("%x, %x: the representative is of %x, not of %x", private, tweak, got, e.key.Public)
				}
				if e.representative[EphemeralSize-1]&0xc0 != tweak&0xc0 {
					t.Errorf("tweak %x: the highest bits are %x", tweak, e.representative[EphemeralSize-1])
				}
			}
		}
	}
	if len(lowOrder) != 8 || lowOrder[1].Equal(lowOrder[5]) == 1 || lowOrder[0].Equal(edwards25519.NewIdentityPoint()) != 1 {
		t.Error("the points of low order are not eight")
	}
}

// With these keys, and no others, no secret can be shared.
func TestZeroSecret(t *testing.T) {
	if len(zeroSecret) != 5 {
		t.Errorf("%d keys", len(zeroSecret))
	}
	for range 20 {
		zeroSecret := maps.Clone(zeroSecret)
		zeroSecret[[EphemeralSize]byte(newEphemeral().key.Public)] = false
		for key, zero := range zeroSecret {
			peer, err := ecdh.X25519().NewPublicKey(key[:])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := testServer.ecdh().ECDH(peer); (err != nil) != zero {
				t.Errorf("%x: %v", key, err)
			}
		}
	}
}

// A message that was altered in what it begins with does not open, though the key
// stands in it as before: nobody makes two messages of one.
func TestOtherRepresentatives(t *testing.T) {
	id := NewID(testServer.Public(), testDay)
	msg, _ := initiate(t, id, testHello, 300)
	key := publicOf(msg[:EphemeralSize])
	opened := 0
	for which := range byte(2) {
		r := representativeOf(key[:], which).Bytes()
		for high := range byte(4) {
			same := append(bytes.Clone(r), msg[EphemeralSize:]...)
			same[EphemeralSize-1] |= high << 6
			if publicOf(same[:EphemeralSize]) != key {
				t.Fatal("not a representative of the same key")
			}
			switch _, _, err := testServer.Static().Respond(id, same); {
			case err == nil && bytes.Equal(same, msg):
				opened++
			case !errors.Is(err, ErrNotNoise):
				t.Errorf("representative %d, highest bits %d: %v", which, high, err)
			}
		}
	}
	if opened != 1 {
		t.Errorf("the message itself opened %d times", opened)
	}
}

// expectUniform fails the test if bits, of which there are n of each, are not as
// random ones: six deviations come once in 500 million.
func expectUniform(t *testing.T, what string, n int, ones []int) {
	t.Helper()
	for bit, count := range ones {
		if z := (float64(count) - float64(n)/2) / math.Sqrt(float64(n)/4); math.Abs(z) > 6 {
			t.Errorf("%s: bit %d is set %d times in %d", what, bit, count, n)
		}
	}
}

func countBits(ones []int, b []byte) {
	for i := range ones {
		ones[i] += int(b[i/8] >> (i % 8) & 1)
	}
}

// Nothing at the beginning of either message differs from random bytes.
func TestFirstBytesAreUniform(t *testing.T) {
	const n = 1500
	first, second := make([]int, 34*8), make([]int, 34*8)
	id := NewID(testServer.Public(), testDay)
	for range n {
		msg, _ := initiate(t, id, testHello, 300)
		msg2, _ := respond(t, id, msg, Answer{Version: Version}, 7)
		countBits(first, msg)
		countBits(second, msg2)
	}
	expectUniform(t, "message 1", n, first)
	expectUniform(t, "message 2", n, second)
}

// What somebody who knows the curve can compute of a representative is as for one
// that was drawn: the part of low order, the sign, and the bytes' distribution.
func TestRepresentativesAreUniform(t *testing.T) {
	const n = 4096
	order := make(map[int]int)
	signs := 0
	var values [EphemeralSize][256]int
	for range n {
		e := newEphemeral()
		for i, b := range e.representative {
			values[i][b]++
		}
		r := bytes.Clone(e.representative[:])
		r[EphemeralSize-1] &= 0x3f
		x, err := new(field.Element).SetBytes(r)
		if err != nil {
			t.Fatal(err)
		}
		_, v := elligator2.MontgomeryFlavor(x)
		signs += v.IsNegative()
		order[lowOrderOf(elligator2.EdwardsFlavor(x))]++
	}
	expectUniform(t, "the sign", n, []int{signs})
	for of, share := range map[int]float64{1: 1. / 8, 2: 1. / 8, 4: 1. / 4, 8: 1. / 2} {
		if z := (float64(order[of]) - n*share) / math.Sqrt(n*share*(1-share)); math.Abs(z) > 6 {
			t.Errorf("%d of %d have a part of order %d", order[of], n, of)
		}
	}
	for i := range values {
		chi := 0.
		for _, count := range values[i] {
			d := float64(count) - n/256
			chi += d * d / (n / 256)
		}
		if chi > 255+8*math.Sqrt(2*255) {
			t.Errorf("byte %d: chi square is %.0f, 255 expected", i, chi)
		}
	}
}

// lowOrderOf is the order of what is left of a point when the part whose order is
// the large prime is gone.
func lowOrderOf(p *edwards25519.Point) int {
	// The prime minus 1 fits into a Scalar, the prime does not.
	minusOne := edwards25519.NewScalar().Subtract(edwards25519.NewScalar(), one())
	rest := new(edwards25519.Point).ScalarMult(minusOne, p)
	rest.Add(rest, p)
	for order := 1; ; order *= 2 {
		if rest.Equal(edwards25519.NewIdentityPoint()) == 1 {
			return order
		}
		rest.Add(rest, rest)
	}
}

func one() *edwards25519.Scalar {
	s, err := edwards25519.NewScalar().SetCanonicalBytes(append([]byte{1}, make([]byte, 31)...))
	if err != nil {
		panic(err)
	}
	return s
}

// FuzzPublicOf: every 32 bytes stand for a key, and those of which some do are
// those of which representativeOf finds one.
func FuzzPublicOf(f *testing.F) {
	f.Add(make([]byte, EphemeralSize))
	f.Add(bytes.Repeat([]byte{0xff}, EphemeralSize))
	f.Add(newEphemeral().representative[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != EphemeralSize {
			return
		}
		key := publicOf(b)
		for which := range byte(2) {
			r := representativeOf(key[:], which)
			if r == nil {
				if key != [EphemeralSize]byte{} {
					t.Fatalf("%x stands for %x, which has no representative", b, key)
				}
				continue
			}
			if again := publicOf(r.Bytes()); again != key {
				t.Fatalf("%x stands for %x, its representative %x for %x", b, key, r.Bytes(), again)
			}
		}
	})
}

func BenchmarkEphemeral(b *testing.B) {
	for b.Loop() {
		newEphemeral()
	}
}

// BenchmarkRespond is what a server does with a first message that it admits.
func BenchmarkRespond(b *testing.B) {
	id := NewID(testServer.Public(), testDay)
	msg, _ := initiate(b, id, testHello, 2000)
	static := testServer.Static()
	for b.Loop() {
		r, _, err := static.Respond(id, msg)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := r.Answer(Answer{Version: Version}, 7); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHandshake is both messages on both sides.
func BenchmarkHandshake(b *testing.B) {
	id := NewID(testServer.Public(), testDay)
	for b.Loop() {
		msg, i := initiate(b, id, testHello, 2000)
		msg2, _ := respond(b, id, msg, Answer{Version: Version}, 7)
		if _, _, err := i.Finish(bytes.NewReader(msg2)); err != nil {
			b.Fatal(err)
		}
	}
}
