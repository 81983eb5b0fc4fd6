// Command notice lists the modules that are built into drawbridge: with their licences' texts, or as a bill of materials.
//
//	notice           > NOTICE
//	notice -sbom 1.2 > drawbridge.cdx.json    (CycloneDX 1.5)
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const program = "github.com/drawbridge/drawbridge/cmd/drawbridge"

// module is what `go list` tells of one.
type module struct {
	Path, Version, Dir string
	Main               bool
}

func main() {
	mods, err := modules(context.Background())
	switch {
	case err != nil:
	case len(os.Args) == 1:
		err = writeNotice(os.Stdout, mods)
	case len(os.Args) == 3 && os.Args[1] == "-sbom":
		err = writeSBOM(os.Stdout, os.Args[2], mods)
	default:
		err = errors.New("usage: notice [-sbom VERSION]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "notice:", err)
		os.Exit(1)
	}
}

// modules gives the modules whose packages the program imports, by path.
func modules(ctx context.Context) ([]module, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-json=Module", program)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	found := map[string]module{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ Module *module }
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if p.Module != nil && !p.Module.Main {
			found[p.Module.Path] = *p.Module
		}
	}
	var list []module
	for _, m := range found {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b module) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

func writeNotice(w io.Writer, mods []module) error {
	fmt.Fprint(w, "Drawbridge is built with the Go standard library and the modules below. Their licences follow.\n")
	for _, m := range mods {
		texts, err := licences(m)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\n%s\n%s %s\n%s\n", strings.Repeat("=", 100), m.Path, m.Version, strings.Repeat("=", 100))
		for _, t := range texts {
			fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(t))
		}
	}
	return nil
}

// licences gives the texts of the files at the module's top that say on what terms it is used. A module without one is an error.
func licences(m module) (texts []string, err error) {
	entries, err := os.ReadDir(m.Dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if e.IsDir() || !slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(m.Dir, e.Name()))
		if err != nil {
			return nil, err
		}
		texts = append(texts, string(b))
	}
	if len(texts) == 0 {
		return nil, fmt.Errorf("%s %s has no licence", m.Path, m.Version)
	}
	return texts, nil
}

func writeSBOM(w io.Writer, version string, mods []module) error {
	type component struct {
		Type    string `json:"type"`
		Ref     string `json:"bom-ref"`
		Name    string `json:"name"`
		Version string `json:"version"`
		PURL    string `json:"purl"`
	}
	describe := func(kind, path, version string) component {
		purl := "pkg:golang/" + path + "@" + version
		return component{kind, purl, path, version, purl}
	}
	bom := struct {
		Format     string         `json:"bomFormat"`
		Spec       string         `json:"specVersion"`
		Number     int            `json:"version"`
		Metadata   map[string]any `json:"metadata"`
		Components []component    `json:"components"`
	}{"CycloneDX", "1.5", 1, map[string]any{"component": describe("application", program, version)}, nil}
	for _, m := range mods {
		bom.Components = append(bom.Components, describe("library", m.Path, m.Version))
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(bom)
}
