package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"turbotunnel/internal/ptproc"
)

// The tools that are not ours, pinned. go run fetches and builds them once.
const (
	sbomTool = "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0"
	debTool  = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2"
)

// A platform is what programs are built for.
type platform struct {
	name     string // in the names of files
	os, arch string // Go's names
	variant  string // of the architecture, as Go's environment has it
	debian   string // Debian's name of the architecture; empty: no package
}

// platforms are all of a release. Of each architecture it is the oldest variant
// that Debian serves, whatever the environment says.
var platforms = []platform{
	{"linux-amd64", "linux", "amd64", "GOAMD64=v1", "amd64"},
	{"linux-arm64", "linux", "arm64", "GOARM64=v8.0", "arm64"},
	{"linux-armv7", "linux", "arm", "GOARM=7", "armhf"},
	{"linux-386", "linux", "386", "GO386=sse2", "i386"},
	{"windows-amd64", "windows", "amd64", "GOAMD64=v1", ""},
	{"macos-amd64", "darwin", "amd64", "GOAMD64=v1", ""},
	{"macos-arm64", "darwin", "arm64", "GOARM64=v8.0", ""},
	{"android-arm64", "android", "arm64", "GOARM64=v8.0", ""},
}

// both are the folders of the programs, which end their names.
var both = []string{"client", "server"}

// program is the name of the file of the program in folder.
func (p platform) program(folder string) string {
	if p.os == "windows" {
		return "turbotunnel-" + folder + ".exe"
	}
	return "turbotunnel-" + folder
}

// command is a command of Go for p. Of the caller's environment nothing is
// kept that could change what it makes.
func (p platform) command(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "GOFLAGS=", "GOEXPERIMENT=", "GOWORK=off", "CGO_ENABLED=0", "GOOS="+p.os, "GOARCH="+p.arch, p.variant)
	return cmd
}

// make makes the wanted kinds of files for p from src in the folder out, with
// room for its own in work, and returns their names.
func (p platform) make(src *source, work, out string, wanted []string) (made []string, err error) {
	if !slices.ContainsFunc(wanted, p.has) {
		return nil, nil
	}
	if err := p.build(src, work); err != nil {
		return nil, err
	}
	for _, kind := range wanted {
		if !p.has(kind) {
			continue
		}
		var file string
		switch kind {
		case "archives":
			file, err = p.pack(src, work, out)
		case "debs":
			file, err = p.deb(src, work, out)
		case "images":
			file, err = p.image(src, work, out)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		made = append(made, file)
	}
	return made, nil
}

// has tells whether there is such a kind of file for p.
func (p platform) has(kind string) bool {
	switch kind {
	case "archives":
		return true
	case "debs", "images":
		return p.debian != ""
	}
	return false
}

// build makes in the folder work what goes into every kind of file: programs,
// LICENSES.txt, and for each program what it is made of.
func (p platform) build(src *source, work string) error {
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	for _, folder := range both {
		program := filepath.Join(work, p.program(folder))
		// Symbols (-s -w) are a third of a program; Go's own stack traces do
		// without. The commit stands in the source.
		if _, err := run(p.command(src.dir, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", program, "./"+folder)); err != nil {
			return err
		}
		sbom := filepath.Join(work, "turbotunnel-"+folder+".cdx.json")
		cmd := exec.Command("go", "run", sbomTool, "bin", "-json", "-std", "-noserial", "-notimestamp", "-version", "v"+ptproc.Version(), "-output", sbom, program)
		cmd.Env = append(cmd.Environ(), "GOFLAGS=")
		if _, err := run(cmd); err != nil {
			return err
		}
	}
	text, err := p.licences(src)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(work, licencesFile), text, 0o644)
}

// run runs a command and returns what it prints. In an error is what it
// complains of.
func run(cmd *exec.Cmd) ([]byte, error) {
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out, complaint.String())
	}
	return out, nil
}
