// Package e2e tests both programs from outside: with a real Tor network, real
// proxies, and the programs that people put at the ends of a tunnel.
package e2e

import (
	"net"
	"os"
	"testing"
	"time"

	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
)

func TestMain(m *testing.M) { os.Exit(programs.Main(m)) }

// runServer starts the server in forwarding mode and returns its address.
func runServer(t *testing.T, forward string, flags ...string) (string, *proc.Process) {
	t.Helper()
	addr := programs.Addr(t)
	return addr, programs.StartServer(t, addr, forward, flags...)
}

// runClient starts the client in forwarding mode and returns its address.
func runClient(t *testing.T, url string, flags ...string) (string, *proc.Process) {
	t.Helper()
	c := programs.StartClient(t, url, nil, flags...)
	return c.Addr, c.Process
}

// dial connects to addr. A read or write that hangs fails after programs.WaitLimit.
func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, programs.WaitLimit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(programs.WaitLimit)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}
