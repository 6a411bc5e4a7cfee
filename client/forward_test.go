package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/tunnel"
)

// A dialFunc is a dialer that does nothing else.
type dialFunc func(ctx context.Context) (stream, error)

func (d dialFunc) Dial(ctx context.Context) (stream, error)      { return d(ctx) }
func (d dialFunc) DialEarly(ctx context.Context) (stream, error) { return d(ctx) }
func (d dialFunc) Pending() (pending bool, heard time.Time)      { return false, time.Time{} }
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
