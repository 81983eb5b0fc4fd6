package main

import (
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// terminal tells whether somebody types at, or looks at, f.
func terminal(r any) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// guarded gives where to write what people are to read: what strangers say, such as the names in a certificate, is not to steer a terminal.
func guarded(f *os.File) io.Writer {
	if terminal(f) {
		return harmless{f}
	}
	return f
}

// harmless writes "?" in place of control characters but line feeds and tabs.
type harmless struct{ io.Writer }

func (h harmless) Write(b []byte) (int, error) {
	text := []byte(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '?'
		}
		return r
	}, string(b)))
	if _, err := h.Writer.Write(text); err != nil {
		return 0, err
	}
	return len(b), nil
}
