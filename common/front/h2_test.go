package front

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A tape is a connection that keeps each Write.
type tape struct {
	net.Conn
	writes [][]byte
	in     bytes.Buffer
}

func (t *tape) Write(p []byte) (int, error) {
	t.writes = append(t.writes, bytes.Clone(p))
	return len(p), nil
}

func (t *tape) Read(p []byte) (int, error) { return t.in.Read(p) }

// A maskTest drives an h2Mask as the HTTP/2 implementation does.
type maskTest struct {
	t       *testing.T
	mask    *h2Mask
	tape    *tape
	framer  *http2.Framer // writes to the mask
	server  *http2.Framer // writes what the mask reads
	block   bytes.Buffer
	encoder *hpack.Encoder // the implementation's
	decoder *hpack.Decoder // the server's
}

func newMaskTest(t *testing.T, b *browser) *maskTest {
	m := &maskTest{t: t, tape: new(tape)}
	m.mask = newH2Mask(m.tape, &b.h2, b.fieldOrder())
	m.framer = http2.NewFramer(m.mask, nil)
	m.server = http2.NewFramer(&m.tape.in, nil)
	m.encoder = hpack.NewEncoder(&m.block)
	m.encoder.SetMaxDynamicTableSizeLimit(innerTable)
	m.decoder = hpack.NewDecoder(defaultHeaderTable, nil)
	io.WriteString(m.mask, http2.ClientPreface)
	m.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush})
	m.framer.WriteWindowUpdate(0, connWindow)
	m.sent() // the preface
	return m
}

// sent returns the frames that have left since the last call, as text.
func (m *maskTest) sent() []string {
	m.t.Helper()
	all := bytes.TrimPrefix(bytes.Join(m.tape.writes, nil), []byte(http2.ClientPreface))
	m.tape.writes = nil
	var texts []string
	r := http2.NewFramer(nil, bytes.NewReader(all))
	for {
		f, err := r.ReadFrame()
		if err == io.EOF {
			return texts
		}
		if err != nil {
			m.t.Fatal(err)
		}
		text := fmt.Sprintf("%v %d", f.Header().Type, f.Header().StreamID)
		switch f := f.(type) {
		case *http2.WindowUpdateFrame:
			text += fmt.Sprintf(" +%d", f.Increment)
		case *http2.HeadersFrame:
			fields, err := m.decoder.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				m.t.Fatal(err)
			}
			text += fmt.Sprintf(" on %d", f.Priority.StreamDep)
			for _, field := range fields {
				text += " " + field.Name
			}
		}
		texts = append(texts, text)
	}
}

func (m *maskTest) expect(what string, want ...string) {
	m.t.Helper()
	if got := m.sent(); !slices.Equal(got, want) {
		m.t.Errorf("%s: sent %q, want %q", what, got, want)
	}
}

// request sends a head as the implementation does: in no order.
func (m *maskTest) request(stream uint32, fields ...string) {
	m.t.Helper()
	m.block.Reset()
	for _, name := range append([]string{":authority", ":method", ":path", ":scheme"}, fields...) {
		m.encoder.WriteField(hpack.HeaderField{Name: name, Value: name})
	}
	err := m.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: m.block.Bytes(), EndHeaders: true})
	if err != nil {
		m.t.Fatal(err)
	}
}

// receive lets the mask read what write makes the server send, one octet at a
// time.
func (m *maskTest) receive(write func(*http2.Framer) error) {
	m.t.Helper()
	if err := write(m.server); err != nil {
		m.t.Fatal(err)
	}
	var one [1]byte
	for m.tape.in.Len() > 0 {
		if _, err := m.mask.Read(one[:]); err != nil {
			m.t.Fatal(err)
		}
	}
}

func TestH2MaskPreface(t *testing.T) {
	m := &maskTest{t: t, tape: new(tape)}
	m.mask = newH2Mask(m.tape, &firefox.h2, firefox.fieldOrder())
	// However it is cut into writes.
	var all bytes.Buffer
	all.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&all, nil)
	f.WriteSettings(http2.Setting{ID: http2.SettingEnablePush}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow})
	f.WriteWindowUpdate(0, connWindow)
	f.WriteSettingsAck()
	f.WritePing(false, [8]byte{1})
	for _, octet := range all.Bytes() {
		if n, err := m.mask.Write([]byte{octet}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	m.expect("preface", "SETTINGS 0", "WINDOW_UPDATE 0 +12517377", "SETTINGS 0", "PING 0")
}

func TestH2MaskHeads(t *testing.T) {
	m := newMaskTest(t, &chrome)
	m.request(1, "accept", "x-other", "user-agent", "content-type", "content-length")
	m.expect("a head", "HEADERS 1 on 0 :method :authority :scheme :path content-length user-agent content-type x-other accept")
	m.request(3)
	m.request(5)
	m.expect("requests in a row", "HEADERS 3 on 1 :method :authority :scheme :path", "HEADERS 5 on 3 :method :authority :scheme :path")
	m.receive(func(f *http2.Framer) error { return f.WriteData(5, true, make([]byte, 100)) })
	m.receive(func(f *http2.Framer) error { return f.WriteData(1, false, make([]byte, 100)) })
	m.request(7)
	m.expect("after an answer", "HEADERS 7 on 3 :method :authority :scheme :path")
	m.receive(func(f *http2.Framer) error { return f.WriteRSTStream(7, http2.ErrCodeCancel) })
	m.framer.WriteRSTStream(3, http2.ErrCodeCancel)
	m.request(9)
	m.expect("after resets", "RST_STREAM 3", "HEADERS 9 on 1 :method :authority :scheme :path")
}

// What a server says about its header table is obeyed: one that remembers
// nothing still understands.
func TestH2MaskHeaderTable(t *testing.T) {
	for _, size := range []uint32{0, 100, 1 << 20} {
		m := newMaskTest(t, &chrome)
		m.receive(func(f *http2.Framer) error {
			return f.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: size})
		})
		m.decoder.SetAllowedMaxDynamicTableSize(size)
		for i := range 20 {
			m.request(uint32(2*i+1), "x-a", "x-"+strings.Repeat("b", i))
			if got := m.sent(); len(got) != 1 || !strings.Contains(got[0], "x-a") {
				t.Errorf("table of %d: %q", size, got)
			}
		}
	}
}

// A body's octets are not copied on their way, or once where a Write ends inside
// their frame.
func TestH2MaskCopiesBodiesOnceAtMost(t *testing.T) {
	m := newMaskTest(t, &chrome)
	m.request(1)
	m.sent()
	var frames bytes.Buffer
	f := http2.NewFramer(&frames, nil)
	f.WriteData(1, false, make([]byte, dataFrame))
	f.WriteData(1, true, nil)
	to := &lastWrite{Conn: m.tape}
	m.mask.out.to = to
	if _, err := m.mask.Write(frames.Bytes()); err != nil || &to.p[0] != &frames.Bytes()[0] || len(to.p) != frames.Len() {
		t.Errorf("whole frames were copied, or cut: %v", err)
	}
	to.p = nil
	half := frames.Len() / 2
	m.mask.Write(frames.Bytes()[:half])
	if w := m.mask.out; to.p != nil || len(w.out) != half || len(w.frame) != 0 {
		t.Errorf("half a frame: %d octets wait to leave, and %d in another place, want %d and 0", len(w.out), len(w.frame), half)
	}
	m.mask.Write(frames.Bytes()[half:])
	if !bytes.Equal(to.p, frames.Bytes()) {
		t.Error("the frame's halves do not leave together")
	}
}

// A lastWrite keeps what was written last, not a copy of it.
type lastWrite struct {
	net.Conn
	p []byte
}

func (w *lastWrite) Write(p []byte) (int, error) {
	w.p = p
	return len(p), nil
}

// A head of more than a frame holds goes in more than one.
func TestH2MaskLongHead(t *testing.T) {
	m := newMaskTest(t, &chrome)
	long := strings.Repeat("~{", maxPayload) // which no compression makes shorter
	m.block.Reset()
	m.encoder.WriteField(hpack.HeaderField{Name: ":method", Value: "GET"})
	m.encoder.WriteField(hpack.HeaderField{Name: "x-long", Value: long})
	block := m.block.Bytes()
	m.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:maxPayload], EndStream: true})
	if len(m.tape.writes) != 0 {
		t.Error("part of a head has left")
	}
	m.framer.WriteContinuation(1, true, block[maxPayload:])
	r := http2.NewFramer(nil, bytes.NewReader(bytes.Join(m.tape.writes, nil)))
	r.ReadMetaHeaders = m.decoder
	f, err := r.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	head := f.(*http2.MetaHeadersFrame)
	if head.PseudoValue("method") != "GET" || len(head.Fields) != 2 || head.Fields[1].Value != long || !head.StreamEnded() {
		t.Errorf("%d fields, end of stream %t", len(head.Fields), head.StreamEnded())
	}
}

// Windows are announced by halves, grow with the first announcement, and never
// beyond what the implementation allows.
func TestH2MaskWindows(t *testing.T) {
	m := newMaskTest(t, &chrome)
	initial := chrome.h2.initialWindow()
	m.request(1)
	m.sent()
	read := 0
	for read < initial/2 {
		m.expect("less than half a window")
		m.framer.WriteWindowUpdate(1, 1<<20)
		read += 1 << 20
	}
	m.expect("half a window", fmt.Sprintf("WINDOW_UPDATE 1 +%d", read+streamWindow-initial))
	m.framer.WriteWindowUpdate(1, uint32(initial/2))
	m.expect("the next half", fmt.Sprintf("WINDOW_UPDATE 1 +%d", initial/2))

	m.request(3)
	m.expect("a later stream", "HEADERS 3 on 1 :method :authority :scheme :path", fmt.Sprintf("WINDOW_UPDATE 3 +%d", streamWindow-initial))
	m.framer.WriteWindowUpdate(3, uint32(initial/2))
	m.expect("half of a large window", fmt.Sprintf("WINDOW_UPDATE 3 +%d", initial/2))
	m.receive(func(f *http2.Framer) error { return f.WriteData(3, true, nil) })
	m.framer.WriteWindowUpdate(3, uint32(initial))
	m.expect("after the end")

	half := uint32(chrome.h2.connWindow+defaultWindow) / 2
	m.framer.WriteWindowUpdate(0, half-1)
	m.expect("less than half of the connection's")
	m.framer.WriteWindowUpdate(0, 2)
	m.expect("half of the connection's", fmt.Sprintf("WINDOW_UPDATE 0 +%d", half+1+connWindow-chrome.h2.connWindow))
	m.framer.WriteWindowUpdate(0, half)
	m.expect("the next half", fmt.Sprintf("WINDOW_UPDATE 0 +%d", half))
}

// HPACK integers are those of RFC 7541 appendix C.1, with a prefix of 7 bits.
func TestHPACKString(t *testing.T) {
	for _, s := range []string{"", "/", "/index.html", strings.Repeat("/path", 100), strings.Repeat("\x01", 127), strings.Repeat("\x01", 5000)} {
		var got string
		d := hpack.NewDecoder(0, func(f hpack.HeaderField) { got = f.Value })
		d.SetMaxStringLength(0)
		if _, err := d.Write(appendHPACKString([]byte{pathIndex}, s)); err != nil || got != s {
			t.Errorf("%d octets came back as %d, %v", len(s), len(got), err)
		}
	}
}

// FuzzH2Mask: whatever a server sends, the reader gets it as it is.
func FuzzH2Mask(f *testing.F) {
	f.Add([]byte{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}, 3)
	f.Add([]byte{0, 0, 1, 0, 1, 0, 0, 0, 1, 7, 0, 0}, 1)
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		if step < 1 || step > 1<<16 {
			return
		}
		tp := new(tape)
		tp.in.Write(in)
		m := newH2Mask(tp, &chrome.h2, chrome.fieldOrder())
		var out []byte
		p := make([]byte, step)
		for {
			n, err := m.Read(p)
			out = append(out, p[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.Equal(in, out) {
			t.Errorf("%x came as %x", in, out)
		}
		if len(m.in.param) > maxPayload || m.in.streams.table > maxHeaderTable {
			t.Errorf("%d octets of SETTINGS kept, table of %d", len(m.in.param), m.in.streams.table)
		}
	})
}

func TestH1Mask(t *testing.T) {
	head := "POST /x HTTP/1.1\r\nHost: h\r\nUser-Agent: a\r\nContent-Length: %d\r\nPriority: u=1, i\r\nSec-Ch-Ua: b\r\nX-Other: c:d\r\nAccept: */*\r\n\r\n"
	want := "POST /x HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nContent-Length: %d\r\nUser-Agent: a\r\nsec-ch-ua: b\r\nx-other: c:d\r\nAccept: */*\r\n\r\n"
	for _, size := range []int{0, 100, 5000} {
		tp := new(tape)
		m := &h1Mask{Conn: tp, order: chrome.fieldOrder(), never: chrome.onlyH2}
		body := strings.Repeat("\r\n\r\n", size/4)
		for range 2 {
			tp.writes = nil
			m.begin()
			text := fmt.Sprintf(head, size)
			io.WriteString(m, text[:50])
			if len(tp.writes) != 0 {
				t.Error("part of a head has left")
			}
			io.WriteString(m, text[50:]+body)
			io.WriteString(m, "more")
			first := fmt.Sprintf(want, size)
			expected := []string{first + body, "more"}
			if size > mergedRequest {
				expected = []string{first, body, "more"}
			}
			var got []string
			for _, w := range tp.writes {
				got = append(got, string(w))
			}
			if !slices.Equal(got, expected) {
				t.Errorf("wrote %q, want %q", got, expected)
			}
		}
	}
}

// On a path of 200 ms one response fills 80 MB/s, although the preface opens a
// window of 6 MB: what the first one costs is over after half a second. In a
// bubble the time is the network's alone.
func TestLongFatPath(t *testing.T) {
	authorityOf()
	const (
		size   = 64 << 20
		rate   = 80_000_000 // bytes per second
		delay  = 100 * time.Millisecond
		filled = size * time.Second / rate
	)
	for _, name := range []string{"chrome", "firefox", "safari", "none"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				m.delay, m.rate = delay, rate
				s := serve(t, serverOptions{listener: m}, func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					buf := make([]byte, 64<<10)
					for range size / len(buf) {
						w.Write(buf)
					}
				})
				f := newFront(t, s, func(c *Config) {
					c.UTLS = name
					c.Dialer = m.dial
				})
				// The first one has a TLS handshake and its own round trip, and
				// so much for the windows to grow.
				for i, most := range []time.Duration{6*delay + 500*time.Millisecond, 3 * delay} {
					begun := time.Now()
					resp, err := f.RoundTrip(post(t.Context(), "x"))
					if err != nil {
						t.Fatal(err)
					}
					n, err := io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if n != size || err != nil {
						t.Fatal(n, err)
					}
					took := time.Since(begun)
					t.Logf("response %d: %.1f MB/s", i+1, size/took.Seconds()/1e6)
					if took > filled+most {
						t.Errorf("response %d took %v, on a link that needs %v", i+1, took, filled)
					}
				}
				f.Close()
				s.http.Close()
				time.Sleep(time.Minute) // what is on the way arrives
			})
		})
	}
}
