package handshake

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"io"

	"filippo.io/edwards25519"
	"filippo.io/edwards25519/field"
	"github.com/flynn/noise"
	"gitlab.com/yawning/edwards25519-extra/elligator2"
)

// An ephemeral is a key pair for one message. On the wire stands no X25519 key,
// which whoever sees it tells from random bytes (its last bit is always 0, and every
// second number is the key of no point of the curve), but a representative, from
// which Elligator 2 makes the key: 254 bits that are as good as random, and two
// that are.
//
// They are that only if the key is of any of the curve's points, not just of the
// eighth of them that multiples of the base point are: hence the point of low order
// that is added. Each secret is shared by way of a private key that is a multiple
// of eight, so the addition makes no difference to it.
type ephemeral struct {
	key            noise.DHKey
	representative [EphemeralSize]byte
}

// lowOrder8 is a point of order 8 (RFC 7748 curve25519, as an Edwards point).
const lowOrder8 = "\xc7\x17\x6a\x70\x3d\x4d\xd8\x4f\xba\x3c\x0b\x76\x0d\x10\x67\x0f\x2a\x20\x53\xfa\x2c\x39\xcc\xc6\x4e\xc7\xfd\x77\x92\xac\x03\x7a"

// lowOrder are the eight points whose order divides 8, by their multiple of lowOrder8.
var lowOrder = func() (points [8]*edwards25519.Point) {
	step, err := new(edwards25519.Point).SetBytes([]byte(lowOrder8))
	if err != nil {
		panic(err) // it is a point
	}
	p := edwards25519.NewIdentityPoint()
	for i := range points {
		points[i] = new(edwards25519.Point).Set(p)
		p.Add(p, step)
	}
	return points
}()

// zeroSecret are the keys, with which every secret shared would be zero: of the points
// of low order of the curve, and that of its twist. flynn/noise refuses them, too, but
// too late to be used afterwards.
var zeroSecret = func() map[[EphemeralSize]byte]bool {
	minusOne := new(field.Element).Negate(new(field.Element).One())
	keys := map[[EphemeralSize]byte]bool{[EphemeralSize]byte(minusOne.Bytes()): true}
	for _, p := range lowOrder {
		keys[[EphemeralSize]byte(p.BytesMontgomery())] = true
	}
	return keys
}()

// curveA is the A of the curve, v² = u³ + Au² + u.
var curveA = new(field.Element).Mult32(new(field.Element).One(), 486662)

// newEphemeral makes a key pair. Every second key has no representative: it takes
// two tries on average.
func newEphemeral() *ephemeral {
	for {
		var random [EphemeralSize + 1]byte
		rand.Read(random[:]) // never fails (crypto/rand)
		if e := ephemeralOf([EphemeralSize]byte(random[:]), random[EphemeralSize]); e != nil {
			return e
		}
	}
}

// ephemeralOf is the key pair with a private key, or nil if its public half has no
// representative. The three bits of the private key that X25519 does not use choose
// the point of low order. Of tweak, the lowest bit chooses one of the two
// representatives, and the two highest ones are those that mean nothing.
func ephemeralOf(private [EphemeralSize]byte, tweak byte) *ephemeral {
	scalar, err := new(edwards25519.Scalar).SetBytesWithClamping(private[:])
	if err != nil {
		panic(err) // the length is right
	}
	point := new(edwards25519.Point).ScalarBaseMult(scalar)
	point.Add(point, lowOrder[private[0]&7])
	public := point.BytesMontgomery()
	r := representativeOf(public, tweak&1)
	if r == nil {
		return nil
	}
	e := &ephemeral{
		key:            noise.DHKey{Private: bytes.Clone(private[:]), Public: public},
		representative: [EphemeralSize]byte(r.Bytes()),
	}
	e.representative[EphemeralSize-1] |= tweak & 0xc0
	return e
}

// representativeOf is the representative of a public key, one of two, or nil if
// there is none: with u the key, the root of -u / 2(u+A) or, as which says, of
// -(u+A) / 2u, and of its two values the one up to (p-1)/2, which has 254 bits.
func representativeOf(public []byte, which byte) *field.Element {
	u, err := new(field.Element).SetBytes(public)
	if err != nil {
		panic(err) // the length is right
	}
	one := new(field.Element).One()
	sum := new(field.Element).Add(u, curveA)
	r := new(field.Element).Multiply(u, sum)
	r.Add(r, r)
	r.Negate(r) // -2u(u+A)
	if _, square := r.SqrtRatio(one, r); square != 1 {
		return nil
	}
	r.Multiply(r, new(field.Element).Select(sum, u, int(which)))
	twice := new(field.Element).Add(r, r)
	return r.Select(new(field.Element).Negate(r), r, twice.IsNegative())
}

// publicOf is the key that a representative stands for.
func publicOf(representative []byte) [EphemeralSize]byte {
	b := [EphemeralSize]byte(representative)
	b[EphemeralSize-1] &= 0x3f
	r, err := new(field.Element).SetBytes(b[:])
	if err != nil {
		panic(err) // the length is right
	}
	u, _ := elligator2.MontgomeryFlavor(r)
	return [EphemeralSize]byte(u.Bytes())
}

// hidden is X25519 whose ephemeral key has a representative. It is for one side of
// one handshake.
type hidden struct {
	noise.DHFunc
	own    *ephemeral // made when it is needed
	static *Static    // of the responder; nil: this is the initiator
}

// DH is the secret that two keys share. flynn/noise gives every private key by its
// bytes, of which crypto/ecdh computes the public key each time, which takes as long as
// the secret. Without that for the server's, and without a secret to see that a key is
// not of low order, what it does with a first message takes 0.25 ms of a processor in
// place of 0.51 (BenchmarkRespond).
func (h *hidden) DH(private, public []byte) ([]byte, error) {
	if h.static == nil || !bytes.Equal(private, h.static.pair.Private) {
		return h.DHFunc.DH(private, public)
	}
	peer, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	return h.static.private.ECDH(peer)
}

// GenerateKeypair returns the ephemeral key.
func (h *hidden) GenerateKeypair(io.Reader) (noise.DHKey, error) {
	if h.own == nil {
		h.own = newEphemeral()
	}
	return h.own.key, nil
}

// A party is one side of a handshake, whose messages begin with representatives.
type party struct {
	noise  *noise.HandshakeState
	hidden *hidden
}

// newParty returns the initiator's side, which knows the static key peer, or the
// responder's, whose peer is nil. The representative in message 1, first, is part
// of the prologue: one that stands for the same key and is another one makes
// another message, which does not open.
func newParty(h *hidden, id ID, first [EphemeralSize]byte, peer []byte) (party, error) {
	var static noise.DHKey
	if h.static != nil {
		static = h.static.pair
	}
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite:   noise.NewCipherSuite(h, noise.CipherChaChaPoly, noise.HashBLAKE2s),
		Pattern:       noise.HandshakeNK,
		Initiator:     peer != nil,
		Prologue:      append(append([]byte(prologue), id[:]...), first[:]...),
		StaticKeypair: static,
		PeerStatic:    peer,
	})
	if err != nil {
		return party{}, fmt.Errorf("handshake: %w", err)
	}
	return party{state, h}, nil
}

// write appends the next message, with payload sealed in it, to out.
func (p party) write(out, payload []byte) (msg []byte, one, two *noise.CipherState, err error) {
	msg, one, two, err = p.noise.WriteMessage(out, payload)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("handshake: %w", err)
	}
	copy(msg[len(out):], p.hidden.own.representative[:])
	return msg, one, two, nil
}

// read opens a message of at least EphemeralSize bytes. After ErrNotNoise it can
// read another one.
func (p party) read(msg []byte) (payload []byte, one, two *noise.CipherState, err error) {
	key := publicOf(msg[:EphemeralSize])
	if zeroSecret[key] {
		return nil, nil, nil, ErrNotNoise
	}
	payload, one, two, err = p.noise.ReadMessage(nil, append(key[:], msg[EphemeralSize:]...))
	if err != nil {
		return nil, nil, nil, ErrNotNoise
	}
	return payload, one, two, nil
}
