package front

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// An h2Look is what of HTTP/2 tells one browser from another. The windows in it
// are only those that a connection begins with.
type h2Look struct {
	settings   []http2.Setting
	connWindow uint32              // increment of the first WINDOW_UPDATE, in bytes
	pseudo     []string            // order of the pseudo-headers
	weight     http2.PriorityParam // of every request
	inRow      bool                // each request depends on the newest one under way
	openBump   uint32              // WINDOW_UPDATE that follows every request's head, in bytes
}

// initialWindow is the receive window in bytes that a stream begins with.
func (l *h2Look) initialWindow() int {
	for _, s := range l.settings {
		if s.ID == http2.SettingInitialWindowSize {
			return int(s.Val)
		}
	}
	return defaultWindow
}

const (
	// defaultWindow is the receive window of a connection, and of a stream
	// where SETTINGS say nothing, in bytes (RFC 9113 section 6.9.2).
	defaultWindow = 1<<16 - 1

	// defaultHeaderTable is the size in bytes of the table that compresses
	// headers where SETTINGS say nothing (RFC 9113 section 6.5.2).
	defaultHeaderTable = 4 << 10

	// maxHeaderTable bounds in bytes what a server may make us remember for
	// compressing headers. It is what browsers offer themselves.
	maxHeaderTable = 64 << 10

	// innerTable is the size in bytes of the table by which the implementation
	// compresses the heads that a mask reads and compresses anew: as good as
	// none, since each of the two would keep one of 3 KB for each connection.
	innerTable = 1

	frameHead  = 9         // bytes (RFC 9113 section 4.1)
	maxPayload = 16 << 10  // bytes of a frame's payload that every server takes
	pathIndex  = 4         // of the name :path in RFC 7541 appendix A
	endStream  = byte(0x1) // flags
	endHeaders = byte(0x4)
	padded     = byte(0x8)
	hasWeight  = byte(0x20)
)

// An h2Mask stands between the HTTP/2 implementation and a connection, and
// makes the frames that leave those of a browser:
//
//   - The first SETTINGS and WINDOW_UPDATE are the browser's.
//   - The fields of a request's head have the browser's order, and the
//     request its priority. So heads are compressed anew, by the browser's
//     choice of what goes into the table.
//   - WINDOW_UPDATEs are held back until half a window has been read, as
//     browsers do. With the first one of a stream or of the connection its
//     window grows from the browser's to the implementation's, streamWindow or
//     connWindow, and once a stream's has grown, later streams have the large
//     one from their beginning. So what a server may send without a word from
//     here is always at most what the implementation allows.
//
// Everything else passes as it is. Each frame, or the frames that one Write
// completes, leave in one Write, which is one TLS record for a small one.
//
// It is safe for one reader and one writer at a time, which is how the
// implementation uses a connection.
type h2Mask struct {
	net.Conn
	look  *h2Look
	order fieldOrder

	// Owned by the writer.
	scratch *scratch // holds frame and out; nil: nothing is being written
	begun   bool     // the connection preface has passed
	frame   []byte   // the frame that is not whole yet
	out     []byte   // what the Write under way has completed
	block   []byte   // fragments of a head without its end
	head    struct {
		stream uint32
		flags  byte
	}
	decoder  *hpack.Decoder
	encoder  *hpack.Encoder
	packed   bytes.Buffer // the encoder's
	inUse    uint32       // size of the encoder's table, in bytes
	told     bool         // the browser's first WINDOW_UPDATE has been sent
	connHeld int          // bytes read and not announced yet
	connUp   int          // bytes by which the connection's window will grow
	longOnes bool         // a stream's window has grown

	// Owned by the reader.
	inHead  []byte // of the frame that comes in
	inSkip  int    // bytes of it that are still to come
	inParam []byte // the payload, if it is SETTINGS

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

func newH2Mask(conn net.Conn, look *h2Look, order fieldOrder) *h2Mask {
	m := &h2Mask{
		Conn:    conn,
		look:    look,
		order:   order,
		decoder: hpack.NewDecoder(innerTable, nil),
		connUp:  connWindow - int(look.connWindow),
		inUse:   defaultHeaderTable,
		table:   defaultHeaderTable,
	}
	m.encoder = hpack.NewEncoder(&m.packed)
	m.encoder.SetMaxDynamicTableSizeLimit(maxHeaderTable)
	return m
}

// Write takes what the implementation sends. It holds frames back until they
// are whole.
func (m *h2Mask) Write(p []byte) (int, error) {
	if m.scratch == nil {
		m.scratch = scratches.Get().(*scratch)
		m.frame, m.out, m.block = m.scratch.frame, m.scratch.out, m.scratch.block
	}
	for rest := p; len(rest) > 0; {
		want := len(http2.ClientPreface)
		if m.begun {
			want = frameHead
			if len(m.frame) >= frameHead {
				want += payloadLen(m.frame)
			}
		}
		n := min(want-len(m.frame), len(rest))
		m.frame = append(m.frame, rest[:n]...)
		rest = rest[n:]
		switch {
		case len(m.frame) < want:
		case !m.begun:
			m.begun = true
			m.pass()
		case want > frameHead || payloadLen(m.frame) == 0:
			if err := m.translate(); err != nil {
				return 0, err
			}
			m.frame = m.frame[:0]
		}
	}
	if len(m.frame) > 0 || len(m.block) > 0 {
		return len(p), nil
	}
	var err error
	if len(m.out) > 0 {
		_, err = m.Conn.Write(m.out)
	}
	m.rest()
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// A scratch is the memory of the frame under way and of what leaves. A
// connection has one only while something is being written.
type scratch struct{ frame, out, block []byte }

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// rest gives the scratch back.
func (m *h2Mask) rest() {
	m.scratch.frame, m.scratch.out, m.scratch.block = m.frame[:0], m.out[:0], m.block
	scratches.Put(m.scratch)
	m.scratch, m.frame, m.out, m.block = nil, nil, nil, nil
}

func payloadLen(frame []byte) int {
	return int(frame[0])<<16 | int(frame[1])<<8 | int(frame[2])
}

func streamID(frame []byte) uint32 { return binary.BigEndian.Uint32(frame[5:]) & (1<<31 - 1) }

func (m *h2Mask) pass() {
	m.out = append(m.out, m.frame...)
	m.frame = m.frame[:0]
}

// put begins a frame whose payload the caller appends to out.
func (m *h2Mask) put(kind http2.FrameType, flags byte, stream uint32, length int) {
	m.out = append(m.out, byte(length>>16), byte(length>>8), byte(length), byte(kind), flags)
	m.out = binary.BigEndian.AppendUint32(m.out, stream)
}

func (m *h2Mask) putWindowUpdate(stream uint32, n int) {
	m.put(http2.FrameWindowUpdate, 0, stream, 4)
	m.out = binary.BigEndian.AppendUint32(m.out, uint32(n))
}

func (m *h2Mask) putWeight(p http2.PriorityParam) {
	parent := p.StreamDep
	if p.Exclusive {
		parent |= 1 << 31
	}
	m.out = append(binary.BigEndian.AppendUint32(m.out, parent), p.Weight)
}

// translate appends to out what leaves in place of frame.
func (m *h2Mask) translate() error {
	kind, flags, stream := http2.FrameType(m.frame[3]), m.frame[4], streamID(m.frame)
	payload := m.frame[frameHead:]
	switch {
	case kind == http2.FrameSettings && flags&byte(http2.FlagSettingsAck) == 0:
		m.put(kind, 0, 0, 6*len(m.look.settings))
		for _, s := range m.look.settings {
			m.out = binary.BigEndian.AppendUint16(m.out, uint16(s.ID))
			m.out = binary.BigEndian.AppendUint32(m.out, s.Val)
		}
	case kind == http2.FrameWindowUpdate && !m.told:
		m.told = true
		m.putWindowUpdate(0, int(m.look.connWindow))
	case kind == http2.FrameWindowUpdate:
		m.credit(stream, int(binary.BigEndian.Uint32(payload)))
	case kind == http2.FrameHeaders:
		m.head.stream, m.head.flags = stream, flags
		m.block = append(m.block[:0], payload...)
		return m.finishHead(flags)
	case kind == http2.FrameContinuation:
		m.block = append(m.block, payload...)
		return m.finishHead(flags)
	case kind == http2.FrameRSTStream:
		m.forget(stream)
		m.pass()
	default:
		m.pass()
	}
	return nil
}

// credit is told that n bytes were read, of a stream or, if it is 0, in all.
func (m *h2Mask) credit(stream uint32, n int) {
	if stream == 0 {
		m.connHeld += n
		if m.connHeld >= (int(m.look.connWindow)+defaultWindow)/2 {
			m.putWindowUpdate(0, m.connHeld+m.connUp)
			m.connHeld, m.connUp = 0, 0
		}
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	i, found := m.findLocked(stream)
	if !found {
		return // the response has ended, and nothing more can come
	}
	s := &m.open[i]
	s.held += n
	if s.held >= m.look.initialWindow()/2 {
		m.longOnes = true
		m.putWindowUpdate(stream, s.held+s.up)
		s.held, s.up = 0, 0
	}
}

// finishHead sends a request's head when all of it is there.
func (m *h2Mask) finishHead(flags byte) error {
	if flags&endHeaders == 0 {
		return nil
	}
	if m.head.flags&(padded|hasWeight) != 0 {
		return fmt.Errorf("front: HEADERS with flags %#x", m.head.flags) // the implementation sends none
	}
	fields, err := m.decoder.DecodeFull(m.block)
	m.block = m.block[:0]
	if err != nil {
		return fmt.Errorf("front: reading a request's head again: %w", err)
	}
	m.order.sort(fields)
	s := openStream{id: m.head.stream, up: streamWindow - m.look.initialWindow() - int(m.look.openBump)}
	bump := int(m.look.openBump)
	if m.longOnes {
		bump, s.up = bump+s.up, 0
	}
	weight := m.look.weight
	m.mu.Lock()
	if m.look.inRow && len(m.open) > 0 {
		weight.StreamDep = m.open[len(m.open)-1].id
	}
	m.open = append(m.open, s)
	table := m.table
	m.mu.Unlock()

	if table != m.inUse {
		m.inUse = table
		m.encoder.SetMaxDynamicTableSize(table) // which the next head says
	}
	m.packed.Reset()
	for _, f := range fields {
		if f.Name == ":path" {
			// Browsers keep paths out of the table: they seldom come twice.
			m.packed.WriteByte(pathIndex)
			m.packed.Write(appendHPACKString(nil, f.Value))
		} else if err := m.encoder.WriteField(f); err != nil {
			return err
		}
	}
	for first, kind := true, http2.FrameHeaders; first || m.packed.Len() > 0; first, kind = false, http2.FrameContinuation {
		room, flags := maxPayload, byte(0)
		if first {
			room, flags = maxPayload-5, m.head.flags&endStream|hasWeight
		}
		part := m.packed.Next(room)
		if m.packed.Len() == 0 {
			flags |= endHeaders
		}
		m.put(kind, flags, s.id, maxPayload-room+len(part))
		if first {
			m.putWeight(weight)
		}
		m.out = append(m.out, part...)
	}
	if bump > 0 {
		m.putWindowUpdate(s.id, bump)
	}
	return nil
}

// appendHPACKString appends a string literal (RFC 7541 section 5.2).
func appendHPACKString(b []byte, s string) []byte {
	const huffman = 0x80
	n := hpack.HuffmanEncodeLength(s)
	if n >= uint64(len(s)) {
		return append(appendHPACKInt(b, 0, len(s)), s...)
	}
	return hpack.AppendHuffmanString(appendHPACKInt(b, huffman, int(n)), s)
}

// appendHPACKInt appends an integer with a prefix of 7 bits (RFC 7541 section
// 5.1), whose first bit is that of first.
func appendHPACKInt(b []byte, first byte, n int) []byte {
	const most = 1<<7 - 1
	if n < most {
		return append(b, first|byte(n))
	}
	return binary.AppendUvarint(append(b, first|most), uint64(n-most))
}

// Read gives the implementation what comes from the server, and notes what of
// it the writer has to know.
func (m *h2Mask) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.note(p[:n])
	return n, err
}

func (m *h2Mask) note(p []byte) {
	for len(p) > 0 {
		if len(m.inHead) < frameHead {
			n := min(frameHead-len(m.inHead), len(p))
			m.inHead = append(m.inHead, p[:n]...)
			p = p[n:]
			if len(m.inHead) < frameHead {
				return
			}
			m.inSkip = payloadLen(m.inHead)
		}
		n := min(m.inSkip, len(p))
		if http2.FrameType(m.inHead[3]) == http2.FrameSettings && len(m.inParam)+n <= maxPayload {
			m.inParam = append(m.inParam, p[:n]...)
		}
		m.inSkip -= n
		p = p[n:]
		if m.inSkip == 0 {
			m.noteFrame(http2.FrameType(m.inHead[3]), m.inHead[4], streamID(m.inHead))
			m.inHead, m.inParam = m.inHead[:0], m.inParam[:0]
		}
	}
}

func (m *h2Mask) noteFrame(kind http2.FrameType, flags byte, stream uint32) {
	switch kind {
	case http2.FrameData, http2.FrameHeaders:
		if flags&endStream != 0 {
			m.forget(stream)
		}
	case http2.FrameRSTStream:
		m.forget(stream)
	case http2.FrameSettings:
		for s := m.inParam; len(s) >= 6; s = s[6:] {
			if http2.SettingID(binary.BigEndian.Uint16(s)) == http2.SettingHeaderTableSize {
				m.mu.Lock()
				m.table = min(binary.BigEndian.Uint32(s[2:]), maxHeaderTable)
				m.mu.Unlock()
			}
		}
	}
}

// forget is told that nothing more will come on a stream.
func (m *h2Mask) forget(stream uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i, found := m.findLocked(stream); found {
		m.open = slices.Delete(m.open, i, i+1)
	}
}

func (m *h2Mask) findLocked(stream uint32) (int, bool) {
	return slices.BinarySearchFunc(m.open, stream, func(s openStream, id uint32) int { return cmp.Compare(s.id, id) })
}
