package deploy

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"turbotunnel/test/programs"
)

// helpFlag finds the flags in the answer to -h, each at the beginning of a line.
var helpFlag = regexp.MustCompile(`(?m)^  (-[a-z-]+)`)

// TestCompletion: bash and zsh complete the flags that the programs have, all of
// them and no others.
func TestCompletion(t *testing.T) {
	for name, program := range map[string]string{"client": programs.Client, "server": programs.Server} {
		help, err := exec.Command(program, "-h").Output()
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, match := range helpFlag.FindAllStringSubmatch(string(help), -1) {
			want = append(want, match[1])
		}
		slices.Sort(want)
		folder := filepath.Join(programs.Root, "deploy/completion")
		for shell, script := range map[string][]string{
			"bash": {"-c", `. "$0" && COMP_WORDS=(program -) COMP_CWORD=1 && _turbotunnel_` + name + ` && printf '%s\n' "${COMPREPLY[@]}"`, filepath.Join(folder, "turbotunnel-"+name+".bash")},
			"zsh":  {"-f", "-c", `_arguments() { for argument; do [[ $argument = -* ]] && print -r -- "${argument%%\[*}"; done; true }; . "$0"`, filepath.Join(folder, "_turbotunnel-"+name)},
		} {
			out, err := exec.Command(shell, script...).CombinedOutput()
			if err != nil {
				t.Errorf("%s: %v\n%s", shell, err, out)
			}
			got := strings.Fields(string(out))
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s completes for turbotunnel-%s\n%q, want\n%q", shell, name, got, want)
			}
		}
	}
}
