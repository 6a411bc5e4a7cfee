package front

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"

	"golang.org/x/net/http2"
)

// An h2Reader is the half of an h2Mask that looks at what comes and changes
// nothing of it. The goroutine that reads owns the fields.
type h2Reader struct {
	streams *h2Streams
	head    []byte // of the frame that comes in
	skip    int    // bytes of it that are still to come
	param   []byte // the payload, if it is SETTINGS
}

// note is shown the next octets from the server.
func (r *h2Reader) note(p []byte) {
	for len(p) > 0 {
		if len(r.head) < frameHead {
			n := min(frameHead-len(r.head), len(p))
			r.head = append(r.head, p[:n]...)
			p = p[n:]
			if len(r.head) < frameHead {
				return
			}
			r.skip = payloadLen(r.head)
		}
		n := min(r.skip, len(p))
		if http2.FrameType(r.head[3]) == http2.FrameSettings && len(r.param)+n <= maxPayload {
			r.param = append(r.param, p[:n]...)
		}
		r.skip -= n
		p = p[n:]
		if r.skip == 0 {
			r.noteFrame(http2.FrameType(r.head[3]), r.head[4], streamID(r.head))
			r.head, r.param = r.head[:0], r.param[:0]
		}
	}
}

// noteFrame is told that a frame has come.
func (r *h2Reader) noteFrame(kind http2.FrameType, flags byte, stream uint32) {
	switch kind {
	case http2.FrameData, http2.FrameHeaders:
		if flags&endStream != 0 {
			r.streams.forget(stream)
		}
	case http2.FrameRSTStream:
		r.streams.forget(stream)
	case http2.FrameSettings:
		for s := r.param; len(s) >= 6; s = s[6:] {
			if http2.SettingID(binary.BigEndian.Uint16(s)) == http2.SettingHeaderTableSize {
				r.streams.limitTable(binary.BigEndian.Uint32(s[2:]))
			}
		}
	}
}

// h2Streams is what the two halves of an h2Mask know together. It is safe for
// concurrent use.
type h2Streams struct {
	mu    sync.Mutex   // guards what follows
	open  []openStream // by their numbers
	table uint32       // the server's limit on the header table, in bytes
}

// An openStream is one whose response has not ended.
type openStream struct {
	id   uint32
	held int // bytes read and not announced yet
	up   int // bytes by which the window will grow
}

func withID(s openStream, id uint32) int { return cmp.Compare(s.id, id) }

// add is told of a new stream. It returns the newest of the others that are
// open, 0 if none is, and the server's limit on the header table.
func (s *h2Streams) add(stream openStream) (newest, table uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.open); n > 0 {
		newest = s.open[n-1].id
	}
	s.open = append(s.open, stream)
	return newest, s.table
}

// credit is told that n bytes of a stream were read, and returns by how much its
// window is to be announced larger: 0 while less than half was read.
func (s *h2Streams) credit(id uint32, n, half int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, found := slices.BinarySearchFunc(s.open, id, withID)
	if !found {
		return 0 // the response has ended, and nothing more can come
	}
	stream := &s.open[i]
	stream.held += n
	if stream.held < half {
		return 0
	}
	increment := stream.held + stream.up
	stream.held, stream.up = 0, 0
	return increment
}

// forget is told that nothing more will come on a stream.
func (s *h2Streams) forget(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, found := slices.BinarySearchFunc(s.open, id, withID); found {
		s.open = slices.Delete(s.open, i, i+1)
	}
}

// limitTable is told the server's limit on the header table.
func (s *h2Streams) limitTable(size uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table = min(size, maxHeaderTable)
}
