package carrier

import (
	"cmp"
	"math/bits"
	"slices"
)

// What a head acknowledges is found in a time that grows with what is new in it and
// with its own length, not with what is in flight: a peer may leave 2048 records in
// as many exchanges unacknowledged, and then send heads.

// numbers is a set of numbers of records, of which the lowest and the highest are
// less than windowRecords apart. The zero value is empty.
type numbers struct {
	words [windowRecords / 64]uint64
}

func (s *numbers) add(n uint64) { s.words[n%windowRecords/64] |= 1 << (n % 64) }

func (s *numbers) remove(n uint64) { s.words[n%windowRecords/64] &^= 1 << (n % 64) }

// each calls f with the numbers from first to end-1 that are in s, in order, and
// returns how many steps that was. f may remove its number.
func (s *numbers) each(first, end uint64, f func(n uint64)) (steps uint64) {
	for n := first; n < end; n = n&^63 + 64 {
		steps++
		word := s.words[n%windowRecords/64] >> (n % 64) << (n % 64)
		if rest := end - n&^63; rest < 64 {
			word &= 1<<rest - 1
		}
		for ; word != 0; word &= word - 1 {
			steps++
			f(n&^63 + uint64(bits.TrailingZeros64(word)))
		}
	}
	return steps
}

// cargoes are in the order of their exchanges' numbers.
type cargoes []*cargo

// maxWatched is how many cargoes have their losses noticed by time, the oldest: an
// honest side has no more (maxUploads, maxDownloads and some that have lost their
// answers), and who acknowledges nothing waits for himself.
const maxWatched = 64

// watched are the cargoes whose losses are noticed by time.
func (cs cargoes) watched() cargoes { return cs[:min(len(cs), maxWatched)] }

// from is where the cargoes begin of exchanges that are not below e.
func (cs cargoes) from(e uint64) int {
	i, _ := slices.BinarySearchFunc(cs, e, func(c *cargo, e uint64) int { return cmp.Compare(c.exchange, e) })
	return i
}

// of is exchange e's cargo, or nil.
func (cs cargoes) of(e uint64) *cargo {
	if i := cs.from(e); i < len(cs) && cs[i].exchange == e {
		return cs[i]
	}
	return nil
}

// add returns exchange e's cargo, which is a new one if there was none.
func (cs *cargoes) add(e uint64) *cargo {
	if c := cs.of(e); c != nil {
		return c
	}
	c := &cargo{exchange: e}
	*cs = slices.Insert(*cs, cs.from(e), c)
	return c
}

// remove removes exchange e's cargo, which there is.
func (cs *cargoes) remove(e uint64) {
	i := cs.from(e)
	*cs = slices.Delete(*cs, i, i+1)
}
