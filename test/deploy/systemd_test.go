package deploy

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"turbotunnel/test/guide"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
)

// TestSystemdUnits: systemd reads the units without complaint, finds little
// that the service could do beyond its task, and the command in them serves on
// a socket that is passed, and again after a restart.
func TestSystemdUnits(t *testing.T) {
	dir := programs.Folder(t)
	const installed = "/usr/local/bin/turbotunnel-server"
	socket := guide.Printed(t, "deploy-systemd.md", "/etc/systemd/system/turbotunnel.socket")
	service := guide.Adapt(t, guide.Printed(t, "deploy-systemd.md", "/etc/systemd/system/turbotunnel.service"), installed, programs.Server)
	units := []string{filepath.Join(dir, "turbotunnel.socket"), filepath.Join(dir, "turbotunnel.service")}
	programs.Write(t, units[0], socket)
	programs.Write(t, units[1], service)
	if out, err := exec.Command("systemd-analyze", append([]string{"verify"}, units...)...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// In tenths, of 10 for a service without any hardening.
	const exposed = "15"
	if out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold="+exposed, units[1]).CombinedOutput(); err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}

	_, command, _ := strings.Cut(service, "ExecStart=")
	command, _, _ = strings.Cut(command, "\n")
	to := startTarget(t)
	state := programs.Folder(t)
	command = guide.Adapt(t, command,
		"/var/lib/turbotunnel", state,
		// There is no authority for the name here: the guide's alternative.
		"-acme-hostnames www.example.com", "-trusted-proxies 127.0.0.1",
		"127.0.0.1:22", to.Addr(),
	)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := ln.Addr().String()
	file, err := ln.(*net.TCPListener).File()
	ln.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	run := func() *proc.Process {
		cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec "+command)
		cmd.ExtraFiles = []*os.File{file}
		p := programs.Start(t, cmd)
		programs.Logged(t, p, "serving on "+listen)
		return p
	}
	server := run()
	c := startClient(t, os.DevNull, fmt.Sprintf("http://%s/", listen), "-key", programs.Key(t, state))
	move(t, to, c, size, nil)

	// A restart. The socket stays, and takes connections meanwhile.
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := proc.Listening(listen); err != nil {
		t.Error(err)
	}
	run()
	programs.Await(t, "a stream through the new server", func() error {
		return to.Download(t.Context(), c.HTTP, 1, size, io.Discard)
	})
}
