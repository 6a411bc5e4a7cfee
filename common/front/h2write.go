package front

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// An h2Writer is the half of an h2Mask that changes what leaves. The goroutine
// that writes owns the fields.
type h2Writer struct {
	to      io.Writer
	look    *h2Look
	heads   h2Heads
	streams *h2Streams

	*scratch     // nil: nothing is being written
	left     int // bytes that are to come of what passes as it is
	head     struct {
		stream uint32
		flags  byte
	}
	told     bool // the browser's first WINDOW_UPDATE has been sent
	connHeld int  // bytes read and not announced yet
	connUp   int  // bytes by which the connection's window will grow
	longOnes bool // a stream's window has grown
}

// A scratch is the memory of the frame under way and of what leaves. A
// connection has one only while something is being written.
type scratch struct {
	frame []byte // a frame that is not whole yet, and its head before it is known to pass
	out   []byte // what the Write under way has completed
	block []byte // fragments of a head without its end
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func newH2Writer(to io.Writer, look *h2Look, order fieldOrder, streams *h2Streams) *h2Writer {
	return &h2Writer{
		to:      to,
		look:    look,
		heads:   newH2Heads(order),
		streams: streams,
		left:    len(http2.ClientPreface),
		connUp:  connWindow - int(look.connWindow),
	}
}

// write sends p as the browser would have written it. It holds frames back
// until they are whole.
func (w *h2Writer) write(p []byte) (int, error) {
	if w.scratch == nil {
		if w.left == 0 && len(p) > 0 && allData(p) {
			return w.to.Write(p)
		}
		w.scratch = scratches.Get().(*scratch)
	}
	for rest := p; len(rest) > 0; {
		if w.left > 0 {
			n := min(w.left, len(rest))
			w.out = append(w.out, rest[:n]...)
			w.left -= n
			rest = rest[n:]
			continue
		}
		n := min(w.missing(), len(rest))
		w.frame = append(w.frame, rest[:n]...)
		rest = rest[n:]
		if len(w.frame) < frameHead {
			continue
		}
		if w.passes() {
			w.out = append(w.out, w.frame...)
			w.left = payloadLen(w.frame)
		} else if w.missing() > 0 {
			continue
		} else if err := w.translate(); err != nil {
			return 0, err
		}
		w.frame = w.frame[:0]
	}
	if w.left > 0 || len(w.frame) > 0 || len(w.block) > 0 {
		return len(p), nil
	}
	var err error
	if len(w.out) > 0 {
		_, err = w.to.Write(w.out)
	}
	w.frame, w.out, w.block = w.frame[:0], w.out[:0], w.block[:0]
	scratches.Put(w.scratch)
	w.scratch = nil
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// allData tells whether p is whole DATA frames and nothing else. They leave as
// they are, and bodies are made of them.
func allData(p []byte) bool {
	for len(p) > 0 {
		if len(p) < frameHead || http2.FrameType(p[3]) != http2.FrameData || len(p) < frameHead+payloadLen(p) {
			return false
		}
		p = p[frameHead+payloadLen(p):]
	}
	return true
}

// missing is how many bytes frame lacks: of its head first.
func (w *h2Writer) missing() int {
	if len(w.frame) < frameHead {
		return frameHead - len(w.frame)
	}
	return frameHead + payloadLen(w.frame) - len(w.frame)
}

// passes tells whether the frame, of which the head is there, leaves as it is.
func (w *h2Writer) passes() bool {
	switch http2.FrameType(w.frame[3]) {
	case http2.FrameSettings:
		return w.frame[4]&byte(http2.FlagSettingsAck) != 0
	case http2.FrameWindowUpdate, http2.FrameHeaders, http2.FrameContinuation:
		return false
	case http2.FrameRSTStream:
		w.streams.forget(streamID(w.frame))
	}
	return true
}

// payloadLen is how many bytes follow the head with which frame begins.
func payloadLen(frame []byte) int {
	return int(frame[0])<<16 | int(frame[1])<<8 | int(frame[2])
}

func streamID(frame []byte) uint32 { return binary.BigEndian.Uint32(frame[5:]) & (1<<31 - 1) }

// put begins a frame whose payload the caller appends to out.
func (w *h2Writer) put(kind http2.FrameType, flags byte, stream uint32, length int) {
	w.out = append(w.out, byte(length>>16), byte(length>>8), byte(length), byte(kind), flags)
	w.out = binary.BigEndian.AppendUint32(w.out, stream)
}

// putWindowUpdate says that a stream, or the connection, has room for n bytes more.
func (w *h2Writer) putWindowUpdate(stream uint32, n int) {
	w.put(http2.FrameWindowUpdate, 0, stream, 4)
	w.out = binary.BigEndian.AppendUint32(w.out, uint32(n))
}

// putWeight appends the priority with which a HEADERS frame's payload begins.
func (w *h2Writer) putWeight(p http2.PriorityParam) {
	parent := p.StreamDep
	if p.Exclusive {
		parent |= 1 << 31
	}
	w.out = append(binary.BigEndian.AppendUint32(w.out, parent), p.Weight)
}

// translate appends to out what leaves in place of frame, which is whole.
func (w *h2Writer) translate() error {
	kind, flags, stream := http2.FrameType(w.frame[3]), w.frame[4], streamID(w.frame)
	payload := w.frame[frameHead:]
	switch kind {
	case http2.FrameSettings:
		w.put(kind, 0, 0, 6*len(w.look.settings))
		for _, s := range w.look.settings {
			w.out = binary.BigEndian.AppendUint16(w.out, uint16(s.ID))
			w.out = binary.BigEndian.AppendUint32(w.out, s.Val)
		}
		return nil
	case http2.FrameWindowUpdate:
		if !w.told {
			w.told = true
			w.putWindowUpdate(0, int(w.look.connWindow))
		} else {
			w.credit(stream, int(binary.BigEndian.Uint32(payload)))
		}
		return nil
	case http2.FrameHeaders:
		w.head.stream, w.head.flags = stream, flags
	}
	w.block = append(w.block, payload...)
	return w.finishHead(flags)
}

// credit is told that n bytes were read, of a stream or, if it is 0, in all.
func (w *h2Writer) credit(stream uint32, n int) {
	if stream == 0 {
		w.connHeld += n
		if w.connHeld >= (int(w.look.connWindow)+defaultWindow)/2 {
			w.putWindowUpdate(0, w.connHeld+w.connUp)
			w.connHeld, w.connUp = 0, 0
		}
		return
	}
	if increment := w.streams.credit(stream, n, w.look.initialWindow()/2); increment > 0 {
		w.longOnes = true
		w.putWindowUpdate(stream, increment)
	}
}

// finishHead sends a request's head when all of it is there.
func (w *h2Writer) finishHead(flags byte) error {
	if flags&endHeaders == 0 {
		return nil
	}
	if w.head.flags&(padded|hasWeight) != 0 {
		return fmt.Errorf("front: HEADERS with flags %#x", w.head.flags) // the implementation sends none
	}
	s := openStream{id: w.head.stream, up: streamWindow - w.look.initialWindow() - int(w.look.openBump)}
	bump := int(w.look.openBump)
	if w.longOnes {
		bump, s.up = bump+s.up, 0
	}
	newest, table := w.streams.add(s)
	weight := w.look.weight
	if w.look.inRow {
		weight.StreamDep = newest
	}
	packed, err := w.heads.translate(w.block, table)
	if err != nil {
		return err
	}
	w.block = w.block[:0]
	for first, kind := true, http2.FrameHeaders; first || packed.Len() > 0; first, kind = false, http2.FrameContinuation {
		room, flags := maxPayload, byte(0)
		if first {
			room, flags = maxPayload-5, w.head.flags&endStream|hasWeight
		}
		part := packed.Next(room)
		if packed.Len() == 0 {
			flags |= endHeaders
		}
		w.put(kind, flags, s.id, maxPayload-room+len(part))
		if first {
			w.putWeight(weight)
		}
		w.out = append(w.out, part...)
	}
	if bump > 0 {
		w.putWindowUpdate(s.id, bump)
	}
	return nil
}

// h2Heads puts the fields of requests' heads in a browser's order and
// compresses them as the browser does. The goroutine that writes owns it.
type h2Heads struct {
	order   fieldOrder
	decoder *hpack.Decoder
	encoder *hpack.Encoder
	packed  *bytes.Buffer // the encoder's
	inUse   uint32        // size of the encoder's table, in bytes
}

func newH2Heads(order fieldOrder) h2Heads {
	h := h2Heads{order: order, decoder: hpack.NewDecoder(innerTable, nil), packed: new(bytes.Buffer), inUse: defaultHeaderTable}
	h.encoder = hpack.NewEncoder(h.packed)
	h.encoder.SetMaxDynamicTableSizeLimit(maxHeaderTable)
	return h
}

// translate returns, until it is called again, what leaves in place of block,
// compressed with a table of so many bytes.
func (h *h2Heads) translate(block []byte, table uint32) (*bytes.Buffer, error) {
	fields, err := h.decoder.DecodeFull(block)
	if err != nil {
		return nil, fmt.Errorf("front: reading a request's head again: %w", err)
	}
	h.order.sort(fields)
	if table != h.inUse {
		h.inUse = table
		h.encoder.SetMaxDynamicTableSize(table) // which the next head says
	}
	h.packed.Reset()
	for _, f := range fields {
		if f.Name == ":path" {
			// Browsers keep paths out of the table: they seldom come twice.
			h.packed.WriteByte(pathIndex)
			h.packed.Write(appendHPACKString(nil, f.Value))
		} else if err := h.encoder.WriteField(f); err != nil {
			return nil, err
		}
	}
	return h.packed, nil
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
