package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// What follows are attacks of a CDN, which sees each request and may do with it
// what it likes.

// A tamper decides about a request: it may answer it itself, and returns false to
// have it passed on. attempt counts the client's requests, from 1 on.
type tamper func(w http.ResponseWriter, r *http.Request, attempt int) bool

// evilCDN passes requests on to the server, or does with them what t says.
func evilCDN(r *rig, t tamper) (addr string, stop func(), err error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	to, err := url.Parse(r.url)
	if err != nil {
		return "", nil, err
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.FlushInterval = -1
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	var mu sync.Mutex
	attempts := make(map[string]int) // by path
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		if attempts[req.URL.Path] == 0 {
			attempts[req.URL.Path] = len(attempts) + 1
		}
		n := attempts[req.URL.Path]
		mu.Unlock()
		if !t(w, req, n) {
			proxy.ServeHTTP(w, req)
		}
	})}
	var group sync.WaitGroup
	group.Go(func() { server.Serve(l) }) //nolint:errcheck // it is closed
	return l.Addr().String(), func() { server.Close(); group.Wait() }, nil
}

// replay sends a request of the client's to the server once more.
func (r *rig) replay(path string, body []byte) {
	resp, err := http.Post(r.url+path, "application/octet-stream", bytes.NewReader(body))
	if err == nil {
		io.Copy(io.Discard, resp.Body) //nolint:errcheck // whatever ends it
		resp.Body.Close()
	}
}

// notFound answers like a web site whose clock says at.
func notFound(w http.ResponseWriter, at time.Time) {
	w.Header().Set("Date", at.UTC().Format(http.TimeFormat))
	w.WriteHeader(http.StatusNotFound)
}

// tellOnce has an application say a line through a CDN, again when the stream
// fails before, as applications do under another line, and returns an error if a
// line arrives more than once, or if none arrives at all. When one has arrived it
// lets the CDN go on.
func tellOnce(ctx context.Context, r *rig, cdn string, goOn func() error) error {
	local, err := r.startClient(ctx, "http://"+cdn)
	if err != nil {
		return err
	}
	var lines []string
	until := time.Now().Add(30 * time.Second)
	arrived := func() bool {
		for _, l := range lines {
			if r.target.said(l) > 0 {
				return true
			}
		}
		return false
	}
	for n := 1; !arrived() && time.Now().Before(until); n++ {
		line := fmt.Sprint("line ", n)
		lines = append(lines, line)
		c, err := net.Dial("tcp4", local)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, string(rune(askLog))+line+"\n"); err != nil {
			continue
		}
		// Until the stream ends, or the line has come.
		ended := make(chan struct{})
		go func() { io.Copy(io.Discard, c); close(ended) }() //nolint:errcheck // whatever ends it
		for done := false; !done && !arrived() && time.Now().Before(until); {
			select {
			case <-ended:
				done = true
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	if !arrived() {
		return fmt.Errorf("no line arrived")
	}
	if err := goOn(); err != nil {
		return err
	}
	for _, l := range lines {
		if n := r.target.said(l); n > 1 {
			return fmt.Errorf("%q arrived %d times", l, n)
		}
	}
	return nil
}

// twice passes the first message on and keeps its answer from the client, which
// is told that the time is another one.
func twice(ctx context.Context, r *rig) error {
	cdn, stop, err := evilCDN(r, func(w http.ResponseWriter, req *http.Request, attempt int) bool {
		if attempt > 1 {
			return false
		}
		body, err := io.ReadAll(req.Body)
		if err == nil {
			r.replay(req.URL.Path, body)
		}
		notFound(w, time.Now().Add(3*time.Second))
		return true
	})
	if err != nil {
		return err
	}
	defer stop()
	return tellOnce(ctx, r, cdn, func() error {
		time.Sleep(time.Duration(r.size(20, 8)) * time.Second)
		return nil
	})
}

// later keeps every first message. It refuses the first two, of which the first is
// told a time in the future, and delivers all of them, also those that have been
// admitted, when that time has come, and again after the server was killed and
// started again.
func later(ctx context.Context, r *rig) error {
	ahead := time.Duration(r.size(40, 10)) * time.Second
	begun := time.Now()
	var mu sync.Mutex
	all := make(map[string][]byte) // bodies by path
	cdn, stop, err := evilCDN(r, func(w http.ResponseWriter, req *http.Request, attempt int) bool {
		mu.Lock()
		_, known := all[req.URL.Path]
		mu.Unlock()
		if known && attempt > 2 {
			return false
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return false
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		mu.Lock()
		all[req.URL.Path] = body
		mu.Unlock()
		switch attempt {
		case 1:
			notFound(w, time.Now().Add(ahead))
		case 2:
			notFound(w, time.Now())
		}
		return attempt <= 2
	})
	if err != nil {
		return err
	}
	defer stop()
	deliver := func() {
		mu.Lock()
		defer mu.Unlock()
		for path, body := range all {
			r.replay(path, body)
		}
	}
	return tellOnce(ctx, r, cdn, func() error {
		time.Sleep(time.Until(begun.Add(ahead + 2*time.Second)))
		deliver()
		time.Sleep(2 * time.Second) // until the target has what was said
		if err := r.restart(ctx); err != nil {
			return err
		}
		deliver()
		time.Sleep(2 * time.Second) // likewise
		return nil
	})
}
