package envelope

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// joseHeader is the protected header of what this package writes. Nothing critical beyond it is understood. Claims stand in it by
// RFC 7519 section 5.3.
type joseHeader struct {
	Alg      string          `json:"alg"`
	Enc      Cipher          `json:"enc,omitempty"`
	Kid      string          `json:"kid,omitempty"`
	Salt     string          `json:"salt,omitempty"`
	Type     string          `json:"cty,omitempty"`
	Issuer   string          `json:"iss,omitempty"`
	Subject  string          `json:"sub,omitempty"`
	Audience string          `json:"aud,omitempty"`
	Time     float64         `json:"iat,omitempty"`
	Expires  float64         `json:"exp,omitempty"`
	ID       string          `json:"jti,omitempty"`
	Crit     json.RawMessage `json:"crit,omitempty"`
}

// header gives the claims of e in a header.
func header(e msg.Envelope) joseHeader {
	h := joseHeader{Type: e.Type, Issuer: e.Issuer, Subject: e.Subject, Audience: e.Audience, ID: e.ID}
	if !e.Time.IsZero() {
		h.Time = float64(e.Time.Unix())
	}
	if !e.Expires.IsZero() {
		h.Expires = float64(e.Expires.Unix())
	}
	return h
}

// open gives what the header says of a payload that is authentic.
func (h *joseHeader) open(payload []byte) (e msg.Envelope, err error) {
	e = msg.Envelope{ID: h.ID, Issuer: h.Issuer, Subject: h.Subject, Audience: h.Audience, Type: h.Type, Payload: payload}
	for _, d := range []struct {
		from float64
		to   *time.Time
	}{{h.Time, &e.Time}, {h.Expires, &e.Expires}} {
		if d.from != 0 && err == nil {
			*d.to, err = numericDate(d.from)
		}
	}
	return e, err
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
func SignJWS(ctx context.Context, k crypto.Signer, kid string, e msg.Envelope) ([]byte, error) {
	a, err := signingOf(k.Public())
	if err != nil {
		return nil, err
	}
	h := header(e)
	h.Alg, h.Kid = a.jose, kid
	head, err := encodeHeader(h)
	if err != nil {
		return nil, err
	}
	input := []byte(head + "." + b64.EncodeToString(e.Payload))
	sig, err := a.sign(ctx, k, input)
	if err != nil {
		return nil, err
	}
	return append(append(input, '.'), b64.EncodeToString(sig)...), nil
}

// VerifyJWS opens a JWS by the public key's owner, or gives ErrOpen.
func VerifyJWS(pub crypto.PublicKey, sealed []byte) (msg.Envelope, error) {
	a, err := signingOf(pub)
	if err != nil {
		return msg.Envelope{}, err
	}
	parts := bytes.Split(sealed, []byte("."))
	if len(parts) != 3 {
		return msg.Envelope{}, ErrOpen
	}
	h, ok := decodeHeader(parts[0])
	if !ok || h.Alg != a.jose {
		return msg.Envelope{}, ErrOpen
	}
	payload, err := b64.DecodeString(string(parts[1]))
	if err != nil {
		return msg.Envelope{}, ErrOpen
	}
	sig, err := b64.DecodeString(string(parts[2]))
	if err != nil || !a.verify(pub, sealed[:len(parts[0])+1+len(parts[1])], sig) {
		return msg.Envelope{}, ErrOpen
	}
	return h.open(payload)
}

// EncryptJWE gives the payload as JWE in compact form, "alg": "dir".
func EncryptJWE(ctx context.Context, m hwcrypto.MACer, c Cipher, kid string, e msg.Envelope) ([]byte, error) {
	salt, nonce := random(saltSize), random(nonceSize)
	gcm, err := contentKey(ctx, m, c, salt)
	if err != nil {
		return nil, err
	}
	h := header(e)
	h.Alg, h.Enc, h.Kid, h.Salt = "dir", c, kid, b64.EncodeToString(salt)
	head, err := encodeHeader(h)
	if err != nil {
		return nil, err
	}
	sealed := gcm.Seal(nil, nonce, e.Payload, []byte(head))
	body, tag := sealed[:len(e.Payload)], sealed[len(e.Payload):]
	return []byte(head + ".." + b64.EncodeToString(nonce) + "." + b64.EncodeToString(body) + "." + b64.EncodeToString(tag)), nil
}

// DecryptJWE opens a JWE under the chip's key, or gives ErrOpen. An error of the chip is given as it is.
func DecryptJWE(ctx context.Context, m hwcrypto.MACer, sealed []byte) (msg.Envelope, error) {
	parts := bytes.Split(sealed, []byte("."))
	if len(parts) != 5 || len(parts[1]) != 0 {
		return msg.Envelope{}, ErrOpen
	}
	h, ok := decodeHeader(parts[0])
	if _, known := ciphers[h.Enc]; !ok || h.Alg != "dir" || !known {
		return msg.Envelope{}, ErrOpen
	}
	salt, err := b64.DecodeString(h.Salt)
	if err != nil || len(salt) != saltSize {
		return msg.Envelope{}, ErrOpen
	}
	var raw [3][]byte
	for i := range raw {
		if raw[i], err = b64.DecodeString(string(parts[2+i])); err != nil {
			return msg.Envelope{}, ErrOpen
		}
	}
	if len(raw[0]) != nonceSize || len(raw[2]) != tagSize {
		return msg.Envelope{}, ErrOpen
	}
	gcm, err := contentKey(ctx, m, h.Enc, salt)
	if err != nil {
		return msg.Envelope{}, err
	}
	payload, err := gcm.Open(nil, raw[0], append(raw[1], raw[2]...), parts[0])
	if err != nil {
		return msg.Envelope{}, ErrOpen
	}
	return h.open(payload)
}
