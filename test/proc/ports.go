package proc

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Ports from firstPort to lastPort are handed out by FreePorts. They lie below
// the range from which Linux takes the ports of outgoing connections (32768 to
// 60999, ip_local_port_range in ip(7)), so none is taken by one of those
// between FreePorts and the program that listens on it.
const (
	firstPort = 10000
	lastPort  = 32000
)

// FreePorts returns n different TCP ports on which nobody listens on
// 127.0.0.1. Who asks next, in this process or in another one of this user, gets
// later ones, and those again only after all others: between FreePorts and the
// program that listens nobody holds them, and nobody tries whether they are free,
// which Listening would take for the program.
func FreePorts(n int) ([]int, error) {
	name := filepath.Join(os.TempDir(), fmt.Sprintf("turbotunnel-test-ports-%d", os.Getuid()))
	last, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer last.Close() // which unlocks it
	if err := unix.Flock(int(last.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	port := lastGiven(last)
	var ports []int
	for range lastPort - firstPort + 1 {
		if len(ports) == n {
			break
		}
		if port++; port > lastPort {
			port = firstPort
		}
		if l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			ports = append(ports, port)
		}
	}
	if len(ports) < n {
		return nil, fmt.Errorf("no %d free ports on 127.0.0.1 from %d to %d", n, firstPort, lastPort)
	}
	if err := last.Truncate(0); err != nil {
		return nil, err
	}
	if _, err := last.WriteAt([]byte(strconv.Itoa(port)), 0); err != nil {
		return nil, err
	}
	return ports, nil
}

// lastGiven is the port that was handed out last: what the file says, or any where
// it says nothing, as in a folder of temporary files that is new.
func lastGiven(file *os.File) int {
	text, err := io.ReadAll(io.LimitReader(file, 16))
	if err == nil {
		port, err := strconv.Atoi(string(text))
		if err == nil && firstPort <= port && port <= lastPort {
			return port
		}
	}
	return firstPort + rand.IntN(lastPort-firstPort+1)
}

// FreeAddrs is FreePorts, as host:port.
func FreeAddrs(n int) ([]string, error) {
	ports, err := FreePorts(n)
	if err != nil {
		return nil, err
	}
	addrs := make([]string, n)
	for i, port := range ports {
		addrs[i] = fmt.Sprintf("127.0.0.1:%d", port)
	}
	return addrs, nil
}

// Listening returns nil when somebody listens on the TCP port of addr, an IPv4
// host:port. It does not connect: that would make it the listener's first
// client.
func Listening(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		// proc_net_tcp(5): number, local address:port, remote, state; 0A is
		// listening.
		text, err := os.ReadFile(table)
		if err != nil {
			continue // a kernel without IPv6 has no tcp6
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) > 3 && fields[3] == "0A" && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", number)) {
				return nil
			}
		}
	}
	return fmt.Errorf("nobody listens on %s", addr)
}
