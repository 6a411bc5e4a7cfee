package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"turbotunnel/common/handshake"
)

// What follows are attacks of strangers, who have no key. The first one has a
// path from somebody's log.

// oracle compares what a path of a client's and the same path with one character
// changed are answered.
func oracle(ctx context.Context, r *rig) error {
	logged := handshake.NewID(r.key, handshake.DayOf(time.Now())).Segment()
	changed := []byte(logged)
	changed[10] = map[bool]byte{true: 'B', false: 'A'}[changed[10] == 'A']
	probes := map[string]func(context.Context, string, string) (string, error){
		"a body that does not come":          withheld,
		"a body that waits for 100 Continue": expecting,
		"a small body":                       whole(100),
		"a body of a first message's size":   whole(300),
		"a large body":                       whole(20000),
		"a body in chunks":                   chunked,
	}
	type answers struct {
		probe string
		said  [2]string
	}
	all := make(chan answers, len(probes))
	for name, probe := range probes {
		go func() {
			a := answers{probe: name}
			var group sync.WaitGroup
			for i, path := range []string{logged, string(changed)} {
				group.Go(func() {
					var err error
					if a.said[i], err = probe(ctx, r.addr, path); err != nil {
						a.said[i] += "error: " + strings.ReplaceAll(err.Error(), r.addr, "")
					}
				})
			}
			group.Wait()
			all <- a
		}()
	}
	var errs []error
	for range probes {
		if a := <-all; a.said[0] != a.said[1] {
			errs = append(errs, fmt.Errorf("%s tells the path from the log: %q, and not %q", a.probe, a.said[0], a.said[1]))
		}
	}
	return errors.Join(errs...)
}

// raw sends a request as text and returns the whole answer but for the time in
// it, and whether it came at once, within the time of a deadline, or never.
func raw(ctx context.Context, addr, request string) (string, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	start := time.Now()
	if _, err := io.WriteString(c, request); err != nil {
		return "", err
	}
	c.SetReadDeadline(start.Add(20 * time.Second)) //nolint:errcheck // the next call says it
	in := bufio.NewReader(c)
	text := ""
	for {
		resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodPost})
		if err != nil {
			kind := "closed"
			if errors.Is(err, os.ErrDeadlineExceeded) {
				kind = "silent"
			}
			// Tenths of a deadline of ten seconds: a busy machine is late.
			return fmt.Sprintf("%s%s after %.0f", text, kind, time.Since(start).Seconds()/5), nil
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Header.Del("Date")
		text += fmt.Sprintln(resp.Status, resp.Header, len(body), resp.Close)
		if resp.Close {
			return text, nil
		}
	}
}

func withheld(ctx context.Context, addr, path string) (string, error) {
	return raw(ctx, addr, "POST /"+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 200\r\n\r\n")
}

func expecting(ctx context.Context, addr, path string) (string, error) {
	return raw(ctx, addr, "POST /"+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 200\r\n\r\n")
}

func chunked(ctx context.Context, addr, path string) (string, error) {
	return raw(ctx, addr, "POST /"+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"12c\r\n"+strings.Repeat("x", 300)+"\r\n0\r\n\r\n")
}

func whole(n int) func(context.Context, string, string) (string, error) {
	return func(ctx context.Context, addr, path string) (string, error) {
		return raw(ctx, addr, fmt.Sprintf("POST /%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
			path, n, strings.Repeat("x", n)))
	}
}

// dial connects as one of many strangers on this machine.
func dial(ctx context.Context, addr string, stranger int) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+stranger%200))}}
	return d.DialContext(ctx, "tcp4", addr)
}

// idle is one address with thousands of connections on which it says nothing
// after a first request. Somebody else must still be served.
func idle(ctx context.Context, r *rig) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range r.size(8300, 300) {
		c, err := dial(ctx, r.addr, 0)
		if err != nil {
			return err // this machine's limit, not the server's
		}
		context.AfterFunc(ctx, func() { c.Close() })
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			continue // the server closes what is too much
		}
	}
	time.Sleep(time.Second)
	return r.newcomer(ctx)
}

// silentHandshake begins a TLS handshake behind a proxy, and no more.
func silentHandshake(ctx context.Context, r *rig) error {
	limit := time.Duration(r.size(60, 30)) * time.Second
	c, err := dial(ctx, r.addr, 0)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, proxyHeader+"\x16\x03\x01\x02\x00\x01"); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(limit)) //nolint:errcheck // the next call says it
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("a handshake that stalls has %v and more", limit)
	}
	return nil
}

// An h2 is a connection over HTTP/2 on which a stranger says what it likes.
type h2 struct {
	net.Conn
	out    *bufio.Writer
	frames *http2.Framer
	fields bytes.Buffer
	enc    *hpack.Encoder
	stream uint32
}

func newH2(ctx context.Context, addr string, stranger int, settings ...http2.Setting) (*h2, error) {
	c, err := dial(ctx, addr, stranger)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	h := &h2{Conn: c, out: bufio.NewWriter(c), stream: 1}
	h.frames = http2.NewFramer(h.out, c)
	h.enc = hpack.NewEncoder(&h.fields)
	io.WriteString(h.out, http2.ClientPreface) //nolint:errcheck // Flush says it
	h.frames.WriteSettings(settings...)        //nolint:errcheck // likewise
	return h, h.out.Flush()
}

// request begins a request, and returns its stream.
func (h *h2) request(method, path string, end bool, more ...hpack.HeaderField) (uint32, error) {
	h.fields.Reset()
	all := append([]hpack.HeaderField{
		{Name: ":method", Value: method}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "x"}, {Name: ":path", Value: path},
	}, more...)
	for _, f := range all {
		h.enc.WriteField(f) //nolint:errcheck // into memory
	}
	block := h.fields.Bytes()
	first := block[:min(len(block), 16000)]
	rest := block[len(first):]
	id := h.stream
	h.stream += 2
	h.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: end, EndHeaders: len(rest) == 0}) //nolint:errcheck // Flush says it
	for len(rest) > 0 {
		part := rest[:min(len(rest), 16000)]
		rest = rest[len(part):]
		h.frames.WriteContinuation(id, len(rest) == 0, part) //nolint:errcheck // likewise
	}
	return id, h.out.Flush()
}

// push sends bodies of 8 MB on many streams to a server whose site is kept busy
// by bodies that do not come.
func push(ctx context.Context, r *rig) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.size(20, 4))*time.Second)
	defer cancel()
	for i := range r.size(70, 10) {
		c, err := dial(ctx, r.addr, i)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { c.Close() })
		io.WriteString(c, "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx") //nolint:errcheck // closed is as good as not
	}
	var group sync.WaitGroup
	defer group.Wait()
	for i := range r.size(30, 4) {
		h, err := newH2(ctx, r.addr, i)
		if err != nil {
			return err
		}
		group.Go(func() { io.Copy(io.Discard, h.Conn) }) //nolint:errcheck // whatever ends it
		group.Go(func() {
			block := make([]byte, 16<<10)
			var ids []uint32
			for range 4 {
				id, err := h.request(http.MethodPost, "/x", false)
				if err != nil {
					return
				}
				ids = append(ids, id)
			}
			for range 511 {
				for _, id := range ids {
					if h.frames.WriteData(id, false, block) != nil {
						return
					}
					r.sent.Add(int64(len(block)))
				}
			}
			h.out.Flush() //nolint:errcheck // whatever ends it
		})
	}
	// The site's answer to somebody who means it.
	client := http.Client{Timeout: 15 * time.Second}
	resp, err := client.Get(r.url + "/")
	if err != nil {
		return fmt.Errorf("a visitor of the site: %w", err)
	}
	resp.Body.Close()
	<-ctx.Done()
	return nil
}

// manyStreams asks on connections over HTTP/2 for many things, with heads as large as
// a server takes or larger, and never opens a window for an answer.
func manyStreams(ctx context.Context, r *rig) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.size(20, 3))*time.Second)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	var open atomic.Int64
	for i := range r.size(100, 10) {
		h, err := newH2(ctx, r.addr, i, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		if err != nil {
			return err
		}
		open.Add(1)
		group.Go(func() { io.Copy(io.Discard, h.Conn) }) //nolint:errcheck // whatever ends it
		group.Go(func() {
			size := []int{60_000, 30_000, 100, 100}[i%4]
			for range 250 {
				if _, err := h.request(http.MethodGet, "/", true, hpack.HeaderField{Name: "x-a", Value: strings.Repeat("a", size)}); err != nil {
					return
				}
				r.sent.Add(int64(size))
			}
		})
	}
	<-ctx.Done()
	return nil
}

// stuckHTTP2 sends a request over HTTP/2 and opens no window for its answer.
func stuckHTTP2(ctx context.Context, s *session, body []byte) (io.Closer, error) {
	host, path, _ := strings.Cut(strings.TrimPrefix(s.url, "http://"), "/")
	h, err := newH2(ctx, host, 0, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	if err != nil {
		return nil, err
	}
	id, err := h.request(http.MethodPost, "/"+path, false)
	if err != nil {
		return nil, err
	}
	if err := h.frames.WriteData(id, true, body); err != nil {
		return nil, err
	}
	go answerPings(h)
	return h, h.out.Flush()
}

// answerPings keeps a connection alive that reads nothing.
func answerPings(h *h2) {
	for {
		f, err := h.frames.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.PingFrame:
			if !f.IsAck() {
				h.frames.WritePing(true, f.Data) //nolint:errcheck // Flush says it
			}
		case *http2.SettingsFrame:
			if !f.IsAck() {
				h.frames.WriteSettingsAck() //nolint:errcheck // likewise
			}
		}
		if h.out.Flush() != nil {
			return
		}
	}
}
