// Package fingerprint computes what classifiers see of an HTTPS client: JA3
// and JA4 of its TLS ClientHello, and Akamai's HTTP/2 fingerprint with the
// order of its headers. Its tests compare the client of this project with a
// real Chromium.
package fingerprint

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// Numbers of TLS extensions (IANA's registry).
const (
	extServerName          = 0
	extGroups              = 10
	extPointFormats        = 11
	extSignatureAlgorithms = 13
	extALPN                = 16
	extPSK                 = 41
	extSupportedVersions   = 43
	extKeyShare            = 51
	extECH                 = 0xfe0d
)

// A ClientHello is what fingerprints are made of. GREASE values (RFC 8701) are
// left in.
type ClientHello struct {
	Version    uint16 // the record of the message, not of the negotiation
	Session    int    // bytes of the session's ID
	Methods    []byte // of compression
	Ciphers    []uint16
	Extensions []Extension // in their order
	Groups     []uint16
	Points     []uint16
	Signatures []uint16
	Versions   []uint16 // of supported_versions
	ALPN       []string
	HasSNI     bool
}

// An Extension is one of a ClientHello's.
type Extension struct {
	Type uint16
	Data []byte
}

// errHello is the error of a message that is no whole ClientHello.
var errHello = errors.New("fingerprint: not a ClientHello")

// ParseHello parses a handshake message, from its type octet on. The error is
// for anything that is not a ClientHello with extensions.
func ParseHello(message []byte) (*ClientHello, error) {
	s := cryptobyte.String(message)
	var kind uint8
	var body, session, ciphers, methods, extensions cryptobyte.String
	h := new(ClientHello)
	if !s.ReadUint8(&kind) || kind != 1 ||
		!s.ReadUint24LengthPrefixed(&body) ||
		!body.ReadUint16(&h.Version) || !body.Skip(32) ||
		!body.ReadUint8LengthPrefixed(&session) ||
		!body.ReadUint16LengthPrefixed(&ciphers) ||
		!body.ReadUint8LengthPrefixed(&methods) ||
		!body.ReadUint16LengthPrefixed(&extensions) {
		return nil, errHello
	}
	h.Session, h.Methods = len(session), methods
	var ok bool
	if h.Ciphers, ok = uint16s(ciphers); !ok {
		return nil, errHello
	}
	for !extensions.Empty() {
		var e Extension
		var data cryptobyte.String
		if !extensions.ReadUint16(&e.Type) || !extensions.ReadUint16LengthPrefixed(&data) {
			return nil, errHello
		}
		e.Data = data
		h.Extensions = append(h.Extensions, e)
		if !h.readExtension(e.Type, data) {
			return nil, fmt.Errorf("%w: extension %d", errHello, e.Type)
		}
	}
	return h, nil
}

func (h *ClientHello) readExtension(kind uint16, data cryptobyte.String) (ok bool) {
	var list cryptobyte.String
	switch kind {
	case extServerName:
		h.HasSNI = true
	case extGroups:
		if !data.ReadUint16LengthPrefixed(&list) {
			return false
		}
		h.Groups, ok = uint16s(list)
		return ok
	case extSignatureAlgorithms:
		if !data.ReadUint16LengthPrefixed(&list) {
			return false
		}
		h.Signatures, ok = uint16s(list)
		return ok
	case extSupportedVersions:
		if !data.ReadUint8LengthPrefixed(&list) {
			return false
		}
		h.Versions, ok = uint16s(list)
		return ok
	case extPointFormats:
		if !data.ReadUint8LengthPrefixed(&list) {
			return false
		}
		for _, p := range list {
			h.Points = append(h.Points, uint16(p))
		}
	case extALPN:
		if !data.ReadUint16LengthPrefixed(&list) {
			return false
		}
		for !list.Empty() {
			var name cryptobyte.String
			if !list.ReadUint8LengthPrefixed(&name) {
				return false
			}
			h.ALPN = append(h.ALPN, string(name))
		}
	}
	return true
}

// Lasting are all bytes of a ClientHello that are the same in each one of a browser,
// as lines: one for each extension, in their order. GREASE is 0a0a there, and of what
// is drawn by lot or given by a server there is the size.
func (h *ClientHello) Lasting() []string {
	lines := []string{
		fmt.Sprintf("version %04x", h.Version),
		fmt.Sprintf("session ID of %d bytes", h.Session),
		fmt.Sprintf("ciphers %04x", ungreased(h.Ciphers)),
		fmt.Sprintf("compression %x", h.Methods),
	}
	for _, e := range h.Extensions {
		line := fmt.Sprintf("%x", e.Data)
		switch e.Type {
		case extGroups:
			line = fmt.Sprintf("%04x", ungreased(h.Groups))
		case extSignatureAlgorithms:
			line = fmt.Sprintf("%04x", ungreased(h.Signatures))
		case extSupportedVersions:
			line = fmt.Sprintf("%04x", ungreased(h.Versions))
		case extKeyShare, extPSK, extECH:
			line = describe(e)
		}
		lines = append(lines, fmt.Sprintf("extension %d: %s", ungreased([]uint16{e.Type})[0], line))
	}
	return lines
}

// describe says of an extension whose content is drawn by lot what is not, and "cut
// short" of one that is not as its standard has it.
func describe(e Extension) string {
	s := cryptobyte.String(e.Data)
	var list, item cryptobyte.String
	var number, kdf uint16
	var kind uint8
	var b strings.Builder
	switch e.Type {
	case extKeyShare: // RFC 8446 section 4.2.8
		ok := s.ReadUint16LengthPrefixed(&list)
		for ok && !list.Empty() {
			ok = list.ReadUint16(&number) && list.ReadUint16LengthPrefixed(&item)
			fmt.Fprintf(&b, "share of %04x, %d bytes; ", ungreased([]uint16{number})[0], len(item))
		}
		if ok {
			return b.String()
		}
	case extPSK: // RFC 8446 section 4.2.11: a server gives the identities
		var identities cryptobyte.String
		ok := s.ReadUint16LengthPrefixed(&identities) && s.ReadUint16LengthPrefixed(&list)
		for ok && !list.Empty() {
			ok = list.ReadUint8LengthPrefixed(&item)
			fmt.Fprintf(&b, "binder of %d bytes; ", len(item))
		}
		if ok {
			return b.String()
		}
	case extECH: // RFC 9849 section 5: a library draws the cipher and the size, too
		if s.ReadUint8(&kind) && s.ReadUint16(&kdf) && s.ReadUint16(&number) && s.Skip(1) && s.ReadUint16LengthPrefixed(&item) {
			return fmt.Sprintf("kind %d, KDF %d, key of %d bytes", kind, kdf, len(item))
		}
	}
	return "cut short"
}

// ungreased is list with 0a0a for each GREASE value.
func ungreased(list []uint16) []uint16 {
	list = slices.Clone(list)
	for i, v := range list {
		if grease(v) {
			list[i] = 0x0a0a
		}
	}
	return list
}

func uint16s(s cryptobyte.String) (list []uint16, ok bool) {
	for !s.Empty() {
		var v uint16
		if !s.ReadUint16(&v) {
			return nil, false
		}
		list = append(list, v)
	}
	return list, true
}

// grease tells whether v is a value that stands for nothing (RFC 8701).
func grease(v uint16) bool { return v&0x0f0f == 0x0a0a && v>>8 == v&0xff }

// real is list without GREASE.
func real(list []uint16) []uint16 {
	return slices.DeleteFunc(slices.Clone(list), grease)
}

// types are the extensions' numbers, without GREASE.
func (h *ClientHello) types() []uint16 {
	var list []uint16
	for _, e := range h.Extensions {
		list = append(list, e.Type)
	}
	return real(list)
}

// JA3 is the text whose MD5 is the JA3 fingerprint
// (github.com/salesforce/ja3).
func (h *ClientHello) JA3() string { return h.ja3(h.types()) }

// SortedJA3 is JA3 with the extensions sorted: that of a browser that permutes
// them.
func (h *ClientHello) SortedJA3() string { return h.ja3(slices.Sorted(slices.Values(h.types()))) }

func (h *ClientHello) ja3(extensions []uint16) string {
	lists := [][]uint16{real(h.Ciphers), extensions, real(h.Groups), h.Points}
	text := strconv.Itoa(int(h.Version))
	for _, list := range lists {
		text += "," + join(list, "-", func(v uint16) string { return strconv.Itoa(int(v)) })
	}
	return text
}

// JA3Hash is the MD5 of a JA3 text, in hexadecimal.
func JA3Hash(text string) string {
	sum := md5.Sum([]byte(text))
	return hex.EncodeToString(sum[:])
}

// JA4 is the JA4 fingerprint of TLS over TCP
// (github.com/FoxIO-LLC/ja4, technical details of JA4).
func (h *ClientHello) JA4() string {
	sni := "i"
	if h.HasSNI {
		sni = "d"
	}
	ciphers, types := real(h.Ciphers), h.types()
	head := "t" + h.ja4Version() + sni + count(len(ciphers)) + count(len(types)) + ja4ALPN(h.ALPN)

	slices.Sort(ciphers)
	slices.Sort(types)
	types = slices.DeleteFunc(types, func(v uint16) bool { return v == extServerName || v == extALPN })
	extensions := join(types, ",", hex16)
	if signatures := real(h.Signatures); len(signatures) > 0 {
		extensions += "_" + join(signatures, ",", hex16)
	}
	if len(types) == 0 {
		extensions = ""
	}
	return head + "_" + ja4Hash(join(ciphers, ",", hex16)) + "_" + ja4Hash(extensions)
}

func (h *ClientHello) ja4Version() string {
	version := h.Version
	if v := real(h.Versions); len(v) > 0 {
		version = slices.Max(v)
	}
	switch version {
	case 0x0304:
		return "13"
	case 0x0303:
		return "12"
	case 0x0302:
		return "11"
	case 0x0301:
		return "10"
	}
	return "00"
}

// ja4ALPN is the first and the last character of the first protocol offered.
func ja4ALPN(protocols []string) string {
	if len(protocols) == 0 || protocols[0] == "" {
		return "00"
	}
	name := protocols[0]
	first, last := name[0], name[len(name)-1]
	if !alphanumeric(first) || !alphanumeric(last) {
		return fmt.Sprintf("%x%x", first>>4, last&15)
	}
	return string([]byte{first, last})
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// ja4Hash is the first 12 hexadecimal digits of the SHA-256 of text.
func ja4Hash(text string) string {
	if text == "" {
		return "000000000000"
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:6])
}

// count is n in two digits.
func count(n int) string { return fmt.Sprintf("%02d", min(n, 99)) }

func hex16(v uint16) string { return fmt.Sprintf("%04x", v) }

func join(list []uint16, separator string, text func(uint16) string) string {
	var texts []string
	for _, v := range list {
		texts = append(texts, text(v))
	}
	return strings.Join(texts, separator)
}
