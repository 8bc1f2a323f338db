// Package surface holds the tests of what users of the SDK see: that nothing
// exported lacks a comment, and that every package shows by an example that
// runs how it is used.
package surface

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

const module = "../.."

// public are the folders with packages that anybody may import.
func public(t *testing.T) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(module, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		switch d.Name() {
		case "internal", "testdata", "api", "storetest": // a suite for implementors shows itself
			return fs.SkipDir
		}
		if files, _ := filepath.Glob(filepath.Join(path, "*.go")); len(files) > 0 {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 15 {
		t.Fatalf("only %d public packages were found: %v", len(out), out)
	}
	return out
}

func parse(t *testing.T, dir string, tests bool) (*token.FileSet, []*ast.File) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") != tests {
			continue
		}
		f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return set, files
}

func TestNothingExportedLacksAComment(t *testing.T) {
	for _, dir := range public(t) {
		set, files := parse(t, dir, false)
		said := false
		lacks := func(at token.Pos, what string) { t.Errorf("%s: %s has no comment", set.Position(at), what) }
		for _, f := range files {
			said = said || f.Doc != nil
			for _, d := range f.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if d.Doc == nil && d.Name.IsExported() && receiverExported(d) {
						lacks(d.Pos(), d.Name.Name)
					}
				case *ast.GenDecl:
					for _, spec := range d.Specs {
						checkSpec(d, spec, lacks)
					}
				}
			}
		}
		if !said && len(files) > 0 && files[0].Name.Name != "main" {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

func receiverExported(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	of := d.Recv.List[0].Type
	if star, ok := of.(*ast.StarExpr); ok {
		of = star.X
	}
	if index, ok := of.(*ast.IndexExpr); ok {
		of = index.X
	}
	name, ok := of.(*ast.Ident)
	return ok && name.IsExported()
}

func checkSpec(d *ast.GenDecl, spec ast.Spec, lacks func(token.Pos, string)) {
	switch spec := spec.(type) {
	case *ast.ValueSpec: // a comment on the group says it for all
		for _, name := range spec.Names {
			if name.IsExported() && d.Doc == nil && spec.Doc == nil && spec.Comment == nil {
				lacks(name.Pos(), name.Name)
			}
		}
	case *ast.TypeSpec:
		if !spec.Name.IsExported() {
			return
		}
		if d.Doc == nil && spec.Doc == nil {
			lacks(spec.Pos(), spec.Name.Name)
		}
		switch of := spec.Type.(type) {
		case *ast.StructType:
			if name := spec.Name.Name; strings.HasSuffix(name, "Config") || strings.HasSuffix(name, "Params") || strings.HasSuffix(name, "Options") {
				checkFields(name, of.Fields.List, lacks)
			}
		case *ast.InterfaceType:
			checkFields(spec.Name.Name, of.Methods.List, lacks)
		}
	}
}

// checkFields wants a comment on what a user fills in (configurations, what an
// interface asks for); the type's own comment speaks for plain data. A comment
// also speaks for the fields after it that have none.
func checkFields(of string, fields []*ast.Field, lacks func(token.Pos, string)) {
	spoken := false
	for _, field := range fields {
		spoken = spoken || field.Doc != nil
		for _, name := range field.Names {
			if name.IsExported() && !spoken && field.Comment == nil {
				lacks(name.Pos(), of+"."+name.Name)
			}
		}
	}
}

func TestEachPackageHasAnExampleThatRuns(t *testing.T) {
	for _, dir := range public(t) {
		_, files := parse(t, dir, true)
		_, code := parse(t, dir, false)
		if len(code) > 0 && code[0].Name.Name == "main" {
			continue
		}
		runs := false
		for _, f := range files {
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(fn.Name.Name, "Example") {
					runs = runs || hasOutput(f, fn)
				}
			}
		}
		if !runs {
			t.Errorf("%s has no Example with an output that is checked", dir)
		}
	}
}

func hasOutput(f *ast.File, fn *ast.FuncDecl) bool {
	for _, group := range f.Comments {
		if group.Pos() > fn.Body.Pos() && group.End() < fn.Body.End() {
			text := strings.ToLower(group.Text())
			if strings.HasPrefix(text, "output:") || strings.HasPrefix(text, "unordered output:") {
				return true
			}
		}
	}
	return false
}
