package ptproc

import (
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

// A program says of what it was made, from a checkout and from an archive.
func TestRevision(t *testing.T) {
	const hash = "0123456789abcdef0123456789abcdef01234567"
	checkout := []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: hash}, {Key: "vcs.modified", Value: "false"}}
	changed := []debug.BuildSetting{{Key: "vcs.revision", Value: hash}, {Key: "vcs.modified", Value: "true"}}
	for name, test := range map[string]struct {
		archived string
		settings []debug.BuildSetting
		want     string
	}{
		"checkout":              {"$Format:%H %ct$\n", checkout, "revision 0123456789ab"},
		"changed":               {"$Format:%H %ct$\n", changed, "revision 0123456789ab, changed"},
		"no git":                {"$Format:%H %ct$\n", nil, "no revision"},
		"archive":               {hash + " 1795749465\n", nil, "revision 0123456789ab"},
		"archive in a checkout": {hash + " 1795749465\n", []debug.BuildSetting{{Key: "vcs.revision", Value: "another"}}, "revision 0123456789ab"},
	} {
		if got := revision(test.archived, test.settings); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func TestAbout(t *testing.T) {
	about := About("some-program")
	for _, want := range []string{"some-program " + version + " (", runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH + ")\n"} {
		if !strings.Contains(about, want) {
			t.Errorf("%q lacks %q", about, want)
		}
	}
}

// The changelog's newest release is the one that the programs call themselves.
func TestChangelogHasVersion(t *testing.T) {
	text, err := os.ReadFile("../../CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	_, newest, _ := strings.Cut(string(text), "\n## ")
	newest, _, _ = strings.Cut(newest, "\n")
	if got, _, _ := strings.Cut(newest, ","); got != version {
		t.Errorf("the changelog begins with %q; the programs say %s", newest, version)
	}
}
