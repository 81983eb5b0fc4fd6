package keyring

import (
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
)

func estSite(t *testing.T, ca *keytest.EST) *site {
	t.Helper()
	chip := keytest.SWTPM(t)
	s := newSite(t, map[string]*config.Key{"identity": {URI: chip.URI("identity"), Cert: "identity.crt", EST: ca.URL, ESTCA: "ca.pem", ESTUser: "gw1", ESTPassword: "file:otp"}})
	s.write(t, "ca.pem", ca.CA.PEM)
	s.write(t, "otp", []byte("once\n"))
	return s
}

func TestEnrolmentAndRenewal(t *testing.T) {
	t.Parallel()
	ca := keytest.NewEST(t, "gw1", "once")
	s := estSite(t, ca)
	first, err := s.Enroll(t.Context(), "identity", Enrolment{Subject: pkix.Name{CommonName: "gw1"}})
	if err != nil || first.Certificate == nil || first.CertErr != "" || first.Certificate.Subject != "CN=gw1" {
		t.Fatalf("Enroll: %+v, %v", first, err)
	}
	// Half way nothing is due; after two thirds and the jitter it is.
	state := map[string]*renewal{}
	begin := s.now
	s.now = begin.Add(30 * time.Minute)
	s.renew(t.Context(), state)
	if _, renewed := ca.Counts(); renewed != 0 {
		t.Fatal("renewed at half its life")
	}
	if at := first.Certificate.RenewAt; at.Before(begin.Add(38*time.Minute)) || at.After(begin.Add(45*time.Minute)) {
		t.Errorf("due at %v after the start", at.Sub(begin))
	}
	s.now = begin.Add(45 * time.Minute)
	ca.Refuse("the CA is closed today")
	s.renew(t.Context(), state)
	if got := s.problems(t); got != "key identity: renewal-failed" {
		t.Errorf("problems: %s", got)
	}
	ca.Refuse("")
	s.renew(t.Context(), state)
	if _, renewed := ca.Counts(); renewed != 0 {
		t.Error("tried again at once")
	}
	s.now = s.now.Add(2 * time.Minute)
	ca.Later(2 * time.Minute)
	s.renew(t.Context(), state)
	ca.Later(0)
	s.now = s.now.Add(time.Minute)
	s.renew(t.Context(), state)
	if _, renewed := ca.Counts(); renewed != 0 {
		t.Error("tried again before the CA wanted to be asked")
	}
	s.now = s.now.Add(time.Minute + time.Second)
	ca.Valid(10 * time.Hour)
	s.renew(t.Context(), state)
	enrolled, renewed := ca.Counts()
	if enrolled != 1 || renewed != 1 {
		t.Fatalf("enrolled %d, renewed %d", enrolled, renewed)
	}
	if got := s.problems(t); got != "" {
		t.Errorf("problems: %s", got)
	}
	cert, err := s.Certificate(t.Context(), "identity")
	if err != nil || cert.Leaf.NotAfter.Equal(first.Certificate.NotAfter) || cert.Leaf.Subject.CommonName != "gw1" {
		t.Errorf("after renewal: %v", err)
	}
}

// A CA in which a person looks at requests may ask for patience that lasts longer than the certificate.
func TestACertificateIsNotLeftToEndByACAThatWantsTime(t *testing.T) {
	t.Parallel()
	ca := keytest.NewEST(t, "gw1", "once")
	s := estSite(t, ca)
	first, err := s.Enroll(t.Context(), "identity", Enrolment{Subject: pkix.Name{CommonName: "gw1"}})
	if err != nil {
		t.Fatal(err)
	}
	state := map[string]*renewal{}
	s.now = first.Certificate.RenewAt
	ca.Later(7 * 24 * time.Hour)
	s.renew(t.Context(), state)
	ca.Later(0)
	s.now = first.Certificate.NotAfter.Add(-time.Minute)
	s.renew(t.Context(), state)
	if _, renewed := ca.Counts(); renewed != 1 {
		t.Errorf("renewed %d times before the end", renewed)
	}
}

func TestNewCertificateIsProvenBeforeTheOldIsDropped(t *testing.T) {
	t.Parallel()
	ca := keytest.NewEST(t, "gw1", "once")
	s := estSite(t, ca)
	if _, err := s.Enroll(t.Context(), "identity", Enrolment{Subject: pkix.Name{CommonName: "gw1"}}); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(filepath.Join(s.dir, "identity.crt"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Enroll(t.Context(), "identity", Enrolment{Prove: func(_ context.Context, _ string, c *tls.Certificate) error {
		if err := ca.CA.Handshake(tls.VersionTLS13, *c, *c); err != nil {
			t.Errorf("the new one cannot be used: %v", err)
		}
		return errors.New("the cloud does not know it")
	}})
	if err == nil || !strings.Contains(err.Error(), "the cloud does not know it") {
		t.Errorf("Enroll: %v", err)
	}
	now, err := os.ReadFile(filepath.Join(s.dir, "identity.crt"))
	if err != nil || string(now) != string(old) {
		t.Error("the old certificate is gone")
	}
}

func TestLateRenewalEnrolsAnew(t *testing.T) {
	t.Parallel()
	ca := keytest.NewEST(t, "gw1", "once")
	s := estSite(t, ca)
	if _, err := s.Enroll(t.Context(), "identity", Enrolment{Subject: pkix.Name{CommonName: "gw1"}}); err != nil {
		t.Fatal(err)
	}
	begin := s.now
	// A gateway that was off past the end. The old certificate is given out all the same: local service goes on.
	s.now = begin.Add(2 * time.Hour)
	if _, err := s.Certificate(t.Context(), "identity"); err != nil {
		t.Error(err)
	}
	if got := s.problems(t); got != "key identity: certificate-expired" {
		t.Errorf("problems: %s", got)
	}
	// A clock at which the CA's own certificate has ended renews nothing.
	s.now = begin.Add(25 * time.Hour)
	if _, err := s.Enroll(t.Context(), "identity", Enrolment{Subject: pkix.Name{CommonName: "gw1"}}); err == nil {
		t.Error("renewed by a clock that is wrong")
	}
	s.now = begin.Add(2 * time.Hour)
	ca.Valid(10 * time.Hour)
	if _, err := s.Enroll(t.Context(), "identity", Enrolment{Subject: pkix.Name{CommonName: "gw1"}}); err != nil {
		t.Error(err)
	}
	if got := s.problems(t); got != "" {
		t.Errorf("problems: %s", got)
	}
	if enrolled, renewed := ca.Counts(); enrolled != 2 || renewed != 0 {
		t.Errorf("enrolled %d, renewed %d", enrolled, renewed)
	}
}

func TestEnrolmentWithoutServer(t *testing.T) {
	s := newSite(t, map[string]*config.Key{"dev": {URI: "file:dev.key"}})
	if _, err := s.Enroll(t.Context(), "dev", Enrolment{}); err == nil || !strings.Contains(hint(err), "[key.dev]") {
		t.Error(err)
	}
}
