package pkcs11

import (
	"slices"
	"testing"
	"testing/fstest"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

func TestModulesAreFoundByP11KitsRules(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	root := fstest.MapFS{
		"usr/share/p11-kit/modules/opensc.module":          file("# the opensc module\nmodule: opensc-pkcs11.so\n"),
		"usr/share/p11-kit/modules/p11-kit-trust.module":   file("module: p11-kit-trust.so\ntrust-policy: yes\n"),
		"usr/share/p11-kit/modules/softhsm2.module":        file("module: /usr/lib/softhsm/libsofthsm2.so\n"),
		"usr/share/p11-kit/modules/other.module":           file("module: /o.so\ndisable-in: firefox, drawbridge\n"),
		"usr/share/p11-kit/modules/browser.module":         file("module: /b.so\nenable-in: firefox\n"),
		"usr/share/p11-kit/modules/here.module":            file("module: /h.so\nenable-in: drawbridge\n"),
		"usr/share/p11-kit/modules/moved.module":           file("module: /old.so\n"),
		"etc/pkcs11/modules/moved.module":                  file("module:/new.so\npriority: 3\n"),
		"etc/pkcs11/modules/gone.module":                   file("module: not-there.so\n"),
		"etc/pkcs11/modules/README":                        file("module: /readme.so\n"),
		"usr/lib/x86_64-linux-gnu/pkcs11/opensc-pkcs11.so": file("ELF"),
	}
	for what, c := range map[string]struct {
		u    hwcrypto.URI
		want []string
	}{
		"all":                    {hwcrypto.URI{}, []string{"/h.so", "/new.so", "/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/pkcs11/opensc-pkcs11.so"}},
		"by path":                {hwcrypto.URI{ModulePath: "/x.so", ModuleName: "opensc"}, []string{"/x.so"}},
		"by the library's name":  {hwcrypto.URI{ModuleName: "opensc-pkcs11"}, []string{"/usr/lib/x86_64-linux-gnu/pkcs11/opensc-pkcs11.so"}},
		"by its name less lib":   {hwcrypto.URI{ModuleName: "softhsm2"}, []string{"/usr/lib/softhsm/libsofthsm2.so"}},
		"by one that is unknown": {hwcrypto.URI{ModuleName: "nobody"}, nil},
	} {
		got, err := modulePaths(root, c.u)
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	if _, err := modulePaths(fstest.MapFS{}, hwcrypto.URI{}); err == nil {
		t.Error("without any configuration there is a module")
	}
}

func FuzzParseModule(f *testing.F) {
	f.Add([]byte("module: x.so\ntrust-policy: yes\nenable-in: a, b\n#c\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := parseModule("n", b)
		if c.name != "n" {
			t.Fatal(c)
		}
	})
}
