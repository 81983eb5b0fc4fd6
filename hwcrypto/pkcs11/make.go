//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Generate makes a key in the token: SENSITIVE, not EXTRACTABLE, good for its one purpose.
func (p *Provider) Generate(ctx context.Context, u hwcrypto.URI, alg hwcrypto.Algorithm) (hwcrypto.Key, error) {
	t, err := p.token(ctx, u)
	if err != nil {
		return nil, err
	}
	a := pkcs11.NewAttribute
	var maker func(s session, common []*pkcs11.Attribute) (pkcs11.ObjectHandle, pkcs11.ObjectHandle, error)
	class := uint(pkcs11.CKO_PRIVATE_KEY)
	pair := func(mech uint, public []*pkcs11.Attribute, private ...*pkcs11.Attribute) {
		maker = func(s session, common []*pkcs11.Attribute) (pkcs11.ObjectHandle, pkcs11.ObjectHandle, error) {
			return s.GenerateKeyPair(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(mech, nil)},
				append(append([]*pkcs11.Attribute{a(pkcs11.CKA_TOKEN, true), a(pkcs11.CKA_PRIVATE, false)}, public...), common...),
				append(append(protected(), private...), common...))
		}
	}
	sign := []*pkcs11.Attribute{a(pkcs11.CKA_SIGN, true), a(pkcs11.CKA_DECRYPT, false), a(pkcs11.CKA_UNWRAP, false), a(pkcs11.CKA_DERIVE, false)}
	switch alg {
	case hwcrypto.ECDSAP256:
		pair(pkcs11.CKM_EC_KEY_PAIR_GEN, []*pkcs11.Attribute{a(pkcs11.CKA_VERIFY, true), a(pkcs11.CKA_EC_PARAMS, der(oidP256))}, sign...)
	case hwcrypto.ECDSAP384:
		pair(pkcs11.CKM_EC_KEY_PAIR_GEN, []*pkcs11.Attribute{a(pkcs11.CKA_VERIFY, true), a(pkcs11.CKA_EC_PARAMS, der(oidP384))}, sign...)
	case hwcrypto.ECDHP256:
		pair(pkcs11.CKM_EC_KEY_PAIR_GEN, []*pkcs11.Attribute{a(pkcs11.CKA_EC_PARAMS, der(oidP256))},
			a(pkcs11.CKA_SIGN, false), a(pkcs11.CKA_DECRYPT, false), a(pkcs11.CKA_UNWRAP, false), a(pkcs11.CKA_DERIVE, true))
	case hwcrypto.RSA2048:
		pair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, []*pkcs11.Attribute{a(pkcs11.CKA_VERIFY, true),
			a(pkcs11.CKA_MODULUS_BITS, 2048), a(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1})}, sign...)
	case hwcrypto.HMACSHA256:
		class = pkcs11.CKO_SECRET_KEY
		maker = func(s session, common []*pkcs11.Attribute) (pkcs11.ObjectHandle, pkcs11.ObjectHandle, error) {
			h, err := s.GenerateKey(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, nil)},
				append(append(protected(), a(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), a(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
					a(pkcs11.CKA_SIGN, true), a(pkcs11.CKA_VERIFY, true), a(pkcs11.CKA_VALUE_LEN, 32)), common...))
			return 0, h, err
		}
	default:
		return nil, fmt.Errorf("%v: %w: no %q", t.id, hwcrypto.ErrUnsupported, alg)
	}
	return t.create(ctx, u, class, maker)
}

// Import takes an HMAC secret into the token. What HMAC makes of it is kept in place of a secret that the token would refuse for its
// length: RFC 2104 hashes a key that is longer than 64 octets, and pads a shorter one with zeros.
func (p *Provider) Import(ctx context.Context, u hwcrypto.URI, secret []byte) (hwcrypto.Key, error) {
	t, err := p.token(ctx, u)
	if err != nil {
		return nil, err
	}
	if len(secret) == 0 {
		return nil, fmt.Errorf("%v: the secret is empty", t.id)
	}
	v := bytes.Clone(secret)
	if len(v) > sha256.BlockSize {
		sum := sha256.Sum256(v)
		v = append(v[:0], sum[:]...)
	}
	if len(v) < sha256.Size {
		v = append(v, bytes.Repeat([]byte{0}, sha256.Size-len(v))...)
	}
	a := pkcs11.NewAttribute
	return t.create(ctx, u, pkcs11.CKO_SECRET_KEY, func(s session, common []*pkcs11.Attribute) (pkcs11.ObjectHandle, pkcs11.ObjectHandle, error) {
		h, err := s.CreateObject(s.h, append(append(protected(), a(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), a(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
			a(pkcs11.CKA_SIGN, true), a(pkcs11.CKA_VERIFY, true), a(pkcs11.CKA_VALUE, v)), common...))
		return 0, h, err
	})
}

func protected() []*pkcs11.Attribute {
	a := pkcs11.NewAttribute
	return []*pkcs11.Attribute{a(pkcs11.CKA_TOKEN, true), a(pkcs11.CKA_PRIVATE, true), a(pkcs11.CKA_SENSITIVE, true), a(pkcs11.CKA_EXTRACTABLE, false)}
}

func der(oid asn1.ObjectIdentifier) []byte {
	b, _ := asn1.Marshal(oid) // never fails for a valid one
	return b
}

// create makes an object where there is none that u matches, and takes it back where another process was faster.
func (t *token) create(ctx context.Context, u hwcrypto.URI, class uint,
	maker func(session, []*pkcs11.Attribute) (public, private pkcs11.ObjectHandle, err error)) (hwcrypto.Key, error) {
	id := u.ID
	if len(id) == 0 {
		id = newID()
	}
	common := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, id)}
	if u.Object != "" {
		common = append(common, pkcs11.NewAttribute(pkcs11.CKA_LABEL, u.Object))
	}
	_, err := change(ctx, t, func(s session) (struct{}, error) {
		none := struct{}{}
		for _, c := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
			if _, err := findOne(s, template(c, u.Object, u.ID)); !errors.Is(err, hwcrypto.ErrNoKey) {
				if err == nil || errors.Is(err, hwcrypto.ErrAmbiguous) {
					err = hwcrypto.ErrKeyExists
				}
				return none, err
			}
		}
		public, private, err := maker(s, common)
		if err != nil {
			return none, err
		}
		hs, err := find(s, template(class, u.Object, u.ID), 16)
		if err != nil {
			return none, err
		}
		if len(hs) > 1 { // made at once by two: each takes its own back rather than leave a name that means both
			err = hwcrypto.ErrKeyExists
		}
		if err != nil {
			_ = s.DestroyObject(s.h, private)
			if public != 0 {
				_ = s.DestroyObject(s.h, public)
			}
		}
		return none, err
	})
	if err != nil {
		return nil, err
	}
	u.ID = id
	return t.open(ctx, u)
}

// What lies at rest is sealed by an AES key, a companion of the key that the user has named: its label has "-seal" after it.
// Sealed data names it by its id.
const (
	sealVersion = 1
	nonceSize   = 12
	idSize      = 16
)

func (k *key) sealLabel() string {
	if k.label == "" {
		return fmt.Sprintf("%x-seal", k.id)
	}
	return k.label + "-seal"
}

// Seal encrypts by AES-256-GCM in the token: version, id of the companion, nonce, ciphertext and tag.
func (k *key) Seal(ctx context.Context, plain, aad []byte) ([]byte, error) {
	plain, aad = bytes.Clone(plain), bytes.Clone(aad)
	nonce := make([]byte, nonceSize)
	rand.Read(nonce) // never fails
	seal := func(s session) ([]byte, error) {
		id, h, err := k.companion(s, nil)
		if err != nil {
			return nil, err
		}
		p := pkcs11.NewGCMParams(nonce, aad, 128)
		defer p.Free()
		if err := s.EncryptInit(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, h); err != nil {
			return nil, err
		}
		ct, err := s.Encrypt(s.h, plain)
		if err != nil {
			return nil, err
		}
		return append(append(append([]byte{sealVersion}, id...), nonce...), ct...), nil
	}
	sealed, err := call(ctx, k.t, seal)
	if errors.Is(err, hwcrypto.ErrNoKey) {
		if err = k.makeCompanion(ctx); err == nil {
			sealed, err = call(ctx, k.t, seal)
		}
	}
	return sealed, err
}

// Unseal opens what Seal has given.
func (k *key) Unseal(ctx context.Context, sealed, aad []byte) ([]byte, error) {
	if len(sealed) < 1+idSize+nonceSize+16 || sealed[0] != sealVersion {
		return nil, fmt.Errorf("%v: %w", k.t.id, hwcrypto.ErrNotSealed)
	}
	sealed, aad = bytes.Clone(sealed), bytes.Clone(aad)
	id, nonce, ct := sealed[1:1+idSize], sealed[1+idSize:1+idSize+nonceSize], sealed[1+idSize+nonceSize:]
	return call(ctx, k.t, func(s session) ([]byte, error) {
		_, h, err := k.companion(s, id)
		if errors.Is(err, hwcrypto.ErrNoKey) {
			err = fmt.Errorf("%w: the token does not hold the key with which it was sealed", hwcrypto.ErrNotSealed)
		}
		if err != nil {
			return nil, err
		}
		p := pkcs11.NewGCMParams(nonce, aad, 128)
		defer p.Free()
		if err := s.DecryptInit(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, h); err != nil {
			return nil, err
		}
		plain, err := s.Decrypt(s.h, ct)
		// SoftHSM says CKR_GENERAL_ERROR for a wrong tag, others what it should be.
		if is(err, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_ENCRYPTED_DATA_INVALID) {
			err = hwcrypto.ErrNotSealed
		}
		return plain, err
	})
}

// companion finds the sealing key: that with the id, else the one with the lowest.
func (k *key) companion(s session, id []byte) ([]byte, pkcs11.ObjectHandle, error) {
	hs, err := find(s, template(pkcs11.CKO_SECRET_KEY, k.sealLabel(), id), 16)
	if err != nil {
		return nil, 0, err
	}
	var best []byte
	var h pkcs11.ObjectHandle
	for _, c := range hs {
		if i := (attributes{s, c}).get(pkcs11.CKA_ID); len(i) == idSize && (best == nil || bytes.Compare(i, best) < 0) {
			best, h = i, c
		}
	}
	if best == nil {
		return nil, 0, hwcrypto.ErrNoKey
	}
	return best, h, nil
}

func (k *key) makeCompanion(ctx context.Context) error {
	_, err := change(ctx, k.t, func(s session) (struct{}, error) {
		none := struct{}{}
		if _, _, err := k.companion(s, nil); !errors.Is(err, hwcrypto.ErrNoKey) {
			return none, err // another operation was faster
		}
		a := pkcs11.NewAttribute
		_, err := s.GenerateKey(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)},
			append(protected(), a(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), a(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), a(pkcs11.CKA_VALUE_LEN, 32),
				a(pkcs11.CKA_ENCRYPT, true), a(pkcs11.CKA_DECRYPT, true), a(pkcs11.CKA_LABEL, k.sealLabel()), a(pkcs11.CKA_ID, newID())))
		return none, err
	})
	return err
}
