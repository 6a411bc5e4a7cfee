package handshake

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"turbotunnel/common/wire"
)

var (
	testServer = GenerateKey()
	testDay    = DayOf(time.UnixMilli(1700000000123))
	testHello  = Hello{
		Version:   Version,
		Time:      time.UnixMilli(1700000000123),
		Engine:    "kcp",
		Datagrams: wire.AppendDatagram(wire.AppendDatagram(nil, []byte("one")), []byte("two")),
	}
)

// initiate makes a first message of the given size.
func initiate(t testing.TB, id ID, hello Hello, size int) ([]byte, *Initiator) {
	t.Helper()
	msg, i, err := Initiate(testServer.Public(), id, hello, size)
	if err != nil {
		t.Fatal(err)
	}
	if len(msg) != size {
		t.Fatalf("%d bytes, want %d", len(msg), size)
	}
	return msg, i
}

// respond reads a first message and answers it.
func respond(t testing.TB, id ID, msg []byte, a Answer, pad int) ([]byte, Keys) {
	t.Helper()
	r, _, err := testServer.Static().Respond(id, msg)
	if err != nil {
		t.Fatal(err)
	}
	msg2, keys, err := r.Answer(a, pad)
	if err != nil {
		t.Fatal(err)
	}
	return msg2, keys
}

// opens tells whether what one key seals the other opens.
func opens(seal, open *wire.Key) bool {
	b := seal.Seal(append(make([]byte, wire.HeaderSize), "hello"...), wire.RecordKind, 1)
	u, err := open.Next(bytes.NewReader(b), make([]byte, wire.BufferSize))
	return err == nil && string(u.Payload) == "hello"
}

func TestHandshake(t *testing.T) {
	for _, size := range []int{MinMessage1, 2000, MaxMessage1} {
		for _, pad := range []int{0, 512} {
			t.Run(fmt.Sprintf("size=%d,pad=%d", size, pad), func(t *testing.T) {
				id := NewID(testServer.Public(), testDay)
				msg, i := initiate(t, id, testHello, size)
				r, hello, err := testServer.Static().Respond(id, msg)
				if err != nil {
					t.Fatal(err)
				}
				if hello.Version != Version || !hello.Time.Equal(testHello.Time) || hello.Engine != "kcp" {
					t.Errorf("hello %+v", hello)
				}
				rest := hello.Datagrams
				for _, want := range []string{"one", "two"} {
					var p []byte
					if p, rest, err = wire.CutDatagram(rest); err != nil || string(p) != want {
						t.Errorf("datagram %q, %v", p, err)
					}
				}
				if _, _, err = wire.CutDatagram(rest); err != io.EOF {
					t.Errorf("after the datagrams: %v", err)
				}

				msg2, server, err := r.Answer(Answer{Version: Version}, pad)
				if err != nil {
					t.Fatal(err)
				}
				body := bytes.NewReader(append(bytes.Clone(msg2), "what follows"...))
				a, client, err := i.Finish(body)
				if err != nil || a != (Answer{Version: Version}) {
					t.Fatalf("answer %+v, %v", a, err)
				}
				if rest, _ := io.ReadAll(body); string(rest) != "what follows" {
					t.Errorf("after message 2: %q", rest)
				}
				if !opens(client.Send, server.Receive) || !opens(server.Send, client.Receive) {
					t.Error("the keys of the two sides differ")
				}
				if opens(client.Send, client.Receive) {
					t.Error("both directions have one key")
				}
			})
		}
	}
}

// The server chooses the cipher, and both sides seal with it.
func TestCipher(t *testing.T) {
	id := NewID(testServer.Public(), testDay)
	for _, asked := range []bool{false, true} {
		for _, chosen := range []wire.Cipher{wire.ChaCha20Poly1305, wire.AES256GCM} {
			msg, i := initiate(t, id, Hello{Version: Version, Engine: "kcp", AES: asked}, 300)
			r, hello, err := testServer.Static().Respond(id, msg)
			if err != nil || hello.AES != asked {
				t.Fatalf("hello %+v, %v", hello, err)
			}
			msg2, server, err := r.Answer(Answer{Version: Version, Cipher: chosen}, 0)
			if err != nil {
				t.Fatal(err)
			}
			a, client, err := i.Finish(bytes.NewReader(msg2))
			if chosen == wire.AES256GCM && !asked {
				if !errors.Is(err, wire.ErrMalformed) {
					t.Errorf("a cipher that was not offered: %v", err)
				}
				continue
			}
			if err != nil || a != (Answer{Version: Version, Cipher: chosen}) {
				t.Errorf("answer %+v, %v", a, err)
			}
			if !opens(client.Send, server.Receive) || !opens(server.Send, client.Receive) {
				t.Error("the two sides cannot read each other")
			}
		}
	}
}

func TestInitiateBounds(t *testing.T) {
	id := NewID(testServer.Public(), testDay)
	full := HelloRoom(200, "kcp", 9)
	for _, c := range []struct {
		name  string
		hello Hello
		size  int
		ok    bool
	}{
		{"full", Hello{Version: Version, Engine: "kcp", Epoch: Epoch{1}, AES: true, Binding: make([]byte, BindingSize), Ask: make([]byte, 9), Datagrams: make([]byte, full)}, 200, true},
		{"overfull", Hello{Version: Version, Engine: "kcp", Epoch: Epoch{1}, AES: true, Binding: make([]byte, BindingSize), Ask: make([]byte, 9), Datagrams: make([]byte, full+1)}, 200, false},
		{"odd binding", Hello{Version: Version, Binding: make([]byte, BindingSize-1)}, MinMessage1, false},
		{"asks too much", Hello{Version: Version, Ask: make([]byte, MaxAsk+1)}, MaxMessage1, false},
		{"small", Hello{Version: Version}, MinMessage1 - 1, false},
		{"large", Hello{Version: Version}, MaxMessage1 + 1, false},
		{"longest name", Hello{Version: Version, Engine: strings.Repeat("e", maxEngine)}, MinMessage1, true},
		{"name too long", Hello{Version: Version, Engine: strings.Repeat("e", maxEngine+1)}, MinMessage1, false},
	} {
		msg, _, err := Initiate(testServer.Public(), id, c.hello, c.size)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil {
			continue
		}
		if _, hello, err := testServer.Static().Respond(id, msg); err != nil || hello.Engine != c.hello.Engine {
			t.Errorf("%s: read %+v, %v", c.name, hello, err)
		}
	}
}

// A first message opens for one key, one session and unaltered only.
func TestRespondRefuses(t *testing.T) {
	id := NewID(testServer.Public(), testDay)
	msg, _ := initiate(t, id, testHello, 300)
	other := id
	other[3] ^= 1
	long, _ := initiate(t, id, testHello, MaxMessage1)
	refuse := func(name string, key PrivateKey, id ID, msg []byte) {
		t.Helper()
		if _, _, err := key.Static().Respond(id, msg); !errors.Is(err, ErrNotNoise) {
			t.Errorf("%s: %v, want ErrNotNoise", name, err)
		}
	}
	refuse("another key", GenerateKey(), id, msg)
	refuse("another session", testServer, other, msg)
	refuse("cut short", testServer, id, msg[:len(msg)-1])
	refuse("longer", testServer, id, append(bytes.Clone(msg), 0))
	refuse("too long", testServer, id, append(long, 0))
	refuse("too short", testServer, id, msg[:MinMessage1-1])
	refuse("empty", testServer, id, nil)
	refuse("zeros", testServer, id, make([]byte, MinMessage1))
	for i := range msg {
		bad := bytes.Clone(msg)
		bad[i] ^= 0x10
		refuse(fmt.Sprintf("byte %d altered", i), testServer, id, bad)
	}
}

// What is not the answer is refused, and the right one is still accepted
// afterwards.
func TestFinishRefuses(t *testing.T) {
	id := NewID(testServer.Public(), testDay)
	msg, i := initiate(t, id, testHello, 300)
	good, server := respond(t, id, msg, Answer{Version: Version}, 7)

	otherID := NewID(testServer.Public(), testDay)
	otherMsg, _ := initiate(t, otherID, testHello, 300)
	other, _ := respond(t, otherID, otherMsg, Answer{Version: Version}, 7)
	// The length of the other session's answer, as this client would read it.
	copy(other, good[:2])

	// An ephemeral key with which every secret is zero.
	lowOrder := bytes.Clone(good)
	clear(lowOrder[2 : 2+EphemeralSize])

	for name, body := range map[string][]byte{
		"another session's": other,
		"low order":         lowOrder,
		"a page":            []byte(strings.Repeat("<!doctype html>", 300)),
		"zeros":             make([]byte, 4096),
	} {
		if _, _, err := i.Finish(bytes.NewReader(body)); !errors.Is(err, ErrNotNoise) && err != io.ErrUnexpectedEOF {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range good {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if _, _, err := i.Finish(bytes.NewReader(good[:n])); err != want {
			t.Errorf("%d bytes of %d: %v, want %v", n, len(good), err, want)
		}
		bad := bytes.Clone(good)
		bad[n] ^= 1
		if _, _, err := i.Finish(bytes.NewReader(bad)); !errors.Is(err, ErrNotNoise) && (n >= 2 || err != io.ErrUnexpectedEOF) {
			t.Errorf("byte %d altered: %v, want ErrNotNoise", n, err)
		}
	}
	_, client, err := i.Finish(bytes.NewReader(good))
	if err != nil || !opens(client.Send, server.Receive) {
		t.Errorf("the right answer after wrong ones: %v", err)
	}
}

// The length of message 2 looks random: the client chose what it is masked
// with. A client accepts exactly the lengths that there can be.
func TestLengthMask(t *testing.T) {
	id := NewID(testServer.Public(), testDay)
	seen := make(map[uint16]bool)
	for range 32 {
		msg, i := initiate(t, id, testHello, 300)
		msg2, _ := respond(t, id, msg, Answer{Version: Version}, 7)
		length := binary.BigEndian.Uint16(msg2)
		seen[length] = true
		if got := int(length ^ i.mask); got != len(msg2)-2 {
			t.Fatalf("message 2 of %d bytes says %d", len(msg2)-2, got)
		}
	}
	if len(seen) < 16 {
		t.Errorf("32 answers have %d lengths on the wire", len(seen))
	}
	_, i := initiate(t, id, testHello, 300)
	for n := range 1 << 16 {
		var head [2]byte
		binary.BigEndian.PutUint16(head[:], uint16(n)^i.mask)
		// The reader has nothing but the length: a client that goes on to
		// read says that it ended too early.
		_, _, err := i.Finish(bytes.NewReader(head[:]))
		if possible := n >= EphemeralSize+noiseTag && n <= maxMessage2; possible != (err == io.ErrUnexpectedEOF) || !possible && err != ErrNotNoise {
			t.Fatalf("length %d: %v", n, err)
		}
	}
}

func TestAnswer(t *testing.T) {
	for _, want := range []Answer{
		{Status: Accepted, Version: Version},
		{Status: UnknownEngine, Version: Version, Text: "kcp-smux,kcp"},
		{Status: UnknownVersion, Version: Version},
		{Status: WrongTime, Version: Version, Time: time.UnixMilli(1700000000123), Epoch: Epoch{1, 15: 2}},
		{Status: WrongTime, Version: Version, Time: time.UnixMilli(-1)},
		{Status: 255, Version: 255, Text: strings.Repeat("x", maxText)},
	} {
		for _, pad := range []int{0, 1, 512} {
			id := NewID(testServer.Public(), testDay)
			msg, i := initiate(t, id, testHello, 300)
			msg2, _ := respond(t, id, msg, want, pad)
			if a, _, err := i.Finish(bytes.NewReader(msg2)); err != nil || a != want {
				t.Errorf("%+v became %+v, %v", want, a, err)
			}
		}
	}
	id := NewID(testServer.Public(), testDay)
	msg, _ := initiate(t, id, testHello, 300)
	for name, c := range map[string]struct {
		a   Answer
		pad int
	}{
		"text":    {Answer{Text: strings.Repeat("x", maxText+1)}, 0},
		"padding": {Answer{}, 513},
		"less":    {Answer{}, -1},
	} {
		r, _, err := testServer.Static().Respond(id, msg)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.Answer(c.a, c.pad); err == nil {
			t.Errorf("%s: answered", name)
		}
	}
}

// A version from the future is understood as far as it has to be: when it was
// made, and how to answer.
func TestVersionFromTheFuture(t *testing.T) {
	future := testHello
	future.Version = Version + 1
	id := NewID(testServer.Public(), testDay)
	msg, i := initiate(t, id, future, 300)
	r, hello, err := testServer.Static().Respond(id, msg)
	if err != nil || hello.Version != Version+1 || !hello.Time.Equal(future.Time) || hello.Engine != "" || hello.Datagrams != nil {
		t.Fatalf("hello %+v, %v", hello, err)
	}
	msg2, _, err := r.Answer(Answer{Status: UnknownVersion, Version: Version}, 3)
	if err != nil {
		t.Fatal(err)
	}
	if a, _, err := i.Finish(bytes.NewReader(msg2)); err != nil || a.Status != UnknownVersion || a.Version != Version {
		t.Errorf("answer %+v, %v", a, err)
	}
}

func TestParseHello(t *testing.T) {
	head := append([]byte{Version}, make([]byte, 10)...)
	hello := func(more ...byte) []byte { return append(bytes.Clone(head), more...) }
	for _, c := range []struct {
		name  string
		plain []byte
		ok    bool
	}{
		{"nothing", nil, false},
		{"half a time", head[:5], false},
		{"no engine", hello(), false},
		{"engine cut short", hello(3, 'k', 'c'), false},
		{"engine too long", hello(append([]byte{maxEngine + 1}, make([]byte, 100)...)...), false},
		{"no extensions", hello(3, 'k', 'c', 'p'), false},
		{"half an extension", hello(3, 'k', 'c', 'p', 0, 2, 1), false},
		{"half an extension's body", hello(3, 'k', 'c', 'p', 0, 2, 9, 2), false},
		{"unknown extensions are skipped", hello(3, 'k', 'c', 'p', 0, 5, 9, 1, 7, 8, 0), true},
		{"a binding of another size is skipped", hello(3, 'k', 'c', 'p', 0, 3, extBinding, 1, 7), true},
		{"an epoch of another size is skipped", hello(3, 'k', 'c', 'p', 0, 3, extEpoch, 1, 7), true},
		{"the longest extension", hello(append([]byte{3, 'k', 'c', 'p', 1, 1, 9, 255}, make([]byte, 255)...)...), true},
		{"least", hello(3, 'k', 'c', 'p', 0, 0), true},
		{"future", append([]byte{Version + 1}, head[1:]...), true},
		{"past", append([]byte{0}, head[1:]...), true},
	} {
		_, err := parseHello(c.plain)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Extensions arrive as they were sent.
func TestExtensions(t *testing.T) {
	id := NewID(testServer.Public(), testDay)
	binding := bytes.Repeat([]byte{7}, BindingSize)
	msg, _, err := Initiate(testServer.Public(), id, Hello{Version: Version, Engine: "quic", Binding: binding, Ask: []byte("ask"), Epoch: Epoch{15: 9}, Datagrams: []byte{0, 1, 9}}, 500)
	if err != nil {
		t.Fatal(err)
	}
	_, got, err := testServer.Static().Respond(id, msg)
	if err != nil || !bytes.Equal(got.Binding, binding) || string(got.Ask) != "ask" || got.Epoch != (Epoch{15: 9}) || !bytes.HasPrefix(got.Datagrams, []byte{0, 1, 9}) {
		t.Errorf("%x, %q, %x, %v", got.Binding, got.Ask, got.Datagrams, err)
	}
}

func FuzzParseHello(f *testing.F) {
	f.Add(append(append([]byte{Version}, make([]byte, 10)...), "\x03kcp\x00\x00\x00\x01x"...))
	f.Add(append([]byte{Version + 1}, make([]byte, 10)...))
	f.Add([]byte{})
	f.Add(append(append([]byte{Version}, make([]byte, 10)...), append([]byte("\x03kcp\x01\x01\x02\xff"), make([]byte, 255)...)...))
	f.Fuzz(func(t *testing.T, plain []byte) {
		h, err := parseHello(plain)
		if err != nil {
			if !errors.Is(err, wire.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if h.Version != plain[0] || uint64(h.Time.UnixMilli()) != binary.BigEndian.Uint64(plain[1:]) ||
			h.mask != binary.BigEndian.Uint16(plain[9:]) {
			t.Fatalf("%x was read as %+v", plain, h)
		}
		if h.Version == Version && (len(h.Engine) > maxEngine || !bytes.HasSuffix(plain, h.Datagrams) ||
			!bytes.HasPrefix(plain[12:], []byte(h.Engine))) {
			t.Fatalf("%x was read as %+v", plain, h)
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte{Accepted, Version, 0, 0})
	f.Add([]byte{UnknownEngine, Version, 0, 3, 'k', 'c', 'p', 0, 0})
	f.Add([]byte{UnknownEngine, Version, 0xff, 0xff})
	f.Add(appendAnswer(nil, Answer{Status: WrongTime, Time: time.UnixMilli(1700000000123), Epoch: Epoch{1}}))
	f.Fuzz(func(t *testing.T, plain []byte) {
		a, err := parseAnswer(plain)
		if err != nil {
			if !errors.Is(err, wire.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again := appendAnswer(nil, a); !bytes.HasPrefix(plain, again) {
			t.Fatalf("%x was read as %+v, written as %x", plain, a, again)
		}
	})
}

// FuzzRespond: whoever lacks the client's part makes no message 1, and it costs
// no more than an error to try.
func FuzzRespond(f *testing.F) {
	id := NewID(testServer.Public(), testDay)
	msg, _ := initiate(f, id, testHello, 300)
	f.Add(msg[1:])
	f.Add([]byte{})
	f.Add(make([]byte, MinMessage1))
	f.Add(make([]byte, MaxMessage1+1))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if _, _, err := testServer.Static().Respond(id, msg); !errors.Is(err, ErrNotNoise) {
			t.Fatal(err)
		}
	})
}

// FuzzFinish: the same for message 2.
func FuzzFinish(f *testing.F) {
	id := NewID(testServer.Public(), testDay)
	_, i := initiate(f, id, testHello, 300)
	f.Add([]byte{})
	f.Add(make([]byte, 4096))
	f.Add(bytes.Repeat([]byte("<html>"), 50))
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, _, err := i.Finish(bytes.NewReader(body)); !errors.Is(err, ErrNotNoise) && err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
	})
}
