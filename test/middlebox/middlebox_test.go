package middlebox

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start puts a middlebox between a client and an origin.
func start(t *testing.T, habits Habits, origin http.HandlerFunc) (*Box, *http.Client, string) {
	t.Helper()
	far := httptest.NewServer(origin)
	u, err := url.Parse(far.URL)
	if err != nil {
		t.Fatal(err)
	}
	box := New(u, habits)
	near := httptest.NewUnstartedServer(box)
	near.EnableHTTP2 = true
	near.StartTLS()
	t.Cleanup(func() {
		near.Close()
		box.Close()
		far.Close()
	})
	return box, near.Client(), near.URL
}

func post(c *http.Client, url string, body io.Reader) (int, string, error) {
	resp, err := c.Post(url, "", body)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err == nil {
		w.Write(b)
	}
}

// The zero value forwards both bodies as they come.
func TestForwards(t *testing.T) {
	box, client, url := start(t, Habits{}, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		b := make([]byte, 1)
		for {
			if _, err := io.ReadFull(r.Body, b); err != nil {
				return
			}
			w.Write(b)
			w.(http.Flusher).Flush()
		}
	})
	body, write := io.Pipe()
	req, err := http.NewRequest(http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	go write.Write([]byte("a"))
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, c := range "abc" {
		if c != 'a' {
			write.Write([]byte(string(c)))
		}
		b := make([]byte, 1)
		if _, err := io.ReadFull(resp.Body, b); err != nil || b[0] != byte(c) {
			t.Fatalf("got %q, %v instead of %q", b, err, c)
		}
	}
	write.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	if all, lost := box.Requests(); all != 1 || lost != 0 {
		t.Errorf("it counted %d requests, %d lost", all, lost)
	}
}

// A request reaches the origin when all of it has come.
func TestBufferRequests(t *testing.T) {
	complete := make(chan struct{})
	_, client, url := start(t, Habits{BufferRequests: true}, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-complete:
		default:
			t.Error("the origin saw a request before its end")
		}
		echo(w, r)
	})
	body, write := io.Pipe()
	go func() {
		for range 100 {
			write.Write(bytes.Repeat([]byte("x"), 1000))
		}
		close(complete)
		write.Close()
	}()
	if code, b, err := post(client, url, body); err != nil || code != 200 || len(b) != 100_000 {
		t.Errorf("%d, %d bytes, %v", code, len(b), err)
	}
}

// An answer reaches the client when all of it has come.
func TestBufferResponses(t *testing.T) {
	complete := make(chan struct{})
	_, client, url := start(t, Habits{BufferResponses: true}, func(w http.ResponseWriter, _ *http.Request) {
		for range 100 {
			w.Write(bytes.Repeat([]byte("x"), 1000))
			w.(http.Flusher).Flush()
		}
		close(complete)
	})
	resp, err := client.Post(url, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	select {
	case <-complete:
	default:
		t.Error("the client saw an answer before its end")
	}
	if b, err := io.ReadAll(resp.Body); err != nil || len(b) != 100_000 || resp.ContentLength != 100_000 {
		t.Errorf("%d bytes, length %d, %v", len(b), resp.ContentLength, err)
	}
}

// A lost request never reaches the origin; a lost answer was made there. The
// client sees an error either way, and both are counted.
func TestLose(t *testing.T) {
	for _, c := range []struct {
		name   string
		habits Habits
		served int
	}{
		{"requests", Habits{LoseRequests: 1}, 0},
		{"responses", Habits{LoseResponses: 1}, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			served := make(chan struct{}, 100)
			box, client, url := start(t, c.habits, func(w http.ResponseWriter, r *http.Request) {
				echo(w, r)
				served <- struct{}{}
			})
			for range 5 {
				if code, _, err := post(client, url, strings.NewReader("hello")); err == nil {
					t.Errorf("a lost body was answered by %d", code)
				}
			}
			if all, lost := box.Requests(); all != 5 || lost != 5 {
				t.Errorf("it counted %d requests, %d lost", all, lost)
			}
			if len(served) != c.served {
				t.Errorf("the origin served %d requests instead of %d", len(served), c.served)
			}
		})
	}
}

// A share of 0.3 loses some and not all.
func TestLoseShare(t *testing.T) {
	box, client, url := start(t, Habits{LoseRequests: 0.3}, echo)
	failed := int64(0)
	for range 200 {
		if _, _, err := post(client, url, strings.NewReader("hello")); err != nil {
			failed++
		}
	}
	// 200 draws lie outside by a chance of less than one in 10^9.
	if _, lost := box.Requests(); lost != failed || lost < 15 || lost > 130 {
		t.Errorf("%d of 200 were lost, the client saw %d", lost, failed)
	}
}

// An answer is cut when it is silent, or old, though the origin goes on.
func TestCuts(t *testing.T) {
	for _, c := range []struct {
		name   string
		habits Habits
		talks  bool
	}{
		{"silent", Habits{IdleCut: 20 * time.Millisecond}, false},
		{"old", Habits{MaxAge: 20 * time.Millisecond}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, client, url := start(t, c.habits, func(w http.ResponseWriter, r *http.Request) {
				for {
					if _, err := w.Write([]byte("x")); err != nil {
						return
					}
					w.(http.Flusher).Flush()
					if !c.talks {
						<-r.Context().Done()
						return
					}
				}
			})
			resp, err := client.Post(url, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if n, err := io.Copy(io.Discard, resp.Body); n == 0 || err == nil {
				t.Errorf("%d bytes came, and then %v", n, err)
			}
		})
	}
}

func TestMaxBody(t *testing.T) {
	_, client, url := start(t, Habits{MaxBody: 10}, echo)
	if code, _, err := post(client, url, strings.NewReader("0123456789")); err != nil || code != 200 {
		t.Errorf("10 bytes: %d, %v", code, err)
	}
	if code, _, err := post(client, url, strings.NewReader("0123456789+")); err != nil || code != 413 {
		t.Errorf("11 bytes: %d, %v", code, err)
	}
}

// A request waits for the one before it; the origin never sees two.
func TestOneAtATime(t *testing.T) {
	inside := make(chan struct{}, 1)
	_, client, url := start(t, Habits{OneAtATime: true}, func(w http.ResponseWriter, r *http.Request) {
		select {
		case inside <- struct{}{}:
		default:
			t.Error("two requests at a time")
			return
		}
		echo(w, r)
		<-inside
	})
	errs := make(chan error)
	const k = 20
	for range k {
		go func() {
			_, b, err := post(client, url, strings.NewReader("hello"))
			if err == nil && b != "hello" {
				err = errors.New(b)
			}
			errs <- err
		}()
	}
	for range k {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// An origin that is not there is a bad gateway.
func TestNoOrigin(t *testing.T) {
	near := httptest.NewServer(New(&url.URL{Scheme: "http", Host: "127.0.0.1:1"}, Habits{}))
	defer near.Close()
	if code, _, err := post(near.Client(), near.URL, strings.NewReader("x")); err != nil || code != http.StatusBadGateway {
		t.Errorf("%d, %v", code, err)
	}
}
