package tpm2

import (
	"bytes"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

func example() *blob {
	return &blob{oidLoadable, 0x81000001, tpm2.New2B(templates()[hwcrypto.ECDSAP256]), tpm2.TPM2BPrivate{Buffer: []byte("sealed by the TPM")}}
}

func TestBlob(t *testing.T) {
	b, err := parseBlob(example().encode())
	if err != nil {
		t.Fatal(err)
	}
	if b.parent != 0x81000001 || string(b.priv.Buffer) != "sealed by the TPM" || !b.kind.Equal(oidLoadable) {
		t.Errorf("%+v", b)
	}
}

func FuzzParseBlob(f *testing.F) {
	f.Add(example().encode())
	f.Add([]byte("-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := parseBlob(in)
		if err != nil {
			return
		}
		again, err := parseBlob(b.encode())
		if err != nil || !bytes.Equal(again.encode(), b.encode()) {
			t.Fatalf("%v", err)
		}
	})
}
