package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"turbotunnel/test/proc"
)

// printed returns the file called name that a guide in doc/ prints: the block
// of code whose first line is a comment of that name.
func printed(t *testing.T, guide, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "doc", guide))
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range strings.Split(string(text), "```") {
		if i%2 == 0 {
			continue // between two blocks
		}
		_, code, _ := strings.Cut(part, "\n")
		first, _, _ := strings.Cut(code, "\n")
		if first == "# "+name {
			return code
		}
	}
	t.Fatalf("%s prints no file %s", guide, name)
	return ""
}

// adapt replaces in a file what differs on this machine: pairs of what stands
// there and what shall. A text that does not stand there fails the test.
func adapt(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%q does not stand in\n%s", pairs[i], text)
		}
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// nginxMain is what a system's nginx.conf has around a file of
// sites-available.
const nginxMain = `
daemon off;
worker_processes 1;
worker_shutdown_timeout 1s;
error_log error.log;
pid nginx.pid;
events { worker_connections 1024; }
http {
	access_log access.log;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	include site;
}
`

// startNginx starts nginx in dir with this configuration.
func startNginx(t *testing.T, dir, listen, text string) *proc.Process {
	t.Helper()
	if os.Getuid() == 0 {
		text = "user root;\n" + text // the folder is closed to others
	}
	write(t, filepath.Join(dir, "nginx.conf"), text)
	// Debian has it where a bare PATH does not look.
	return listens(t, listen, exec.Command("nginx", "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log")))
}

// writeHaproxy writes haproxy.cfg into dir. Old workers end within a second
// after a reload.
func writeHaproxy(t *testing.T, dir, text string) {
	t.Helper()
	write(t, filepath.Join(dir, "haproxy.cfg"), adapt(t, text, "global\n", "global\n\thard-stop-after 1s\n"))
}

// haproxy is haproxy with the configuration in dir: a master, which starts new
// workers at SIGUSR2.
func haproxy(dir string) *exec.Cmd {
	cmd := exec.Command("haproxy", "-W", "-db", "-f", filepath.Join(dir, "haproxy.cfg"))
	cmd.Dir = dir
	return cmd
}

// startHaproxy starts haproxy in dir with this configuration.
func startHaproxy(t *testing.T, dir, listen, text string) *proc.Process {
	t.Helper()
	writeHaproxy(t, dir, text)
	return listens(t, listen, haproxy(dir))
}
