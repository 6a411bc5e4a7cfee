package handshake

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	mathrand "math/rand/v2"
	"strings"
	"time"

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
func (k PrivateKey) Public() PublicKey { return PublicKey(k.ecdh().PublicKey().Bytes()) }

func (k PrivateKey) ecdh() *ecdh.PrivateKey {
	p, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		panic(err) // the length is right, and every 32 bytes are an X25519 key
	}
	return p
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
	idTag    = 8  // bytes that say for which server it is, and on which day
)

// ID names a session. It is 16 random bytes chosen by the client and a tag: the
// first 8 bytes of the BLAKE2s-256 of those and of the number of the day (32 bits,
// big endian), keyed with the server's public key. So a server knows from the head
// of a request whether a client sent it, and a path that somebody finds in a log
// later says nothing any more.
type ID [idRandom + idTag]byte

// A Day is a number of whole days since 1970-01-01 UTC.
type Day uint32

// DayOf is the day on which t is.
func DayOf(t time.Time) Day { return Day(t.Unix() / (24 * 60 * 60)) }

// NewID returns a new ID for the server with key pub, with the tag of a day.
func NewID(pub PublicKey, day Day) ID {
	var id ID
	rand.Read(id[:idRandom])
	tag := newTagger(pub).tag(&id, day)
	copy(id[idRandom:], tag[:])
	return id
}

// A tagger makes the tags of one server.
type tagger struct{ hash.Hash }

func newTagger(pub PublicKey) tagger {
	h, err := blake2s.New256(pub[:])
	if err != nil {
		panic(err) // the length of the key is right
	}
	return tagger{h}
}

func (h tagger) tag(id *ID, day Day) [idTag]byte {
	h.Reset()
	b := binary.BigEndian.AppendUint32(append(make([]byte, 0, blake2s.Size), id[:idRandom]...), uint32(day))
	h.Write(b)
	return [idTag]byte(h.Sum(b[:0]))
}

// IsFor tells whether id has the tag of the server with key pub and of one of the
// days: the one on which t is, the one before and the one after it. It takes the
// same time whatever the answer is.
func (id ID) IsFor(pub PublicKey, t time.Time) bool { return id.isFor(pub, DayOf(t)) }

func (id ID) isFor(pub PublicKey, today Day) bool {
	h, found := newTagger(pub), 0
	for _, day := range [...]Day{today - 1, today, today + 1} {
		tag := h.tag(&id, day)
		found |= subtle.ConstantTimeCompare(id[idRandom:], tag[:])
	}
	return found == 1
}

// lastDay is the last in 2069. No tag is looked for that is of a later one.
const lastDay Day = 100*365 + 24

// restEvery and dayRest are how many days are looked at at once, and how long the
// processor is left to others then. Where there is only one, an answer would be ten
// milliseconds late else, which shows whoever sends a path that looks like ours what
// is made of it.
const (
	restEvery = 128 // some 40 µs
	dayRest   = time.Millisecond
)

// day returns the day of the tag, if it is one of the server with key pub and ctx does
// not end before that is known. It takes some ten milliseconds of a processor, and half
// a second.
func (id ID) day(ctx context.Context, pub PublicKey) (day Day, ok bool) {
	h := newTagger(pub)
	for day = range lastDay + 1 {
		if day%restEvery == restEvery-1 {
			time.Sleep(dayRest)
			if ctx.Err() != nil {
				return 0, false
			}
		}
		if h.tag(&id, day) == [idTag]byte(id[idRandom:]) {
			return day, true
		}
	}
	return 0, false
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

var errNotID = errors.New("handshake: not the ID of a session")

// ParseID reads what String or Segment wrote. It returns an error if s is not of
// their form. Whether the tag is right IsFor tells.
func ParseID(s string) (ID, error) {
	if len(s) < idText || len(s) > idText+maxTail || strings.ContainsFunc(s[idText:], notBase64URL) {
		return ID{}, errNotID
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s[:idText])
	if err != nil || len(b) != len(ID{}) { // the decoder skips line breaks
		return ID{}, errNotID
	}
	return ID(b), nil
}

func notBase64URL(r rune) bool {
	switch {
	case 'A' <= r && r <= 'Z', 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '-', r == '_':
		return false
	}
	return true
}
