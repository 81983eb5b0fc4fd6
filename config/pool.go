package config

import (
	"crypto/x509"
	"fmt"
	"os"
)

// CertPool reads the PEM file of CA certificates. Where p is empty it is nil, which crypto/tls takes for the system's own.
func (p Path) CertPool() (*x509.CertPool, error) {
	if p == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(string(p))
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca %q: no PEM certificate in it", string(p))
	}
	return pool, nil
}
