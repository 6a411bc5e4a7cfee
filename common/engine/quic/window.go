package quic

import (
	"math"
	"reflect"
	"unsafe"

	"github.com/quic-go/quic-go"
)

// openWindow gives conn's sender a congestion window of size bytes, if it has
// less, and has it double each round trip up to 12.8 MB until a loss. It tells
// whether that was possible.
//
// How much is on its way is the carrier's decision: it knows its path, and its
// WriteTo blocks. The library decides as well, by Reno, which leaves slow start when
// the first 8 acknowledgements of a round are 4 to 16 ms late (ShouldExitSlowStart in
// its internal/congestion), as polls and repairs make them all the time: 0.13 of a
// link of 100 Mbit/s and 100 ms in place of 0.96. There is no setting for it. So the
// fields are set: the window, and a round that has counted its 8 and never ends.
//
// The sender belongs to the goroutine of conn. openWindow must be called on it.
// Names and types of the fields are those of v0.65.0; where they are different
// it does nothing, and TestWindow fails.
func openWindow(conn *quic.Conn, size int64) bool {
	sender := field(reflect.ValueOf(conn), "sentPacketHandler", "congestion")
	round := field(sender, "hybridSlowStart")
	threshold, thresholdOK := pointer[int64](field(sender, "slowStartThreshold"))
	window, windowOK := pointer[int64](field(sender, "congestionWindow"))
	end, endOK := pointer[int64](field(round, "endPacketNumber"))
	samples, samplesOK := pointer[uint32](field(round, "rttSampleCount"))
	started, startedOK := pointer[bool](field(round, "started"))
	found, foundOK := pointer[bool](field(round, "hystartFound"))
	if !thresholdOK || !windowOK || !endOK || !samplesOK || !startedOK || !foundOK {
		return false
	}
	*window = max(*window, size)
	*threshold, *end, *samples, *started, *found = math.MaxInt64, math.MaxInt64, 9, true, false
	return true
}

// field returns the field that names lead to, through pointers and interfaces,
// or the zero Value.
func field(v reflect.Value, names ...string) reflect.Value {
	for _, name := range append(names, "") {
		for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
			v = v.Elem()
		}
		if name == "" {
			break
		}
		if v.Kind() != reflect.Struct {
			return reflect.Value{}
		}
		v = v.FieldByName(name)
	}
	return v
}

// pointer returns a pointer to the field v if its type is T or made from it.
func pointer[T int64 | uint32 | bool](v reflect.Value) (*T, bool) {
	if !v.IsValid() || !v.CanAddr() || v.Kind() != reflect.TypeFor[T]().Kind() {
		return nil, false
	}
	return (*T)(unsafe.Pointer(v.UnsafeAddr())), true
}
