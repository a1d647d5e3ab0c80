package doccheck

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// decls are the top-level names of one package with, for constants and
// variables, the expression that sets them; methods as "Type.Method".
type decls map[string]string

// packageDecls parses the packages below internal/ by their last element.
// Packages of the same last element are merged. Of test files only the tests and
// the fuzz targets are taken.
func packageDecls(t *testing.T) map[string]decls {
	t.Helper()
	all := map[string]decls{}
	err := filepath.WalkDir(filepath.Join(root, "internal"), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "pb") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		name := filepath.Base(filepath.Dir(path))
		if all[name] == nil {
			all[name] = decls{}
		}
		if strings.HasSuffix(path, "_test.go") {
			all[name].tests(f)
		} else {
			all[name].add(fset, f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (d decls) add(fset *token.FileSet, f *ast.File) {
	for _, decl := range f.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			name := decl.Name.Name
			if decl.Recv != nil && len(decl.Recv.List) == 1 {
				name = receiver(decl.Recv.List[0].Type) + "." + name
			}
			d[name] = ""
		case *ast.GenDecl:
			for _, s := range decl.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					d[s.Name.Name] = ""
					d.members(s)
				case *ast.ValueSpec:
					for i, n := range s.Names {
						d[n.Name] = ""
						if i < len(s.Values) {
							var b bytes.Buffer
							if printer.Fprint(&b, fset, s.Values[i]) == nil {
								d[n.Name] = b.String()
							}
						}
					}
				}
			}
		}
	}
}

// tests adds the tests and fuzz targets of a test file.
func (d decls) tests(f *ast.File) {
	for _, decl := range f.Decls {
		if x, ok := decl.(*ast.FuncDecl); ok && x.Recv == nil && testPattern.MatchString(x.Name.Name) {
			d[x.Name.Name] = ""
		}
	}
}

var testPattern = regexp.MustCompile(`^(Test|Fuzz)[A-Z]`)

// members adds the fields of a struct and the methods of an interface.
func (d decls) members(s *ast.TypeSpec) {
	var list *ast.FieldList
	switch x := s.Type.(type) {
	case *ast.StructType:
		list = x.Fields
	case *ast.InterfaceType:
		list = x.Methods
	default:
		return
	}
	for _, f := range list.List {
		for _, n := range f.Names {
			d[s.Name.Name+"."+n.Name] = ""
		}
	}
}

func receiver(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.StarExpr:
		return receiver(x.X)
	case *ast.IndexExpr:
		return receiver(x.X)
	case *ast.Ident:
		return x.Name
	}
	return ""
}

var namePattern = regexp.MustCompile(`^([a-z][a-z0-9]*)\.([A-Za-z][A-Za-z0-9]*(?:\.[A-Z][A-Za-z0-9]*)?)$`)

// fileEndings end words that look like package.Name and are files.
var fileEndings = map[string]bool{
	"md": true, "json": true, "onnx": true, "html": true, "yaml": true, "sh": true, "py": true, "go": true, "txt": true,
	"jsonl": true, "npz": true, "log": true, "mod": true, "sum": true, "lock": true, "gc": true, "meta": true, "sweep": true, "data": true,
}

// TestNamesExist: every package.Name in code font, where package is one of
// ours, is declared there.
func TestNamesExist(t *testing.T) {
	all := packageDecls(t)
	for _, p := range pages(t) {
		prose, _ := p.blocks()
		for _, m := range codePattern.FindAllStringSubmatch(prose, -1) {
			n := namePattern.FindStringSubmatch(m[1])
			if n == nil || fileEndings[n[2]] {
				continue
			}
			names, ours := all[n[1]]
			if !ours {
				continue
			}
			if _, ok := names[n[2]]; !ok {
				t.Errorf("%s names %s, which is not declared", p.path, m[1])
			}
		}
	}
}

var constantRow = regexp.MustCompile("^\\| `([a-z]+)\\.([A-Za-z0-9]+)` \\| `([^`]+)` \\|")

// TestConstants: the table at the end of docs/numerics.md holds the values in
// the source.
func TestConstants(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "docs/numerics.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(b), "<!-- constants -->")
	table, _, ok := strings.Cut(table, "<!-- /constants -->")
	if !ok {
		t.Fatal("docs/numerics.md has no table of constants")
	}
	all := packageDecls(t)
	rows := 0
	for _, line := range strings.Split(table, "\n") {
		m := constantRow.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		rows++
		if got, ok := all[m[1]][m[2]]; !ok || got != m[3] {
			t.Errorf("docs/numerics.md: %s.%s is %q there, %q in the source", m[1], m[2], m[3], got)
		}
	}
	if rows < 20 {
		t.Errorf("only %d rows read", rows)
	}
}
