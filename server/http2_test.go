package main

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// What the server says first is, byte for byte, what net/http says that nobody
// has configured.
func TestPrefaceIsGos(t *testing.T) {
	log, _ := newLog()
	dir := t.TempDir()
	certPEM, keyPEM := newPair(t, 1, time.Now().Add(time.Hour))
	replaceFile(t, filepath.Join(dir, "cert"), certPEM)
	replaceFile(t, filepath.Join(dir, "key"), keyPEM)
	cert, err := newCertificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), log)
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range []*tls.Config{nil, cert.tlsConfig()} {
		// Go's own server, as it comes.
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		plain := &http.Server{Handler: http.NotFoundHandler()}
		if config == nil {
			plain.Protocols = new(http.Protocols)
			plain.Protocols.SetHTTP1(true)
			plain.Protocols.SetUnencryptedHTTP2(true)
			go plain.Serve(ln)
		} else {
			plain.TLSConfig = config.Clone()
			go plain.ServeTLS(ln, "", "")
		}
		want := firstFrames(t, ln.Addr().String(), config != nil)
		plain.Close()
		got := firstFrames(t, startWeb(t, http.NotFoundHandler(), config, log), config != nil)
		if !bytes.Equal(got, want) || len(got) < 2*frameHead {
			t.Errorf("TLS %v: the server begins with\n%x, net/http with\n%x", config != nil, got, want)
		}
	}
}

// firstFrames returns what a server says to a client's preface before the
// client's SETTINGS, and then to these.
func firstFrames(t *testing.T, addr string, secure bool) []byte {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if secure {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	}
	io.WriteString(conn, http2.ClientPreface)
	var all bytes.Buffer
	framer := http2.NewFramer(conn, io.TeeReader(conn, &all))
	for updated := false; !updated; {
		f, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		_, updated = f.(*http2.WindowUpdateFrame)
	}
	framer.WriteSettings()
	framer.WritePing(false, [8]byte{1})
	for acknowledged := false; !acknowledged; {
		f, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		_, acknowledged = f.(*http2.PingFrame)
	}
	return all.Bytes()
}

// An h2Stranger is a client of HTTP/2 that may do what none does.
type h2Stranger struct {
	t      *testing.T
	conn   net.Conn
	framer *http2.Framer
	heads  bytes.Buffer
	hpack  *hpack.Encoder

	mu  sync.Mutex
	all []string // what the server sends, in words
}

// newH2Stranger connects to a server, in a bubble.
func newH2Stranger(t *testing.T, conn net.Conn) *h2Stranger {
	s := &h2Stranger{t: t, conn: conn}
	s.framer = http2.NewFramer(conn, conn)
	s.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.hpack = hpack.NewEncoder(&s.heads)
	go func() {
		for {
			f, err := s.framer.ReadFrame()
			if err != nil {
				return
			}
			word := inWords(f)
			s.mu.Lock()
			s.all = append(s.all, word)
			s.mu.Unlock()
		}
	}()
	io.WriteString(conn, http2.ClientPreface)
	s.framer.WriteSettings()
	return s
}

// get makes a request without a body.
func (s *h2Stranger) get(stream uint32, path string) { s.ask(http.MethodGet, stream, path, true) }

// post begins a request with these fields, each a name and a value.
func (s *h2Stranger) post(stream uint32, path string, fields ...[2]string) {
	s.ask(http.MethodPost, stream, path, false, fields...)
}

func (s *h2Stranger) ask(method string, stream uint32, path string, end bool, fields ...[2]string) {
	s.heads.Reset()
	for _, f := range append([][2]string{{":method", method}, {":scheme", "http"}, {":authority", "a"}, {":path", path}}, fields...) {
		s.hpack.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: s.heads.Bytes(), EndHeaders: true, EndStream: end})
}

// said returns what the server has said since the last call, in words.
func (s *h2Stranger) said() string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	all := strings.Join(s.all, " ")
	s.all = nil
	return all
}

func inWords(f http2.Frame) string {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		window, _ := f.Value(http2.SettingInitialWindowSize)
		return fmt.Sprintf("SETTINGS(%v,%d)", f.IsAck(), window)
	case *http2.WindowUpdateFrame:
		return fmt.Sprintf("WINDOW_UPDATE(%d,%d)", f.StreamID, f.Increment)
	case *http2.RSTStreamFrame:
		return fmt.Sprintf("RST_STREAM(%d,%v)", f.StreamID, f.ErrCode)
	}
	return f.Header().Type.String()
}

// startH2 serves h at a door, in a bubble.
func startH2(t *testing.T, h http.Handler) (c *crowd, dial func() *h2Stranger, stop func()) {
	c = newCrowd(t, 8)
	c.d.mostHeld = 64 << 20
	log, _ := newLog()
	web := newWebServer(h, nil, log)
	done := make(chan error)
	go func() { done <- serveWeb(web, c.d) }()
	var strangers []*h2Stranger
	dial = func() *h2Stranger {
		near, far := newBufferedPipe()
		c.ln.conns <- far
		s := newH2Stranger(t, near)
		strangers = append(strangers, s)
		return s
	}
	return c, dial, sync.OnceFunc(func() {
		for _, s := range strangers {
			s.conn.Close()
		}
		web.Close()
		<-done
	})
}

// A stranger has the windows that he was told of, whatever he sends; a client's
// grow while his request is read, and the server never hears that they were
// smaller.
func TestWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var got int64
		c, dial, stop := startH2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/client" {
				visitorOf(r).isKnown()
			}
			<-gate
			if r.URL.Path == "/client" {
				got, _ = io.Copy(io.Discard, r.Body)
			}
		}))
		defer stop()
		data := make([]byte, maxFrame)
		send := func(s *h2Stranger, stream uint32, n int) {
			for ; n > 0; n -= len(data) {
				s.framer.WriteData(stream, false, data[:min(n, len(data))])
			}
		}

		stranger := dial()
		stranger.post(1, "/")
		send(stranger, 1, toldWindow)
		if said, want := stranger.said(), fmt.Sprintf("SETTINGS(false,%d) SETTINGS(true,0) WINDOW_UPDATE(0,%d)", toldWindow, toldUpdate); !sameWords(said, want) {
			t.Errorf("to a stranger: %s, want %s", said, want)
		}
		if n := c.d.held.Load(); n != toldWindow+requestCost {
			t.Errorf("%d bytes are counted", n)
		}
		send(stranger, 1, 1)
		if said := stranger.said(); said != "RST_STREAM(1,FLOW_CONTROL_ERROR)" {
			t.Errorf("to who exceeds the window: %s", said)
		}

		client := dial()
		client.post(1, "/client")
		// The acknowledgement of the client's own settings comes when it may.
		first := fmt.Sprintf("SETTINGS(false,%d) ", toldWindow)
		want := first + fmt.Sprintf("WINDOW_UPDATE(0,%d) SETTINGS(false,%d) WINDOW_UPDATE(0,%d) SETTINGS(true,0)", toldUpdate, streamWindow, growUpdate)
		if said := client.said(); !strings.HasPrefix(said, first) || !sameWords(said, want) {
			t.Errorf("to a client: %s, want %s", said, want)
		}
		client.framer.WriteSettingsAck()
		client.framer.WriteSettingsAck()
		send(client, 1, streamWindow)
		if said := client.said(); said != "" {
			t.Errorf("to a client who fills his window: %s", said)
		}
		close(gate)
		said, told := client.said(), map[uint32]int{}
		for _, word := range strings.Fields(said) {
			var stream uint32
			var n int
			fmt.Sscanf(word, "WINDOW_UPDATE(%d,%d)", &stream, &n)
			told[stream] += n
		}
		least, most := min(told[0], told[1]), max(told[0], told[1])
		if least <= streamWindow-tellEvery || most > streamWindow {
			t.Errorf("of %d bytes that were read the client hears %v", streamWindow, told)
		}
		if n := len(strings.Fields(said)); n > 2*streamWindow/tellEvery {
			t.Errorf("it hears that in %d frames", n)
		}
		if n := c.d.held.Load(); n > 2*requestCost {
			t.Errorf("%d bytes are counted when all is read", n)
		}
		client.framer.WriteData(1, true, nil)
		if client.said(); got != streamWindow {
			t.Errorf("%d bytes came", got)
		}
		client.framer.WriteSettingsAck() // one too many
		if said := client.said(); !strings.Contains(said, "GOAWAY") {
			t.Errorf("to an acknowledgement of nothing: %s", said)
		}
		stop()
		if n := c.d.held.Load(); n != 0 {
			t.Errorf("%d bytes are held in the end", n)
		}
	})
}

// sameWords tells whether a and b are of the same words.
func sameWords(a, b string) bool {
	words := func(s string) map[string]int {
		m := make(map[string]int)
		for _, w := range strings.Fields(s) {
			m[w]++
		}
		return m
	}
	return fmt.Sprint(words(a)) == fmt.Sprint(words(b))
}

// Of a stranger's requests so many are answered at a time; the others wait until
// some have ended or a client's has come.
func TestStrangersRequestsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now := 0
		gate := make(chan struct{})
		var visitor *visitor
		_, dial, stop := startH2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			now++
			visitor = visitorOf(r)
			mu.Unlock()
			<-gate
		}))
		defer stop()
		count := func() int {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return now
		}
		s := dial()
		const many = strangersRequests + 50
		for i := range uint32(many) {
			s.post(2*i+1, "/")
		}
		if n := count(); n != strangersRequests {
			t.Errorf("%d requests at a time", n)
		}
		gate <- struct{}{}
		if n := count(); n != strangersRequests+1 {
			t.Errorf("%d requests after one has ended", n)
		}
		visitor.isKnown()
		if n := count(); n != many {
			t.Errorf("%d requests of a client", n)
		}
		close(gate)
	})
}

// Requests whose answers nobody takes are counted, though their handlers have
// returned, until the connection that has most of them goes.
func TestAnswersThatNobodyTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dial, stop := startH2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
		defer stop()
		s := dial()
		ask := func(from, n int) {
			for i := range n {
				s.post(uint32(2*(from+i)+1), "/")
			}
		}
		ask(0, 10)
		if said := s.said(); strings.Count(said, "DATA") != 10 || c.d.held.Load() != 0 {
			t.Errorf("%d bytes are held for requests that were answered: %s", c.d.held.Load(), said)
		}
		s.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		ask(10, 200)
		s.said()
		if held := c.d.held.Load(); held != 200*requestCost {
			t.Errorf("%d bytes are held, want those of 200 requests", held)
		}
		s.framer.WriteRSTStream(2*10+1, http2.ErrCodeCancel)
		s.said()
		if held := c.d.held.Load(); held != 199*requestCost {
			t.Errorf("%d bytes are held after a request was taken back", held)
		}
		s.get(2*210+1, "/")
		s.said()
		if held := c.d.held.Load(); held != 199*requestCost+bareCost {
			t.Errorf("%d bytes are held with a request that has no body", held)
		}
		c.d.mostHeld = 199 * requestCost
		ask(211, 1)
		if s.said(); c.d.open() != 0 || c.d.held.Load() != 0 {
			t.Errorf("%d connections hold %d bytes", c.d.open(), c.d.held.Load())
		}
	})
}

// A head that is large is counted while somebody needs it, and then it is gone,
// though nobody takes the answer.
func TestLargeHeadsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var first weak.Pointer[string]
		c, dial, stop := startH2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if values := r.Header["X-A"]; r.URL.Path == "/first" {
				first = weak.Make(&values[0])
			}
			<-gate
			io.WriteString(w, "hello")
		}))
		defer stop()
		s := dial()
		s.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		const requests, size = 40, 12_000
		for i := range uint32(requests) {
			s.post(2*i+1, map[bool]string{true: "/first", false: "/"}[i == 0], [2]string{"x-a", strings.Repeat("~", size)})
		}
		s.said()
		held, least := c.d.held.Load(), int64(requests*(requestCost+size-usualHead))
		if held < least || held > least+requests*usualHead {
			t.Errorf("%d bytes are held, want some %d", held, least)
		}
		var many [][2]string
		for i := range 300 {
			many = append(many, [2]string{fmt.Sprint("x", i), "a"})
		}
		s.post(2*requests+1, "/", many...)
		s.said()
		if more := c.d.held.Load() - held; more != requestCost {
			t.Errorf("a request that was refused for its fields holds %d bytes", more)
		}
		close(gate)
		s.said()
		if held := c.d.held.Load(); held != (requests+1)*requestCost {
			t.Errorf("%d bytes are held when all is said", held)
		}
		runtime.GC()
		if first.Value() != nil {
			t.Error("a head is kept that nobody needs")
		}
	})
}

// On a client's connection a request costs as much as on a stranger's, unless a
// session pays for it.
func TestClientsRequestsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		c, dial, stop := startH2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/session" {
				isClients(r)
				isClients(r) // once for each unit
			}
			<-gate
		}))
		defer stop()
		s := dial()
		s.post(1, "/session")
		synctest.Wait()
		if held := c.d.held.Load(); held != 0 {
			t.Errorf("%d bytes are held for what a session pays", held)
		}
		for i := range uint32(200) {
			s.post(2*i+3, "/")
		}
		synctest.Wait()
		if held := c.d.held.Load(); held != 200*requestCost {
			t.Errorf("%d bytes are held for 200 requests that are no session's", held)
		}
		close(gate)
		s.said()
		if held := c.d.held.Load(); held != 0 {
			t.Errorf("%d bytes are held when all are answered", held)
		}
	})
}

// Floods of frames that cost nothing to send end in bounds that package http2
// has, or cost nothing here either.
func TestFloods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dial, stop := startH2(t, http.NotFoundHandler())
		defer stop()
		for name, send := range map[string]func(*h2Stranger, uint32){
			"SETTINGS": func(s *h2Stranger, _ uint32) { s.framer.WriteSettings() },
			"PING":     func(s *h2Stranger, _ uint32) { s.framer.WritePing(false, [8]byte{}) },
			"RST_STREAM": func(s *h2Stranger, i uint32) {
				s.post(2*i+1, "/")
				s.framer.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
			},
		} {
			s := dial()
			for i := range uint32(4000) {
				send(s, i)
			}
			s.said()
			if held := c.d.held.Load(); held > 4<<20 {
				t.Errorf("%s: %d bytes are held", name, held)
			}
			s.conn.Close()
		}
	})
}

// Who ignores its window, and takes nothing of what is said to that, is cut off.
func TestWindowIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := newLog()
		ln := newPipeListener()
		web := newWebServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), nil, log)
		done := make(chan error)
		go func() { done <- serveWeb(web, ln) }()
		defer func() {
			web.Close()
			<-done
		}()
		conn := ln.dial()
		defer conn.Close()
		io.WriteString(conn, http2.ClientPreface)
		s := &h2Stranger{conn: conn, framer: http2.NewFramer(conn, conn)}
		s.hpack = hpack.NewEncoder(&s.heads)
		s.framer.WriteSettings()
		s.post(1, "/")
		for range toldWindow / maxFrame {
			s.framer.WriteData(1, false, make([]byte, maxFrame))
		}
		ignored := 0
		for ; ignored < 1000; ignored++ {
			if s.framer.WriteData(1, false, make([]byte, 1)) != nil {
				break
			}
		}
		if ignored < 100 || ignored == 1000 {
			t.Errorf("it ignored its window %d times", ignored)
		}
	})
}

// A bufferedPipe is an end of a connection in memory whose writes do not wait.
type bufferedPipe struct {
	in, out *pipeBuffer
}

type pipeBuffer struct {
	mu     sync.Mutex
	b      bytes.Buffer
	closed bool
	more   chan struct{}
}

func newBufferedPipe() (a, b net.Conn) {
	x, y := &pipeBuffer{more: make(chan struct{}, 1)}, &pipeBuffer{more: make(chan struct{}, 1)}
	return &bufferedPipe{x, y}, &bufferedPipe{y, x}
}

func (p *bufferedPipe) Read(b []byte) (int, error) {
	for {
		p.in.mu.Lock()
		n, _ := p.in.b.Read(b)
		closed := p.in.closed
		p.in.mu.Unlock()
		switch {
		case n > 0 || len(b) == 0:
			return n, nil
		case closed:
			return 0, io.EOF
		}
		<-p.in.more
	}
}

func (b *pipeBuffer) signal() {
	select {
	case b.more <- struct{}{}:
	default:
	}
}

func (p *bufferedPipe) Write(b []byte) (int, error) {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	if p.out.closed {
		return 0, net.ErrClosed
	}
	n, err := p.out.b.Write(b)
	p.out.signal()
	return n, err
}

func (p *bufferedPipe) Close() error {
	for _, b := range []*pipeBuffer{p.in, p.out} {
		b.mu.Lock()
		b.closed = true
		b.signal()
		b.mu.Unlock()
	}
	return nil
}

func (p *bufferedPipe) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (p *bufferedPipe) RemoteAddr() net.Addr               { return &net.TCPAddr{} }
func (p *bufferedPipe) SetDeadline(time.Time) error        { return nil }
func (p *bufferedPipe) SetReadDeadline(time.Time) error    { return nil }
func (p *bufferedPipe) SetWriteDeadline(t time.Time) error { return nil }

// FuzzHTTP2Conn: what a client sends comes through unaltered, in whatever
// pieces, as long as it keeps to the window and acknowledges nothing of ours.
func FuzzHTTP2Conn(f *testing.F) {
	f.Add([]byte("\x00\x00\x02\x00\x00\x00\x00\x00\x01ab"), uint64(1))
	f.Add([]byte("\x00\x00\x00\x04\x01\x00\x00\x00\x00\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x10\x00"), uint64(2))
	f.Add([]byte("\x10\x00\x01\x00\x00\x00\x00\x00\x01ab"), uint64(3))
	f.Fuzz(func(t *testing.T, p []byte, seed uint64) {
		random := rand.New(rand.NewPCG(seed, seed))
		near, far := newBufferedPipe()
		c := newHTTP2Conn(far, nil, false)
		near.Write(p)
		near.Close()
		var got []byte
		for {
			b := make([]byte, 1+random.IntN(20))
			n, err := c.Read(b)
			got = append(got, b[:n]...)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				break
			}
		}
		want, exceeds, left := 0, false, int64(toldWindow)
		for rest := p; len(rest) >= frameHead; {
			head := frameHeader(rest)
			if head.is(typeData) {
				if left -= int64(head.size()); left < 0 {
					exceeds = true
					break
				}
			}
			size := min(frameHead+head.size(), len(rest))
			want += size
			rest = rest[size:]
		}
		if !exceeds && !bytes.Equal(got, p[:want]) || !bytes.HasPrefix(got, p[:want]) {
			t.Errorf("%x became %x", p, got)
		}

		// And what is written, whatever is said between, but for what a client hears
		// later of its windows.
		near, far = newBufferedPipe()
		c = newHTTP2Conn(far, nil, false)
		told := appendFrame(nil, typeSettings, 0, toldSettings()...)
		first := appendFrame(appendFrame(nil, typeSettings, 0), typeUpdate, 0, number(toldUpdate)...)
		whole := slices.Clone(first)
		for range 3 {
			whole = appendFrame(whole, typeUpdate, uint32(random.IntN(2)), number(uint32(random.IntN(9)))...)
			whole = appendFrame(whole, typeReset, 3, p[:min(len(p), 100)]...)
		}
		for rest := whole; len(rest) > 0; {
			if random.IntN(4) == 0 {
				c.grow()
			}
			n := min(1+random.IntN(30), len(rest))
			if m, err := c.Write(rest[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[n:]
		}
		c.grow()
		far.Close()
		written, _ := io.ReadAll(near)
		grow := appendFrame(nil, typeSettings, 0, append([]byte{0, 4}, number(streamWindow)...)...)
		grow = appendFrame(grow, typeUpdate, 0, number(growUpdate)...)
		before, after, ok := bytes.Cut(written, grow)
		want1, opens := withoutUpdates(append(told, whole[frameHead:]...))
		got1, opened := withoutUpdates(slices.Concat(before, after))
		for stream, n := range c.out.credit.streams {
			opened[stream] += n
		}
		if opened[0] += c.out.credit.conn; !ok || !bytes.Equal(got1, want1) || !maps.Equal(opened, opens) {
			t.Errorf("%x was written as %x", whole, written)
		}
		at := new(position)
		if at.walk(before, func(uint32) {}); !at.isBetween() {
			t.Error("a frame of ours stands within another")
		}
	})
}

// withoutUpdates returns whole frames without WINDOW_UPDATEs, and by how much those
// open each stream's window.
func withoutUpdates(p []byte) (rest []byte, opened map[uint32]int) {
	opened = map[uint32]int{0: 0, 1: 0}
	for len(p) > 0 {
		head := frameHeader(p)
		frame := p[:frameHead+head.size()]
		if p = p[len(frame):]; head.is(typeUpdate) {
			opened[head.stream()] += int(binary.BigEndian.Uint32(frame[frameHead:]))
		} else {
			rest = append(rest, frame...)
		}
	}
	return rest, opened
}
