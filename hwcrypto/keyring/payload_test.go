package keyring

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/envelope"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/msg"
)

func TestPayloads(t *testing.T) {
	t.Parallel()
	token := keytest.SoftHSM(t)
	s := newSite(t, map[string]*config.Key{"id": {URI: token.URI("id"), Cert: "id.crt"}, "shared": {URI: token.URI("shared")}, "dh": {URI: token.URI("dh")}})
	s.make(t, "id", hwcrypto.ECDSAP256)
	s.make(t, "shared", hwcrypto.HMACSHA256)
	s.make(t, "dh", hwcrypto.ECDHP256)
	signer, err := s.Signer(t.Context(), "id")
	if err != nil {
		t.Fatal(err)
	}
	ca := keytest.NewCA(t)
	s.write(t, "signers.pem", append(ca.Issue(t, ca.Cert.PublicKey, "other", time.Hour),
		ca.Issue(t, signer.Public(), "id", time.Hour)...))
	s.write(t, "others.pem", ca.Issue(t, ca.Cert.PublicKey, "other", time.Hour))
	s.write(t, "empty.pem", nil)
	v := s.For("connector cloud")
	said := msg.Envelope{ID: "1", Subject: "th-17/sensors/temp", Time: time.Unix(1800000000, 0), Type: "text/plain", Payload: []byte("hello")}
	for _, c := range []struct{ form, cipher, want string }{
		{"jwe", "A256GCM", "application/jose"}, {"jwe", "LEA-256-GCM", "application/jose"},
		{"cose-encrypt0", "ARIA-256-GCM", `application/cose; cose-type="cose-encrypt0"`},
	} {
		b, typ, err := v.Protect(t.Context(), "shared", c.form, c.cipher, said)
		if err != nil || typ != c.want || strings.Contains(string(b), "hello") {
			t.Errorf("%v: %s, %v", c, typ, err)
			continue
		}
		if got, err := v.Unprotect(t.Context(), "shared", b); err != nil || !reflect.DeepEqual(got, said) {
			t.Errorf("%v: %+v, %v", c, got, err)
		}
	}
	for _, form := range []string{"jws", "cose-sign1"} {
		b, _, err := v.Protect(t.Context(), "id", form, "", said)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := v.Verify(t.Context(), "signers.pem", b); err != nil || !reflect.DeepEqual(got, said) {
			t.Errorf("%s: %+v, %v", form, got, err)
		}
		if _, err := v.Verify(t.Context(), "others.pem", b); !errors.Is(err, envelope.ErrOpen) || !msg.IsPermanent(err) {
			t.Errorf("%s by somebody else's certificate: %v", form, err)
		}
		if _, err := v.Unprotect(t.Context(), "shared", b); !errors.Is(err, envelope.ErrOpen) {
			t.Errorf("a signed one is opened as an encrypted one: %v", err)
		}
	}
	protect := func(key, form, cipher string) func() error {
		return func() error { _, _, err := v.Protect(t.Context(), key, form, cipher, said); return err }
	}
	for what, try := range map[string]func() error{
		"an unknown form":       protect("id", "pgp", ""),
		"an unknown cipher":     protect("shared", "jwe", "ROT13"),
		"a secret that signs":   protect("shared", "jws", ""),
		"a pair that encrypts":  protect("id", "jwe", "A256GCM"),
		"a key for agreement":   protect("dh", "jws", ""),
		"no such key":           protect("nobody", "jws", ""),
		"a key pair":            func() error { _, err := v.Unprotect(t.Context(), "id", nil); return err },
		"nothing":               func() error { _, err := v.Unprotect(t.Context(), "shared", nil); return err },
		"no such file":          func() error { _, err := v.Verify(t.Context(), "none.pem", nil); return err },
		"a file with no signer": func() error { _, err := v.Verify(t.Context(), "empty.pem", nil); return err },
	} {
		err := try()
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		if msg.IsPermanent(err) != (what == "nothing") {
			t.Errorf("%s: %v: would trying again mend it?", what, err)
		}
	}
}
