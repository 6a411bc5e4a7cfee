package mobile

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// gobind leaves out what it cannot bind and says so nowhere but in what it makes, so
// that a method would be missing on the phone. So it is run, and all that the package
// exports looked for in what Java, Kotlin, Objective-C and Swift see of it.
func TestEverythingIsBound(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles all that the package is made of")
	}
	out := t.TempDir()
	gobind := exec.Command("go", "-C", "../../test", "tool", "gobind", "-outdir", out, "turbotunnel/common/mobile")
	if said, err := gobind.CombinedOutput(); err != nil {
		t.Fatalf("gobind: %v\n%s", err, said)
	}
	java, objc := read(t, out, "java/mobile/*.java"), read(t, out, "src/gobind/Mobile.objc.h")
	for _, made := range []string{java, objc, read(t, out, "src/gobind/go_*main.go")} {
		for _, skipped := range regexp.MustCompile(`// skipped .*`).FindAllString(made, -1) {
			t.Error(skipped)
		}
	}
	types, calls := exported(t, "mobile.go")
	if len(types) == 0 || len(calls) == 0 {
		t.Fatalf("the package exports the types %q, the functions and methods %q", types, calls)
	}
	for _, name := range types {
		mustMatch(t, java, `(?m)^public .*\b(class|interface) `+name+`\b`)
		mustMatch(t, objc, `(?m)^@(interface|protocol) Mobile`+name+`\b`)
	}
	for _, name := range calls {
		lower := strings.ToLower(name[:1]) + name[1:]
		mustMatch(t, java, `(?m)^\s*public .*\b`+lower+`\(`)
		mustMatch(t, objc, `(?m)^(FOUNDATION_EXPORT .*\bMobile`+name+`\(|- \(.*\)`+lower+`[:;])`)
	}
}

func mustMatch(t *testing.T, text, pattern string) {
	t.Helper()
	if !regexp.MustCompile(pattern).MatchString(text) {
		t.Errorf("nothing that is bound matches %s", pattern)
	}
}

// read returns what stands in the files of a folder that match.
func read(t *testing.T, folder, pattern string) string {
	t.Helper()
	var all strings.Builder
	files, err := filepath.Glob(filepath.Join(folder, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files; %v", pattern, len(files), err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

// exported returns the names of a file that other packages see: the types, and what
// can be called, methods of interfaces included.
func exported(t *testing.T, file string) (types, calls []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.FileExports(parsed)
	ast.Inspect(parsed, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			calls = append(calls, n.Name.Name)
			return false
		case *ast.TypeSpec:
			types = append(types, n.Name.Name)
		case *ast.InterfaceType:
			for _, method := range n.Methods.List {
				for _, name := range method.Names {
					calls = append(calls, name.Name)
				}
			}
		}
		return true
	})
	return types, calls
}
