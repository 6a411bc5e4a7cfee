package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"turbotunnel/common/tunnel"
	"turbotunnel/test/guide"
	"turbotunnel/test/programs"
)

// example returns the two halves of torrc.example.
func example(t *testing.T) (bridge, client string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(programs.Root, "torrc.example"))
	if err != nil {
		t.Fatal(err)
	}
	_, text2, ok1 := strings.Cut(string(text), "\n######## Bridge ########\n")
	bridge, client, ok2 := strings.Cut(text2, "\n######## Client ########\n")
	if !ok1 || !ok2 {
		t.Fatal("torrc.example lacks the titles of its halves")
	}
	return bridge, client
}

// option returns the value of the one line of a torrc that sets name.
func option(t *testing.T, torrc, name string) string {
	t.Helper()
	var values []string
	for line := range strings.Lines(torrc) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			values = append(values, strings.TrimSpace(value))
		}
	}
	if len(values) != 1 {
		t.Fatalf("torrc.example sets %s in %d lines, want one", name, len(values))
	}
	return values[0]
}

// exampleExec is the command line that option sets in torrc.example, with the
// program's name replaced.
func exampleExec(t *testing.T, torrc, setting, installed, program string) string {
	t.Helper()
	line, ok := strings.CutPrefix(option(t, torrc, setting), "turbo exec "+installed)
	if !ok {
		t.Fatalf("torrc.example: %s does not start %s", setting, installed)
	}
	return program + line
}

func serverExec(t *testing.T) string {
	t.Helper()
	bridge, _ := example(t)
	return exampleExec(t, bridge, "ServerTransportPlugin", "/usr/local/bin/turbotunnel-server", programs.Server)
}

func clientExec(t *testing.T) string {
	t.Helper()
	_, client := example(t)
	return exampleExec(t, client, "ClientTransportPlugin", "/usr/local/bin/turbotunnel-client", programs.Client)
}

// TestTorrcExample checks that tor takes both halves of torrc.example without a
// warning, and that this project's programs take what the bridge line says.
// TestTor runs the command lines in it.
func TestTorrcExample(t *testing.T) {
	bridge, client := example(t)
	for name, half := range map[string]string{"bridge": bridge, "client": client} {
		t.Run(name, func(t *testing.T) { verify(t, half) })
	}
	checkBridgeLine(t, client)
}

// TestTorGuide: so is it with the lines of deploy-tor.md in place of those of
// torrc.example.
func TestTorGuide(t *testing.T) {
	bridge, _ := example(t)
	lines := guide.Printed(t, "deploy-tor.md", "/etc/tor/torrc")
	var torrc strings.Builder
	for line := range strings.Lines(bridge) {
		if !strings.HasPrefix(line, "ServerTransport") {
			torrc.WriteString(line)
		}
	}
	verify(t, torrc.String()+lines)
	args := strings.Fields(exampleExec(t, lines, "ServerTransportPlugin", "/usr/local/bin/turbotunnel-server", ""))
	if out, err := exec.Command(programs.Server, append(args, "-version")...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestComposeTorrc: so is it with the bridge of the file for compose.
func TestComposeTorrc(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(programs.Root, "deploy", "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, torrc, ok1 := strings.Cut(string(text), "    content: |\n")
	torrc, _, ok2 := strings.Cut(torrc, "\n\nvolumes:")
	if !ok1 || !ok2 {
		t.Fatal("compose.yaml has no torrc where it is looked for")
	}
	verify(t, torrc+"\n")
}

// verify has tor check a torrc, and wants no warning.
func verify(t *testing.T, text string) {
	t.Helper()
	dir := t.TempDir()
	torrc, empty := filepath.Join(dir, "torrc"), filepath.Join(dir, "empty")
	if err := os.WriteFile(torrc, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tor", "--verify-config", "--defaults-torrc", empty, "-f", torrc,
		"--DataDirectory", filepath.Join(dir, "data")).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "[warn]") && !strings.Contains(line, "running Tor as root") {
			t.Error(line)
		}
	}
}

func checkBridgeLine(t *testing.T, client string) {
	t.Helper()
	fields := strings.Fields(option(t, client, "Bridge"))
	if fields[0] != "turbo" || len(fields) < 4 {
		t.Fatalf("bridge line %q", fields)
	}
	var config tunnel.Config
	for _, arg := range fields[3:] {
		name, value, _ := strings.Cut(arg, "=")
		if err := config.Set(name, value); err != nil {
			t.Errorf("bridge line: %v", err)
		}
	}
	if err := config.Check(); err != nil {
		t.Errorf("bridge line: %v", err)
	}
}
