//go:build cgo

package pkcs11

import (
	"context"
	"crypto"
	"crypto/tls"
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
	inPlace := hwcrypto.WithPatience(b.Context(), func(error) {})
	for _, c := range []struct {
		what    string
		ctx     context.Context
		callers int
	}{
		{"callers: 1", inPlace, 1},
		{"callers: 8", inPlace, 8},
		// What it costs to be given back in time: most where a processor idles, which is woken each time.
		{"callers: 1, handed over", b.Context(), 1},
		{"callers: 8, handed over", b.Context(), 8},
	} {
		b.Run("signatures, "+c.what, func(b *testing.B) {
			keytest.Beside(b, "SoftHSM2 ECDSA P-256 signatures, "+c.what, c.callers, 1,
				func(testing.TB) func() error {
					return func() error { _, err := k.SignContext(c.ctx, digest, crypto.SHA256); return err }
				},
				func(t testing.TB) func() error {
					raw := k.bare(t)
					return func() error { _, err := raw.Sign(nil, digest, crypto.SHA256); return err }
				})
		})
	}
	b.Run("handshakes", func(b *testing.B) {
		ca := keytest.NewCA(b)
		client := keytest.NewSoftwareCertificate(b, ca, "client")
		cert := ca.Certificate(b, k, "server")
		handshake := func(own tls.Certificate) func() error {
			return func() error { return ca.Handshake(tls.VersionTLS12, own, client) }
		}
		keytest.Beside(b, "TLS 1.2 handshakes with the server's key in SoftHSM2", 2, 1,
			func(testing.TB) func() error { return handshake(*hwcrypto.CertificateFor(inPlace, &cert)) },
			func(t testing.TB) func() error {
				own := cert
				own.PrivateKey = k.bare(t)
				return handshake(own)
			})
	})
}
