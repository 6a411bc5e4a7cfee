package ptproc

import (
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
)

// unixPrefix is before the path of a Unix socket where an address is expected.
const unixPrefix = "unix:"

// Network returns what net.Dial and net.Listen take for an address that a user gave:
// host:port of TCP, or unix: and the path of a Unix socket.
func Network(address string) (network, addr string) {
	if path, ok := strings.CutPrefix(address, unixPrefix); ok {
		return "unix", path
	}
	return "tcp", address
}

// Listen listens on what Network makes of an address. A Unix socket that a program
// left behind which was killed is removed; one that somebody serves is in use. Whoever
// connects to a Unix socket is of this machine: his address is said to be 127.0.0.1.
func Listen(address string) (net.Listener, error) {
	network, addr := Network(address)
	if network == "unix" && addr == "" { // the system would make up a name that nobody knows
		return nil, &net.AddrError{Err: "no path", Addr: address}
	}
	ln, err := net.Listen(network, addr)
	if network == "tcp" {
		return ln, err
	}
	if errors.Is(err, syscall.EADDRINUSE) && isAbandoned(addr) && os.Remove(addr) == nil {
		ln, err = net.Listen(network, addr)
	}
	if err != nil {
		return nil, err
	}
	return localListener{ln.(*net.UnixListener)}, nil
}

// isAbandoned tells whether path is a socket that nobody serves.
func isAbandoned(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// A localListener is one of a Unix socket, whose connections come from 127.0.0.1.
type localListener struct{ *net.UnixListener }

func (l localListener) Accept() (net.Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return LocalConn{c}, nil
}

// A LocalConn is a connection of a Unix socket that was accepted.
type LocalConn struct{ *net.UnixConn }

// RemoteAddr is 127.0.0.1.
func (LocalConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }
