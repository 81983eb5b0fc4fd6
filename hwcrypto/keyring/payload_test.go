package keyring

import (
	"errors"
	"strings"
	"testing"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/envelope"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

func TestPayloads(t *testing.T) {
	t.Parallel()
	token := keytest.SoftHSM(t)
	s := newSite(t, map[string]*config.Key{"id": {URI: token.URI("id")}, "shared": {URI: token.URI("shared")}, "dh": {URI: token.URI("dh")}})
	s.make(t, "id", hwcrypto.ECDSAP256)
	s.make(t, "shared", hwcrypto.HMACSHA256)
	s.make(t, "dh", hwcrypto.ECDHP256)
	signer, err := s.Signer(t.Context(), "id")
	if err != nil {
		t.Fatal(err)
	}
	v := s.For("connector cloud")
	for how, want := range map[string]string{"jose": "application/jose", "cose": "application/cose", "jose:LEA-256-GCM": "application/jose", "cose:ARIA-256-GCM": "application/cose"} {
		b, typ, err := v.Protect(t.Context(), "shared", how, []byte("hello"))
		if err != nil || !strings.HasPrefix(typ, want) || strings.Contains(string(b), "hello") {
			t.Errorf("%s: %s, %v", how, typ, err)
			continue
		}
		if got, err := v.Unprotect(t.Context(), "shared", b); err != nil || string(got) != "hello" {
			t.Errorf("%s: %q, %v", how, got, err)
		}
	}
	for _, how := range []string{"jose", "cose"} {
		b, _, err := v.Protect(t.Context(), "id", how, []byte("hello"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Verify(signer.Public(), b); err != nil || string(got) != "hello" {
			t.Errorf("%s: %q, %v", how, got, err)
		}
		if _, err := v.Unprotect(t.Context(), "shared", b); !errors.Is(err, envelope.ErrOpen) {
			t.Errorf("a signed one is opened as an encrypted one: %v", err)
		}
	}
	for what, try := range map[string]func() error{
		"an unknown form":     func() error { _, _, err := v.Protect(t.Context(), "id", "pgp", nil); return err },
		"an unknown cipher":   func() error { _, _, err := v.Protect(t.Context(), "shared", "jose:ROT13", nil); return err },
		"a key for agreement": func() error { _, _, err := v.Protect(t.Context(), "dh", "jose", nil); return err },
		"no such key":         func() error { _, _, err := v.Protect(t.Context(), "nobody", "jose", nil); return err },
		"a key pair":          func() error { _, err := v.Unprotect(t.Context(), "id", nil); return err },
		"nothing":             func() error { _, err := v.Unprotect(t.Context(), "shared", nil); return err },
	} {
		if try() == nil {
			t.Errorf("%s: no error", what)
		}
	}
}
