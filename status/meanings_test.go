package status

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// declared is a health.Meaning in the sources.
type declared struct{ name, what, hint, where string }

// meanings finds the declarations of what errors mean in the sources: literals with a key What.
func meanings(t *testing.T) (all []declared) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && (d.Name() == "node_modules" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			m := map[string]string{}
			for _, e := range lit.Elts {
				kv, ok := e.(*ast.KeyValueExpr)
				if !ok {
					continue
				}
				key, isName := kv.Key.(*ast.Ident)
				value, isText := kv.Value.(*ast.BasicLit)
				if isName && isText && value.Kind == token.STRING {
					if m[key.Name], err = strconv.Unquote(value.Value); err != nil {
						t.Error(err)
					}
				}
			}
			if m["What"] != "" {
				all = append(all, declared{m["Name"], m["What"], m["Hint"], files.Position(lit.Pos()).String()})
			}
			return true
		})
		return nil
	})
	if err != nil || len(all) < 100 {
		t.Fatalf("%d meanings are declared (%v)", len(all), err)
	}
	return all
}

var places = regexp.MustCompile(`\{[a-z]+\}`)

// TestEveryExplanationIsInKorean holds each text of what errors mean, and its places, against its translation.
func TestEveryExplanationIsInKorean(t *testing.T) {
	sorted := func(text string) []string {
		return slices.Compact(slices.Sorted(slices.Values(places.FindAllString(text, -1))))
	}
	known := map[string]string{}
	for _, m := range meanings(t) {
		if other := known[m.name]; other != "" || m.name == "" || m.hint == "" {
			t.Errorf("%s: the meaning %q is without a name or a hint, or declared at %s too", m.where, m.name, other)
		}
		known[m.name] = m.where
		for key, text := range map[string]string{"what." + m.name: m.what, "advice." + m.name: m.hint} {
			if got := korean.texts[key]; got == "" {
				t.Errorf("%s: %q is not in Korean: %s", m.where, key, text)
			} else if !slices.Equal(sorted(got), sorted(text)) {
				t.Errorf("%s: %q has the places %q in Korean, and %q", m.where, key, sorted(got), sorted(text))
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(korean.texts)) {
		kind, name, _ := strings.Cut(key, ".")
		if (kind == "what" || kind == "advice") && known[name] == "" {
			t.Errorf("%q explains nothing that is declared", key)
		}
	}
}
