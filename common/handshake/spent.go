package handshake

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// maxStretches bounds what is kept of clocks that were set often: those that
	// are closest to each other become one.
	maxStretches = 8

	// joined is the longest time between two stretches that is taken for spent,
	// too: nobody misses it, because it is over.
	joined = 10 * time.Minute
)

// A stretch is a time, from its beginning to just before its end, in whole
// milliseconds.
type stretch struct{ from, to time.Time }

// moment is the shortest stretch with t in it.
func moment(t time.Time) stretch {
	t = t.Truncate(time.Millisecond)
	return stretch{t, t.Add(time.Millisecond)}
}

// with is the shortest stretch that has both in it.
func (s stretch) with(o stretch) stretch {
	if o.from.Before(s.from) {
		s.from = o.from
	}
	if o.to.After(s.to) {
		s.to = o.to
	}
	return s
}

// stretches are times in their order, with more than joined between any two. As
// text each is a line: its beginning and its end, as in RFC 3339, and a space between.
type stretches []stretch

func (ss stretches) has(t time.Time) bool {
	return slices.ContainsFunc(ss, func(s stretch) bool { return !t.Before(s.from) && t.Before(s.to) })
}

func (ss stretches) clone() stretches { return slices.Clone(ss) }

// add makes s one of them.
func (ss *stretches) add(s stretch) {
	var apart stretches
	for _, o := range *ss {
		if o.from.Sub(s.to) > joined || s.from.Sub(o.to) > joined {
			apart = append(apart, o)
		} else {
			s = s.with(o)
		}
	}
	i := 0
	for i < len(apart) && apart[i].from.Before(s.from) {
		i++
	}
	apart = slices.Insert(apart, i, s)
	if len(apart) > maxStretches {
		apart.shorten()
	}
	*ss = apart
}

// shorten makes one of the two that are closest to each other.
func (ss *stretches) shorten() {
	closest := 1
	for i := 2; i < len(*ss); i++ {
		if (*ss)[i].from.Sub((*ss)[i-1].to) < (*ss)[closest].from.Sub((*ss)[closest-1].to) {
			closest = i
		}
	}
	(*ss)[closest-1] = (*ss)[closest-1].with((*ss)[closest])
	*ss = slices.Delete(*ss, closest, closest+1)
}

const stretchFormat = "2006-01-02T15:04:05.000Z"

// MarshalText writes them. It never fails.
func (ss stretches) MarshalText() ([]byte, error) {
	var b []byte
	for _, s := range ss {
		b = fmt.Appendf(b, "%s %s\n", s.from.UTC().Format(stretchFormat), s.to.UTC().Format(stretchFormat))
	}
	return b, nil
}

// errStretches says that a text is not one that MarshalText has written.
var errStretches = errors.New("not a list of times that are spent, or a damaged one")

// UnmarshalText reads what MarshalText wrote.
func (ss *stretches) UnmarshalText(text []byte) error {
	var read stretches
	for line := range bytes.Lines(text) {
		from, to, found := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
		if !found {
			return errStretches
		}
		var s stretch
		var err, errTo error
		s.from, err = time.Parse(stretchFormat, from)
		s.to, errTo = time.Parse(stretchFormat, to)
		if err != nil || errTo != nil || !s.to.After(s.from) {
			return errStretches
		}
		read.add(s)
	}
	*ss = read
	return nil
}
