// Package needs says what a test needs of its machine. What is missing fails the test where the environment variable CI is set, so that nothing
// is passed over unseen, and skips it elsewhere.
package needs

import (
	"errors"
	"os"
	"os/exec"
	"testing"
)

// Program gives the path of a program, which may stand where only root looks.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		Missing(t, name, "is not installed")
	}
	return path
}

// Root is for what only root may do.
func Root(t testing.TB, what string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, what, "takes root")
	}
}

// Missing ends a test that lacks what args say.
func Missing(t testing.TB, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(args...)
	}
	t.Skip(args...)
}
