package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestTheBillOfMaterialsHasWhatIsBuiltIn(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "drawbridge")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-o", binary, program).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	mods, err := modules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := writeSBOM(&text, "1.2", mods); err != nil {
		t.Fatal(err)
	}
	var b bill
	if err := json.Unmarshal(text.Bytes(), &b); err != nil {
		t.Fatal(err)
	}
	if c := b.Metadata.Component; c.Name != info.Path || c.Version != "1.2" {
		t.Errorf("the bill is of %s %s", c.Name, c.Version)
	}
	named := map[string]component{}
	for _, c := range b.Components {
		named[c.Name] = c
		if len(c.Licenses) == 0 {
			t.Errorf("%s has no licence", c.Name)
		}
	}
	for _, m := range info.Deps {
		if named[m.Path].Version != m.Version {
			t.Errorf("%s %s: the bill has version %q", m.Path, m.Version, named[m.Path].Version)
		}
	}
	if len(named) != len(info.Deps) {
		t.Errorf("%d modules are built in, %d named", len(info.Deps), len(named))
	}
}

func TestLicencesAreIdentified(t *testing.T) {
	mods, err := modules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"github.com/spf13/cobra": "Apache-2.0", "golang.org/x/sys": "BSD-3-Clause", "github.com/coder/websocket": "ISC", "go.etcd.io/bbolt": "MIT",
	}
	for _, m := range mods {
		ids, err := identify(m)
		if err != nil {
			t.Error(err)
		}
		if id, ok := want[m.Path]; ok && (len(ids) != 1 || ids[0] != id) {
			t.Errorf("%s is under %v, not %s", m.Path, ids, id)
		}
		delete(want, m.Path)
	}
	if len(want) > 0 {
		t.Errorf("not built in: %v", want)
	}
}
