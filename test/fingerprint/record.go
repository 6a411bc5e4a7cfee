package fingerprint

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Beginnings of paths that a Recorder does more for than to answer.
const (
	last     = "/last" // ends the connection
	together = "/wait" // is answered when atOnce of them wait, over HTTP/2
	atOnce   = 3
)

// patience is the longest that a Recorder waits for a client's next octets.
const patience = time.Minute

// A Connection is what one client has sent on one connection.
type Connection struct {
	Hello   *ClientHello
	Message []byte  // of which it was read
	Resumed bool    // the TLS session of an earlier connection was accepted
	Frames  []Frame // over HTTP/2
	Heads   []Head  // over HTTP/1.1
	Records []int   // sizes in bytes of the TLS records after the handshake, with their heads
}

// A Head is the head of an HTTP/1.1 request.
type Head struct {
	Line   string
	Fields []hpack.HeaderField // names as they were sent
}

// Requests are the heads of the HTTP/2 requests.
func (c *Connection) Requests() []Frame {
	var heads []Frame
	for _, f := range c.Frames {
		if f.Kind == http2.FrameHeaders {
			heads = append(heads, f)
		}
	}
	return heads
}

// A Recorder is a web server on loopback that keeps what its clients send. It
// answers every request by status 200: one for / by the page, another one by
// nothing. It is safe for concurrent use.
type Recorder struct {
	page     string
	config   *tls.Config
	listener net.Listener
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup

	mu    sync.Mutex // guards what follows, until Close has returned
	conns []*Connection
	done  map[string]chan struct{}
	errs  []error
}

// NewRecorder starts one that has the certificate cert and speaks the
// protocol, h2 or http/1.1.
func NewRecorder(cert tls.Certificate, protocol, page string) (*Recorder, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Recorder{
		page:     page,
		config:   &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{protocol}},
		listener: l,
		done:     make(map[string]chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.running.Go(r.accept)
	return r, nil
}

// Addr is the address to connect to.
func (r *Recorder) Addr() string { return r.listener.Addr().String() }

// Connections are those whose TLS handshake succeeded, in their order, with
// requests or without. It is for the time after Close.
func (r *Recorder) Connections() []*Connection { return r.conns }

// Answered returns a channel that is closed when the path's answer was sent.
func (r *Recorder) Answered(path string) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answeredLocked(path)
}

func (r *Recorder) answeredLocked(path string) chan struct{} {
	if r.done[path] == nil {
		r.done[path] = make(chan struct{})
	}
	return r.done[path]
}

// Close ends the server and returns what went wrong on connections that had
// got as far as a request.
func (r *Recorder) Close() error {
	r.cancel()
	r.listener.Close()
	r.running.Wait()
	return errors.Join(r.errs...)
}

func (r *Recorder) accept() {
	for {
		conn, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.running.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(r.ctx, func() { conn.Close() })
			defer stop()
			conn.SetDeadline(time.Now().Add(patience))
			c := new(Connection)
			err := r.serve(conn, c)
			r.mu.Lock()
			defer r.mu.Unlock()
			if err != nil && r.ctx.Err() == nil && len(c.Frames)+len(c.Heads) > 0 {
				r.errs = append(r.errs, err)
			}
		})
	}
}

func (r *Recorder) keep(c *Connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = append(r.conns, c)
}

func (r *Recorder) answered(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := r.answeredLocked(path)
	select {
	case <-done:
	default:
		close(done)
	}
}

// A tap keeps the first of what is read.
type tap struct {
	net.Conn
	seen bytes.Buffer
}

// enoughSeen is how much of a connection is kept, in bytes.
const enoughSeen = 256 << 10

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if t.seen.Len() < enoughSeen {
		t.seen.Write(p[:n])
	}
	return n, err
}

func (r *Recorder) serve(conn net.Conn, c *Connection) error {
	t := &tap{Conn: conn}
	secure := tls.Server(t, r.config)
	if err := secure.HandshakeContext(r.ctx); err != nil {
		return err
	}
	defer secure.Close()
	message, _, err := splitRecords(t.seen.Bytes())
	if err != nil {
		return err
	}
	if c.Hello, err = ParseHello(message); err != nil {
		return err
	}
	c.Message = message
	state := secure.ConnectionState()
	c.Resumed = state.DidResume
	r.keep(c)
	defer func() {
		// The client's first encrypted record is its Finished.
		if _, all, err := splitRecords(t.seen.Bytes()); err == nil && len(all) > 0 {
			c.Records = all[1:]
		}
	}()
	if state.NegotiatedProtocol == "h2" {
		return r.serveH2(secure, c)
	}
	return r.serveH1(secure, c)
}

// splitRecords returns the first handshake message of a client, and the sizes
// of the encrypted records that are whole in b.
func splitRecords(b []byte) (message []byte, sizes []int, err error) {
	for len(b) >= 5 {
		n := 5 + int(binary.BigEndian.Uint16(b[3:]))
		if len(b) < n {
			break
		}
		switch b[0] {
		case 22:
			message = append(message, b[5:n]...)
		case 23:
			sizes = append(sizes, n)
		}
		b = b[n:]
	}
	if len(message) < 4 {
		return nil, nil, errHello
	}
	return message, sizes, nil
}

func (r *Recorder) serveH2(conn net.Conn, c *Connection) error {
	reader, err := NewH2Reader(conn, conn)
	if err != nil {
		return err
	}
	framer := reader.framer
	if err := framer.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 100}); err != nil {
		return err
	}
	paths := make(map[uint32]string)
	var waiting []uint32
	for {
		f, err := reader.Next()
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		c.Frames = append(c.Frames, f)
		if f.Kind == http2.FrameHeaders {
			for _, field := range f.Fields {
				if field.Name == ":path" {
					paths[f.Stream] = field.Value
				}
			}
		}
		ends := (f.Kind == http2.FrameHeaders || f.Kind == http2.FrameData) && f.Flags.Has(http2.FlagHeadersEndStream)
		if !ends {
			continue
		}
		answer := []uint32{f.Stream}
		if strings.HasPrefix(paths[f.Stream], together) {
			if waiting = append(waiting, f.Stream); len(waiting) < atOnce {
				continue
			}
			answer, waiting = waiting, nil
		}
		for _, stream := range answer {
			if err := r.answerH2(framer, stream, paths[stream]); err != nil {
				return err
			}
			r.answered(paths[stream])
		}
	}
}

// answerH2 answers in two frames. GOAWAY comes between them, so that a client
// knows of it when it has the answer.
func (r *Recorder) answerH2(framer *http2.Framer, stream uint32, path string) error {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSize(0) // one for each answer must not remember
	encoder.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	encoder.WriteField(hpack.HeaderField{Name: "content-type", Value: "text/html"})
	encoder.WriteField(hpack.HeaderField{Name: "cache-control", Value: "no-store"})
	err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true})
	if err == nil && strings.HasPrefix(path, last) {
		err = framer.WriteGoAway(stream, http2.ErrCodeNo, nil)
	}
	if err == nil {
		err = framer.WriteData(stream, true, []byte(r.pageFor(path)))
	}
	return err
}

func (r *Recorder) pageFor(path string) string {
	if path == "/" {
		return r.page
	}
	return ""
}

func (r *Recorder) serveH1(conn net.Conn, c *Connection) error {
	b := bufio.NewReader(conn)
	for {
		// The request is read twice: once as it is, once by what it means.
		var raw bytes.Buffer
		req, err := http.ReadRequest(bufio.NewReader(&stopAtBlank{r: io.TeeReader(b, &raw)}))
		if err != nil {
			if raw.Len() == 0 {
				return nil
			}
			return err
		}
		if req.ContentLength > 0 {
			if _, err := io.CopyN(io.Discard, b, req.ContentLength); err != nil {
				return err
			}
		}
		c.Heads = append(c.Heads, parseHead(raw.String()))
		path := req.URL.Path
		page := r.pageFor(path)
		end := ""
		if strings.HasPrefix(path, last) {
			end = "Connection: close\r\n"
		}
		_, err = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n%s\r\n%s", len(page), end, page)
		r.answered(path)
		if err != nil || end != "" {
			return err
		}
	}
}

// A stopAtBlank reads one octet at a time up to the empty line that ends a
// head, then says io.EOF.
type stopAtBlank struct {
	r    io.Reader
	tail [4]byte
}

func (s *stopAtBlank) Read(p []byte) (int, error) {
	if string(s.tail[:]) == "\r\n\r\n" || len(p) == 0 {
		return 0, io.EOF
	}
	n, err := s.r.Read(p[:1])
	if n == 1 {
		copy(s.tail[:], s.tail[1:])
		s.tail[3] = p[0]
	}
	return n, err
}

func parseHead(text string) Head {
	lines := strings.Split(strings.TrimSuffix(text, "\r\n\r\n"), "\r\n")
	h := Head{Line: lines[0]}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		h.Fields = append(h.Fields, hpack.HeaderField{Name: name, Value: strings.TrimSpace(value)})
	}
	return h
}
