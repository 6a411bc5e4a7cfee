package carrier

import (
	"sync"
	"sync/atomic"

	"turbotunnel/common/wire"
)

// A buffer holds one unit and the room to seal or open it in place. It is
// shared by counting: the link keeps a record until it is acknowledged, and an
// exchange that writes it may still be at it then.
type buffer struct {
	raw  [wire.BufferSize]byte
	b    []byte // within raw
	refs atomic.Int32
}

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// newBuffer returns an empty buffer with one reference.
func newBuffer() *buffer {
	b := buffers.Get().(*buffer)
	b.b = b.raw[:0]
	b.refs.Store(1)
	return b
}

func (b *buffer) retain() { b.refs.Add(1) }

func (b *buffer) release() {
	switch n := b.refs.Add(-1); {
	case n == 0:
		buffers.Put(b)
	case n < 0:
		panic("carrier: buffer released twice")
	}
}
