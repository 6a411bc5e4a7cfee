package mobile

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"testing"
)

// gobind leaves out what it cannot bind without a word, so that a method would be
// missing on the phone. What it can bind stands in
// golang.org/x/mobile/cmd/gobind's documentation under "Type restrictions".
func TestEverythingCanBeBound(t *testing.T) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "mobile.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Other packages' types are invalid here, and could not be bound either.
	conf := types.Config{Importer: noImports{}, Error: func(error) {}}
	pkg, _ := conf.Check("turbotunnel/common/mobile", fset, []*ast.File{file}, nil)
	seen := 0
	for _, name := range pkg.Scope().Names() {
		obj := pkg.Scope().Lookup(name)
		if !obj.Exported() {
			continue
		}
		seen++
		switch obj := obj.(type) {
		case *types.Func:
			checkSignature(t, pkg, obj)
		case *types.TypeName:
			named := obj.Type().(*types.Named)
			for m := range named.Methods() {
				if m.Exported() {
					checkSignature(t, pkg, m)
				}
			}
			switch u := named.Underlying().(type) {
			case *types.Interface:
				for m := range u.Methods() {
					checkSignature(t, pkg, m)
				}
			case *types.Struct:
				for f := range u.Fields() {
					if f.Exported() && !bindable(pkg, f.Type()) {
						t.Errorf("%s.%s cannot be bound", name, f.Name())
					}
				}
			default:
				t.Errorf("the type %s cannot be bound", name)
			}
		default:
			t.Errorf("%s cannot be bound", name)
		}
	}
	if seen < 4 {
		t.Errorf("only %d exported names were found", seen)
	}
}

// noImports has no packages.
type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not here") }

func checkSignature(t *testing.T, pkg *types.Package, f *types.Func) {
	t.Helper()
	sig := f.Signature()
	for p := range sig.Params().Variables() {
		if !bindable(pkg, p.Type()) {
			t.Errorf("%s: the parameter %s cannot be bound", f.FullName(), p.Name())
		}
	}
	results := sig.Results()
	n := results.Len()
	if n > 0 && isError(results.At(n-1).Type()) {
		n--
	}
	if n > 1 || n == 1 && !bindable(pkg, results.At(0).Type()) || sig.Variadic() {
		t.Errorf("%s: one result and an error, of types that can be bound, are possible, and no ...", f.FullName())
	}
}

func isError(t types.Type) bool { return types.Identical(t, types.Universe.Lookup("error").Type()) }

// bindable tells whether gobind binds t: signed numbers, text, switches, bytes, and
// this package's interfaces and pointers to its structs.
func bindable(pkg *types.Package, t types.Type) bool {
	switch t := t.(type) {
	case *types.Basic:
		return t.Kind() != types.Invalid && t.Info()&(types.IsString|types.IsBoolean|types.IsFloat) != 0 ||
			t.Info()&types.IsInteger != 0 && t.Info()&types.IsUnsigned == 0
	case *types.Slice:
		b, ok := t.Elem().(*types.Basic)
		return ok && b.Kind() == types.Uint8
	case *types.Pointer:
		named, ok := t.Elem().(*types.Named)
		return ok && named.Obj().Pkg() == pkg
	case *types.Named:
		return named(pkg, t)
	}
	return false
}

func named(pkg *types.Package, t *types.Named) bool {
	if isError(t) {
		return true
	}
	_, isInterface := t.Underlying().(*types.Interface)
	return isInterface && t.Obj().Pkg() == pkg
}
