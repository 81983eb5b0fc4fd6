package tpm2

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Attest has the TPM state (TPM2_Certify) that the key, by its name, is loaded in it, signed by an attestation key that signs
// nothing else. Statement is the TPMS_ATTEST with the nonce in it, AKPublic the TPM2B_PUBLIC of the attestation key, and EKChain the
// TPM's endorsement certificate, where it has one.
func (k signer) Attest(ctx context.Context, nonce []byte) (hwcrypto.Attestation, error) {
	if len(nonce) > 32 {
		return hwcrypto.Attestation{}, fmt.Errorf("%v: attest: nonce of %d octets: want 32 at most", k.c, len(nonce))
	}
	path := filepath.Join(k.p.o.Dir, "attestation.tpmak")
	b, err := readBlob(path)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = call(ctx, k.c, func(l *link) (*blob, error) { return l.create(attestTemplate(), nil) }); err == nil {
			if err = k.p.keep(path, b); errors.Is(err, fs.ErrExist) {
				b, err = readBlob(path)
			}
		}
	}
	if err != nil {
		return hwcrypto.Attestation{}, fmt.Errorf("%v: attestation key: %w", k.c, err)
	}
	ak := b.object()
	a := hwcrypto.Attestation{Kind: "TPM2_Certify", AKPublic: tpm2.Marshal(b.pub)}
	r, err := call(ctx, k.c, func(l *link) (*tpm2.CertifyResponse, error) {
		l.flushAll() // both have to be loaded at once
		h, err := l.load(k.obj)
		if err != nil {
			return nil, err
		}
		s, err := l.load(ak)
		if err != nil {
			return nil, err
		}
		return tpm2.Certify{ObjectHandle: auth(h), SignHandle: auth(s), QualifyingData: tpm2.TPM2BData{Buffer: nonce},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}}.Execute(l)
	})
	if err != nil {
		return hwcrypto.Attestation{}, err
	}
	a.Statement = r.CertifyInfo.Bytes()
	if a.Signature, err = signature(r.Signature); err != nil {
		return hwcrypto.Attestation{}, fmt.Errorf("%v: attest: %w", k.c, err)
	}
	if a.EKChain, err = call(ctx, k.c, endorsement); err != nil {
		return hwcrypto.Attestation{}, err
	}
	i, err := k.Describe(ctx)
	a.Attributes = i.Attributes
	return a, err
}

// Where the TCG's EK credential profile puts the certificates of endorsement keys: ECC P-256, RSA 2048.
var ekCertificates = []tpm2.TPMHandle{0x01c0000a, 0x01c00002, 0x01c00016}

func endorsement(l *link) ([][]byte, error) {
	var chain [][]byte
	for _, index := range ekCertificates {
		pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(l)
		if errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCValue) {
			continue
		}
		if err != nil {
			return nil, err
		}
		info, err := pub.NVPublic.Contents()
		if err != nil {
			return nil, err
		}
		h := tpm2.NamedHandle{Handle: index, Name: pub.NVName}
		var der []byte
		for len(der) < int(info.DataSize) {
			r, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: index, Name: pub.NVName, Auth: tpm2.PasswordAuth(nil)}, NVIndex: h,
				Size: uint16(min(512, int(info.DataSize)-len(der))), Offset: uint16(len(der))}.Execute(l)
			if err != nil || len(r.Data.Buffer) == 0 {
				break // a certificate that may not be read is as good as none
			}
			der = append(der, r.Data.Buffer...)
		}
		// The area may be longer than the certificate in it.
		if n := derLength(der); n > 0 && n <= len(der) {
			der = der[:n]
		}
		if _, err := x509.ParseCertificate(der); err == nil {
			chain = append(chain, der)
		}
	}
	return chain, nil
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
