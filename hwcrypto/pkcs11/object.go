//go:build cgo

package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strconv"

	"github.com/miekg/pkcs11"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// attributes reads an object's attributes, one by one: a token that knows not one of them refuses all that are asked together.
type attributes struct {
	s session
	h pkcs11.ObjectHandle
}

func (a attributes) get(t uint) []byte {
	v, err := a.s.GetAttributeValue(a.s.h, a.h, []*pkcs11.Attribute{pkcs11.NewAttribute(t, nil)})
	if err != nil || len(v) == 0 {
		return nil
	}
	return v[0].Value
}

func (a attributes) yes(t uint) bool {
	v := a.get(t)
	return len(v) == 1 && v[0] == 1
}

// number reads a CK_ULONG, which is in the machine's own order of octets; the machines that are served are little-endian.
func (a attributes) number(t uint) (n uint) {
	v := a.get(t)
	if len(v) == 0 {
		return ^uint(0)
	}
	for i := len(v) - 1; i >= 0; i-- {
		n = n<<8 | uint(v[i])
	}
	return n
}

var (
	oidP256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	oidP384 = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
)

// public finds the public half: in the public key object of the same id, in the private key's own attributes, or in a certificate.
func (k *key) public(s session, kt uint) (crypto.PublicKey, error) {
	hs := []pkcs11.ObjectHandle{k.h}
	label := k.label
	if len(k.id) > 0 {
		label = "" // the id is what ties the halves together
	}
	public, err := find(s, template(pkcs11.CKO_PUBLIC_KEY, label, k.id), 2)
	if err != nil {
		return nil, err
	}
	if len(public) > 1 {
		return nil, fmt.Errorf("public key: %w", hwcrypto.ErrAmbiguous)
	}
	for _, h := range append(public, hs...) {
		a := attributes{s, h}
		switch kt {
		case pkcs11.CKK_EC:
			if pub, err := ecPublic(a.get(pkcs11.CKA_EC_PARAMS), a.get(pkcs11.CKA_EC_POINT)); err == nil {
				return pub, nil
			}
		case pkcs11.CKK_RSA:
			n, e := a.get(pkcs11.CKA_MODULUS), a.get(pkcs11.CKA_PUBLIC_EXPONENT)
			if len(n) > 0 && len(e) > 0 && len(e) <= 4 {
				return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}, nil
			}
		}
	}
	certs, err := find(s, template(pkcs11.CKO_CERTIFICATE, label, k.id), 2)
	if err != nil {
		return nil, err
	}
	if len(certs) == 1 {
		if c, err := x509.ParseCertificate((attributes{s, certs[0]}).get(pkcs11.CKA_VALUE)); err == nil {
			return c.PublicKey, nil
		}
	}
	return nil, errors.New("public key: the token holds none beside the private key")
}

func ecPublic(params, point []byte) (*ecdsa.PublicKey, error) {
	var oid asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(params, &oid); err != nil || len(rest) > 0 {
		return nil, errors.New("curve is not named")
	}
	var curve elliptic.Curve
	switch {
	case oid.Equal(oidP256):
		curve = elliptic.P256()
	case oid.Equal(oidP384):
		curve = elliptic.P384()
	default:
		return nil, fmt.Errorf("curve %v", oid)
	}
	var raw []byte // DER by the standard; some tokens give the bare point
	if rest, err := asn1.Unmarshal(point, &raw); err != nil || len(rest) > 0 {
		raw = point
	}
	return ecdsa.ParseUncompressedPublicKey(curve, raw)
}

// words are the attributes that prove how a key is kept.
var words = []struct {
	name string
	t    uint
}{
	{"SENSITIVE", pkcs11.CKA_SENSITIVE}, {"EXTRACTABLE", pkcs11.CKA_EXTRACTABLE}, {"ALWAYS_SENSITIVE", pkcs11.CKA_ALWAYS_SENSITIVE},
	{"NEVER_EXTRACTABLE", pkcs11.CKA_NEVER_EXTRACTABLE}, {"LOCAL", pkcs11.CKA_LOCAL}, {"PRIVATE", pkcs11.CKA_PRIVATE},
	{"SIGN", pkcs11.CKA_SIGN}, {"DECRYPT", pkcs11.CKA_DECRYPT}, {"DERIVE", pkcs11.CKA_DERIVE}, {"UNWRAP", pkcs11.CKA_UNWRAP},
}

// Describe reads the attributes from the token.
func (k *key) Describe(ctx context.Context) (hwcrypto.Info, error) {
	return call(ctx, k.t, func(s session) (hwcrypto.Info, error) {
		h, err := k.handle(s)
		if err != nil {
			return hwcrypto.Info{}, err
		}
		i := hwcrypto.Info{URI: k.uri.String(), Where: k.t.id.String(), Algorithm: k.alg, Hardware: true, Attributes: map[string]string{}}
		if k.pub != nil {
			i.Fingerprint = hwcrypto.Fingerprint(k.pub)
		}
		a := attributes{s, h}
		has := map[string]bool{}
		for _, w := range words {
			if v := a.get(w.t); len(v) == 1 {
				has[w.name] = v[0] == 1
				i.Attributes[w.name] = strconv.FormatBool(has[w.name])
			}
		}
		if i.Attributes["SENSITIVE"] == "" { // gone between finding and asking
			return hwcrypto.Info{}, pkcs11.Error(pkcs11.CKR_OBJECT_HANDLE_INVALID)
		}
		i.Extractable = has["EXTRACTABLE"]
		weak := func(when bool, what string) {
			if when {
				i.Weak = append(i.Weak, what)
			}
		}
		weak(!has["SENSITIVE"], "it may be read from the token (not SENSITIVE)")
		weak(has["EXTRACTABLE"], "it may be wrapped and carried out of the token (EXTRACTABLE)")
		weak(!has["PRIVATE"], "it may be used without the PIN (not PRIVATE)")
		if k.class == pkcs11.CKO_PRIVATE_KEY {
			weak(!has["LOCAL"], "it was not made in the token (not LOCAL)")
			weak(!has["ALWAYS_SENSITIVE"] || !has["NEVER_EXTRACTABLE"], "it could be read or carried out before (not ALWAYS_SENSITIVE and NEVER_EXTRACTABLE)")
		}
		return i, nil
	})
}

// List describes every private and secret key of u's token.
func (p *Provider) List(ctx context.Context, u hwcrypto.URI) ([]hwcrypto.Info, error) {
	t, err := p.token(ctx, u)
	if err != nil {
		return nil, err
	}
	keys, err := call(ctx, t, func(s session) ([]*key, error) {
		var keys []*key
		for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
			hs, err := find(s, template(class, "", nil), 10000)
			if err != nil {
				return nil, err
			}
			for _, h := range hs {
				a := attributes{s, h}
				k := &key{t: t, class: class, h: h, epoch: s.epoch, uri: hwcrypto.URI{Scheme: "pkcs11", Token: t.id.label,
					Object: string(a.get(pkcs11.CKA_LABEL)), ID: a.get(pkcs11.CKA_ID)}}
				if err := k.read(s); err != nil {
					k.alg = "" // listed all the same
				}
				keys = append(keys, k)
			}
		}
		return keys, nil
	})
	if err != nil {
		return nil, err
	}
	var all []hwcrypto.Info
	for _, k := range keys {
		i, err := k.Describe(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	return all, nil
}

// Attest gives the attributes with the nonce, signed by the key itself: it proves that the key is in use here; that the attributes
// are true, the token alone says.
func (k *signer) Attest(ctx context.Context, nonce []byte) (hwcrypto.Attestation, error) {
	i, err := k.Describe(ctx)
	if err != nil {
		return hwcrypto.Attestation{}, err
	}
	statement, err := json.Marshal(struct {
		Purpose string        `json:"purpose"` // no TLS or certificate signature is over such a text
		Nonce   []byte        `json:"nonce"`
		Key     hwcrypto.Info `json:"key"`
	}{"drawbridge key attestation v1", nonce, i})
	if err != nil {
		return hwcrypto.Attestation{}, err
	}
	sum := sha256.Sum256(statement)
	sig, err := k.SignContext(ctx, sum[:], crypto.SHA256)
	if err != nil {
		return hwcrypto.Attestation{}, err
	}
	return hwcrypto.Attestation{Kind: "PKCS#11 attributes", Statement: statement, Signature: sig, Attributes: i.Attributes}, nil
}

type random struct{ t *token }

func (r random) Read(b []byte) (int, error) {
	v, err := call(r.t.ctx, r.t, func(s session) ([]byte, error) { return s.GenerateRandom(s.h, len(b)) })
	return copy(b, v), err
}

func newID() []byte {
	id := make([]byte, 16)
	rand.Read(id) // never fails
	return id
}
