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

// terms are the licences in use, by their SPDX identifiers, each with words that no other has.
var terms = []struct{ id, words string }{
	{"Apache-2.0", "Apache License Version 2.0, January 2004"},
	{"BSD-2-Clause", "this list of conditions and the following disclaimer in the documentation and/or other materials provided with the distribution. THIS SOFTWARE"},
	{"BSD-3-Clause", "may be used to endorse or promote products derived from this software"},
	{"EPL-2.0", "Eclipse Public License - v 2.0"},
	{"ISC", "Permission to use, copy, modify, and distribute this software for any purpose with or without fee"},
	{"MIT", "Permission is hereby granted, free of charge, to any person obtaining a copy"},
}

// identify gives the SPDX identifiers of a module's licences. One that is not among the terms is an error: somebody has to read it.
func identify(m module) (ids []string, err error) {
	texts, err := licences(m)
	if err != nil {
		return nil, err
	}
	all := strings.Join(strings.Fields(strings.Join(texts, " ")), " ")
	for _, t := range terms {
		if strings.Contains(all, t.words) {
			ids = append(ids, t.id)
		}
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("%s %s has a licence that is not known here", m.Path, m.Version)
	}
	return ids, nil
}

// bill is a bill of materials as CycloneDX 1.5 has it.
type bill struct {
	Format   string `json:"bomFormat"`
	Spec     string `json:"specVersion"`
	Number   int    `json:"version"`
	Metadata struct {
		Component component `json:"component"`
	} `json:"metadata"`
	Components []component `json:"components"`
}

type component struct {
	Type     string    `json:"type"`
	Ref      string    `json:"bom-ref"`
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	PURL     string    `json:"purl"`
	Licenses []license `json:"licenses"`
}

type license struct {
	License struct {
		ID string `json:"id"`
	} `json:"license"`
}

func describe(kind, path, version string, ids ...string) component {
	purl := "pkg:golang/" + path + "@" + version
	c := component{Type: kind, Ref: purl, Name: path, Version: version, PURL: purl}
	for _, id := range ids {
		var l license
		l.License.ID = id
		c.Licenses = append(c.Licenses, l)
	}
	return c
}

func writeSBOM(w io.Writer, version string, mods []module) error {
	bom := bill{Format: "CycloneDX", Spec: "1.5", Number: 1}
	bom.Metadata.Component = describe("application", program, version, "Apache-2.0")
	for _, m := range mods {
		ids, err := identify(m)
		if err != nil {
			return err
		}
		bom.Components = append(bom.Components, describe("library", m.Path, m.Version, ids...))
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(bom)
}
