package config

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Std gives d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String gives the form in which it is written in the file.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// parseDuration reads "30s", "10m", "168h" or "1h30m"; the empty text is zero.
func parseDuration(s string) (Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, errors.New(`the units are "ms", "s", "m" and "h"`)
	case d < 0:
		return 0, errors.New("it cannot be negative")
	}
	return Duration(d), nil
}

var sizeUnits = []struct {
	name string
	unit float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}, {"", 1},
}

// String gives the form in which it is written in the file.
func (n Size) String() string {
	for i := 3; i >= 0; i-- {
		if u := sizeUnits[i]; n != 0 && n%Size(u.unit) == 0 {
			return strconv.FormatInt(int64(n/Size(u.unit)), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(n), 10)
}

// parseSize reads "256MiB", "1GiB", "64KiB", "10MB" or "512".
func parseSize(s string) (Size, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(digits, 64)
		if err != nil || digits == "" || digits[0] < '0' || digits[0] > '9' {
			break
		}
		if f *= u.unit; f >= math.MaxInt64 {
			return 0, errors.New("it is too large")
		}
		return Size(f), nil
	}
	return 0, errors.New(`the units are "KiB", "MiB" and "GiB"`)
}

// Key gives the name of the [key.NAME] that holds the secret, where one does.
func (r SecretRef) Key() (name string, ok bool) { return strings.CutPrefix(string(r), "key:") }

// scheme gives "file", "credential", "sealed" or "key"; empty where no secret is named.
func (r SecretRef) scheme() string {
	scheme, _, _ := strings.Cut(string(r), ":")
	return scheme
}

// file gives the file that holds the secret, or the sealed form of it. A credential is looked for in
// $CREDENTIALS_DIRECTORY, as systemd hands it over.
func (r SecretRef) file() (string, error) {
	scheme, rest, _ := strings.Cut(string(r), ":")
	switch scheme {
	case "key":
		return "", fmt.Errorf("%q is in a chip", r)
	case "file", "sealed":
		return rest, nil
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return "", fmt.Errorf("credential %q: $CREDENTIALS_DIRECTORY is not set", rest)
	}
	return filepath.Join(dir, rest), nil
}

// parseSecretRef checks the form and makes the path absolute.
func parseSecretRef(s, dir string) (SecretRef, error) {
	scheme, rest, found := strings.Cut(s, ":")
	switch {
	case s == "":
		return "", nil
	case !found:
		return "", errors.New("a secret does not stand in the file, it is named")
	case rest == "":
		return "", fmt.Errorf("nothing follows %q", scheme+":")
	case scheme == "file" || scheme == "sealed":
		return SecretRef(scheme + ":" + string(absolute(rest, dir))), nil
	case scheme == "credential":
		if strings.ContainsAny(rest, "/\x00") || rest == "." || rest == ".." {
			return "", errors.New("a credential's name is a file name without a directory")
		}
		return SecretRef(s), nil
	case scheme == "key":
		return SecretRef(s), nil
	}
	return "", errors.New("a secret does not stand in the file, it is named")
}

const secretForms = `"file:PATH", "credential:NAME" or "sealed:PATH"`

func absolute(path, dir string) Path {
	if path == "" {
		return ""
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return Path(filepath.Clean(path))
}
