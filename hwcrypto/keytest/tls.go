package keytest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/needs"
)

// CA is a certificate authority for tests.
type CA struct {
	Cert *x509.Certificate
	Pool *x509.CertPool
	PEM  []byte
	key  crypto.Signer
}

// NewCA makes one with a key in software.
func NewCA(t testing.TB) *CA {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	check(t, err)
	c, err := x509.ParseCertificate(der)
	check(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return &CA{c, pool, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), k}
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	return new(big.Int).SetBytes(b[:15])
}

// Issue certifies a public key for a name, for localhost and for 127.0.0.1. The result is PEM.
func (ca *CA) Issue(t testing.TB, pub crypto.PublicKey, name string, valid time.Duration) []byte {
	t.Helper()
	return ca.issue(t, pub, name, time.Minute, valid)
}

// issue is Issue for a certificate of some age.
func (ca *CA) issue(t testing.TB, pub crypto.PublicKey, name string, age, valid time.Duration) []byte {
	t.Helper()
	now := time.Now()
	tmpl := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-age), NotAfter: now.Add(valid),
		DNSNames: []string{name, "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.Cert, pub, ca.key)
	check(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Certificate is a certificate for k as TLS wants it.
func (ca *CA) Certificate(t testing.TB, k hwcrypto.Key, name string) tls.Certificate {
	t.Helper()
	block, _ := pem.Decode(ca.Issue(t, k.Public(), name, time.Hour))
	c := tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: k}
	for _, h := range boundTo(k) {
		switch {
		case h == crypto.SHA256 && isRSA(k):
			c.SupportedSignatureAlgorithms = append(c.SupportedSignatureAlgorithms, tls.PSSWithSHA256, tls.PKCS1WithSHA256)
		case h == crypto.SHA256:
			c.SupportedSignatureAlgorithms = append(c.SupportedSignatureAlgorithms, tls.ECDSAWithP256AndSHA256)
		case h == crypto.SHA384:
			c.SupportedSignatureAlgorithms = append(c.SupportedSignatureAlgorithms, tls.ECDSAWithP384AndSHA384)
		}
	}
	return c
}

func isRSA(k hwcrypto.Key) bool { _, ec := k.Public().(*ecdsa.PublicKey); return !ec }

// Handshake runs mutual TLS of one version with both certificates over a pipe.
func (ca *CA) Handshake(version uint16, server, client tls.Certificate) error {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: ca.Pool, ClientAuth: tls.RequireAndVerifyClientCert,
			MinVersion: version, MaxVersion: version, SessionTicketsDisabled: true})
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		if err != nil {
			a.Close()
		}
		done <- err
	}()
	c := tls.Client(b, &tls.Config{Certificates: []tls.Certificate{client}, RootCAs: ca.Pool, ServerName: "localhost", MinVersion: version, MaxVersion: version})
	err := c.Handshake()
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if err != nil {
		b.Close()
	}
	if e := <-done; err == nil {
		err = e
	}
	return err
}

func (s Subject) testTLS(t *testing.T) {
	ca := NewCA(t)
	for _, alg := range s.Makes {
		if alg == hwcrypto.HMACSHA256 || alg == hwcrypto.ECDHP256 {
			continue
		}
		server := ca.Certificate(t, s.make(t, "server-"+string(alg), alg), "server")
		client := ca.Certificate(t, s.make(t, "client-"+string(alg), alg), "client")
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if err := ca.Handshake(v, server, client); err != nil {
				t.Errorf("%s, %s: %v", alg, tls.VersionName(v), err)
			}
		}
	}
}

func (s Subject) testCSR(t *testing.T) {
	openssl := needs.Program(t, "openssl")
	k := s.make(t, "request", hwcrypto.ECDSAP256)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "gw"}, DNSNames: []string{"gw.example"}}, k)
	check(t, err)
	path := filepath.Join(t.TempDir(), "csr")
	write(t, path, der, 0o600)
	out, err := exec.Command(openssl, "req", "-inform", "DER", "-in", path, "-verify", "-noout", "-text").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("verify OK")) || !bytes.Contains(out, []byte("DNS:gw.example")) {
		t.Fatalf("openssl req: %v\n%s", err, out)
	}
}

// NewSoftwareCertificate is a certificate with a key in memory, for a peer.
func NewSoftwareCertificate(t testing.TB, ca *CA, name string) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	block, _ := pem.Decode(ca.Issue(t, k.Public(), name, 12*time.Hour))
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: k}
}

// NewSoftwareFiles is NewSoftwareCertificate for a program that reads files: the paths of the certificate and of its key.
func NewSoftwareFiles(t testing.TB, ca *CA, name, dir string) (cert, key string) {
	t.Helper()
	c := NewSoftwareCertificate(t, ca, name)
	cert, key = filepath.Join(dir, name+".peer.crt"), filepath.Join(dir, name+".peer.key")
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	check(t, err)
	write(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), 0o600)
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	return cert, key
}
