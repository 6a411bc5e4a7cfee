package ptproc

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A Unix socket that was left behind is replaced; one that is served, and a file of
// another kind, are not.
func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	ln, err := Listen("unix:" + path)
	if err != nil {
		t.Fatalf("beside a socket that was left behind: %v", err)
	}
	if _, err := Listen("unix:" + path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("beside one that is served: %v", err)
	}
	if _, err := Listen("unix:"); err == nil {
		t.Error("without a path")
	}
	network, addr := Network("unix:" + path)
	client, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.RemoteAddr().String(); got != "127.0.0.1:0" {
		t.Errorf("who connects is %s", got)
	}
	ln.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}

	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:" + path); err == nil {
		t.Error("a file was replaced")
	}
	if text, err := os.ReadFile(path); string(text) != "content" {
		t.Errorf("the file has %q, %v", text, err)
	}
}
