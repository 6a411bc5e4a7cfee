package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"turbotunnel/internal/ptproc"
	"turbotunnel/test/programs"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// TestRelease makes a release twice: of a clone, and of the source that is in
// the first, in another folder and with other rights for new files. The files
// are the same, byte for byte. Then they are used.
//
// What the compiler makes of a package is taken from the same cache both times:
// that it does not depend on the folder is what go build promises for -trimpath.
func TestRelease(t *testing.T) {
	if testing.Short() {
		t.Skip("builds both programs for two platforms")
	}
	dir := programs.Folder(t)
	clone, first := filepath.Join(dir, "clone"), filepath.Join(dir, "first")
	command(t, "git", "clone", "--quiet", programs.Root, clone)
	const only = "linux-amd64,windows-amd64"
	if err := release(clone, first, only, kinds); err != nil {
		t.Fatal(err)
	}
	command(t, "sh", "-c", "cd "+first+" && sha256sum -c --quiet "+sumsFile)

	t.Run("Again", func(t *testing.T) {
		mask := syscall.Umask(0o077)
		defer syscall.Umask(mask)
		source, second := filepath.Join(dir, "some", "other", "folder"), filepath.Join(dir, "second")
		if err := os.MkdirAll(source, 0o755); err != nil {
			t.Fatal(err)
		}
		unpack(t, filepath.Join(first, name+".tar.gz"), source)
		if err := release(filepath.Join(source, name), second, only, kinds); err != nil {
			t.Fatal(err)
		}
		for _, file := range append(files(t, first), files(t, second)...) {
			if !bytes.Equal(read(t, filepath.Join(first, file)), read(t, filepath.Join(second, file))) {
				t.Errorf("%s differs", file)
			}
		}
	})
	t.Run("Archive", func(t *testing.T) {
		unpack(t, filepath.Join(first, name+"-linux-amd64.tar.gz"), dir)
		testArchive(t, filepath.Join(dir, name+"-linux-amd64"), clone)
	})
	t.Run("Deb", func(t *testing.T) {
		deb := filepath.Join(first, "turbotunnel_"+ptproc.Version()+"_amd64.deb")
		newer := filepath.Join(dir, "newer.deb")
		command(t, "sh", "-ec", "dpkg-deb -R "+deb+" "+newer+".d; sed -i 's/^Version: .*/Version: 99/' "+newer+".d/DEBIAN/control; dpkg-deb -b "+newer+".d "+newer)
		inNamespaces(t, "deb.sh", deb, newer, programs.Folder(t))
	})
	t.Run("Image", func(t *testing.T) {
		image := filepath.Join(dir, "image")
		unpack(t, filepath.Join(first, name+"-linux-amd64-image.tar"), image)
		inNamespaces(t, "image.sh", imageRoot(t, image), programs.Folder(t))
	})
}

// testArchive looks at the unpacked archive of this machine's platform, made of
// the newest commit of the repository clone.
func testArchive(t *testing.T, dir, clone string) {
	hash := strings.TrimSpace(command(t, "git", "-C", clone, "rev-parse", "HEAD"))
	for _, program := range []string{"turbotunnel-client", "turbotunnel-server"} {
		about := command(t, filepath.Join(dir, program), "-version")
		for _, want := range []string{program + " " + ptproc.Version(), hash[:12], "linux/amd64"} {
			if !strings.Contains(about, want) {
				t.Errorf("-version says %q, without %s", about, want)
			}
		}
		var bom struct {
			BOMFormat  string
			Components []struct{ Name, Version string }
		}
		if err := json.Unmarshal(read(t, filepath.Join(dir, program+".cdx.json")), &bom); err != nil {
			t.Fatal(err)
		}
		licences := string(read(t, filepath.Join(dir, licencesFile)))
		for _, c := range bom.Components {
			if c.Name != "std" && !strings.Contains(licences, "\n"+c.Name+" "+c.Version+": ") {
				t.Errorf("%s has no licence of %s %s", licencesFile, c.Name, c.Version)
			}
		}
		if bom.BOMFormat != "CycloneDX" || len(bom.Components) < 10 {
			t.Errorf("%s is in the form %q and lists %d modules", program, bom.BOMFormat, len(bom.Components))
		}
	}
	for _, want := range []string{"README.md", "doc/turbotunnel-client.1", "deploy/completion/turbotunnel-server.bash", "torrc.example"} {
		read(t, filepath.Join(dir, want))
	}
}

// imageRoot checks the image in dir and returns its root file system, unpacked.
func imageRoot(t *testing.T, dir string) string {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("an index of %v, %v; want one image", manifest, err)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != imageUser || config.OS != "linux" || config.Architecture != "amd64" {
		t.Errorf("the image runs as %q on %s/%s", config.Config.User, config.OS, config.Architecture)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v; want 1", len(layers), err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	root := programs.Folder(t)
	if err := os.Chmod(root, 0o755); err != nil { // it is / for the image's user
		t.Fatal(err)
	}
	unpack(t, filepath.Join(dir, "blobs", digest.Algorithm, digest.Hex), root)
	return root
}

// TestCompose: the file for compose runs the image that is made.
func TestCompose(t *testing.T) {
	text := string(read(t, filepath.Join(programs.Root, "deploy/compose.yaml")))
	for _, want := range []string{"image: localhost/turbotunnel:" + ptproc.Version() + "\n", "turbotunnel-" + ptproc.Version() + "-linux-amd64-image.tar", "-state-dir=" + imageState + "\n", "server:" + imageState + "\n", "read_only: true\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("deploy/compose.yaml lacks %q", want)
		}
	}
}

// TestMadeHere: what make lays down beside the source is what git ignores there.
func TestMadeHere(t *testing.T) {
	var ignored []string
	for line := range strings.Lines(string(read(t, filepath.Join(programs.Root, ".gitignore")))) {
		if top, ok := strings.CutPrefix(strings.TrimSpace(line), "/"); ok {
			ignored = append(ignored, strings.TrimSuffix(top, "/"))
		}
	}
	slices.Sort(ignored)
	if !slices.Equal(ignored, madeHere) {
		t.Errorf("git ignores %q, and the archive leaves out %q", ignored, madeHere)
	}
}

// TestSourceArchive: the archive of an unpacked source is that of the source.
func TestSourceArchive(t *testing.T) {
	dir := programs.Folder(t)
	command(t, "git", "clone", "--quiet", programs.Root, filepath.Join(dir, "clone"))
	first, second := filepath.Join(dir, "first.tar.gz"), filepath.Join(dir, "second.tar.gz")
	src, err := export(filepath.Join(dir, "clone"), filepath.Join(dir, "export"))
	if err != nil {
		t.Fatal(err)
	}
	if err := src.archive(first); err != nil {
		t.Fatal(err)
	}
	unpack(t, first, dir)
	unpacked := filepath.Join(dir, name)
	for _, made := range []string{"bin/release", "dist/" + sumsFile, "turbotunnel-client"} {
		if err := writeFile(filepath.Join(unpacked, made), []byte("made"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if src, err = export(unpacked, dir); err != nil {
		t.Fatal(err)
	}
	if err := src.archive(second); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, first), read(t, second)) {
		t.Error("the archive of the unpacked source differs")
	}
}

func TestChoose(t *testing.T) {
	for only, want := range map[string][]string{
		"linux-386,macos-arm64": {"linux-386", "macos-arm64"},
		"plan9-mips":            nil,
		"":                      nil,
	} {
		chosen, err := choose(only)
		var got []string
		for _, p := range chosen {
			got = append(got, p.name)
		}
		if !slices.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%q: %q, %v; want %q", only, got, err, want)
		}
	}
}

// A module that gives no licence cannot be given on.
func TestNoLicence(t *testing.T) {
	text, err := joinLicences(map[string][]string{"example.com/x v1": nil}, map[string]string{"example.com/x v1": "/x"})
	if err == nil || !strings.Contains(err.Error(), "example.com/x v1") {
		t.Errorf("%s, %v", text, err)
	}
}

// inNamespaces runs a script of testdata as root of namespaces of its own. All
// that it starts ends with it.
func inNamespaces(t *testing.T, script string, args ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	args = append([]string{"--mount", "--net", "--pid", "--fork", "--kill-child", "testdata/" + script}, args...)
	out := command(t, "unshare", args...)
	if !strings.HasSuffix(out, "passed\n") {
		t.Errorf("%s:\n%s", script, out)
	}
}

// command runs a program that must succeed and returns what it prints.
func command(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// unpack unpacks a tar archive, owners included, into the folder dir.
func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, "tar", "-xf", archive, "-C", dir)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// files are the names of those in dir.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
