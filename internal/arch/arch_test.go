package arch

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/drawbridge/drawbridge"

// table says for each folder what else of this module it may import: a folder with all below it, or with "=" before it that one
// package alone. A folder may also import what lies within itself. The first line that fits a package holds.
var table = []struct {
	folder string
	may    []string
}{
	{folder: "internal"},
	{folder: "config", may: []string{"internal"}},
	{folder: "hwcrypto", may: []string{"config", "internal"}},
	{folder: "auth", may: []string{"hwcrypto", "config", "internal"}},
	{folder: "southbound", may: []string{"auth", "hwcrypto", "config", "internal"}},
	{folder: "northbound", may: []string{"auth", "hwcrypto", "config", "internal"}},
	{folder: "bridge/spool", may: []string{"internal"}},
	{folder: "bridge", may: []string{"=southbound", "=northbound", "auth", "config", "internal"}},
	{folder: "status", may: []string{"=southbound", "=northbound", "=bridge", "=bridge/spool", "=auth", "=hwcrypto", "=config", "internal"}},
	{folder: "cmd", may: []string{""}},
	{folder: "packaging", may: []string{"cmd", "internal"}},
}

// contracts are the interfaces that any test may name, to prove that what it tests fits them.
var contracts = []string{"southbound", "northbound"}

// pkg is what `go list` tells of a package.
type pkg struct {
	Dir, ImportPath                    string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
}

func list(t *testing.T) (all []pkg) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=Dir,ImportPath,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", module+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 5 {
		t.Fatalf("go list found %d packages", len(all))
	}
	return all
}

// within tells whether a package lies in a folder.
func within(path, folder string) bool {
	return folder == "" || path == folder || strings.HasPrefix(path, folder+"/")
}

// allowed tells whether the package from may import the package to, both relative to the module.
func allowed(from, to string) bool {
	for _, row := range table {
		if !within(from, row.folder) {
			continue
		}
		if within(to, row.folder) {
			return true
		}
		return slices.ContainsFunc(row.may, func(m string) bool {
			if one, ok := strings.CutPrefix(m, "="); ok {
				return to == one
			}
			return within(to, m)
		})
	}
	return false
}

func TestImportsFollowTheTable(t *testing.T) {
	for _, p := range list(t) {
		from := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		for kind, imports := range map[string][]string{"": p.Imports, " (test)": p.TestImports, " (external test)": p.XTestImports} {
			for _, i := range imports {
				to, ours := strings.CutPrefix(i, module+"/")
				if ours && to != from && !allowed(from, to) && (kind == "" || !slices.Contains(contracts, to)) {
					t.Errorf("%s%s imports %s", from, kind, to)
				}
			}
		}
	}
}

func TestTheTableItself(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"internal/supervise", "internal/health", true},
		{"internal/health", "config", false},
		{"hwcrypto/pkcs11", "hwcrypto", true},
		{"hwcrypto", "auth", false},
		{"southbound/coap", "southbound", true},
		{"southbound/coap", "southbound/southtest", true},
		{"southbound/coap", "northbound", false},
		{"southbound/coap", "bridge", false},
		{"northbound/aws", "northbound/mqtt", true},
		{"northbound/aws", "southbound", false},
		{"northbound/aws", "bridge/spool", false},
		{"bridge", "southbound", true},
		{"bridge", "southbound/mqtt", false},
		{"bridge", "bridge/spool", true},
		{"bridge", "hwcrypto", false},
		{"bridge/spool", "bridge", false},
		{"bridge/spool", "internal/msg", true},
		{"status", "bridge/spool", true},
		{"status", "northbound/mqtt", false},
		{"status", "cmd/drawbridge", false},
		{"cmd/drawbridge", "northbound/mqtt", true},
		{"util", "internal/msg", false},
	} {
		if got := allowed(c.from, c.to); got != c.want {
			t.Errorf("%s → %s: %v, want %v", c.from, c.to, got, c.want)
		}
	}
}

// maxLines is how long a file may be and still fit in one head.
const maxLines = 600

// forbidden are the selectors that only a program and tests use, and why.
var forbidden = map[string]string{
	"os.Exit":            "only main ends the process",
	"log.Fatal":          "only main ends the process",
	"slog.Default":       "the logger is handed down",
	"slog.SetDefault":    "the logger is handed down",
	"context.Background": "the context is handed down",
	"context.TODO":       "the context is handed down",
}

func TestHabits(t *testing.T) {
	for _, p := range list(t) {
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		documented := len(p.GoFiles) == 0
		for _, file := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, filepath.Join(p.Dir, file), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Error(err)
				continue
			}
			test := strings.HasSuffix(file, "_test.go")
			documented = documented || !test && f.Doc != nil
			for _, fault := range faults(set, f, f.Name.Name == "main" || test) {
				t.Errorf("%s/%s:%s", name, file, fault)
			}
		}
		if !documented {
			t.Errorf("%s: no package doc", name)
		}
		if base := filepath.Base(name); slices.Contains([]string{"util", "utils", "common", "base", "manager", "helper", "helpers", "misc"}, base) {
			t.Errorf("%s: a package is named for what it gives", name)
		}
	}
}

// faults finds what the habits forbid; free says that the file may use what is forbidden.
func faults(set *token.FileSet, f *ast.File, free bool) (found []string) {
	if n := set.File(f.FileStart).LineCount(); n > maxLines {
		found = append(found, fmt.Sprintf("%d: longer than %d lines", n, maxLines))
	}
	note := func(at ast.Node, why string) {
		found = append(found, fmt.Sprintf("%d: %s", set.Position(at.Pos()).Line, why))
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil && n.Name.Name == "init" {
				note(n, "init function")
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && !free {
				if why, ok := forbidden[x.Name+"."+n.Sel.Name]; ok {
					note(n, x.Name+"."+n.Sel.Name+": "+why)
				}
			}
		case *ast.KeyValueExpr:
			if k, ok := n.Key.(*ast.Ident); ok && k.Name == "Insecure"+"SkipVerify" {
				note(n, "certificates are always verified")
			}
		}
		return true
	})
	return found
}
