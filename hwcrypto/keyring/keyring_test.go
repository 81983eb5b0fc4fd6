package keyring

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/northbound"
	"github.com/drawbridge/drawbridge/southbound"
)

var (
	_ southbound.Keys = View{}
	_ northbound.Keys = View{}
	_ southbound.Keys = (*Ring)(nil)
	_ northbound.Keys = (*Ring)(nil)
)

type site struct {
	*Ring
	dir    string
	health *health.Tracker
	now    time.Time
	keys   map[string]*config.Key
}

func newSite(t *testing.T, keys map[string]*config.Key) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), now: time.Now(), keys: keys}
	s.health = health.New(slog.New(slog.DiscardHandler), func() time.Time { return s.now })
	var err error
	s.Ring, err = New(t.Context(), Options{Keys: keys, BaseDir: s.dir, State: s.dir, Credentials: filepath.Join(s.dir, "credentials"),
		Health: s.health, Now: func() time.Time { return s.now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (s *site) write(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// problems are the codes that are set now.
func (s *site) problems(t *testing.T) string {
	t.Helper()
	s.Check(t.Context())
	var codes []string
	for _, p := range s.health.Problems() {
		codes = append(codes, p.Subject+": "+p.Code)
	}
	slices.Sort(codes)
	return strings.Join(codes, ", ")
}

func hint(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func (s *site) make(t *testing.T, name string, alg hwcrypto.Algorithm) Status {
	t.Helper()
	st, created, err := s.New(t.Context(), name, alg)
	if err != nil || !created {
		t.Fatalf("New: %v, created %v", err, created)
	}
	return st
}

func TestChips(t *testing.T) {
	t.Parallel()
	token, chip := keytest.SoftHSM(t), keytest.SWTPM(t)
	for what, uri := range map[string]func(string) string{"pkcs11": token.URI, "tpm": chip.URI, "file": func(n string) string { return "file:" + n + ".key" }} {
		t.Run(what, func(t *testing.T) {
			s := newSite(t, map[string]*config.Key{
				"identity": {URI: uri("identity"), Cert: "identity.crt"},
				"sas":      {URI: uri("sas")},
			})
			if _, err := s.Certificate(t.Context(), "identity"); !errors.Is(err, hwcrypto.ErrNoKey) || hint(err) != "drawbridge keys new identity" {
				t.Fatalf("without a key: %v, hint %q", err, hint(err))
			}
			first := s.make(t, "identity", hwcrypto.ECDSAP256)
			again, created, err := s.New(t.Context(), "identity", hwcrypto.ECDSAP256)
			if err != nil || created || again.Info.Fingerprint != first.Info.Fingerprint {
				t.Fatalf("New again: %v, created %v", err, created)
			}
			_, err = s.Certificate(t.Context(), "identity")
			if err == nil || !strings.Contains(hint(err), "drawbridge keys csr identity") {
				t.Fatalf("without a certificate: %v, hint %q", err, hint(err))
			}

			csr, err := s.CSR(t.Context(), "identity", pkix.Name{CommonName: "gw1"}, []string{"gw1.example", "10.0.0.1", "urn:dev:1", "a@b.example"})
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(csr)
			req, err := x509.ParseCertificateRequest(block.Bytes)
			if err != nil || req.CheckSignature() != nil || len(req.DNSNames) != 1 || len(req.IPAddresses) != 1 || len(req.URIs) != 1 || len(req.EmailAddresses) != 1 {
				t.Fatalf("request: %+v, %v", req, err)
			}
			ca := keytest.NewCA(t)
			s.write(t, "identity.crt", append(ca.Issue(t, req.PublicKey, "gw1", time.Hour), ca.PEM...))
			view := s.For("listener field")
			cert, err := view.Certificate(t.Context(), "identity")
			if err != nil || cert.Leaf.Subject.CommonName != "gw1" || len(cert.Certificate) != 2 {
				t.Fatalf("Certificate: %v", err)
			}
			for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				if err := ca.Handshake(v, *cert, *cert); err != nil {
					t.Errorf("%s: %v", tls.VersionName(v), err)
				}
			}
			if want := what == "tpm"; want != (len(cert.SupportedSignatureAlgorithms) == 1) {
				t.Errorf("signature algorithms: %v", cert.SupportedSignatureAlgorithms)
			}

			if _, err := view.MAC(t.Context(), "identity"); !errors.Is(err, hwcrypto.ErrUnsupported) || !strings.Contains(err.Error(), "ecdsa-p256") {
				t.Errorf("MAC of a key pair: %v", err)
			}
			if _, err := s.Import(t.Context(), "sas", []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")); err == nil {
				t.Error("a private key was imported")
			}
			for range 2 { // the second finds it there
				if _, err := s.Import(t.Context(), "sas", []byte("shared access key")); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Import(t.Context(), "sas", []byte("another access key")); !errors.Is(err, hwcrypto.ErrKeyExists) {
				t.Errorf("another secret in its place: %v", err)
			}
			m, err := view.MAC(t.Context(), "sas")
			if err != nil {
				t.Fatal(err)
			}
			if sum, err := m.MAC(t.Context(), []byte("x")); err != nil || len(sum) != 32 {
				t.Errorf("MAC: %v", err)
			}
			if _, err := view.Certificate(t.Context(), "sas"); err == nil {
				t.Error("a secret has a certificate")
			}

			sealed, err := view.Seal(t.Context(), "identity", []byte("a device's key\n"))
			if err != nil || !strings.Contains(string(sealed), "Key: identity") {
				t.Fatalf("Seal: %s, %v", sealed, err)
			}
			s.write(t, "dev.psk", sealed)
			got, err := view.Secret(t.Context(), "sealed:dev.psk")
			if err != nil || string(got) != "a device's key" {
				t.Errorf("Secret: %q, %v", got, err)
			}
			s.write(t, "dev.psk", []byte(strings.Replace(string(sealed), "Key: identity", "Key: sas", 1)))
			if _, err := view.Secret(t.Context(), "sealed:dev.psk"); !errors.Is(err, hwcrypto.ErrNotSealed) {
				t.Errorf("under another key's name: %v", err)
			}

			list := s.List(t.Context())
			if len(list) != 2 || list[0].Name != "identity" || list[0].Err != "" || list[0].Certificate == nil || list[0].Info.Hardware == (what == "file") {
				t.Errorf("List: %+v", list)
			}
			want := ""
			if what == "file" {
				want = "key identity: key-in-software, key sas: key-in-software"
			}
			if got := s.problems(t); got != want {
				t.Errorf("problems: %s", got)
			}
			if what != "file" {
				if q := s.Queues(); len(q) != 1 || q[0].Done == 0 || q[0].Failed > 0 {
					t.Errorf("queues: %+v", q)
				}
			}
		})
	}
}

func TestSecrets(t *testing.T) {
	s := newSite(t, nil)
	s.write(t, "password", []byte("hunter2\n"))
	s.write(t, "credentials/token", []byte("t0ken"))
	for ref, want := range map[string]string{"file:password": "hunter2", "file:" + filepath.Join(s.dir, "password"): "hunter2", "credential:token": "t0ken"} {
		if got, err := s.Secret(t.Context(), ref); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"hunter2", "file:nothing", "credential:nothing", "credential:../password", "credential:..", "sealed:password", "env:HOME", ""} {
		if got, err := s.Secret(t.Context(), ref); err == nil {
			t.Errorf("%s: %q", ref, got)
		} else if ref == "hunter2" && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error repeats what may be the secret: %v", err)
		}
	}
}

func TestCertificateProblems(t *testing.T) {
	s := newSite(t, map[string]*config.Key{"dev": {URI: "file:dev.key", Cert: "dev.crt"}})
	if got := s.problems(t); got != "key dev: key-unavailable" {
		t.Errorf("without a key: %s", got)
	}
	k := s.make(t, "dev", hwcrypto.ECDSAP256)
	if k.CertErr == "" {
		t.Error("no word of the certificate that is missing")
	}
	const soft = "key dev: key-in-software"
	if got := s.problems(t); got != "key dev: certificate-missing, "+soft {
		t.Errorf("without a certificate: %s", got)
	}
	selfSigned := func(valid time.Duration) {
		t.Helper()
		b, err := s.SelfSigned(t.Context(), "dev", pkix.Name{CommonName: "dev"}, []string{"localhost"}, valid)
		if err != nil {
			t.Fatal(err)
		}
		s.write(t, "dev.crt", b)
	}
	selfSigned(time.Hour)
	if got := s.problems(t); got != soft {
		t.Errorf("with one: %s", got)
	}
	begin := s.now
	s.now = begin.Add(55 * time.Minute)
	if got := s.problems(t); got != "key dev: certificate-expiring, "+soft {
		t.Errorf("near its end: %s", got)
	}
	s.now = begin.Add(2 * time.Hour)
	if got := s.problems(t); got != "key dev: certificate-expired, "+soft {
		t.Errorf("after its end: %s", got)
	}
	if _, err := s.Certificate(t.Context(), "dev"); err != nil {
		t.Errorf("an expired certificate is not given out: %v", err)
	}
	selfSigned(100 * time.Hour)
	if got := s.problems(t); got != soft {
		t.Errorf("with a new one in its place: %s", got)
	}

	other := newSite(t, map[string]*config.Key{"dev": {URI: "file:dev.key"}})
	other.make(t, "dev", hwcrypto.ECDSAP256)
	b, err := other.SelfSigned(t.Context(), "dev", pkix.Name{CommonName: "dev"}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "dev.crt", b)
	if got := s.problems(t); got != "key dev: certificate-mismatch, "+soft {
		t.Errorf("with another key's: %s", got)
	}
	if _, err := s.Certificate(t.Context(), "dev"); !errors.Is(err, errMismatch) || !strings.Contains(hint(err), "drawbridge keys csr dev") {
		t.Errorf("Certificate: %v", err)
	}
	s.write(t, "dev.crt", []byte("no certificate"))
	if got := s.problems(t); got != "key dev: certificate-missing, "+soft {
		t.Errorf("with rubbish: %s", got)
	}
}

func TestOneChipsTroubleCostsOnlyItsOwnKeys(t *testing.T) {
	s := newSite(t, map[string]*config.Key{
		"dev":  {URI: "file:dev.key"},
		"tpm":  {URI: "tpm:name=x;device=unix:/nowhere/tpm"},
		"p11":  {URI: "pkcs11:token=gw;object=a?module-path=/nowhere/lib.so"},
		"open": {URI: "file:open.key"},
	})
	s.make(t, "dev", hwcrypto.ECDSAP256)
	s.write(t, "open.key", []byte("x"))
	if err := os.Chmod(filepath.Join(s.dir, "open.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Signer(t.Context(), "open"); err == nil || !strings.HasPrefix(hint(err), "chmod 600 ") {
		t.Errorf("a key that others may read: %v", err)
	}
	if got := s.problems(t); got != "key dev: key-in-software, key open: key-unavailable, key p11: key-unavailable, key tpm: key-unavailable" {
		t.Errorf("problems: %s", got)
	}
	if _, err := s.Signer(t.Context(), "dev"); err != nil {
		t.Error(err)
	}
	if _, err := s.Signer(t.Context(), "nobody"); err == nil || !strings.Contains(err.Error(), "[key.nobody]") {
		t.Error(err)
	}
}

func TestSwap(t *testing.T) {
	s := newSite(t, map[string]*config.Key{"a": {URI: "file:a.key"}, "b": {URI: "file:b.key"}})
	s.make(t, "a", hwcrypto.ECDSAP256)
	signer, err := s.Signer(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Swap(map[string]*config.Key{"a": {URI: "nonsense"}}, s.dir); err == nil || !strings.Contains(err.Error(), `key "a"`) {
		t.Errorf("a bad URI: %v", err)
	}
	if got := strings.Join(s.Names(), " "); got != "a b" {
		t.Errorf("after a bad swap: %s", got)
	}
	s.Check(t.Context())
	if err := s.Swap(map[string]*config.Key{"c": {URI: "file:a.key"}}, s.dir); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.Names(), " "); got != "c" || len(s.health.Problems()) != 0 {
		t.Errorf("after a swap: %s, %v", got, s.health.Problems())
	}
	if _, err := signer.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
		t.Errorf("a signer that was given out before: %v", err)
	}
}
