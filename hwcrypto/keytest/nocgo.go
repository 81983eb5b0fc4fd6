//go:build !cgo

package keytest

// cgo tells whether this build reaches PKCS#11 modules.
const cgo = false
