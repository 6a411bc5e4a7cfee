// Command release makes what is given to those who do not build for themselves:
// an archive for each platform, with the manual pages, the licences of all that
// is linked and a list of it (an SBOM in CycloneDX's form); Debian packages;
// images for containers; the source; and SHA256SUMS of them all.
//
// What it makes depends on the commit and on the version of Go alone. It builds
// from an export of the commit, never from the files that lie around, and every
// time that goes into a file is the commit's.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"turbotunnel/internal/ptproc"
)

// name begins the names of all that is made.
var name = "turbotunnel-" + ptproc.Version()

// The kinds of files that can be asked for.
var kinds = []string{"source", "archives", "debs", "images"}

func main() {
	root := flag.String("C", ".", "root of the source")
	out := flag.String("o", "dist", "folder for what is made")
	only := flag.String("platforms", "all", `platforms, separated by commas; "here": this machine's`)
	kind := flag.String("kinds", strings.Join(kinds, ","), "what to make")
	flag.Parse()
	if err := release(*root, *out, *only, strings.Split(*kind, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// release makes the wanted kinds of files for the platforms called only, of the
// source at root, in the folder out.
func release(root, out, only string, wanted []string) error {
	for _, kind := range wanted {
		if !slices.Contains(kinds, kind) {
			return fmt.Errorf("nothing is called %q; there are %s", kind, strings.Join(kinds, ", "))
		}
	}
	chosen, err := choose(only)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "release")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	src, err := export(root, filepath.Join(work, "source"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	var made []string
	if slices.Contains(wanted, "source") {
		file := name + ".tar.gz"
		if err := src.archive(filepath.Join(out, file)); err != nil {
			return err
		}
		made = append(made, file)
	}
	for _, p := range chosen {
		files, err := p.make(src, filepath.Join(work, p.name), out, wanted)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		made = append(made, files...)
	}
	for _, file := range made {
		fmt.Println(filepath.Join(out, file))
	}
	return writeSums(out, made)
}

// choose returns the platforms called only.
func choose(only string) ([]platform, error) {
	if only == "all" {
		return platforms, nil
	}
	var chosen []platform
	for word := range strings.SplitSeq(only, ",") {
		if word == "here" {
			word = runtime.GOOS + "-" + cmp.Or(map[string]string{"arm": "armv7"}[runtime.GOARCH], runtime.GOARCH)
		}
		i := slices.IndexFunc(platforms, func(p platform) bool { return p.name == word })
		if i < 0 {
			return nil, fmt.Errorf("no platform is called %q", word)
		}
		chosen = append(chosen, platforms[i])
	}
	return chosen, nil
}
