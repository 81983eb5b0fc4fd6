//go:build !cgo

package pkcs11

import (
	"context"
	"fmt"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
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

var noCgo = health.Meaning{Name: "pkcs11-no-cgo", What: "this build of the program cannot use PKCS#11 modules",
	Hint: "use a build with CGO_ENABLED=1, or a key in a TPM (`tpm:name=NAME`), which needs none"}

func refusal() error {
	return noCgo.Of(fmt.Errorf("%w: this build has no PKCS#11 support: it was built without cgo", hwcrypto.ErrUnsupported), nil)
}

// Close does nothing.
func (*Provider) Close() error { return nil }
