package front

import (
	"net"

	"golang.org/x/net/http2"
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
// completes, leave in one Write, which is one TLS record for a small one. A
// body's octets are copied when a Write ends inside their frame, else not.
//
// It is safe for one reader and one writer at a time, which is how the
// implementation uses a connection.
type h2Mask struct {
	net.Conn
	out *h2Writer
	in  h2Reader
}

func newH2Mask(conn net.Conn, look *h2Look, order fieldOrder) *h2Mask {
	streams := &h2Streams{table: defaultHeaderTable}
	return &h2Mask{Conn: conn, out: newH2Writer(conn, look, order, streams), in: h2Reader{streams: streams}}
}

// Write takes what the implementation sends.
func (m *h2Mask) Write(p []byte) (int, error) { return m.out.write(p) }

// Read gives the implementation what comes from the server, and notes what of
// it the writer has to know.
func (m *h2Mask) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.in.note(p[:n])
	return n, err
}
