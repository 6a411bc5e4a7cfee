package tornet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"turbotunnel/test/proc"
)

// requestTimeout bounds one question to a node, which answers on loopback.
const requestTimeout = 10 * time.Second

// A node is one tor.
type node struct {
	name    string
	dir     string // tor's DataDirectory; torrc and logs stand in it as well
	id      string // fingerprint; clients have none
	orPort  int
	dirPort int

	proc    *proc.Process
	control *control
}

// noDefaults is an empty file in each node's folder, which tor reads instead of
// the system's defaults. tor takes no /dev/null.
const noDefaults = "no-defaults"

// newNode makes a node and its folder.
func newNode(root, name string) (*node, error) {
	nd := &node{name: name, dir: filepath.Join(root, name)}
	if err := os.MkdirAll(nd.dir, 0o700); err != nil {
		return nil, err
	}
	return nd, os.WriteFile(filepath.Join(nd.dir, noDefaults), nil, 0o600)
}

// run starts the node, whose torrc has been written, and makes the network
// its owner. Env is added to its environment.
func (n *Network) run(nd *node, env ...string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return fmt.Errorf("%s: the network is closed: %w", nd.name, net.ErrClosed)
	}
	cmd := exec.Command("tor", "--defaults-torrc", filepath.Join(nd.dir, noDefaults), "-f", filepath.Join(nd.dir, "torrc"))
	// A tor whose owner is gone ends, and its transport with it.
	cmd.Args = append(cmd.Args, "--__OwningControllerProcess", fmt.Sprint(os.Getpid()))
	cmd.Env = slices.Concat(os.Environ(), n.opts.Env, env)
	cmd.Dir = nd.dir
	p, err := proc.Start(nd.name, filepath.Join(nd.dir, "log"), cmd)
	if err != nil {
		return err
	}
	nd.proc = p
	n.nodes = append(n.nodes, nd)
	return nil
}

func (nd *node) stop() error {
	if nd.control != nil {
		nd.control.Close()
	}
	return nd.proc.Stop()
}

// write writes the node's torrc.
func (nd *node) write(authorities, lines []string) error {
	text := strings.Join(commonLines(nd.dir), "\n") + "\n" +
		strings.Join(authorities, "\n") + "\n" +
		strings.Join(lines, "\n") + "\n"
	return os.WriteFile(filepath.Join(nd.dir, "torrc"), []byte(text), 0o600)
}

// connect connects to the node's control port, which tor has chosen.
func (nd *node) connect(ctx context.Context) error {
	return nd.proc.Wait(ctx, "its control port", func() error {
		// PORT=127.0.0.1:12345
		text, err := os.ReadFile(filepath.Join(nd.dir, controlPortFile))
		if err != nil {
			return err
		}
		addr, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "PORT=")
		if !ok {
			return fmt.Errorf("%s holds %q", controlPortFile, text)
		}
		cookie, err := os.ReadFile(filepath.Join(nd.dir, "control_auth_cookie"))
		if err != nil {
			return err
		}
		nd.control, err = dialControl(ctx, addr, cookie)
		return err
	})
}

// logged tells whether the node's log has text.
func (nd *node) logged(text string) error {
	data, err := os.ReadFile(nd.proc.Log())
	if err != nil {
		return err
	}
	if !bytes.Contains(data, []byte(text)) {
		return errors.New("not logged yet")
	}
	return nil
}

// userAddr tells whether tor logged that a transport gave addr for a client.
func (nd *node) userAddr(addr netip.Addr) error {
	f, err := os.Open(filepath.Join(nd.dir, debugLog))
	if err != nil {
		return err
	}
	defer f.Close()
	var last string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		_, rest, ok := strings.Cut(lines.Text(), "Received USERADDR.")
		if !ok {
			continue
		}
		// We rewrite our address from '127.0.0.1:1234' to '192.0.2.1:1234'.
		last = rest
		// tor writes no brackets around an IPv6 address.
		_, to, _ := strings.Cut(rest, " to '")
		if port := strings.LastIndexByte(to, ':'); port > 0 {
			if got, err := netip.ParseAddr(strings.Trim(to[:port], "[]")); err == nil && got == addr {
				return nil
			}
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return fmt.Errorf("no such client; last USERADDR:%q", last)
}
