// Package tornet runs a private Tor network on loopback: three directory
// authorities, which are also its relays and exits, one bridge, and any number
// of clients, all of them the system's own tor.
//
// The pluggable transport is a parameter, so that the network can be proven
// with another transport, or with none.
package tornet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"turbotunnel/test/proc"
)

// Options say what network to start.
type Options struct {
	// Dir is an existing folder that takes the nodes' configuration, state
	// and logs. The caller removes it, or keeps it to read the logs.
	Dir string

	// Transport is the bridge's transport method, as in torrc. Empty: the
	// bridge has none.
	Transport string

	// ServerExec is the command line by which tor starts the bridge's
	// transport: an absolute path and arguments, no quoting.
	ServerExec string

	// ServerAddr is the host:port at which the transport listens. Empty: a
	// free port of 127.0.0.1.
	ServerAddr string

	// GeoIP maps networks to the two-letter country codes by which
	// [Network.ClientsSeen] counts clients.
	GeoIP map[netip.Prefix]string

	// LogUserAddr makes the bridge log what [Network.WaitUserAddr] looks for.
	LogUserAddr bool

	// Env is added to the environment of every tor, and so of every
	// transport: NAME=value.
	Env []string

	// Progress, if not nil, is told what happens. It is called by Start only.
	Progress func(text string)
}

// A Network is a running private Tor network.
// It is safe for concurrent use.
type Network struct {
	opts        Options
	authorities []*node
	bridge      *node
	bridgeAddr  string // of its transport, or of its ORPort without one
	bridgeID    string // fingerprint
	authLines   []string

	mu      sync.Mutex
	nodes   []*node // all that were started, guarded by mu
	clients int     // number of clients so far, guarded by mu
	closed  bool    // guarded by mu
}

// authorityCount is the smallest number of relays from which tor builds
// circuits of three hops that end at an exit.
const authorityCount = 3

// Start starts the network and returns when the bridge is ready for clients,
// about 12 s later, or with an error that shows the log that tells why not.
// A network that fails to start leaves nothing running.
func Start(ctx context.Context, opts Options) (*Network, error) {
	for _, program := range []string{"tor", "tor-gencert"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: install the Debian package tor", err)
		}
	}
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, err
	}
	opts.Dir = dir
	if opts.Progress == nil {
		opts.Progress = func(string) {}
	}
	n := &Network{opts: opts}
	if err := n.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("private Tor network: %w", err), n.Close())
	}
	return n, nil
}

func (n *Network) start(ctx context.Context) error {
	if err := n.prepare(ctx); err != nil {
		return err
	}
	if err := alignToVoting(ctx); err != nil {
		return err
	}
	for _, a := range n.authorities {
		if err := n.run(a); err != nil {
			return err
		}
	}
	n.opts.Progress("The directory authorities vote on their network. This takes 10 to 20 seconds.")
	for _, a := range n.authorities {
		err := a.proc.Wait(ctx, "a consensus with all relays", func() error { return a.consensus(ctx) })
		if err != nil {
			return err
		}
	}
	n.opts.Progress("The directory authorities agree on all three relays.")

	if err := n.run(n.bridge); err != nil {
		return err
	}
	return n.bridgeReady(ctx)
}

// prepare makes the keys and the configuration of all nodes but the clients.
func (n *Network) prepare(ctx context.Context) error {
	geoip, err := writeGeoIP(n.opts.Dir, n.opts.GeoIP)
	if err != nil {
		return err
	}
	const portsPerAuthority = 2
	ports, err := proc.FreePorts(authorityCount*portsPerAuthority + 2)
	if err != nil {
		return err
	}
	n.opts.Progress("Making the keys and the configuration of four tor nodes (the first time takes some seconds more).")
	keys, err := authorityKeys(ctx, n.opts.Dir, authorityCount)
	if err != nil {
		return fmt.Errorf("authority keys: %w", err)
	}
	for i, key := range keys {
		a, err := newNode(n.opts.Dir, fmt.Sprintf("a%d", i+1))
		if err != nil {
			return err
		}
		a.orPort, a.dirPort = ports[portsPerAuthority*i], ports[portsPerAuthority*i+1]
		if err := os.CopyFS(filepath.Join(a.dir, "keys"), os.DirFS(key.dir)); err != nil {
			return err
		}
		if a.id, err = fingerprint(ctx, a.dir); err != nil {
			return err
		}
		n.authLines = append(n.authLines, fmt.Sprintf("DirAuthority %s orport=%d v3ident=%s 127.0.0.1:%d %s",
			a.name, a.orPort, key.v3ident, a.dirPort, a.id))
		n.authorities = append(n.authorities, a)
	}
	for _, a := range n.authorities {
		if err := a.write(n.authLines, authorityLines(n.opts.Dir, a)); err != nil {
			return err
		}
	}

	b, err := newNode(n.opts.Dir, "bridge")
	if err != nil {
		return err
	}
	b.orPort = ports[len(ports)-2]
	if b.id, err = fingerprint(ctx, b.dir); err != nil {
		return err
	}
	n.bridge, n.bridgeID = b, b.id
	n.bridgeAddr = n.opts.ServerAddr
	if n.bridgeAddr == "" {
		n.bridgeAddr = fmt.Sprintf("127.0.0.1:%d", ports[len(ports)-1])
	}
	if n.opts.Transport == "" {
		n.bridgeAddr = n.ORAddr()
	}
	return b.write(n.authLines, bridgeLines(n.opts, b, geoip, n.bridgeAddr))
}

// votingInterval is TestingV3AuthInitialVotingInterval of the authorities.
const votingInterval = 5 * time.Second

// alignToVoting waits for the start of the authorities' next voting interval.
// They vote by the clock: one that starts in the middle of an interval misses
// a vote, and the consensus lacks a relay for the next ten seconds.
func alignToVoting(ctx context.Context) error {
	timer := time.NewTimer(time.Until(time.Now().Truncate(votingInterval).Add(votingInterval)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// consensusLimit bounds what is read of a consensus, in bytes. One of three
// relays has about 3 KB.
const consensusLimit = 1 << 20

// consensus tells whether the consensus that the authority serves has all
// authorities as running relays. With fewer the bridge would stop short of
// being ready.
func (a *node) consensus(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	url := fmt.Sprintf("http://127.0.0.1:%d/tor/status-vote/current/consensus", a.dirPort)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	req.Header.Set("Accept-Encoding", "identity") // tor calls gzip by a name that net/http does not know
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, consensusLimit))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("no consensus yet: %s", resp.Status)
	}
	running := 0
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "s ") && strings.Contains(line, " Running ") {
			running++
		}
	}
	if running != authorityCount {
		return fmt.Errorf("%d of %d relays in the consensus", running, authorityCount)
	}
	return nil
}

// bridgeReady waits until the bridge has what it needs to build circuits, and
// its transport listens.
func (n *Network) bridgeReady(ctx context.Context) error {
	b := n.bridge
	if err := b.connect(ctx); err != nil {
		return err
	}
	err := b.proc.Wait(ctx, "the bridge's directory", func() error {
		enough, err := b.control.info("status/enough-dir-info")
		if err == nil && enough != "1" {
			err = errors.New("not enough directory information")
		}
		return err
	})
	if err != nil || n.opts.Transport == "" {
		return err
	}
	return b.proc.Wait(ctx, "the bridge's transport", func() error {
		return b.logged("Registered server transport '" + n.opts.Transport + "'")
	})
}

// BridgeAddr is the host:port at which the bridge's transport listens, or the
// bridge itself when it has none.
func (n *Network) BridgeAddr() string { return n.bridgeAddr }

// BridgeLine reads the bridge line from the file in which the bridge's transport
// left it: "Bridge NAME ADDRESS FINGERPRINT key=value…", as it is, even where a
// transport leaves something to be filled in.
func (n *Network) BridgeLine(file string) (string, error) {
	name := filepath.Join(n.bridge.dir, "pt_state", file)
	text, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "Bridge ") {
			return line, nil
		}
	}
	return "", fmt.Errorf("%s has no bridge line: %q", name, text)
}

// BridgeArgs are the arguments of BridgeLine.
func (n *Network) BridgeArgs(file string) (string, error) {
	line, err := n.BridgeLine(file)
	if err != nil {
		return "", err
	}
	for _, who := range []string{n.bridgeID, "<FINGERPRINT>"} {
		if _, args, ok := strings.Cut(line, " "+who); ok {
			return strings.TrimSpace(args), nil
		}
	}
	return "", fmt.Errorf("a bridge line of another bridge than %s: %q", n.bridgeID, line)
}

// Processes are the ids of what runs now: the tors, and the programs of transports
// that they have started.
func (n *Network) Processes() (tors, transports []int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, nd := range n.nodes {
		for _, id := range nd.proc.Group() {
			if id == nd.proc.ID() {
				tors = append(tors, id)
			} else {
				transports = append(transports, id)
			}
		}
	}
	return tors, transports
}

// ORAddr is the host:port of the bridge itself, without its transport.
func (n *Network) ORAddr() string { return fmt.Sprintf("127.0.0.1:%d", n.bridge.orPort) }

// ExtORPort is the host:port of the bridge's Extended ORPort, and the file of
// its cookie: what a transport needs that the test starts itself.
func (n *Network) ExtORPort() (addr, cookieFile string, err error) {
	listeners, err := n.bridge.control.info("net/listeners/extor")
	if err != nil {
		return "", "", err
	}
	addr, err = strconv.Unquote(listeners)
	return addr, filepath.Join(n.bridge.dir, extORCookieFile), err
}

// ClientsSeen is how many clients the bridge has seen from each country of
// Options.GeoIP; tor rounds up to a multiple of eight.
func (n *Network) ClientsSeen() (map[string]int, error) {
	info, err := n.bridge.control.info("status/clients-seen")
	if err != nil {
		return nil, err
	}
	seen := map[string]int{}
	// TimeStarted="..." CountrySummary=us=16,de=8 IPVersions=v4=16,v6=8
	_, summary, ok := strings.Cut(info, "CountrySummary=")
	if !ok {
		return nil, fmt.Errorf("clients-seen without a country summary: %q", info)
	}
	summary, _, _ = strings.Cut(summary, " ")
	for _, part := range strings.FieldsFunc(summary, func(r rune) bool { return r == ',' }) {
		country, count, _ := strings.Cut(part, "=")
		if seen[country], err = strconv.Atoi(count); err != nil {
			return nil, fmt.Errorf("clients-seen: %w in %q", err, info)
		}
	}
	return seen, nil
}

// WaitUserAddr waits until the bridge has logged that its transport named addr
// as a client's address. It needs Options.LogUserAddr.
func (n *Network) WaitUserAddr(ctx context.Context, addr netip.Addr) error {
	return n.bridge.proc.Wait(ctx, "USERADDR "+addr.String(), func() error {
		return n.bridge.userAddr(addr)
	})
}

// BridgeTail is the end of the bridge's log, for a test that fails.
func (n *Network) BridgeTail() string { return n.bridge.proc.Tail() }

// Close ends every process of the network and returns when none is left.
// Closing again does nothing.
func (n *Network) Close() error {
	n.mu.Lock()
	n.closed = true
	nodes := n.nodes
	n.nodes = nil
	n.mu.Unlock()

	errs := make([]error, len(nodes))
	var ending sync.WaitGroup
	for i, node := range nodes {
		ending.Go(func() { errs[i] = node.stop() })
	}
	ending.Wait()
	return errors.Join(errs...)
}

// RestartBridge ends the bridge's tor, and its transport with it, and starts it
// again. It returns when clients can come.
func (n *Network) RestartBridge(ctx context.Context) error {
	if err := n.bridge.stop(); err != nil {
		return err
	}
	if err := n.run(n.bridge); err != nil {
		return err
	}
	if err := n.bridgeReady(ctx); err != nil {
		return err
	}
	return n.bridge.proc.Wait(ctx, "a listener on "+n.bridgeAddr, func() error { return proc.Listening(n.bridgeAddr) })
}
