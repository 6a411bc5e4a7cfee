package carrier

import (
	"bytes"
	"testing"

	"turbotunnel/common/wire"
)

// TestUnits: whatever the size of the reads, what comes is the head and the sealed
// records, none is sealed before it is read, and each buffer is given back once,
// wherever reading ends.
func TestUnits(t *testing.T) {
	key := wire.NewKey([32]byte{1}, wire.ChaCha20Poly1305)
	for _, head := range []string{"", "head"} {
		for step := 1; step <= 60; step++ {
			for reads := range 200 {
				var records []*sentRecord
				want := []byte(head)
				for i := range 4 {
					b := newBuffer()
					b.b = wire.AppendDatagram(b.b[:wire.HeaderSize], noise[i:i+20])
					want = append(want, key.Seal(bytes.Clone(b.b), wire.RecordKind, uint64(i))...)
					b.retain() // the link's
					records = append(records, &sentRecord{number: uint64(i), buf: b})
				}
				u := units{part: []byte(head), records: records}
				var got []byte
				for range reads {
					p := make([]byte, step)
					got = append(got, p[:u.read(p, key)]...)
				}
				if len(got) != min(len(want), reads*step) || !bytes.HasPrefix(want, got) || u.empty() != (len(got) == len(want)) {
					t.Fatalf("%d reads of %d: %d bytes, %v", reads, step, len(got), u.empty())
				}
				for i, r := range records {
					begun := len(got) > len(head) && (len(got)-len(head)-1)*len(records)/(len(want)-len(head)) >= i
					if sealed := bytes.Contains(want, r.buf.b); sealed != begun {
						t.Fatalf("%d reads of %d: record %d sealed: %v", reads, step, i, sealed)
					}
				}
				u.drop()
				u.drop()
				for i, r := range records {
					if refs := r.buf.refs.Load(); refs != 1 {
						t.Fatalf("%d reads of %d: the buffer of record %d has %d owners", reads, step, i, refs)
					}
					r.buf.release()
				}
				if u.read(make([]byte, 1), key) != 0 || !u.empty() {
					t.Fatal("something is left")
				}
			}
		}
	}
}
