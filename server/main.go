// Command turbotunnel-server is the server of the pluggable transport "turbo".
// It serves HTTP, finds the requests of clients among those of everybody else,
// and connects each stream of theirs to tor, or to an address of its own.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"turbotunnel/common/tunnel"
	"turbotunnel/internal/ptproc"
	"turbotunnel/server/decoy"
	"turbotunnel/server/proxyproto"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
	"golang.org/x/time/rate"
)

// method is the transport's name in tor's configuration.
const method = "turbo"

const (
	// closeTime is how long the last responses may take when the server ends.
	closeTime = 2 * time.Second

	// lingerTime is how much longer than its drain time a server may have a port
	// that tor has told to end: what it takes to close, and some seconds for a
	// busy machine.
	lingerTime = 8 * time.Second

	// portInterval is how often a port that is in use is tried.
	portInterval = 100 * time.Millisecond
)

func main() { os.Exit(run(os.Args[1:])) }

// run returns the exit code: 0 after a stop that was asked for, 1 when the
// server cannot start, 2 when the command line is wrong; of a check the verdict's.
func run(args []string) int {
	var set settings
	flags := set.flags()
	flagErr := flags.Parse(args)

	p := ptproc.Start("turbotunnel-server", flags.NArg() == 0 && !set.check)
	defer p.Close()
	switch {
	case errors.Is(flagErr, flag.ErrHelp):
		p.Print(help)
		return 0
	case set.version && flagErr == nil:
		p.Print(ptproc.About("turbotunnel-server"))
		return 0
	case set.bridgeLine && flagErr == nil:
		return printBridgeLine(p, set)
	case flagErr == nil && flags.NArg() != 0 && flags.NArg() != 2:
		flagErr = fmt.Errorf("%d arguments; want LISTEN and FORWARD, or none under tor", flags.NArg())
	}
	if flagErr == nil && set.json && !set.check {
		flagErr = errors.New("-json belongs to -check")
	}
	if flagErr != nil {
		p.Say("%v; -h shows what there is", p.EnvError(flagErr))
		return 2
	}
	if set.check {
		return runCheck(p, set, flags.Args())
	}
	if flags.NArg() == 0 {
		return managed(p, set)
	}
	return forwarding(p, set, flags.Arg(0), flags.Arg(1))
}

// forwarding serves without tor.
func forwarding(p *ptproc.Process, set settings, listen, forward string) int {
	config, err := set.logConfig()
	if err == nil {
		err = p.OpenLog(config)
	}
	if err == nil {
		err = checkForward(forward)
	}
	if err != nil {
		p.Say("%v", err)
		return 1
	}
	if set.tlsCert == "" && set.tlsKey == "" && set.acmeHostnames == "" {
		set.disableTLS = true
	}
	s, err := newService(set, dialForward(forward), p)
	if err != nil {
		p.Say("%v", err)
		return 1
	}
	if err := s.listen(listen); err != nil {
		s.close()
		p.Say("%v", err)
		return 1
	}
	if s.key == nil {
		p.Say("WARNING: without -state-dir the server has no key of its own; whoever finds it can use it, and whoever is in between can read along")
	} else {
		p.Say("clients need -key %s", s.key.Public())
	}
	p.Say("serving on %s, streams go to %s", s.ln.Addr(), forward)
	tellSystemd("READY=1")
	return s.serve()
}

// managed serves under tor.
func managed(p *ptproc.Process, set settings) int {
	if !ptproc.HasParent() {
		p.Say("not started by tor; without it, give LISTEN and FORWARD (-h explains)")
	}
	info, err := p.ServerSetup()
	if err != nil {
		p.Say("%v", err)
		return 1
	}
	pt.ReportVersion("turbotunnel-server", ptproc.Version())
	s, err := startManaged(p, set, info)
	if err != nil {
		p.SmethodError(method, err)
	} else if s != nil {
		args := pt.Args{}
		args.Add("key", s.key.Public())
		if s.set.url != "" {
			args.Add("url", s.set.url)
		}
		if s.set.fronts != "" {
			args.Add("fronts", s.set.fronts)
		}
		pt.SmethodArgs(method, s.ln.Addr(), args)
	}
	pt.SmethodsDone()
	switch {
	case err != nil:
		p.Say("%v", err)
		return 1
	case s == nil:
		p.Say("tor asked for no transport called %s", method)
		return 1
	}
	return s.serve()
}

// startManaged returns a service that listens where tor wants it, or nil when
// tor does not ask for the method.
func startManaged(p *ptproc.Process, set settings, info pt.ServerInfo) (*service, error) {
	for _, bind := range info.Bindaddrs {
		if bind.MethodName != method {
			continue
		}
		if err := set.apply(bind.Options); err != nil {
			return nil, err
		}
		config, err := set.logConfig()
		if err != nil {
			return nil, err
		}
		if err := p.OpenLog(config); err != nil {
			return nil, err
		}
		if set.stateDir == "" {
			set.stateDir = os.Getenv("TOR_PT_STATE_LOCATION")
		}
		if set.stateDir == "" {
			return nil, errors.New("no place for the server's key: tor names one in TOR_PT_STATE_LOCATION; else give -state-dir")
		}
		s, err := newService(set, dialOR(info), p)
		if err != nil {
			return nil, err
		}
		if err := s.listen(bind.Addr.String()); err != nil {
			s.close()
			return nil, err
		}
		if set.url == "" {
			p.Log().Log(context.Background(), ptproc.LevelNotice, "the published bridge line will lack url=, without which clients cannot use it: set -url, or url= in ServerTransportOptions")
		}
		return s, nil
	}
	return nil, nil
}

// A service is everything that serves.
type service struct {
	set     settings
	process *ptproc.Process
	key     *tunnel.Key    // nil: the well-known one
	trusted []netip.Prefix // proxies
	limits  budget
	memory  int64 // bytes that sessions may hold

	decoy    *decoy.Decoy
	tunnel   *tunnel.Server
	streams  *forwarder
	requests atomic.Uint64 // HTTP
	auto     *autoCertificate
	metrics  *metricsServer // nil: none
	web      *http.Server
	ln       net.Listener
	passed   net.Listener // nil: not from systemd; else below ln
	door     *door        // of ln
}

// newService checks set and makes what it asks for.
func newService(set settings, dial dialFunc, p *ptproc.Process) (made *service, err error) {
	s := &service{set: set, process: p, limits: newBudget(ptproc.DescriptorLimit())}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	log := p.Log()
	if set.drain != "" {
		d, err := ptproc.ParseDrainTime(set.drain)
		if err != nil {
			return nil, fmt.Errorf("-drain: %w", err)
		}
		p.SetDrainTime(d)
	}
	if s.limits.isSmall() {
		log.Warn("the limit of open files is low: raise it (ulimit -n, or LimitNOFILE= in a systemd unit)", "connections", s.limits.conns, "streams", s.limits.streams)
	}
	if s.trusted, err = parsePrefixes(set.trustedProxies); err != nil {
		return nil, err
	}
	if set.proxyProtocol && len(s.trusted) == 0 {
		return nil, errors.New("-proxy-protocol needs -trusted-proxies: a PROXY header is taken from these only")
	}
	if set.disableTLS && len(s.trusted) == 0 {
		log.Info("no proxy is trusted, so the clients of one in front cannot be told from each other, and have equal parts by session, or one part together: name it with -trusted-proxies")
	}
	if err := checkTLS(set); err != nil {
		return nil, err
	}
	memory, err := ptproc.MemoryLimit(set.memoryLimit, leastMemory)
	if err != nil {
		return nil, err
	}
	s.memory = memory
	ptproc.FitMemory()
	ptproc.RelaxTimers()
	// The placeholder page is as old as the server's key: neither the same on
	// every server nor new at every start.
	born := time.Now()
	publicKey := ""
	if set.stateDir != "" {
		if s.key, err = loadKey(set.stateDir); err != nil {
			return nil, err
		}
		removeLeftovers(set.stateDir)
		publicKey = s.key.Public()
		if info, err := os.Stat(filepath.Join(set.stateDir, keyFile)); err == nil {
			born = info.ModTime()
		}
	}
	config, err := s.tlsConfig()
	if err != nil {
		return nil, err
	}
	line := bridgeLine{url: set.url, fronts: set.fronts, key: publicKey}
	if err := line.check(); err != nil {
		return nil, err
	}
	if set.stateDir != "" {
		line.fingerprint = fingerprint(set.stateDir)
		// The file is for people only: a full disk keeps nobody from serving.
		if err := line.write(set.stateDir); err != nil {
			log.Warn("the file with the bridge line is missing or out of date", "err", err)
		}
	}
	if s.decoy, err = decoy.New(set.decoy, born, log); err != nil {
		return nil, fmt.Errorf("-decoy: %w", err)
	}
	var marks tunnel.Marks
	if set.stateDir != "" {
		marks = clockMarks{set.stateDir}
	}
	s.door = newDoor(nil, s.limits.conns, memory/webPart, log) // listen gives it its listener
	s.door.trusted, s.door.late = s.trusted, set.proxyProtocol
	s.tunnel = tunnel.NewServer(tunnel.ServerConfig{
		Key:            s.key,
		Marks:          marks,
		Decoy:          s.decoy,
		TrustedProxies: s.trusted,
		Streams:        s.limits.streams,
		Memory:         memory,
		Known:          isClients,
		Log:            log,
	})
	s.streams = newForwarder(func() (stream, error) {
		st, err := s.tunnel.Accept()
		if err != nil {
			return nil, err
		}
		return st, nil
	}, dial, s.limits, log)
	if set.metrics != "" {
		if s.metrics, err = newMetricsServer(p.Stopping(), set.metrics, s.listenTCP, s.register(), log); err != nil {
			return nil, err
		}
	}
	s.web = newWebServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		s.tunnel.ServeHTTP(w, r)
	}), config, log)
	return s, nil
}

// checkTLS tells whether the flags about TLS fit together.
func checkTLS(set settings) error {
	files := set.tlsCert != "" || set.tlsKey != ""
	switch {
	case set.disableTLS && (files || set.acmeHostnames != ""):
		return errors.New("-disable-tls and -tls-cert, -tls-key or -acme-hostnames contradict each other: give one kind only")
	case files && set.acmeHostnames != "":
		return errors.New("-tls-cert and -tls-key contradict -acme-hostnames: give one kind only")
	case set.acmeHostnames == "" && (set.acmeEmail != "" || set.acmeDirectory != ""):
		return errors.New("-acme-email and -acme-directory do nothing without -acme-hostnames: give that, too")
	case files && (set.tlsCert == "" || set.tlsKey == ""):
		return errors.New("-tls-cert and -tls-key belong together: give both")
	case !set.disableTLS && !files && set.acmeHostnames == "":
		return errors.New("TLS needs a certificate: give -tls-cert and -tls-key, or -acme-hostnames; behind a proxy that does TLS, give -disable-tls")
	}
	return nil
}

// tlsConfig reads the certificate, or makes ready to get one. It returns nil
// where there is no TLS.
func (s *service) tlsConfig() (*tls.Config, error) {
	switch {
	case s.set.disableTLS:
		return nil, nil
	case s.set.acmeHostnames != "":
		var err error
		if s.auto, err = newAutoCertificate(s.set, s.process.Log()); err != nil {
			return nil, err
		}
		return s.auto.tlsConfig(), nil
	}
	cert, err := newCertificate(s.set.tlsCert, s.set.tlsKey, s.process.Log())
	if err != nil {
		return nil, err
	}
	s.process.OnHangup(cert.reread)
	return cert.tlsConfig(), nil
}

// listen takes the address, or the socket from systemd.
func (s *service) listen(address string) error {
	var err error
	if address == systemdWord {
		s.passed, err = systemdListener()
		s.ln = s.passed
	} else {
		s.ln, err = s.listenTCP(address)
		err = explainListen(address, err)
	}
	if err != nil {
		s.ln = nil
		return err
	}
	if s.set.proxyProtocol {
		complaints := rate.Sometimes{First: complaintsFirst, Interval: complaintsInterval}
		s.ln = &proxyproto.Listener{
			Listener: s.ln,
			Trusted:  s.trusted,
			Timeout:  headerTimeout,
			Refused: func(err error) {
				complaints.Do(func() {
					s.process.Log().Warn("a trusted proxy's connection was refused: let the proxy send PROXY headers, or leave out -proxy-protocol", "err", err)
				})
			},
		}
	}
	s.door.Listener = s.ln
	return nil
}

// listenTCP takes an address, or without tor a Unix socket. When tor's configuration changes it starts a new
// server while the old one ends: under tor a port that is in use is waited for.
func (s *service) listenTCP(address string) (net.Listener, error) {
	p := s.process
	if !p.Managed() {
		return ptproc.Listen(address)
	}
	patience := p.DrainTime() + lingerTime
	return listenPatiently(p.Stopping(), address, patience, func() {
		p.Log().Warn("the port is in use, by a server that ends or by another program: waiting for it", ptproc.AddrKey, address, "limit", patience)
	})
}

// listenPatiently is net.Listen that waits for a port that is in use, until ctx
// ends. It calls waiting once when it has to.
func listenPatiently(ctx context.Context, address string, patience time.Duration, waiting func()) (net.Listener, error) {
	limit, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for told := false; ; told = true {
		ln, err := net.Listen("tcp", address)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return ln, err
		}
		if !told {
			waiting()
		}
		select {
		case <-time.After(portInterval):
		case <-limit.Done():
			return nil, err
		}
	}
}

// explainListen adds to an error of net.Listen what to do about it.
func explainListen(address string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cannot serve on %s: another program does; stop it or take another port: %w", address, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("cannot serve on %s: ports below 1024 need CAP_NET_BIND_SERVICE, see turbotunnel-server(1); or take a higher one: %w", address, err)
	}
	return fmt.Errorf("cannot serve on %s: %w", address, err)
}

// serve serves until the process shall stop, and returns its exit code.
func (s *service) serve() int {
	p := s.process
	var running sync.WaitGroup
	failed := make(chan error, 2)
	running.Go(func() {
		if err := serveWeb(s.web, s.door); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	})
	if s.metrics != nil {
		running.Go(func() {
			if err := s.metrics.serve(); err != nil {
				failed <- err
			}
		})
	}
	if s.auto != nil {
		// The certificate authority asks at the address that serves.
		host, _, err := net.SplitHostPort(s.ln.Addr().String())
		if err != nil {
			host = "" // a socket of another kind, from systemd
		}
		s.auto.start(net.JoinHostPort(host, challengePort), s.listenTCP, s.decoy)
	}
	running.Go(func() { s.streams.run(p.Draining()) })
	serving, stop := context.WithCancel(context.Background())
	running.Go(func() { ptproc.CollectGarbage(serving, s.memory, s.held) })
	running.Go(func() { summarize(serving, s.totals, p.Log()) })

	code := 0
	select {
	case err := <-failed:
		p.Say("cannot serve any longer: %v", err)
		code = 1
	case <-p.Stopping().Done():
		tellSystemd("STOPPING=1")
		idle := s.drain()
		p.Log().Info("stopping", "cause", context.Cause(p.Stopping()), "streams", s.streams.openStreams(), "limit", p.DrainTime())
		select {
		case <-idle:
			if s.tunnel.Shutdown(p.Draining()) != nil {
				p.Log().Warn("not everything that was written has reached its client")
			}
		case <-p.Draining().Done():
		}
	}
	s.close()
	stop()
	running.Wait()
	return code
}

// drain returns a channel that is closed when no stream is left. The web server
// goes on: it carries those that still run. Where systemd holds the socket,
// newcomers wait in it for the next server, and those who are here are served
// until none of them has a stream, instead of being refused for so long.
func (s *service) drain() <-chan struct{} {
	if s.passed == nil {
		return s.streams.drain()
	}
	s.door.rest(s.passed)
	return s.streams.drainOnceIdle()
}

// close ends everything that there is. Responses under way get a moment to
// arrive.
func (s *service) close() {
	if s.streams != nil {
		s.streams.drain()
	}
	if s.tunnel != nil {
		s.tunnel.Close()
	}
	if s.web != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		if s.web.Shutdown(ctx) != nil {
			s.web.Close()
		}
	}
	if s.auto != nil {
		s.auto.close()
	}
	if s.metrics != nil {
		s.metrics.close()
	}
	if s.decoy != nil {
		s.decoy.Close()
	}
	if s.ln != nil {
		s.ln.Close() // where serve was not reached
	}
}
