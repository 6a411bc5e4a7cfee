package main

import (
	"context"
	"log/slog"
	"net/url"

	"turbotunnel/common/tunnel"
)

// The client's view of the tunnel: what it needs of it, and no more.
type (
	config = tunnel.Config
	stream = tunnel.Stream
)

// A dialer opens streams to one server. *tunnel.Dialer is the real one; tests
// bring their own. Safe for concurrent use.
type dialer interface {
	Dial(ctx context.Context) (stream, error)
	DialEarly(ctx context.Context) (stream, error)
	Close() error
}

// open returns the dialer for c, which goes through proxy where there is one.
func open(c config, proxy *url.URL, log *slog.Logger) (dialer, error) {
	// Not returned directly: a nil *tunnel.Dialer is no nil dialer.
	d, err := tunnel.NewDialer(c, tunnel.Options{Proxy: proxy, Log: log})
	if err != nil {
		return nil, err
	}
	return d, nil
}
