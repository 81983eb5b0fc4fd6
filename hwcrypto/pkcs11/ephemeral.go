//go:build cgo

package pkcs11

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

var _ hwcrypto.EphemeralMaker = (*signer)(nil)

// ephemeral is a session object: it goes with the session that made it, and with the log-in.
type ephemeral struct {
	t     *token
	h     pkcs11.ObjectHandle
	epoch int
	pub   *ecdh.PublicKey
}

var errEphemeralGone = errors.New("the token has lost the key of this handshake")

// Ephemeral has the token make a key pair as session objects. The public half is read and destroyed at once.
func (k *signer) Ephemeral(ctx context.Context) (hwcrypto.Ephemeral, error) {
	a := pkcs11.NewAttribute
	return call(ctx, k.t, func(s session) (hwcrypto.Ephemeral, error) {
		public, private, err := s.GenerateKeyPair(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
			[]*pkcs11.Attribute{a(pkcs11.CKA_TOKEN, false), a(pkcs11.CKA_PRIVATE, false), a(pkcs11.CKA_EC_PARAMS, der(oidP256))},
			[]*pkcs11.Attribute{a(pkcs11.CKA_TOKEN, false), a(pkcs11.CKA_PRIVATE, true), a(pkcs11.CKA_SENSITIVE, true), a(pkcs11.CKA_EXTRACTABLE, false),
				a(pkcs11.CKA_SIGN, false), a(pkcs11.CKA_DECRYPT, false), a(pkcs11.CKA_UNWRAP, false), a(pkcs11.CKA_DERIVE, true)})
		if err != nil {
			return nil, err
		}
		o := attributes{s, public}
		pub, err := ecPublic(o.get(pkcs11.CKA_EC_PARAMS), o.get(pkcs11.CKA_EC_POINT))
		if e := s.DestroyObject(s.h, public); err == nil {
			err = e
		}
		if err != nil {
			return nil, errors.Join(err, s.DestroyObject(s.h, private))
		}
		point, err := pub.ECDH()
		return &ephemeral{k.t, private, s.epoch, point}, err
	})
}

func (e *ephemeral) PublicKey() *ecdh.PublicKey { return e.pub }

// ECDH gives the x coordinate of the shared point.
func (e *ephemeral) ECDH(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	if peer.Curve() != ecdh.P256() {
		return nil, fmt.Errorf("%v: ECDH: the peer's key is on another curve", e.t.id)
	}
	return call(ctx, e.t, func(s session) ([]byte, error) {
		if s.epoch != e.epoch {
			return nil, errEphemeralGone
		}
		z, err := derive(s, e.h, peer)
		if is(err, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID) {
			return nil, errEphemeralGone // no reason to take other handles for void
		}
		return z, err
	})
}

// Close destroys the key. One whose session has ended is gone already.
func (e *ephemeral) Close(ctx context.Context) error {
	_, err := call(ctx, e.t, func(s session) (struct{}, error) {
		if s.epoch == e.epoch {
			_ = s.DestroyObject(s.h, e.h)
		}
		return struct{}{}, nil
	})
	return err
}
