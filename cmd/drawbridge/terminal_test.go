package main

import (
	"bytes"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/drawbridge/drawbridge/internal/needs"
)

// A terminal shows what a stranger says, and does not do it; a file gets it as it is.
func TestForeignTextDoesNotSteerATerminal(t *testing.T) {
	const said = "✓ tls:\tcertificate of \"CN=a\x1b[2J\u009b31m\r\b\x7f\"\n"
	var b bytes.Buffer
	if n, err := (harmless{&b}).Write([]byte(said)); n != len(said) || err != nil || b.String() != "✓ tls:\tcertificate of \"CN=a?[2J?31m???\"\n" {
		t.Errorf("%d, %v: %q", n, err, b.String())
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if w := guarded(f); w != io.Writer(f) {
		t.Errorf("a file: %T", w)
	}
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		needs.Missing(t, err)
	}
	defer pty.Close()
	if _, ok := guarded(pty).(harmless); !ok {
		t.Error("a terminal is written to as it comes")
	}
}
