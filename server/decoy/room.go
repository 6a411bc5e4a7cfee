package decoy

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

const (
	// roomSize bounds the bytes of bodies that are kept for strangers, requests
	// and answers together. Where it is full, the one goes who holds most.
	roomSize = 64 << 20

	// maxLong is how many answers that are too long to be kept are passed on at
	// once. One beyond it ends the oldest: who reads slowly, or much, keeps
	// nobody from a page.
	maxLong = 16

	// A body is kept in pieces of minPiece to maxPiece bytes, as many as are
	// here already, so that what is charged is what it takes.
	minPiece = 512
	maxPiece = 32 << 10
)

var errNoRoom = errors.New("strangers hold too much")

// A room is what all guests of a site share.
type room struct {
	size, long int // bounds

	mu     sync.Mutex
	used   int                 // bytes; guarded by mu, like what follows
	guests map[*guest]struct{} // that were not cut
	queue  []*guest            // those with long answers, oldest first
	gone   int64               // guests that had to go so far
}

func newRoom(size, long int) *room {
	return &room{size: size, long: long, guests: make(map[*guest]struct{})}
}

// A guest is one request. What it holds is given back when it leaves.
type guest struct {
	room *room
	cut  func() // makes it leave soon
	used int    // bytes; guarded by room.mu
}

// enter returns a new guest. cut is called with the room locked, at most once,
// and not after the guest has left.
func (r *room) enter(cut func()) *guest {
	g := &guest{room: r, cut: cut}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.guests[g] = struct{}{}
	return g
}

// stats are how many bytes are kept, and how many guests had to go.
func (r *room) stats() (used int, gone int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used, r.gone
}

// remove takes a guest out of all accounts. mu is held.
func (r *room) remove(g *guest) {
	if _, there := r.guests[g]; !there {
		return
	}
	delete(r.guests, g)
	r.used -= g.used
	for i, other := range r.queue {
		if other == g {
			r.queue = append(r.queue[:i:i], r.queue[i+1:]...)
			break
		}
	}
}

func (g *guest) leave() {
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.room.remove(g)
}

// take charges n bytes, and fails if the guest has to go. Of two that hold as
// much, the other one does.
func (g *guest) take(n int) error {
	r := g.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, there := r.guests[g]; !there {
		return errNoRoom
	}
	g.used += n
	r.used += n
	for r.used > r.size {
		largest := g
		for other := range r.guests {
			if other.used >= largest.used && other != g {
				largest = other
			}
		}
		r.remove(largest)
		r.gone++
		if largest == g {
			return errNoRoom
		}
		largest.cut()
	}
	return nil
}

// lengthen says that the guest's answer is a long one.
func (g *guest) lengthen() {
	r := g.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, there := r.guests[g]; !there {
		return
	}
	r.queue = append(r.queue, g)
	if len(r.queue) > r.long {
		oldest := r.queue[0]
		r.remove(oldest)
		r.gone++
		oldest.cut()
	}
}

// A kept is a body in memory, charged to a guest.
type kept struct {
	guest  *guest
	size   int
	pieces [][]byte
}

// Write returns errNoRoom when the guest has to go.
func (k *kept) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		last := len(k.pieces) - 1
		if last < 0 || len(k.pieces[last]) == cap(k.pieces[last]) {
			room := min(max(k.size, minPiece), maxPiece)
			if err := k.guest.take(room); err != nil {
				return 0, err
			}
			k.pieces = append(k.pieces, make([]byte, 0, room))
			last++
		}
		piece := &k.pieces[last]
		m := min(len(p), cap(*piece)-len(*piece))
		*piece = append(*piece, p[:m]...)
		p = p[m:]
		k.size += m
	}
	return n, nil
}

// reader reads what was written from the beginning.
func (k *kept) reader() io.Reader {
	all := make([]io.Reader, len(k.pieces))
	for i, p := range k.pieces {
		all[i] = bytes.NewReader(p)
	}
	return io.MultiReader(all...)
}
