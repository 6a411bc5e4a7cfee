// Package wire is the format of what HTTP bodies carry once a session has
// keys: a sequence of sealed units. There are two kinds of unit. A record
// carries datagrams, a head carries acknowledgements and control values.
//
// A unit:
//
//	offset  size  what
//	0       8     header, masked
//	8       n     payload, sealed (by the session's Cipher; its last 16 bytes are the tag)
//
// The header before masking, big endian:
//
//	bits 63     kind: 0 record, 1 head
//	bits 62–48  n, 16 to MaxUnit-8
//	bits 47–0   number, counted from 0 for each kind and direction
//
// Each direction has one 32-byte key k. The payload is sealed with k, the nonce
// that is four zero bytes and then number×2+kind as 64 bits little endian (the
// nonce layout of the Noise specification, section 12.3), and the unmasked
// header as associated data. A number stands for one plaintext for ever: a
// record that is sent again is the same bytes.
//
// The mask is the first 8 bytes of AES-128 of the payload's first 16 sealed
// bytes, keyed by the first 16 bytes of BLAKE2s-256 keyed with k of the ASCII
// text "turbotunnel header mask"; it is XORed onto the header, as RFC 9001
// section 5.4 does for QUIC. To whoever has no key a body is noise without
// visible units.
//
// A record's plaintext is a sequence of datagrams, each a 16-bit big-endian
// length and as many bytes. Length 0 ends the record; what follows is padding
// and ignored. The length's two highest bits say that this is a part of a datagram,
// which follows the part at the end of the record before (0x4000), or goes on at the
// beginning of the next record (0x8000). See Head for the plaintext of a head.
package wire

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"
)

// Kind tells records from heads.
type Kind uint8

const (
	RecordKind Kind = 0
	HeadKind   Kind = 1
)

// A Cipher is how payloads are sealed. Both have keys of 32 bytes, nonces of 12 and
// tags of 16.
type Cipher uint8

const (
	ChaCha20Poly1305 Cipher = iota // RFC 8439
	AES256GCM                      // NIST SP 800-38D; three times as fast where the processor computes it
)

// HasAES tells whether this processor computes AES256GCM by itself. In software it is
// slow, and its time depends on the key.
var HasAES = cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41 && cpu.X86.HasSSSE3 ||
	cpu.ARM64.HasAES && cpu.ARM64.HasPMULL ||
	cpu.S390X.HasAES && cpu.S390X.HasAESCTR && cpu.S390X.HasGHASH

const tagSize = 16 // of each Cipher

const (
	// HeaderSize is the size in bytes of a unit's masked header.
	HeaderSize = 8

	// Overhead is what a unit adds to its plaintext: header and tag, in bytes.
	Overhead = HeaderSize + tagSize

	// MaxUnit is the size in bytes of the largest unit. Units of 16 KB keep
	// any body limit reachable by sending fewer of them, and make the cost of a
	// unit small beside that of its bytes.
	MaxUnit = 16 << 10

	// MaxPlaintext is the size in bytes of the largest plaintext.
	MaxPlaintext = MaxUnit - Overhead

	// RecordRoom is the size in bytes of the largest datagram for which a record
	// has room. Engines get by with half of that (engine.MaxDatagram).
	RecordRoom = MaxPlaintext - 2

	// BufferSize is the capacity in bytes of a buffer in which any unit can be
	// sealed or opened in place: the unit and room for the cipher's working
	// values, which would otherwise be allocated for each unit.
	BufferSize = MaxUnit + scratch

	// SealRoom is the capacity in bytes that Seal needs beyond header and plaintext
	// not to allocate.
	SealRoom = tagSize + scratch

	// MaxNumber is the last number of a unit. At 500 MB/s it lasts for centuries.
	MaxNumber = 1<<48 - 1

	scratch = 32 // nonce (12), and mask or unmasked header (16)
)

var (
	// ErrForged is returned for a unit that was not sealed with this key.
	ErrForged = errors.New("wire: not sealed with this key")

	// ErrMalformed is returned for a unit or plaintext that breaks the format.
	ErrMalformed = errors.New("wire: malformed")
)

// Key seals or opens the units of one direction. Safe for concurrent use.
type Key struct {
	aead cipher.AEAD
	mask cipher.Block
}

// NewKey returns the Key made from a direction's secret.
func NewKey(secret [32]byte, by Cipher) *Key {
	aead, err := newAEAD(secret[:], by)
	if err != nil {
		panic(err) // the length of the key is right
	}
	h, err := blake2s.New256(secret[:])
	if err != nil {
		panic(err) // likewise
	}
	h.Write([]byte("turbotunnel header mask"))
	mask, err := aes.NewCipher(h.Sum(nil)[:16])
	if err != nil {
		panic(err) // likewise
	}
	return &Key{aead: aead, mask: mask}
}

func newAEAD(secret []byte, by Cipher) (cipher.AEAD, error) {
	if by != AES256GCM {
		return chacha20poly1305.New(secret)
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Seal turns b, in which HeaderSize free bytes stand before the plaintext, into
// a unit in place and returns it. It allocates if b's capacity is less than
// the unit and 32 bytes more. It panics when the plaintext or the number is
// larger than the format allows.
func (k *Key) Seal(b []byte, kind Kind, number uint64) []byte {
	n := len(b) - HeaderSize
	if n < 0 || n > MaxPlaintext || number > MaxNumber {
		panic("wire: unit out of bounds")
	}
	sealed := n + tagSize
	if need := HeaderSize + sealed + scratch; cap(b) < need {
		b = append(make([]byte, 0, need), b...)
	}
	full := b[:HeaderSize+sealed+scratch]
	nonce, work := full[HeaderSize+sealed:][:12], full[HeaderSize+sealed+12:][:16]
	putNonce(nonce, kind, number)
	binary.BigEndian.PutUint64(full, uint64(kind)<<63|uint64(sealed)<<48|number)
	k.aead.Seal(full[HeaderSize:HeaderSize], nonce, full[HeaderSize:HeaderSize+n], full[:HeaderSize])
	k.mask.Encrypt(work, full[HeaderSize:][:16])
	for i := range HeaderSize {
		full[i] ^= work[i]
	}
	return full[:HeaderSize+sealed]
}

func putNonce(nonce []byte, kind Kind, number uint64) {
	clear(nonce[:4])
	binary.LittleEndian.PutUint64(nonce[4:], number<<1|uint64(kind))
}

// Unit is one opened unit.
type Unit struct {
	Kind    Kind
	Number  uint64
	Payload []byte // plaintext, inside the buffer given to Next
}

// Next reads one unit from r into buf, whose capacity must be BufferSize, and
// opens it.
//
// It returns io.EOF if r ended before the unit began, io.ErrUnexpectedEOF if it
// ended inside the unit, ErrMalformed or ErrForged if what came is not a unit
// of this key (nothing after it can be read then), and r's own error otherwise.
func (k *Key) Next(r io.Reader, buf []byte) (Unit, error) {
	const first = HeaderSize + tagSize // the least that a unit has
	buf = buf[:BufferSize]
	if _, err := io.ReadFull(r, buf[:first]); err != nil {
		return Unit{}, err
	}
	work := buf[MaxUnit+12:][:16]
	k.mask.Encrypt(work, buf[HeaderSize:first])
	for i := range HeaderSize {
		buf[i] ^= work[i]
	}
	h := binary.BigEndian.Uint64(buf)
	kind, sealed, number := Kind(h>>63), int(h>>48&0x7fff), h&MaxNumber
	if sealed < tagSize || sealed > MaxUnit-HeaderSize {
		return Unit{}, fmt.Errorf("%w: a unit of %d bytes", ErrMalformed, sealed)
	}
	end := HeaderSize + sealed
	if _, err := io.ReadFull(r, buf[first:end]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Unit{}, err
	}
	nonce := buf[MaxUnit:][:12]
	putNonce(nonce, kind, number)
	p, err := k.aead.Open(buf[HeaderSize:HeaderSize], nonce, buf[HeaderSize:end], buf[:HeaderSize])
	if err != nil {
		return Unit{}, ErrForged
	}
	return Unit{Kind: kind, Number: number, Payload: p}, nil
}

// AppendDatagram appends p to the plaintext of a record. len(p) must be from 1
// to RecordRoom.
func AppendDatagram(b, p []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	return append(b, p...)
}

// CutDatagram returns the first datagram of a record's plaintext and what
// follows it. It returns io.EOF where the datagrams end, and ErrMalformed if
// one is longer than the plaintext.
func CutDatagram(b []byte) (p, rest []byte, err error) {
	if len(b) == 0 {
		return nil, nil, io.EOF
	}
	if len(b) < 2 {
		return nil, nil, fmt.Errorf("%w: half a length", ErrMalformed)
	}
	n := int(binary.BigEndian.Uint16(b))
	if n == 0 {
		return nil, nil, io.EOF
	}
	if n > len(b)-2 {
		return nil, nil, fmt.Errorf("%w: a datagram of %d bytes in %d", ErrMalformed, n, len(b)-2)
	}
	return b[2 : 2+n], b[2+n:], nil
}

const (
	partContinues = 0x4000
	partGoesOn    = 0x8000
)

// A Part is a datagram, or what one record carries of it.
type Part struct {
	Bytes     []byte
	Continues bool // it follows a part in the record before
	GoesOn    bool // the next record has more of it
}

// AppendPart appends a part to a record's plaintext.
func AppendPart(b []byte, p Part) []byte {
	n := uint16(len(p.Bytes))
	if p.Continues {
		n |= partContinues
	}
	if p.GoesOn {
		n |= partGoesOn
	}
	return append(binary.BigEndian.AppendUint16(b, n), p.Bytes...)
}

// CutPart is CutDatagram that knows parts, for which CutDatagram returns
// ErrMalformed.
func CutPart(b []byte) (p Part, rest []byte, err error) {
	if len(b) < 2 {
		p.Bytes, rest, err = CutDatagram(b)
		return p, rest, err
	}
	n := binary.BigEndian.Uint16(b)
	p.Continues, p.GoesOn = n&partContinues != 0, n&partGoesOn != 0
	size := int(n &^ (partContinues | partGoesOn))
	switch {
	case n == 0:
		return Part{}, nil, io.EOF
	case size == 0 || size > len(b)-2:
		return Part{}, nil, fmt.Errorf("%w: %d bytes of a datagram in %d", ErrMalformed, size, len(b)-2)
	}
	p.Bytes = b[2 : 2+size]
	return p, b[2+size:], nil
}
