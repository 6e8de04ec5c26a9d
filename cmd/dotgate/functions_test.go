package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const (
	maxFunctionLines = 60
	maxComplexity    = 15
)

// TestFunctionsAreShort reports each function outside tests that is longer than
// maxFunctionLines or has a cyclomatic complexity above maxComplexity. Tests are exempt:
// most of their lines are cases.
func TestFunctionsAreShort(t *testing.T) {
	const root = "../.."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && (name == "testdata" || strings.HasPrefix(name, ".") && path != root) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, found := range longFunctions(files, file) {
			t.Error(strings.TrimPrefix(found, root+"/"))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// longFunctions returns FILE:LINE: PROBLEM for each function over a limit.
func longFunctions(files *token.FileSet, file *ast.File) (found []string) {
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Body == nil {
			continue
		}
		begin, end := files.Position(f.Pos()), files.Position(f.End())
		report := func(problem string, n int) {
			found = append(found, begin.Filename+":"+strconv.Itoa(begin.Line)+": "+f.Name.Name+" has "+problem+" "+strconv.Itoa(n))
		}
		if n := end.Line - begin.Line + 1; n > maxFunctionLines {
			report("lines:", n)
		}
		if n := complexity(f); n > maxComplexity {
			report("cyclomatic complexity", n)
		}
	}
	return found
}

// complexity returns the number of branches in f, plus one. Those of functions within
// f count, too.
func complexity(f *ast.FuncDecl) int {
	n := 1
	ast.Inspect(f, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.IfStmt, *ast.ForStmt, *ast.RangeStmt:
			n++
		case *ast.CaseClause:
			if node.List != nil {
				n++
			}
		case *ast.CommClause:
			if node.Comm != nil {
				n++
			}
		case *ast.BinaryExpr:
			if node.Op == token.LAND || node.Op == token.LOR {
				n++
			}
		}
		return true
	})
	return n
}

func TestLongFunctionsAreFound(t *testing.T) {
	f := func(text string, want int) {
		t.Helper()
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, "a.go", "package a\n\nfunc f() {\n"+text+"}\n", 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := complexity(file.Decls[0].(*ast.FuncDecl)); got != want {
			t.Errorf("%s: got %d, want %d", text, got, want)
		}
	}
	f("", 1)
	f("if a && b || c {\n}\n", 4)
	f("for range a {\nfor {\n}\n}\n", 3)
	f("switch a {\ncase 1, 2:\ncase 3:\ndefault:\n}\n", 3)
	f("select {\ncase <-a:\ndefault:\n}\n", 2)
	f("_ = func() {\nif a {\n}\n}\n", 2)
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "a.go", "package a\n\nfunc f() {\n"+strings.Repeat("f()\n", maxFunctionLines)+"}\n", 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := longFunctions(files, file); len(got) != 1 || got[0] != "a.go:3: f has lines: 62" {
		t.Errorf("%q", got)
	}
}
