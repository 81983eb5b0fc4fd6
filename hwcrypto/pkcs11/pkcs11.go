// Package pkcs11 reaches keys in PKCS#11 tokens.
//
// What always holds: a wrong PIN is tried once and not again until its source says another; a URI that several keys or tokens match is
// refused; keys are made SENSITIVE and not EXTRACTABLE; a session, a log-in or a token that is lost is found again by the next
// operation; an operation that hangs costs its session and no more; objects are made while nothing else runs in the module. A module is a
// singleton of the process: to find a token again it is initialized anew while nothing runs in it, and its other tokens are logged in
// again by their next operations.
//
// The package needs cgo. Built without, every method says so.
package pkcs11

import (
	"io/fs"
	"os"
	"time"
)

// Options say where things are found. Zero values are the defaults.
type Options struct {
	Credentials string        // $CREDENTIALS_DIRECTORY, for pin-source=credential:NAME
	Timeout     time.Duration // of one operation; default 10s
	Workers     int           // operations at once in one token; default 8
	Root        fs.FS         // where p11-kit's configuration is read; default the file system's root
}

func (o Options) root() fs.FS {
	if o.Root == nil {
		return os.DirFS("/")
	}
	return o.Root
}

func (o Options) timeout() time.Duration {
	if o.Timeout == 0 {
		return 10 * time.Second
	}
	return o.Timeout
}
