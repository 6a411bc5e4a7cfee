package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
)

// A Head is what one side tells the other about the exchange that carries it
// and about the session. Every body begins with one.
//
// Its plaintext, numbers being unsigned varints:
//
//	exchange    the number of the exchange that carries it
//	time        the sender's clock in milliseconds, modulo 2³²
//	echo        the time in the newest head received, plus one; 0: none yet
//	delay       milliseconds since that head arrived; present if echo is not 0
//	acks        Set of the records received, or no longer waited for
//	ended       Set of the exchanges of which no more will be received
//	fields      each a type from 1 up and a value; type 0 ends the head and
//	            what follows is padding
//
// The types are the constants below; a field of an unknown type is skipped,
// a repeated one counts as last seen, a missing one is 0.
type Head struct {
	Exchange uint64
	Time     uint32
	Echo     uint32 // meaningful if Echoes
	Echoes   bool
	Delay    time.Duration // whole milliseconds on the wire
	Acks     Set
	Ended    Set

	Hold    time.Duration // request: how long the answer may wait for something to say
	Limit   int           // request: the largest body of the answer, in bytes
	Stream  time.Duration // request: keep the answer open as long as this and write records as they come
	Quiet   time.Duration // request: in such an answer, never be silent longer than this
	Window  uint64        // both: records below this number have room
	Backlog int           // answer: bytes that wait to be sent
	Sent    uint64        // both: records below this number exist
	Kept    uint64        // both: those below this number that have not come will not come; 0: all will
	Close   uint64        // both: the sender has ended the session, for this reason
	Rate    int           // answer: bytes a second that the path carries to the client, as the server has just found; first message: as one has found before
	More    bool          // beside Rate: the path may carry more
	Unit    int           // request, first message: the largest unit of the answers, in bytes; 0: MaxUnit
	Trip    time.Duration // first message: the path's shortest round trip of late
	Tell    time.Duration // request: its body stays open; what comes in it is to be told in other answers, so late at most
	Told    uint64        // answer: one more than the number of the newest head that has come in a body which is open; 0: none is
}

// Types of a head's fields.
const (
	fieldEnd     = 0
	fieldHold    = 1  // milliseconds
	fieldLimit   = 2  // bytes
	fieldStream  = 3  // milliseconds
	fieldQuiet   = 4  // milliseconds
	fieldWindow  = 5  // record number
	fieldBacklog = 6  // bytes
	fieldClose   = 7  // reason
	fieldSent    = 8  // record number
	fieldRate    = 9  // bytes a second
	fieldTrip    = 10 // milliseconds
	fieldMore    = 11 // 1: yes
	fieldUnit    = 12 // bytes
	fieldTell    = 13 // milliseconds
	fieldTold    = 14 // number of a head, plus one
	fieldKept    = 15 // record number
)

// Reasons to close a session.
const (
	CloseDone = 1 // nothing more to do
	CloseRoom = 3 // too much memory held for a peer that takes nothing

	// No reason is 2, which stood for a side that was silent for too long: it would
	// not have heard it.
)

const (
	maxField = 1 << 40 // no field needs a larger value
	maxMilli = 1 << 32 // nor a duration: 49 days
)

// Append appends the head's plaintext to b.
func (h *Head) Append(b []byte) []byte {
	b = binary.AppendUvarint(b, h.Exchange)
	b = binary.AppendUvarint(b, uint64(h.Time))
	if h.Echoes {
		b = binary.AppendUvarint(b, uint64(h.Echo)+1)
		b = binary.AppendUvarint(b, milli(h.Delay))
	} else {
		b = append(b, 0)
	}
	b = h.Acks.append(b)
	b = h.Ended.append(b)
	b = appendField(b, fieldHold, milli(h.Hold))
	b = appendField(b, fieldLimit, uint64(h.Limit))
	b = appendField(b, fieldStream, milli(h.Stream))
	b = appendField(b, fieldQuiet, milli(h.Quiet))
	b = appendField(b, fieldWindow, h.Window)
	b = appendField(b, fieldBacklog, uint64(h.Backlog))
	b = appendField(b, fieldClose, h.Close)
	b = appendField(b, fieldSent, h.Sent)
	b = appendField(b, fieldRate, uint64(h.Rate))
	b = appendField(b, fieldTrip, milli(h.Trip))
	if h.More {
		b = appendField(b, fieldMore, 1)
	}
	b = appendField(b, fieldUnit, uint64(h.Unit))
	b = appendField(b, fieldTell, milli(h.Tell))
	b = appendField(b, fieldTold, h.Told)
	return appendField(b, fieldKept, h.Kept)
}

// Pad appends n bytes of padding to a head's plaintext, at least 1.
func Pad(b []byte, n int) []byte {
	return append(b, make([]byte, n)...) // fieldEnd and n-1 more
}

func milli(d time.Duration) uint64 {
	return uint64(min(max(d.Milliseconds(), 0), maxMilli))
}

func appendField(b []byte, kind byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(append(b, kind), min(v, maxField))
}

// Parse reads a head's plaintext into h, re-using the memory of its sets. It
// returns ErrMalformed for anything that breaks the format.
func (h *Head) Parse(b []byte) error {
	acks, ended := h.Acks.Spans, h.Ended.Spans
	*h = Head{}
	h.Acks.Spans, h.Ended.Spans = acks, ended
	var err error
	var v uint64
	if h.Exchange, b, err = cutUvarint(b, MaxNumber); err != nil {
		return err
	}
	if v, b, err = cutUvarint(b, 1<<32-1); err != nil {
		return err
	}
	h.Time = uint32(v)
	if v, b, err = cutUvarint(b, 1<<32); err != nil {
		return err
	}
	if v > 0 {
		h.Echo, h.Echoes = uint32(v-1), true
		if v, b, err = cutUvarint(b, maxMilli); err != nil {
			return err
		}
		h.Delay = time.Duration(v) * time.Millisecond
	}
	if b, err = h.Acks.parse(b); err != nil {
		return err
	}
	if b, err = h.Ended.parse(b); err != nil {
		return err
	}
	for len(b) > 0 {
		var kind uint64
		if kind, b, err = cutUvarint(b, maxField); err != nil {
			return err
		}
		if kind == fieldEnd {
			return nil
		}
		if v, b, err = cutUvarint(b, 1<<63); err != nil {
			return err
		}
		if kind <= fieldKept && v > maxField {
			return fmt.Errorf("%w: field %d is %d", ErrMalformed, kind, v)
		}
		switch kind {
		case fieldHold:
			h.Hold = duration(v)
		case fieldLimit:
			h.Limit = number(v)
		case fieldStream:
			h.Stream = duration(v)
		case fieldQuiet:
			h.Quiet = duration(v)
		case fieldWindow:
			h.Window = v
		case fieldBacklog:
			h.Backlog = number(v)
		case fieldClose:
			h.Close = v
		case fieldSent:
			h.Sent = v
		case fieldRate:
			h.Rate = number(v)
		case fieldTrip:
			h.Trip = duration(v)
		case fieldMore:
			h.More = v > 0
		case fieldUnit:
			h.Unit = number(v)
		case fieldTell:
			h.Tell = duration(v)
		case fieldTold:
			h.Told = v
		case fieldKept:
			h.Kept = v
		}
	}
	return nil
}

// number is v as an int, or the greatest int where it has 32 bits only.
func number(v uint64) int { return int(min(v, math.MaxInt)) }

func duration(ms uint64) time.Duration {
	return time.Duration(min(ms, maxMilli)) * time.Millisecond
}
