package ptproc

import (
	_ "embed"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// version is the release that this source is of or goes towards. The newest
// heading of CHANGELOG.md says the same.
const version = "0.1.0"

// archived is what git writes into the file when it makes an archive of the
// source, in which nothing else says what it was made of: the commit's hash and,
// for whoever makes a release, its time.
//
//go:embed revision.txt
var archived string

// revisionSize is how many digits of a commit's hash are shown: enough to find
// the commit for as long as there are fewer than millions.
const revisionSize = 12

// Version is the version of the running program, as in 0.1.0.
func Version() string { return version }

// About describes the running program in a line: its name, version, source,
// compiler and platform.
func About(program string) string {
	var settings []debug.BuildSetting
	if info, ok := debug.ReadBuildInfo(); ok {
		settings = info.Settings
	}
	return fmt.Sprintf("%s %s (%s, %s, %s/%s)\n", program, version, revision(archived, settings), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// revision names the commit of which the program was made: as the archive of the
// source has it, otherwise as the Go toolchain recorded it.
func revision(archived string, settings []debug.BuildSetting) string {
	hash, _, _ := strings.Cut(archived, " ")
	changed := ""
	if strings.HasPrefix(hash, "$") { // no archive: git has put nothing in its place
		hash = ""
		for _, s := range settings {
			switch s.Key {
			case "vcs.revision":
				hash = s.Value
			case "vcs.modified":
				if s.Value == "true" {
					changed = ", changed"
				}
			}
		}
	}
	if hash == "" {
		return "no revision"
	}
	return "revision " + hash[:min(revisionSize, len(hash))] + changed
}
