package tpm2

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"fmt"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

var _ hwcrypto.EphemeralMaker = signer{}

// ephemeral is a key of which only the TPM's encrypted blob is held, here in memory, so that it takes no slot while the peer thinks.
type ephemeral struct {
	agreer
	point *ecdh.PublicKey
}

// Ephemeral has the TPM make a key.
func (k signer) Ephemeral(ctx context.Context) (hwcrypto.Ephemeral, error) {
	b, err := call(ctx, k.c, func(l *link) (*blob, error) { return l.create(templates()[hwcrypto.ECDHP256], nil) })
	if err != nil {
		return nil, err
	}
	area, err := b.pub.Contents()
	if err != nil {
		return nil, err
	}
	made, err := (&key{p: k.p, c: k.c, obj: b.object()}).ability(*area)
	if err != nil {
		return nil, err
	}
	a, ok := made.(agreer)
	if !ok {
		return nil, fmt.Errorf("%v: the key that was made does not agree on keys", k.c)
	}
	point, err := a.pub.(*ecdsa.PublicKey).ECDH()
	return ephemeral{a, point}, err
}

func (e ephemeral) PublicKey() *ecdh.PublicKey { return e.point }

// Close does nothing: what is not in a slot is nowhere but in the blob.
func (e ephemeral) Close(context.Context) error { return nil }
