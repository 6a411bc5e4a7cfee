package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"testing"
	"time"
)

func sameHead(a, b *Head) bool {
	x, y := *a, *b
	same := sameSet(&x.Acks, &y.Acks) && sameSet(&x.Ended, &y.Ended)
	x.Acks, x.Ended, y.Acks, y.Ended = Set{}, Set{}, Set{}, Set{}
	return same && reflect.DeepEqual(x, y)
}

// greatest is the greatest value of a field that is an int: an int of 32 bits
// cannot say all that a field can.
var greatest = number(maxField)

func TestHeadRoundTrip(t *testing.T) {
	wide := Set{Low: 1}
	for i := range uint64(MaxSpans) {
		wide.Spans = append(wide.Spans, Span{MaxNumber/2 + 2*i, MaxNumber/2 + 2*i + 1})
	}
	for name, h := range map[string]Head{
		"zero":     {},
		"echo 0":   {Echoes: true},
		"times":    {Time: 1<<32 - 1, Echoes: true, Echo: 1<<32 - 1, Delay: maxMilli * time.Millisecond},
		"fields":   {Hold: time.Second, Limit: 1, Stream: time.Hour, Quiet: time.Millisecond, Window: 1, Backlog: 3, Close: CloseRoom, Sent: 9, Rate: 5, More: true, Unit: 9, Trip: time.Millisecond, Kept: 4, Tell: time.Millisecond, Told: 7},
		"greatest": {Exchange: MaxNumber, Hold: maxMilli * time.Millisecond, Limit: greatest, Window: maxField, Backlog: greatest, Close: maxField, Sent: maxField, Unit: greatest, Kept: maxField, Rate: greatest, More: true, Trip: maxMilli * time.Millisecond, Tell: maxMilli * time.Millisecond, Told: maxField},
		"sets":     {Acks: wide, Ended: wide},
	} {
		b := h.Append(nil)
		if len(b) > 8<<10 {
			t.Errorf("%s: %d bytes; the carrier leaves 8 KB for a head", name, len(b))
		}
		for _, pad := range []int{0, 1, 100} {
			var got Head
			got.Acks.Spans = []Span{{9, 10}} // memory that is used again
			if err := got.Parse(Pad(b, pad)); err != nil || !sameHead(&got, &h) {
				t.Errorf("%s, %d bytes of padding: %+v became %+v, %v", name, pad, h, got, err)
			}
		}
	}
}

// Values beyond what a field can say are written as the greatest there is.
func TestHeadClamps(t *testing.T) {
	h := Head{Hold: -time.Second, Quiet: 100 * 24 * time.Hour, Window: 1 << 50, Limit: math.MaxInt}
	var got Head
	err := got.Parse(h.Append(nil))
	want := Head{Quiet: maxMilli * time.Millisecond, Window: maxField, Limit: greatest}
	if err != nil || !sameHead(&got, &want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

// headBytes is a head's plaintext made of numbers.
func headBytes(numbers ...uint64) (b []byte) {
	for _, n := range numbers {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func TestHeadParse(t *testing.T) {
	for _, c := range []struct {
		name  string
		plain []byte
		ok    bool
	}{
		{"empty", nil, false},
		{"no sets", headBytes(1, 2, 0), false},
		{"half a number", append(headBytes(1, 2, 0, 0, 0, 0), 0x80), false},
		{"least", headBytes(1, 2, 0, 0, 0, 0, 0), true},
		{"unknown field", headBytes(1, 2, 0, 0, 0, 0, 0, 99, 1<<62), true},
		{"field without a value", headBytes(1, 2, 0, 0, 0, 0, 0, 99), false},
		{"field too large", headBytes(1, 2, 0, 0, 0, 0, 0, fieldWindow, maxField+1), false},
		{"field of any size in padding", headBytes(1, 2, 0, 0, 0, 0, 0, fieldEnd, fieldWindow), true},
		{"exchange too large", headBytes(MaxNumber+1, 2, 0, 0, 0, 0, 0), false},
		{"time too large", headBytes(1, 1<<32, 0, 0, 0, 0, 0), false},
		{"echo too large", headBytes(1, 2, 1<<32+1, 0, 0, 0, 0), false},
		{"echo without delay", headBytes(1, 2, 1), false},
		{"number of 11 bytes", bytes.Repeat([]byte{0xff}, 11), false},
	} {
		var h Head
		err := h.Parse(c.plain)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	var h Head
	if err := h.Parse(headBytes(1, 2, 0, 0, 0, 0, 0, fieldHold, 7, fieldHold, 9)); err != nil || h.Hold != 9*time.Millisecond {
		t.Errorf("a repeated field counts as %v, %v, want the last", h.Hold, err)
	}
}

func FuzzHead(f *testing.F) {
	f.Add([]byte{})
	f.Add(headBytes(1, 2, 0, 0, 0, 0, 0))
	f.Add(headBytes(MaxNumber, 1<<32-1, 1<<32, maxMilli, 5, 2, 1, 0, 3, 9, 7, 1, 1, 1, 1, 25000, 99, 4, fieldWindow, maxField))
	f.Add(headBytes(1, 2, 0, 0, MaxSpans+1))
	full := Head{Echoes: true, Delay: time.Second, Acks: Set{4, []Span{{9, 12}}}, Hold: time.Second, Limit: 1, Stream: 1e9, Quiet: 1e9, Window: 7, Backlog: 8, Close: 1, Sent: 9}
	f.Add(Pad(full.Append(nil), 9))
	f.Fuzz(func(t *testing.T, plain []byte) {
		var h, again Head
		if err := h.Parse(plain); err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if len(h.Acks.Spans) > MaxSpans || len(h.Ended.Spans) > MaxSpans {
			t.Fatalf("%d and %d spans", len(h.Acks.Spans), len(h.Ended.Spans))
		}
		b := h.Append(nil)
		if err := again.Parse(b); err != nil || !bytes.Equal(again.Append(nil), b) {
			t.Fatalf("%x was read as %+v, written as %x and read as %+v, %v", plain, h, b, again, err)
		}
		if !sameHead(&h, &again) {
			t.Fatalf("%+v became %+v", h, again)
		}
	})
}
