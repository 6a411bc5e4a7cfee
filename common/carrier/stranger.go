package carrier

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"turbotunnel/common/handshake"
)

// Only the body of a request shows whether a client made it. What happens until
// that is known must not depend on the path: when the server reads, and when it
// answers, would tell a path that somebody has from a log, or any that ends as
// a session's does, from the others. So every request that has a body is
// treated alike, whatever its method and path, until a client's head or first
// message has opened: the body's beginning is read, with one deadline, and then
// the decoy gets the request as it came, every byte of it, and no sooner than
// judgement after the beginning was there.

const (
	// openingSize is how many bytes of a body are read before it is a stranger's:
	// the largest first message, and one more, which shows whether the body ends
	// there. The head with which every other body begins is smaller (headRoom).
	openingSize = handshake.MaxMessage1 + 1

	// judgement is longer than finding out takes that somebody is a stranger: a
	// tag costs 1 µs, a unit up to 10 µs, a handshake 150 µs on a server, and a
	// millisecond or two on a small board.
	judgement = 5 * time.Millisecond
)

// An opening is the body of a request of which only the beginning is read, and
// kept, until it is admitted.
type opening struct {
	kept     int       // bytes of raw
	at       int       // how many of them were read
	end      error     // of the body, if it has ended
	full     time.Time // when all was there that is kept
	rest     io.ReadCloser
	admitted bool
	raw      *[openingSize]byte // nil: given back
}

var (
	openings = sync.Pool{New: func() any { return new(opening) }}
	raws     = sync.Pool{New: func() any { return new([openingSize]byte) }}
)

func newOpening(body io.ReadCloser) *opening {
	o := openings.Get().(*opening)
	*o = opening{rest: body, raw: raws.Get().(*[openingSize]byte)}
	return o
}

// fill waits until the first n bytes are here, or the body has ended.
func (o *opening) fill(n int) {
	for o.kept < n && o.end == nil {
		var m int
		m, o.end = o.rest.Read(o.raw[o.kept:])
		if o.kept += m; o.end != nil || o.kept == len(o.raw) {
			o.full = time.Now()
		}
	}
}

// beginsWith tells whether p is what the body begins with.
func (o *opening) beginsWith(p []byte) bool {
	o.fill(len(p))
	return bytes.HasPrefix(o.raw[:o.kept], p)
}

// whole is the body, if it ends as it should within the opening, or else nil.
func (o *opening) whole() []byte {
	if o.fill(len(o.raw)); o.end != io.EOF {
		return nil
	}
	return o.raw[:o.kept]
}

// admit lets reads go on beyond the opening.
func (o *opening) admit() { o.admitted = true }

// Read returns io.EOF at the end of what was not admitted.
func (o *opening) Read(p []byte) (int, error) {
	if !o.admitted {
		o.fill(min(o.at+1, len(o.raw)))
	}
	switch {
	case o.at < o.kept:
		n := copy(p, o.raw[o.at:o.kept])
		o.at += n
		return n, nil
	case o.end != nil:
		return 0, o.end
	case !o.admitted:
		return 0, io.EOF
	}
	n, err := o.rest.Read(p)
	o.end = err
	return n, err
}

// freed says that the server has read what it wants. It takes the deadline off the
// connection if the body has come to its end: what is left of another is read by
// net/http before it answers. An answer that waits needs no opening.
func (o *opening) freed(control *http.ResponseController) {
	o.giveBack()
	if o.end == io.EOF {
		control.SetReadDeadline(time.Time{}) //nolint:errcheck // in tests there is no connection
	}
}

// Close closes the request's body.
func (o *opening) Close() error { return o.rest.Close() }

// replay makes o the body as it came, when the opening is full.
func (o *opening) replay() {
	o.fill(len(o.raw))
	o.at = 0
	o.admit()
}

// release says that nobody reads o any more.
func (o *opening) release() {
	o.giveBack()
	o.rest = nil
	openings.Put(o)
}

// giveBack gives back the memory of what was kept.
func (o *opening) giveBack() {
	if o.raw != nil {
		raws.Put(o.raw)
		o.raw, o.kept, o.at = nil, 0, 0
	}
}

// ServeHTTP answers clients' requests and leaves all others to the decoy.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody {
		s.cfg.Decoy.ServeHTTP(w, r)
		return
	}
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(bodyPatience)) //nolint:errcheck // in tests there is no connection
	o := newOpening(r.Body)
	if s.isClients(w, r, control, o) {
		o.release()
		return
	}
	// It is not released: a decoy that passes it on may read it for a moment
	// after it has answered.
	o.replay()
	if o.end == nil || o.end == io.EOF {
		control.SetReadDeadline(time.Time{}) //nolint:errcheck // likewise
	}
	pause(time.Until(o.full.Add(judgement)), r.Context().Done(), nil)
	r.Body = o
	s.cfg.Decoy.ServeHTTP(w, r)
}

// isClients answers a request if a client has made it.
func (s *Server) isClients(w http.ResponseWriter, r *http.Request, control *http.ResponseController, o *opening) bool {
	if r.Method != http.MethodPost {
		return false
	}
	last := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	id, err := handshake.ParseID(last)
	return err == nil && s.serve(w, r, control, o, id)
}
