package keyring

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

func (s *site) fingerprint(t *testing.T, name string) string {
	t.Helper()
	c, err := s.Certificate(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return hwcrypto.Fingerprint(c.Leaf.PublicKey)
}

func TestRotationByEST(t *testing.T) {
	t.Parallel()
	ca := keytest.NewEST(t, "gw1", "once")
	s := estSite(t, ca)
	if _, err := s.Enroll(t.Context(), "identity", Enrolment{Subject: pkix.Name{CommonName: "gw1"}}); err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Seal(t.Context(), "identity", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	before := s.fingerprint(t, "identity")
	_, err = s.Rotate(t.Context(), "identity", Enrolment{Prove: func(context.Context, string, *tls.Certificate) error { return errors.New("unknown there") }})
	if err == nil || s.fingerprint(t, "identity") != before {
		t.Fatalf("a certificate that is not accepted: %v", err)
	}
	if done, err := s.Rotate(t.Context(), "identity", Enrolment{}); err != nil || !done.Done {
		t.Fatalf("Rotate: %+v, %v", done, err)
	}
	if s.fingerprint(t, "identity") == before {
		t.Error("the key is the old one")
	}
	c, err := s.Certificate(t.Context(), "identity")
	if err != nil || c.Leaf.Subject.CommonName != "gw1" {
		t.Fatal(err)
	}
	if err := ca.CA.Handshake(tls.VersionTLS13, *c, *c); err != nil {
		t.Error(err)
	}
	if plain, err := s.Unseal(t.Context(), sealed); err != nil || string(plain) != "x" {
		t.Errorf("what was sealed before: %v", err)
	}
	if _, renewed := ca.Counts(); renewed != 2 {
		t.Errorf("%d certificates were asked for by the old one", renewed)
	}
}

func TestRotationByHand(t *testing.T) {
	t.Parallel()
	token := keytest.SoftHSM(t)
	keys := map[string]*config.Key{"id": {URI: token.URI("id"), Cert: "id.crt"}}
	s := newSite(t, keys)
	ca := keytest.NewCA(t)
	s.make(t, "id", hwcrypto.ECDSAP384)
	signer, err := s.Signer(t.Context(), "id")
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "id.crt", ca.Issue(t, signer.Public(), "gw1", time.Hour))
	before := s.fingerprint(t, "id")

	// As a command beside the gateway does it.
	beside := &site{dir: s.dir, now: s.now, keys: keys}
	beside.Ring, err = New(t.Context(), Options{Keys: keys, BaseDir: s.dir, State: s.dir})
	if err != nil {
		t.Fatal(err)
	}
	defer beside.Close()
	var csr []byte
	for range 2 { // asking twice gives no second successor
		r, err := beside.Rotate(t.Context(), "id", Enrolment{})
		if err != nil || r.Done {
			t.Fatalf("Rotate: %+v, %v", r, err)
		}
		csr = r.CSR
	}
	if s.fingerprint(t, "id") != before {
		t.Fatal("changed before it was certified")
	}
	block, _ := pem.Decode(csr)
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || req.Subject.CommonName != "gw1" || hwcrypto.AlgorithmOf(req.PublicKey) != hwcrypto.ECDSAP384 {
		t.Fatal(err)
	}
	s.write(t, "id.crt", ca.Issue(t, req.PublicKey, "gw1", time.Hour))
	if r, err := beside.Rotate(t.Context(), "id", Enrolment{}); err != nil || !r.Done {
		t.Fatalf("Rotate: %+v, %v", r, err)
	}
	// The gateway, which has the old key open, sees it by itself.
	after := s.fingerprint(t, "id")
	if after == before || after != hwcrypto.Fingerprint(req.PublicKey) {
		t.Error("the gateway has not changed over")
	}
	c, err := s.Certificate(t.Context(), "id")
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Handshake(tls.VersionTLS12, *c, *c); err != nil {
		t.Error(err)
	}
	if _, err := signer.Sign(nil, make([]byte, 48), crypto.SHA384); err != nil {
		t.Errorf("a session that began by the old key: %v", err)
	}
}

func TestInterruptedRotation(t *testing.T) {
	t.Parallel()
	ca := keytest.NewEST(t, "gw1", "once")
	s := estSite(t, ca)
	if _, err := s.Enroll(t.Context(), "identity", Enrolment{Subject: pkix.Name{CommonName: "gw1"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rotate(t.Context(), "identity", Enrolment{}); err != nil {
		t.Fatal(err)
	}
	after := s.fingerprint(t, "identity")
	crt := filepath.Join(s.dir, "identity.crt")
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	blob := filepath.Join(s.dir, "keys", "identity")
	fresh := func() *Ring { // as after a restart
		r, err := New(t.Context(), Options{Keys: s.keys, BaseDir: s.dir, State: s.dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	for what, undo := range map[string]func(){
		"between the renamings":        func() { rename(blob+".tpm", blob+"-next.tpm"); rename(crt, crt+".next") },
		"before the certificate moves": func() { rename(crt, crt+".next") },
	} {
		undo()
		if _, created, err := fresh().New(t.Context(), "identity", hwcrypto.ECDSAP256); created || what == "between the renamings" && err == nil {
			t.Errorf("%s: New: created %v, %v", what, created, err)
		}
		if r, err := s.Rotate(t.Context(), "identity", Enrolment{}); err != nil || !r.Done || s.fingerprint(t, "identity") != after {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
	}
}

func TestKeysThatAreNotRotated(t *testing.T) {
	t.Parallel()
	s := newSite(t, map[string]*config.Key{"dev": {URI: "file:dev.key"}})
	s.make(t, "dev", hwcrypto.ECDSAP256)
	if _, err := s.Rotate(t.Context(), "dev", Enrolment{}); !errors.Is(err, hwcrypto.ErrUnsupported) || hint(err) == "" {
		t.Error(err)
	}
}
