package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// revisionFile holds the commit's hash and time, where git has made an archive.
const revisionFile = "internal/ptproc/revision.txt"

// A source is the source as it stands in an archive of a commit.
type source struct {
	dir  string
	time time.Time // the commit's
}

// export returns the source of the newest commit of the repository at root, laid
// down in dir. Where root is not a repository it was itself unpacked from an
// archive, and is the source.
func export(root, dir string) (*source, error) {
	if _, err := os.Stat(filepath.Join(root, ".git")); errors.Is(err, os.ErrNotExist) {
		dir = root
	} else if err := checkOut(root, dir); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, revisionFile))
	if err != nil {
		return nil, err
	}
	_, seconds, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%s says of no commit that it was made of it: %q", revisionFile, text)
	}
	return &source{dir: dir, time: time.Unix(n, 0).UTC()}, nil
}

// checkOut lays down in dir what git puts into an archive of the newest commit.
func checkOut(root, dir string) error {
	changed, err := run(exec.Command("git", "-C", root, "status", "--porcelain"))
	if err != nil {
		return err
	}
	if len(changed) > 0 {
		fmt.Fprintf(os.Stderr, "release: not committed, and left out:\n%s", changed)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	archive := dir + ".tar"
	defer os.Remove(archive)
	if _, err := run(exec.Command("git", "-C", root, "archive", "--output", archive, "HEAD")); err != nil {
		return err
	}
	_, err = run(exec.Command("tar", "-xf", archive, "-C", dir))
	return err
}

// madeHere are what make lays down beside the source, as .gitignore has it: where the
// source is not a repository it is not the source's.
var madeHere = []string{"bin", "dist", "turbotunnel-client", "turbotunnel-server"}

// archive writes the source to a file.
func (s *source) archive(path string) error {
	files, err := tree(s.dir)
	if err != nil {
		return err
	}
	files = slices.DeleteFunc(files, func(f file) bool {
		top, _, _ := strings.Cut(f.name, "/")
		return slices.Contains(madeHere, top)
	})
	return writeTar(path, name, files, s.time)
}
