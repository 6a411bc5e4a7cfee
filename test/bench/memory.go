package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	"turbotunnel/common/tunnel"
	"turbotunnel/test/cdn"
)

// sessionFigures are what idle sessions hold.
type sessionFigures struct {
	Engine   string
	Sessions int
	Memory   float64 // bytes of heap and stacks for a session, both ends and their HTTP connections
	Routines float64 // goroutines for a session, both ends and their HTTP connections
	Error    string
}

// sessions is how many are idle at the same time, and opening how many of them
// are opened at the same time.
const (
	sessions = 1000
	opening  = 20
)

// memory measures each engine in this process, over HTTPS on loopback.
func (b *bench) memory(names []string) []sessionFigures {
	// Before this process has verified any certificate by the system's roots.
	if err := os.Setenv("SSL_CERT_FILE", b.ca); err != nil {
		return []sessionFigures{{Error: err.Error()}}
	}
	var all []sessionFigures
	for _, e := range names {
		if b.ctx.Err() != nil {
			break
		}
		fmt.Printf("%s %d idle sessions, %s\n", time.Now().Format(time.TimeOnly), sessions, e)
		f := sessionFigures{Engine: e, Sessions: sessions}
		if err := b.memoryOne(&f); err != nil {
			f.Error = err.Error()
		}
		fmt.Printf("    %.1f KB and %.1f goroutines a session, both ends %s\n", f.Memory/1024, f.Routines, f.Error)
		all = append(all, f)
	}
	return all
}

func (b *bench) memoryOne(f *sessionFigures) error {
	server, err := tunnel.NewServer(tunnel.ServerConfig{})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer server.Close()
	// Each stream says back what it gets.
	wg.Go(func() {
		for {
			s, err := server.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer s.Close()
				var b [1]byte
				for {
					if _, err := io.ReadFull(s, b[:]); err != nil {
						return
					}
					if _, err := s.Write(b[:]); err != nil {
						return
					}
				}
			})
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	web := &http.Server{
		Handler:   server,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{b.cert}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	wg.Go(func() { web.ServeTLS(ln, "", "") }) //nolint:errcheck // Close ends it
	defer web.Close()

	before, routines := used()
	dialers := make([]*tunnel.Dialer, sessions)
	streams := make([]tunnel.Stream, sessions)
	errs := make([]error, sessions)
	turn := make(chan struct{}, opening)
	inParallel := func(one func(int) error) error {
		var all sync.WaitGroup
		for i := range sessions {
			all.Go(func() {
				turn <- struct{}{}
				errs[i] = one(i)
				<-turn
			})
		}
		all.Wait()
		for _, err := range errs {
			if err != nil {
				return err
			}
		}
		return nil
	}
	defer inParallel(func(i int) error { //nolint:errcheck // they have been measured
		if dialers[i] != nil {
			dialers[i].Close()
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	ping := func(i int) error {
		streams[i].SetDeadline(time.Now().Add(time.Minute)) //nolint:errcheck // a stream can
		_, err := echo(streams[i])
		return err
	}
	err = inParallel(func(i int) (err error) {
		cfg := tunnel.Config{URL: "https://" + cdn.Front + "/bench", Addr: ln.Addr().String(), Engine: f.Engine}
		if dialers[i], err = tunnel.NewDialer(cfg, tunnel.Options{}); err != nil {
			return err
		}
		if streams[i], err = dialers[i].Dial(ctx); err != nil {
			return err
		}
		return ping(i)
	})
	if err != nil {
		return err
	}
	select { // until the clients have found out what the path does
	case <-time.After(10 * time.Second):
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
	after, routines2 := used()
	f.Memory = float64(after-before) / sessions
	f.Routines = float64(routines2-routines) / sessions
	return inParallel(ping)
}

// used is the memory that heap and stacks hold after a collection.
func used() (int64, int) {
	runtime.GC()
	runtime.GC() // what finalizers and pools let go
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse), runtime.NumGoroutine()
}
