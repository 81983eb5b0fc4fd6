package tpm2

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/needs"
)

// TestAttestationKeyIsOfTheEndorsedTPM is what a verifier does with tpm2-tools, which here ask no TPM: make a credential for the
// endorsement key of the certificate and for the name of the attestation key, and see whether it is opened.
func TestAttestationKeyIsOfTheEndorsedTPM(t *testing.T) {
	t.Parallel()
	tool := needs.Program(t, "tpm2_makecredential")
	chip, other := keytest.SWTPM(t), keytest.SWTPM(t)
	p := provider(t, Options{Dir: chip.Dir})
	k := made(t, p, chip.URI("a"), hwcrypto.ECDSAP256)
	a, err := k.(hwcrypto.Attester).Attest(t.Context(), []byte("my nonce"))
	if err != nil {
		t.Fatal(err)
	}
	if len(a.EKChain) == 0 {
		t.Fatal("no endorsement certificate")
	}
	cert, err := x509.ParseCertificate(a.EKChain[0])
	if err != nil {
		t.Fatal(err)
	}
	ek, err := tpm2.Unmarshal[tpm2.TPM2BPublic](a.EKPublic)
	if err != nil {
		t.Fatal(err)
	}
	if err := sameKey(*ek, cert.Raw); err != nil {
		t.Fatal(err)
	}
	if mine, err := tpm2.Unmarshal[tpm2.TPM2BPublic](a.Public); err != nil || !bytes.Equal(name(t, mine), name(t, box(k.(signer).area))) {
		t.Errorf("the public area of the key: %v", err)
	}
	ak, err := tpm2.Unmarshal[tpm2.TPM2BPublic](a.AKPublic)
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	credential := func(of []byte) []byte {
		t.Helper()
		for name, b := range map[string][]byte{"ek": a.EKPublic, "secret": []byte("only it knows")} {
			if err := os.WriteFile(path(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.CommandContext(t.Context(), tool, "-T", "none", "-u", path("ek"), "-s", path("secret"), "-n", hex.EncodeToString(of), "-o", path("credential")).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		b, err := os.ReadFile(path("credential"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	theirs := credential(name(t, ak))
	for _, c := range [][]byte{theirs, theirs[8:]} { // with the tool's header and without
		if secret, err := k.(hwcrypto.Challenged).ActivateCredential(t.Context(), c); err != nil || string(secret) != "only it knows" {
			t.Errorf("%q, %v", secret, err)
		}
	}
	if err := sign(t.Context(), k); err != nil {
		t.Errorf("after it: %v", err)
	}
	if _, err := k.(hwcrypto.Challenged).ActivateCredential(t.Context(), credential(name(t, box(k.(signer).area)))); err == nil {
		t.Error("opened for another key")
	}
	elsewhere := made(t, provider(t, Options{Dir: other.Dir}), other.URI("a"), hwcrypto.ECDSAP256)
	if _, err := elsewhere.(hwcrypto.Challenged).ActivateCredential(t.Context(), theirs); err == nil {
		t.Error("opened by another TPM")
	}
	for what, b := range map[string][]byte{"nothing": nil, "half of it": theirs[:20], "more than it": append(bytes.Clone(theirs), 0)} {
		if _, err := k.(hwcrypto.Challenged).ActivateCredential(t.Context(), b); err == nil || errors.Is(err, hwcrypto.ErrNoToken) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func box(area tpm2.TPMTPublic) *tpm2.TPM2BPublic { b := tpm2.New2B(area); return &b }

func name(t *testing.T, pub *tpm2.TPM2BPublic) []byte {
	t.Helper()
	area, err := pub.Contents()
	if err != nil {
		t.Fatal(err)
	}
	n, err := tpm2.ObjectName(area)
	if err != nil {
		t.Fatal(err)
	}
	return n.Buffer
}

func FuzzParseCredential(f *testing.F) {
	f.Add([]byte{0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1, 0, 1, 7, 0, 1, 8})
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		identity, secret, err := parseCredential(b)
		if err == nil && len(identity.Buffer)+len(secret.Buffer)+4 > len(b) {
			t.Fatal("more than there was")
		}
	})
}
