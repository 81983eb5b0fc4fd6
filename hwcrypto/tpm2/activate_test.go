package tpm2

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

func TestKeyOfAServiceIsActivated(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	p := provider(t, Options{Dir: chip.Dir})
	u := parse(t, chip.URI("dps"))
	ek, srk, err := p.Endorsement(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	if again, _, err := p.Endorsement(t.Context(), u); err != nil || !bytes.Equal(ek, again) {
		t.Fatalf("another endorsement key: %v", err)
	}
	if _, err := p.Open(t.Context(), u); !errors.Is(err, hwcrypto.ErrNoKey) {
		t.Fatal(err)
	}
	for _, secret := range []string{"the first key of a service......", "the key that takes its place...."} {
		k, err := p.Activate(t.Context(), u, keytest.Credential(t, ek, srk, []byte(secret)))
		if err != nil {
			t.Fatal(err)
		}
		opened, err := p.Open(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		want := hmac.New(sha256.New, []byte(secret))
		want.Write([]byte("data"))
		for _, k := range []hwcrypto.Key{k, opened} {
			if got, err := k.(hwcrypto.MACer).MAC(t.Context(), []byte("data")); err != nil || !hmac.Equal(got, want.Sum(nil)) {
				t.Errorf("%x, %v", got, err)
			}
		}
	}
	if out := transients(t, chip); strings.Contains(out, "0x") {
		t.Errorf("still loaded once we have let go:\n%s", out)
	}

	other := keytest.SWTPM(t)
	if _, err := p.Activate(t.Context(), parse(t, other.URI("dps")), keytest.Credential(t, ek, srk, []byte("for the first TPM alone........."))); err == nil {
		t.Error("another TPM has activated it")
	}
	handle := parse(t, "tpm:handle=0x81010002;device="+chip.Device())
	if _, err := p.Activate(t.Context(), handle, nil); !errors.Is(err, hwcrypto.ErrUnsupported) {
		t.Error(err)
	}
	if _, err := p.Activate(t.Context(), u, []byte("x")); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Error(err)
	}
}

func FuzzParseActivation(f *testing.F) {
	f.Add([]byte{0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := parseActivation(b)
		if err == nil && len(in.identity.Buffer)+len(in.private.Buffer) > len(b) {
			t.Fatal("more than there was")
		}
	})
}
