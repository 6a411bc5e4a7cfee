package main

import (
	"context"
	"net"
	"slices"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/accept"
	"turbotunnel/internal/ptproc"
	"turbotunnel/internal/socks"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

// runManaged is the life of the program under tor.
func runManaged(p *ptproc.Process, s settings, memory *tunnel.Memory) int {
	info, err := p.ClientSetup()
	if err != nil {
		p.Say("%v", err)
		if !ptproc.HasParent() {
			p.Say("tor did not start this program. To forward a port by hand, give it LISTEN and URL: %s 127.0.0.1:2000 http://127.0.0.1:8000. To use it with tor, see %s -h", program, program)
		}
		return exitFailure
	}
	pt.ReportVersion(program, ptproc.Version())
	opts := tunnel.Options{Proxy: info.ProxyURL, Memory: memory, Log: p.Log()}

	var ln net.Listener
	if slices.Contains(info.MethodNames, method) {
		// Keep-alive probes between two programs on one machine find nothing
		// out, and wake both.
		lc := net.ListenConfig{KeepAlive: -1}
		ln, err = lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			p.CmethodError(method, err)
			p.Log().Error("cannot listen for tor", "err", err)
		} else {
			pt.Cmethod(method, "socks5", ln.Addr())
		}
	}
	pt.CmethodsDone()
	if ln == nil {
		// Tor decides what becomes of a program without a transport.
		<-p.Stopping().Done()
		return exitOK
	}
	places := localConns(ptproc.DescriptorLimit())
	srv := socks.NewServer(socks.Config{
		Defaults: s.tunnel,
		Open:     func(c config) (socks.Dialer, error) { return open(c, opts) },
		Log:      p.Log(),
		Status:   func(pairs ...string) { p.Status(method, pairs...) },
		Places:   places,
		Stopping: p.Stopping(),
		Draining: p.Draining(),
	})
	defer srv.Close()
	a := accept.New(ln, places, p.Log(), srv.Handle)
	a.Serve(p.Stopping(), func(open int64) {
		p.Log().Info("stopping", "why", context.Cause(p.Stopping()), "open", open)
	})
	return exitOK
}
