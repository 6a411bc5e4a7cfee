package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/tunnel"
)

// Local connections leave descriptors for the way out, whatever the limit is.
func TestLocalConnsLeaveAReserve(t *testing.T) {
	for limit, want := range map[uint64]int{1: 1, 3: 3, 64: 48, 256: 192, 1024: 768, 20000: 18976, 1 << 40: 1<<31 - 1 - mostOut, 0: 1<<31 - 1 - mostOut} {
		if got := localConns(limit); got != want {
			t.Errorf("of %d descriptors %d are for local connections, want %d", limit, got, want)
		}
	}
}

// When there are as many connections as there may be, the next one waits in the
// listener's queue, the log says so once, and it is served when another has gone.
func TestAcceptingStopsBeforeTheReserve(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	a := newAcceptor(ln, slog.New(slog.NewTextHandler(&log, nil)), func(c net.Conn) {
		io.Copy(c, c)
		c.Close()
	})
	a.places = make(chan struct{}, 2)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.serve(ctx, func(int64) {})
	}()
	echo := func(c net.Conn) {
		t.Helper()
		io.WriteString(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	first, second := dialTCP(t, ln.Addr().String()), dialTCP(t, ln.Addr().String())
	echo(first)
	echo(second)
	third, fourth := dialTCP(t, ln.Addr().String()), dialTCP(t, ln.Addr().String())
	io.WriteString(third, "x")
	for !strings.Contains(log.String(), "limit of open files") {
		runtime.Gosched()
	}
	if n := a.open.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
	first.Close()
	io.ReadFull(third, make([]byte, 1))
	second.Close()
	echo(fourth)
	third.Close()
	fourth.Close()
	cancel()
	<-done
	if n := strings.Count(log.String(), "limit of open files"); n != 1 {
		t.Errorf("the log says it %d times", n)
	}
}

// A dialFunc is a dialer that does nothing else.
type dialFunc func(ctx context.Context) (stream, error)

func (d dialFunc) Dial(ctx context.Context) (stream, error)      { return d(ctx) }
func (d dialFunc) DialEarly(ctx context.Context) (stream, error) { return d(ctx) }
func (d dialFunc) Close() error                                  { return nil }

// DNS that is not there at the start is waited for, and then no more. A name that
// does not exist is none to wait for.
func TestDNSIsWaitedForAtTheStart(t *testing.T) {
	without := &net.DNSError{Err: "server misbehaving", Name: "front.example", IsTemporary: true}
	for _, c := range []struct {
		name string
		err  error
		up   time.Duration // when DNS answers
		took time.Duration
		err2 bool
	}{
		{"up at once", without, 0, 0, false},
		{"up later", without, 30 * time.Second, 30 * time.Second, false},
		{"never up", without, time.Hour, namesLimit, true},
		{"no such name", &net.DNSError{Err: "no such host", Name: "front.example", IsNotFound: true}, time.Hour, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				d := dialFunc(func(context.Context) (stream, error) {
					if time.Since(start) < c.up {
						return nil, errors.Join(tunnel.ErrUnreachable, c.err)
					}
					return nil, nil
				})
				f := &forwarder{log: slog.New(slog.DiscardHandler), dialer: d, stopping: t.Context(), streams: t.Context()}
				_, err := f.dial()
				if took := time.Since(start); (err != nil) != c.err2 || took != c.took {
					t.Errorf("%v after %v", err, took)
				}
				if err == nil {
					start, c.up = time.Now(), time.Hour
					if _, err := f.dial(); err == nil || time.Since(start) > 0 {
						t.Errorf("later: %v after %v", err, time.Since(start))
					}
				}
			})
		})
	}
}
