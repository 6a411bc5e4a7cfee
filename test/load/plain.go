package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"sync"
	"time"

	"turbotunnel/internal/ptproc"
	"turbotunnel/test/proc"
)

// A plain server is this program, started again as
//
//	load plain LISTEN HOLD
//
// It is package net/http and nothing else, and answers as a session at rest is
// answered: with a little at once, after half of HOLD, and after HOLD. It ends with its
// stdin.
const plainCommand = "plain"

// Sizes in bytes of a request at rest, of what it is answered with at once, and of what
// comes later.
const plainRequest, plainAnswer, plainMore = 300, 300, 100

// plainStreams is how many requests share a connection, as through the fronts.
const plainStreams = 217

func runPlain(args []string, in io.Reader) error {
	if len(args) != 2 {
		return fmt.Errorf("%d arguments", len(args))
	}
	hold, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	ptproc.RelaxTimers() // like turbotunnel-server
	s := &http.Server{Protocols: new(http.Protocols), ReadHeaderTimeout: headTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // the next write says so, too
		w.Write(make([]byte, plainAnswer))
		for range 2 {
			http.NewResponseController(w).Flush() //nolint:errcheck // likewise
			if sleep(r.Context(), hold/2) != nil {
				return
			}
			w.Write(make([]byte, plainMore))
		}
	})}
	s.Protocols.SetUnencryptedHTTP2(true)
	return serve(s, args[0], in)
}

// plain is how many cores a plain server takes for n requests at a time, each of which it
// answers for hold. It collects garbage less often than turbotunnel-server does, as all
// helpers, so that it takes rather less than it would.
func (r *rig) plain(ctx context.Context, n int, hold, watch time.Duration) (cores float64, err error) {
	addrs, err := proc.FreeAddrs(1)
	if err != nil {
		return 0, err
	}
	server, err := r.startHelper(ctx, plainCommand, exec.Command(r.self, plainCommand, addrs[0], hold.String()), addrs[0])
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel(nil)
	for first := 0; first < n; first += plainStreams {
		transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
		transport.Protocols.SetUnencryptedHTTP2(true)
		for range min(plainStreams, n-first) {
			asking.Go(func() {
				if sleep(ctx, rand.N(hold)) != nil {
					return
				}
				for ctx.Err() == nil {
					if err := askPlain(ctx, transport, "http://"+addrs[0]); err != nil {
						cancel(err)
					}
				}
			})
		}
	}
	if err := sleep(ctx, hold+hold/2); err != nil {
		return 0, context.Cause(ctx)
	}
	before, err := server.Usage()
	if err != nil {
		return 0, err
	}
	if err := sleep(ctx, watch); err != nil {
		return 0, context.Cause(ctx)
	}
	after, err := server.Usage()
	return (after.CPU - before.CPU).Seconds() / watch.Seconds(), err
}

// askPlain asks once, and reads all of the answer.
func askPlain(ctx context.Context, transport http.RoundTripper, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(make([]byte, plainRequest)))
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
