package tpm2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Where the TCG's EK credential profile puts the RSA endorsement key, where somebody has; and our own place for an RSA storage key, since
// services that import keys may not know those of elliptic curves.
const (
	endorsementKey = tpm2.TPMHandle(0x81010001)
	rsaStorage     = tpm2.TPMHandle(0x81000db2)
)

var _ hwcrypto.Activator = (*Provider)(nil)

// Endorsement gives the endorsement key (RSA 2048) and the storage key under which activated keys lie, each as a TPM2B_PUBLIC.
func (p *Provider) Endorsement(ctx context.Context, u hwcrypto.URI) (ek, srk []byte, err error) {
	_, err = call(ctx, p.chip(u), func(l *link) (struct{}, error) {
		_, pub, done, err := l.endorsementKey()
		if err != nil {
			return struct{}{}, err
		}
		defer done()
		storage, err := l.rsaStorage()
		if err != nil {
			return struct{}{}, err
		}
		ek, srk = tpm2.Marshal(pub), tpm2.Marshal(tpm2.New2B(storage.pub))
		return struct{}{}, nil
	})
	return ek, srk, err
}

// Activate takes the key that a service has made for this TPM, and gives it the name of u, in place of one that had it before.
func (p *Provider) Activate(ctx context.Context, u hwcrypto.URI, credential []byte) (hwcrypto.Key, error) {
	c := p.chip(u)
	if u.Name == "" {
		return nil, fmt.Errorf("%v: %w: an activated key has a name, not a handle", c, hwcrypto.ErrUnsupported)
	}
	in, err := parseActivation(credential)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", c, err)
	}
	b, err := call(ctx, c, func(l *link) (*blob, error) { return l.activate(in) })
	if err != nil {
		return nil, fmt.Errorf("activate: %w", err)
	}
	if err := os.MkdirAll(p.o.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := hwcrypto.WriteFile(p.blobPath(u), b.encode()); err != nil {
		return nil, err
	}
	return p.Open(ctx, u)
}

// activation is what a service sends: the key, wrapped by an inner key that only the TPM with this endorsement key and storage key finds
// out, and by the storage key.
type activation struct {
	identity tpm2.TPM2BIDObject
	secret   tpm2.TPM2BEncryptedSecret // of identity
	private  tpm2.TPM2BPrivate
	seed     tpm2.TPM2BEncryptedSecret // of private
	public   tpm2.TPM2BPublic
}

// parseActivation reads the five structures, each with its length in front (TPM 2.0 Library, part 2).
func parseActivation(b []byte) (*activation, error) {
	var parts [5][]byte
	for i := range parts {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return nil, errors.New("a credential that is cut short")
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		parts[i], b = b[:n], b[n:]
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](parts[4])
	if err == nil {
		_, err = public.Contents()
	}
	if err != nil {
		return nil, errors.New("a credential whose public area is damaged")
	}
	return &activation{
		tpm2.TPM2BIDObject{Buffer: parts[0][2:]}, tpm2.TPM2BEncryptedSecret{Buffer: parts[1][2:]},
		tpm2.TPM2BPrivate{Buffer: parts[2][2:]}, tpm2.TPM2BEncryptedSecret{Buffer: parts[3][2:]}, *public,
	}, nil
}

// activate finds out the inner key (TPM2_ActivateCredential) and imports the key that it wraps.
func (l *link) activate(in *activation) (*blob, error) {
	key, _, done, err := l.endorsementKey()
	if err != nil {
		return nil, err
	}
	storage, err := l.rsaStorage()
	if err != nil {
		done()
		return nil, err
	}
	key.Auth = tpm2.Policy(tpm2.TPMAlgSHA256, 16, l.endorsed)
	inner, err := tpm2.ActivateCredential{
		ActivateHandle: auth(storage.handle), KeyHandle: key, CredentialBlob: in.identity, Secret: in.secret,
	}.Execute(l)
	done() // its slot is needed
	if err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	wrap := inner.CertInfo.Buffer
	defer clear(wrap)
	imported, err := tpm2.Import{
		ParentHandle: auth(storage.handle), EncryptionKey: tpm2.TPM2BData{Buffer: wrap}, ObjectPublic: in.public, Duplicate: in.private, InSymSeed: in.seed,
		Symmetric: tpm2.TPMTSymDef{
			Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(8*len(wrap))),
			Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
	}.Execute(l)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return &blob{oidLoadable, storage.handle.Handle, in.public, imported.OutPrivate}, nil
}

// endorsed satisfies the policy of endorsement keys: whoever knows the secret of the endorsement hierarchy, which is empty.
func (l *link) endorsed(_ transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session, NonceTPM: nonce,
	}.Execute(l)
	return err
}

// endorsementKey gives the persistent one, or makes it for the moment: it comes out the same each time.
func (l *link) endorsementKey() (key tpm2.AuthHandle, pub tpm2.TPM2BPublic, done func(), err error) {
	if err := l.makeRoom(); err != nil { // a persistent key takes a slot while it is used
		return key, pub, nil, err
	}
	if r, err := (tpm2.ReadPublic{ObjectHandle: endorsementKey}).Execute(l); err == nil {
		if area, err := r.OutPublic.Contents(); err == nil && area.Type == tpm2.TPMAlgRSA {
			return tpm2.AuthHandle{Handle: endorsementKey, Name: r.Name}, r.OutPublic, func() {}, nil
		}
	}
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.RSAEKTemplate)}.Execute(l)
	if err != nil {
		return key, pub, nil, fmt.Errorf("endorsement key: %w", err)
	}
	return tpm2.AuthHandle{Handle: r.ObjectHandle, Name: r.Name}, r.OutPublic, func() { l.flush(r.ObjectHandle) }, nil
}

func (l *link) rsaStorage() (*parent, error) {
	p, err := l.parent(rsaStorage)
	if errors.Is(err, tpm2.TPMRCHandle) {
		p, err = l.makeStorage(rsaStorage, tpm2.RSASRKTemplate)
	}
	return p, err
}
