package tornet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/net/proxy"
)

// ClientOptions say how a client reaches the bridge.
type ClientOptions struct {
	// Transport and Exec are the transport method and the command line by
	// which tor starts it. Empty: the client goes straight to Addr.
	Transport, Exec string

	// Addr is the address in the bridge line. Empty: [Network.BridgeAddr].
	Addr string

	// Args are the arguments in the bridge line: key=value, with spaces.
	Args string

	// Line is the whole bridge line. Empty: one is made of the above.
	Line string

	// Torrc are more lines of the client's torrc.
	Torrc []string

	// Env is added to the environment of the client, and so of its
	// transport, after Options.Env: NAME=value.
	Env []string
}

// A Client is a tor client of the network. It is safe for concurrent use.
type Client struct {
	node  *node
	socks string
}

// StartClient starts a tor client, which lives until its Stop or the network's
// Close. It does not wait for it to reach the bridge: see [Client.Bootstrap].
func (n *Network) StartClient(ctx context.Context, opts ClientOptions) (*Client, error) {
	n.mu.Lock()
	n.clients++
	name := fmt.Sprintf("client%d", n.clients)
	n.mu.Unlock()

	nd, err := newNode(n.opts.Dir, name)
	if err != nil {
		return nil, err
	}
	addr := opts.Addr
	if addr == "" {
		addr = n.bridgeAddr
	}
	if err := nd.write(n.authLines, clientLines(nd, opts, addr, n.bridgeID, opts.Args)); err != nil {
		return nil, err
	}
	if err := n.run(nd, opts.Env...); err != nil {
		return nil, err
	}
	c := &Client{node: nd}
	if err := c.ready(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// ready waits for the client's control port and learns its SOCKS port.
func (c *Client) ready(ctx context.Context) error {
	if err := c.node.connect(ctx); err != nil {
		return err
	}
	listeners, err := c.node.control.info("net/listeners/socks")
	if err != nil {
		return err
	}
	c.socks, err = strconv.Unquote(listeners)
	return err
}

// Bootstrap waits until the client is connected to the network through the
// bridge. Progress, if not nil, is told each new stage that tor reports: how
// far it is, of 100, and what it does.
func (c *Client) Bootstrap(ctx context.Context, progress func(percent int, what string)) error {
	last := -1
	return c.node.proc.Wait(ctx, "Bootstrapped 100 %", func() error {
		phase, err := c.node.control.info("status/bootstrap-phase")
		if err != nil {
			return err
		}
		// NOTICE BOOTSTRAP PROGRESS=5 TAG=conn SUMMARY="Connecting to a relay"
		_, rest, _ := strings.Cut(phase, "PROGRESS=")
		number, rest, _ := strings.Cut(rest, " ")
		percent, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("bootstrap phase %q", phase)
		}
		if percent > last && progress != nil {
			_, summary, _ := strings.Cut(rest, `SUMMARY="`)
			summary, _, _ = strings.Cut(summary, `"`)
			progress(percent, summary)
		}
		last = max(last, percent)
		if percent < 100 {
			return fmt.Errorf("at %d %%", percent)
		}
		return nil
	})
}

// SOCKS is the host:port of the client's SOCKS proxy.
func (c *Client) SOCKS() string { return c.socks }

// DialContext connects through the client, as [net.Dialer.DialContext] does.
func (c *Client) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	d, err := proxy.SOCKS5("tcp", c.socks, nil, nil)
	if err != nil {
		return nil, err
	}
	return d.(proxy.ContextDialer).DialContext(ctx, network, addr)
}

// Tail is the end of the client's log, for a test that fails.
func (c *Client) Tail() string { return c.node.proc.Tail() }

// Stop ends the client and its transport.
func (c *Client) Stop() error { return c.node.stop() }
