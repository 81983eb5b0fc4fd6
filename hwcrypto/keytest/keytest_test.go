package keytest

import (
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/file"
	"github.com/drawbridge/drawbridge/hwcrypto/pkcs11"
	"github.com/drawbridge/drawbridge/hwcrypto/tpm2"
)

var all = []hwcrypto.Algorithm{hwcrypto.ECDSAP256, hwcrypto.ECDSAP384, hwcrypto.RSA2048, hwcrypto.HMACSHA256, hwcrypto.ECDHP256}

func TestFile(t *testing.T) {
	t.Parallel()
	Run(t, Subject{Provider: file.Provider{}, Base: t.TempDir(), URI: func(n string) string { return "file:" + n + ".key" },
		Makes: all, Refuses: []hwcrypto.Algorithm{"dsa-1024"}, HashFree: true})
}

func TestSoftHSM(t *testing.T) {
	t.Parallel()
	token := SoftHSM(t)
	p := pkcs11.New(t.Context(), pkcs11.Options{})
	defer p.Close()
	Run(t, Subject{Provider: p, URI: token.URI, Hardware: true, Makes: all, Refuses: []hwcrypto.Algorithm{"dsa-1024"}, HashFree: true})
}

func TestSWTPM(t *testing.T) {
	t.Parallel()
	chip := SWTPM(t)
	p := tpm2.New(t.Context(), tpm2.Options{Dir: chip.Dir})
	defer p.Close()
	Run(t, Subject{Provider: p, URI: chip.URI, Hardware: true, Makes: all, Refuses: []hwcrypto.Algorithm{"dsa-1024"}})
}
