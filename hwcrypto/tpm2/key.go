package tpm2

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"strconv"
	"strings"
	"sync"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// key is what every kind of key in a TPM has in common.
type key struct {
	p    *Provider
	c    *chip
	uri  hwcrypto.URI
	obj  *object
	alg  hwcrypto.Algorithm
	area tpm2.TPMTPublic
	pub  crypto.PublicKey // nil for a secret
	hash crypto.Hash      // the only one by which it signs; 0: any

	mu   sync.Mutex
	seal *object // the sealing companion; guarded by mu; nil until it has been read
}

type signer struct{ *key }
type agreer struct{ *key }
type macer struct{ *key }

var (
	_ hwcrypto.ContextSigner = signer{}
	_ hwcrypto.HashBound     = signer{}
	_ hwcrypto.Attester      = signer{}
	_ hwcrypto.Challenged    = signer{}
	_ hwcrypto.Sealer        = signer{}
	_ hwcrypto.Describer     = signer{}
	_ hwcrypto.Random        = signer{}
	_ hwcrypto.Agreer        = agreer{}
	_ hwcrypto.MACer         = macer{}
)

var hashes = map[tpm2.TPMIAlgHash]crypto.Hash{tpm2.TPMAlgSHA256: crypto.SHA256, tpm2.TPMAlgSHA384: crypto.SHA384, tpm2.TPMAlgSHA512: crypto.SHA512}

func hashID(h crypto.Hash) (tpm2.TPMIAlgHash, bool) {
	for id, g := range hashes {
		if g == h {
			return id, true
		}
	}
	return 0, false
}

// ability gives the key the methods of its kind.
func (k *key) ability(area tpm2.TPMTPublic) (hwcrypto.Key, error) {
	k.area = area
	a := area.ObjectAttributes
	unknown := fmt.Errorf("%v: %w: the key is of a kind that is not used here", k.c, hwcrypto.ErrUnsupported)
	if a.Restricted {
		return nil, unknown
	}
	switch area.Type {
	case tpm2.TPMAlgKeyedHash:
		if !a.SignEncrypt {
			return nil, unknown
		}
		k.alg = hwcrypto.HMACSHA256
		return macer{k}, nil
	case tpm2.TPMAlgECC:
		parms, err := area.Parameters.ECCDetail()
		if err != nil {
			return nil, err
		}
		point, err := area.Unique.ECC()
		if err != nil {
			return nil, err
		}
		pub, err := ecPublic(parms.CurveID, point)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", k.c, err)
		}
		k.pub = pub
		if !a.SignEncrypt {
			k.alg = hwcrypto.ECDHP256
			return agreer{k}, nil
		}
		if parms.Scheme.Scheme == tpm2.TPMAlgECDSA {
			if d, err := parms.Scheme.Details.ECDSA(); err == nil {
				k.hash = hashes[d.HashAlg]
			}
		}
	case tpm2.TPMAlgRSA:
		parms, err := area.Parameters.RSADetail()
		if err != nil {
			return nil, err
		}
		n, err := area.Unique.RSA()
		if err != nil || !a.SignEncrypt {
			return nil, unknown
		}
		e := int(parms.Exponent)
		if e == 0 {
			e = 65537
		}
		k.pub = &rsa.PublicKey{N: new(big.Int).SetBytes(n.Buffer), E: e}
	default:
		return nil, unknown
	}
	k.alg = hwcrypto.AlgorithmOf(k.pub)
	return signer{k}, nil
}

func ecPublic(id tpm2.TPMECCCurve, point *tpm2.TPMSECCPoint) (*ecdsa.PublicKey, error) {
	var curve elliptic.Curve
	switch id {
	case tpm2.TPMECCNistP256:
		curve = elliptic.P256()
	case tpm2.TPMECCNistP384:
		curve = elliptic.P384()
	default:
		return nil, fmt.Errorf("%w: curve %#x", hwcrypto.ErrUnsupported, uint16(id))
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(point.X.Buffer) > size || len(point.Y.Buffer) > size {
		return nil, errors.New("a point that is not on its curve")
	}
	raw := make([]byte, 1+2*size)
	raw[0] = 4
	copy(raw[1+size-len(point.X.Buffer):], point.X.Buffer)
	copy(raw[1+2*size-len(point.Y.Buffer):], point.Y.Buffer)
	return ecdsa.ParseUncompressedPublicKey(curve, raw)
}

// Close does nothing: the TPM's slots belong to the chip.
func (k *key) Close() error { return nil }

// Public is nil for a secret.
func (k *key) Public() crypto.PublicKey { return k.pub }

// Rand gives random octets of the key's TPM.
func (k *key) Rand() io.Reader { return random{k.c} }

// Sign refuses: signer has its own.
func (k *key) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, fmt.Errorf("%v: %w: a key for %s does not sign", k.c, hwcrypto.ErrUnsupported, k.alg)
}

// auth is the handle of a loaded key as commands want it. Our keys have no password: the blob and the TPM are what is needed.
func auth(h tpm2.NamedHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)}
}

// Hashes are those by which the key signs; nil: any that the TPM knows.
func (k signer) Hashes() []crypto.Hash {
	if k.hash == 0 {
		return nil
	}
	return []crypto.Hash{k.hash}
}

// Sign is SignContext without a time of its own: the queue's counts.
func (k signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(k.c.ctx, digest, opts)
}

// SignContext signs a digest. ECDSA, or RSA by PKCS #1 v1.5 or PSS.
func (k signer) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc()
	id, ok := hashID(hash)
	if !ok || len(digest) != hash.Size() {
		return nil, fmt.Errorf("%v: sign: want a digest of SHA-256, SHA-384 or SHA-512", k.c)
	}
	if k.hash != 0 && hash != k.hash {
		return nil, fmt.Errorf("%v: %w: the key signs by %v alone, not by %v", k.c, hwcrypto.ErrUnsupported, k.hash, hash)
	}
	scheme := tpm2.TPMAlgECDSA
	if _, ok := k.pub.(*rsa.PublicKey); ok {
		scheme = tpm2.TPMAlgRSASSA
		if _, ok := opts.(*rsa.PSSOptions); ok {
			scheme = tpm2.TPMAlgRSAPSS
		}
	}
	cmd := tpm2.Sign{Digest: tpm2.TPM2BDigest{Buffer: bytes.Clone(digest)},
		InScheme:   tpm2.TPMTSigScheme{Scheme: scheme, Details: tpm2.NewTPMUSigScheme(scheme, &tpm2.TPMSSchemeHash{HashAlg: id})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}}
	sig, err := call(ctx, k.c, func(l *link) (*tpm2.SignResponse, error) {
		h, err := l.load(k.obj)
		if err != nil {
			return nil, err
		}
		cmd := cmd
		cmd.KeyHandle = auth(h)
		return cmd.Execute(l)
	})
	if err != nil {
		return nil, err
	}
	return signature(sig.Signature)
}

func signature(s tpm2.TPMTSignature) ([]byte, error) {
	switch s.SigAlg {
	case tpm2.TPMAlgECDSA:
		e, err := s.Signature.ECDSA()
		if err != nil {
			return nil, err
		}
		return hwcrypto.ECDSASignature(e.SignatureR.Buffer, e.SignatureS.Buffer)
	case tpm2.TPMAlgRSASSA:
		r, err := s.Signature.RSASSA()
		if err != nil {
			return nil, err
		}
		return r.Sig.Buffer, nil
	case tpm2.TPMAlgRSAPSS:
		r, err := s.Signature.RSAPSS()
		if err != nil {
			return nil, err
		}
		return r.Sig.Buffer, nil
	}
	return nil, fmt.Errorf("a signature of kind %#x", uint16(s.SigAlg))
}

// ECDH gives the x coordinate of the shared point.
func (k agreer) ECDH(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	if peer.Curve() != ecdh.P256() {
		return nil, fmt.Errorf("%v: ECDH: the peer's key is on another curve", k.c)
	}
	raw := peer.Bytes()
	point := tpm2.New2B(tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: raw[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: raw[33:]}})
	return call(ctx, k.c, func(l *link) ([]byte, error) {
		h, err := l.load(k.obj)
		if err != nil {
			return nil, err
		}
		r, err := tpm2.ECDHZGen{KeyHandle: auth(h), InPoint: point}.Execute(l, l.secret(nil))
		if err != nil {
			return nil, err
		}
		z, err := r.OutPoint.Contents()
		if err != nil {
			return nil, err
		}
		out := make([]byte, 32)
		copy(out[32-len(z.X.Buffer):], z.X.Buffer)
		return out, nil
	})
}

// maxBuffer is how much a TPM takes in one command.
const maxBuffer = 1024

// MAC computes HMAC-SHA-256 in the TPM.
func (k macer) MAC(ctx context.Context, data []byte) ([]byte, error) {
	data = bytes.Clone(data)
	return call(ctx, k.c, func(l *link) ([]byte, error) {
		h, err := l.load(k.obj)
		if err != nil {
			return nil, err
		}
		if len(data) <= maxBuffer {
			r, err := tpm2.Hmac{Handle: auth(h), Buffer: tpm2.TPM2BMaxBuffer{Buffer: data}, HashAlg: tpm2.TPMAlgSHA256}.Execute(l)
			if err != nil {
				return nil, err
			}
			return r.OutHMAC.Buffer, nil
		}
		s, err := tpm2.HmacStart{Handle: auth(h), HashAlg: tpm2.TPMAlgSHA256}.Execute(l)
		if err != nil {
			return nil, err
		}
		seq := tpm2.AuthHandle{Handle: s.SequenceHandle, Auth: tpm2.PasswordAuth(nil)}
		rest := data
		for len(rest) > maxBuffer {
			if _, err := (tpm2.SequenceUpdate{SequenceHandle: seq, Buffer: tpm2.TPM2BMaxBuffer{Buffer: rest[:maxBuffer]}}).Execute(l); err != nil {
				l.flush(s.SequenceHandle)
				return nil, err
			}
			rest = rest[maxBuffer:]
		}
		r, err := tpm2.SequenceComplete{SequenceHandle: seq, Buffer: tpm2.TPM2BMaxBuffer{Buffer: rest}, Hierarchy: tpm2.TPMRHNull}.Execute(l)
		if err != nil {
			l.flush(s.SequenceHandle)
			return nil, err
		}
		return r.Result.Buffer, nil
	})
}

// sealVersion stands first in what is sealed.
const sealVersion = 1

// Seal encrypts by AES-256-GCM under a key that the TPM has sealed and gives back for the moment of use: version, nonce,
// ciphertext and tag. (A TPM itself takes 128 octets at most, and seldom knows GCM.)
func (k *key) Seal(ctx context.Context, plain, aad []byte) ([]byte, error) {
	o, err := k.companion()
	if errors.Is(err, fs.ErrNotExist) {
		if err = k.makeCompanion(ctx); err == nil {
			o, err = k.companion()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%v: sealing key: %w", k.c, err)
	}
	aead, err := k.aead(ctx, o)
	if err != nil {
		return nil, err
	}
	return aead.Seal([]byte{sealVersion}, nil, plain, aad), nil
}

// Unseal opens what Seal has given.
func (k *key) Unseal(ctx context.Context, sealed, aad []byte) ([]byte, error) {
	if len(sealed) == 0 || sealed[0] != sealVersion {
		return nil, fmt.Errorf("%v: %w", k.c, hwcrypto.ErrNotSealed)
	}
	o, err := k.companion()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%v: %w: the sealing key's blob is not there", k.c, hwcrypto.ErrNotSealed)
	}
	if err != nil {
		return nil, fmt.Errorf("%v: sealing key: %w", k.c, err)
	}
	aead, err := k.aead(ctx, o)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nil, sealed[1:], aad)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", k.c, hwcrypto.ErrNotSealed)
	}
	return plain, nil
}

func (k *key) companion() (*object, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.seal != nil {
		return k.seal, nil
	}
	b, err := readBlob(k.p.sealPath(k.uri))
	if err != nil {
		return nil, err
	}
	k.seal = b.object()
	return k.seal, nil
}

func (k *key) makeCompanion(ctx context.Context) error {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	defer clear(secret)
	b, err := call(ctx, k.c, func(l *link) (*blob, error) { return l.create(sealTemplate(), bytes.Clone(secret)) })
	if err != nil {
		return err
	}
	if err := k.p.keep(k.p.sealPath(k.uri), b); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (k *key) aead(ctx context.Context, o *object) (cipher.AEAD, error) {
	secret, err := call(ctx, k.c, func(l *link) ([]byte, error) {
		h, err := l.load(o)
		if err != nil {
			return nil, err
		}
		r, err := tpm2.Unseal{ItemHandle: auth(h)}.Execute(l, l.secret(nil))
		if err != nil {
			return nil, err
		}
		return r.OutData.Buffer, nil
	})
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	b, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(b)
}

// Describe gives the public area's attributes.
func (k *key) Describe(ctx context.Context) (hwcrypto.Info, error) {
	model, err := k.c.describe(ctx)
	if err != nil {
		return hwcrypto.Info{}, err
	}
	// That the TPM still takes the key is seen by loading it.
	if _, err := call(ctx, k.c, func(l *link) (tpm2.NamedHandle, error) { return l.load(k.obj) }); err != nil {
		return hwcrypto.Info{}, err
	}
	a := k.area.ObjectAttributes
	i := hwcrypto.Info{URI: k.uri.String(), Where: fmt.Sprintf("TPM 2.0 (%s) at %s", model, k.c.device), Algorithm: k.alg, Hardware: true,
		Extractable: !a.FixedTPM || !a.FixedParent, Attributes: map[string]string{}}
	if k.pub != nil {
		i.Fingerprint = hwcrypto.Fingerprint(k.pub)
	}
	for name, v := range map[string]bool{"fixedTPM": a.FixedTPM, "fixedParent": a.FixedParent, "sensitiveDataOrigin": a.SensitiveDataOrigin,
		"userWithAuth": a.UserWithAuth, "noDA": a.NoDA, "restricted": a.Restricted, "decrypt": a.Decrypt, "sign": a.SignEncrypt} {
		i.Attributes[name] = strconv.FormatBool(v)
	}
	if !a.FixedTPM || !a.FixedParent {
		i.Weak = append(i.Weak, "it may be carried into another TPM (not fixedTPM and fixedParent)")
	}
	if !a.SensitiveDataOrigin && k.pub != nil {
		i.Weak = append(i.Weak, "it was not made in the TPM (not sensitiveDataOrigin)")
	}
	if !a.NoDA {
		i.Weak = append(i.Weak, "it stops when the TPM is locked by wrong passwords for other keys (not noDA)")
	}
	return i, nil
}

// describe asks the TPM who made it.
func (c *chip) describe(ctx context.Context) (string, error) {
	c.mu.Lock()
	model := c.model
	c.mu.Unlock()
	if model != "" {
		return model, nil
	}
	model, err := call(ctx, c, func(l *link) (string, error) {
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTManufacturer), PropertyCount: 5}.Execute(l)
		if err != nil {
			return "", err
		}
		props, err := r.CapabilityData.Data.TPMProperties()
		if err != nil {
			return "", err
		}
		var words []byte
		for _, p := range props.TPMProperty {
			if p.Property == tpm2.TPMPTManufacturer {
				words = append(words, byte(p.Value>>24), byte(p.Value>>16), byte(p.Value>>8), byte(p.Value), ' ')
			} else {
				words = append(words, byte(p.Value>>24), byte(p.Value>>16), byte(p.Value>>8), byte(p.Value))
			}
		}
		return strings.Join(strings.FieldsFunc(string(words), func(r rune) bool { return r <= ' ' || r > '~' }), " "), nil
	})
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	c.model = model
	c.mu.Unlock()
	return model, nil
}

// Room tells of the TPM's slots for loaded keys and of its lockout counter.
func (k *key) Room(ctx context.Context) (string, error) {
	want := []tpm2.TPMPT{tpm2.TPMPTHRTransientAvail, tpm2.TPMPTLockoutCounter, tpm2.TPMPTMaxAuthFail}
	got, err := call(ctx, k.c, func(l *link) ([]uint32, error) {
		var values []uint32
		for _, p := range want {
			r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(l)
			if err != nil {
				return nil, err
			}
			list, err := r.CapabilityData.Data.TPMProperties()
			if err != nil {
				return nil, err
			}
			if len(list.TPMProperty) == 0 || list.TPMProperty[0].Property != p {
				return nil, fmt.Errorf("property %#x is not told", uint32(p))
			}
			values = append(values, list.TPMProperty[0].Value)
		}
		return values, nil
	})
	if err != nil {
		return "", err
	}
	// Loaded keys of ours make room for one another, so no free slot is no trouble.
	return fmt.Sprintf("%d more keys can be loaded; lockout counter %d of %d, which does not concern our keys", got[0], got[1], got[2]), nil
}
