package tpm2

import (
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

// BenchmarkSign holds our signatures against bare TPM2_Sign over the same connection.
func BenchmarkSign(b *testing.B) {
	chip := keytest.SWTPM(b)
	p := New(b.Context(), Options{Dir: chip.Dir})
	defer p.Close()
	u, err := hwcrypto.ParseURI(chip.URI("a"), "/")
	if err != nil {
		b.Fatal(err)
	}
	k, err := p.Generate(b.Context(), u, hwcrypto.ECDSAP256)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			if err := sign(b.Context(), k); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		c := k.(signer).c
		l, err := c.take(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		defer c.give(l)
		l.ctx = b.Context()
		h, err := l.load(k.(signer).obj)
		if err != nil {
			b.Fatal(err)
		}
		cmd := tpm2.Sign{KeyHandle: auth(h), Digest: tpm2.TPM2BDigest{Buffer: make([]byte, 32)},
			InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}}
		for b.Loop() {
			if _, err := cmd.Execute(l); err != nil {
				b.Fatal(err)
			}
		}
	})
}
