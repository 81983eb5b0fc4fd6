//go:build cgo

package pkcs11

import (
	"crypto"
	"crypto/tls"
	"fmt"
	"io"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

// bare signs by the module's own functions, in a session of its own.
type bare struct {
	*signer
	h pkcs11.SessionHandle
}

func (k *signer) bare(t testing.TB) *bare {
	h, err := k.t.id.module.ctx.OpenSession(k.t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Error(err)
	}
	return &bare{k, h}
}

func (k *bare) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	c := k.t.id.module.ctx
	if err := c.SignInit(k.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}, k.signer.h); err != nil {
		return nil, err
	}
	sig, err := c.Sign(k.h, digest)
	if err != nil {
		return nil, err
	}
	return hwcrypto.ECDSASignature(sig[:32], sig[32:])
}

// BenchmarkBesideModule holds our signatures and handshakes against those of SoftHSM2 without us between.
func BenchmarkBesideModule(b *testing.B) {
	p := New(b.Context(), Options{})
	defer p.Close()
	u, err := hwcrypto.ParseURI(keytest.SoftHSM(b).URI("a"), "/")
	if err != nil {
		b.Fatal(err)
	}
	made, err := p.Generate(b.Context(), u, hwcrypto.ECDSAP256)
	if err != nil {
		b.Fatal(err)
	}
	k := made.(*signer)
	digest := make([]byte, 32)
	for _, callers := range []int{1, 8} {
		b.Run(fmt.Sprintf("signatures, callers=%d", callers), func(b *testing.B) {
			keytest.Beside(b, fmt.Sprintf("SoftHSM2 ECDSA P-256 signatures, callers: %d", callers), callers, 1,
				func(testing.TB) func() error {
					return func() error { _, err := k.Sign(nil, digest, crypto.SHA256); return err }
				},
				func(t testing.TB) func() error {
					raw := k.bare(t)
					return func() error { _, err := raw.Sign(nil, digest, crypto.SHA256); return err }
				})
		})
	}
	// A call into a module cannot be interrupted, so whoever wants to be given back must wait for it from another goroutine. What that alone costs,
	// which is most where a processor idles and is woken each time, is in both sides here.
	b.Run("signatures, hand-over in both", func(b *testing.B) {
		keytest.Beside(b, "SoftHSM2 ECDSA P-256 signatures, callers: 1, hand-over in both", 1, 1,
			func(testing.TB) func() error {
				return func() error { _, err := k.Sign(nil, digest, crypto.SHA256); return err }
			},
			func(t testing.TB) func() error {
				raw := k.bare(t)
				return func() error {
					done := make(chan error)
					go func() { _, err := raw.Sign(nil, digest, crypto.SHA256); done <- err }()
					return <-done
				}
			})
	})
	b.Run("handshakes", func(b *testing.B) {
		ca := keytest.NewCA(b)
		client := keytest.NewSoftwareCertificate(b, ca, "client")
		cert := ca.Certificate(b, k, "server")
		handshake := func(with crypto.Signer) func() error {
			own := cert
			own.PrivateKey = with
			return func() error { return ca.Handshake(tls.VersionTLS12, own, client) }
		}
		keytest.Beside(b, "TLS 1.2 handshakes with the server's key in SoftHSM2", 2, 1,
			func(testing.TB) func() error { return handshake(k) }, func(t testing.TB) func() error { return handshake(k.bare(t)) })
	})
}
