package carrier

import "turbotunnel/common/wire"

// units are what is left to be read of a request's body, or of one part of it: a head,
// or none, and the records behind it. A record is sealed when it is read, and its
// buffer is given back as soon as all of it was read. The zero value is empty. It is
// not safe for concurrent use.
type units struct {
	part    []byte        // what is left of the unit that is being read
	current *sentRecord   // that part is of; nil: it is a head's
	records []*sentRecord // that follow
}

// read copies units to p until there are no more, or p is full.
func (u *units) read(p []byte, k *wire.Key) (n int) {
	for n < len(p) && !u.empty() {
		if len(u.part) == 0 {
			u.current, u.records = u.records[0], u.records[1:]
			u.part = u.current.unit(k)
		}
		m := copy(p[n:], u.part)
		n += m
		if u.part = u.part[m:]; len(u.part) == 0 {
			u.release()
		}
	}
	return n
}

// empty tells whether all was read.
func (u *units) empty() bool { return len(u.part) == 0 && len(u.records) == 0 }

// drop gives up what was not read.
func (u *units) drop() {
	u.release()
	for _, r := range u.records {
		r.buf.release()
	}
	u.records = nil
}

// release gives back the buffer of the record that is being read, if there is one.
func (u *units) release() {
	if u.current != nil {
		u.current.buf.release()
	}
	u.part, u.current = nil, nil
}
