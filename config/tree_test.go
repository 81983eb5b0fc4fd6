package config

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// What is TOML and what is not, and what may be defined twice, the tree decides as the library's own decoder does.
func FuzzTreeIsTOML(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, text := range []string{
		"a.b = true\na.c = false\n", "a.b = true\n[a]\nc = true\n", "[a.b]\n[a]\n", "[a]\n[a.b]\n[a]\n", "[a]\nb.c = true\n[a.b]\n", "[a.b.c]\n[a]\nb.d = true\n",
		"a = {b = true}\n[a.c]\n", "a = {b.c = true, b.d = false}\n", "a = {b = {c = true}, b.d = false}\n", "a = [true]\n[[a]]\n", "[[a]]\n[a.b]\n[[a]]\n[a.b]\n", "[[a]]\n[a]\n",
		"[a]\n[[a]]\n", "[[a.b]]\n[a]\nb = true\n", "a = [{b = true}]\na.c = false\n", "\"\" = true\n'' = false\n", "[a.b]\n[[a]]\n", "[a]\n[a.b.c]\n[a.b]\n",
		"[a.b]\n[a.b.c]\nx = true\n[a]\nb.x = true\n", "[[a.b]]\n[[a]]\n", "a.b = {}\n[a.b.c]\n", "[a]\nb = {}\n[a.b]\n", "[x]\n[x.y]\n[x.y.z]\n[x.y]\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
			return
		}
		root, errs, _ := parseTree(data)
		var theirs map[string]any
		err := toml.Unmarshal(data, &theirs)
		if (len(errs) == 0) != (err == nil) && !literal(root) {
			t.Errorf("%q\nours: %v\ntheirs: %v", data, Errors(errs), err)
		}
	})
}

// literal tells whether there is a date or a number in the tree: whether these are possible ones is found out when they are wanted.
func literal(n *node) bool {
	if n.shape == isDate || n.shape == isInteger || n.shape == isFloat {
		return true
	}
	for _, c := range append(n.items, n.each()...) {
		if literal(c) {
			return true
		}
	}
	return false
}
