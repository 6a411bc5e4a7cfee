package main

import (
	"os"
	"testing"

	"turbotunnel/test/programs"
)

func TestMain(m *testing.M) { os.Exit(programs.Main(m)) }

// Every attack in a small form, against a server of its own. make hostile runs
// them at full size.
func TestAttacks(t *testing.T) {
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			res := a.try(t.Context(), ourPrograms(), false)
			t.Log(res.line())
			if res.err != nil {
				t.Error(res.err)
			}
		})
	}
}

func ourPrograms() binaries {
	return binaries{client: programs.Client, server: programs.Server}
}
