//go:build !cgo

package pkcs11

import (
	"context"
	"fmt"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Provider refuses everything.
type Provider struct{}

// New gives a provider that says what is missing.
func New(context.Context, Options) *Provider { return &Provider{} }

// Open refuses.
func (*Provider) Open(context.Context, hwcrypto.URI) (hwcrypto.Key, error) { return nil, refusal() }

// Generate refuses.
func (*Provider) Generate(context.Context, hwcrypto.URI, hwcrypto.Algorithm) (hwcrypto.Key, error) {
	return nil, refusal()
}

// Import refuses.
func (*Provider) Import(context.Context, hwcrypto.URI, []byte) (hwcrypto.Key, error) {
	return nil, refusal()
}

func refusal() error {
	return hwcrypto.WithHint(fmt.Errorf("%w: this build has no PKCS#11 support: it was built without cgo", hwcrypto.ErrUnsupported),
		"use a build with CGO_ENABLED=1, or a key in a TPM (tpm:name=NAME), which needs no cgo")
}

// Close does nothing.
func (*Provider) Close() error { return nil }
