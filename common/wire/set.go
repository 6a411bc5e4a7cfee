package wire

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// MaxSpans is the largest number of spans that an encoded Set may have. It
// bounds a head to less than a unit whatever was lost.
const MaxSpans = 256

// A Set is a set of numbers in which nearly all small ones are: every number
// below Low and the spans above it. The zero value is empty.
// It is not safe for concurrent use.
//
// On the wire it is Low, the number of spans (at most MaxSpans), and for each
// span, ascending, the size of the gap before it and its own size minus one,
// all as unsigned varints; a gap is at least 1 and nothing exceeds MaxNumber+1.
type Set struct {
	Low   uint64
	Spans []Span
}

// Span is the numbers from First to End-1.
type Span struct{ First, End uint64 }

// Has tells whether n is in s.
func (s *Set) Has(n uint64) bool {
	if n < s.Low {
		return true
	}
	i, _ := slices.BinarySearchFunc(s.Spans, n, func(a Span, n uint64) int {
		if a.End <= n {
			return -1
		}
		return 1
	})
	return i < len(s.Spans) && s.Spans[i].First <= n
}

// Add adds n and tells whether it was missing. A set that would need more than
// MaxSpans spans takes its lowest gap as filled: what a peer leaves out cannot
// make it grow.
func (s *Set) Add(n uint64) bool {
	if s.Has(n) {
		return false
	}
	i, _ := slices.BinarySearchFunc(s.Spans, n, func(a Span, n uint64) int {
		if a.End < n {
			return -1
		}
		return 1
	})
	switch { // i is the first span that ends at n or later
	case i < len(s.Spans) && s.Spans[i].End == n:
		s.Spans[i].End++
		if i+1 < len(s.Spans) && s.Spans[i+1].First == n+1 {
			s.Spans[i].End = s.Spans[i+1].End
			s.Spans = slices.Delete(s.Spans, i+1, i+2)
		}
	case i < len(s.Spans) && s.Spans[i].First == n+1:
		s.Spans[i].First--
	default:
		s.Spans = slices.Insert(s.Spans, i, Span{n, n + 1})
	}
	if len(s.Spans) > MaxSpans || s.Spans[0].First == s.Low {
		s.Low = s.Spans[0].End
		s.Spans = slices.Delete(s.Spans, 0, 1)
	}
	return true
}

// End is the lowest number above all that are in s.
func (s *Set) End() uint64 {
	if n := len(s.Spans); n > 0 {
		return s.Spans[n-1].End
	}
	return s.Low
}

func (s *Set) append(b []byte) []byte {
	spans := s.Spans[:min(len(s.Spans), MaxSpans)]
	b = binary.AppendUvarint(b, s.Low)
	b = binary.AppendUvarint(b, uint64(len(spans)))
	at := s.Low
	for _, p := range spans {
		b = binary.AppendUvarint(b, p.First-at)
		b = binary.AppendUvarint(b, p.End-p.First-1)
		at = p.End
	}
	return b
}

// parse reads s from the beginning of b, re-using the memory of s.Spans.
func (s *Set) parse(b []byte) (rest []byte, err error) {
	s.Spans = s.Spans[:0]
	low, b, err := cutUvarint(b, MaxNumber+1)
	if err != nil {
		return nil, err
	}
	s.Low = low
	n, b, err := cutUvarint(b, MaxSpans)
	if err != nil {
		return nil, err
	}
	at := low
	for range n {
		var gap, size uint64
		if gap, b, err = cutUvarint(b, MaxNumber+1); err != nil {
			return nil, err
		}
		if size, b, err = cutUvarint(b, MaxNumber); err != nil {
			return nil, err
		}
		first := at + gap
		end := first + size + 1
		if gap == 0 || end > MaxNumber+1 {
			return nil, fmt.Errorf("%w: spans out of order", ErrMalformed)
		}
		s.Spans = append(s.Spans, Span{first, end})
		at = end
	}
	return b, nil
}

func cutUvarint(b []byte, limit uint64) (v uint64, rest []byte, err error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, fmt.Errorf("%w: a cut number", ErrMalformed)
	}
	if v > limit {
		return 0, nil, fmt.Errorf("%w: %d where at most %d stands", ErrMalformed, v, limit)
	}
	return v, b[n:], nil
}

// FillBelow takes all gaps below n as filled.
func (s *Set) FillBelow(n uint64) {
	s.Low = max(s.Low, n)
	cut := 0
	for cut < len(s.Spans) && s.Spans[cut].First <= s.Low {
		s.Low = max(s.Low, s.Spans[cut].End)
		cut++
	}
	s.Spans = slices.Delete(s.Spans, 0, cut)
}

// Fill takes the lowest gap as filled.
func (s *Set) Fill() {
	if len(s.Spans) > 0 {
		s.Low = s.Spans[0].End
		s.Spans = slices.Delete(s.Spans, 0, 1)
	}
}
