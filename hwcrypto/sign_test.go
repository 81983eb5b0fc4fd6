package hwcrypto

import (
	"bytes"
	"encoding/asn1"
	"math/big"
	"testing"
)

func TestECDSASignature(t *testing.T) {
	for _, n := range [][]byte{{}, {0}, {0, 0}, {1}, {0x7f}, {0x80}, {0, 0x80}, {0, 0, 1, 2}, bytes.Repeat([]byte{0xff}, 48)} {
		want, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(n), big.NewInt(7)})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ECDSASignature(n, []byte{7}); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%x: %x, want %x (%v)", n, got, want, err)
		}
	}
}
