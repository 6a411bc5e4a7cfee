// Package floors checks that a package imports only floors below its own.
package floors

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "turbotunnel/"

// The folders of the two modules, seen from this one. Import paths of both
// begin with module.
const (
	product = "../.."
	tests   = ".."
)

// A pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Module     *struct { // nil in the standard library
		Path, Version string
		Main          bool
	}
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// floors are the packages of the product from the ground up, by their folder;
// a folder stands for what is in it as well. A package may import the floors
// below its own, and the packages of its own line in front of it.
var floors = [][]string{
	{"internal/logtest", "internal/scrub", "internal/relay", "internal/accept", "common/proxy", "common/lull", "internal/ptproc"}, // of no floor: each on its own
	{"common/wire", "common/handshake", "common/measure"},
	{"common/carrier"},
	{"common/front"},
	{"common/names"},
	{"common/engine", "common/engines"}, // below it only by the rules further down
	{"common/tunnel"},
	{"internal/socks", "common/mobile", "internal/check"},
	{"client", "server"},
	{"test"}, // the other module
}

const goptlib = "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"

// A rule says what the packages of a folder must not import, tests included.
type rule struct {
	who    string // a folder
	except []string
	not    string // a folder of the module, or an import path outside it
	why    string
}

var rules = []rule{
	{who: "common/engine", not: "net/http", why: "the engine floor knows net, not HTTP"},
	{who: "common/engine", not: "common/carrier", why: "an engine runs on any net.PacketConn"},
	{who: "common/engine", not: "common/front", why: "an engine runs on any net.PacketConn"},
	{who: "common/engine", not: "common/wire", why: "an engine runs on any net.PacketConn"},
	{who: "common/engine", not: "common/handshake", why: "an engine runs on any net.PacketConn"},
	{who: "common/wire", not: "net/http", why: "the record floor knows no HTTP"},
	{who: "common/handshake", not: "net/http", why: "the record floor knows no HTTP"},
	{who: "common/carrier", not: "common/engine", why: "the carrier knows no engine"},
	{who: "common/carrier", not: "common/engines", why: "the carrier knows no engine"},
	{who: "common/proxy", not: "net/http", why: "a proxy is asked for a connection, not for an exchange"},
	{who: "common/front", not: "common/engine", why: "HTTP knows no engine"},
	{who: "common/front", not: "common/engines", why: "HTTP knows no engine"},
	{
		who: "", except: []string{"client", "server", "internal/ptproc", "internal/socks"}, not: goptlib,
		why: "only the programs know Tor, and who speaks SOCKS with it",
	},
	{
		who: "", except: []string{"common/engine/internal/mux", "common/engine/kcpsmux"}, not: "github.com/xtaci/smux",
		why: "one package multiplexes; the tests of kcp-smux play a plain smux",
	},
	{who: "common", except: []string{"common/mobile"}, not: "internal", why: "the library does without what the programs share"},
	{who: "common/tunnel", not: "flag", why: "a library has no command line"},
	{who: "client", not: "server", why: "the programs share packages of common/"},
	{who: "server", not: "client", why: "the programs share packages of common/"},
}

// stands are what tests are made of, and no program.
var stands = []string{"internal/logtest", "internal/socks/sockstest"}

// notEngines are the packages under common/engine that are no concrete engine.
var notEngines = []string{"common/engine", "common/engine/enginetest", "common/engine/internal"}

// vague are names that say nothing of what a package holds.
var vague = []string{"util", "utils", "helper", "helpers", "misc", "lib", "common", "shared", "base"}

// in tells whether the import path is the folder or inside it. A folder's path
// counts from the module; the empty folder is the whole module.
func in(importPath, folder string) bool {
	if folder == "" {
		return strings.HasPrefix(importPath, module)
	}
	for _, dir := range []string{module + folder, folder} {
		if importPath == dir || strings.HasPrefix(importPath, dir+"/") {
			return true
		}
	}
	return false
}

// place returns where in floors a package stands.
func place(importPath string) (floor, position int, ok bool) {
	for floor, folders := range floors {
		for position, folder := range folders {
			if in(importPath, folder) {
				return floor, position, true
			}
		}
	}
	return 0, 0, false
}

// check returns what is wrong with the packages, a sentence each.
func check(packages []pkg) []string {
	var wrong []string
	for _, p := range packages {
		who := strings.TrimPrefix(p.ImportPath, module)
		floor, position, ok := place(p.ImportPath)
		if !ok {
			wrong = append(wrong, who+" stands on no floor: give it its place in floors")
			continue
		}
		if slices.Contains(vague, path.Base(who)) {
			wrong = append(wrong, who+" has a name that says nothing")
		}
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			what := strings.TrimPrefix(imported, module)
			f, pos, ours := place(imported)
			ours = ours && in(imported, "")
			if ours && (f > floor || f == floor && pos > position) {
				wrong = append(wrong, fmt.Sprintf("%s imports %s, which stands above it", who, what))
			}
			if anyIn(imported, stands) {
				if slices.Contains(p.Imports, imported) {
					wrong = append(wrong, fmt.Sprintf("%s imports %s, which is for tests", who, what))
				}
				continue // the rules are for what the programs are made of
			}
			for _, r := range rules {
				if in(p.ImportPath, r.who) && !anyIn(p.ImportPath, r.except) && in(imported, r.not) {
					wrong = append(wrong, fmt.Sprintf("%s imports %s: %s", who, what, r.why))
				}
			}
			concrete := ours && in(imported, "common/engine") && !slices.Contains(notEngines, what) &&
				!in(imported, "common/engine/internal")
			names := in(p.ImportPath, "common/engines") || in(p.ImportPath, "common/tunnel") || in(imported, who) ||
				who == "common/engine/kcpsmux" && what == "common/engine/kcp" // of which it is made
			if concrete && !names {
				wrong = append(wrong, fmt.Sprintf("%s imports %s: only the table of engines names one", who, what))
			}
		}
	}
	return wrong
}

func anyIn(importPath string, folders []string) bool {
	return slices.ContainsFunc(folders, func(folder string) bool { return in(importPath, folder) })
}

// list returns what go list says of the packages of the module in dir and of all
// that they are made of.
func list(t *testing.T, dir string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "-C", dir, "list", "-deps", "-json=ImportPath,Module,Imports,TestImports,XTestImports", "./...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var packages []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

func TestFloors(t *testing.T) {
	for _, dir := range []string{product, tests} {
		packages := slices.DeleteFunc(list(t, dir), func(p pkg) bool { return p.Module == nil || !p.Module.Main })
		if len(packages) < 2 {
			t.Fatalf("go list found %d packages in %s", len(packages), dir)
		}
		for _, wrong := range check(packages) {
			t.Error(wrong)
		}
	}
}

// TestVersions: tests that use the product's packages use what the programs are
// made of. Each module has a go.mod of its own, in which the two could drift.
func TestVersions(t *testing.T) {
	versions := make(map[string]string)
	for _, p := range list(t, product) {
		if p.Module != nil && !p.Module.Main {
			versions[p.Module.Path] = p.Module.Version
		}
	}
	if len(versions) == 0 {
		t.Fatal("the product is made of no other modules")
	}
	for _, p := range list(t, tests) {
		if p.Module == nil {
			continue
		}
		if want, both := versions[p.Module.Path]; both && p.Module.Version != want {
			t.Errorf("%s is %s in the tests, and %s in the programs", p.Module.Path, p.Module.Version, want)
			delete(versions, p.Module.Path) // said once
		}
	}
}

// TestCheck breaks each kind of rule once.
func TestCheck(t *testing.T) {
	for _, test := range []struct {
		who, imports string
		want         string // part of the one thing wrong; empty: nothing is
	}{
		{"common/tunnel", "common/carrier", ""},
		{"common/tunnel", "common/engine/kcp", ""},
		{"common/engines", "common/engine/kcp", ""},
		{"common/engine/kcpsmux", "common/engine/internal/mux", ""},
		{"common/engine/kcpsmux", "common/engine/kcp", ""},
		{"common/engine/quic", "common/engine/kcp", "table of engines"},
		{"common/engine/sctp", "github.com/xtaci/smux", "one package"},
		{"client", goptlib, ""},
		{"internal/ptproc", goptlib, ""},
		{"internal/ptproc", "common/proxy", ""},
		{"common/front", "common/proxy", ""},
		{"test/e2e", "test/tornet", ""},
		{"common/carrier", "common/tunnel", "stands above"},
		{"common/wire", "common/carrier", "stands above"},
		{"common/tunnel", "client", "stands above"},
		{"internal/scrub", "test/proc", "stands above"},
		{"server", "test/target", "stands above"},
		{"common/engine/kcp", "net/http", "not HTTP"},
		{"common/engine/kcp", "net/http/httptest", "not HTTP"},
		{"common/engine/quic", "common/carrier", "any net.PacketConn"},
		{"common/wire", "net/http", "no HTTP"},
		{"common/proxy", "common/front", "stands above"},
		{"common/proxy", "net/http", "not for an exchange"},
		{"common/carrier", goptlib, "know Tor"},
		{"common/front", goptlib, "know Tor"},
		{"client", "common/engine/kcp", "table of engines"},
		{"server", "client", "share packages"},
		{"common/util", "net", "no floor"},
		{"common/wire/util", "net", "says nothing"},
		{"common/mobile", "common/tunnel", ""},
		{"common/mobile", "internal/socks", ""},
		{"common/tunnel", "internal/scrub", "what the programs share"},
		{"internal/socks", goptlib, ""},
		{"common/tunnel", "common/mobile", "stands above"},
		{"internal/check", "common/carrier", ""},
		{"common/front", "internal/logtest", ""},
		{"common/tunnel", "internal/socks/sockstest", "stands above"},
		{"tools", "net", "no floor"},
	} {
		imports := test.imports
		if _, _, ours := place(module + imports); ours {
			imports = module + imports
		}
		got := check([]pkg{{ImportPath: module + test.who, TestImports: []string{imports}}})
		if test.want == "" && len(got) > 0 || test.want != "" && (len(got) != 1 || !strings.Contains(got[0], test.want)) {
			t.Errorf("%s importing %s: %q, want %q", test.who, test.imports, got, test.want)
		}
	}
	got := check([]pkg{{ImportPath: module + "server", Imports: []string{module + "internal/logtest"}}})
	if len(got) != 1 || !strings.Contains(got[0], "for tests") {
		t.Errorf("a program made of what is for tests: %q", got)
	}
}
