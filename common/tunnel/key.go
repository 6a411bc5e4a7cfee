package tunnel

import (
	"encoding/base64"
	"errors"
	"strings"

	"turbotunnel/common/handshake"
)

// Key is a server's key pair. Printing it shows the public half only. It does
// not change and is safe for concurrent use.
type Key struct{ private handshake.PrivateKey }

const keyPrefix = "turbotunnel-private-key-1 "

// NewKey makes a key.
func NewKey() *Key { return &Key{handshake.GenerateKey()} }

// ParseKey reads what Marshal wrote: the content of a turbo_key file. Space around
// the two words, line breaks of any system and a byte order mark included, is
// what editors and tools for secrets leave, and makes no key a bad one.
func ParseKey(text []byte) (*Key, error) {
	words := strings.Fields(strings.TrimPrefix(string(text), "\ufeff"))
	if len(words) == 0 || words[0] != strings.TrimSpace(keyPrefix) {
		return nil, errors.New("not a turbotunnel private key")
	}
	if len(words) != 2 {
		return nil, errors.New("a turbotunnel private key that is damaged")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(words[1])
	if err != nil || len(b) != len(handshake.PrivateKey{}) {
		return nil, errors.New("a turbotunnel private key that is damaged")
	}
	return &Key{handshake.PrivateKey(b)}, nil
}

// Marshal is the content of a turbo_key file: a line of a prefix that names
// the format and the 32 bytes of the key in base64url. It is secret.
func (k *Key) Marshal() []byte {
	return []byte(keyPrefix + base64.RawURLEncoding.EncodeToString(k.private[:]) + "\n")
}

// Public is the public half as a bridge line's key= gives it.
func (k *Key) Public() string { return k.private.Public().String() }

// String is the public half.
func (k *Key) String() string { return k.Public() }

// GoString is the public half.
func (k *Key) GoString() string { return k.Public() }
