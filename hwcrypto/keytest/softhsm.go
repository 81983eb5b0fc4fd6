// Package keytest holds the suite that every provider of keys passes, and starts the chips that tests work with: SoftHSM2 for PKCS#11
// and swtpm for TPM 2.0.
//
// What always holds: every test has a chip of its own, in a directory of its own, which goes away with it; tests may run in parallel.
// Where the program is missing, the test is skipped, or fails if the environment variable CI is set.
package keytest

import (
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/drawbridge/drawbridge/internal/needs"
)

// Token is a SoftHSM2 token.
type Token struct {
	Module  string // a copy of SoftHSM2's library that knows this token alone
	Label   string
	PIN     string
	PINFile string
	Dir     string // of the objects: moved away, the token is gone
	Conf    string // for SoftHSM2's own tools: SOFTHSM2_CONF
}

// URI names an object of the token.
func (k *Token) URI(object string) string {
	return "pkcs11:token=" + k.Label + ";object=" + object + "?pin-source=file:" + k.PINFile + "&module-path=" + k.Module
}

// softHSM is where distributions put it.
var softHSM = []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"}

const confVariable = "SOFTHSM2_CONF"

// SoftHSM makes a token.
//
// A PKCS#11 module is a singleton of the process and reads the name of its configuration from the environment, which is the
// process's too. So each token gets a copy of the library that reads a variable of its own.
func SoftHSM(t testing.TB) *Token {
	t.Helper()
	if !cgo {
		t.Skip("this build has no PKCS#11 support: it was built without cgo")
	}
	var lib string
	for _, pattern := range softHSM {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			lib = found[0]
			break
		}
	}
	if lib == "" {
		needs.Missing(t, "libsofthsm2.so is not installed")
	}
	util := needs.Program(t, "softhsm2-util")
	dir := t.TempDir()
	k := &Token{Label: "gw-" + rand.Text()[:6], PIN: "1234", Module: filepath.Join(dir, "libsofthsm2.so"),
		PINFile: filepath.Join(dir, "pin"), Dir: filepath.Join(dir, "tokens"), Conf: filepath.Join(dir, "softhsm2.conf")}
	code, err := os.ReadFile(lib)
	check(t, err)
	variable := "SOFTHSM" + rand.Text()[:len(confVariable)-len("SOFTHSM")]
	if !bytes.Contains(code, []byte(confVariable)) {
		t.Fatalf("%s does not read %s", lib, confVariable)
	}
	write(t, k.Module, bytes.ReplaceAll(code, []byte(confVariable), []byte(variable)), 0o700)
	check(t, os.Mkdir(k.Dir, 0o700))
	write(t, k.Conf, []byte("directories.tokendir = "+k.Dir+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600)
	write(t, k.PINFile, []byte(k.PIN+"\n"), 0o600)
	setenv(t, variable, k.Conf)
	cmd := exec.Command(util, "--init-token", "--free", "--label", k.Label, "--pin", k.PIN, "--so-pin", "5678")
	cmd.Env = append(os.Environ(), confVariable+"="+k.Conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v\n%s", err, out)
	}
	return k
}

// Another makes a second token in the same module. Its Dir is its own, where that of the first is for both.
func (k *Token) Another(t testing.TB) *Token {
	t.Helper()
	had, err := filepath.Glob(filepath.Join(k.Dir, "*"))
	check(t, err)
	a := *k
	a.Label = "gw-" + rand.Text()[:6]
	cmd := exec.Command(needs.Program(t, "softhsm2-util"), "--init-token", "--free", "--label", a.Label, "--pin", a.PIN, "--so-pin", "5678")
	cmd.Env = append(os.Environ(), confVariable+"="+k.Conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v\n%s", err, out)
	}
	have, err := filepath.Glob(filepath.Join(k.Dir, "*"))
	check(t, err)
	for _, dir := range have {
		if !slices.Contains(had, dir) {
			a.Dir = dir
		}
	}
	return &a
}

// setenv is t.Setenv for a variable that no other test knows: parallel tests may set theirs.
func setenv(t testing.TB, k, v string) {
	t.Helper()
	check(t, os.Setenv(k, v))
	t.Cleanup(func() { os.Unsetenv(k) })
}

func write(t testing.TB, path string, b []byte, mode os.FileMode) {
	t.Helper()
	check(t, os.WriteFile(path, b, mode))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
