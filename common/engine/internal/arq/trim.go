package arq

import (
	"reflect"
	"sync"

	"github.com/xtaci/kcp-go/v5"
)

// ringSize is the length of a trimmed ring: RINGBUFFER_MIN in kcp-go.
const ringSize = kcp.RINGBUFFER_MIN

// trim makes the rings of segments in k small that are empty. A new KCP has
// room for 256 segments in them, 14 KB, and rings that have grown stay so: 0.7 MB
// after a transfer at full speed. There is no other way to them; TestTrim
// fails with a kcp-go in which they look different.
func trim(k *kcp.KCP) {
	v := reflect.ValueOf(k).Elem()
	for _, name := range []string{"snd_buf", "snd_queue", "rcv_queue"} {
		ring := v.FieldByName(name).Elem()
		head, tail := field(ring, "head"), field(ring, "tail")
		elements := field(ring, "elements")
		if head.Int() == tail.Int() && elements.Len() > ringSize {
			head.SetInt(0)
			tail.SetInt(0)
			elements.Set(reflect.MakeSlice(elements.Type(), ringSize, ringSize))
		}
	}
	heap := v.FieldByName("rcv_buf").Elem()
	if segments := field(heap, "segments"); segments.Len() == 0 {
		segments.SetZero()
		marks := field(heap, "marks")
		marks.Set(reflect.MakeMap(marks.Type()))
	}
	if acks := field(v, "acklist"); acks.Len() == 0 {
		acks.SetZero()
	}
}

// flushSize is the size in bytes of what KCP wants for a flush: room for three
// segments (SetMtu in kcp-go).
const flushSize = 3 * (headerSize + SegmentSize + headerSize)

var flushBuffers = sync.Pool{New: func() any { return new([flushSize]byte) }}

// flushMemory is where k keeps the memory that a flush fills and hands to
// output. TestFlushMemory fails with a kcp-go in which that is different.
func flushMemory(k *kcp.KCP) *[]byte {
	return field(reflect.ValueOf(k).Elem(), "buffer").Addr().Interface().(*[]byte)
}

// lend gives KCP memory for what it puts out until takeBack: it would hold its
// 4.6 KB all the time. Mu is held.
func (l *Link) lend() { *l.lent = flushBuffers.Get().(*[flushSize]byte)[:] }

func (l *Link) takeBack() {
	flushBuffers.Put((*[flushSize]byte)(*l.lent))
	*l.lent = nil
}

// field makes an unexported field of a struct that can be addressed usable.
func field(v reflect.Value, name string) reflect.Value {
	f := v.FieldByName(name)
	return reflect.NewAt(f.Type(), f.Addr().UnsafePointer()).Elem()
}
