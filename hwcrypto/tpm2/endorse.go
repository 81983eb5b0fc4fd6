package tpm2

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// endorsement is an endorsement key of the TCG's EK credential profile: where its certificate lies, and from which template the TPM
// makes the key again, always the same.
type endorsement struct {
	certificate tpm2.TPMHandle
	template    tpm2.TPMTPublic
	policy      bool // its use is authorized by policy (templates L), else by the empty password (templates H)
}

func endorsements() []endorsement {
	return []endorsement{
		{0x01c0000a, tpm2.ECCEKTemplate, true}, // L-2
		{0x01c00002, tpm2.RSAEKTemplate, true}, // L-1
		{0x01c00016, p384Endorsement(), false}, // H-3
	}
}

// p384Endorsement is template H-3 of the EK credential profile, version 2.5.
func p384Endorsement() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA384,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, AdminWithPolicy: true, Restricted: true, Decrypt: true},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: []byte{
			0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a, 0x07, 0x41, 0x48, 0xbb, 0x35, 0xd3, 0xb4, 0xe4,
			0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca, 0xcb, 0x47, 0xba, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
		}},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
				Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)},
			CurveID: tpm2.TPMECCNistP384,
		}),
	}
}

// ActivateCredential has the TPM open what a verifier has made for its endorsement key and for its attestation key (TPM2_MakeCredential): that it can,
// proves that the attestation key lives in the TPM of that endorsement key. credential is a TPM2B_ID_OBJECT and a TPM2B_ENCRYPTED_SECRET, one
// after the other, perhaps behind the eight octets that tpm2_makecredential writes.
func (k signer) ActivateCredential(ctx context.Context, credential []byte) ([]byte, error) {
	identity, secret, err := parseCredential(credential)
	if err != nil {
		return nil, fmt.Errorf("%v: activate credential: %w", k.c, err)
	}
	ak, err := k.attestationKey(ctx)
	if err != nil {
		return nil, err
	}
	return call(ctx, k.c, func(l *link) ([]byte, error) {
		ek, e, err := l.endorsementOf()
		if err != nil {
			return nil, err
		}
		defer l.flush(ek.ObjectHandle)
		h, err := l.load(ak.object())
		if err != nil {
			return nil, err
		}
		key := tpm2.AuthHandle{Handle: ek.ObjectHandle, Name: ek.Name, Auth: tpm2.PasswordAuth(nil)}
		if e.policy {
			key.Auth = tpm2.Policy(tpm2.TPMAlgSHA256, 16, l.endorsed)
		}
		r, err := tpm2.ActivateCredential{ActivateHandle: auth(h), KeyHandle: key, CredentialBlob: identity, Secret: secret}.Execute(l)
		if err != nil {
			return nil, fmt.Errorf("activate credential: it is not for this TPM and its attestation key: %w", err)
		}
		return r.CertInfo.Buffer, nil
	})
}

func parseCredential(b []byte) (identity tpm2.TPM2BIDObject, secret tpm2.TPM2BEncryptedSecret, err error) {
	b = bytes.TrimPrefix(b, []byte{0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1})
	var parts [2][]byte
	for i := range parts {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return identity, secret, errors.New("the credential is cut short")
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		parts[i], b = b[2:n], b[n:]
	}
	if len(b) > 0 {
		return identity, secret, errors.New("something follows the credential")
	}
	return tpm2.TPM2BIDObject{Buffer: parts[0]}, tpm2.TPM2BEncryptedSecret{Buffer: parts[1]}, nil
}

// endorsementOf makes the endorsement key for the moment whose certificate the TPM has, or the RSA one where it has none.
func (l *link) endorsementOf() (*tpm2.CreatePrimaryResponse, endorsement, error) {
	all := endorsements()
	use := all[1]
	for _, e := range all {
		if der, err := l.nvCertificate(e.certificate); err == nil && der != nil {
			use = e
			break
		}
	}
	if err := l.makeRoom(); err != nil {
		return nil, use, err
	}
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(use.template)}.Execute(l)
	if err != nil {
		return nil, use, fmt.Errorf("endorsement key: %w", err)
	}
	return r, use, nil
}

// endorsedBy is what the TPM's maker says of it: the endorsement key, its certificate where there is one, and the issuers' above it.
func (l *link) endorsedBy() (public []byte, chain [][]byte, err error) {
	r, e, err := l.endorsementOf()
	if err != nil {
		return nil, nil, err
	}
	l.flush(r.ObjectHandle)
	der, err := l.nvCertificate(e.certificate)
	if err != nil {
		return nil, nil, err
	}
	if der == nil {
		return tpm2.Marshal(r.OutPublic), nil, nil
	}
	if err := sameKey(r.OutPublic, der); err != nil {
		return nil, nil, err
	}
	above, err := l.nvIssuers()
	return tpm2.Marshal(r.OutPublic), append([][]byte{der}, above...), err
}

// sameKey tells whether a certificate is that of the key: a maker may have used a template of its own.
func sameKey(public tpm2.TPM2BPublic, der []byte) error {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	area, err := public.Contents()
	if err != nil {
		return err
	}
	var pub interface{ Equal(crypto.PublicKey) bool }
	if area.Type == tpm2.TPMAlgRSA {
		n, err := area.Unique.RSA()
		if err != nil {
			return err
		}
		pub = &rsa.PublicKey{N: new(big.Int).SetBytes(n.Buffer), E: 65537}
	} else {
		parms, err := area.Parameters.ECCDetail()
		if err != nil {
			return err
		}
		point, err := area.Unique.ECC()
		if err != nil {
			return err
		}
		var ec *ecdsa.PublicKey
		if ec, err = ecPublic(parms.CurveID, point); err != nil {
			return err
		}
		pub = ec
	}
	if !pub.Equal(c.PublicKey) {
		return errors.New("the endorsement certificate is for a key of another template")
	}
	return nil
}

// nvCertificate reads a certificate; nil where there is none, or none that may be read.
func (l *link) nvCertificate(index tpm2.TPMHandle) ([]byte, error) {
	der, err := l.nvRead(index)
	if err != nil {
		return nil, err
	}
	// The area may be longer than the certificate in it.
	if n := derLength(der); n > 0 && n <= len(der) {
		der = der[:n]
	}
	if _, err := x509.ParseCertificate(der); err != nil {
		return nil, nil
	}
	return der, nil
}

// nvIssuers reads the certificates of the issuers, which lie one behind the other in as many indices as it takes (EK credential
// profile section 2.2.1.5.3).
func (l *link) nvIssuers() (chain [][]byte, err error) {
	const first, last = 0x01c00100, 0x01c001ff
	hs, err := l.handles(first)
	if err != nil {
		return nil, err
	}
	var all []byte
	for _, h := range hs {
		if h > last {
			break
		}
		part, err := l.nvRead(h)
		if err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	for len(all) > 0 {
		n := derLength(all)
		if n == 0 || n > len(all) {
			break
		}
		if _, err := x509.ParseCertificate(all[:n]); err != nil {
			break
		}
		chain, all = append(chain, all[:n]), all[n:]
	}
	return chain, nil
}

// nvRead gives what an index holds that everybody may read; nil where there is none.
func (l *link) nvRead(index tpm2.TPMHandle) ([]byte, error) {
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(l)
	if errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCValue) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	info, err := pub.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	h := tpm2.NamedHandle{Handle: index, Name: pub.NVName}
	var b []byte
	for len(b) < int(info.DataSize) {
		r, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: index, Name: pub.NVName, Auth: tpm2.PasswordAuth(nil)}, NVIndex: h,
			Size: uint16(min(512, int(info.DataSize)-len(b))), Offset: uint16(len(b))}.Execute(l)
		if err != nil || len(r.Data.Buffer) == 0 {
			break // what may not be read is as good as nothing
		}
		b = append(b, r.Data.Buffer...)
	}
	return b, nil
}

// derLength is the length of the DER SEQUENCE at the start of b, or 0.
func derLength(b []byte) int {
	if len(b) < 4 || b[0] != 0x30 {
		return 0
	}
	if b[1] == 0x82 {
		return 4 + int(b[2])<<8 + int(b[3])
	}
	if b[1] < 0x80 {
		return 2 + int(b[1])
	}
	return 0
}
