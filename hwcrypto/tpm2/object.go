package tpm2

import (
	"crypto/sha256"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
)

// object is what a link loads: a blob or what lies at a persistent handle.
type object struct {
	handle     tpm2.TPMHandle
	persistent bool
	parent     tpm2.TPMHandle
	pub        tpm2.TPM2BPublic
	priv       tpm2.TPM2BPrivate
}

// parent is a storage key.
type parent struct {
	handle tpm2.NamedHandle
	pub    tpm2.TPMTPublic
}

// blob is a key outside of the TPM, which alone can open it.
type blob struct {
	kind   asn1.ObjectIdentifier
	parent tpm2.TPMHandle
	pub    tpm2.TPM2BPublic
	priv   tpm2.TPM2BPrivate
}

func (b *blob) object() *object { return &object{parent: b.parent, pub: b.pub, priv: b.priv} }

var (
	oidLoadable = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}
	oidSealed   = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 5}
)

const (
	blobType = "TSS2 PRIVATE KEY"
	maxBlob  = 16 << 10
)

// asnKey is TPMKey of the "ASN.1 Specification for TPM 2.0 Key Files", without the optional policy and secret.
type asnKey struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool `asn1:"optional,explicit,tag:0"`
	Parent    int64
	Public    []byte
	Private   []byte
}

func (b *blob) encode() []byte {
	der, err := asn1.Marshal(asnKey{b.kind, true, int64(b.parent), tpm2.Marshal(b.pub), tpm2.Marshal(b.priv)})
	if err != nil {
		panic("tpm2: a key blob that cannot be encoded: " + err.Error()) // all its fields are ours
	}
	return pem.EncodeToMemory(&pem.Block{Type: blobType, Bytes: der})
}

func readBlob(path string) (*blob, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBlob+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxBlob {
		return nil, fmt.Errorf("key blob %q: longer than %d octets", path, maxBlob)
	}
	k, err := parseBlob(b)
	if err != nil {
		return nil, fmt.Errorf("key blob %q: %w", path, err)
	}
	return k, nil
}

func parseBlob(b []byte) (*blob, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != blobType {
		return nil, fmt.Errorf("no PEM of type %q in it", blobType)
	}
	var a asnKey
	if rest, err := asn1.Unmarshal(block.Bytes, &a); err != nil || len(rest) > 0 {
		return nil, errors.New("not a TPM key file without policy and secret")
	}
	if !a.Type.Equal(oidLoadable) && !a.Type.Equal(oidSealed) || a.Parent>>24 != 0x81 || !a.EmptyAuth {
		return nil, errors.New("a kind of TPM key file that is not used here")
	}
	pub, err := tpm2.Unmarshal[tpm2.TPM2BPublic](a.Public)
	if err == nil {
		_, err = pub.Contents()
	}
	if err != nil {
		return nil, errors.New("its public area is damaged")
	}
	priv, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](a.Private)
	if err != nil {
		return nil, errors.New("its private area is damaged")
	}
	return &blob{a.Type, tpm2.TPMHandle(a.Parent), *pub, *priv}, nil
}

// Where a storage root key is looked for, and made where there is none: the TCG's place, then one of our own for a TPM whose
// key there does not fit.
var storageRoots = []tpm2.TPMHandle{0x81000001, 0x81000db1}

// storage gives the storage key for new keys.
func (l *link) storage() (*parent, error) {
	for _, h := range storageRoots {
		p, err := l.parent(h)
		if errors.Is(err, tpm2.TPMRCHandle) {
			p, err = l.makeStorage(h, tpm2.ECCSRKTemplate)
		}
		if err != nil {
			return nil, err
		}
		// Without noDA, one wrong password somewhere too many would stop the keys; a duplicable parent would let them out.
		if a := p.pub.ObjectAttributes; a.Restricted && a.Decrypt && a.FixedTPM && a.NoDA && a.UserWithAuth {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no fitting storage key at %#x and %#x", uint32(storageRoots[0]), uint32(storageRoots[1]))
}

func (l *link) parent(h tpm2.TPMHandle) (*parent, error) {
	if p := l.parents[h]; p != nil {
		return p, nil
	}
	r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(l)
	if err != nil {
		return nil, err
	}
	pub, err := r.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	p := &parent{tpm2.NamedHandle{Handle: h, Name: r.Name}, *pub}
	l.parents[h] = p
	return p, nil
}

func (l *link) makeStorage(h tpm2.TPMHandle, template tpm2.TPMTPublic) (*parent, error) {
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(l)
	if err == nil {
		_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name},
			PersistentHandle: h}.Execute(l)
		l.flush(r.ObjectHandle)
	}
	if errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth) {
		return nil, ownerPassword.Of(fmt.Errorf("the owner hierarchy has a password, and there is no storage key at %#x: %w", uint32(h), err),
			health.Values{"handle": fmt.Sprintf("%#x", uint32(h))})
	}
	if err != nil {
		return nil, fmt.Errorf("storage key: %w", err)
	}
	return l.parent(h)
}

// secret is a session that encrypts the first parameter of command and response between us and the TPM: what is read off the bus
// tells nothing. p is the key that salts it; nil: the storage key.
func (l *link) secret(p *parent) tpm2.Session {
	if p == nil {
		var err error
		if p, err = l.storage(); err != nil {
			// Unsalted, it still hides from whoever has not read the start of the session.
			return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptOut))
		}
	}
	return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptOut), tpm2.Salted(p.handle.Handle, p.pub))
}

// load gives a handle by which the object is used now.
func (l *link) load(o *object) (tpm2.NamedHandle, error) {
	if o.persistent {
		r, err := tpm2.ReadPublic{ObjectHandle: o.handle}.Execute(l)
		if err != nil {
			return tpm2.NamedHandle{}, err
		}
		return tpm2.NamedHandle{Handle: o.handle, Name: r.Name}, nil
	}
	if i := slices.IndexFunc(l.loaded, func(s *slot) bool { return s.obj == o }); i >= 0 {
		s := l.loaded[i]
		if i > 0 { // the one used last stands first
			copy(l.loaded[1:i+1], l.loaded[:i])
			l.loaded[0] = s
		}
		return s.h, nil
	}
	p, err := l.parent(o.parent)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("storage key %#x of the blob: %w", uint32(o.parent), err)
	}
	if len(l.loaded) >= slots {
		last := l.loaded[len(l.loaded)-1]
		l.loaded = l.loaded[:len(l.loaded)-1]
		l.flush(last.h.Handle)
	}
	cmd := tpm2.Load{ParentHandle: p.handle, InPublic: o.pub, InPrivate: o.priv}
	r, err := cmd.Execute(l)
	if errors.Is(err, tpm2.TPMRCObjectMemory) {
		if err = l.makeRoom(); err == nil {
			r, err = cmd.Execute(l)
		}
	}
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	s := &slot{o, tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}}
	l.loaded = append([]*slot{s}, l.loaded...)
	return s.h, nil
}

// create makes an object under the storage key: a key, or a container of the secret.
func (l *link) create(t tpm2.TPMTPublic, secret []byte) (*blob, error) {
	p, err := l.storage()
	if err != nil {
		return nil, err
	}
	if err := l.makeRoom(); err != nil {
		return nil, err
	}
	cmd := tpm2.Create{ParentHandle: p.handle, InPublic: tpm2.New2B(t)}
	kind := oidLoadable
	var sessions []tpm2.Session
	if secret != nil {
		cmd.InSensitive = tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret})}}
		sessions = append(sessions, tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptIn), tpm2.Salted(p.handle.Handle, p.pub)))
		if !t.ObjectAttributes.SignEncrypt {
			kind = oidSealed
		}
	}
	r, err := cmd.Execute(l, sessions...)
	if err != nil {
		return nil, err
	}
	return &blob{kind, p.handle.Handle, r.OutPublic, r.OutPrivate}, nil
}

func (l *link) persist(b *blob, at tpm2.TPMHandle) error {
	h, err := l.load(b.object())
	if err != nil {
		return err
	}
	_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &h, PersistentHandle: at}.Execute(l)
	l.flushAll()
	return err
}

// templates are the public areas of the keys that are made here: fixed to their TPM and parent, and not stopped by a lockout.
func templates() map[hwcrypto.Algorithm]tpm2.TPMTPublic {
	base := func(typ tpm2.TPMIAlgPublic, sign, decrypt bool, parms tpm2.TPMUPublicParms) tpm2.TPMTPublic {
		return tpm2.TPMTPublic{Type: typ, NameAlg: tpm2.TPMAlgSHA256, Parameters: parms, ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: sign, Decrypt: decrypt}}
	}
	ecc := func(curve tpm2.TPMECCCurve, hash tpm2.TPMIAlgHash) tpm2.TPMUPublicParms {
		p := &tpm2.TPMSECCParms{CurveID: curve}
		if hash != 0 {
			p.Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash})}
		}
		return tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, p)
	}
	return map[hwcrypto.Algorithm]tpm2.TPMTPublic{
		hwcrypto.ECDSAP256: base(tpm2.TPMAlgECC, true, false, ecc(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256)),
		hwcrypto.ECDSAP384: base(tpm2.TPMAlgECC, true, false, ecc(tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384)),
		hwcrypto.ECDHP256:  base(tpm2.TPMAlgECC, false, true, ecc(tpm2.TPMECCNistP256, 0)),
		// Without a scheme of its own it signs by PKCS #1 v1.5 and by PSS, both of which TLS wants.
		hwcrypto.RSA2048: base(tpm2.TPMAlgRSA, true, false, tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048})),
		hwcrypto.HMACSHA256: base(tpm2.TPMAlgKeyedHash, true, false, tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgHMAC,
				Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256})}})),
	}
}

// sealTemplate is a container for a secret that is given back.
func sealTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true}}
}

// attestTemplate is a key that signs nothing but the TPM's own statements.
func attestTemplate() tpm2.TPMTPublic {
	t := templates()[hwcrypto.ECDSAP256]
	t.ObjectAttributes.Restricted = true
	return t
}

func shorten(secret []byte) []byte {
	if len(secret) <= sha256.BlockSize {
		return secret
	}
	sum := sha256.Sum256(secret)
	return sum[:]
}
