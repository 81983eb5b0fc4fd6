package envelope

import (
	"context"
	"crypto"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// The CBOR tags of RFC 9052. The header labels stand in the tags of the structs below: 1 alg, 2 crit, 3 content type, 4 kid, 5 IV,
// 15 CWT claims (RFC 9597), -20 salt.
const (
	tagEncrypt0 = 16
	tagSign1    = 18
)

type encrypt0 struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected unprotected
	Ciphertext  []byte
}

type sign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected unprotected
	Payload     []byte
	Signature   []byte
}

type unprotected struct {
	Kid  []byte `cbor:"4,keyasint,omitempty"`
	IV   []byte `cbor:"5,keyasint,omitempty"`
	Salt []byte `cbor:"-20,keyasint,omitempty"`
}

type protected struct {
	Alg    int64           `cbor:"1,keyasint"`
	Crit   cbor.RawMessage `cbor:"2,keyasint,omitempty"`
	Type   any             `cbor:"3,keyasint,omitempty"` // text, or the number of a Content-Format
	Claims cwtClaims       `cbor:"15,keyasint,omitzero"`
}

// cwtClaims are the claims of RFC 8392 section 4.
type cwtClaims struct {
	Issuer   string `cbor:"1,keyasint,omitempty"`
	Subject  string `cbor:"2,keyasint,omitempty"`
	Audience string `cbor:"3,keyasint,omitempty"`
	Expires  any    `cbor:"4,keyasint,omitempty"`
	Time     any    `cbor:"6,keyasint,omitempty"`
	ID       []byte `cbor:"7,keyasint,omitempty"`
}

func protect(alg int64, e msg.Envelope) ([]byte, error) {
	h := protected{Alg: alg, Claims: cwtClaims{Issuer: e.Issuer, Subject: e.Subject, Audience: e.Audience, ID: []byte(e.ID)}}
	if e.Type != "" {
		h.Type = e.Type
	}
	if !e.Expires.IsZero() {
		h.Claims.Expires = e.Expires.Unix()
	}
	if !e.Time.IsZero() {
		h.Claims.Time = e.Time.Unix()
	}
	return encode(h)
}

// open gives what the header says of a payload that is authentic.
func (h *protected) open(payload []byte) (e msg.Envelope, err error) {
	e = msg.Envelope{ID: string(h.Claims.ID), Issuer: h.Claims.Issuer, Subject: h.Claims.Subject, Audience: h.Claims.Audience, Payload: nonNil(payload)}
	e.Type, _ = h.Type.(string)
	if e.Time, err = cwtDate(h.Claims.Time); err == nil {
		e.Expires, err = cwtDate(h.Claims.Expires)
	}
	return e, err
}

// cwtDate reads a NumericDate of RFC 8392 section 2: an integer or a floating-point number of seconds.
func cwtDate(v any) (time.Time, error) {
	switch n := v.(type) {
	case nil:
		return time.Time{}, nil
	case uint64:
		return numericDate(float64(n))
	case float64:
		return numericDate(n)
	}
	return time.Time{}, ErrOpen
}

func encode(v any) ([]byte, error) {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, err
	}
	return m.Marshal(v)
}

// decode refuses what a peer has no reason to send: repeated keys, indefinite lengths, deep nesting.
func decode(b []byte, v any) bool {
	m, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, MaxNestedLevels: 8}.DecMode()
	return err == nil && m.Unmarshal(b, v) == nil
}

// decodeTagged reads a message that has the tag, or none: RFC 9052 section 2 leaves it to the application.
func decodeTagged(b []byte, tag uint64, v any) bool {
	var t cbor.RawTag
	if decode(b, &t) {
		return t.Number == tag && decode(t.Content, v)
	}
	return decode(b, v)
}

func structure(context string, head, payload []byte) ([]byte, error) {
	if payload == nil {
		return encode([]any{context, head, []byte{}})
	}
	return encode([]any{context, head, []byte{}, payload})
}

// SignCOSE gives the payload as a tagged COSE_Sign1, by ES256 or ES384 as the key is.
func SignCOSE(ctx context.Context, k crypto.Signer, kid string, e msg.Envelope) ([]byte, error) {
	a, err := signingOf(k.Public())
	if err != nil {
		return nil, err
	}
	head, err := protect(a.cose, e)
	if err != nil {
		return nil, err
	}
	input, err := structure("Signature1", head, nonNil(e.Payload))
	if err != nil {
		return nil, err
	}
	sig, err := a.sign(ctx, k, input)
	if err != nil {
		return nil, err
	}
	return encode(cbor.Tag{Number: tagSign1, Content: sign1{Protected: head, Unprotected: unprotected{Kid: []byte(kid)}, Payload: nonNil(e.Payload), Signature: sig}})
}

// VerifyCOSE opens a COSE_Sign1 by the public key's owner, or gives ErrOpen.
func VerifyCOSE(pub crypto.PublicKey, sealed []byte) (msg.Envelope, error) {
	a, err := signingOf(pub)
	if err != nil {
		return msg.Envelope{}, err
	}
	var m sign1
	var head protected
	if !decodeTagged(sealed, tagSign1, &m) || !decode(m.Protected, &head) || head.Alg != a.cose || head.Crit != nil {
		return msg.Envelope{}, ErrOpen
	}
	input, err := structure("Signature1", m.Protected, nonNil(m.Payload))
	if err != nil {
		return msg.Envelope{}, err
	}
	if !a.verify(pub, input, m.Signature) {
		return msg.Envelope{}, ErrOpen
	}
	return head.open(m.Payload)
}

// EncryptCOSE gives the payload as a tagged COSE_Encrypt0.
func EncryptCOSE(ctx context.Context, m hwcrypto.MACer, c Cipher, kid string, e msg.Envelope) ([]byte, error) {
	salt, nonce := random(saltSize), random(nonceSize)
	gcm, err := contentKey(ctx, m, c, salt)
	if err != nil {
		return nil, err
	}
	head, err := protect(ciphers[c].cose, e)
	if err != nil {
		return nil, err
	}
	aad, err := structure("Encrypt0", head, nil)
	if err != nil {
		return nil, err
	}
	return encode(cbor.Tag{Number: tagEncrypt0, Content: encrypt0{Protected: head,
		Unprotected: unprotected{Kid: []byte(kid), IV: nonce, Salt: salt}, Ciphertext: gcm.Seal(nil, nonce, e.Payload, aad)}})
}

// DecryptCOSE opens a COSE_Encrypt0 under the chip's key, or gives ErrOpen. An error of the chip is given as it is.
func DecryptCOSE(ctx context.Context, m hwcrypto.MACer, sealed []byte) (msg.Envelope, error) {
	var e encrypt0
	var head protected
	if !decodeTagged(sealed, tagEncrypt0, &e) || !decode(e.Protected, &head) || head.Crit != nil ||
		len(e.Unprotected.IV) != nonceSize || len(e.Unprotected.Salt) != saltSize || len(e.Ciphertext) < tagSize {
		return msg.Envelope{}, ErrOpen
	}
	var c Cipher
	for name, spec := range ciphers {
		if spec.cose == head.Alg {
			c = name
		}
	}
	if c == "" {
		return msg.Envelope{}, ErrOpen
	}
	aad, err := structure("Encrypt0", e.Protected, nil)
	if err != nil {
		return msg.Envelope{}, err
	}
	gcm, err := contentKey(ctx, m, c, e.Unprotected.Salt)
	if err != nil {
		return msg.Envelope{}, err
	}
	payload, err := gcm.Open(nil, e.Unprotected.IV, e.Ciphertext, aad)
	if err != nil {
		return msg.Envelope{}, ErrOpen
	}
	return head.open(payload)
}

// nonNil makes an empty byte string of nil, which CBOR would write as null.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
