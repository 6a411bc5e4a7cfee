package fingerprint

import (
	"bytes"
	"slices"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// The examples in JA3's own documentation (github.com/salesforce/ja3).
func TestJA3(t *testing.T) {
	for _, c := range []struct {
		hello      ClientHello
		text, hash string
	}{
		{
			ClientHello{
				Version:    769,
				Ciphers:    []uint16{47, 53, 5, 10, 49161, 49162, 49171, 49172, 50, 56, 19, 4},
				Extensions: []Extension{{Type: 0}, {Type: 10}, {Type: 11}},
				Groups:     []uint16{23, 24, 25},
				Points:     []uint16{0},
			},
			"769,47-53-5-10-49161-49162-49171-49172-50-56-19-4,0-10-11,23-24-25,0",
			"ada70206e40642a3e4461f35503241d5",
		},
		{
			ClientHello{Version: 769, Ciphers: []uint16{4, 5, 10, 9, 100, 98, 3, 6, 19, 18, 99}},
			"769,4-5-10-9-100-98-3-6-19-18-99,,,",
			"de350869b8c85de67a350c8d186f11e6",
		},
	} {
		if got := c.hello.JA3(); got != c.text || JA3Hash(got) != c.hash {
			t.Errorf("JA3 %s (%s), want %s (%s)", got, JA3Hash(got), c.text, c.hash)
		}
	}
}

// example is the ClientHello of which JA4's documentation
// (github.com/FoxIO-LLC/ja4, technical details) gives the fingerprint. Its
// order is of no meaning for that, nor is the content of most extensions.
func example(withGREASE bool) []byte {
	ciphers := []uint16{
		0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
	}
	signatures := []uint16{0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601}
	versions := []uint16{0x0304, 0x0303}
	types := []uint16{0x001b, 0, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023, 0x0012, 0x002b, 0xff01, 0x000b, 0x000a, 0x0015}
	if withGREASE {
		ciphers = slices.Insert(ciphers, 0, 0x1a1a)
		signatures = slices.Insert(signatures, 0, 0xfafa)
		versions = slices.Insert(versions, 0, 0xeaea)
		types = append(slices.Insert(types, 0, 0x0a0a), 0x2a2a)
	}
	var b cryptobyte.Builder
	list := func(b *cryptobyte.Builder, values []uint16) {
		for _, v := range values {
			b.AddUint16(v)
		}
	}
	b.AddUint8(1)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(0x0303)
		b.AddBytes(make([]byte, 32))
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(make([]byte, 32)) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { list(b, ciphers) })
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(0) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, kind := range types {
				b.AddUint16(kind)
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
					switch kind {
					case extSignatureAlgorithms:
						b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { list(b, signatures) })
					case extSupportedVersions:
						b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { list(b, versions) })
					case extGroups:
						b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { list(b, []uint16{0x001d}) })
					case extPointFormats:
						b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(0) })
					case extALPN:
						b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
							for _, name := range []string{"h2", "http/1.1"} {
								b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
							}
						})
					}
				})
			}
		})
	})
	return b.BytesOrPanic()
}

func TestJA4(t *testing.T) {
	const want = "t13d1516h2_8daaf6152771_e5627efa2ab1"
	for _, grease := range []bool{false, true} {
		h, err := ParseHello(example(grease))
		if err != nil {
			t.Fatal(err)
		}
		if got := h.JA4(); got != want {
			t.Errorf("with GREASE %t: %s, want %s", grease, got, want)
		}
	}
	for name, want := range map[string]string{"h2": "h2", "http/1.1": "h1", "dot": "dt", "h": "hh", "": "00", "\xab": "ab", "0\xab": "3b"} {
		if got := ja4ALPN([]string{name}); got != want {
			t.Errorf("ALPN %q: %s, want %s", name, got, want)
		}
	}
	if got := (&ClientHello{Version: 0x0303}).JA4(); got != "t12i000000_000000000000_000000000000" {
		t.Errorf("of nothing: %s", got)
	}
}

func TestParseHelloRefuses(t *testing.T) {
	whole := example(true)
	for n := range whole {
		if _, err := ParseHello(whole[:n]); err == nil {
			t.Errorf("%d of %d octets accepted", n, len(whole))
		}
	}
}

// FuzzParseHello: what is parsed has a JA4 of the right form.
func FuzzParseHello(f *testing.F) {
	f.Add(example(true))
	f.Fuzz(func(t *testing.T, message []byte) {
		h, err := ParseHello(message)
		if err != nil {
			return
		}
		if ja4 := h.JA4(); len(ja4) != 36 || ja4[10] != '_' || ja4[23] != '_' {
			t.Errorf("JA4 %q", ja4)
		}
		if lines := h.Lasting(); len(lines) != 4+len(h.Extensions) {
			t.Errorf("lasting: %q", lines)
		}
	})
}

// Fingerprints that are known of browsers, from frames such as these send.
func TestAkamai(t *testing.T) {
	weight := func(exclusive bool, parent uint32, weight uint8) http2.PriorityParam {
		return http2.PriorityParam{Exclusive: exclusive, StreamDep: parent, Weight: weight}
	}
	for want, send := range map[string]func(f *http2.Framer){
		"1:65536;3:1000;4:6291456;6:262144|15663105|0|m,a,s,p": func(f *http2.Framer) {
			f.WriteSettings(http2.Setting{ID: 1, Val: 65536}, http2.Setting{ID: 3, Val: 1000}, http2.Setting{ID: 4, Val: 6291456}, http2.Setting{ID: 6, Val: 262144})
			f.WriteWindowUpdate(0, 15663105)
			head(f, 1, weight(true, 0, 219), ":method", ":authority", ":scheme", ":path", "user-agent")
			f.WriteSettings(http2.Setting{ID: 4, Val: 1})
			f.WriteWindowUpdate(0, 5)
			head(f, 3, weight(true, 0, 219), ":path", ":method")
		},
		"1:65536;4:131072;5:16384|12517377|3:0:0:201,9:0:7:1|m,p,a,s": func(f *http2.Framer) {
			f.WriteSettings(http2.Setting{ID: 1, Val: 65536}, http2.Setting{ID: 4, Val: 131072}, http2.Setting{ID: 5, Val: 16384})
			f.WriteWindowUpdate(0, 12517377)
			f.WritePriority(3, weight(false, 0, 200))
			f.WritePriority(9, weight(false, 7, 0))
			head(f, 15, weight(false, 13, 41), ":method", ":path", ":authority", ":scheme")
		},
		"|00|0|m": func(f *http2.Framer) {
			f.WriteSettings()
			f.WriteWindowUpdate(1, 7)
			head(f, 1, http2.PriorityParam{}, ":method")
		},
	} {
		var wire, answers bytes.Buffer
		wire.WriteString(http2.ClientPreface)
		send(http2.NewFramer(&wire, nil))
		r, err := NewH2Reader(&wire, &answers)
		if err != nil {
			t.Fatal(err)
		}
		var frames []Frame
		for wire.Len() > 0 {
			f, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			frames = append(frames, f)
		}
		if got := Akamai(frames); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if _, err := NewH2Reader(bytes.NewReader([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n")), new(bytes.Buffer)); err == nil {
		t.Error("HTTP/1.1 accepted as HTTP/2")
	}
}

// head writes a request's head with the fields named, each in no table.
func head(f *http2.Framer, stream uint32, priority http2.PriorityParam, names ...string) {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	e.SetMaxDynamicTableSize(0)
	for _, name := range names {
		e.WriteField(hpack.HeaderField{Name: name, Value: "x"})
	}
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true, Priority: priority})
}
