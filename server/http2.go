package main

//lint:file-ignore SA1019 net/http's own HTTP/2 takes no connection but a *tls.Conn; package http2's server, which takes any, is deprecated in its favour

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
)

// What a server says first of all over HTTP/2 tells which program it is, and so
// does how large its windows are. This one says, byte for byte, what a server of
// Go's says that nobody has configured, as most are. But that one's windows are
// small for a path of 500 Mbit/s and 200 ms, and its heads large for strangers.
// So an http2Conn stands between the HTTP/2 of package http2 and the connection:
// below it are Go's values, above it ours. It keeps strangers to the windows
// that they were told of, and when a client's request has come it opens larger
// ones. It counts, too, what HTTP/2 holds for a connection.
const (
	// Windows in bytes once a client's request has come, for uploads, of which one
	// streamed may carry all: a path of 500 Mbit/s and 200 ms holds 12.5 MB, and a
	// queue, and a session sends 24 MB at once at most: what has no room here waits in
	// the client, in front of what is said next. With net/http's 1 MB an
	// upload took 0.09 of such a path, with these 0.92 (test/pace). The server
	// stores as much only while the tunnel does not read.
	streamWindow = 24 << 20
	connWindow   = 32 << 20

	// What net/http tells everybody (h2_bundle.go: http2setConfigDefaults).
	toldWindow  = 1 << 20            // of a stream, and of the connection
	toldHeader  = 1<<20 + 10*32      // MAX_HEADER_LIST_SIZE, of http.DefaultMaxHeaderBytes
	toldUpdate  = toldWindow - 65535 // the connection's first WINDOW_UPDATE
	growUpdate  = connWindow - toldWindow
	frameHead   = 9 // bytes
	prefaceSize = len(http2.ClientPreface)
	settingSize = 6
	maxFrame    = 16 << 10 // of which an HTTP/2 connection has a buffer anyway

	// maxQueued is how many bytes of frames of our own may wait for a client that
	// takes nothing: a few hundred times that it has ignored its window.
	maxQueued = 4 << 10

	// strangersRequests is how many requests of a stranger's connection are
	// answered at a time. Others wait: net/http's 250, which is what is told, are
	// for a client's.
	strangersRequests = 100

	// requestCost is what a request takes whose answer is not taken, in bytes: two
	// goroutines, its head, a buffer for its answer, and the beginning of its body,
	// which the carrier keeps; bareCost what one without a body takes (measured: 10 000
	// took 178 MB).
	requestCost = 25 << 10
	bareCost    = 17 << 10
)

// Types and flags of frames (RFC 9113, section 6).
const (
	typeData     = byte(http2.FrameData)
	typeHeaders  = byte(http2.FrameHeaders)
	typeReset    = byte(http2.FrameRSTStream)
	typeSettings = byte(http2.FrameSettings)
	typeUpdate   = byte(http2.FrameWindowUpdate)
	flagAck      = byte(http2.FlagSettingsAck)
	flagEnd      = byte(http2.FlagDataEndStream) // of HEADERS, too
)

// A frameHeader is the head of a frame: length (3 bytes), type, flags, stream (4).
type frameHeader [frameHead]byte

func (h frameHeader) size() int      { return int(h[0])<<16 | int(h[1])<<8 | int(h[2]) }
func (h frameHeader) is(t byte) bool { return h[3] == t }
func (h frameHeader) isAck() bool    { return h[3] == typeSettings && h[4]&flagAck != 0 }
func (h frameHeader) ends() bool {
	return h.is(typeReset) || (h.is(typeData) || h.is(typeHeaders)) && h[4]&flagEnd != 0
}
func (h frameHeader) stream() uint32 { return binary.BigEndian.Uint32(h[5:]) & (1<<31 - 1) }

// appendFrame appends a frame without flags.
func appendFrame(p []byte, typ byte, stream uint32, payload ...byte) []byte {
	p = append(p, 0, byte(len(payload)>>8), byte(len(payload)), typ, 0)
	p = binary.BigEndian.AppendUint32(p, stream)
	return append(p, payload...)
}

// number is a 32-bit number as frames have it.
func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// An http2Conn is a connection on which HTTP/2 is spoken. One goroutine may read
// beside those that write.
type http2Conn struct {
	net.Conn
	visitor *visitor      // nil: nothing is counted
	places  chan struct{} // has a token for each of a stranger's requests that is being answered
	grown   chan struct{} // closed by grow
	once    sync.Once     // grow

	window  atomic.Int64 // of the connection, in bytes, when nothing is unread
	allowed atomic.Int64 // what of it is left
	unasked atomic.Int64 // acknowledgements of our own SETTINGS that are to come

	requestsMu sync.Mutex
	requests   map[uint32]int64 // what is counted for each, by stream, until it is answered; guarded by requestsMu

	in  incomingFrames // the reader's
	out outgoingFrames
}

// incomingFrames is where the reader is.
type incomingFrames struct {
	head    frameHeader
	have    int    // bytes of head
	ready   []byte // what to return next
	payload int    // bytes that follow: of the frame, or of the client's preface
	skip    int    // bytes that follow and are not returned
	largest int    // bytes of the largest frame
	last    uint32 // the newest stream
}

// outgoingFrames is where the writers are.
type outgoingFrames struct {
	mu      sync.Mutex
	at      position // guarded by mu, like what follows
	begun   bool     // the first SETTINGS and WINDOW_UPDATE have been written
	settled bool     // the first SETTINGS have
	first   []byte   // what waits until begun
	credit  credit   // that a client has not been told of

	queueMu sync.Mutex
	queue   []byte // frames of our own; guarded by queueMu
}

// newHTTP2Conn returns c for package http2. preface tells whether the client's
// preface is still to come.
func newHTTP2Conn(c net.Conn, v *visitor, preface bool) *http2Conn {
	h := &http2Conn{
		Conn:    c,
		visitor: v,
		places:  make(chan struct{}, strangersRequests),
		grown:   make(chan struct{}),

		requests: make(map[uint32]int64),
	}
	h.in.largest = maxFrame
	h.window.Store(toldWindow)
	h.allowed.Store(toldWindow)
	if preface {
		h.in.payload = prefaceSize
	}
	if v != nil {
		v.http2.Store(h)
		v.begins(false)
		if v.known.Load() {
			h.grow()
		}
	}
	return h
}

// grow opens the large windows.
func (c *http2Conn) grow() {
	c.once.Do(func() {
		close(c.grown)
		c.unasked.Add(1)
		c.window.Add(growUpdate)
		c.allowed.Add(growUpdate)
		id := binary.BigEndian.AppendUint16(nil, uint16(http2.SettingInitialWindowSize))
		p := appendFrame(nil, typeSettings, 0, append(id, number(streamWindow)...)...)
		c.say(appendFrame(p, typeUpdate, 0, number(growUpdate)...))
	})
}

// isClients tells whether a client's request has come.
func (c *http2Conn) isClients() bool {
	select {
	case <-c.grown:
		return true
	default:
		return false
	}
}

// enter waits for a place for a request. leave is called at its end; it is nil
// when the request has gone before.
func (c *http2Conn) enter(ctx context.Context) (leave func()) {
	select {
	case c.places <- struct{}{}:
		return func() { <-c.places }
	case <-c.grown:
		return func() {}
	case <-ctx.Done():
		return nil
	}
}

// A claim is a request on an http2Conn. It counts for the connection, also for a
// client's, who may send any that are no session's; but while a session answers
// it, the session pays.
type claim struct {
	on    *http2Conn
	paid  atomic.Bool
	leave func() // the guests; nil: it is none of them
}

// claimKey is where a request's context has its claim.
type claimKey struct{}

// claimOf returns the claim of a request, or nil where nothing is counted.
func claimOf(r *http.Request) *claim {
	c, _ := r.Context().Value(claimKey{}).(*claim)
	return c
}

// pay says that a session has begun to pay for the request.
func (c *claim) pay() {
	if c.paid.Swap(true) {
		return
	}
	c.on.hold(-requestCost)
	if c.leave != nil {
		c.leave()
	}
}

// end says that the handler returns: from now on the session does not pay.
func (c *claim) end() {
	switch {
	case c.paid.Load():
		c.on.hold(requestCost)
	case c.leave != nil:
		c.leave()
	}
}

// asked counts a request at what it costs.
func (c *http2Conn) asked(stream uint32, cost int64) {
	if c.visitor == nil {
		return
	}
	c.requestsMu.Lock()
	c.requests[stream] = cost
	c.requestsMu.Unlock()
	c.hold(cost)
}

// answered counts a request no more. A handler that has returned is no answer:
// the client may take none of what it has written.
func (c *http2Conn) answered(stream uint32) {
	c.requestsMu.Lock()
	cost := c.requests[stream]
	delete(c.requests, stream)
	c.requestsMu.Unlock()
	if cost > 0 {
		c.hold(-cost)
	}
}

func (c *http2Conn) hold(n int64) {
	if c.visitor != nil {
		c.visitor.hold(n)
	}
}

// Read returns what the client sends, but the acknowledgement of SETTINGS that
// the reader does not know of, and what exceeds the window.
func (c *http2Conn) Read(p []byte) (int, error) {
	in := &c.in
	for {
		switch {
		case len(p) == 0:
			return 0, nil
		case len(in.ready) > 0:
			n := copy(p, in.ready)
			in.ready = in.ready[n:]
			return n, nil
		case in.skip > 0:
			n, err := c.Conn.Read(make([]byte, min(in.skip, maxFrame)))
			in.skip -= n
			if err != nil {
				return 0, err
			}
		case in.payload > 0:
			n, err := c.Conn.Read(p[:min(in.payload, len(p))])
			in.payload -= n
			return n, err
		default:
			n, err := c.Conn.Read(in.head[in.have:])
			if in.have += n; in.have == frameHead {
				in.have = 0
				c.begin()
			} else if err != nil {
				return 0, err
			}
		}
	}
}

// begin begins with a frame of the client's, whose head has come.
func (c *http2Conn) begin() {
	in, size := &c.in, c.in.head.size()
	if in.head.isAck() && size == 0 && c.unasked.Load() > 0 {
		c.unasked.Add(-1)
		return
	}
	if in.head.is(typeData) {
		if c.allowed.Add(-int64(size)) < 0 {
			// To both sides what RFC 9113 (6.9.1) and net/http say to that.
			c.allowed.Add(int64(size))
			in.skip = size
			in.ready = appendFrame(nil, typeReset, in.head.stream(), number(uint32(http2.ErrCodeFlowControl))...)
			c.say(in.ready)
			return
		}
		c.hold(int64(size))
	}
	switch stream := in.head.stream(); {
	case in.head.is(typeHeaders) && stream > in.last:
		in.last = stream
		if in.head.ends() {
			c.asked(stream, bareCost)
		} else {
			c.asked(stream, requestCost)
		}
	case in.head.is(typeReset):
		c.answered(stream)
	}
	if size > in.largest {
		c.hold(int64(size - in.largest))
		in.largest = size
	}
	in.ready, in.payload = in.head[:], size
}

// Write writes what the server sends, with other values in the first frames,
// and frames of our own between them.
func (c *http2Conn) Write(p []byte) (int, error) {
	c.out.mu.Lock()
	n, err := c.write(p)
	c.out.mu.Unlock()
	if e := c.flush(); err == nil {
		err = e
	}
	return n, err
}

// write is Write. mu is held.
func (c *http2Conn) write(p []byte) (int, error) {
	o := &c.out
	if !o.begun {
		return len(p), c.writeFirst(p)
	}
	written := 0
	if rest := o.at.rest(p); rest > 0 && rest < len(p) && (c.isClients() || c.hasSomethingToSay()) {
		n, err := c.pass(p[:rest])
		if written = n; err != nil {
			return written, err
		}
	}
	if err := c.drain(); err != nil {
		return written, err
	}
	if n, err := c.withhold(p[written:]); n > 0 || err != nil {
		if written += n; err != nil || written == len(p) {
			return written, err
		}
	}
	n, err := c.pass(p[written:])
	return written + n, err
}

// pass writes a part of the server's frames. What it opens of the window is
// counted before the client can know of it.
func (c *http2Conn) pass(p []byte) (int, error) {
	at := c.out.at
	c.opened(at.walk(p, c.ended))
	n, err := c.Conn.Write(p)
	if n < len(p) {
		c.out.at.walk(p[:n], c.ended)
	} else {
		c.out.at = at
	}
	return n, err
}

// ended takes note that the server has ended a stream. out.mu is held.
func (c *http2Conn) ended(stream uint32) {
	c.out.credit.forget(stream)
	c.answered(stream)
}

// opened takes into account that n bytes were read.
func (c *http2Conn) opened(n int64) {
	if n > 0 {
		c.allowed.Add(n)
		c.hold(-n)
	}
}

// writeFirst writes p, with Go's own values in the first frames of SETTINGS and
// WINDOW_UPDATE.
func (c *http2Conn) writeFirst(p []byte) error {
	o := &c.out
	o.first = append(o.first, p...)
	var whole []byte
	for !o.begun && len(o.first) >= frameHead {
		head := frameHeader(o.first)
		size := frameHead + head.size()
		if len(o.first) < size {
			break
		}
		frame := o.first[:size]
		o.first = o.first[size:]
		switch {
		case head.is(typeSettings) && !head.isAck() && !o.settled:
			o.settled = true
			frame = appendFrame(nil, typeSettings, 0, toldSettings()...)
		case head.is(typeUpdate) && head.stream() == 0:
			o.begun = true
			binary.BigEndian.PutUint32(frame[frameHead:], toldUpdate)
		}
		if head.ends() {
			c.answered(head.stream())
		}
		whole = append(whole, frame...)
	}
	if o.begun {
		whole = append(whole, o.first...)
		c.opened(o.at.walk(o.first, c.answered))
		o.first = nil
	}
	if len(whole) == 0 {
		return nil
	}
	_, err := c.Conn.Write(whole)
	return err
}

// toldSettings is the payload of net/http's first SETTINGS.
func toldSettings() (p []byte) {
	for _, s := range []http2.Setting{
		{ID: http2.SettingMaxFrameSize, Val: 1 << 20},
		{ID: http2.SettingMaxConcurrentStreams, Val: 250},
		{ID: http2.SettingMaxHeaderListSize, Val: toldHeader},
		{ID: http2.SettingHeaderTableSize, Val: 4096},
		{ID: http2.SettingInitialWindowSize, Val: toldWindow},
	} {
		p = binary.BigEndian.AppendUint16(p, uint16(s.ID))
		p = binary.BigEndian.AppendUint32(p, s.Val)
	}
	return p
}

// say writes frames of our own, at once or after the frame that is being
// written, for which it does not wait. Who has too many to take is cut off.
func (c *http2Conn) say(frames []byte) {
	c.out.queueMu.Lock()
	full := len(c.out.queue)+len(frames) > maxQueued
	if !full {
		c.out.queue = append(c.out.queue, frames...)
	}
	c.out.queueMu.Unlock()
	if full {
		c.Conn.Close()
		return
	}
	c.flush() //nolint:errcheck // the reader and the next Write hear of it
}

func (c *http2Conn) hasSomethingToSay() bool {
	c.out.queueMu.Lock()
	defer c.out.queueMu.Unlock()
	return len(c.out.queue) > 0
}

// flush writes what is to be said, unless somebody writes, who does it then.
func (c *http2Conn) flush() error {
	for c.hasSomethingToSay() && c.out.mu.TryLock() {
		now := c.out.begun && c.out.at.isBetween()
		err := c.drain()
		c.out.mu.Unlock()
		if err != nil || !now {
			return err
		}
	}
	return nil
}

// drain writes what is to be said if it can be said now. mu is held.
func (c *http2Conn) drain() error {
	if !c.out.begun || !c.out.at.isBetween() {
		return nil
	}
	c.out.queueMu.Lock()
	queue := c.out.queue
	c.out.queue = nil
	c.out.queueMu.Unlock()
	if len(queue) == 0 {
		return nil
	}
	_, err := c.Conn.Write(queue)
	return err
}

// A position is a place in a row of frames.
type position struct {
	head    frameHeader
	have    int // bytes of head
	payload int // bytes that follow
	update  int // bytes that follow of a WINDOW_UPDATE for the connection
	value   uint32
}

// isBetween tells whether a frame has ended and none has begun.
func (a *position) isBetween() bool { return a.have == 0 && a.payload == 0 }

// rest is how many of the bytes with which p begins are of the frame that has begun.
func (a *position) rest(p []byte) int {
	if a.have == 0 {
		return min(a.payload, len(p))
	}
	head := a.head
	n := a.have + copy(head[a.have:], p)
	if n < frameHead {
		return len(p)
	}
	return min(frameHead-a.have+head.size(), len(p))
}

// walk goes on by p and returns how much of the connection's window the frames
// open that end in it. ended is called for each stream that they end.
func (a *position) walk(p []byte, ended func(stream uint32)) (opened int64) {
	for len(p) > 0 {
		if a.payload == 0 {
			n := copy(a.head[a.have:], p)
			p = p[n:]
			if a.have += n; a.have < frameHead {
				return opened
			}
			a.have, a.payload, a.update = 0, a.head.size(), 0
			if a.head.ends() {
				ended(a.head.stream())
			}
			if a.head.is(typeUpdate) && a.head.stream() == 0 && a.payload == 4 {
				a.update, a.value = a.payload, 0
			}
			continue
		}
		n := min(a.payload, len(p))
		if a.update > 0 {
			for _, b := range p[:n] {
				a.value = a.value<<8 | uint32(b)
			}
			if a.update -= n; a.update == 0 {
				opened += int64(a.value)
			}
		}
		a.payload -= n
		p = p[n:]
	}
	return opened
}

// A secureHTTP2Conn is an http2Conn over TLS.
type secureHTTP2Conn struct {
	*http2Conn
	tls *tls.Conn
}

// ConnectionState is what package http2 looks at the ciphers by.
func (c secureHTTP2Conn) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }

// unencryptedHTTP2 is the key by which net/http hands on connections whose
// client has said the preface of HTTP/2 without TLS.
const unencryptedHTTP2 = "unencrypted_http2"

// serveHTTP2 has s serve HTTP/2 over connections of ours. net/http gives its own
// HTTP/2 no other connection than a *tls.Conn; package http2, of the same source,
// takes any.
func serveHTTP2(s *http.Server) error {
	h2 := new(http2.Server)
	if err := http2.ConfigureServer(s, h2); err != nil {
		return err
	}
	serve := func(c net.Conn, h http.Handler, preface bool) {
		ctx := context.Background()
		// net/http gives the connection's context so.
		if base, ok := h.(interface{ BaseContext() context.Context }); ok {
			ctx = base.BaseContext()
		}
		v, _ := ctx.Value(visitorKey{}).(*visitor)
		conn := newHTTP2Conn(c, v, preface)
		order := *h2 // what it has of its own it shares with this copy
		order.NewWriteScheduler = func() http2.WriteScheduler { return newFrameOrder(conn.hold) }
		opts := &http2.ServeConnOpts{Context: ctx, Handler: h, BaseConfig: s, SawClientPreface: !preface}
		if t, ok := c.(*tls.Conn); ok {
			order.ServeConn(secureHTTP2Conn{conn, t}, opts)
			return
		}
		order.ServeConn(conn, opts)
	}
	s.TLSNextProto[http2.NextProtoTLS] = func(_ *http.Server, c *tls.Conn, h http.Handler) { serve(c, h, true) }
	s.TLSNextProto[unencryptedHTTP2] = func(_ *http.Server, c *tls.Conn, h http.Handler) {
		below, ok := c.NetConn().(interface{ UnencryptedNetConn() net.Conn })
		if !ok {
			s.ErrorLog.Print(errors.New("a connection without TLS is of no known kind"))
			return
		}
		serve(below.UnencryptedNetConn(), h, false)
	}
	return nil
}
