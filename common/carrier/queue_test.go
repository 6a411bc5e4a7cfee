package carrier

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"turbotunnel/common/wire"
)

// TestQueue: whatever is put, and however large the records are that are taken, the
// parts in them make up what was put, in order; none is larger than was asked for, and
// behind the end of a datagram that was cut there is nothing else in a record. What it
// says that it keeps is what it has.
func TestQueue(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 11))
		var q queue
		var put, got, part []byte
		kept := 0
		for len(put) < 100_000 || q.bytes > 0 {
			if len(put) < 100_000 && r.IntN(2) == 0 {
				p := bytes.Repeat([]byte{byte(r.IntN(256))}, 1+r.IntN(1+r.IntN(wire.RecordRoom)))
				put = wire.AppendDatagram(put, p)
				kept += q.put(p)
			}
			if len(got) == 0 && r.IntN(4) == 0 && part == nil { // before the first record
				hello, less := q.takeHello(r.IntN(3000))
				got = append(got, hello...)
				kept -= less
			}
			if q.bytes == 0 {
				continue
			}
			most := []int{smallUnit / 4, smallUnit, 5000, wire.MaxUnit}[r.IntN(4)]
			size := min(q.next(), most)
			b, more := q.take(size)
			if unitSize(b) > size {
				t.Fatalf("seed %d: a unit of %d bytes, not of %d", seed, unitSize(b), size)
			}
			kept += more - b.cost() - outgoingCost
			for rest := b.b[wire.HeaderSize:]; len(rest) > 0; {
				p, behind, err := wire.CutPart(rest)
				if err != nil || p.Continues != (part != nil) || p.Continues && !p.GoesOn && len(behind) > 0 {
					t.Fatalf("seed %d: %v, a part that continues %v where %d bytes have come, with %d bytes behind it", seed, err, p.Continues, len(part), len(behind))
				}
				if part, rest = append(part, p.Bytes...), behind; !p.GoesOn {
					got, part = wire.AppendDatagram(got, part), nil
				}
			}
			if b.release(); len(q.records) == 0 && (kept != 0 || q.bytes != 0) {
				t.Fatalf("seed %d: empty, and keeps %d bytes, of which %d wait", seed, kept, q.bytes)
			}
		}
		if !bytes.Equal(got, put) {
			t.Fatalf("seed %d: %d bytes were put, and others came (%d)", seed, len(put), len(got))
		}
	}
	var q queue
	if kept := q.put([]byte("something")); kept == 0 || q.drop() != kept || q.bytes != 0 || q.drop() != 0 {
		t.Error("what is dropped is not what was kept")
	}
}
