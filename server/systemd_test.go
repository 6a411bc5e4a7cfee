package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// activated is the server as systemd starts it, with sockets as its descriptors 3 and
// up. LISTEN_PID is the program's own: the shell becomes it.
func activated(sockets []*os.File, args ...string) *exec.Cmd {
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec turbotunnel-server "$@"`, "sh"}, args...)...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(sockets)))
	cmd.ExtraFiles = sockets
	return cmd
}

// startActivated starts it so.
func startActivated(t *testing.T, env []string, sockets []*os.File, args ...string) *program {
	t.Helper()
	cmd := activated(sockets, args...)
	cmd.Env = append(cmd.Env, env...)
	return launch(t, cmd)
}

// socketFile is what systemd keeps: a listening socket and its address.
func socketFile(t *testing.T) (*os.File, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file, ln.Addr().String()
}

// A client that comes while the server is restarted waits, and is served. The
// manager hears when it is ready and when it stops.
func TestSocketActivation(t *testing.T) {
	address := destination(t, func(c *net.TCPConn) { io.Copy(c, c) })
	socket, addr := socketFile(t)
	notify := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	_ = manager.SetReadDeadline(time.Now().Add(2 * patience))
	heard := func() string {
		t.Helper()
		buf := make([]byte, 100)
		n, err := manager.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	dir := t.TempDir()
	run := func() *program {
		t.Helper()
		p := startActivated(t, []string{"NOTIFY_SOCKET=" + notify}, []*os.File{socket}, "-state-dir", dir, "systemd", address)
		p.said(`serving on ` + addr)
		if got := heard(); got != "READY=1" {
			t.Errorf("the manager heard %q", got)
		}
		return p
	}
	echo := func(key string) {
		t.Helper()
		s := dial(t, dialer(t, addr, key))
		io.WriteString(s, "hello")
		s.CloseWrite()
		if got, err := io.ReadAll(s); err != nil || string(got) != "hello" {
			t.Errorf("%q came back: %v", got, err)
		}
	}
	p := run()
	key := p.said(`clients need -key (\S+)`)
	echo(key)

	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if got := heard(); got != "STOPPING=1" {
		t.Errorf("the manager heard %q", got)
	}
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d; stderr:\n%s", code, p.stderr)
	}
	early, err := net.Dial("tcp", addr) // nobody serves now
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	io.WriteString(early, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

	run()
	_ = early.SetReadDeadline(time.Now().Add(patience))
	if answer, err := io.ReadAll(early); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
		t.Errorf("who came between the two got %q, %v", answer, err)
	}
	echo(key)
}

// While the old server drains, newcomers wait in the socket, and those who have a
// session are served. The log and the certificate are read again at SIGHUP, which
// ends nothing.
func TestDrainWithSocket(t *testing.T) {
	address := destination(t, func(c *net.TCPConn) { io.Copy(c, c) })
	socket, addr := socketFile(t)
	dir := t.TempDir()
	old := startActivated(t, nil, []*os.File{socket}, "-state-dir", dir, "systemd", address)
	old.said(`serving on ` + addr)
	key := old.said(`clients need -key (\S+)`)
	_ = old.cmd.Process.Signal(syscall.SIGHUP)
	d := dialer(t, addr, key)
	echo := func(s net.Conn) {
		t.Helper()
		_ = s.SetDeadline(time.Now().Add(patience))
		io.WriteString(s, "hello")
		if _, err := io.ReadFull(s, make([]byte, 5)); err != nil {
			t.Error(err)
		}
	}
	kept := dial(t, d)
	echo(kept)
	_ = old.cmd.Process.Signal(syscall.SIGTERM)
	old.said(`stopping .*streams=1`)
	another := dial(t, d)
	echo(another)
	early, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	io.WriteString(early, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	echo(kept)
	kept.Close()
	another.Close()
	if code := old.exit(); code != 0 {
		t.Errorf("exit code %d; stderr:\n%s", code, old.stderr)
	}
	startActivated(t, nil, []*os.File{socket}, "-state-dir", dir, "systemd", address)
	_ = early.SetReadDeadline(time.Now().Add(patience))
	if answer, err := io.ReadAll(early); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
		t.Errorf("who came while the old one drained got %q, %v", answer, err)
	}
}

// What a service manager can get wrong is said, and nothing is served.
func TestBadSocketActivation(t *testing.T) {
	socket, _ := socketFile(t)
	other, _ := socketFile(t)
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	datagrams, err := udp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	for _, c := range []struct {
		sockets []*os.File
		want    string
	}{
		{nil, "systemd has passed 0 sockets"},
		{[]*os.File{socket, other}, "systemd has passed 2 sockets"},
		{[]*os.File{datagrams}, "no listening stream socket"},
	} {
		p := startActivated(t, nil, c.sockets, "systemd", "127.0.0.1:1")
		p.said(c.want)
		if code := p.exit(); code != 1 {
			t.Errorf("%s: exit code %d", c.want, code)
		}
	}
}

// Sockets that were passed to another process are not this one's.
func TestForeignSockets(t *testing.T) {
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "1")
	if ln, err := systemdListener(); err == nil {
		ln.Close()
		t.Error("took a socket that was not passed to it")
	}
	if os.Getenv("LISTEN_FDS") != "" {
		t.Error("LISTEN_FDS is handed on")
	}
}

// A manager that has gone costs nothing.
func TestTellNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	tellSystemd("READY=1")
	t.Setenv("NOTIFY_SOCKET", "")
	tellSystemd("READY=1")
}
