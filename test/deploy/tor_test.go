package deploy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"turbotunnel/test/guide"
	"turbotunnel/test/proc"
	"turbotunnel/test/programs"
)

// torUser is whom Debian's tor runs as.
const torUser = "debian-tor"

// needRoot skips a test that gives files to other users, or rights to files.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can do what this guide says")
	}
}

// asTor is a command line that tor's user runs, with options of setpriv.
func asTor(options []string, command ...string) *exec.Cmd {
	args := append([]string{"--reuid=" + torUser, "--regid=" + torUser, "--clear-groups"}, options...)
	// The shell is what tor is on Debian: a program between the one that gave up
	// root's rights, which setpriv keeps until then, and the server.
	return exec.Command("setpriv", append(append(args, "sh", "-c", `exec "$@"`, "sh"), command...)...)
}

// openFolder is a folder that every user may enter.
func openFolder(t *testing.T) string {
	t.Helper()
	dir := programs.Folder(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// installed is the server where every user may run it.
func installed(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(programs.Server)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "turbotunnel-server")
	if err := os.WriteFile(name, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// lowAddr is an address of 127.0.0.1 with a port below 1024, on which nobody
// listens.
func lowAddr(t *testing.T) string {
	t.Helper()
	for port := 1023; port > 512; port-- {
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		if ln, err := net.Listen("tcp4", addr); err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatal("no port below 1024 is free")
	return ""
}

// TestLowPort: with deploy-tor.md's setcap a user without rights has a port below
// 1024, but not with NoNewPrivileges; the server then says what is missing.
func TestLowPort(t *testing.T) {
	needRoot(t)
	text, err := os.ReadFile(filepath.Join(programs.Root, "doc", "deploy-tor.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(text), "setcap ")
	line, _, _ = strings.Cut(line, "\n")
	server := installed(t, openFolder(t))
	args := strings.Fields(guide.Adapt(t, line, "/usr/local/bin/turbotunnel-server", server))
	if out, err := exec.Command("setcap", args...).CombinedOutput(); err != nil {
		t.Fatalf("setcap %s: %v\n%s", args, err, out)
	}
	listen := lowAddr(t)
	programs.Listen(t, listen, asTor(nil, server, listen, "127.0.0.1:9"))

	start, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(start)) != "1024" {
		t.Skipf("here ports from %s on are everybody's", start)
	}
	kept := programs.Start(t, asTor([]string{"--no-new-privs"}, server, lowAddr(t), "127.0.0.1:9"))
	programs.Logged(t, kept, "ports below 1024 need CAP_NET_BIND_SERVICE")
}

// TestTorUnit: systemd takes the change to tor's unit.
func TestTorUnit(t *testing.T) {
	const file = "/etc/systemd/system/tor@default.service.d/turbotunnel.conf"
	change := guide.Printed(t, "deploy-tor.md", file)
	unit := filepath.Join(programs.Folder(t), "tor.service")
	_, change, _ = strings.Cut(change, "[Service]\n")
	programs.Write(t, unit, "[Service]\nExecStart=/bin/true\n"+change)
	if out, err := exec.Command("systemd-analyze", "verify", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestCertbotHook: certbot's key is out of reach for tor's user, and the copy that
// the hook hands on is not, also when it is made again while the server runs.
func TestCertbotHook(t *testing.T) {
	needRoot(t)
	dir := openFolder(t)
	lineage, copies, hook := filepath.Join(dir, "live"), filepath.Join(dir, "copies"), filepath.Join(dir, "hook")
	if err := os.Mkdir(lineage, 0o700); err != nil { // as certbot has it
		t.Fatal(err)
	}
	renew := func() (caFile string) {
		caFile = guide.WriteCertificate(t, lineage, siteName)
		for from, to := range map[string]string{"cert.pem": "fullchain.pem", "key.pem": "privkey.pem"} {
			if err := os.Rename(filepath.Join(lineage, from), filepath.Join(lineage, to)); err != nil {
				t.Fatal(err)
			}
		}
		return caFile
	}
	renew()
	programs.Write(t, hook, guide.Adapt(t, printedHook(t), "/etc/turbotunnel", copies))
	run := func() {
		cmd := exec.Command("sh", hook)
		cmd.Env = append(os.Environ(), "RENEWED_LINEAGE="+lineage)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	run()
	server, state, to := installed(t, dir), filepath.Join(dir, "state"), startTarget(t)
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := own(state, torUser); err != nil {
		t.Fatal(err)
	}
	listen := programs.Addr(t)
	serve := func(from string) *proc.Process {
		return programs.Start(t, asTor(nil, server, "-state-dir", state, "-tls-cert", filepath.Join(from, "fullchain.pem"),
			"-tls-key", filepath.Join(from, "privkey.pem"), listen, to.Addr()))
	}
	programs.Logged(t, serve(lineage), "permission denied")
	serve(copies)
	programs.Await(t, "a listener", func() error { return proc.Listening(listen) })
	caFile := renew()
	run()
	c := startClient(t, caFile, "https://"+siteName+"/updates", "-key", programs.Key(t, state), "-addr", listen)
	move(t, to, c, size, nil)
}

// printedHook is the hook for certbot that deploy-tor.md prints.
func printedHook(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(programs.Root, "doc", "deploy-tor.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, hook, _ := strings.Cut(string(text), "```sh\n")
	hook, _, ok := strings.Cut(hook, "```")
	if !ok {
		t.Fatal("deploy-tor.md prints no hook")
	}
	return hook
}

// own gives a file to a user.
func own(name, owner string) error {
	u, err := user.Lookup(owner)
	if err != nil {
		return err
	}
	var uid, gid int
	_, err1 := fmt.Sscan(u.Uid, &uid)
	_, err2 := fmt.Sscan(u.Gid, &gid)
	return errors.Join(err1, err2, os.Chown(name, uid, gid))
}
