package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// ClientTLS makes the configuration of a client that trusts the authorities of a PEM file (empty: the system's) and shows the certificate of
// [key.NAME] (empty: none). It is made anew for each session: certificates are renewed while the gateway runs.
func ClientTLS(ctx context.Context, env northbound.Env, ca, key string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, Time: env.Now}
	if ca != "" {
		roots, err := LoadCA(ca)
		if err != nil {
			return nil, err
		}
		t.RootCAs = roots
	}
	if key != "" {
		cert, err := env.Keys.Certificate(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", key, err)
		}
		t.Certificates = []tls.Certificate{*cert}
	}
	return t, nil
}

// LoadCA reads the PEM file of CA certificates.
func LoadCA(path string) (*x509.CertPool, error) {
	pool, err := config.Path(path).CertPool()
	if _, unread := errors.AsType[*fs.PathError](err); err != nil && !unread {
		err = msg.Permanent(err)
	}
	return pool, err
}
