// Package file keeps keys in files: for first runs and tests.
//
// What always holds: a key file that others than its owner may read is refused; a file is never replaced; every key says of itself
// that it is weak. A private key is PEM with PKCS#8 ("PRIVATE KEY"), a secret is PEM of the type "SECRET KEY".
//
// It protects nothing from whoever may read the process's memory or its files.
package file

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

const maxFile = 64 << 10

// Provider opens keys of the scheme file. The zero value is ready.
type Provider struct{}

var (
	_ hwcrypto.Provider  = Provider{}
	_ hwcrypto.Generator = Provider{}
	_ hwcrypto.Importer  = Provider{}
	_ hwcrypto.Lister    = Provider{}
)

// Open reads the key file.
func (Provider) Open(_ context.Context, u hwcrypto.URI) (hwcrypto.Key, error) {
	b, err := read(u.Path)
	if err != nil {
		return nil, fmt.Errorf("key file %q: %w", u.Path, err)
	}
	defer clear(b)
	k, err := parse(u.Path, b)
	if err != nil {
		return nil, fmt.Errorf("key file %q: %w", u.Path, err)
	}
	return k, nil
}

// Generate makes a key and a file for it. ErrKeyExists where there is a file already, whatever it holds.
func (p Provider) Generate(_ context.Context, u hwcrypto.URI, alg hwcrypto.Algorithm) (hwcrypto.Key, error) {
	block := &pem.Block{Type: privateType}
	var err error
	switch alg {
	case hwcrypto.ECDSAP256, hwcrypto.ECDSAP384:
		curve := elliptic.P256()
		if alg == hwcrypto.ECDSAP384 {
			curve = elliptic.P384()
		}
		var k *ecdsa.PrivateKey
		if k, err = ecdsa.GenerateKey(curve, rand.Reader); err == nil {
			block.Bytes, err = x509.MarshalPKCS8PrivateKey(k)
		}
	case hwcrypto.RSA2048:
		var k *rsa.PrivateKey
		if k, err = rsa.GenerateKey(rand.Reader, 2048); err == nil {
			block.Bytes, err = x509.MarshalPKCS8PrivateKey(k)
		}
	case hwcrypto.ECDHP256:
		// PKCS#8 cannot tell a key for ECDH from one for ECDSA on the same curve: the header does.
		var k *ecdh.PrivateKey
		if k, err = ecdh.P256().GenerateKey(rand.Reader); err == nil {
			block.Headers = map[string]string{useHeader: useAgree}
			block.Bytes, err = x509.MarshalPKCS8PrivateKey(k)
		}
	case hwcrypto.HMACSHA256:
		block.Type, block.Bytes = secretType, random(32)
	default:
		err = fmt.Errorf("%w: no %q in a file", hwcrypto.ErrUnsupported, alg)
	}
	if err != nil {
		return nil, fmt.Errorf("key file %q: %w", u.Path, err)
	}
	return create(u.Path, block)
}

// Import makes a file for an HMAC secret.
func (p Provider) Import(_ context.Context, u hwcrypto.URI, secret []byte) (hwcrypto.Key, error) {
	if len(secret) == 0 {
		return nil, fmt.Errorf("key file %q: the secret is empty", u.Path)
	}
	return create(u.Path, &pem.Block{Type: secretType, Bytes: bytes.Clone(secret)})
}

// List describes the one key that a file holds.
func (p Provider) List(ctx context.Context, u hwcrypto.URI) ([]hwcrypto.Info, error) {
	k, err := p.Open(ctx, u)
	if err != nil {
		return nil, err
	}
	i, err := k.(hwcrypto.Describer).Describe(ctx)
	return []hwcrypto.Info{i}, err
}

// Close does nothing.
func (Provider) Close() error { return nil }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hwcrypto.ErrNoKey
	}
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, cause(err)
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if m := st.Mode().Perm(); m&0o077 != 0 {
		return nil, hwcrypto.Exposed(fmt.Errorf("others may read it (mode %04o)", m), path)
	}
	if st.Size() > maxFile {
		return nil, fmt.Errorf("longer than %d octets", maxFile)
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, cause(err)
	}
	return b, nil
}

func create(path string, block *pem.Block) (hwcrypto.Key, error) {
	b := pem.EncodeToMemory(block)
	defer clear(b)
	defer clear(block.Bytes)
	k, err := parse(path, b)
	if err == nil {
		err = hwcrypto.WriteNew(path, b)
	}
	if errors.Is(err, fs.ErrExist) {
		err = hwcrypto.ErrKeyExists
	}
	if err != nil {
		return nil, fmt.Errorf("key file %q: %w", path, cause(err))
	}
	return k, nil
}

// cause strips the path, which the caller has said.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
