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
// line arrives more than once, or if none arrives at all.
func tellOnce(ctx context.Context, r *rig, cdn string, wait time.Duration) error {
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
	time.Sleep(wait)
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
	return tellOnce(ctx, r, cdn, time.Duration(r.size(20, 8))*time.Second)
}

// later tells the client a time in the future, keeps the first message that is
// made for it, and sends that to the server when the time has come, after the
// server was started again.
func later(ctx context.Context, r *rig) error {
	ahead := time.Duration(r.size(40, 10)) * time.Second
	var mu sync.Mutex
	type kept struct {
		path string
		body []byte
	}
	var all []kept
	cdn, stop, err := evilCDN(r, func(w http.ResponseWriter, req *http.Request, attempt int) bool {
		if attempt > 2 {
			return false
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return false
		}
		mu.Lock()
		all = append(all, kept{req.URL.Path, body})
		mu.Unlock()
		if attempt == 1 {
			notFound(w, time.Now().Add(ahead))
		} else {
			notFound(w, time.Now())
		}
		return true
	})
	if err != nil {
		return err
	}
	defer stop()
	var group sync.WaitGroup
	group.Go(func() {
		time.Sleep(ahead + 2*time.Second)
		mu.Lock()
		defer mu.Unlock()
		for _, k := range all {
			r.replay(k.path, k.body)
		}
	})
	err = tellOnce(ctx, r, cdn, ahead+4*time.Second)
	group.Wait()
	return err
}
