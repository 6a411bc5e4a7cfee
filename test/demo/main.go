// Demo shows the tunnel at work to somebody who has just arrived: a private Tor
// network on this machine, its bridge behind turbotunnel-server and a CDN, a
// client that reaches it through turbotunnel-client, and what comes through.
//
// It installs tor where it may, and shows the tunnel without Tor where it
// cannot. Whatever happens, it ends what it started and removes what it wrote.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/test/cdn"
	"turbotunnel/test/proc"
	"turbotunnel/test/target"
	"turbotunnel/test/tornet"
)

const (
	// size is what goes through the tunnel, in bytes.
	size = 20e6

	// limit bounds the demo, which takes about half a minute, once what it needs is
	// installed and built: that may take long on a small machine the first time.
	limit = 5 * time.Minute

	// publicURL is the server's URL as its CDN knows it.
	publicURL = "https://" + cdn.Origin + "/path"

	// clientAddress is what the CDN says of where its clients come from.
	clientAddress = "192.0.2.7"
)

func main() {
	// Only the first signal is caught: a second one ends the program at once,
	// and the kernel then ends what it started.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop)
	d := &demo{show: newShow(os.Stdout)}
	err := d.run(ctx)
	switch {
	case ctx.Err() != nil:
		d.show.line("Interrupted. Everything that was started has ended, and its files are gone.")
		os.Exit(130) // as a shell tells of SIGINT
	case err != nil:
		d.show.line("The demo failed: %v", err)
		os.Exit(1)
	}
	d.show.line("Done. Everything that was started has ended, and its files are gone.")
}

// A demo is one run.
type demo struct {
	show *show
	dir  string
	ca   string // file name

	client, server string // the programs
}

func (d *demo) run(ctx context.Context) (err error) {
	withTor := d.needTor(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if d.dir, err = os.MkdirTemp("", "turbotunnel-demo"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	d.ca = filepath.Join(d.dir, "ca.pem")
	if err := d.build(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %v: is this machine busy?", limit))
	defer cancel()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
	}()
	web, err := target.Start()
	if err != nil {
		return err
	}
	defer web.Close()
	if withTor {
		return d.tor(ctx, web)
	}
	return d.forward(ctx, web)
}

// hasTor tells whether what the private network needs is here.
func hasTor() bool {
	_, err1 := exec.LookPath("tor")
	_, err2 := exec.LookPath("tor-gencert")
	return err1 == nil && err2 == nil
}

// needTor tells whether tor is here, after trying to install it.
func (d *demo) needTor(ctx context.Context) bool {
	if hasTor() {
		return true
	}
	d.show.line("tor is not installed. Trying to install the Debian package tor:")
	install := exec.CommandContext(ctx, "test/install.sh", "tor")
	// The group of its own keeps Ctrl-C from apt-get, which ctx ends instead.
	install.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	install.Cancel = func() error { return syscall.Kill(-install.Process.Pid, syscall.SIGTERM) }
	install.Stdout, install.Stderr = os.Stdout, os.Stdout
	if err := install.Run(); err != nil || !hasTor() {
		d.show.line("tor cannot be installed here. What follows is the tunnel without Tor, in forwarding mode.")
		return false
	}
	return true
}

func (d *demo) build(ctx context.Context) error {
	d.show.line("Building turbotunnel-client and turbotunnel-server.")
	d.client = filepath.Join(d.dir, "turbotunnel-client")
	d.server = filepath.Join(d.dir, "turbotunnel-server")
	for program, pkg := range map[string]string{d.client: "./client", d.server: "./server"} {
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, pkg).CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
		}
	}
	return nil
}

// front starts the CDN before the server at origin.
func (d *demo) front(origin string) (*cdn.CDN, error) {
	c, err := cdn.Start(cdn.Config{Origin: origin, Client: clientAddress, CAFile: d.ca})
	if err != nil {
		return nil, err
	}
	d.show.line("A CDN listens on %s. It speaks TLS as %s, and passes requests for %s on to the server.",
		c.Addr(), cdn.Front, cdn.Origin)
	return c, nil
}

// saw tells what the CDN has seen of the tunnel.
func (d *demo) saw(c *cdn.CDN) {
	seen := c.Seen()
	if len(seen) == 0 {
		return
	}
	r := seen[len(seen)-1]
	d.show.line("A censor before the CDN saw: TLS connections to %s. The CDN saw: %d requests by %s for %s, the last for %s.",
		r.SNI, len(seen), r.Proto, r.Host, r.Path)
}

// tor shows a private Tor network.
func (d *demo) tor(ctx context.Context, web *target.Server) (err error) {
	d.show.line("Starting a private Tor network on 127.0.0.1: three directory authorities, which are its relays as well, and a bridge.")
	network, err := tornet.Start(ctx, tornet.Options{
		Dir:        d.dir,
		Transport:  "turbo",
		ServerExec: d.server + " -disable-tls -trusted-proxies 127.0.0.1/32 -url " + publicURL,
		Env:        []string{"SSL_CERT_FILE=" + d.ca},
		Progress:   func(text string) { d.show.line("%s", text) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, network.Close()) }()
	d.show.line("The bridge is up. turbotunnel-server serves HTTP on %s for it.", network.BridgeAddr())

	c, err := d.front(network.BridgeAddr())
	if err != nil {
		return err
	}
	defer c.Close()
	args, err := network.BridgeArgs("turbo_bridgeline.txt")
	if err != nil {
		return err
	}
	args += fmt.Sprintf(" front=%s addr=%s engine=%s", cdn.Front, c.Addr(), engines.Default)
	d.show.line("Starting a tor client with the bridge line: Bridge turbo 192.0.2.3:80 FINGERPRINT %s", args)
	client, err := network.StartClient(ctx, tornet.ClientOptions{
		Transport: "turbo",
		Exec:      d.client,
		Addr:      "192.0.2.3:80", // means nothing to the transport
		Args:      args,
	})
	if err != nil {
		return err
	}
	err = client.Bootstrap(ctx, func(percent int, what string) {
		d.show.line("tor through the tunnel: %3d %% %s", percent, what)
	})
	if err != nil {
		return err
	}
	if err := d.traffic(ctx, web, "tor and the tunnel", client.DialContext); err != nil {
		return err
	}
	d.saw(c)

	d.show.line("For comparison, a tor client that goes to the same bridge without the tunnel:")
	plain, err := network.StartClient(ctx, tornet.ClientOptions{Addr: network.ORAddr()})
	if err != nil {
		return err
	}
	if err := plain.Bootstrap(ctx, nil); err != nil {
		return err
	}
	return d.traffic(ctx, web, "tor alone", plain.DialContext)
}

// forward shows forwarding mode.
func (d *demo) forward(ctx context.Context, web *target.Server) (err error) {
	addrs, err := proc.FreeAddrs(2)
	if err != nil {
		return err
	}
	serverAddr, clientAddr := addrs[0], addrs[1]
	d.show.line("Starting turbotunnel-server %s %s: it serves HTTP on the first address, and connects each stream to the second, a small web server.",
		serverAddr, web.Addr())
	server, err := d.start(ctx, serverAddr, exec.Command(d.server, serverAddr, web.Addr()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()

	c, err := d.front(serverAddr)
	if err != nil {
		return err
	}
	defer c.Close()
	args := []string{"-engine", engines.Default, "-front", cdn.Front, "-addr", c.Addr(), clientAddr, publicURL}
	d.show.line("Starting turbotunnel-client %s: what connects to %s goes through the tunnel.", strings.Join(args, " "), clientAddr)
	client, err := d.start(ctx, clientAddr, exec.Command(d.client, args...))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Stop()) }()

	dial := (&net.Dialer{}).DialContext
	err = d.traffic(ctx, web, "the tunnel", func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dial(ctx, network, clientAddr)
	})
	if err != nil {
		return fmt.Errorf("%w\n%s\n%s", err, client.Tail(), server.Tail())
	}
	d.saw(c)
	return d.traffic(ctx, web, "loopback alone", dial)
}

// start starts one of the programs, and waits until it listens on addr.
func (d *demo) start(ctx context.Context, addr string, cmd *exec.Cmd) (*proc.Process, error) {
	cmd.Env = append(cmd.Environ(), "SSL_CERT_FILE="+d.ca)
	name := filepath.Base(cmd.Path)
	return proc.StartServing(ctx, name, filepath.Join(d.dir, name+".log"), cmd, addr)
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// traffic moves a page and size bytes each way, checked byte by byte.
func (d *demo) traffic(ctx context.Context, web *target.Server, through string, dial dialFunc) error {
	transport := &http.Transport{DialContext: dial}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	start := time.Now()
	if err := web.Get(ctx, client); err != nil {
		return fmt.Errorf("a page through %s: %w", through, err)
	}
	d.show.line("A web page came through %s in %d ms.", through, time.Since(start).Milliseconds())

	for _, way := range []struct {
		name string
		move func(context.Context, *http.Client, uint64, int64, io.Writer) error
	}{
		{"Down", web.Download},
		{"Up", web.Upload},
	} {
		meter := d.show.meter(way.name+" through "+through, size)
		if err := way.move(ctx, client, 1, size, meter); err != nil {
			meter.cut()
			return fmt.Errorf("%s through %s: %w", strings.ToLower(way.name), through, err)
		}
		meter.end()
	}
	return nil
}
