package front

import (
	"bytes"
	"net"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/http2/hpack"
)

const (
	// mergedRequest is the size in bytes up to which a request's head and body
	// leave together. It is Chrome's (kMaxMergedHeaderAndBodySize in
	// net/http/http_stream_parser.cc).
	mergedRequest = 1400

	// maxRequestHead bounds in bytes what an h1Mask holds back: a head longer
	// than that leaves as it is.
	maxRequestHead = 64 << 10
)

// An h1Mask stands between the HTTP/1.1 implementation and a connection, and
// gives the heads of requests a browser's header order, spelling and
// Connection header. It is safe for concurrent use.
type h1Mask struct {
	net.Conn
	order fieldOrder
	never []string // headers that are not sent, in small letters

	mu   sync.Mutex
	head bool   // a request's head is being written
	held []byte // what there is of it
}

// begin says that what is written next is a request's head.
func (m *h1Mask) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.head, m.held = true, m.held[:0]
}

func (m *h1Mask) Write(p []byte) (int, error) {
	m.mu.Lock()
	if !m.head {
		m.mu.Unlock()
		return m.Conn.Write(p)
	}
	defer m.mu.Unlock()
	m.held = append(m.held, p...)
	head, body, whole := bytes.Cut(m.held, []byte("\r\n\r\n"))
	if !whole && len(m.held) < maxRequestHead {
		return len(p), nil
	}
	m.head = false
	out := m.held
	if whole {
		out = append(m.rewrite(string(head)), body...)
	}
	if whole && len(out) > mergedRequest {
		cut := len(out) - len(body)
		if _, err := m.Conn.Write(out[:cut]); err != nil {
			return 0, err
		}
		out = out[cut:]
	}
	if len(out) > 0 {
		if _, err := m.Conn.Write(out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// rewrite returns head, which lacks its last two line ends, with them and as
// the browser would write it.
func (m *h1Mask) rewrite(head string) []byte {
	lines := strings.Split(head, "\r\n")
	fields := []hpack.HeaderField{{Name: "connection", Value: "keep-alive"}}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		name = strings.ToLower(name)
		if !slices.Contains(m.never, name) {
			fields = append(fields, hpack.HeaderField{Name: name, Value: strings.TrimSpace(value)})
		}
	}
	m.order.sort(fields)
	out := append([]byte(lines[0]), "\r\n"...)
	for _, f := range fields {
		name := m.order[f.Name].spelt
		if name == "" {
			name = f.Name
		}
		out = append(out, name+": "+f.Value+"\r\n"...)
	}
	return append(out, "\r\n"...)
}
