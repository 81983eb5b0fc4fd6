//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// key is what every kind of key in a token has in common.
type key struct {
	t     *token
	uri   hwcrypto.URI
	class uint // CKO_PRIVATE_KEY, CKO_SECRET_KEY
	alg   hwcrypto.Algorithm
	label string
	id    []byte
	pub   crypto.PublicKey // nil for a secret

	mu    sync.Mutex
	h     pkcs11.ObjectHandle // guarded by mu; good in epoch alone
	epoch int                 // guarded by mu
}

type signer struct{ key }
type agreer struct{ key }
type macer struct{ key }

var (
	_ hwcrypto.ContextSigner = (*signer)(nil)
	_ hwcrypto.Sealer        = (*signer)(nil)
	_ hwcrypto.Describer     = (*signer)(nil)
	_ hwcrypto.Random        = (*signer)(nil)
	_ hwcrypto.Attester      = (*signer)(nil)
	_ hwcrypto.Agreer        = (*agreer)(nil)
	_ hwcrypto.MACer         = (*macer)(nil)
)

// Close does nothing: sessions belong to the token, and objects stay.
func (k *key) Close() error { return nil }

// Public is nil for a secret.
func (k *key) Public() crypto.PublicKey { return k.pub }

// Rand gives random octets of the key's token.
func (k *key) Rand() io.Reader { return random{k.t} }

// Sign refuses: signer has its own.
func (k *key) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, fmt.Errorf("%v: %w: a key for %s does not sign", k.t.id, hwcrypto.ErrUnsupported, k.alg)
}

// handle gives the object's handle in the session, looking for it where it is not known.
func (k *key) handle(s session) (pkcs11.ObjectHandle, error) {
	k.mu.Lock()
	h, epoch := k.h, k.epoch
	k.mu.Unlock()
	if epoch == s.epoch {
		return h, nil
	}
	h, err := findOne(s, template(k.class, k.label, k.id)) // without the lock: it may hang
	if err != nil {
		return 0, err
	}
	k.mu.Lock()
	k.h, k.epoch = h, s.epoch
	k.mu.Unlock()
	return h, nil
}

func template(class uint, label string, id []byte) []*pkcs11.Attribute {
	// CKA_TOKEN: a session object, such as an ECDH secret for its moment, is no key of the token.
	t := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true)}
	if label != "" {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_LABEL, label))
	}
	if len(id) > 0 {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_ID, id))
	}
	return t
}

func find(s session, t []*pkcs11.Attribute, limit int) ([]pkcs11.ObjectHandle, error) {
	if err := s.FindObjectsInit(s.h, t); err != nil {
		return nil, err
	}
	var all []pkcs11.ObjectHandle
	for len(all) < limit {
		hs, _, err := s.FindObjects(s.h, min(64, limit-len(all)))
		if err != nil {
			_ = s.FindObjectsFinal(s.h)
			return nil, err
		}
		if len(hs) == 0 {
			break
		}
		all = append(all, hs...)
	}
	return all, s.FindObjectsFinal(s.h)
}

func findOne(s session, t []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	hs, err := find(s, t, 2)
	switch {
	case err != nil:
		return 0, err
	case len(hs) == 0:
		return 0, hwcrypto.ErrNoKey
	case len(hs) > 1:
		return 0, hwcrypto.ErrAmbiguous
	}
	return hs[0], nil
}

// open finds u's key. The object must match everything that u says, and be alone in that.
func (t *token) open(ctx context.Context, u hwcrypto.URI) (hwcrypto.Key, error) {
	k, err := call(ctx, t, func(s session) (*key, error) {
		var found *key
		for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
			if u.Type == "private" && class != pkcs11.CKO_PRIVATE_KEY || u.Type == "secret-key" && class != pkcs11.CKO_SECRET_KEY {
				continue
			}
			h, err := findOne(s, template(class, u.Object, u.ID))
			if errors.Is(err, hwcrypto.ErrNoKey) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if found != nil {
				return nil, hwcrypto.ErrAmbiguous
			}
			found = &key{t: t, uri: u, class: class, h: h, epoch: s.epoch}
		}
		if found == nil {
			return nil, hwcrypto.ErrNoKey
		}
		return found, found.read(s)
	})
	if err != nil {
		return nil, err
	}
	return k.ability()
}

// ability gives the key the methods of its kind.
func (k *key) ability() (hwcrypto.Key, error) {
	switch k.alg {
	case hwcrypto.HMACSHA256:
		return &macer{key: k.copy()}, nil
	case hwcrypto.ECDHP256:
		return &agreer{key: k.copy()}, nil
	case "":
		return nil, fmt.Errorf("%v: %w: the key is of a kind that is not known here", k.t.id, hwcrypto.ErrUnsupported)
	}
	return &signer{key: k.copy()}, nil
}

// copy is k as it is before anybody uses it.
func (k *key) copy() key {
	return key{t: k.t, uri: k.uri, class: k.class, alg: k.alg, label: k.label, id: k.id, pub: k.pub, h: k.h, epoch: k.epoch}
}

// read fills in what the object's attributes say.
func (k *key) read(s session) error {
	a := attributes{s, k.h}
	label, id := string(a.get(pkcs11.CKA_LABEL)), a.get(pkcs11.CKA_ID)
	if k.uri.Object != "" && label != k.uri.Object || len(k.uri.ID) > 0 && !bytes.Equal(id, k.uri.ID) {
		return fmt.Errorf("%w: the token found object %q with id %x instead", hwcrypto.ErrNoKey, label, id)
	}
	k.label, k.id = label, id
	kt := a.number(pkcs11.CKA_KEY_TYPE)
	if k.class == pkcs11.CKO_SECRET_KEY {
		switch kt {
		case pkcs11.CKK_GENERIC_SECRET, pkcs11.CKK_SHA256_HMAC:
			k.alg = hwcrypto.HMACSHA256
		}
		return nil
	}
	if a.yes(pkcs11.CKA_ALWAYS_AUTHENTICATE) {
		return fmt.Errorf("%w: the key wants its PIN for every signature", hwcrypto.ErrUnsupported)
	}
	var err error
	if k.pub, err = k.public(s, kt); err != nil {
		return err
	}
	k.alg = hwcrypto.AlgorithmOf(k.pub)
	if k.alg == hwcrypto.ECDSAP256 && !a.yes(pkcs11.CKA_SIGN) && a.yes(pkcs11.CKA_DERIVE) {
		k.alg = hwcrypto.ECDHP256
	}
	return nil
}

// SignContext signs a digest. ECDSA, or RSA by PKCS #1 v1.5 or PSS.
func (k *signer) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc()
	if hash == 0 || len(digest) != hash.Size() {
		return nil, fmt.Errorf("%v: sign: want a digest of a hash that is named", k.t.id)
	}
	input := bytes.Clone(digest)
	var mech *pkcs11.Mechanism
	size := 0
	switch pub := k.pub.(type) {
	case *ecdsa.PublicKey:
		mech = pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)
		size = (pub.Params().BitSize + 7) / 8
		input = input[:min(size, len(input))] // FIPS 186-5 6.4.1: the leftmost bits; not every token cuts by itself
	case *rsa.PublicKey:
		var err error
		if mech, input, err = rsaMechanism(pub, hash, input, opts); err != nil {
			return nil, fmt.Errorf("%v: sign: %w", k.t.id, err)
		}
	}
	sig, err := call(ctx, k.t, func(s session) ([]byte, error) {
		h, err := k.handle(s)
		if err != nil {
			return nil, err
		}
		if err := s.SignInit(s.h, []*pkcs11.Mechanism{mech}, h); err != nil {
			return nil, err
		}
		return s.Sign(s.h, input)
	})
	if err != nil || size == 0 {
		return sig, err
	}
	if len(sig) != 2*size {
		return nil, fmt.Errorf("%v: sign: signature of %d octets: want %d", k.t.id, len(sig), 2*size)
	}
	return hwcrypto.ECDSASignature(sig[:size], sig[size:])
}

// Sign is SignContext without a time of its own: the queue's counts.
func (k *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(k.t.ctx, digest, opts)
}

// digestInfo is the DER in front of the digest, RFC 8017 section 9.2 note 1.
var digestInfo = map[crypto.Hash][]byte{
	crypto.SHA256: {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20},
	crypto.SHA384: {0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04, 0x30},
	crypto.SHA512: {0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04, 0x40},
}

var pssHash = map[crypto.Hash][2]uint{
	crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
	crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
}

func rsaMechanism(pub *rsa.PublicKey, hash crypto.Hash, digest []byte, opts crypto.SignerOpts) (*pkcs11.Mechanism, []byte, error) {
	prefix, ok := digestInfo[hash]
	if !ok {
		return nil, nil, fmt.Errorf("%w: RSA with %v", hwcrypto.ErrUnsupported, hash)
	}
	pss, ok := opts.(*rsa.PSSOptions)
	if !ok {
		return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil), append(bytes.Clone(prefix), digest...), nil
	}
	salt := pss.SaltLength
	switch salt {
	case rsa.PSSSaltLengthEqualsHash:
		salt = hash.Size()
	case rsa.PSSSaltLengthAuto:
		salt = (pub.N.BitLen()-1+7)/8 - 2 - hash.Size()
	}
	h := pssHash[hash]
	return pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(h[0], h[1], uint(salt))), digest, nil
}

// MAC computes HMAC-SHA-256 in the token.
func (k *macer) MAC(ctx context.Context, data []byte) ([]byte, error) {
	data = bytes.Clone(data)
	return call(ctx, k.t, func(s session) ([]byte, error) {
		h, err := k.handle(s)
		if err != nil {
			return nil, err
		}
		if err := s.SignInit(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_SHA256_HMAC, nil)}, h); err != nil {
			return nil, err
		}
		return s.Sign(s.h, data)
	})
}

// ECDH gives the x coordinate of the shared point. It is derived as a session object that may be read, then destroyed.
func (k *agreer) ECDH(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	if peer.Curve() != ecdh.P256() {
		return nil, fmt.Errorf("%v: ECDH: the peer's key is on another curve", k.t.id)
	}
	return call(ctx, k.t, func(s session) ([]byte, error) {
		h, err := k.handle(s)
		if err != nil {
			return nil, err
		}
		return derive(s, h, peer)
	})
}

func derive(s session, h pkcs11.ObjectHandle, peer *ecdh.PublicKey) ([]byte, error) {
	a := pkcs11.NewAttribute
	mech := pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE, pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, peer.Bytes()))
	d, err := s.DeriveKey(s.h, []*pkcs11.Mechanism{mech}, h, []*pkcs11.Attribute{
		a(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), a(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET), a(pkcs11.CKA_TOKEN, false),
		a(pkcs11.CKA_SENSITIVE, false), a(pkcs11.CKA_EXTRACTABLE, true), a(pkcs11.CKA_VALUE_LEN, 32)})
	if err != nil {
		return nil, err
	}
	secret, err := s.GetAttributeValue(s.h, d, []*pkcs11.Attribute{a(pkcs11.CKA_VALUE, nil)})
	if e := s.DestroyObject(s.h, d); err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	return secret[0].Value, nil
}
