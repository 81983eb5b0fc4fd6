package hwcrypto

import (
	"context"
	"crypto"
	"crypto/tls"
	"io"
	"time"
)

type patienceKey struct{}

// WithPatience says that the caller has a goroutine to lose: an operation that hangs in a chip's driver may keep it for as long as it hangs. The
// caller is spared what it costs to be given back in time, and gaveUp is called, without waiting, with what it would have been told then.
func WithPatience(ctx context.Context, gaveUp func(error)) context.Context {
	return context.WithValue(ctx, patienceKey{}, gaveUp)
}

// Patience gives the gaveUp of WithPatience, nil where it was not called.
func Patience(ctx context.Context) func(error) {
	f, _ := ctx.Value(patienceKey{}).(func(error))
	return f
}

// Patiently runs f, such as a TLS handshake, on a goroutine of its own, with patience. Where a chip hangs in it, f is left behind.
func Patiently(ctx context.Context, f func(context.Context) error) error {
	done, gaveUp := make(chan error, 1), make(chan error, 1)
	patient := WithPatience(ctx, func(err error) {
		select {
		case gaveUp <- err:
		default: // one is enough
		}
	})
	go func() { done <- f(patient) }()
	select {
	case err := <-done:
		return err
	case err := <-gaveUp:
		return err
	case <-ctx.Done():
	}
	late := time.NewTimer(time.Second)
	defer late.Stop()
	select {
	case err := <-done: // how far it came says more
		return err
	case <-late.C:
		return context.Cause(ctx)
	}
}

// CertificateFor is c with a key that signs with the context of one handshake, as tls.Config.GetCertificate has it.
func CertificateFor(ctx context.Context, c *tls.Certificate) *tls.Certificate {
	s, ok := c.PrivateKey.(contextSigner)
	if !ok {
		return c
	}
	own := *c
	own.PrivateKey = &bound{s, ctx}
	return &own
}

type contextSigner interface {
	crypto.Signer
	ContextSigner
}

// bound is a key that signs with a context.
type bound struct {
	contextSigner
	ctx context.Context
}

func (b *bound) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return b.SignContext(b.ctx, digest, opts)
}
