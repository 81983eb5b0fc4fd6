package northtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"sync"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/hwcrypto/pkcs11"
	"github.com/drawbridge/drawbridge/hwcrypto/tpm2"
	"github.com/drawbridge/drawbridge/northbound/northtest/broker"
)

// Chip is a PKCS#11 token or a TPM, with the keys of a gateway in it.
type Chip struct {
	provider hwcrypto.Provider
	uri      func(name string) string
	dir      string

	mu   sync.Mutex
	keys map[string]hwcrypto.Key // guarded by mu
}

// Chips runs f with each kind of chip: SoftHSM2 and swtpm.
func Chips(t *testing.T, f func(t *testing.T, c *Chip)) {
	t.Run("SoftHSM2", func(t *testing.T) {
		t.Parallel()
		token := keytest.SoftHSM(t)
		f(t, newChip(t, pkcs11.New(context.WithoutCancel(t.Context()), pkcs11.Options{}), token.URI))
	})
	t.Run("swtpm", func(t *testing.T) {
		t.Parallel()
		chip := keytest.SWTPM(t)
		f(t, newChip(t, tpm2.New(context.WithoutCancel(t.Context()), tpm2.Options{Dir: chip.Dir}), chip.URI))
	})
}

func newChip(t *testing.T, p hwcrypto.Provider, uri func(string) string) *Chip {
	t.Cleanup(func() { p.Close() })
	return &Chip{provider: p, uri: uri, dir: t.TempDir(), keys: map[string]hwcrypto.Key{}}
}

// made gives the key of that name, which the first call makes.
func (c *Chip) made(t testing.TB, name string, make func(hwcrypto.URI) (hwcrypto.Key, error)) hwcrypto.Key {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.keys[name]; k != nil {
		return k
	}
	u, err := hwcrypto.ParseURI(c.uri(name), c.dir)
	if err != nil {
		t.Fatal(err)
	}
	k, err := make(u)
	if err != nil {
		t.Fatal(err)
	}
	c.keys[name] = k
	return k
}

// Key gives the chip's key pair of that kind, which was made in it.
func (c *Chip) Key(t testing.TB, alg hwcrypto.Algorithm) hwcrypto.Key {
	t.Helper()
	return c.made(t, string(alg), func(u hwcrypto.URI) (hwcrypto.Key, error) {
		return c.provider.(hwcrypto.Generator).Generate(t.Context(), u, alg)
	})
}

// MAC gives a key for HMAC that was brought into the chip.
func (c *Chip) MAC(t testing.TB, name string, secret []byte) hwcrypto.MACer {
	t.Helper()
	return c.made(t, name, func(u hwcrypto.URI) (hwcrypto.Key, error) {
		return c.provider.(hwcrypto.Importer).Import(t.Context(), u, secret)
	}).(hwcrypto.MACer)
}

// Certificate has the chip's key certified by ca for s.
func (c *Chip) Certificate(t testing.TB, ca CA, s broker.Subject) tls.Certificate {
	t.Helper()
	key := c.Key(t, hwcrypto.ECDSAP256)
	der, err := ca.Sign(key.Public().(*ecdsa.PublicKey), s)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{
		Certificate: [][]byte{der}, PrivateKey: key, SupportedSignatureAlgorithms: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
	}
}
