package duplex

import "sync"

// chunkSize is the size in bytes of the pieces that a queue is made of: some
// segments of an engine, so that the cost of a piece is spread, and little
// enough that a stream with one waiting byte is cheap.
const chunkSize = 8 << 10

type chunk struct {
	next *chunk
	r, w int // data[r:w] is waiting
	data [chunkSize]byte
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// queue is a FIFO of bytes that holds memory only for what is in it. The
// zero value is empty. It is not safe for concurrent use.
type queue struct {
	head, tail *chunk
	n          int
}

// write appends a copy of p.
func (q *queue) write(p []byte) {
	q.n += len(p)
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == chunkSize {
			c := chunks.Get().(*chunk)
			c.next, c.r, c.w = nil, 0, 0
			if q.tail == nil {
				q.head = c
			} else {
				q.tail.next = c
			}
			q.tail = c
		}
		n := copy(q.tail.data[q.tail.w:], p)
		q.tail.w += n
		p = p[n:]
	}
}

// read moves the first bytes into p and returns how many.
func (q *queue) read(p []byte) int {
	total := 0
	for len(p) > 0 && q.n > 0 {
		c := q.head
		n := copy(p, c.data[c.r:c.w])
		c.r += n
		q.n -= n
		total += n
		p = p[n:]
		if c.r == c.w {
			q.drop()
		}
	}
	return total
}

// drop gives the first chunk back.
func (q *queue) drop() {
	c := q.head
	q.head = c.next
	if q.head == nil {
		q.tail = nil
	}
	c.next = nil
	chunks.Put(c)
}

// clear throws everything away.
func (q *queue) clear() {
	for q.head != nil {
		q.drop()
	}
	q.n = 0
}
