package front

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
)

// compressed returns text in a coding. window is a power of two, for those that
// have a choice.
func compressed(name, text string, window int) []byte {
	var b bytes.Buffer
	var w io.WriteCloser
	switch name {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "deflate":
		w = zlib.NewWriter(&b)
	case "br":
		w = brotli.NewWriterOptions(&b, brotli.WriterOptions{Quality: 5, LGWin: window})
	case "zstd":
		w, _ = zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<window))
	}
	io.WriteString(w, text[:len(text)/2])
	w.(interface{ Flush() error }).Flush() // so that no length is known at the beginning
	io.WriteString(w, text[len(text)/2:])
	w.Close()
	return b.Bytes()
}

// What a decoder will hold is known from the first bytes.
func TestWindows(t *testing.T) {
	for window := 10; window <= 24; window++ {
		if got := brotliWindow(compressed("br", "text", window)); got != 1<<window {
			t.Errorf("brotli with 2^%d: %d", window, got)
		}
		if got := zstdWindow(compressed("zstd", "text", window)); got != min(1<<window, maxZstdWindow) {
			t.Errorf("zstd with 2^%d: %d", window, got)
		}
	}
}

// decode returns a response with a coding's body, undone.
func decode(t testing.TB, ctx context.Context, r *room, name string, body io.Reader) io.ReadCloser {
	t.Helper()
	closer, ok := body.(io.ReadCloser)
	if !ok {
		closer = io.NopCloser(body)
	}
	resp := &http.Response{Header: http.Header{"Content-Encoding": {name}}, Body: closer}
	if err := undoCoding(ctx, resp, r); err != nil {
		t.Fatal(err)
	}
	return resp.Body
}

// Decoders hold no more than there is room for, whatever the other side sends;
// who finds none waits until another answer has ended or is given up.
func TestDecodersAreBounded(t *testing.T) {
	for _, name := range []string{"br", "zstd"} {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(decodersHold)
			body := compressed(name, "some text", 24)
			if name == "zstd" {
				body = compressed(name, "some text", 23)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var stalled []io.ReadCloser
			for r.left >= maxZstdWindow+zstdTables && (name == "zstd" || r.left >= 1<<24+brotliTables) {
				pr, pw := io.Pipe()
				go pw.Write(body[:len(body)-1])
				d := decode(t, ctx, r, name, pr)
				if _, err := d.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				stalled = append(stalled, d)
			}
			if n := len(stalled); n < 3 || n > 6 {
				t.Errorf("room for %d", n)
			}
			waits := decode(t, ctx, r, name, bytes.NewReader(body))
			read := make(chan error, 1)
			go func() {
				b, err := io.ReadAll(waits)
				if err == nil && string(b) != "some text" {
					err = errors.New("read " + string(b))
				}
				read <- err
			}()
			synctest.Wait()
			select {
			case err := <-read:
				t.Fatalf("read without room: %v", err)
			default:
			}
			stalled[0].Close()
			if err := <-read; err != nil {
				t.Error(err)
			}
			given := decode(t, ctx, r, name, bytes.NewReader(body))
			if b, err := io.ReadAll(given); err != nil || string(b) != "some text" {
				t.Errorf("%q %v", b, err)
			}

			// Closed, or out of time, while it waits.
			r.take(ctx, r.left, nil)
			late, closed := decode(t, ctx, r, name, bytes.NewReader(body)), decode(t, ctx, r, name, bytes.NewReader(body))
			ended := make(chan error, 1)
			go func() {
				_, err := closed.Read(make([]byte, 1))
				ended <- err
			}()
			synctest.Wait()
			closed.Close()
			if err := <-ended; !errors.Is(err, http.ErrBodyReadAfterClose) {
				t.Errorf("closed: %v", err)
			}
			if _, err := late.Read(make([]byte, 1)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("late: %v", err)
			}
		})
	}
}

// A second frame cannot have a larger window than the one that was counted.
func TestZstdWindowStays(t *testing.T) {
	body := slices.Concat(compressed("zstd", "some text", 12), compressed("zstd", "more text", 20))
	b, err := io.ReadAll(decode(t, t.Context(), newRoom(decodersHold), "zstd", bytes.NewReader(body)))
	if !errors.Is(err, zstd.ErrWindowSizeExceeded) {
		t.Errorf("%q %v", b, err)
	}
}

// Whatever comes is undone or refused, and all of the room is given back.
func FuzzDecoder(f *testing.F) {
	names := []string{"gzip", "deflate", "br", "zstd"}
	for i, name := range names {
		f.Add(byte(i), compressed(name, "some text", 16))
		f.Add(byte(i), []byte{})
	}
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		const size = 1<<24 + brotliTables
		r := newRoom(size)
		d := decode(t, t.Context(), r, names[kind%4], bytes.NewReader(body))
		io.Copy(io.Discard, io.LimitReader(d, 1<<20))
		if r.left < 0 {
			t.Errorf("%d bytes too many", -r.left)
		}
		d.Close()
		if r.left != size {
			t.Errorf("%d bytes were not given back", size-r.left)
		}
	})
}
