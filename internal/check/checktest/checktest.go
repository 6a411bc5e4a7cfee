// Package checktest compares what a check says with what was written down. Tests use
// it, and nothing else.
package checktest

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// numbers are what differs from run to run: times, rates, the letters that line them
// up, and how often it was said that a step goes on.
var numbers = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`\.*([✓!✗]) +\d+ (ms|s)  `), "$1 TIME  "},
	{regexp.MustCompile(`\d+ (ms|s) at`), "TIME at"},
	{regexp.MustCompile(`[\d.]+ [kM]bit/s`), "RATE"},
	{regexp.MustCompile(`(requests|answers) of \d+ KB`), "$1 of SIZE"},
	{regexp.MustCompile(`72h0m\d+s|71h59m\d+s`), "72h0m0s"},
}

// Golden compares what the case of a table said with its file in the folder dir, and
// writes the file where the test is run with -update.
func Golden(t *testing.T, dir, name, text string) {
	t.Helper()
	for _, n := range numbers {
		text = n.re.ReplaceAllString(text, n.with)
	}
	file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("%s is not what was written:\n%s", file, text)
	}
}
