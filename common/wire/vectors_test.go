package wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"
)

// vectors reads testdata/vectors.txt, which an implementation of its own made
// from the description of the format.
func vectors(t *testing.T) map[string][]byte {
	t.Helper()
	f, err := os.Open("testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v := make(map[string][]byte)
	for s := bufio.NewScanner(f); s.Scan(); {
		name, value, ok := strings.Cut(s.Text(), " ")
		if !ok || name == "#" {
			continue
		}
		b, err := hex.DecodeString(value)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		v[name] = b
	}
	return v
}

func TestVectors(t *testing.T) {
	v := vectors(t)
	for _, c := range []struct {
		name string
		kind Kind
		by   Cipher
		unit string
	}{
		{"record", RecordKind, ChaCha20Poly1305, ".unit"},
		{"head", HeadKind, ChaCha20Poly1305, ".unit"},
		{"record", RecordKind, AES256GCM, ".unit.aes"},
		{"head", HeadKind, AES256GCM, ".unit.aes"},
	} {
		key := NewKey([32]byte(v["key"]), c.by)
		number := binary.BigEndian.Uint64(v[c.name+".number"])
		plain, unit := v[c.name+".plaintext"], v[c.name+c.unit]
		if len(plain) == 0 || len(unit) == 0 {
			t.Fatalf("%s: no vector", c.name)
		}
		if got := key.Seal(append(make([]byte, HeaderSize), plain...), c.kind, number); !bytes.Equal(got, unit) {
			t.Errorf("%s: sealed\n%x, want\n%x", c.name, got, unit)
		}
		u, err := key.Next(bytes.NewReader(unit), make([]byte, BufferSize))
		if err != nil || u.Kind != c.kind || u.Number != number || !bytes.Equal(u.Payload, plain) {
			t.Errorf("%s: opened %v %d %x, %v", c.name, u.Kind, u.Number, u.Payload, err)
		}
		other := NewKey([32]byte(v["key"]), AES256GCM-c.by)
		if _, err := other.Next(bytes.NewReader(unit), make([]byte, BufferSize)); err == nil {
			t.Errorf("%s: opened by the other cipher", c.name)
		}
	}
}

// TestVectorOfHead pins what each field of the head in the vectors means.
func TestVectorOfHead(t *testing.T) {
	plain := vectors(t)["head.plaintext"]
	want := Head{
		Exchange: 300,
		Time:     0xfffffff0,
		Echo:     123456, Echoes: true, Delay: 17 * time.Millisecond,
		Acks:    Set{1000, []Span{{1001, 1003}, {1010, 1011}}},
		Ended:   Set{290, []Span{{295, 299}}},
		Hold:    25 * time.Second,
		Limit:   1 << 20,
		Stream:  time.Minute,
		Quiet:   20 * time.Second,
		Window:  3048,
		Backlog: 70000,
		Close:   CloseDone,
		Sent:    1234,
	}
	var got Head
	if err := got.Parse(plain); err != nil || !sameHead(&got, &want) {
		t.Errorf("read %+v, %v", got, err)
	}
	if b := Pad(want.Append(nil), 6); !bytes.Equal(b, plain) {
		t.Errorf("wrote %x, want %x", b, plain)
	}
	records := vectors(t)["record.plaintext"]
	for _, want := range []string{"one", "second datagram"} {
		p, rest, err := CutDatagram(records)
		if err != nil || string(p) != want {
			t.Fatalf("datagram %q, %v, want %q", p, err, want)
		}
		records = rest
	}
}
