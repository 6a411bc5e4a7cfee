package deploy

import (
	"io/fs"
	"os/exec"
	"path/filepath"
	"testing"

	"turbotunnel/test/programs"
)

// TestInstall: make install-files, which make install calls, installs where it is
// told, and make uninstall leaves no file of it.
func TestInstall(t *testing.T) {
	dest, from := programs.Folder(t), filepath.Dir(programs.Client)
	run := func(target string) {
		t.Helper()
		if out, err := exec.Command("make", "-C", programs.Root, target, "FROM="+from, "DESTDIR="+dest, "PREFIX=/opt/x").CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v\n%s", target, err, out)
		}
	}
	files := func() map[string]fs.FileMode {
		all := make(map[string]fs.FileMode)
		filepath.WalkDir(dest, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				t.Fatal(err)
			}
			if info, err := d.Info(); err == nil && !d.IsDir() {
				rel, _ := filepath.Rel(dest, path)
				all[rel] = info.Mode()
			}
			return nil
		})
		return all
	}
	run("install-files")
	got := files()
	for name, mode := range map[string]fs.FileMode{
		"opt/x/bin/turbotunnel-client":                               0o755,
		"opt/x/bin/turbotunnel-server":                               0o755,
		"opt/x/share/man/man1/turbotunnel-client.1":                  0o644,
		"opt/x/share/man/man1/turbotunnel-server.1":                  0o644,
		"opt/x/share/bash-completion/completions/turbotunnel-client": 0o644,
		"opt/x/share/bash-completion/completions/turbotunnel-server": 0o644,
		"opt/x/share/zsh/site-functions/_turbotunnel-client":         0o644,
		"opt/x/share/zsh/site-functions/_turbotunnel-server":         0o644,
	} {
		if got[name] != mode {
			t.Errorf("%s has mode %v, want %v", name, got[name], mode)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("installed, and not known: %v", got)
	}
	if out, err := exec.Command(filepath.Join(dest, "opt/x/bin/turbotunnel-server"), "-version").CombinedOutput(); err != nil {
		t.Errorf("the installed program: %v\n%s", err, out)
	}
	run("uninstall")
	if left := files(); len(left) > 0 {
		t.Errorf("left by make uninstall: %v", left)
	}
}
