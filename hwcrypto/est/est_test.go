package est

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/needs"
)

func request(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "gw1"}}, k)
	if err != nil {
		t.Fatal(err)
	}
	return k, csr
}

func TestEnrolment(t *testing.T) {
	ca := keytest.NewEST(t, "gw1", "once")
	c := &Client{URL: ca.URL, Roots: ca.CA.Pool, User: "gw1", Password: []byte("once")}
	certs, err := c.CACerts(t.Context())
	if err != nil || len(certs) != 1 || !certs[0].Equal(ca.CA.Cert) {
		t.Fatalf("CACerts: %v", err)
	}
	attrs, err := c.CSRAttrs(t.Context())
	if err != nil || len(attrs) != 4 || attrs[0].String() != "1.2.840.113549.1.9.7" || attrs[1].String() != "1.2.840.10045.2.1" {
		t.Fatalf("CSRAttrs: %v, %v", attrs, err)
	}
	k, csr := request(t)
	chain, err := c.Enroll(t.Context(), csr, k.Public())
	if err != nil || len(chain) != 2 || chain[0].Subject.CommonName != "gw1" || !chain[1].Equal(ca.CA.Cert) {
		t.Fatalf("Enroll: %v", err)
	}
	if n := bytes.Count(PEM(chain), []byte("BEGIN CERTIFICATE")); n != 1 {
		t.Errorf("%d certificates in the file: the root does not belong there", n)
	}
	if _, err := c.Reenroll(t.Context(), csr, k.Public()); !refused(err, 401) {
		t.Errorf("Reenroll without a certificate: %v", err)
	}
	c.Certificate = &tls.Certificate{Certificate: [][]byte{chain[0].Raw}, PrivateKey: k}
	if _, err := c.Reenroll(t.Context(), csr, k.Public()); err != nil {
		t.Errorf("Reenroll: %v", err)
	}
}

func refused(err error, status int) bool {
	var r *RefusedError
	return errors.As(err, &r) && r.Status == status
}

func TestRefusals(t *testing.T) {
	ca := keytest.NewEST(t, "gw1", "once")
	c := &Client{URL: ca.URL, Roots: ca.CA.Pool, User: "gw1", Password: []byte("wrong")}
	k, csr := request(t)
	if _, err := c.Enroll(t.Context(), csr, k.Public()); !refused(err, 401) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("wrong password: %v", err)
	}
	c.Password = []byte("once")
	ca.Refuse("not on my list")
	if _, err := c.Enroll(t.Context(), csr, k.Public()); !refused(err, 403) || !strings.Contains(err.Error(), "not on my list") {
		t.Errorf("refused: %v", err)
	}
	ca.Refuse("")
	ca.Later(2 * time.Minute)
	var later *LaterError
	if _, err := c.Enroll(t.Context(), csr, k.Public()); !errors.As(err, &later) || later.After != 2*time.Minute {
		t.Errorf("later: %v", err)
	}
	ca.Later(0)
	ca.CertifyAnother(true)
	if _, err := c.Enroll(t.Context(), csr, k.Public()); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("another key: %v", err)
	}
	ca.CertifyAnother(false)
	if _, err := c.Enroll(t.Context(), []byte("no request"), k.Public()); !refused(err, 400) {
		t.Errorf("rubbish: %v", err)
	}
	c.Roots = x509.NewCertPool()
	if _, err := c.Enroll(t.Context(), csr, k.Public()); err == nil {
		t.Error("enrolled at a server that proves nothing")
	}
	for _, u := range []string{"http://ca.example/.well-known/est", "ca.example", "https://", "\x00"} {
		c.URL = u
		if _, err := c.CACerts(t.Context()); err == nil || !strings.Contains(err.Error(), "want https://") {
			t.Errorf("%q: %v", u, err)
		}
	}
}

func TestOpenSSLReadsWhatWeWriteAndTheOtherWay(t *testing.T) {
	openssl := needs.Program(t, "openssl")
	ca := keytest.NewCA(t)
	b, err := keytest.CertsOnly(ca.Cert)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p7, crt := filepath.Join(dir, "p7"), filepath.Join(dir, "crt")
	if err := errors.Join(os.WriteFile(p7, b, 0o600), os.WriteFile(crt, ca.PEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(openssl, "pkcs7", "-inform", "DER", "-in", p7, "-print_certs").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("test CA")) {
		t.Errorf("%v\n%s", err, out)
	}
	der, err := exec.Command(openssl, "crl2pkcs7", "-nocrl", "-certfile", crt, "-certfile", crt, "-outform", "DER").Output()
	if err != nil {
		t.Fatal(err)
	}
	if certs, err := ParseCertsOnly(der); err != nil || len(certs) == 0 {
		t.Errorf("%d, %v", len(certs), err)
	}
}

func FuzzParseCertsOnly(f *testing.F) {
	ca := keytest.NewCA(f)
	b, err := keytest.CertsOnly(ca.Cert)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		if certs, err := ParseCertsOnly(b); err == nil && len(certs) == 0 {
			t.Fatal("no certificate and no error")
		}
		_, _ = parseAttrs(b)
		_, _ = decodeBase64(b)
	})
}
