package carrier

import (
	"sync"
	"sync/atomic"

	"turbotunnel/common/wire"
)

// A buffer holds one unit and the room to seal or open it in place, or what was
// in one. It is shared by counting: the link keeps a record until it is
// acknowledged, and an exchange that writes it may still be at it then.
type buffer struct {
	raw   []byte
	b     []byte // within raw
	refs  atomic.Int32
	class int8
}

// classes are the sizes of buffers, in bytes, and costs what each takes: what Go
// allocates for it, and the buffer itself. What has to be kept is kept in the
// smallest that fits, so that records of a few bytes, of which a peer may leave
// thousands unread, missing or unacknowledged, take little. A larger class below
// that of a unit would mean to copy more than it saves.
var (
	classes = [...]int{128, 512, 2048, wire.BufferSize}
	costs   = [...]int{128 + 64, 512 + 64, 2048 + 64, 18432 + 64}
	buffers [len(classes)]sync.Pool
)

const unitClass = len(classes) - 1

// unitCost is what a buffer for a unit takes, in bytes.
const unitCost = 18432 + 64

// newBuffer returns an empty buffer for a unit, with one reference.
func newBuffer() *buffer { return newBufferOf(wire.BufferSize) }

// newBufferOf returns an empty buffer of the smallest class that has room for n
// bytes, with one reference.
func newBufferOf(n int) *buffer {
	class := 0
	for classes[class] < n {
		class++
	}
	b, _ := buffers[class].Get().(*buffer)
	if b == nil {
		b = &buffer{raw: make([]byte, classes[class]), class: int8(class)}
	}
	b.b = b.raw[:0]
	b.refs.Store(1)
	return b
}

// cost is what the buffer takes, in bytes.
func (b *buffer) cost() int { return costs[b.class] }

// fitting returns a copy of the buffer in a smaller one, in which there are room
// more bytes; or nil if there is no smaller one.
func (b *buffer) fitting(room int) *buffer {
	if int(b.class) < unitClass || len(b.b)+room > classes[unitClass-1] {
		return nil
	}
	small := newBufferOf(len(b.b) + room)
	small.b = append(small.b, b.b...)
	return small
}

// retain adds a reference.
func (b *buffer) retain() { b.refs.Add(1) }

// release takes a reference away. Who had the last one gives the buffer back.
func (b *buffer) release() {
	switch n := b.refs.Add(-1); {
	case n == 0:
		buffers[b.class].Put(b)
	case n < 0:
		panic("carrier: buffer released twice")
	}
}
