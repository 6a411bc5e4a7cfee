package front

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// FuzzAnswer: whatever comes from a front in place of an answer, an exchange ends
// when the connection does, with an answer or an error.
func FuzzAnswer(f *testing.F) {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	io.WriteString(z, "hello") //nolint:errcheck // into memory
	z.Close()
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), false)
	f.Add([]byte("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 503 Busy\r\nRetry-After: 9\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"), false)
	f.Add(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", zipped.Len(), &zipped), false)
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n\x0b\x02\x80hello\x03"), false)
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Encoding: zstd\r\n\r\n\x28\xb5\x2f\xfd\x04\x00\x29\x00\x00hello"), false)
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00"+"\x00\x00\x01\x01\x04\x00\x00\x00\x01\x88"+"\x00\x00\x05\x00\x01\x00\x00\x00\x01hello"), true)
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00"+"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08"), true)
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00"+"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), true)
	maker, err := wireMakerFor(&chrome)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, answer []byte, h2 bool) {
		client, server := net.Pipe()
		var running sync.WaitGroup
		defer running.Wait()
		running.Go(func() {
			defer server.Close()
			if _, err := server.Read(make([]byte, 1<<10)); err != nil { // it answers what was asked
				return
			}
			running.Go(func() { io.Copy(io.Discard, server) }) //nolint:errcheck // until it is closed
			server.Write(answer)                               //nolint:errcheck // as far as it is read
		})
		w, err := maker.make(t.Context(), client, h2)
		if err != nil {
			client.Close()
			return
		}
		defer client.Close()
		defer w.close()
		resp, err := w.roundTrip(post(t.Context(), "a body"))
		if err != nil {
			return
		}
		defer resp.Body.Close()
		if d := retryAfter(resp.Header); d < 0 {
			t.Errorf("%q asks for %v", resp.Header, d)
		}
		if undoCoding(t.Context(), resp, newRoom(decodersHold)) == nil {
			io.CopyN(io.Discard, resp.Body, 1<<20) //nolint:errcheck // any end will do
		}
	})
}

// FuzzRetryAfter: no answer asks for less than nothing, and a number means seconds.
func FuzzRetryAfter(f *testing.F) {
	date := time.Unix(1e9, 0).UTC().Format(http.TimeFormat)
	for _, s := range []string{"", "0", "120", "-1", "99999999999999999999", " 5 ", date, "Fri, 31 Dec 9999 23:59:59 GMT"} {
		f.Add(s, date)
		f.Add(s, "")
	}
	f.Fuzz(func(t *testing.T, value, date string) {
		d := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}})
		if d < 0 || d > maxAside && !strings.Contains(value, "GMT") && !strings.ContainsAny(value, "-,:") {
			t.Errorf("%q means %v", value, d)
		}
	})
}
