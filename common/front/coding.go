package front

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
)

// The servers of this project never compress, but requests accept what a browser
// accepts, so a CDN may; and whoever answers chooses how much a decoder remembers.
const (
	// decodersHold is how many bytes the decoders of one front may hold
	// together: three with the largest window that there is. Whoever comes then
	// waits until another answer has ended.
	decodersHold = 64 << 20

	// brotliTables and zstdTables are the bytes that a decoder holds beside its
	// window, and deflateAll those with it: brotli's tables are of up to 3 x 256
	// Huffman codes with 1080 entries of 4 bytes, zstd's of less, but it has blocks
	// of 128 KB in several states; deflate has a window of 32 KB.
	brotliTables = 4 << 20
	zstdTables   = 2 << 20
	deflateAll   = 64 << 10

	// maxZstdWindow is the largest that RFC 9659 allows in HTTP, in bytes.
	maxZstdWindow = 8 << 20
)

// A coding is a way to compress a body.
type coding struct {
	// head is how many bytes of the body say what its decoder will hold: as many
	// as every body has that is not empty, so that nobody waits for more.
	head int

	// open returns a decoder of body, which begins with head, or is shorter,
	// and what it holds in bytes.
	open func(head []byte, body io.Reader) (size int, open func() (io.Reader, error))
}

// codings are those that browsers accept, by their names in Content-Encoding.
var codings = map[string]coding{
	"gzip":    {0, openGzip},
	"x-gzip":  {0, openGzip},
	"deflate": {0, openDeflate},
	"br":      {1, openBrotli},
	"zstd":    {6, openZstd},
}

func openGzip(_ []byte, body io.Reader) (int, func() (io.Reader, error)) {
	return deflateAll, func() (io.Reader, error) { return gzip.NewReader(body) }
}

func openDeflate(_ []byte, body io.Reader) (int, func() (io.Reader, error)) {
	return deflateAll, func() (io.Reader, error) { return zlib.NewReader(body) }
}

func openBrotli(head []byte, body io.Reader) (int, func() (io.Reader, error)) {
	return brotliWindow(head) + brotliTables, func() (io.Reader, error) { return brotli.NewReader(body), nil }
}

// brotliWindow is the size in bytes of the window of a stream that begins with
// head (WBITS in RFC 7932 section 9.1).
func brotliWindow(head []byte) int {
	if len(head) == 0 {
		return 0
	}
	switch first := head[0]; {
	case first&1 == 0:
		return 1 << 16
	case first>>1&7 != 0:
		return 1 << (17 + first>>1&7)
	case first>>4&7 != 0:
		return 1 << (8 + first>>4&7)
	}
	return 1 << 17
}

// openZstd allows no window in what follows that is larger than the first.
func openZstd(head []byte, body io.Reader) (int, func() (io.Reader, error)) {
	window := zstdWindow(head)
	return window + zstdTables, func() (io.Reader, error) {
		// With concurrency 1 it decodes without goroutines.
		return zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(uint64(window)))
	}
}

// zstdWindow is the size in bytes of the window of a stream that begins with
// head (RFC 8878 section 3.1.1.1), the largest allowed where that is not said
// there.
func zstdWindow(head []byte) int {
	const (
		magic         = 0xfd2fb528
		singleSegment = 0x20 // of the frame's descriptor: the window is as large as the content
	)
	if len(head) < 6 || binary.LittleEndian.Uint32(head) != magic || head[4]&singleSegment != 0 {
		return maxZstdWindow
	}
	base := 1 << (10 + head[5]>>3)
	return min(base+base/8*int(head[5]&7), maxZstdWindow)
}

// undoCoding replaces the body of a response that came compressed by one that
// decompresses as it is read, and holds no more than the room has. ctx is the
// exchange's.
func undoCoding(ctx context.Context, resp *http.Response, r *room) error {
	name := resp.Header.Get("Content-Encoding")
	known := strings.ToLower(strings.TrimSpace(name))
	if known == "" || known == "identity" {
		return nil
	}
	c, ok := codings[known]
	if !ok {
		return fmt.Errorf("the answer has the unknown content coding %q: switch compression off at the CDN", name)
	}
	resp.Body = &decoder{ctx: ctx, body: resp.Body, coding: c, room: r, closed: make(chan struct{})}
	resp.Header.Del("Content-Encoding")
	resp.Header.Del("Content-Length")
	resp.ContentLength = -1
	resp.Uncompressed = true
	return nil
}

// A decoder undoes a content coding. The format's header is read by the first
// Read, not before. What it holds is given back when the body has ended or is
// closed.
type decoder struct {
	ctx    context.Context
	body   io.ReadCloser
	coding coding
	room   *room
	closed chan struct{}
	once   sync.Once // closes closed

	mu   sync.Mutex // guards what follows; held while a Read waits
	r    io.Reader  // nil: it is not open
	size int        // of the room that it has
	err  error      // for every later Read
}

func (d *decoder) Read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.r == nil && d.err == nil {
		d.err = d.open()
	}
	if d.err != nil {
		return 0, d.leave()
	}
	n, err := d.r.Read(p)
	if d.err = err; err != nil {
		d.leave()
	}
	return n, err
}

// open reads the head, waits for room, and makes the decoder. mu is held.
func (d *decoder) open() error {
	head := make([]byte, d.coding.head)
	n, err := io.ReadFull(d.body, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	size, open := d.coding.open(head[:n], io.MultiReader(bytes.NewReader(head[:n]), d.body))
	if err := d.room.take(d.ctx, size, d.closed); err != nil {
		return fmt.Errorf("no memory for decompressing the answer: switch compression off at the CDN: %w", err)
	}
	d.size = size
	d.r, err = open()
	return err
}

// leave gives the room back, and returns err. mu is held.
func (d *decoder) leave() error {
	d.room.give(d.size)
	d.r, d.size = nil, 0
	return d.err
}

func (d *decoder) Close() error {
	d.once.Do(func() { close(d.closed) })
	err := d.body.Close() // ends a Read
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = http.ErrBodyReadAfterClose
	}
	d.leave()
	return err
}

// A room is the bytes that decoders may still hold. It is safe for concurrent
// use.
type room struct {
	mu    sync.Mutex // guards what follows
	left  int
	freed chan struct{} // closed when there is more
}

func newRoom(size int) *room { return &room{left: size, freed: make(chan struct{})} }

// take takes n bytes, and waits until they are there, ctx ends, or gone is closed.
func (r *room) take(ctx context.Context, n int, gone <-chan struct{}) error {
	for {
		r.mu.Lock()
		freed := r.freed
		enough := n <= r.left
		if enough {
			r.left -= n
		}
		r.mu.Unlock()
		if enough {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-gone:
			return http.ErrBodyReadAfterClose
		}
	}
}

// give gives n bytes back.
func (r *room) give(n int) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left += n
	close(r.freed)
	r.freed = make(chan struct{})
}
