package quic

import (
	"math"
	"reflect"
	"unsafe"

	"github.com/quic-go/quic-go"
)

// keepSlowStart makes conn's sender leave slow start by a loss and by nothing
// else, and tells whether that was possible.
//
// The library also leaves it for good when the first 8 acknowledgements of a
// round trip are 4 to 16 ms late (ShouldExitSlowStart in its
// internal/congestion), and counts every acknowledgement for that, those of a
// side that only receives included. Bodies of HTTP, polls and repairs make
// acknowledgements later than that all the time, so slow start ends soon after
// it began, and the window, of 40 KB at first, then grows by one packet a round
// trip: measured, 0.13 of a link of 100 Mbit/s and 100 ms instead of 0.88. The
// judgement exists to keep queues short, which the carrier does itself: its
// WriteTo blocks. There is no setting for it, so the fields that it is made of
// are set: a round that has counted its 8 and never ends.
//
// The sender belongs to the goroutine of conn. keepSlowStart must be called on
// it. Names and types of the fields are those of v0.65.0; where they are
// different it does nothing, and TestSlowStart fails.
func keepSlowStart(conn *quic.Conn) bool {
	sender := field(reflect.ValueOf(conn), "sentPacketHandler", "congestion")
	round := field(sender, "hybridSlowStart")
	threshold, thresholdOK := pointer[int64](field(sender, "slowStartThreshold"))
	end, endOK := pointer[int64](field(round, "endPacketNumber"))
	samples, samplesOK := pointer[uint32](field(round, "rttSampleCount"))
	started, startedOK := pointer[bool](field(round, "started"))
	found, foundOK := pointer[bool](field(round, "hystartFound"))
	if !thresholdOK || !endOK || !samplesOK || !startedOK || !foundOK {
		return false
	}
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
