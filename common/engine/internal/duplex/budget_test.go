package duplex

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestBudget: whatever happens to windows, nothing of the budget is lost or
// used twice; the other side takes what it was told of, and never more.
func TestBudget(t *testing.T) {
	const total, initial = 64 << 20, 256 << 10
	r := rand.New(rand.NewPCG(1, 2))
	b := Budget{Free: total}
	b.Lend()
	var loan Loan
	if !b.Due() {
		t.Fatal("there is nothing to tell at first")
	}
	windows := make([]*Window, 10)
	for i := range windows {
		windows[i] = &Window{Size: initial}
	}
	told, pieces := 0, 0
	for range 100000 {
		i := r.IntN(len(windows))
		w := windows[i]
		switch r.IntN(6) {
		case 0, 1:
			if !loan.Allows(0) {
				break
			}
			loan.Take()
			pieces++
			if r.IntN(8) == 0 {
				w = nil // its stream is forgotten
			}
			if !b.Taken(w) {
				t.Fatalf("a piece that was lent is refused: %+v", b)
			}
		case 2:
			b.Consumed(w, r.IntN(w.Size), 32<<20, time.Hour)
		case 3:
			b.Return(w.Size - initial)
			windows[i] = &Window{Size: initial}
		default:
			if b.Due() {
				told++
				if _, ok := loan.Raise(b.Tell()); !ok {
					t.Fatal("what was lent was taken back")
				}
			}
		}
		sum := b.Free + b.Lent*Piece
		for _, w := range windows {
			sum += w.Size - initial
		}
		if sum != total || b.Free < 0 || b.Lent < 0 {
			t.Fatalf("%d bytes in all: %+v", sum, b)
		}
	}
	if told > pieces/2 {
		t.Errorf("told %d times for %d pieces", told, pieces)
	}
	for _, w := range windows {
		b.Return(w.Size - initial)
	}
	if most := total / 2 / Piece; b.Lent > most || b.Lent <= most-lendStep {
		t.Errorf("%d pieces are lent in the end", b.Lent)
	}
	for b.Lent > 0 {
		b.Taken(&Window{})
	}
	if b.Taken(&Window{}) {
		t.Error("a piece was taken that was not there")
	}
}

// TestGrowth: a window grows by itself when nothing more can be taken for it,
// and not before.
func TestGrowth(t *testing.T) {
	const most = 32 << 20
	b := Budget{Free: 64 << 20}
	b.Lend()
	w := Window{Size: 1 << 20}
	b.Consumed(&w, w.Size, most, time.Hour)
	if w.Size != 1<<20 {
		t.Errorf("a window grew to %d while the other side could take pieces for it", w.Size)
	}
	for range MaxPieces {
		b.Taken(&w)
	}
	b.Consumed(&w, w.Size, most, time.Hour)
	if w.Size != most {
		t.Errorf("a window grew to %d; want %d", w.Size, most)
	}
	for b.Lent > 0 {
		b.Taken(&Window{})
	}
	free := b.Free
	other := Window{Size: 16 << 20}
	b.Consumed(&other, other.Size, most, time.Hour)
	if other.Size != 16<<20+free || b.Free != 0 {
		t.Errorf("a window grew to %d by a rest of %d, and %d is left", other.Size, free, b.Free)
	}
}

// TestLoanIsCountedModulo: a session may live long.
func TestLoanIsCountedModulo(t *testing.T) {
	l := Loan{limit: 1<<32 - 2, taken: 1<<32 - 2}
	if more, ok := l.Raise(1<<32 - 2); more || !ok || l.Allows(0) {
		t.Fatal("as many pieces as before are more, or wrong")
	}
	if more, ok := l.Raise(1); !more || !ok || !l.Allows(0) {
		t.Fatal("three pieces more are none")
	}
	for range 3 {
		l.Take()
	}
	if l.Allows(0) {
		t.Error("three pieces are more")
	}
	if more, ok := l.Raise(0); more || ok {
		t.Error("one piece fewer is right")
	}
}

// TestStreamsLeaveSome: streams that take all they may, one after the other,
// leave something to the next.
func TestStreamsLeaveSome(t *testing.T) {
	b := Budget{Free: 64 << 20}
	b.Lend()
	var l Loan
	var got []int
	for range 7 {
		l.Raise(b.Tell())
		pieces := 0
		for l.Allows(pieces) {
			l.Take()
			b.Taken(&Window{})
			l.Raise(b.Tell())
			pieces++
		}
		got = append(got, pieces)
	}
	if got[0] != MaxPieces || slices.Min(got) == 0 {
		t.Errorf("%v pieces; want %d at first and some for each", got, MaxPieces)
	}
}

// TestFastBesideStalled: however many streams that nobody reads have taken what
// they may, one whose reader is fast gets what is not lent.
func TestFastBesideStalled(t *testing.T) {
	const most = 32 << 20
	for stalled := range 12 {
		b := Budget{Free: 64 << 20}
		b.Lend()
		var l Loan
		take := func(w *Window) {
			l.Raise(b.Tell())
			for pieces := w.Taken / Piece; l.Allows(pieces); pieces++ {
				l.Take()
				b.Taken(w)
				l.Raise(b.Tell())
			}
		}
		for range stalled {
			take(&Window{Size: 256 << 10})
		}
		fast := Window{Size: 256 << 10}
		for range 20 {
			take(&fast)
			b.Consumed(&fast, fast.Size, most, time.Hour)
		}
		if fast.Size < most && b.Free > 0 {
			t.Errorf("beside %d streams a fast one has a window of %d while %d bytes are free", stalled, fast.Size, b.Free)
		}
	}
}
