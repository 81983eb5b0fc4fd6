package pkcs11

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// moduleConf is a module's file in p11-kit's configuration, see pkcs11.conf(5).
type moduleConf struct {
	name     string // of the file, without .module
	module   string // path, or a name in the module directories
	trust    bool   // holds certificates, no keys
	excluded bool   // by enable-in or disable-in
}

// parseModule reads the lines "key: value" of a .module file.
func parseModule(name string, b []byte) moduleConf {
	c := moduleConf{name: name}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if strings.HasPrefix(line, "#") {
			continue
		}
		k, v, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		switch k {
		case "module":
			c.module = v
		case "trust-policy":
			c.trust = v == "yes"
		case "enable-in":
			c.excluded = !listed(v)
		case "disable-in":
			c.excluded = c.excluded || listed(v)
		}
	}
	return c
}

func listed(programs string) bool {
	return slices.Contains(strings.FieldsFunc(programs, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' }), "drawbridge")
}

// Where p11-kit's packages put their files. Administrators' files come last: they replace those of the same name.
var (
	confDirs   = []string{"usr/share/p11-kit/modules", "etc/pkcs11/modules"}
	moduleDirs = []string{"usr/lib/*/pkcs11", "usr/lib/pkcs11", "usr/lib64/pkcs11", "usr/local/lib/pkcs11"}
)

// modulePaths gives the modules in which to look for u's token: the one that u names, else all that p11-kit knows.
func modulePaths(root fs.FS, u hwcrypto.URI) ([]string, error) {
	if u.ModulePath != "" {
		return []string{u.ModulePath}, nil
	}
	known := map[string]moduleConf{}
	for _, dir := range confDirs {
		files, err := fs.Glob(root, path.Join(dir, "*.module"))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			b, err := fs.ReadFile(root, f)
			if err != nil {
				return nil, fmt.Errorf("p11-kit's configuration: %w", err)
			}
			name := strings.TrimSuffix(path.Base(f), ".module")
			known[name] = parseModule(name, b)
		}
	}
	var paths []string
	for _, c := range known {
		if c.trust || c.excluded || c.module == "" || u.ModuleName != "" && !named(c, u.ModuleName) {
			continue
		}
		if p := locate(root, c.module); p != "" && !slices.Contains(paths, p) {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	if len(paths) > 0 {
		return paths, nil
	}
	if u.ModuleName != "" {
		return nil, fmt.Errorf("no PKCS#11 module named %q in p11-kit's configuration", u.ModuleName)
	}
	return nil, noModule.Of(errors.New("no PKCS#11 module in p11-kit's configuration"), nil)
}

// named: RFC 7512 module-name is the library's name without directory, "lib" and suffix; the configuration file's name serves too.
func named(c moduleConf, name string) bool {
	lib := strings.TrimSuffix(path.Base(c.module), ".so")
	return name == c.name || name == lib || "lib"+name == lib
}

func locate(root fs.FS, module string) string {
	if path.IsAbs(module) {
		return module
	}
	for _, dir := range moduleDirs {
		if found, _ := fs.Glob(root, path.Join(dir, module)); len(found) > 0 {
			return "/" + found[0]
		}
	}
	return ""
}
