// Package guide runs nginx and haproxy with the files that the guides in doc/
// print, so that what is tested is what is recommended.
package guide

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"turbotunnel/test/cdn"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
)

// Printed returns the file called name that a guide in doc/ prints: the block
// of code whose first line is a comment of that name. In a list it is indented.
func Printed(t *testing.T, guide, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(programs.Root, "doc", guide))
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range strings.Split(string(text), "```") {
		if i%2 == 0 {
			continue // between two blocks
		}
		_, code, _ := strings.Cut(part, "\n")
		first, _, _ := strings.Cut(code, "\n")
		indent, rest, _ := strings.Cut(first, "# ")
		if rest == name && strings.TrimSpace(indent) == "" {
			return strings.TrimPrefix(strings.ReplaceAll(code, "\n"+indent, "\n"), indent)
		}
	}
	t.Fatalf("%s prints no file %s", guide, name)
	return ""
}

// Adapt replaces in a file what differs on this machine: pairs of what stands
// there and what shall. A text that does not stand there fails the test.
func Adapt(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%q does not stand in\n%s", pairs[i], text)
		}
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// StartNginx starts nginx in dir, with this configuration, and waits until it
// listens.
func StartNginx(t *testing.T, dir, listen, text string) *proc.Process {
	t.Helper()
	if os.Getuid() == 0 {
		text = "user root;\n" + text // the folder is closed to others
	}
	programs.Write(t, filepath.Join(dir, "nginx.conf"), text)
	return programs.Listen(t, listen, exec.Command("nginx", "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log")))
}

// WriteHaproxy writes haproxy.cfg into dir. Old workers end within a second
// after a reload.
func WriteHaproxy(t *testing.T, dir, text string) {
	t.Helper()
	programs.Write(t, filepath.Join(dir, "haproxy.cfg"), Adapt(t, text, "global\n", "global\n\thard-stop-after 1s\n"))
}

// StartHaproxy starts haproxy with what WriteHaproxy wrote into dir, and waits
// until it listens: a master, which starts new workers at SIGUSR2.
func StartHaproxy(t *testing.T, dir, listen string) *proc.Process {
	t.Helper()
	cmd := exec.Command("haproxy", "-W", "-db", "-f", filepath.Join(dir, "haproxy.cfg"))
	cmd.Dir = dir
	return programs.Listen(t, listen, cmd)
}

// WriteCertificate makes a certificate for host in dir: cert.pem and key.pem,
// cdn.pem, which holds both, and caFile, which its clients have to trust.
func WriteCertificate(t *testing.T, dir, host string) (caFile string) {
	t.Helper()
	caFile = filepath.Join(dir, "ca.pem")
	files := []string{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	cert, err := cdn.WriteCA(caFile, host)
	if err == nil {
		err = cdn.WritePEM(cert, files[0], files[1])
	}
	if err != nil {
		t.Fatal(err)
	}
	var both strings.Builder
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		both.Write(text)
	}
	programs.Write(t, filepath.Join(dir, "cdn.pem"), both.String())
	return caFile
}
