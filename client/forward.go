package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/accept"
	"turbotunnel/internal/ptproc"
	"turbotunnel/internal/relay"
)

// runForward is the life of the program without tor.
func runForward(p *ptproc.Process, s settings, memory *tunnel.Memory) int {
	d, err := open(s.tunnel, tunnel.Options{Proxy: s.proxyURL, Memory: memory, Log: p.Log()})
	if err != nil {
		p.Say("%v; see %s -h", err, program)
		return exitUsage
	}
	defer d.Close()
	ln, err := ptproc.Listen(s.listen)
	if err != nil {
		p.Say("%v", listenError(s.listen, err))
		return exitFailure
	}
	if s.tunnel.Key == "" {
		p.Say("WARNING: no -key, so nothing proves who the server is, and whoever stands between can read and change everything. This is for test benches only.")
	}
	f := &forwarder{log: p.Log(), dialer: d, stopping: p.Stopping(), streams: p.Draining()}
	a := accept.New(ln, localConns(ptproc.DescriptorLimit()), p.Log(), f.handle)
	p.Say("Forwarding %s through %s", ln.Addr(), s.tunnel.URL)
	a.Serve(p.Stopping(), func(open int64) {
		p.Say("Stopping: waiting up to %v for %d open connections. A second signal ends them at once.", p.DrainTime(), open)
	})
	return exitOK
}

const (
	// namesInterval is how often a name is looked up that DNS could not tell, and
	// namesLimit is how long: a machine that starts has its network by then.
	namesInterval = time.Second
	namesLimit    = 2 * time.Minute
)

// A forwarder turns connections into streams.
type forwarder struct {
	log      *slog.Logger
	dialer   dialer
	stopping context.Context // ends the wait for DNS
	streams  context.Context // ends them

	reached atomic.Bool // a stream was opened: DNS was there once
	waiting sync.Once   // guards the log line about DNS
}

// handle forwards one connection.
func (f *forwarder) handle(conn net.Conn) {
	local := relay.OfSocket(conn)
	stream, err := f.dial()
	if err == nil {
		err = relay.Join(f.streams, local, stream)
	} else {
		local.Reset() // the application shall not take it for an empty answer
	}
	if err != nil {
		f.log.Warn("connection cut", "err", err)
	}
}

// dial opens a stream. The server may be the one to speak first, so that is done
// without waiting for a byte of the client. A program that is started with its
// machine may be there before DNS is: until it was there once, it is waited for.
func (f *forwarder) dial() (stream, error) {
	for start := time.Now(); ; {
		stream, err := f.dialer.DialEarly(f.streams)
		if err == nil {
			f.reached.Store(true)
			return stream, nil
		}
		if !isWithoutDNS(err) || f.reached.Load() || time.Since(start) >= namesLimit {
			return nil, err
		}
		f.waiting.Do(func() {
			f.log.Warn("DNS does not answer yet: waiting for it", "limit", namesLimit, "err", err)
		})
		select {
		case <-time.After(namesInterval):
		case <-f.stopping.Done():
			return nil, err
		}
	}
}

// isWithoutDNS tells whether DNS could not be asked. That a name does not exist
// is an answer.
func isWithoutDNS(err error) bool {
	dnsErr, ok := errors.AsType[*net.DNSError](err)
	return ok && !dnsErr.IsNotFound
}

// listenError says what is wrong with a LISTEN argument, and what to do.
func listenError(addr string, err error) error {
	var addrErr *net.AddrError
	var dnsErr *net.DNSError
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cannot listen on %s: it is in use; choose another, or end the program that has it", addr)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("cannot listen on %s: this machine does not have that address; 127.0.0.1 always works", addr)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("cannot listen on %s: not permitted; choose a port from 1024 up, or a folder in which you may write", addr)
	case errors.As(err, &dnsErr):
		return fmt.Errorf("cannot listen on %s: %q is no known host or port; write HOST:PORT, such as 127.0.0.1:2000", addr, dnsErr.Name)
	case errors.As(err, &addrErr):
		return fmt.Errorf("cannot listen on %q: %s; write HOST:PORT, such as 127.0.0.1:2000", addr, addrErr.Err)
	default:
		return fmt.Errorf("cannot listen on %s: %w", addr, err)
	}
}
