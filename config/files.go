package config

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
)

const (
	maxSecret = 64 << 10
	maxPSK    = 64 // octets that RFC 4279 section 5.3 asks every implementation to take
)

// files checks the files that the decoder has seen named, by what their keys say that they are.
func (k *checker) files(d *decoder) {
	for _, n := range d.secrets {
		k.secret(n)
	}
	for _, n := range d.paths {
		switch {
		case n.value == "":
		case n.key == "ca" || strings.HasSuffix(n.key, "_ca") || n.key == "signed_by":
			k.pemFile(n, "CERTIFICATE", true, func(der []byte) error { _, err := x509.ParseCertificate(der); return err })
		case n.key == "crl" || strings.HasSuffix(n.key, "_crl"):
			k.pemFile(n, "X509 CRL", true, func(der []byte) error { _, err := x509.ParseRevocationList(der); return err })
		case n.key == "cert":
			// The certificate of a key is often still to be obtained: that is for `enroll` and the list of problems.
			k.pemFile(n, "CERTIFICATE", false, func(der []byte) error { _, err := x509.ParseCertificate(der); return err })
		case n.key == "module":
			if _, err := os.Stat(n.value); err != nil {
				k.unread(n.pos, "", n.key, n.value, err)
			}
		}
	}
}

func (k *checker) add(pos Pos, hint, format string, args ...any) {
	k.errs = append(k.errs, &Error{Pos: pos, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// unread reports a file that could not be read.
func (k *checker) unread(pos Pos, hint, key, path string, err error) {
	missing := errors.Is(err, fs.ErrNotExist)
	if perr, ok := errors.AsType[*fs.PathError](err); ok {
		err = perr.Err
	}
	k.errs = append(k.errs, &Error{Pos: pos, Msg: fmt.Sprintf("%s: %q: %v", key, path, err), Hint: hint, missing: missing})
}

// readFile reads a regular file of at most limit octets.
func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("not a regular file")
	case info.Size() > limit:
		return nil, fmt.Errorf("larger than %s", Size(limit))
	}
	return os.ReadFile(path)
}

// pemFile checks that a file holds PEM blocks of one type, and that each can be read.
func (k *checker) pemFile(n named, block string, must bool, parse func(der []byte) error) {
	data, err := readFile(n.value, maxFile)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return
	}
	if err != nil {
		k.unread(n.pos, "", n.key, n.value, err)
		return
	}
	count := 0
	for len(data) > 0 {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		count++
		switch {
		case strings.Contains(b.Type, "PRIVATE KEY"):
			k.add(n.pos, "", "%s: %q holds a private key beside certificates", n.key, n.value)
			return
		case b.Type != block:
			k.add(n.pos, "", "%s: %q holds a %s, not a %s", n.key, n.value, b.Type, block)
			return
		}
		if err := parse(b.Bytes); err != nil {
			k.add(n.pos, "", "%s: %q: the %s number %d cannot be read: %v", n.key, n.value, block, count, err)
			return
		}
	}
	if count == 0 {
		k.add(n.pos, "", "%s: %q holds no PEM block of the type %s", n.key, n.value, block)
	}
}

// private checks that a file with a secret in it is for its owner alone. absent tells that it may yet come to be.
func (k *checker) private(pos Pos, key, path string, absent bool) bool {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && absent:
		return false
	case err != nil:
		k.unread(pos, "", key, path, err)
	case !info.Mode().IsRegular():
		k.add(pos, "", "%s: %q: not a regular file", key, path)
	case info.Mode().Perm()&0o077 != 0:
		k.add(pos, "chmod 600 "+shellQuoted(path), "%s: others can read %q, of mode %04o", key, path, info.Mode().Perm())
	default:
		return true
	}
	return false
}

// shellQuoted makes a word that a shell takes as it is.
func shellQuoted(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// secret checks that a secret is there, and is for its owner alone.
func (k *checker) secret(n named) {
	ref := SecretRef(n.value)
	if _, ok := ref.Key(); ok && n.key != "psk" {
		k.add(n.pos, "write "+secretForms, "%s: only a device's psk may stay in a chip", n.key)
		return
	}
	path, err := ref.file()
	if ref == "" || err != nil {
		return // a credential is there only where systemd has started us
	}
	switch ref.scheme() {
	case "file":
		k.private(n.pos, n.key, path, false)
	case "sealed":
		if _, err := readFile(path, maxSecret); err != nil {
			k.unread(n.pos, "drawbridge keys seal FILE > "+shellQuoted(path), n.key, path, err)
		}
	case "credential":
		if _, err := readFile(path, maxSecret); err != nil {
			k.unread(n.pos, "LoadCredential= in the unit", n.key, path, err)
		}
	}
}

// content gives what is in the file of a secret that is not sealed; nil where it cannot be had, which has been said elsewhere.
func content(ref SecretRef) []byte {
	if ref.scheme() == "sealed" {
		return nil
	}
	path, err := ref.file()
	if err != nil {
		return nil
	}
	data, err := readFile(path, maxSecret)
	if err != nil {
		return nil
	}
	return data
}

// psk checks the form of a pre-shared key, or that there is the key that holds it.
func (k *checker) psk(d *Device) {
	pos, ref := k.c.At(d, "psk"), d.PSK
	if name, ok := ref.Key(); ok {
		switch key := k.c.Keys[name]; {
		case key == nil:
			k.noSuch(d, "psk", -1, "key", name, sortedKeys(k.c.Keys))
		case key.Cert != "" || key.EST != "":
			k.at(d, "psk", "psk: the key %q has a certificate, so it is no secret", name).Hint = "a [key.NAME] of its own, and `drawbridge keys import NAME FILE`"
		}
		return
	}
	data := content(ref)
	if data == nil {
		return
	}
	defer clear(data)
	key, err := DecodePSK(trimSecret(data))
	clear(key)
	if err != nil {
		k.add(pos, "", "psk: the file is wrong: %v", err)
	}
}

func (k *checker) password(pos Pos, ref SecretRef) {
	data := content(ref)
	if data == nil {
		return
	}
	defer clear(data)
	data = trimSecret(data)
	switch {
	case len(data) == 0:
		k.add(pos, "", "password: the file is empty")
	case data[0] == '$' && hashLike.Match(data) && !hash.Match(data):
		k.add(pos, "", "password: the file holds a hash that is neither argon2id nor bcrypt, or is cut off")
	}
}

var (
	hashLike = regexp.MustCompile(`^\$[0-9a-z]+\$`)
	hash     = regexp.MustCompile(`^(?:\$argon2id\$v=19\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+|\$2[aby]\$\d\d\$[./A-Za-z0-9]{53})$`)
)

// trimSecret gives data without one trailing newline.
func trimSecret(data []byte) []byte {
	data, ok := bytes.CutSuffix(data, []byte("\n"))
	if ok {
		data = bytes.TrimSuffix(data, []byte("\r"))
	}
	return data
}

// DecodePSK reads the content of a PSK file, without its trailing newline: octets as they are, or text after "hex:" or "base64:".
// The result is a copy.
func DecodePSK(data []byte) ([]byte, error) {
	var key []byte
	switch {
	case bytes.HasPrefix(data, []byte("hex:")):
		key = make([]byte, hex.DecodedLen(len(data)-4))
		if _, err := hex.Decode(key, data[4:]); err != nil {
			return nil, errors.New(`what follows "hex:" is not hexadecimal`)
		}
	case bytes.HasPrefix(data, []byte("base64:")):
		text := bytes.TrimRight(data[7:], "=")
		key = make([]byte, base64.RawStdEncoding.DecodedLen(len(text)))
		n, err := base64.RawStdEncoding.Strict().Decode(key, text)
		if err != nil {
			return nil, errors.New(`what follows "base64:" is not Base64`)
		}
		key = key[:n]
	default:
		key = bytes.Clone(data)
	}
	if len(key) == 0 || len(key) > maxPSK {
		n := len(key)
		clear(key)
		return nil, fmt.Errorf("a key has 1 to %d octets, not %d", maxPSK, n)
	}
	return key, nil
}

// ParseFingerprint reads the SHA-256 of a certificate in hexadecimal, with or without colons.
func ParseFingerprint(s string) (sum [sha256.Size]byte, err error) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
	if err != nil || len(b) != len(sum) {
		return sum, fmt.Errorf("%q is not the SHA-256 of a certificate: 64 hexadecimal digits", s)
	}
	return [sha256.Size]byte(b), nil
}

// Glob tells whether s matches a pattern of a [group]: each "*" stands for one or more characters other than "." and "/".
// Letters of either case are the same, as in names of hosts.
func Glob(pattern, s string) bool {
	head, tail, star := strings.Cut(pattern, "*")
	if len(s) < len(head) || !strings.EqualFold(s[:len(head)], head) {
		return false
	}
	s = s[len(head):]
	if !star {
		return s == ""
	}
	for i := 1; i <= len(s) && s[i-1] != '.' && s[i-1] != '/'; i++ {
		if Glob(tail, s[i:]) {
			return true
		}
	}
	return false
}
