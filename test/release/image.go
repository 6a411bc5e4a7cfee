package main

import (
	"bytes"
	"encoding/pem"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"

	"turbotunnel/internal/ptproc"
)

// The user of the server in an image: a number, since there is nothing in the
// image to look a name up with. It is the one that images without a shell use.
const (
	imageUser   = "65532:65532"
	imageUserID = 65532
)

// imageState is where the server keeps its key: the one folder that has to be
// writable, and a volume.
const imageState = "/var/lib/turbotunnel"

// image makes an image for containers of p in the folder out, as an archive in
// the layout of OCI, and returns its name. In it are both programs, their
// licences and the authorities that sign web servers' certificates, and nothing
// else: no shell, no libraries.
func (p platform) image(src *source, work, out string) (string, error) {
	root, err := p.root(src, work)
	if err != nil {
		return "", err
	}
	layer, err := tarball.LayerFromFile(root, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return "", err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if image, err = mutate.Append(image, mutate.Addendum{Layer: layer}); err != nil {
		return "", err
	}
	if image, err = mutate.ConfigFile(image, p.config(src, image)); err != nil {
		return "", err
	}
	dir := filepath.Join(work, "image")
	index, err := layout.Write(dir, empty.Index)
	if err != nil {
		return "", err
	}
	reference := "turbotunnel:" + ptproc.Version()
	if err := index.AppendImage(image, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": reference,
		"io.containerd.image.name":          "localhost/" + reference,
	})); err != nil {
		return "", err
	}
	files, err := tree(dir)
	if err != nil {
		return "", err
	}
	file := name + "-" + p.name + "-image.tar"
	return file, writeTar(filepath.Join(out, file), "", files, src.time)
}

// config says how the image is run. image has its layers already.
func (p platform) config(src *source, image v1.Image) *v1.ConfigFile {
	c, err := image.ConfigFile()
	if err != nil {
		panic(err) // it was made in memory
	}
	c = c.DeepCopy()
	c.Created, c.OS, c.Architecture = v1.Time{Time: src.time}, p.os, p.arch
	if p.arch == "arm" {
		c.Variant = "v7"
	}
	c.History = []v1.History{{Created: c.Created, CreatedBy: name}}
	c.Config = v1.Config{
		User:         imageUser,
		Entrypoint:   []string{"/usr/bin/turbotunnel-server"},
		Cmd:          []string{"-h"},
		WorkingDir:   "/",
		Env:          []string{"PATH=/usr/bin"},
		Volumes:      map[string]struct{}{imageState: {}},
		ExposedPorts: map[string]struct{}{"8080/tcp": {}},
		StopSignal:   "SIGTERM",
		Labels: map[string]string{
			"org.opencontainers.image.title":    "turbotunnel",
			"org.opencontainers.image.version":  ptproc.Version(),
			"org.opencontainers.image.licenses": "MIT",
		},
	}
	return c
}

// root makes the root file system of the image, as a compressed tar archive, and
// returns its name.
func (p platform) root(src *source, work string) (string, error) {
	dir := filepath.Join(work, "root")
	for to, from := range map[string]string{
		"usr/bin/turbotunnel-client":                filepath.Join(work, "turbotunnel-client"),
		"usr/bin/turbotunnel-server":                filepath.Join(work, "turbotunnel-server"),
		"usr/share/doc/turbotunnel/LICENSE":         filepath.Join(src.dir, "LICENSE"),
		"usr/share/doc/turbotunnel/" + licencesFile: filepath.Join(work, licencesFile),
	} {
		if err := copyFile(from, filepath.Join(dir, to)); err != nil {
			return "", err
		}
	}
	for to, text := range map[string][]byte{
		"etc/passwd":                        []byte("turbotunnel:x:65532:65532::" + imageState + ":/nowhere\n"),
		"etc/group":                         []byte("turbotunnel:x:65532:\n"),
		"etc/ssl/certs/ca-certificates.crt": authorities(),
	} {
		if err := writeFile(filepath.Join(dir, to), text, 0o644); err != nil {
			return "", err
		}
	}
	files, err := tree(dir)
	if err != nil {
		return "", err
	}
	files = append(files, folders(files)...)
	files = append(files,
		file{name: "var", mode: fs.ModeDir | 0o755},
		file{name: "var/lib", mode: fs.ModeDir | 0o755},
		file{name: strings.TrimPrefix(imageState, "/"), mode: fs.ModeDir | 0o700, owner: imageUserID},
	)
	archive := filepath.Join(work, "root.tar.gz")
	return archive, writeTar(archive, "", files, src.time)
}

// folders are those that files are in.
func folders(files []file) (all []file) {
	seen := make(map[string]bool)
	for _, f := range files {
		for dir := path.Dir(f.name); dir != "." && !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			all = append(all, file{name: dir, mode: fs.ModeDir | 0o755})
		}
	}
	return all
}

// authorities are the certificates of those that sign web servers', as Mozilla
// lists them.
func authorities() []byte {
	var text bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue // trusted for some certificates only, which this file cannot say
		}
		text.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
	}
	return text.Bytes()
}
