package envelope

import (
	"context"
	"crypto"

	"github.com/fxamacker/cbor/v2"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// The CBOR tags of RFC 9052. The header labels stand in the tags of the structs below: 1 alg, 2 crit, 4 kid, 5 IV, -20 salt.
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
	Alg  int64           `cbor:"1,keyasint"`
	Crit cbor.RawMessage `cbor:"2,keyasint,omitempty"`
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
func SignCOSE(ctx context.Context, k crypto.Signer, kid string, payload []byte) ([]byte, error) {
	a, err := signingOf(k.Public())
	if err != nil {
		return nil, err
	}
	head, err := encode(protected{Alg: a.cose})
	if err != nil {
		return nil, err
	}
	input, err := structure("Signature1", head, nonNil(payload))
	if err != nil {
		return nil, err
	}
	sig, err := a.sign(ctx, k, input)
	if err != nil {
		return nil, err
	}
	return encode(cbor.Tag{Number: tagSign1, Content: sign1{Protected: head, Unprotected: unprotected{Kid: []byte(kid)}, Payload: nonNil(payload), Signature: sig}})
}

// VerifyCOSE gives the payload of a COSE_Sign1 by the public key's owner, or ErrOpen.
func VerifyCOSE(pub crypto.PublicKey, msg []byte) ([]byte, error) {
	a, err := signingOf(pub)
	if err != nil {
		return nil, err
	}
	var m sign1
	var head protected
	if !decodeTagged(msg, tagSign1, &m) || !decode(m.Protected, &head) || head.Alg != a.cose || head.Crit != nil {
		return nil, ErrOpen
	}
	input, err := structure("Signature1", m.Protected, nonNil(m.Payload))
	if err != nil {
		return nil, err
	}
	if !a.verify(pub, input, m.Signature) {
		return nil, ErrOpen
	}
	return nonNil(m.Payload), nil
}

// EncryptCOSE gives the payload as a tagged COSE_Encrypt0.
func EncryptCOSE(ctx context.Context, m hwcrypto.MACer, c Cipher, kid string, payload []byte) ([]byte, error) {
	salt, nonce := random(saltSize), random(nonceSize)
	gcm, err := contentKey(ctx, m, c, salt)
	if err != nil {
		return nil, err
	}
	head, err := encode(protected{Alg: ciphers[c].cose})
	if err != nil {
		return nil, err
	}
	aad, err := structure("Encrypt0", head, nil)
	if err != nil {
		return nil, err
	}
	return encode(cbor.Tag{Number: tagEncrypt0, Content: encrypt0{Protected: head,
		Unprotected: unprotected{Kid: []byte(kid), IV: nonce, Salt: salt}, Ciphertext: gcm.Seal(nil, nonce, payload, aad)}})
}

// DecryptCOSE gives the payload of a COSE_Encrypt0 under the chip's key, or ErrOpen. An error of the chip is given as it is.
func DecryptCOSE(ctx context.Context, m hwcrypto.MACer, msg []byte) ([]byte, error) {
	var e encrypt0
	var head protected
	if !decodeTagged(msg, tagEncrypt0, &e) || !decode(e.Protected, &head) || head.Crit != nil ||
		len(e.Unprotected.IV) != nonceSize || len(e.Unprotected.Salt) != saltSize || len(e.Ciphertext) < tagSize {
		return nil, ErrOpen
	}
	var c Cipher
	for name, spec := range ciphers {
		if spec.cose == head.Alg {
			c = name
		}
	}
	if c == "" {
		return nil, ErrOpen
	}
	aad, err := structure("Encrypt0", e.Protected, nil)
	if err != nil {
		return nil, err
	}
	gcm, err := contentKey(ctx, m, c, e.Unprotected.Salt)
	if err != nil {
		return nil, err
	}
	payload, err := gcm.Open(nil, e.Unprotected.IV, e.Ciphertext, aad)
	if err != nil {
		return nil, ErrOpen
	}
	return payload, nil
}

// nonNil makes an empty byte string of nil, which CBOR would write as null.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
