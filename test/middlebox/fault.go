package middlebox

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Fault is what becomes of one exchange. It has pass hand the request on to the
// origin, more than once, or not at all. Safe for concurrent use.
type Fault func(w http.ResponseWriter, r *http.Request, pass http.Handler)

// Dice decide when something happens: the same in each run with one seed, as far
// as requests come in the same order. Safe for concurrent use.
type Dice struct {
	mu     sync.Mutex
	random *rand.Rand // guarded by mu
}

// NewDice returns dice that a seed throws.
func NewDice(seed uint64) *Dice { return &Dice{random: rand.New(rand.NewPCG(seed, seed))} }

// Below returns a number from 0 to n-1.
func (d *Dice) Below(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.random.IntN(n)
}

// Sometimes has a fault happen to that share of exchanges, and no fault to others.
func Sometimes(d *Dice, share float64, fault Fault) Fault {
	const parts = 1 << 20
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if float64(d.Below(parts)) < share*parts {
			fault(w, r, pass)
		} else {
			pass.ServeHTTP(w, r)
		}
	}
}

// Large has a fault happen to requests whose body is longer than limit bytes.
func Large(limit int64, fault Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if r.ContentLength > limit {
			fault(w, r, pass)
		} else {
			pass.ServeHTTP(w, r)
		}
	}
}

// All has faults happen one around another, the first one outermost.
func All(faults ...Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		for i := len(faults) - 1; i > 0; i-- {
			fault, within := faults[i], pass
			pass = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fault(w, r, within) })
		}
		faults[0](w, r, pass)
	}
}

// drain takes a request's body, as what answers in the origin's place does.
func drain(r *http.Request) { io.Copy(io.Discard, r.Body) } //nolint:errcheck // whatever ends it

// Lose takes a request and ends it without an answer: HTTP/2 resets the stream,
// HTTP/1.1 closes the connection.
func Lose(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	drain(r)
	panic(http.ErrAbortHandler)
}

// Refuse is Lose before any of the body was read.
func Refuse(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// Swallow takes a request and never says a word.
func Swallow(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	drain(r)
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

// Status answers in the origin's place. Headers are pairs of name and value.
func Status(code int, text string, headers ...string) Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		drain(r)
		answer(w, code, text, headers)
	}
}

// Early is Status before any of the body was read.
func Early(code int, text string, headers ...string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { answer(w, code, text, headers) }
}

func answer(w http.ResponseWriter, code int, text string, headers []string) {
	for i := 0; i+1 < len(headers); i += 2 {
		w.Header().Add(headers[i], headers[i+1])
	}
	w.WriteHeader(code)
	io.WriteString(w, text) //nolint:errcheck // whoever asked may be gone
}

// RestAsDate answers 429 with a Retry-After that is a date.
func RestAsDate(d time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		until := time.Now().Add(d).UTC().Format(http.TimeFormat)
		Status(http.StatusTooManyRequests, "", "Retry-After", until)(w, r, pass)
	}
}

// CookieWall sends whoever shows no cookie to the same place with one.
func CookieWall(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	const name = "clearance"
	if _, err := r.Cookie(name); err == nil {
		pass.ServeHTTP(w, r)
		return
	}
	Status(http.StatusTemporaryRedirect, "", "Set-Cookie", name+"=1; Path=/", "Location", r.URL.Path)(w, r, pass)
}

// whole reads a request's body.
func whole(r *http.Request) []byte {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return body
}

func setBody(r *http.Request, body []byte) {
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
}

// WholeRequests hands a request on when all of it has come.
func WholeRequests(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	setBody(r, whole(r))
	pass.ServeHTTP(w, r)
}

// WholeAnswers hands an answer on when all of it has come. One of more than limit
// bytes becomes 502; 0: none does.
func WholeAnswers(limit int) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		all := newRecorder()
		pass.ServeHTTP(all, r)
		if limit > 0 && all.body.Len() > limit {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		maps.Copy(w.Header(), all.header)
		w.Header().Set("Content-Length", strconv.Itoa(all.body.Len()))
		w.WriteHeader(all.code)
		w.Write(all.body.Bytes()) //nolint:errcheck // whoever asked may be gone
	}
}

// recorder is a ResponseWriter that keeps an answer.
type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func newRecorder() *recorder { return &recorder{header: make(http.Header)} }

func (a *recorder) Header() http.Header         { return a.header }
func (a *recorder) Write(p []byte) (int, error) { return a.body.Write(p) }
func (a *recorder) Flush()                      {}
func (a *recorder) WriteHeader(code int) {
	if code >= http.StatusOK {
		a.code = code
	}
}

// Repeat hands a request on twice. The client gets the second answer, or, if
// first is true, the first one, while nobody reads the other one.
func Repeat(first bool) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		body := whole(r)
		again := r.Clone(r.Context())
		setBody(r, body)
		setBody(again, body)
		if !first {
			// What waits for something to say would wait here.
			ctx, cancel := context.WithTimeout(r.Context(), 100*time.Millisecond)
			defer cancel()
			try(pass, newRecorder(), r.WithContext(ctx))
			pass.ServeHTTP(w, again)
			return
		}
		var second sync.WaitGroup
		defer second.Wait()
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		second.Go(func() { try(pass, newRecorder(), again.WithContext(ctx)) })
		pass.ServeHTTP(w, r)
	}
}

// try is ServeHTTP that may be aborted.
func try(h http.Handler, w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint // it is no error
			panic(p)
		}
	}()
	h.ServeHTTP(w, r)
}

// CutRequests breaks a request off after at most n bytes: the origin sees it fail.
func CutRequests(d *Dice, n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, int64(d.Below(n))), broken{}))
		pass.ServeHTTP(w, r)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("cut") }

// ShortRequests makes a request end after at most n bytes: to the origin it looks
// whole.
func ShortRequests(d *Dice, n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		body := whole(r)
		setBody(r, body[:min(len(body), d.Below(n))])
		pass.ServeHTTP(w, r)
	}
}

// CutAnswers breaks an answer off after at most n bytes, before its head if n is 0.
func CutAnswers(d *Dice, n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		left := 0
		if n > 0 {
			left = d.Below(n)
		}
		pass.ServeHTTP(&cut{ResponseWriter: w, left: left, headless: n == 0}, r)
	}
}

// ShortAnswers makes an answer end after at most n bytes: to the client it looks
// whole.
func ShortAnswers(d *Dice, n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		try(pass, &cut{ResponseWriter: w, left: d.Below(n)}, r)
	}
}

// cut is a writer of an answer that aborts.
type cut struct {
	http.ResponseWriter
	left     int  // bytes until then
	headless bool // at the head
}

func (c *cut) Flush() { flush(c.ResponseWriter) }

func (c *cut) WriteHeader(code int) {
	if c.headless {
		panic(http.ErrAbortHandler)
	}
	c.Header().Del("Content-Length")
	c.ResponseWriter.WriteHeader(code)
}

func (c *cut) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	n, err := c.ResponseWriter.Write(p[:n])
	if err == nil && n < len(p) {
		flush(c.ResponseWriter)
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func flush(w http.ResponseWriter) { w.(http.Flusher).Flush() }

// Gzip compresses answers. Without flush it hands on what a compressor gives by
// itself, which is little before the end.
func Gzip(flushes bool) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			pass.ServeHTTP(w, r)
			return
		}
		g := &gzipped{ResponseWriter: w, gzip: gzip.NewWriter(w), flushes: flushes}
		pass.ServeHTTP(g, r)
		g.gzip.Close()
	}
}

type gzipped struct {
	http.ResponseWriter
	gzip    *gzip.Writer
	flushes bool
}

func (g *gzipped) Write(p []byte) (int, error) { return g.gzip.Write(p) }

func (g *gzipped) WriteHeader(code int) {
	g.Header().Del("Content-Length")
	g.Header().Set("Content-Encoding", "gzip")
	g.ResponseWriter.WriteHeader(code)
}

func (g *gzipped) Flush() {
	if g.flushes {
		g.gzip.Flush() //nolint:errcheck // the next write says it
		flush(g.ResponseWriter)
	}
}

// Tiny writes and flushes an answer n bytes at a time.
func Tiny(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		pass.ServeHTTP(&tiny{w, n}, r)
	}
}

type tiny struct {
	http.ResponseWriter
	n int
}

func (t *tiny) Flush() { flush(t.ResponseWriter) }

func (t *tiny) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = t.ResponseWriter.Write(p[n:min(len(p), n+t.n)])
		n += k
		t.Flush()
	}
	return n, err
}

// Interim sends so many answers of the kinds 102 and 103 before the answer.
func Interim(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		const link = "Link"
		w.Header().Set(link, "</style.css>; rel=preload; as=style")
		for range n {
			w.WriteHeader(http.StatusEarlyHints)
		}
		w.WriteHeader(http.StatusProcessing)
		w.Header().Del(link)
		pass.ServeHTTP(w, r)
	}
}

// Trailers puts some after the answer.
func Trailers(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	w.Header().Set("Trailer", "X-Checksum")
	pass.ServeHTTP(w, r)
	w.Header().Set("X-Checksum", "abc")
	w.Header().Set(http.TrailerPrefix+"Server-Timing", "cdn;dur=1")
}

// Headers adds so many of 1 KB to the answer's head.
func Headers(n int) Fault {
	value := strings.Repeat("v", 1<<10)
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		for i := range n {
			w.Header().Set(fmt.Sprintf("X-Fill-%03d", i), value)
		}
		pass.ServeHTTP(w, r)
	}
}

// OneAtATime has a request wait until the one before it has ended, or, if refuse
// is not 0, answers it with that status.
func OneAtATime(refuse int) Fault {
	turn := make(chan struct{}, 1)
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if refuse != 0 {
			select {
			case turn <- struct{}{}:
			default:
				Status(refuse, "")(w, r, pass)
				return
			}
		} else {
			select {
			case turn <- struct{}{}:
			case <-r.Context().Done():
				return
			}
		}
		defer func() { <-turn }()
		pass.ServeHTTP(w, r)
	}
}

// Ends ends an answer that is silent, or open, for so long; 0: never.
func Ends(idle, age time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		e := &ending{ResponseWriter: w, idle: idle}
		if idle > 0 {
			e.timer = time.AfterFunc(idle, cancel)
			defer e.timer.Stop()
		}
		if age > 0 {
			defer time.AfterFunc(age, cancel).Stop()
		}
		pass.ServeHTTP(e, r.WithContext(ctx))
	}
}

type ending struct {
	http.ResponseWriter
	idle  time.Duration
	timer *time.Timer
}

func (e *ending) Flush() { flush(e.ResponseWriter) }

func (e *ending) Write(p []byte) (int, error) {
	if e.timer != nil {
		e.timer.Reset(e.idle)
	}
	return e.ResponseWriter.Write(p)
}

// GoAway answers, and tells the client to use another connection from then on:
// HTTP/2 says GOAWAY, HTTP/1.1 closes.
func GoAway(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	pass.ServeHTTP(&goAway{w}, r)
}

type goAway struct{ http.ResponseWriter }

func (g *goAway) Flush() { flush(g.ResponseWriter) }

func (g *goAway) WriteHeader(code int) {
	g.Header().Set("Connection", "close")
	g.ResponseWriter.WriteHeader(code)
}

// From says that requests come from an address, which changes after every so many.
func From(every int, addrs ...string) Fault {
	var mu sync.Mutex
	n := 0
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		mu.Lock()
		addr := addrs[n/every%len(addrs)]
		n++
		mu.Unlock()
		r.Header.Set("X-Forwarded-For", addr)
		pass.ServeHTTP(w, r)
	}
}
