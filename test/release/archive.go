package main

import (
	"archive/tar"
	"archive/zip"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A file goes into an archive.
type file struct {
	name  string // there, with slashes
	path  string // here; of a folder nothing
	mode  fs.FileMode
	owner int // user and group, by number
}

// newFile is the file at path, which is called name in an archive. Who may do
// what with it depends on nothing but whether it is a program: umasks differ.
func newFile(name, path string) (file, error) {
	info, err := os.Stat(path)
	if err != nil {
		return file{}, err
	}
	if !info.Mode().IsRegular() {
		return file{}, fmt.Errorf("%s is not a file", path)
	}
	mode := fs.FileMode(0o644)
	if info.Mode()&0o100 != 0 {
		mode = 0o755
	}
	return file{name: name, path: path, mode: mode}, nil
}

// tree returns all files in dir.
func tree(dir string) (files []file, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := newFile(filepath.ToSlash(name), path)
		files = append(files, f)
		return err
	})
	return files, err
}

// pack makes the archive of p in the folder out and returns its name.
func (p platform) pack(src *source, work, out string) (string, error) {
	files, err := p.contents(src, work)
	if err != nil {
		return "", err
	}
	folder := name + "-" + p.name
	if p.os == "windows" {
		return folder + ".zip", writeZip(filepath.Join(out, folder+".zip"), folder, files, src.time)
	}
	return folder + ".tar.gz", writeTar(filepath.Join(out, folder+".tar.gz"), folder, files, src.time)
}

// documents are what an archive has of the source, beside the folders of it
// that are for whoever installs the programs.
var documents = []string{"README.md", "CHANGELOG.md", "LICENSE", "torrc.example"}

// contents are the files of p's archive: what build has made, and what the
// source has for people.
func (p platform) contents(src *source, work string) (files []file, err error) {
	add := func(name, path string) {
		if err != nil {
			return
		}
		var f file
		f, err = newFile(name, path)
		files = append(files, f)
	}
	made, err := os.ReadDir(work)
	if err != nil {
		return nil, err
	}
	for _, e := range made {
		if !e.IsDir() {
			add(e.Name(), filepath.Join(work, e.Name()))
		}
	}
	for _, name := range documents {
		add(name, filepath.Join(src.dir, name))
	}
	for _, folder := range []string{"doc", "deploy"} {
		all, err := tree(filepath.Join(src.dir, folder))
		if err != nil {
			return nil, err
		}
		for _, f := range all {
			add(path.Join(folder, f.name), f.path)
		}
	}
	return files, err
}

// writeTar writes files to a tar archive at path, in a folder unless that is
// empty, and compresses it where its name says so.
func writeTar(path, folder string, files []file, at time.Time) error {
	return write(path, func(w io.Writer) error {
		if !strings.HasSuffix(path, ".gz") {
			return putTar(w, folder, files, at)
		}
		// No name and no time in the head of the compressed file.
		compressed := gzip.NewWriter(w)
		if err := putTar(compressed, folder, files, at); err != nil {
			return err
		}
		return compressed.Close()
	})
}

// putTar writes a tar archive of files, in a folder unless that is empty.
func putTar(w io.Writer, folder string, files []file, at time.Time) error {
	archive := tar.NewWriter(w)
	for _, f := range sorted(files) {
		head := &tar.Header{
			Typeflag: tar.TypeReg, Name: path.Join(folder, f.name), Mode: int64(f.mode.Perm()),
			Uid: f.owner, Gid: f.owner, ModTime: at, Format: tar.FormatPAX,
		}
		if f.mode.IsDir() {
			head.Typeflag = tar.TypeDir
			head.Name += "/"
			if err := archive.WriteHeader(head); err != nil {
				return err
			}
			continue
		}
		content, err := os.ReadFile(f.path)
		if err != nil {
			return err
		}
		head.Size = int64(len(content))
		if err := archive.WriteHeader(head); err != nil {
			return err
		}
		if _, err := archive.Write(content); err != nil {
			return err
		}
	}
	return archive.Close()
}

// writeZip writes files to a zip archive at path, in a folder.
func writeZip(name, folder string, files []file, at time.Time) error {
	return write(name, func(w io.Writer) error {
		archive := zip.NewWriter(w)
		for _, f := range sorted(files) {
			content, err := os.ReadFile(f.path)
			if err != nil {
				return err
			}
			head := &zip.FileHeader{Name: path.Join(folder, f.name), Method: zip.Deflate, Modified: at}
			head.SetMode(f.mode)
			to, err := archive.CreateHeader(head)
			if err != nil {
				return err
			}
			if _, err := to.Write(content); err != nil {
				return err
			}
		}
		return archive.Close()
	})
}

// sorted are files in the order of their names.
func sorted(files []file) []file {
	return slices.SortedFunc(slices.Values(files), func(a, b file) int { return cmp.Compare(a.name, b.name) })
}

// write makes the file at path of what fill writes.
func write(path string, fill func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = fill(f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// sumsFile is what sha256sum -c reads.
const sumsFile = "SHA256SUMS"

// writeSums writes the sums of the files of these names in dir.
func writeSums(dir string, names []string) error {
	var text strings.Builder
	for _, name := range slices.Sorted(slices.Values(names)) {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%x  %s\n", sha256.Sum256(content), name)
	}
	return os.WriteFile(filepath.Join(dir, sumsFile), []byte(text.String()), 0o644)
}
