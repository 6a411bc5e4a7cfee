package middlebox

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"
)

// Each fault does what it says, as the client and the origin see it.
func TestFaults(t *testing.T) {
	const text = "0123456789"
	dice := NewDice(1)
	for _, c := range []struct {
		name   string
		fault  Fault
		status int      // 0: the exchange fails
		body   string   // of the answer
		origin []string // the bodies that the origin sees
		broken bool     // one of which fails
	}{
		{"none", nil, 200, text, []string{text}, false},
		{"Lose", Lose, 0, "", nil, false},
		{"Refuse", Refuse, 0, "", nil, false},
		{"Status", Status(503, "no", "Retry-After", "1"), 503, "no", nil, false},
		{"Early", Early(413, "no"), 413, "no", nil, false},
		{"RestAsDate", RestAsDate(time.Second), 429, "", nil, false},
		{"CookieWall", CookieWall, 307, "", nil, false},
		{"WholeRequests", WholeRequests, 200, text, []string{text}, false},
		{"WholeAnswers", WholeAnswers(0), 200, text, []string{text}, false},
		{"WholeAnswers of some length", WholeAnswers(9), 502, "", []string{text}, false},
		{"Repeat, first answer", Repeat(true), 200, text, []string{text, text}, false},
		{"Repeat, second answer", Repeat(false), 200, text, []string{text, text}, false},
		{"CutRequests", CutRequests(dice, 1), 502, "", []string{""}, true},
		{"ShortRequests", ShortRequests(dice, 1), 200, "", []string{""}, false},
		{"CutAnswers", CutAnswers(dice, 0), 0, "", []string{text}, false},
		{"ShortAnswers", ShortAnswers(dice, 1), 200, "", []string{text}, false},
		{"Tiny", Tiny(3), 200, text, []string{text}, false},
		{"Trailers", Trailers, 200, text, []string{text}, false},
		{"Headers", Headers(3), 200, text, []string{text}, false},
		{"GoAway", GoAway, 200, text, []string{text}, false},
		{"Large", Large(9, Status(413, "")), 413, "", nil, false},
		{"not Large", Large(10, Status(413, "")), 200, text, []string{text}, false},
		{"always", Sometimes(dice, 1, Status(503, "")), 503, "", nil, false},
		{"never", Sometimes(dice, 0, Status(503, "")), 200, text, []string{text}, false},
		{"All", All(WholeRequests, Status(403, "")), 403, "", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			type seen struct {
				body string
				err  error
			}
			came := make(chan seen, 10)
			var both sync.WaitGroup
			if c.name == "Repeat, first answer" {
				both.Add(2) // no answer before both have come: the second one is given up then
			}
			box, client, url := start(t, Habits{}, func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				came <- seen{string(b), err}
				if c.name == "Repeat, first answer" {
					both.Done()
					both.Wait()
				}
				w.Write(b)
			})
			client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			box.Set(c.fault)
			resp, err := client.Post(url, "", strings.NewReader(text))
			status, body := 0, ""
			if err == nil {
				b, _ := io.ReadAll(resp.Body)
				status, body = resp.StatusCode, string(b)
				resp.Body.Close()
			}
			if status != c.status || body != c.body {
				t.Errorf("status %d, %q, %v; want %d, %q", status, body, err, c.status, c.body)
			}
			for _, want := range c.origin {
				if got := <-came; got.body != want || (got.err != nil) != c.broken {
					t.Errorf("the origin saw %q, %v; want %q", got.body, got.err, want)
				}
			}
			if len(came) > 0 {
				t.Errorf("the origin saw %d requests more", len(came))
			}
		})
	}
}

// What a fault adds to an answer is there.
func TestAdditions(t *testing.T) {
	box, client, url := start(t, Habits{}, echo)
	ask := func(fault Fault) (resp *http.Response, body string, hints int) {
		t.Helper()
		box.Set(fault)
		req, err := http.NewRequest(http.MethodPost, url, strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Encoding", "gzip")
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			if code == http.StatusEarlyHints {
				hints++
			}
			return nil
		}}
		if resp, err = client.Do(req.WithContext(httptrace.WithClientTrace(t.Context(), trace))); err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		r := io.Reader(resp.Body)
		if resp.Header.Get("Content-Encoding") == "gzip" {
			if r, err = gzip.NewReader(r); err != nil {
				t.Fatal(err)
			}
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b), hints
	}
	for _, flushes := range []bool{false, true} {
		if resp, body, _ := ask(Gzip(flushes)); body != "hello" || resp.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("gzip: %q, %v", body, resp.Header)
		}
	}
	if _, body, hints := ask(Interim(4)); body != "hello" || hints != 4 {
		t.Errorf("%q after %d hints, want 4", body, hints)
	}
	if resp, _, _ := ask(Trailers); resp.Trailer.Get("X-Checksum") != "abc" {
		t.Errorf("trailers: %v", resp.Trailer)
	}
	if resp, _, _ := ask(Headers(3)); len(resp.Header["X-Fill-002"]) != 1 {
		t.Errorf("headers: %v", resp.Header)
	}
}

// An address is said to the origin, and changes.
func TestFrom(t *testing.T) {
	box, client, url := start(t, Habits{}, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Header.Get("X-Forwarded-For"))
	})
	box.Set(From(2, "192.0.2.1", "192.0.2.2"))
	for _, want := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.1"} {
		if _, got, err := post(client, url, strings.NewReader("")); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
}

// An answer ends when it is silent, or old, and one that waits is refused.
func TestEnds(t *testing.T) {
	for _, fault := range []Fault{Ends(20*time.Millisecond, 0), Ends(0, 20*time.Millisecond)} {
		box, client, url := start(t, Habits{}, func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		box.Set(fault)
		if code, _, err := post(client, url, strings.NewReader("x")); code != 200 || err == nil {
			t.Errorf("%d, %v; want an answer that is cut", code, err)
		}
	}
}

// A second exchange waits, or is refused.
func TestAlone(t *testing.T) {
	inside, leave := make(chan struct{}, 1), make(chan struct{})
	box, client, url := start(t, Habits{}, func(_ http.ResponseWriter, r *http.Request) {
		inside <- struct{}{}
		<-leave
	})
	box.Set(OneAtATime(http.StatusServiceUnavailable))
	first := make(chan int)
	go func() {
		code, _, _ := post(client, url, strings.NewReader("x"))
		first <- code
	}()
	<-inside
	if code, _, err := post(client, url, strings.NewReader("x")); code != http.StatusServiceUnavailable {
		t.Errorf("%d, %v", code, err)
	}
	close(leave)
	if code := <-first; code != 200 {
		t.Errorf("the first one: %d", code)
	}
}
