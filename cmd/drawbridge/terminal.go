package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// terminal tells whether somebody types at r.
func terminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
