package floors

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	inWords  = regexp.MustCompile("`((?:Test|Fuzz)\\w+)")
	targets  = regexp.MustCompile("`(Fuzz\\w+)`|\\((\\w+)\\)")
)

// testsOf returns all tests and fuzz targets, and for each the folders that have one
// of the name.
func testsOf(t *testing.T) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	err := filepath.WalkDir(product, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(product, filepath.Dir(path))
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			all[string(m[1])] = append(all[string(m[1])], filepath.ToSlash(folder))
		}
		return err
	})
	if err != nil || len(all) < 100 {
		t.Fatalf("%d tests: %v", len(all), err)
	}
	return all
}

// TestDocumentsNameTests: the tests that documents name exist, so that who renames one
// finds out.
func TestDocumentsNameTests(t *testing.T) {
	all := testsOf(t)
	documents, err := filepath.Glob(filepath.Join(product, "doc", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, name := range documents {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range inWords.FindAllSubmatch(text, -1) {
			named++
			if all[string(m[1])] == nil {
				t.Errorf("%s names %s, which does not exist", filepath.Base(name), m[1])
			}
		}
	}
	if named < 100 {
		t.Errorf("%d tests are named", named)
	}
}

// TestParsersAreListed: the table of what parses what others send has each fuzz target
// of the product with its package, and no other.
func TestParsersAreListed(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(product, "doc", "reliability.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n## What parses what others send\n")
	listed := make(map[string]bool)
	var names []string
	for _, m := range targets.FindAllStringSubmatch(table, -1) {
		if m[1] != "" {
			names = append(names, m[1])
			continue
		}
		for _, name := range names {
			listed[m[2]+" "+name] = true
		}
		names = nil
	}
	there := make(map[string]bool)
	for name, folders := range testsOf(t) {
		for _, folder := range folders {
			if strings.HasPrefix(name, "Fuzz") && folder != "test" && !strings.HasPrefix(folder, "test/") {
				there[filepath.Base(folder)+" "+name] = true
			}
		}
	}
	if !maps.Equal(listed, there) {
		t.Errorf("the document lists\n%s\nand there are\n%s", lines(listed), lines(there))
	}
}

func lines(set map[string]bool) string { return strings.Join(slices.Sorted(maps.Keys(set)), "\n") }
