package keyring

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/drawbridge/drawbridge/hwcrypto/envelope"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// Protect puts e into an envelope, see package envelope. form is "jwe" or "cose-encrypt0" for a key that is a secret, and then cipher names
// its cipher; or "jws" or "cose-sign1" for a key pair that signs. It gives the media type of the result. The key's name is the kid.
func (v View) Protect(ctx context.Context, name, form, cipher string, e msg.Envelope) (sealed []byte, mediaType string, err error) {
	switch form {
	case "jwe", "cose-encrypt0":
		m, err := v.MAC(ctx, name)
		if err != nil {
			return nil, "", err
		}
		if form == "jwe" {
			sealed, err = envelope.EncryptJWE(ctx, m, envelope.Cipher(cipher), name, e)
			return sealed, "application/jose", err
		}
		sealed, err = envelope.EncryptCOSE(ctx, m, envelope.Cipher(cipher), name, e)
		return sealed, `application/cose; cose-type="cose-encrypt0"`, err
	case "jws", "cose-sign1":
		k, err := v.Signer(ctx, name)
		if err != nil {
			return nil, "", err
		}
		if form == "jws" {
			sealed, err = envelope.SignJWS(ctx, k, name, e)
			return sealed, "application/jose", err
		}
		sealed, err = envelope.SignCOSE(ctx, k, name, e)
		return sealed, `application/cose; cose-type="cose-sign1"`, err
	}
	return nil, "", fmt.Errorf("envelope %q: want jwe, jws, cose-encrypt0 or cose-sign1", form)
}

// Unprotect decrypts by a secret of the chip what the other end has encrypted by it, in either form. envelope.ErrOpen, which is
// msg.Permanent, is all that is said of what is not authentic.
func (v View) Unprotect(ctx context.Context, name string, sealed []byte) (msg.Envelope, error) {
	m, err := v.MAC(ctx, name)
	if err != nil {
		return msg.Envelope{}, err
	}
	if isJOSE(sealed) {
		return envelope.DecryptJWE(ctx, m, sealed)
	}
	return envelope.DecryptCOSE(ctx, m, sealed)
}

// Verify opens an envelope of either form that the owner of one of the certificates in the PEM file has signed. The certificates stand for
// their keys: who has issued them and when they end is not looked at. envelope.ErrOpen as in Unprotect.
func (v View) Verify(_ context.Context, path string, sealed []byte) (msg.Envelope, error) {
	b, err := os.ReadFile(v.r.absolute(path))
	if err != nil {
		return msg.Envelope{}, err
	}
	verify := envelope.VerifyCOSE
	if isJOSE(sealed) {
		verify = envelope.VerifyJWS
	}
	found := false
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return msg.Envelope{}, fmt.Errorf("%s: %w", path, err)
		}
		found = true
		if e, err := verify(c.PublicKey, sealed); err == nil {
			return e, nil
		} else if !errors.Is(err, envelope.ErrOpen) {
			return e, fmt.Errorf("%s: %w", path, err)
		}
	}
	if !found {
		return msg.Envelope{}, fmt.Errorf("%s: no PEM certificate in it", path)
	}
	return msg.Envelope{}, envelope.ErrOpen
}

// isJOSE tells the compact form of JOSE, which begins with a JSON object in base64url, from COSE.
func isJOSE(b []byte) bool { return bytes.HasPrefix(b, []byte("ey")) }
