package fingerprint

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"turbotunnel/common/front"
	"turbotunnel/test/cdn"
)

const streamedPath = "/streamed"

// streamPage posts two bodies that are written bit by bit, as a script can over
// HTTP/2, after one that is not.
const streamPage = `<!doctype html><title>x</title><link rel=icon href=data:><script>
const post = path => fetch(path, {method: 'POST', body: new Uint8Array(2000)});
const stream = path => fetch(path, {method: 'POST', duplex: 'half', body: new ReadableStream({
	async start(c) {
		for (let i = 0; i < 3; i++) {
			c.enqueue(new Uint8Array(2000))
			await new Promise(done => setTimeout(done, 50))
		}
		c.close()
	}
})});
(async () => {
	await post('/a')
	await stream('/streamed')
	await stream('/streamed')
	await post('/done')
})()
</script>`

// bitByBit is a body of three parts, each of which is read when the one before has
// left.
type bitByBit struct{ parts int }

func (b *bitByBit) Read(p []byte) (int, error) {
	if b.parts == 0 {
		return 0, io.EOF
	}
	b.parts--
	return copy(p, strings.Repeat("x", bodySize)), nil
}

func (b *bitByBit) Close() error { return nil }

// TestStreamedUpload: a request whose body is written bit by bit looks like that of a
// script that does so in Chromium: its head lacks Content-Length and is else that of
// any other, in the same order, each part is a frame, and an empty one ends it.
func TestStreamedUpload(t *testing.T) {
	theirs := streamed(t, ofChromiumWith(t, "h2", streamPage))
	rec, ca := newRecorder(t, "h2")
	roots, err := cdn.ReadCA(ca)
	if err != nil {
		t.Fatal(err)
	}
	f, err := front.New(front.Config{URL: &url.URL{Scheme: "https", Host: cdn.Front, Path: "/"}, Addr: rec.Addr(), RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	post := func(path string, body io.Reader, size int64) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+cdn.Front+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = size
		req.Header = computer(theirs[0].Fields)
		resp, err := f.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	post("/a", strings.NewReader(strings.Repeat("x", bodySize)), bodySize)
	if !f.Feeds() {
		t.Error("the front says that such a request looks like nobody's")
	}
	post(streamedPath, &bitByBit{3}, -1)
	post(streamedPath, &bitByBit{3}, -1)
	f.Close()
	if err := rec.Close(); err != nil {
		t.Error(err)
	}
	ours := streamed(t, rec.Connections())
	s := &sheet{t: t}
	if len(theirs) != len(ours) {
		// A busy Chromium writes parts together that were said apart.
		theirs, ours = theirs[:1], ours[:1]
	}
	for i, a := range theirs {
		b := ours[i]
		what := fmt.Sprintf("frame %d", i)
		s.compare(what+", kind, flags and length", []any{a.Kind, a.Flags, a.Length}, []any{b.Kind, b.Flags, b.Length})
		if a.Kind == http2.FrameHeaders {
			s.compare(what+", head", a.Fields, b.Fields)
			s.compare(what+", priority", *a.Priority, *b.Priority)
		}
	}
	t.Log("\n" + strings.Join(s.lines, "\n"))
}

// streamed returns the frames of the second request that was written bit by bit: the
// head of the first fills the table by which the second is compressed.
func streamed(t *testing.T, conns []*Connection) []Frame {
	t.Helper()
	path := hpack.HeaderField{Name: ":path", Value: streamedPath}
	for _, c := range conns {
		heads := slices.DeleteFunc(c.Requests(), func(f Frame) bool { return !slices.Contains(f.Fields, path) })
		if len(heads) != 2 {
			continue
		}
		frames := slices.DeleteFunc(slices.Clone(c.Frames), func(f Frame) bool {
			return f.Stream != heads[1].Stream || f.Kind != http2.FrameHeaders && f.Kind != http2.FrameData
		})
		if last := frames[len(frames)-1]; last.Kind != http2.FrameData || !last.Flags.Has(http2.FlagDataEndStream) {
			t.Fatalf("the last of %d frames is %v", len(frames), last)
		}
		return frames
	}
	t.Fatal("no connection has both requests")
	return nil
}
