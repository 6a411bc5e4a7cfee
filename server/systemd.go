package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
)

// systemdWord stands for LISTEN where the socket comes from systemd.
const systemdWord = "systemd"

// firstPassed is the descriptor of the first socket that systemd passes
// (SD_LISTEN_FDS_START, sd_listen_fds(3)).
const firstPassed = 3

// systemdListener returns the socket that systemd has passed. systemd keeps it
// open and bound over restarts of this program: connections wait meanwhile.
func systemdListener() (net.Listener, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name) // not for programs that this one starts
	}
	if pid != strconv.Itoa(os.Getpid()) || count == "" {
		return nil, errors.New("systemd has passed no socket: start this program by a .service that has a .socket beside it, or give host:port")
	}
	if count != "1" {
		return nil, fmt.Errorf("systemd has passed %s sockets, and this program serves on one: leave one ListenStream= in the .socket", count)
	}
	syscall.CloseOnExec(firstPassed)
	file := os.NewFile(firstPassed, "socket from systemd")
	defer file.Close() // FileListener has its own
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("systemd has passed no listening stream socket (want ListenStream= and Accept=no in the .socket): %w", err)
	}
	return ln, nil
}

// tellSystemd says state ("READY=1", "STOPPING=1") to the service manager, if
// there is one that wants to know (sd_notify(3)). A manager that does not
// listen is its own affair.
func tellSystemd(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	// A name that begins with @ is an abstract one for package net as well.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte(state)) //nolint:errcheck // likewise
}
