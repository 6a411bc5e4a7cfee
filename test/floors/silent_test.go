package floors

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A libraryMustNot is what a package that others import does not do, by the names
// of a package and of what is in it.
var libraryMustNot = []string{
	"os.Exit", "os.Stdout", "os.Stderr", "os.Getenv", "os.LookupEnv", "os.Setenv",
	"fmt.Print", "fmt.Printf", "fmt.Println", "slog.Default", "slog.SetDefault",
}

// loud are the packages that are for the programs, or for tests. What the API uses of
// internal/ptproc does none of it: a limit is asked for, and log levels have names.
var loud = []string{"internal/ptproc", "common/engine/enginetest"}

// TestLibraryIsSilent: what the API is made of has no output of its own, ends no
// process, reads no environment, and runs nothing when it is imported.
func TestLibraryIsSilent(t *testing.T) {
	files := 0
	look := func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(product, path)
		if d.IsDir() && slices.Contains(loud, filepath.ToSlash(rel)) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		files++
		for _, what := range breaches(t, path, nil) {
			t.Errorf("%s: %s", rel, what)
		}
		return nil
	}
	for _, folder := range []string{"common", "internal"} {
		if err := filepath.WalkDir(filepath.Join(product, folder), look); err != nil {
			t.Fatal(err)
		}
	}
	if files < 20 {
		t.Fatalf("%d files", files)
	}
}

// breaches returns what a file does that a library must not. src is as in
// parser.ParseFile.
func breaches(t *testing.T, path string, src any) (found []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if pkg, ok := n.X.(*ast.Ident); ok && slices.Contains(libraryMustNot, pkg.Name+"."+n.Sel.Name) {
				found = append(found, pkg.Name+"."+n.Sel.Name)
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "print" || f.Name == "println") {
				found = append(found, f.Name)
			}
		case *ast.FuncDecl:
			if n.Recv == nil && n.Name.Name == "init" {
				found = append(found, "init")
			}
		}
		return true
	})
	return found
}

func TestBreaches(t *testing.T) {
	got := breaches(t, "x.go", `package x
		import ("fmt"; "os")
		func init() { os.Exit(1) }
		func f() { println(fmt.Sprint(1)); fmt.Println() }`)
	if want := []string{"init", "os.Exit", "println", "fmt.Println"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
