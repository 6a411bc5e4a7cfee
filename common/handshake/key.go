package handshake

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"

	"golang.org/x/crypto/blake2s"
)

// PublicKey is the X25519 key that a bridge line gives as key=.
type PublicKey [32]byte

// PrivateKey is a server's X25519 key. Formatting it shows nothing of it.
type PrivateKey [32]byte

// WellKnown is the key of a session without key=. Everybody has it: it
// authenticates nobody and hides nothing. It is BLAKE2s-256 of the ASCII text
// "turbotunnel without a key".
var WellKnown = PrivateKey(blake2s.Sum256([]byte("turbotunnel without a key")))

// GenerateKey returns a new private key.
func GenerateKey() PrivateKey {
	var k PrivateKey
	rand.Read(k[:]) // never fails (crypto/rand)
	return k
}

// Public returns the public half of k.
func (k PrivateKey) Public() PublicKey {
	p, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		panic(err) // the length is right, and every 32 bytes are an X25519 key
	}
	return PublicKey(p.PublicKey().Bytes())
}

// String hides the key, and GoString does.
func (k PrivateKey) String() string { return "(private key)" }

// GoString hides the key.
func (k PrivateKey) GoString() string { return "(private key)" }

// String is the key in base64url without padding, 43 characters.
func (k PublicKey) String() string { return base64.RawURLEncoding.EncodeToString(k[:]) }

// ParsePublicKey reads what String wrote.
func ParsePublicKey(s string) (PublicKey, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	// The decoder skips line breaks: both lengths have to be right.
	if err != nil || len(b) != len(PublicKey{}) || len(s) != base64.RawURLEncoding.EncodedLen(len(b)) {
		// The text is not repeated: it may be a private key in the wrong place.
		return PublicKey{}, fmt.Errorf("not a public key: 43 characters of base64url without padding, not %d like this one", len(s))
	}
	return PublicKey(b), nil
}

const (
	idRandom = 16 // bytes of an ID that are random
	idTag    = 8  // bytes that say for which server it is
)

// ID names a session. It is 16 random bytes chosen by the client and the first
// 8 bytes of their BLAKE2s-256 keyed with the server's public key, so that a
// server knows from the head of a request whether a client sent it.
type ID [idRandom + idTag]byte

// NewID returns a new ID for the server with key pub.
func NewID(pub PublicKey) ID {
	var id ID
	rand.Read(id[:idRandom])
	tag := idTagOf(id, pub)
	copy(id[idRandom:], tag[:])
	return id
}

func idTagOf(id ID, pub PublicKey) [idTag]byte {
	h, err := blake2s.New256(pub[:])
	if err != nil {
		panic(err) // the length of the key is right
	}
	h.Write(id[:idRandom])
	return [idTag]byte(h.Sum(nil))
}

// idText is the number of characters of an ID, and maxTail how many may follow
// it in a path. A path of one length would be a mark.
const (
	idText  = (idRandom + idTag) * 4 / 3
	maxTail = 32
)

// String is the ID in base64url, 32 characters.
func (id ID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// Segment is the ID as the last segment of a path: its text and, for ParseID
// to skip, 0 to 32 random characters of the same alphabet, others each time.
func (id ID) Segment() string {
	n := mathrand.IntN(maxTail + 1)
	tail := make([]byte, maxTail)
	rand.Read(tail) // never fails (crypto/rand)
	return id.String() + base64.RawURLEncoding.EncodeToString(tail)[:n]
}

var errNotID = errors.New("handshake: not the ID of a session with this server")

// ParseID reads what String or Segment wrote. It returns an error if s is not
// the ID of a session with the server whose key is pub.
func ParseID(s string, pub PublicKey) (ID, error) {
	var id ID
	if len(s) < idText || len(s) > idText+maxTail || strings.ContainsFunc(s[idText:], notBase64URL) {
		return ID{}, errNotID
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s[:idText])
	if err != nil || len(b) != len(id) { // the decoder skips line breaks
		return ID{}, errNotID
	}
	id = ID(b)
	tag := idTagOf(id, pub)
	if subtle.ConstantTimeCompare(id[idRandom:], tag[:]) != 1 {
		return ID{}, errNotID
	}
	return id, nil
}

func notBase64URL(r rune) bool {
	switch {
	case 'A' <= r && r <= 'Z', 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '-', r == '_':
		return false
	}
	return true
}
