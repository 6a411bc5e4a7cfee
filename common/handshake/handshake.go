// Package handshake sets up the keys of a session with one message each way:
// Noise_NK_25519_ChaChaPoly_BLAKE2s, in which the client knows the server's
// static key beforehand.
//
// The prologue is the ASCII text "turbotunnel/1 ", the 24 bytes of the session's
// ID and the first 32 bytes of message 1.
//
// Message 1 is a whole request body of 128 to MaxMessage1 bytes: the
// representative of the client's ephemeral key (32 bytes, see ephemeral.go) and the
// sealed payload. So every byte of it is bound: altered, it does not open. Its
// plaintext, big endian:
//
//	size  what
//	1     version of the protocol that the client speaks, now 1
//	8     time: milliseconds since 1970-01-01 UTC by the client's clock
//	2     mask, random
//	1, n  length and name of the engine (ASCII, at most 32 bytes)
//	2, n  length and bytes of extensions: each a byte of type, a byte of
//	      length and as many bytes; those of an unknown type are skipped.
//	      Type 1: binding, 32 random bytes that both ends of the session keep
//	      to themselves. An engine can bind its own handshake to them.
//	      Type 2: plaintext of a head (package wire): what the client asks of
//	      the answer.
//	      Type 3: epoch, 16 bytes that the server has told (see Guard).
//	      Type 4: nothing; the client's processor computes AES-GCM
//	rest  datagrams as in a record (package wire), then padding
//
// Message 2 begins the body of the answer: 2 bytes that are its length XORed
// with the client's mask, the representative of the server's ephemeral key (32
// bytes) and the sealed payload. Units follow it in the same body. The two highest
// bits of the representative mean nothing and are not bound: who alters them has
// altered nothing. Its plaintext:
//
//	size  what
//	1     status: 0 accepted, 1 engine unknown, 2 version unknown, 3 wrong time
//	1     version: the newest that the server speaks
//	2, n  length and text: for status 0 nothing, or "aes-256-gcm", by which units
//	      are sealed then, if message 1 has extension 4 (else it is malformed);
//	      for status 1 the engines it has, separated by commas;
//	      for status 3 the time (8 bytes, as above) and the epoch (16 bytes, zeros:
//	      none) that the next message 1 shall have
//	rest  padding
//
// The keys that Noise's Split returns become the keys of package wire: the
// first seals what the client sends, the second what the server sends.
//
// What a payload of message 1 says is known only to the holder of the server's
// key, but it has no forward secrecy: who steals the key later can read it.
package handshake

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/flynn/noise"

	"turbotunnel/common/wire"
)

const (
	// Version is the version of the protocol that this package speaks.
	Version = 1

	// MaxMessage1 is the size in bytes of the largest first message. It is what
	// a server reads from a stranger before it has proof of anything.
	MaxMessage1 = 8 << 10

	// MinMessage1 is the size in bytes of the smallest first message: there is
	// always room for the fields before the datagrams, unless something is asked or
	// an epoch is named.
	MinMessage1 = 128

	// EphemeralSize is the size in bytes of what message 1 begins with: the
	// representative of a key. It tells one first message from another.
	EphemeralSize = 32

	// BindingSize is the size in bytes of a session's binding.
	BindingSize = 32

	// MaxAsk is the most bytes that a Hello's Ask has.
	MaxAsk = 255

	extBinding = 1
	extAsk     = 2
	extEpoch   = 3
	extAES     = 4

	// aesText is the text of the answer that accepts and chooses wire.AES256GCM.
	aesText = "aes-256-gcm"

	maxEngine   = 32
	maxText     = 1024
	maxMessage2 = 2048
	noiseTag    = 16
	prologue    = "turbotunnel/1 "
)

// Statuses of an Answer.
const (
	Accepted       = 0
	UnknownEngine  = 1
	UnknownVersion = 2
	WrongTime      = 3
)

// ErrNotNoise is returned for a message that was not made for this key and
// session, or was altered.
var ErrNotNoise = errors.New("handshake: message is not for this key and session")

// Hello is the payload of message 1.
type Hello struct {
	Version   byte
	Time      time.Time // whole milliseconds on the wire
	Engine    string
	Binding   []byte // of BindingSize bytes, or none
	Ask       []byte // plaintext of a wire.Head, at most MaxAsk bytes: what the answer shall be; or none
	Epoch     Epoch  // zero: none
	AES       bool   // the client's processor computes wire.AES256GCM
	Datagrams []byte // plaintext of a record

	mask uint16
}

// Answer is the payload of message 2.
type Answer struct {
	Status  byte
	Version byte
	Text    string

	// With Accepted, and in place of a text: how units are sealed. It must be
	// ChaCha20Poly1305 where the Hello does not say AES.
	Cipher wire.Cipher

	// With WrongTime, and in place of a text: what the next Hello shall have.
	Time  time.Time
	Epoch Epoch
}

// Keys are the two keys of an established session.
type Keys struct {
	Send    *wire.Key
	Receive *wire.Key
}

// Initiator is the client's half of a handshake whose first message is made.
// It is not safe for concurrent use.
type Initiator struct {
	party party
	mask  uint16
	aes   bool // it has offered wire.AES256GCM
}

// HelloRoom is how many bytes of datagrams fit into a message 1 of size bytes
// that has a binding, an epoch and all flags, and asks for something in so many bytes.
func HelloRoom(size int, engine string, ask int) int {
	return helloRoom(size, engine) - (2 + BindingSize) - (2 + ask) - (2 + len(Epoch{})) - 2
}

func helloRoom(size int, engine string) int {
	return size - EphemeralSize - noiseTag - (1 + 8 + 2 + 1 + len(engine) + 2)
}

// Initiate makes message 1 of exactly size bytes for the session id with the
// server whose key is pub.
func Initiate(pub PublicKey, id ID, hello Hello, size int) ([]byte, *Initiator, error) {
	if len(hello.Engine) > maxEngine || size < MinMessage1 || size > MaxMessage1 ||
		len(hello.Binding) != 0 && len(hello.Binding) != BindingSize || len(hello.Ask) > MaxAsk ||
		len(hello.Datagrams)+len(extensions(hello)) > helloRoom(size, hello.Engine) {
		return nil, nil, fmt.Errorf("handshake: message 1 out of bounds")
	}
	own := newEphemeral()
	party, err := newParty(&hidden{DHFunc: noise.DH25519, own: own}, id, own.representative, pub[:])
	if err != nil {
		return nil, nil, err
	}
	var mask [2]byte
	rand.Read(mask[:])
	p := make([]byte, 0, size)
	p = append(p, hello.Version)
	p = binary.BigEndian.AppendUint64(p, uint64(hello.Time.UnixMilli()))
	p = append(p, mask[:]...)
	p = append(p, byte(len(hello.Engine)))
	p = append(p, hello.Engine...)
	ext := extensions(hello)
	p = binary.BigEndian.AppendUint16(p, uint16(len(ext)))
	p = append(p, ext...)
	p = append(p, hello.Datagrams...)
	p = p[:size-EphemeralSize-noiseTag] // zeros: a datagram of length 0 ends them
	msg, _, _, err := party.write(make([]byte, 0, size), p)
	if err != nil {
		return nil, nil, err
	}
	return msg, &Initiator{party: party, mask: binary.BigEndian.Uint16(mask[:]), aes: hello.AES}, nil
}

// extensions are the bytes of a hello's extensions.
func extensions(h Hello) []byte {
	var b []byte
	if len(h.Binding) > 0 {
		b = append(append(b, extBinding, BindingSize), h.Binding...)
	}
	if len(h.Ask) > 0 {
		b = append(append(b, extAsk, byte(len(h.Ask))), h.Ask...)
	}
	if h.Epoch != (Epoch{}) {
		b = append(append(b, extEpoch, byte(len(h.Epoch))), h.Epoch[:]...)
	}
	if h.AES {
		b = append(b, extAES, 0)
	}
	return b
}

// Finish reads message 2 from r, of which it reads no byte more.
//
// It returns ErrNotNoise if what came is not the answer of this server to this
// message 1 (the Initiator can then be used for another answer), wire.ErrMalformed if
// that breaks the format or chooses a cipher that was not offered, and r's error or
// io.ErrUnexpectedEOF if r ended too early.
func (i *Initiator) Finish(r io.Reader) (Answer, Keys, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Answer{}, Keys{}, err
	}
	n := binary.BigEndian.Uint16(head[:]) ^ i.mask
	if n < EphemeralSize+noiseTag || n > maxMessage2 {
		return Answer{}, Keys{}, ErrNotNoise
	}
	msg := make([]byte, n)
	if _, err := io.ReadFull(r, msg); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Answer{}, Keys{}, err
	}
	p, toServer, toClient, err := i.party.read(msg)
	if err != nil {
		return Answer{}, Keys{}, err
	}
	a, err := parseAnswer(p)
	if err == nil && a.Cipher == wire.AES256GCM && !i.aes {
		// Where no processor computes it, it is slow, and its time tells of the key.
		err = fmt.Errorf("%w: a cipher that was not offered", wire.ErrMalformed)
	}
	if err != nil {
		return Answer{}, Keys{}, err
	}
	return a, Keys{Send: wire.NewKey(toServer.UnsafeKey(), a.Cipher), Receive: wire.NewKey(toClient.UnsafeKey(), a.Cipher)}, nil
}

// parseAnswer reads the plaintext of message 2.
func parseAnswer(p []byte) (Answer, error) {
	if len(p) < 4 {
		return Answer{}, fmt.Errorf("%w: short answer", wire.ErrMalformed)
	}
	text, _, err := cutBytes(p[2:], maxText)
	if err != nil {
		return Answer{}, err
	}
	a := Answer{Status: p[0], Version: p[1]}
	switch {
	case a.Status == Accepted && string(text) == aesText:
		a.Cipher = wire.AES256GCM
	case a.Status != WrongTime:
		a.Text = string(text)
	case len(text) != 8+len(a.Epoch):
		return Answer{}, fmt.Errorf("%w: time", wire.ErrMalformed)
	default:
		a.Time = time.UnixMilli(int64(binary.BigEndian.Uint64(text)))
		a.Epoch = Epoch(text[8:])
	}
	return a, nil
}

func appendAnswer(p []byte, a Answer) []byte {
	p = append(p, a.Status, a.Version)
	if a.Status == WrongTime {
		p = binary.BigEndian.AppendUint16(p, uint16(8+len(a.Epoch)))
		p = binary.BigEndian.AppendUint64(p, uint64(a.Time.UnixMilli()))
		return append(p, a.Epoch[:]...)
	}
	if a.Status == Accepted && a.Cipher == wire.AES256GCM {
		a.Text = aesText
	}
	p = binary.BigEndian.AppendUint16(p, uint16(len(a.Text)))
	return append(p, a.Text...)
}

// Responder is the server's half of a handshake whose first message was read.
// It is not safe for concurrent use.
type Responder struct {
	party party
	mask  uint16
}

// A Static is a server's key as it reads first messages with it: what can be computed
// of it beforehand is. It is safe for concurrent use.
type Static struct {
	pair    noise.DHKey
	private *ecdh.PrivateKey
}

// Static is the key for reading first messages.
func (k PrivateKey) Static() *Static {
	private := k.ecdh()
	return &Static{noise.DHKey{Private: private.Bytes(), Public: private.PublicKey().Bytes()}, private}
}

// Respond reads message 1, a whole body. It returns ErrNotNoise if it was not
// made for this key and session, and wire.ErrMalformed for a payload that
// breaks the format.
//
// A Hello whose Version is not Version has no other field set but Time: its
// format may be another. The answer to it is UnknownVersion.
func (s *Static) Respond(id ID, msg []byte) (*Responder, Hello, error) {
	if len(msg) < MinMessage1 || len(msg) > MaxMessage1 {
		return nil, Hello{}, ErrNotNoise
	}
	party, err := newParty(&hidden{DHFunc: noise.DH25519, static: s}, id, [EphemeralSize]byte(msg), nil)
	if err != nil {
		return nil, Hello{}, err
	}
	p, _, _, err := party.read(msg)
	if err != nil {
		return nil, Hello{}, err
	}
	hello, err := parseHello(p)
	if err != nil {
		return nil, Hello{}, err
	}
	return &Responder{party: party, mask: hello.mask}, hello, nil
}

// parseHello reads the plaintext of message 1. The first 11 bytes keep their
// meaning in every version, so that every version can be answered.
func parseHello(p []byte) (Hello, error) {
	if len(p) < 11 {
		return Hello{}, fmt.Errorf("%w: short hello", wire.ErrMalformed)
	}
	h := Hello{
		Version: p[0],
		Time:    time.UnixMilli(int64(binary.BigEndian.Uint64(p[1:]))),
		mask:    binary.BigEndian.Uint16(p[9:]),
	}
	if h.Version != Version {
		return h, nil
	}
	p = p[11:]
	if len(p) < 1 || int(p[0]) > maxEngine || len(p)-1 < int(p[0]) {
		return Hello{}, fmt.Errorf("%w: name of the engine", wire.ErrMalformed)
	}
	h.Engine, p = string(p[1:1+p[0]]), p[1+p[0]:]
	ext, p, err := cutBytes(p, MaxMessage1)
	if err != nil {
		return Hello{}, err
	}
	for len(ext) > 0 {
		if len(ext) < 2 || len(ext)-2 < int(ext[1]) {
			return Hello{}, fmt.Errorf("%w: extensions", wire.ErrMalformed)
		}
		body := ext[2:][:ext[1]] // 2+ext[1] would be a byte
		switch {
		case ext[0] == extBinding && len(body) == BindingSize:
			h.Binding = body
		case ext[0] == extAsk:
			h.Ask = body
		case ext[0] == extEpoch && len(body) == len(h.Epoch):
			h.Epoch = Epoch(body)
		case ext[0] == extAES:
			h.AES = true
		}
		ext = ext[2+len(body):]
	}
	h.Datagrams = p
	return h, nil
}

func cutBytes(p []byte, limit int) (b, rest []byte, err error) {
	if len(p) < 2 {
		return nil, nil, fmt.Errorf("%w: half a length", wire.ErrMalformed)
	}
	n := int(binary.BigEndian.Uint16(p))
	if n > limit || n > len(p)-2 {
		return nil, nil, fmt.Errorf("%w: %d bytes of text", wire.ErrMalformed, n)
	}
	return p[2 : 2+n], p[2+n:], nil
}

// Answer makes message 2, with its two bytes of length, and pad bytes of
// padding (at most 512). It may be called once.
func (r *Responder) Answer(a Answer, pad int) ([]byte, Keys, error) {
	if len(a.Text) > maxText || pad < 0 || pad > 512 {
		return nil, Keys{}, fmt.Errorf("handshake: message 2 out of bounds")
	}
	p := append(appendAnswer(nil, a), make([]byte, pad)...)
	msg, toServer, toClient, err := r.party.write(make([]byte, 2, 2+EphemeralSize+len(p)+noiseTag), p)
	if err != nil {
		return nil, Keys{}, err
	}
	binary.BigEndian.PutUint16(msg, uint16(len(msg)-2)^r.mask)
	return msg, Keys{Send: wire.NewKey(toClient.UnsafeKey(), a.Cipher), Receive: wire.NewKey(toServer.UnsafeKey(), a.Cipher)}, nil
}
