package carrier

import "turbotunnel/common/wire"

// A queue is the datagrams that have no number yet, packed into records. What comes
// out, in records as large as is asked for, is what was put in, in order; a datagram
// that is larger than a record is cut into parts. It has no bound of its own: it says
// how much more, or less, it keeps than before. It is not safe for concurrent use.
type queue struct {
	records []*buffer // room for a header first; the last one is open
	bytes   int       // of datagrams in them, with their lengths
}

// put appends a copy of a datagram.
func (q *queue) put(p []byte) (more int) {
	need := 2 + len(p)
	var tail *buffer
	if n := len(q.records); n > 0 && len(q.records[n-1].b)+need <= wire.HeaderSize+wire.MaxPlaintext {
		tail = q.records[n-1]
	} else {
		tail = newBuffer()
		tail.b = tail.b[:wire.HeaderSize]
		q.records = append(q.records, tail)
		more = tail.cost() + outgoingCost
	}
	tail.b = wire.AppendDatagram(tail.b, p)
	q.bytes += need
	return more
}

// takeHello takes out whole datagrams, at most room bytes of them with their lengths.
func (q *queue) takeHello(room int) (hello []byte, less int) {
	for len(q.records) > 0 {
		b := q.records[0]
		p, rest, err := wire.CutDatagram(b.b[wire.HeaderSize:])
		if err != nil { // the end of this record
			q.pop()
			less += b.cost() + outgoingCost
			b.release()
			continue
		}
		if len(hello)+2+len(p) > room {
			break
		}
		hello = wire.AppendDatagram(hello, p)
		q.bytes -= 2 + len(p)
		b.b = b.b[:wire.HeaderSize+copy(b.b[wire.HeaderSize:], rest)]
	}
	return hello, less
}

// next is the size of the unit that the first record becomes, before it is cut. There
// is one.
func (q *queue) next() int { return unitSize(q.records[0]) }

// unitSize is the size of the unit that b becomes.
func unitSize(b *buffer) int { return len(b.b) + wire.Overhead - wire.HeaderSize }

// take takes out the first record of at most size bytes as a unit. There is one: a
// datagram that is larger is cut into parts.
func (q *queue) take(size int) (b *buffer, more int) {
	b, room := q.records[0], size-wire.Overhead
	head, rest, _ := wire.CutPart(b.b[wire.HeaderSize:])
	alone := head.Continues && len(rest) > 0 // the other side has no room for more behind a datagram's end
	if len(b.b)-wire.HeaderSize <= room && !alone {
		q.bytes -= len(b.b) - wire.HeaderSize
		q.pop()
		return b, 0
	}
	plain, n := b.b[wire.HeaderSize:], 0
	for {
		p, _, err := wire.CutPart(plain[n:])
		if err != nil || n+2+len(p.Bytes) > room {
			break
		}
		if n += 2 + len(p.Bytes); alone {
			break
		}
	}
	first := newBufferOf(size + unitScratch)
	first.b = append(first.b[:wire.HeaderSize], plain[:n]...)
	if n == 0 {
		p, _, _ := wire.CutPart(plain) // of our own making
		n = room - 2
		first.b = wire.AppendPart(first.b, wire.Part{Bytes: p.Bytes[:n], Continues: p.Continues, GoesOn: true})
		// The rest's length stands where the end of what was taken was.
		wire.AppendPart(plain[:n], wire.Part{Bytes: p.Bytes[n:], Continues: true, GoesOn: p.GoesOn})
	}
	b.b = b.b[:wire.HeaderSize+copy(plain, plain[n:])]
	q.bytes -= n
	return first, first.cost() + outgoingCost
}

// pop forgets the first record.
func (q *queue) pop() {
	q.records[0] = nil
	q.records = q.records[1:]
}

// drop gives everything back.
func (q *queue) drop() (less int) {
	for _, b := range q.records {
		less += b.cost() + outgoingCost
		b.release()
	}
	q.records, q.bytes = nil, 0
	return less
}
