package keyring

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
)

// View is a ring as one user sees it: what listeners and connectors are given. Keys that it gives out may be used by many at once.
type View struct {
	r    *Ring
	user string
}

// Certificate gives the certificate chain of [key.NAME] with a crypto.Signer that lives in the chip. The file is read again when
// it has changed, so that a call per handshake serves a renewed certificate without a restart.
func (v View) Certificate(ctx context.Context, name string) (*tls.Certificate, error) {
	if v.r.trial != nil && name == v.r.trialName {
		return v.r.trial, nil
	}
	k, c, err := v.r.pair(hwcrypto.WithUser(ctx, v.user), name)
	if err != nil {
		return nil, err
	}
	return v.certificate(k, c.der, c.leaf), nil
}

// pair gives a key with its certificate. A certificate for another key may be that of a key which was made in the
// place of the one that we have open, so the chip is asked again.
func (r *Ring) pair(ctx context.Context, name string) (hwcrypto.Key, *chain, error) {
	e, k, err := r.named(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	c, err := r.chainOf(e, k)
	if !errors.Is(err, errMismatch) {
		return k, c, err
	}
	e.put(nil)
	if k, err = r.open(ctx, e); err != nil {
		return nil, nil, err
	}
	c, err = r.chainOf(e, k)
	return k, c, err
}

// Signer gives the key itself, for what is signed outside TLS: JSON web tokens, requests.
func (v View) Signer(ctx context.Context, name string) (crypto.Signer, error) {
	e, k, err := v.r.named(hwcrypto.WithUser(ctx, v.user), name)
	if err != nil {
		return nil, err
	}
	if _, err := ability[hwcrypto.ContextSigner](e, k, "it does not sign"); err != nil {
		return nil, err
	}
	return v.signer(k), nil
}

// Sealer gives the ability of the key's chip to seal what lies at rest.
func (v View) Sealer(ctx context.Context, name string) (hwcrypto.Sealer, error) {
	e, k, err := v.r.named(hwcrypto.WithUser(ctx, v.user), name)
	if err != nil {
		return nil, err
	}
	s, err := ability[hwcrypto.Sealer](e, k, "it does not seal")
	return sealer{s, v.user}, err
}

// MAC gives a key's ability to compute HMAC-SHA-256.
func (v View) MAC(ctx context.Context, name string) (hwcrypto.MACer, error) {
	e, k, err := v.r.named(hwcrypto.WithUser(ctx, v.user), name)
	if err != nil {
		return nil, err
	}
	m, err := ability[hwcrypto.MACer](e, k, "it computes no HMAC")
	if err != nil {
		return nil, noMAC.Of(err, health.Values{"key": name})
	}
	return macer{m, v.user}, nil
}

// Agreer gives a key's ability to compute ECDH.
func (v View) Agreer(ctx context.Context, name string) (hwcrypto.Agreer, error) {
	e, k, err := v.r.named(hwcrypto.WithUser(ctx, v.user), name)
	if err != nil {
		return nil, err
	}
	a, err := ability[hwcrypto.Agreer](e, k, "it does not agree on keys")
	return agreer{a, v.user}, err
}

// Ephemeral has the key's chip make a key for one agreement.
func (v View) Ephemeral(ctx context.Context, name string) (hwcrypto.Ephemeral, error) {
	ctx = hwcrypto.WithUser(ctx, v.user)
	e, k, err := v.r.named(ctx, name)
	if err != nil {
		return nil, err
	}
	m, err := ability[hwcrypto.EphemeralMaker](e, k, "its provider makes no keys for one agreement")
	if err != nil {
		return nil, err
	}
	made, err := m.Ephemeral(ctx)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", name, err)
	}
	return ephemeral{made, v.user}, nil
}

// Secret reads a secret named in the configuration: "file:/path", "credential:NAME" or "sealed:/path". One trailing newline is cut.
// The caller wipes it after use.
func (v View) Secret(ctx context.Context, ref string) ([]byte, error) {
	kind, rest, _ := strings.Cut(ref, ":")
	var b []byte
	var err error
	switch kind {
	case "file":
		b, err = os.ReadFile(v.r.absolute(rest))
	case "credential":
		b, err = v.r.credential(rest)
	case "sealed":
		if b, err = os.ReadFile(v.r.absolute(rest)); err == nil {
			b, err = v.Unseal(ctx, b)
		}
	default:
		// The reference may be the secret itself, written where a reference belongs: it is not quoted.
		return nil, errors.New("secret: want file:/path, credential:NAME or sealed:/path")
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", ref, err)
	}
	return hwcrypto.TrimNewline(b), nil
}

const (
	sealedType = "DRAWBRIDGE SEALED"
	keyHeader  = "Key"
)

// Seal seals a secret by the chip of the key, as text that names the key. `sealed:/path` in the configuration names a file with it.
func (v View) Seal(ctx context.Context, name string, plain []byte) ([]byte, error) {
	s, err := v.Sealer(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := s.Seal(ctx, plain, sealedAAD(name))
	if err != nil {
		return nil, fmt.Errorf("key %q: seal: %w", name, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: sealedType, Headers: map[string]string{keyHeader: name}, Bytes: b}), nil
}

// Unseal opens what Seal has given.
func (v View) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	block, _ := pem.Decode(sealed)
	if block == nil || block.Type != sealedType || block.Headers[keyHeader] == "" {
		return nil, unsealed.Of(errors.New("not a sealed secret"), nil)
	}
	name := block.Headers[keyHeader]
	s, err := v.Sealer(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("it is sealed by key %q: %w", name, err)
	}
	plain, err := s.Unseal(ctx, block.Bytes, sealedAAD(name))
	if err != nil {
		return nil, fmt.Errorf("key %q: unseal: %w", name, err)
	}
	return plain, nil
}

func sealedAAD(name string) []byte { return []byte("drawbridge sealed v1\x00" + name) }

// signer is a key that signs for one user; without a context, as long as the ring lives.
type signer struct {
	ctx  context.Context
	user string
	hwcrypto.Key
}

func (v View) signer(k hwcrypto.Key) crypto.Signer { return &signer{v.r.ctx, v.user, k} }

func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.SignContext(s.ctx, digest, opts)
}

func (s *signer) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if c, ok := s.Key.(hwcrypto.ContextSigner); ok {
		return c.SignContext(hwcrypto.WithUser(ctx, s.user), digest, opts)
	}
	return s.Key.Sign(nil, digest, opts)
}

// Close does nothing: the key is the ring's.
func (s *signer) Close() error { return nil }

type sealer struct {
	s    hwcrypto.Sealer
	user string
}

func (s sealer) Seal(ctx context.Context, plain, aad []byte) ([]byte, error) {
	return s.s.Seal(hwcrypto.WithUser(ctx, s.user), plain, aad)
}

func (s sealer) Unseal(ctx context.Context, sealed, aad []byte) ([]byte, error) {
	return s.s.Unseal(hwcrypto.WithUser(ctx, s.user), sealed, aad)
}

type macer struct {
	m    hwcrypto.MACer
	user string
}

func (m macer) MAC(ctx context.Context, data []byte) ([]byte, error) {
	return m.m.MAC(hwcrypto.WithUser(ctx, m.user), data)
}

type agreer struct {
	a    hwcrypto.Agreer
	user string
}

func (a agreer) ECDH(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	return a.a.ECDH(hwcrypto.WithUser(ctx, a.user), peer)
}

type ephemeral struct {
	hwcrypto.Ephemeral
	user string
}

func (e ephemeral) ECDH(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	return e.Ephemeral.ECDH(hwcrypto.WithUser(ctx, e.user), peer)
}

func (r *Ring) absolute(path string) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return absolute(path, r.baseDir)
}
