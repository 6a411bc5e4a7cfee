package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"turbotunnel/internal/ptproc"
)

// staged are files of the Debian package beside those that make install
// installs: from where in the source, to where in the folder for nfpm.
var staged = map[string]string{
	"deploy/debian/turbotunnel.service": "stage/usr/lib/systemd/system/turbotunnel.service",
	"deploy/debian/turbotunnel.socket":  "stage/usr/lib/systemd/system/turbotunnel.socket",
	"deploy/debian/sysusers.conf":       "stage/usr/lib/sysusers.d/turbotunnel.conf",
	"deploy/debian/default":             "stage-config/turbotunnel",
	"deploy/debian/apparmor":            "stage-config/apparmor",
	"deploy/debian/postinst":            "stage-config/postinst",
	"deploy/debian/prerm":               "stage-config/prerm",
	"deploy/debian/postrm":              "stage-config/postrm",
	"README.md":                         "stage/usr/share/doc/turbotunnel/README.md",
	"CHANGELOG.md":                      "stage/usr/share/doc/turbotunnel/CHANGELOG.md",
	"deploy/grafana.json":               "stage/usr/share/doc/turbotunnel/grafana.json",
}

// pagesDir is where the package has the pages, README.md's links among them.
const pagesDir = "usr/share/doc/turbotunnel"

// deb makes the Debian package of p in the folder out and returns its name.
func (p platform) deb(src *source, work, out string) (string, error) {
	stage := filepath.Join(work, "stage")
	install := exec.Command("make", "-C", src.dir, "install-files", "FROM="+work, "DESTDIR="+stage, "PREFIX=/usr", "ZSHDIR=/usr/share/zsh/vendor-completions")
	if _, err := run(install); err != nil {
		return "", err
	}
	for from, to := range staged {
		if err := copyFile(filepath.Join(src.dir, from), filepath.Join(work, to)); err != nil {
			return "", err
		}
	}
	if err := stagePages(src, stage); err != nil {
		return "", err
	}
	if err := copyFile(filepath.Join(work, licencesFile), filepath.Join(stage, pagesDir, "copyright")); err != nil {
		return "", err
	}
	if err := settle(stage, src.time); err != nil {
		return "", err
	}
	file := fmt.Sprintf("turbotunnel_%s_%s.deb", ptproc.Version(), p.debian)
	target, err := filepath.Abs(filepath.Join(out, file))
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "run", debTool, "package", "--packager", "deb", "--config", filepath.Join(src.dir, "deploy/debian/nfpm.yaml"), "--target", target)
	cmd.Dir = work
	cmd.Env = append(cmd.Environ(), "GOFLAGS=", "VERSION="+ptproc.Version(), "DEBIAN_ARCH="+p.debian, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", src.time.Unix()))
	_, err = run(cmd)
	return file, err
}

// stagePages lays down what people read: the guides, and torrc.example with the paths
// that the programs have in the package.
func stagePages(src *source, stage string) error {
	torrc, err := os.ReadFile(filepath.Join(src.dir, "torrc.example"))
	if err != nil {
		return err
	}
	torrc = bytes.ReplaceAll(torrc, []byte("/usr/local/bin/"), []byte("/usr/bin/"))
	if err := writeFile(filepath.Join(stage, pagesDir, "torrc.example"), torrc, 0o644); err != nil {
		return err
	}
	pages, err := filepath.Glob(filepath.Join(src.dir, "doc", "*.md"))
	if err != nil {
		return err
	}
	for _, page := range append(pages, filepath.Join(src.dir, "doc", "who-sees-what.svg")) {
		if err := copyFile(page, filepath.Join(stage, pagesDir, "doc", filepath.Base(page))); err != nil {
			return err
		}
	}
	return nil
}

// settle gives all folders in dir one time and one mode: nfpm packs those that
// they have.
func settle(dir string, at time.Time) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if err := os.Chmod(path, 0o755); err != nil {
			return err
		}
		return os.Chtimes(path, at, at)
	})
}

// copyFile copies a file and makes the folders for it. Its mode depends on nothing
// but whether it is a program.
func copyFile(from, to string) error {
	f, err := newFile("", from)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return writeFile(to, content, f.mode)
}

// writeFile writes a file of just that mode and makes the folders for it.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, content, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode) // whatever the umask is
}
