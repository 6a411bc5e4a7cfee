package proc

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
)

// Ports from firstPort to lastPort are handed out by FreePorts. They lie below
// the range from which Linux takes the ports of outgoing connections (32768 to
// 60999, ip_local_port_range in ip(7)), so none is taken by one of those
// between FreePorts and the program that listens on it.
const (
	firstPort = 10000
	lastPort  = 32000
)

// reserved are the ports that this process has handed out, by the sockets that keep
// other processes from them: they have names in Linux's abstract space (unix(7)), which
// are one process's each and leave no file.
var reserved struct {
	sync.Mutex
	sockets map[int]net.Listener
}

// reserve makes a port this process's for as long as it runs.
func reserve(port int) bool {
	reserved.Lock()
	defer reserved.Unlock()
	l, err := net.Listen("unix", fmt.Sprintf("@turbotunnel-test-port-%d", port))
	if err != nil {
		return false
	}
	if reserved.sockets == nil {
		reserved.sockets = make(map[int]net.Listener)
	}
	reserved.sockets[port] = l // not closed by the collector
	return true
}

// FreePorts returns n different TCP ports on which nobody listens on
// 127.0.0.1. No port is handed out twice, nor by two processes: between FreePorts and
// the program that listens nobody holds it, and nobody tries whether it is free, which
// Listening would take for the program.
func FreePorts(n int) ([]int, error) {
	var ports []int
	for range 100*n + 1 {
		if len(ports) == n {
			return ports, nil
		}
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if !reserve(port) {
			continue
		}
		if l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			ports = append(ports, port)
		}
	}
	return nil, fmt.Errorf("no %d free ports on 127.0.0.1 from %d to %d", n, firstPort, lastPort)
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
