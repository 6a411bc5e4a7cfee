package duplex

import "time"

const (
	// Piece is what is lent and taken at a time, in bytes. At 500 Mbit/s a sender
	// takes one every 17 ms, and eight senders that begin together each get their
	// share.
	Piece = 1 << 20

	// MaxPieces is how many pieces a sender takes for one stream: 16 MB, which
	// last for a round trip of 200 ms at 500 Mbit/s (12.5 MB), a queue, and the
	// time until the window has grown because its reader is fast.
	MaxPieces = 16

	// lendStep is by how many pieces a loan grows at least, so that the other
	// side hears of it a few times in a fast transfer and not for each piece.
	lendStep = 4
)

// A Budget is by how much the receive windows of a session may grow, all
// together. The other side's stream that finds its window too small would have
// to wait for a larger one until its reader has been fast, which is round trips
// later. So half of what is left is lent in advance: the other side takes pieces
// of it, without asking, for the windows of the streams that need them. A stream
// that has little to say takes none.
//
// A Budget of which all is Free is ready for use. It is not safe for concurrent
// use.
type Budget struct {
	Free int // bytes that are neither lent nor in a window
	Lent int // pieces that the other side may still take

	limit uint32 // pieces lent since the start, modulo 2^32
	due   bool   // the other side has yet to hear of limit
}

// Lend lends half of what is left. It is called when a stream begins; before the
// first one nothing is lent.
func (b *Budget) Lend() {
	more := (b.Free+b.Lent*Piece)/2/Piece - b.Lent
	if more < lendStep {
		return
	}
	b.Free -= more * Piece
	b.Lent += more
	b.limit += uint32(more)
	b.due = true
}

// Due tells whether the other side has yet to hear how much is lent.
func (b *Budget) Due() bool { return b.due }

// Tell returns how many pieces have been lent since the session's start, modulo
// 2^32, and takes that for said.
func (b *Budget) Tell() uint32 {
	b.due = false
	return b.limit
}

// Taken takes into account that the other side has taken a piece for w, or, if w
// is nil, for a window that is used no more. It returns false if there was none.
func (b *Budget) Taken(w *Window) bool {
	if b.Lent == 0 {
		return false
	}
	b.Lent--
	if w == nil {
		b.Free += Piece
	} else {
		w.Size += Piece
		w.Taken += Piece
	}
	b.Lend()
	return true
}

// Consumed is w.Consumed, where w may grow to most bytes. It does not grow while
// the other side can take pieces for it, because that side knows better whether
// the window is what limits it. When it can take none, see Loan.Allows, the
// window grows by what is not lent.
func (b *Budget) Consumed(w *Window, n, most int, rtt time.Duration) bool {
	before := w.Size
	limit := before
	if w.Taken >= min(MaxPieces, 2*b.Lent)*Piece {
		limit = min(most, before+b.Free)
	}
	tell := w.Consumed(n, limit, rtt)
	b.Free -= w.Size - before
	return tell
}

// Return gives back n bytes of a window that is used no more.
func (b *Budget) Return(n int) {
	b.Free += n
	b.Lend()
}

// A Loan is what the other side's Budget has lent to this side's streams. The
// zero value is empty. It is not safe for concurrent use.
type Loan struct {
	limit, taken uint32 // pieces since the session's start, modulo 2^32
}

// Raise takes into account that so many pieces have been lent since the start,
// modulo 2^32. It tells whether there are more than before; ok is false if some
// were taken back.
func (l *Loan) Raise(limit uint32) (more, ok bool) {
	grown := int32(limit - l.limit)
	if grown < 0 {
		return false, false
	}
	l.limit = limit
	return grown > 0, true
}

// Allows tells whether a stream that has taken so many pieces may take another.
// What it holds is at most twice what is left for others, so that streams that
// nobody reads, of which each takes what it may, always leave some.
func (l *Loan) Allows(pieces int) bool {
	left := int(min(l.limit-l.taken, MaxPieces))
	return pieces < min(MaxPieces, 2*left)
}

// Take takes a piece, which must be allowed.
func (l *Loan) Take() { l.taken++ }
