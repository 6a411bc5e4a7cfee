package deploy

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// TestPackagedUnits: the units of the Debian package are those of the guide but for
// the paths, who the user is, and where the settings stand.
func TestPackagedUnits(t *testing.T) {
	for name, own := range map[string][2][]string{
		"turbotunnel.service": {
			{
				"Documentation=man:turbotunnel-server(1)", "EnvironmentFile=/etc/default/turbotunnel", "User=turbotunnel",
				"ExecStart=/usr/bin/turbotunnel-server -state-dir /var/lib/turbotunnel $OPTIONS systemd ${FORWARD}",
			},
			{
				"DynamicUser=yes",
				"ExecStart=/usr/local/bin/turbotunnel-server -state-dir /var/lib/turbotunnel -acme-hostnames www.example.com systemd 127.0.0.1:22",
			},
		},
		"turbotunnel.socket": {},
	} {
		packaged, err := os.ReadFile(filepath.Join(programs.Root, "deploy", "debian", name))
		if err != nil {
			t.Fatal(err)
		}
		printed := guide.Printed(t, "deploy-systemd.md", "/etc/systemd/system/"+name)
		got, want := settingsOf(string(packaged)), settingsOf(printed)
		if extra := without(got, append(want, own[0]...)); len(extra) > 0 {
			t.Errorf("%s has what the guide does not print: %q", name, extra)
		}
		if missing := without(want, append(got, own[1]...)); len(missing) > 0 {
			t.Errorf("%s lacks what the guide prints: %q", name, missing)
		}
	}
}

// settingsOf are the lines of a unit that set something, and the titles.
func settingsOf(unit string) (lines []string) {
	for line := range strings.Lines(unit) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

// without returns the lines that are not among the known ones.
func without(lines, known []string) (left []string) {
	for _, line := range lines {
		if !slices.Contains(known, line) {
			left = append(left, line)
		}
	}
	return left
}
