// Package middlebox is a CDN with bad habits, as an http.Handler: it forwards
// requests to an origin and, as told, loses bodies, holds them back, cuts them,
// or lets through one at a time.
package middlebox

import (
	"bytes"
	"context"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"
)

// Habits are what a middlebox does. The zero value forwards.
type Habits struct {
	BufferRequests  bool          // the origin sees a request when all of it has come
	BufferResponses bool          // the client sees an answer when all of it has come
	LoseRequests    float64       // this share of requests never reaches the origin
	LoseResponses   float64       // this share of answers is cut before its first byte
	IdleCut         time.Duration // an answer that is silent so long is cut; 0: never
	MaxAge          time.Duration // an answer ends after this time, whatever is said; 0: never
	MaxBody         int64         // larger requests get 413; 0: any
	OneAtATime      bool          // a request waits until the one before it has ended
}

// Box is a running middlebox. Safe for concurrent use.
type Box struct {
	habits   Habits
	proxy    *httputil.ReverseProxy
	turn     chan struct{}
	requests atomic.Int64
	lost     atomic.Int64
	fault    atomic.Pointer[Fault]
}

// New returns a middlebox before origin, an http URL.
func New(origin *url.URL, habits Habits) *Box {
	b := &Box{habits: habits, turn: make(chan struct{}, 1)}
	b.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(origin)
			r.Out.Host = r.In.Host
			r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"] // of a Fault
		},
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 200,
			WriteBufferSize:     64 << 10,
			ReadBufferSize:      64 << 10,
		},
		FlushInterval:  -1,
		BufferPool:     pool{make(chan []byte, 64)},
		ModifyResponse: b.modify,
		ErrorLog:       log.New(io.Discard, "", 0), // it breaks things on purpose
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	return b
}

type pool struct{ free chan []byte }

func (p pool) Get() []byte {
	select {
	case b := <-p.free:
		return b
	default:
		return make([]byte, 64<<10)
	}
}

func (p pool) Put(b []byte) {
	select {
	case p.free <- b:
	default:
	}
}

// Set makes a fault happen to every request that comes from now on, in place of
// the box's habits. Nil: none.
func (b *Box) Set(fault Fault) {
	if fault == nil {
		b.fault.Store(nil)
		return
	}
	b.fault.Store(&fault)
}

// Close ends the connections to the origin that nobody uses.
func (b *Box) Close() { b.proxy.Transport.(*http.Transport).CloseIdleConnections() }

// Requests is how many requests came, and how many of them or of their answers
// were lost.
func (b *Box) Requests() (all, lost int64) { return b.requests.Load(), b.lost.Load() }

func (b *Box) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.requests.Add(1)
	if fault := b.fault.Load(); fault != nil {
		(*fault)(w, r, b.proxy)
		return
	}
	if b.habits.OneAtATime {
		select {
		case b.turn <- struct{}{}:
			defer func() { <-b.turn }()
		case <-r.Context().Done():
			return
		}
	}
	if max := b.habits.MaxBody; max > 0 && r.ContentLength > max {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return
	}
	if b.lose(b.habits.LoseRequests) {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // it is being thrown away
		panic(http.ErrAbortHandler)
	}
	if b.habits.BufferRequests {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	b.proxy.ServeHTTP(w, r)
}

func (b *Box) lose(share float64) bool {
	if share == 0 || rand.Float64() >= share {
		return false
	}
	b.lost.Add(1)
	return true
}

func (b *Box) modify(resp *http.Response) error {
	if b.habits.BufferResponses {
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(body))
		resp.ContentLength = int64(len(body))
		resp.TransferEncoding = nil
		resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	}
	if b.lose(b.habits.LoseResponses) {
		io.Copy(io.Discard, resp.Body) //nolint:errcheck // it is being thrown away
		panic(http.ErrAbortHandler)
	}
	if b.habits.IdleCut > 0 || b.habits.MaxAge > 0 {
		resp.Body = newCutter(resp.Body, b.habits.IdleCut, b.habits.MaxAge)
	}
	return nil
}

// cutter is a body that ends when it is silent or open for too long.
type cutter struct {
	io.ReadCloser
	idle   time.Duration
	timer  *time.Timer
	ctx    context.Context
	cancel context.CancelFunc
}

func newCutter(body io.ReadCloser, idle, age time.Duration) *cutter {
	c := &cutter{ReadCloser: body, idle: idle}
	if age > 0 {
		c.ctx, c.cancel = context.WithTimeout(context.Background(), age)
	} else {
		c.ctx, c.cancel = context.WithCancel(context.Background())
	}
	context.AfterFunc(c.ctx, func() { body.Close() })
	if idle > 0 {
		c.timer = time.AfterFunc(idle, c.cancel)
	}
	return c
}

func (c *cutter) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if c.timer != nil {
		c.timer.Reset(c.idle)
	}
	return n, err
}

func (c *cutter) Close() error {
	if c.timer != nil {
		c.timer.Stop()
	}
	c.cancel()
	return c.ReadCloser.Close()
}
