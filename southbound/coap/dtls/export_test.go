package dtls

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
)

// What tests from outside, which may use dtlstest, need of those within.

func NewPKI(t testing.TB) *pki { return newPKI(t) }

func (p *pki) Client() *tls.Certificate { return &p.client }

func (p *pki) Roots() *x509.CertPool { return p.pool }

func (s *Suite) UsesRSA() bool { return s.kx == ecdheRSA }

// Echo serves one client at a time.
func Echo(t testing.TB, p *pki) (addr string) {
	_, addr = serve(t, testConfig(p), nil)
	return addr
}
