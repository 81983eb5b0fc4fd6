package file

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

func TestFilesThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if _, err := (Provider{}).Generate(t.Context(), hwcrypto.URI{Scheme: "file", Path: good}, hwcrypto.ECDSAP256); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(good)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	enc := func(typ string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}) }
	for what, c := range map[string]struct {
		content []byte
		mode    os.FileMode
		want    string
		hint    string
	}{
		"the group may read it": {b, 0o640, "others may read it (mode 0640)", "chmod 600"},
		"empty":                 {nil, 0o600, "no PEM in it", ""},
		"two keys":              {append(b, b...), 0o600, "more in it than one PEM block", ""},
		"SEC 1":                 {enc("EC PRIVATE KEY", []byte{0}), 0o600, "want PKCS#8", "openssl pkcs8"},
		"a certificate":         {enc("CERTIFICATE", []byte{0}), 0o600, `PEM type "CERTIFICATE"`, ""},
		"rubbish in PEM":        {enc("PRIVATE KEY", []byte{0}), 0o600, "not PKCS#8", ""},
		"a curve of others":     {enc("PRIVATE KEY", p521), 0o600, "P-521", ""},
		"an empty secret":       {enc("SECRET KEY", nil), 0o600, "the secret is empty", ""},
		"far too long":          {make([]byte, maxFile+1), 0o600, "longer than", ""},
	} {
		path := filepath.Join(dir, "k")
		os.Remove(path)
		if err := os.WriteFile(path, c.content, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := (Provider{}).Open(t.Context(), hwcrypto.URI{Scheme: "file", Path: path})
		var h interface{ Hint() string }
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &h) != (c.hint != "") || c.hint != "" && !strings.Contains(h.Hint(), c.hint) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := (Provider{}).Open(t.Context(), hwcrypto.URI{Scheme: "file", Path: dir}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("-----BEGIN SECRET KEY-----\nAAEC\n-----END SECRET KEY-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nUse: agreement\n\nMAA=\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parse("k", b)
		if err != nil {
			return
		}
		if _, err := k.(hwcrypto.Describer).Describe(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
