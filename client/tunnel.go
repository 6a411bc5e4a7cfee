package main

import (
	"context"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/socks"
)

// config and stream are the client's view of the tunnel: what it needs of it, and no
// more.
type (
	config = tunnel.Config
	stream = tunnel.Stream
)

// A dialer opens streams to one server. *tunnel.Dialer is the real one; tests
// bring their own. Safe for concurrent use.
type dialer interface {
	socks.Dialer
	DialEarly(ctx context.Context) (stream, error)
}

// open returns the dialer for c.
func open(c config, opts tunnel.Options) (dialer, error) {
	// Not returned directly: a nil *tunnel.Dialer is no nil dialer.
	d, err := tunnel.NewDialer(c, opts)
	if err != nil {
		return nil, err
	}
	return d, nil
}
