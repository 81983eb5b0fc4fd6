package envelope

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// joseHeader is the protected header of what this package writes. Nothing critical beyond it is understood.
type joseHeader struct {
	Alg  string          `json:"alg"`
	Enc  Cipher          `json:"enc,omitempty"`
	Kid  string          `json:"kid,omitempty"`
	Salt string          `json:"salt,omitempty"`
	Crit json.RawMessage `json:"crit,omitempty"`
}

var b64 = base64.RawURLEncoding.Strict()

func encodeHeader(h joseHeader) (string, error) {
	b, err := json.Marshal(h)
	return b64.EncodeToString(b), err
}

func decodeHeader(s []byte) (h joseHeader, ok bool) {
	b, err := b64.DecodeString(string(s))
	return h, err == nil && json.Unmarshal(b, &h) == nil && h.Crit == nil
}

// SignJWS gives the payload as JWS in compact form, by ES256 or ES384 as the key is.
func SignJWS(ctx context.Context, k crypto.Signer, kid string, payload []byte) ([]byte, error) {
	a, err := signingOf(k.Public())
	if err != nil {
		return nil, err
	}
	head, err := encodeHeader(joseHeader{Alg: a.jose, Kid: kid})
	if err != nil {
		return nil, err
	}
	input := []byte(head + "." + b64.EncodeToString(payload))
	sig, err := a.sign(ctx, k, input)
	if err != nil {
		return nil, err
	}
	return append(append(input, '.'), b64.EncodeToString(sig)...), nil
}

// VerifyJWS gives the payload of a JWS by the public key's owner, or ErrOpen.
func VerifyJWS(pub crypto.PublicKey, msg []byte) ([]byte, error) {
	a, err := signingOf(pub)
	if err != nil {
		return nil, err
	}
	parts := bytes.Split(msg, []byte("."))
	if len(parts) != 3 {
		return nil, ErrOpen
	}
	h, ok := decodeHeader(parts[0])
	if !ok || h.Alg != a.jose {
		return nil, ErrOpen
	}
	payload, err := b64.DecodeString(string(parts[1]))
	if err != nil {
		return nil, ErrOpen
	}
	sig, err := b64.DecodeString(string(parts[2]))
	if err != nil || !a.verify(pub, msg[:len(parts[0])+1+len(parts[1])], sig) {
		return nil, ErrOpen
	}
	return payload, nil
}

// EncryptJWE gives the payload as JWE in compact form, "alg": "dir".
func EncryptJWE(ctx context.Context, m hwcrypto.MACer, c Cipher, kid string, payload []byte) ([]byte, error) {
	salt, nonce := random(saltSize), random(nonceSize)
	gcm, err := contentKey(ctx, m, c, salt)
	if err != nil {
		return nil, err
	}
	head, err := encodeHeader(joseHeader{Alg: "dir", Enc: c, Kid: kid, Salt: b64.EncodeToString(salt)})
	if err != nil {
		return nil, err
	}
	sealed := gcm.Seal(nil, nonce, payload, []byte(head))
	body, tag := sealed[:len(payload)], sealed[len(payload):]
	return []byte(head + ".." + b64.EncodeToString(nonce) + "." + b64.EncodeToString(body) + "." + b64.EncodeToString(tag)), nil
}

// DecryptJWE gives the payload of a JWE under the chip's key, or ErrOpen. An error of the chip is given as it is.
func DecryptJWE(ctx context.Context, m hwcrypto.MACer, msg []byte) ([]byte, error) {
	parts := bytes.Split(msg, []byte("."))
	if len(parts) != 5 || len(parts[1]) != 0 {
		return nil, ErrOpen
	}
	h, ok := decodeHeader(parts[0])
	if _, known := ciphers[h.Enc]; !ok || h.Alg != "dir" || !known {
		return nil, ErrOpen
	}
	salt, err := b64.DecodeString(h.Salt)
	if err != nil || len(salt) != saltSize {
		return nil, ErrOpen
	}
	var raw [3][]byte
	for i := range raw {
		if raw[i], err = b64.DecodeString(string(parts[2+i])); err != nil {
			return nil, ErrOpen
		}
	}
	if len(raw[0]) != nonceSize || len(raw[2]) != tagSize {
		return nil, ErrOpen
	}
	gcm, err := contentKey(ctx, m, h.Enc, salt)
	if err != nil {
		return nil, err
	}
	payload, err := gcm.Open(nil, raw[0], append(raw[1], raw[2]...), parts[0])
	if err != nil {
		return nil, ErrOpen
	}
	return payload, nil
}
