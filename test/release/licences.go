package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// licencesFile is what the licences of all that is linked are in.
const licencesFile = "LICENSES.txt"

// isLicence finds files that say under which terms code is given.
var isLicence = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents|copyright)([-._].*)?$`)

// noLicence are endings of code, which may be about licences.
var noLicence = []string{".go", ".s", ".c", ".h", ".py"}

// A linked package is what go list says of it.
type linked struct {
	Dir      string
	Standard bool
	Module   *struct {
		Path, Version, Dir string
		Main               bool
		Replace            *struct{ Path, Version string }
	}
}

// title says whose the licences of p are.
func (p linked) title() string {
	switch {
	case p.Standard:
		return "The Go programming language"
	case p.Module.Main:
		return name
	}
	return p.Module.Path + " " + p.Module.Version
}

// licences returns the licences of all that is linked into the programs: of each
// module those beside the packages that are used, and in the folders above them.
func (p platform) licences(src *source) ([]byte, error) {
	root, err := run(p.command(src.dir, "env", "GOROOT"))
	if err != nil {
		return nil, err
	}
	out, err := run(p.command(src.dir, "list", "-deps", "-json=Dir,Standard,Module", "./client", "./server"))
	if err != nil {
		return nil, err
	}
	files := make(map[string][]string) // by title
	top := make(map[string]string)     // folder of a title
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var l linked
		err := dec.Decode(&l)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		title, base := l.title(), strings.TrimSpace(string(root))
		if !l.Standard {
			base = l.Module.Dir
		}
		top[title] = base
		found, err := licenceFiles(l.Dir, base)
		if err != nil {
			return nil, err
		}
		files[title] = append(files[title], found...)
	}
	return joinLicences(files, top)
}

// licenceFiles are those in dir and in the folders above it up to top.
func licenceFiles(dir, top string) (files []string, err error) {
	for {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Type().IsRegular() && isLicence.MatchString(e.Name()) && !slices.Contains(noLicence, filepath.Ext(e.Name())) {
				files = append(files, filepath.Join(dir, e.Name()))
			}
		}
		if rel, err := filepath.Rel(top, dir); err != nil || rel == "." || strings.HasPrefix(rel, "..") {
			return files, err
		}
		dir = filepath.Dir(dir)
	}
}

// joinLicences makes one text of the files by title. A title without a file is
// an error: it may be that nobody is allowed to hand it on.
func joinLicences(files map[string][]string, top map[string]string) ([]byte, error) {
	var titles []string
	for title := range files {
		titles = append(titles, title)
	}
	slices.Sort(titles)
	var text bytes.Buffer
	text.WriteString("The programs are made of what follows, each with its licence.\n")
	for _, title := range titles {
		all := slices.Compact(slices.Sorted(slices.Values(files[title])))
		if len(all) == 0 {
			return nil, fmt.Errorf("%s has no licence in %s", title, top[title])
		}
		for _, file := range all {
			content, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			rel, err := filepath.Rel(top[title], file)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(&text, "\n%s\n%s: %s\n%[1]s\n\n%s", strings.Repeat("=", 72), title, path.Clean(filepath.ToSlash(rel)), bytes.TrimSpace(content))
			text.WriteByte('\n')
		}
	}
	return text.Bytes(), nil
}
