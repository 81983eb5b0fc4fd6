package keytest

import (
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/pkcs11"
	"github.com/drawbridge/drawbridge/hwcrypto/tpm2"
)

// TestProveManySignatures signs more often than a counter of 16 bits, a table of sessions or a TPM's slots would bear, one signature after another.
func TestProveManySignatures(t *testing.T) {
	t.Parallel()
	n := 1000
	if os.Getenv("DRAWBRIDGE_PROVE") != "" {
		n = 70_000
	}
	token, chip := SoftHSM(t), SWTPM(t)
	p11, tpm := pkcs11.New(t.Context(), pkcs11.Options{}), tpm2.New(t.Context(), tpm2.Options{Dir: chip.Dir})
	defer p11.Close()
	defer tpm.Close()
	for what, c := range map[string]struct {
		p   hwcrypto.Generator
		uri string
	}{"SoftHSM2": {p11, token.URI("many")}, "swtpm": {tpm, chip.URI("many")}} {
		u, err := hwcrypto.ParseURI(c.uri, "/")
		check(t, err)
		k, err := c.p.Generate(t.Context(), u, hwcrypto.ECDSAP256)
		check(t, err)
		begin := time.Now()
		for i := range n {
			digest := sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(i)))
			sig, err := k.Sign(nil, digest[:], crypto.SHA256)
			if err == nil && (i%100 == 0 || i == n-1) {
				err = verify(k.Public(), digest[:], sig, crypto.SHA256)
			}
			if err != nil {
				t.Fatalf("%s: signature %d: %v", what, i, err)
			}
		}
		t.Logf("prove: %s made %d signatures one after the other, none failed, %.0f a second", what, n, float64(n)/time.Since(begin).Seconds())
	}
}
