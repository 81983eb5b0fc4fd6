package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
)

// signatureAlgorithm gives the JWS algorithm (RFC 7518 section 3.1) with which a key signs.
func signatureAlgorithm(pub crypto.PublicKey) (jose.SignatureAlgorithm, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		}
	case *rsa.PublicKey:
		return jose.PS256, nil
	case ed25519.PublicKey:
		return jose.EdDSA, nil
	}
	return "", fmt.Errorf("a key of the type %T signs no JSON web token", pub)
}

// Thumbprint gives the JWK thumbprint of a public key (RFC 7638, SHA-256, base64url): the kid of assertions and the jkt of DPoP.
func Thumbprint(pub crypto.PublicKey) (string, error) {
	sum, err := (&jose.JSONWebKey{Key: pub}).Thumbprint(crypto.SHA256)
	return base64.RawURLEncoding.EncodeToString(sum), err
}

// saltAsLongAsHash makes PSS signatures as RFC 7518 section 3.5 wants them: go-jose asks for the longest salt that fits.
type saltAsLongAsHash struct{ crypto.Signer }

func (s saltAsLongAsHash) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if o, ok := opts.(*rsa.PSSOptions); ok {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: o.Hash}
	}
	return s.Signer.Sign(random, digest, opts)
}

// signJWT makes a JSON web token, signed where the key lives. With embed its header carries the public key.
func signJWT(key crypto.Signer, embed bool, header map[jose.HeaderKey]any, claims map[string]any) (string, error) {
	alg, err := signatureAlgorithm(key.Public())
	if err != nil {
		return "", err
	}
	opaque := cryptosigner.Opaque(saltAsLongAsHash{key})
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: opaque}, &jose.SignerOptions{ExtraHeaders: header, EmbedJWK: embed})
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	return jws.CompactSerialize()
}

// tokenID gives a jti that nobody has used.
func tokenID() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}
