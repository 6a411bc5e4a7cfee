package quic

import (
	"math"
	"reflect"
	"unsafe"

	"github.com/quic-go/quic-go"
)

// openWindow gives conn's sender a congestion window of size bytes, if it has
// less, and has it double each round trip up to 12.8 MB until a loss.
//
// How much is on its way is the carrier's decision: it knows its path, and its
// WriteTo blocks. The library decides as well, by Reno, which leaves slow start when
// the first 8 acknowledgements of a round are 4 to 16 ms late (ShouldExitSlowStart in
// its internal/congestion), as polls and repairs make them all the time: 0.13 of a
// link of 100 Mbit/s and 100 ms in place of 0.96. There is no setting for it. So the
// fields are set: the window, and a round that has counted its 8 and never ends.
//
// The sender belongs to the goroutine of conn. openWindow must be called on it. Names
// and types of the fields are those of v0.65.0; where they are different reflect
// panics before anything is set, and TestWindow fails.
func openWindow(conn *quic.Conn, size int64) {
	defer func() { _ = recover() }()
	sender := reflect.ValueOf(conn).Elem().FieldByName("sentPacketHandler").Elem().Elem().FieldByName("congestion").Elem().Elem()
	round := sender.FieldByName("hybridSlowStart")
	window, threshold := pointer[int64](sender, "congestionWindow"), pointer[int64](sender, "slowStartThreshold")
	end, samples := pointer[int64](round, "endPacketNumber"), pointer[uint32](round, "rttSampleCount")
	started, found := pointer[bool](round, "started"), pointer[bool](round, "hystartFound")
	*window = max(*window, size)
	*threshold, *end, *samples, *started, *found = math.MaxInt64, math.MaxInt64, 9, true, false
}

// pointer returns a pointer to a field of v, whose type is T or made from it.
func pointer[T int64 | uint32 | bool](v reflect.Value, name string) *T {
	f := v.FieldByName(name)
	if f.Kind() != reflect.TypeFor[T]().Kind() {
		panic(name)
	}
	return (*T)(unsafe.Pointer(f.UnsafeAddr()))
}
