package keyring

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"strings"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/envelope"
)

// Protect puts a payload into an envelope, see package envelope: a key pair signs it, an HMAC key encrypts it. how is "jose" or "cose",
// for encryption perhaps followed by a cipher: "cose:ARIA-256-GCM". It gives the media type of the result.
func (v View) Protect(ctx context.Context, name, how string, payload []byte) (sealed []byte, mediaType string, err error) {
	form, enc, _ := strings.Cut(how, ":")
	if form != "jose" && form != "cose" {
		return nil, "", fmt.Errorf("envelope %q: want jose or cose", how)
	}
	if enc == "" {
		enc = string(envelope.AES)
	}
	e, k, err := v.r.named(hwcrypto.WithUser(ctx, v.user), name)
	if err != nil {
		return nil, "", err
	}
	if m, ok := k.(hwcrypto.MACer); ok {
		if form == "jose" {
			sealed, err = envelope.EncryptJWE(ctx, macer{m, v.user}, envelope.Cipher(enc), name, payload)
			return sealed, "application/jose", err
		}
		sealed, err = envelope.EncryptCOSE(ctx, macer{m, v.user}, envelope.Cipher(enc), name, payload)
		return sealed, `application/cose; cose-type="cose-encrypt0"`, err
	}
	if _, err := ability[hwcrypto.ContextSigner](e, k, "it neither signs nor computes HMACs"); err != nil {
		return nil, "", err
	}
	if form == "jose" {
		sealed, err = envelope.SignJWS(ctx, v.signer(k), name, payload)
		return sealed, "application/jose", err
	}
	sealed, err = envelope.SignCOSE(ctx, v.signer(k), name, payload)
	return sealed, `application/cose; cose-type="cose-sign1"`, err
}

// Unprotect decrypts by an HMAC key what the other end has encrypted by it, in either form. envelope.ErrOpen is all that is said of
// what is not authentic.
func (v View) Unprotect(ctx context.Context, name string, msg []byte) ([]byte, error) {
	m, err := v.MAC(ctx, name)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(msg, []byte("ey")) { // a JSON object in base64url
		return envelope.DecryptJWE(ctx, m, msg)
	}
	return envelope.DecryptCOSE(ctx, m, msg)
}

// Verify checks a signed envelope of either form by the sender's public key, and gives what is in it.
func Verify(sender crypto.PublicKey, msg []byte) ([]byte, error) {
	if bytes.HasPrefix(msg, []byte("ey")) {
		return envelope.VerifyJWS(sender, msg)
	}
	return envelope.VerifyCOSE(sender, msg)
}
