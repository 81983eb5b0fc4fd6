package keytest

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/pion/dtls/v3/pkg/crypto/prf"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/file"
	"github.com/drawbridge/drawbridge/hwcrypto/pkcs11"
	"github.com/drawbridge/drawbridge/hwcrypto/tpm2"
)

// TestMasterSecretInChip holds the master secret that chips compute by HMAC against that of pion's DTLS.
func TestMasterSecretInChip(t *testing.T) {
	t.Parallel()
	token, chip := SoftHSM(t), SWTPM(t)
	p11, tpm := pkcs11.New(t.Context(), pkcs11.Options{}), tpm2.New(t.Context(), tpm2.Options{Dir: chip.Dir})
	defer p11.Close()
	defer tpm.Close()
	dir := t.TempDir()
	client, server := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	for what, c := range map[string]struct {
		p   hwcrypto.Importer
		uri func(string) string
	}{"pkcs11": {p11, token.URI}, "tpm": {tpm, chip.URI}, "file": {file.Provider{}, func(n string) string { return "file:" + dir + "/" + n }}} {
		for name, psk := range map[string][]byte{"short": []byte("secret"), "usual": bytes.Repeat([]byte{7}, 16), "long": bytes.Repeat([]byte{9}, 64)} {
			want, err := prf.MasterSecret(prf.PSKPreMasterSecret(psk), client, server, sha256.New)
			check(t, err)
			pms, err := hwcrypto.PSKPremaster(psk)
			check(t, err)
			u, err := hwcrypto.ParseURI(c.uri("psk-"+name), dir)
			check(t, err)
			k, err := c.p.Import(t.Context(), u, pms)
			check(t, err)
			got, err := hwcrypto.PRF12(t.Context(), k.(hwcrypto.MACer), "master secret", append(bytes.Clone(client), server...), 48)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %s: %x, want %x (%v)", what, name, got, want, err)
			}
		}
	}
	if _, err := hwcrypto.PSKPremaster(nil); err == nil {
		t.Error("an empty key is taken")
	}
}
