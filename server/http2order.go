package main

//lint:file-ignore SA1019 see http2.go

import (
	"container/list"
	"math"

	"golang.org/x/net/http2"
)

const (
	// fewFrames is for how many frames a queue keeps room when it is empty, and how
	// many that are no stream's cost nothing: more than wait where the other end takes
	// what it is sent.
	fewFrames = 64

	// controlCost is what a frame that is no stream's takes while it waits, in bytes:
	// itself and its place (measured: 9900 answers to PING took 610 KB).
	controlCost = 64
)

// A frame is http2.FrameWriteRequest, whose methods say what is meant: Consume takes
// as many bytes as may be written now, and returns what to write, what is left, and
// how many of the two there are.
type frame[F any] interface {
	StreamID() uint32
	DataSize() int
	Consume(n int32) (now, rest F, pieces int)
}

// A frameOrder is in which order the frames of a connection are written: first those
// that are no stream's, then a frame of each stream in turn. That is also package
// http2's order, but it looks for each frame at all streams, of which a proxy's
// connection has up to 250, most of them answers that wait: with 2000 sessions at rest
// behind a proxy that was a fifth of what the processor did. This one knows which
// streams have frames. It belongs to the connection's goroutine.
type frameOrder[F frame[F]] struct {
	isControl func(F) bool // of a frame without data: whether it is no stream's; constant, like hold
	hold      func(int64)  // is told of bytes more, or fewer, that these frames take
	first     frames[F]    // they come before all others
	places    int          // of first that hold was told of
	streams   map[uint32]*streamFrames[F]
	turns     list.List // of *streamFrames[F]: of those that have any, the next one first
}

// streamFrames are those of a stream.
type streamFrames[F any] struct {
	frames[F]
	turn *list.Element // nil: there are none
}

// newFrameOrder is the order of one connection, for http2.Server.
func newFrameOrder(hold func(int64)) http2.WriteScheduler { return makeFrameOrder(newSieve(), hold) }

func makeFrameOrder[F frame[F]](isControl func(F) bool, hold func(int64)) *frameOrder[F] {
	return &frameOrder[F]{isControl: isControl, hold: hold, streams: make(map[uint32]*streamFrames[F])}
}

// newSieve returns what tells whether a frame is no stream's, though it may be about
// one, as RST_STREAM is. Package http2 says that to its own schedulers only, which
// keep such a frame when they hear that the stream is closed.
func newSieve() func(http2.FrameWriteRequest) bool {
	sieve := http2.NewRandomWriteScheduler()
	return func(f http2.FrameWriteRequest) bool {
		sieve.Push(f)
		sieve.CloseStream(f.StreamID())
		_, kept := sieve.Pop()
		return kept
	}
}

// OpenStream has a stream begin.
func (o *frameOrder[F]) OpenStream(stream uint32, _ http2.OpenStreamOptions) {
	o.streams[stream] = new(streamFrames[F])
}

// CloseStream drops what waits of a stream.
func (o *frameOrder[F]) CloseStream(stream uint32) {
	if s := o.streams[stream]; s != nil && s.turn != nil {
		o.turns.Remove(s.turn)
	}
	delete(o.streams, stream)
}

// AdjustStream does nothing: all streams are alike.
func (o *frameOrder[F]) AdjustStream(uint32, http2.PriorityParam) {}

// Push has a frame wait.
func (o *frameOrder[F]) Push(f F) {
	s := o.streams[f.StreamID()]
	if s == nil || f.DataSize() == 0 && o.isControl(f) {
		o.first.push(f)
		o.count()
		return
	}
	if s.push(f); s.turn == nil {
		s.turn = o.turns.PushBack(s)
	}
}

// Pop returns what to write next, if there is anything that may be written now.
func (o *frameOrder[F]) Pop() (f F, ok bool) {
	if !o.first.isEmpty() {
		f = *o.first.next()
		o.first.drop()
		o.count()
		return f, true
	}
	for range o.turns.Len() {
		turn := o.turns.Front()
		s := turn.Value.(*streamFrames[F])
		now, rest, pieces := (*s.next()).Consume(math.MaxInt32)
		switch pieces {
		case 1:
			s.drop()
		case 2:
			*s.next() = rest
		}
		if s.isEmpty() {
			o.turns.Remove(turn)
			s.turn = nil
		} else {
			o.turns.MoveToBack(turn)
		}
		if pieces > 0 {
			return now, true
		}
	}
	return f, false
}

// count counts the frames that are no stream's, by the places that there are for them:
// who sends PING after PING and takes no answer has package http2 keep 10 000. What
// waits of a stream is data that its handler holds.
func (o *frameOrder[F]) count() {
	places := cap(o.first.all)
	if places <= fewFrames {
		places = 0
	}
	if places != o.places {
		o.hold(int64(places-o.places) * controlCost)
		o.places = places
	}
}

// frames are those that wait, in a queue. The zero value is an empty one.
type frames[F any] struct {
	all []F
	at  int // of the next one
}

func (q *frames[F]) isEmpty() bool { return q.at == len(q.all) }

// next is the next one of a queue that is not empty.
func (q *frames[F]) next() *F { return &q.all[q.at] }

// push adds one. Of the places of those that have gone no more are kept than of those
// that wait.
func (q *frames[F]) push(f F) {
	if q.at > len(q.all)/2 {
		n := copy(q.all, q.all[q.at:])
		clear(q.all[n:])
		q.all, q.at = q.all[:n], 0
	}
	q.all = append(q.all, f)
}

// drop drops the next one.
func (q *frames[F]) drop() {
	var none F
	*q.next() = none // what it points to is garbage
	if q.at++; q.isEmpty() {
		q.all, q.at = q.all[:0], 0
		if cap(q.all) > fewFrames {
			q.all = nil
		}
	}
}
