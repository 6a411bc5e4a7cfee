package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"time"

	"turbotunnel/test/cdn"
	"turbotunnel/test/netpath"
)

// largeWindows let one HTTP/2 stream fill any path of the suites.
var largeWindows = &http.HTTP2Config{
	MaxReceiveBufferPerConnection: 64 << 20,
	MaxReceiveBufferPerStream:     64 << 20,
	MaxConcurrentStreams:          250,
}

// pollBody is how much meek moves in a request or an answer.
const pollBody = 64 << 10

// raw is an HTTP/2 server and client with large windows on a path: the limit
// of what a tunnel in HTTP can reach there. It also polls as meek does: one
// request at a time, with a body of at most 64 KB each way.
type raw struct {
	client  *http.Client
	url     string
	netpath *netpath.Path // nil on loopback
	server  *http.Server
	ctx     context.Context
}

func (b *bench) startRaw(cfg netpath.Config, bare bool) (*raw, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &raw{ctx: b.ctx, url: "https://" + cdn.Front + "/", server: &http.Server{
		HTTP2:     largeWindows,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{b.cert}},
		ErrorLog:  log.New(io.Discard, "", 0),
		Handler:   http.HandlerFunc(serveRaw),
	}}
	addr := ln.Addr().String()
	if cfg != (netpath.Config{}) {
		if r.netpath, err = netpath.New(cfg, addr); err != nil {
			ln.Close()
			return nil, err
		}
		addr = r.netpath.Addr()
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	if bare {
		protocols.SetUnencryptedHTTP2(true)
		r.server.Protocols, r.url = protocols, "http://"+cdn.Front+"/"
		go r.server.Serve(ln) //nolint:errcheck // close ends it
	} else {
		go r.server.ServeTLS(ln, "", "") //nolint:errcheck // likewise
	}
	r.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: b.pool},
		Protocols:       protocols,
		HTTP2:           largeWindows,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		},
	}}
	return r, nil
}

// echoPath is where what a request's body says comes back in the answer's.
const echoPath = "/echo"

func serveRaw(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == echoPath {
		http.NewResponseController(w).Flush()                              //nolint:errcheck // the client waits for it
		io.CopyBuffer(flushing{w}, onlyReader{r.Body}, make([]byte, 4096)) //nolint:errcheck // its end is the end
		return
	}
	n, _ := strconv.ParseInt(r.URL.RawQuery, 10, 64)
	if _, err := io.CopyBuffer(onlyWriter{newContent(0)}, r.Body, make([]byte, 256<<10)); err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	newContent(0).send(w, n) //nolint:errcheck // the client counts
}

// flushing sends what is written at once.
type flushing struct{ http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = http.NewResponseController(f.ResponseWriter).Flush()
	}
	return n, err
}

// pings measures a byte there and back on one HTTP/2 stream.
func (r *raw) pings() (median, most time.Duration, err error) {
	ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
	defer cancel()
	body, up := io.Pipe()
	defer up.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+echoPath[1:], body)
	if err != nil {
		return 0, 0, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, 0, fmt.Errorf("raw: %w", err)
	}
	defer resp.Body.Close()
	return pings(ctx, struct {
		io.Reader
		io.Writer
	}{resp.Body, up})
}

func (r *raw) close() {
	r.client.CloseIdleConnections()
	r.server.Close()
	if r.netpath != nil {
		r.netpath.Close()
	}
}

// exchange sends up bytes and takes down bytes in one request.
func (r *raw) exchange(up, down int64) (time.Duration, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(r.ctx, 2*time.Minute)
	defer cancel()
	var body io.Reader
	switch {
	case up > 0 && up <= pollBody:
		body = bytes.NewReader(pattern[:up])
	case up > 0:
		body = io.LimitReader(newContent(0), up)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+"?"+strconv.FormatInt(down, 10), body)
	if err != nil {
		return 0, err
	}
	req.ContentLength = up
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("raw: %w", err)
	}
	defer resp.Body.Close()
	n, err := io.CopyBuffer(onlyWriter{newContent(0)}, resp.Body, make([]byte, 256<<10))
	if err == nil && n != down {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, fmt.Errorf("raw: %w", err)
	}
	return time.Since(start), nil
}

// poll moves bodies of up and down bytes, one exchange after the other, for
// some time, and returns MB/s.
func (r *raw) poll(up, down int64, d time.Duration) (float64, error) {
	start := time.Now()
	var n int64
	for time.Since(start) < d {
		if _, err := r.exchange(up, down); err != nil {
			return 0, err
		}
		n += up + down
	}
	return mbps(n, time.Since(start)), nil
}

// rawFigures are MB/s on a path.
type rawFigures struct {
	Down, Up         float64
	MeekDown, MeekUp float64       // 0: not measured
	Wire             float64       // bytes on the path for each byte of a download; 0 on loopback
	Ping, Ping95     time.Duration // on one stream of an idle connection; 0: not measured
}

func (b *bench) measureRaw(cfg netpath.Config, bare, ping, meek bool) (f rawFigures, err error) {
	r, err := b.startRaw(cfg, bare)
	if err != nil {
		return f, err
	}
	defer r.close()
	n := b.bytesFor(cfg)
	// The first exchange connects and opens windows.
	if _, err = r.exchange(1<<20, 1<<20); err != nil {
		return f, err
	}
	if ping {
		if f.Ping, f.Ping95, err = r.pings(); err != nil {
			return f, err
		}
	}
	before := int64(0)
	if r.netpath != nil {
		_, before = r.netpath.Bytes()
	}
	d, err := r.exchange(0, n)
	if err != nil {
		return f, err
	}
	f.Down = mbps(n, d)
	if r.netpath != nil {
		_, after := r.netpath.Bytes()
		f.Wire = float64(after-before) / float64(n)
	}
	if d, err = r.exchange(n, 0); err != nil {
		return f, err
	}
	f.Up = mbps(n, d)
	if !meek {
		return f, nil
	}
	short := time.Duration(b.seconds/2*1000) * time.Millisecond
	if f.MeekDown, err = r.poll(0, pollBody, short); err != nil {
		return f, err
	}
	f.MeekUp, err = r.poll(pollBody, 0, short)
	return f, err
}

func mbps(n int64, d time.Duration) float64 { return float64(n) / 1e6 / d.Seconds() }
