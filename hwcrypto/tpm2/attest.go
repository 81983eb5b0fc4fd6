package tpm2

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Attest has the TPM state (TPM2_Certify) that the key, by its name, is loaded in it, signed by an attestation key that signs
// nothing else. Statement is the TPMS_ATTEST with the nonce in it; Public, AKPublic and EKPublic are the TPM2B_PUBLIC of the key, of the attestation key and
// of the endorsement key, and EKChain is the certificate of the last and those of its issuers, where the TPM has them. That
// the attestation key is of the same TPM as the endorsement key, a verifier sees by ActivateCredential.
func (k signer) Attest(ctx context.Context, nonce []byte) (hwcrypto.Attestation, error) {
	if len(nonce) > 32 {
		return hwcrypto.Attestation{}, fmt.Errorf("%v: attest: nonce of %d octets: want 32 at most", k.c, len(nonce))
	}
	b, err := k.attestationKey(ctx)
	if err != nil {
		return hwcrypto.Attestation{}, err
	}
	ak := b.object()
	a := hwcrypto.Attestation{Kind: "TPM2_Certify", Public: tpm2.Marshal(tpm2.New2B(k.area)), AKPublic: tpm2.Marshal(b.pub)}
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
	_, err = call(ctx, k.c, func(l *link) (struct{}, error) {
		var err error
		a.EKPublic, a.EKChain, err = l.endorsedBy()
		return struct{}{}, err
	})
	if err != nil {
		return hwcrypto.Attestation{}, err
	}
	i, err := k.Describe(ctx)
	a.Attributes = i.Attributes
	return a, err
}

// attestationKey gives the key by which the TPM attests, and makes it where there is none.
func (k signer) attestationKey(ctx context.Context) (*blob, error) {
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
		return nil, fmt.Errorf("%v: attestation key: %w", k.c, err)
	}
	return b, nil
}
