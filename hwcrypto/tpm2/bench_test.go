package tpm2

import (
	"crypto"
	"crypto/tls"
	"errors"
	"io"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

// bare signs by go-tpm's TPM2_Sign alone, with the key loaded, over a link of its own.
type bare struct {
	signer
	l   *link
	cmd tpm2.Sign
}

func (k *bare) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	k.cmd.Digest.Buffer = digest
	r, err := k.cmd.Execute(k.l)
	if err != nil {
		return nil, err
	}
	s, err := r.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return hwcrypto.ECDSASignature(s.SignatureR.Buffer, s.SignatureS.Buffer)
}

// BenchmarkBesideModule holds our signatures and handshakes against those of go-tpm without us between. One caller: a TPM does
// one thing at a time.
func BenchmarkBesideModule(b *testing.B) {
	chip := keytest.SWTPM(b)
	p := New(b.Context(), Options{Dir: chip.Dir})
	defer p.Close()
	u, err := hwcrypto.ParseURI(chip.URI("a"), "/")
	if err != nil {
		b.Fatal(err)
	}
	made, err := p.Generate(b.Context(), u, hwcrypto.ECDSAP256)
	if err != nil {
		b.Fatal(err)
	}
	k := made.(signer)
	// with takes the link from the provider for as long as f is called: swtpm serves one at a time.
	with := func(t testing.TB, f func(*bare) error) func() error {
		return func() error {
			_, err := call(b.Context(), k.c, func(l *link) (struct{}, error) {
				h, err := l.load(k.obj)
				if err != nil {
					return struct{}{}, err
				}
				raw := &bare{k, l, tpm2.Sign{KeyHandle: auth(h),
					InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
					Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}}}
				for range batch {
					if err := f(raw); err != nil {
						return struct{}{}, err
					}
				}
				return struct{}{}, nil
			})
			return err
		}
	}
	ours := func(f func() error) func() error {
		return func() error {
			var errs []error
			for range batch {
				errs = append(errs, f())
			}
			return errors.Join(errs...)
		}
	}
	digest := make([]byte, 32)
	b.Run("signatures", func(b *testing.B) {
		keytest.Beside(b, "swtpm ECDSA P-256 signatures", 1, batch,
			func(testing.TB) func() error {
				return ours(func() error { _, err := k.Sign(nil, digest, crypto.SHA256); return err })
			},
			func(t testing.TB) func() error {
				return with(t, func(raw *bare) error { _, err := raw.Sign(nil, digest, crypto.SHA256); return err })
			})
	})
	b.Run("handshakes", func(b *testing.B) {
		ca := keytest.NewCA(b)
		client := keytest.NewSoftwareCertificate(b, ca, "client")
		cert := ca.Certificate(b, k, "server")
		handshake := func(with crypto.Signer) error {
			own := cert
			own.PrivateKey = with
			return ca.Handshake(tls.VersionTLS12, own, client)
		}
		keytest.Beside(b, "TLS 1.2 handshakes with the server's key in swtpm", 1, batch,
			func(testing.TB) func() error { return ours(func() error { return handshake(k) }) },
			func(t testing.TB) func() error { return with(t, func(raw *bare) error { return handshake(raw) }) })
	})
}

// batch is how many bare operations are done over one loan of the link, so that the loan does not count.
const batch = 100
