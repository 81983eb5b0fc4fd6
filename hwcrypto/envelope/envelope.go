// Package envelope protects payloads from end to end, beyond the TLS of each hop: signed by JWS (RFC 7515) and COSE_Sign1 (RFC 9052), or
// encrypted by JWE (RFC 7516) and COSE_Encrypt0, with keys that stay in their chip.
//
// What always holds: a signing key signs in the chip. An encryption key is an HMAC key in the chip, shared with the other end; each message is
// encrypted under a key of its own, derived by the chip:
//
//	HMAC-SHA-256(K, "drawbridge envelope v1" 0x00 ALG 0x00 SALT 0x01)
//
// which is HKDF-Expand (RFC 5869) of 32 octets. ALG is the name of the cipher below, SALT has 16 octets and stands in the
// message: in the JOSE header "salt" (base64url), or the COSE header -20. Open gives back nothing of a message that is not authentic.
//
// What is said of the payload (msg.Envelope) stands in the protected header: in JOSE as cty and the claims jti, iss, sub, aud, iat and exp
// (RFC 7519 section 5.3), in COSE as content type and CWT claims (RFC 9597). It keeps no record of what it has opened: whoever must
// not act twice on one message looks at these.
//
// Ciphers: "A256GCM" (COSE algorithm 3), and, as private algorithms, "ARIA-256-GCM" (-70001) and "LEA-256-GCM" (-70002).
package envelope

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/aead"
	"github.com/drawbridge/drawbridge/internal/msg"
)

// Cipher is a content encryption algorithm by its name in "enc".
type Cipher string

// The ciphers, all with keys of 256 bits.
const (
	AES  Cipher = "A256GCM"
	ARIA Cipher = "ARIA-256-GCM"
	LEA  Cipher = "LEA-256-GCM"
)

// ErrOpen is all that is said of a message that is not authentic, whatever is wrong with it. Trying again cannot mend it.
var ErrOpen = msg.Permanent(errors.New("envelope: the message is not authentic"))

const (
	saltSize  = 16
	nonceSize = aead.NonceSize
	tagSize   = 16
)

var ciphers = map[Cipher]struct {
	cose int64
	make func(key []byte) (cipher.AEAD, error)
}{
	AES: {3, func(key []byte) (cipher.AEAD, error) {
		b, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(b)
	}},
	ARIA: {-70001, aead.ARIAGCM},
	LEA:  {-70002, aead.LEAGCM},
}

// contentKey has the chip derive the key of one message.
func contentKey(ctx context.Context, m hwcrypto.MACer, c Cipher, salt []byte) (cipher.AEAD, error) {
	spec, ok := ciphers[c]
	if !ok {
		return nil, fmt.Errorf("envelope: unknown cipher %q", c)
	}
	info := append(append([]byte("drawbridge envelope v1\x00"+c+"\x00"), salt...), 1)
	key, err := m.MAC(ctx, info)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	defer clear(key)
	return spec.make(key)
}

// numericDate is the time that many seconds after 1970, from then to the year 9999.
func numericDate(seconds float64) (time.Time, error) {
	if !(seconds > 0 && seconds < 253402300800) {
		return time.Time{}, ErrOpen
	}
	return time.Unix(int64(seconds), 0), nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

// signing is what ECDSA needs to know of a key.
type signing struct {
	jose string
	cose int64
	hash crypto.Hash
	size int // of r and of s
}

func signingOf(pub crypto.PublicKey) (signing, error) {
	if p, ok := pub.(*ecdsa.PublicKey); ok {
		switch p.Params().BitSize {
		case 256:
			return signing{"ES256", -7, crypto.SHA256, 32}, nil
		case 384:
			return signing{"ES384", -35, crypto.SHA384, 48}, nil
		}
	}
	return signing{}, errors.New("envelope: want an ECDSA key on P-256 or P-384")
}

// sign gives r and s, one after the other, as JOSE and COSE want them.
func (a signing) sign(ctx context.Context, k crypto.Signer, input []byte) ([]byte, error) {
	h := a.hash.New()
	h.Write(input)
	var der []byte
	var err error
	if c, ok := k.(hwcrypto.ContextSigner); ok {
		der, err = c.SignContext(ctx, h.Sum(nil), a.hash)
	} else {
		der, err = k.Sign(rand.Reader, h.Sum(nil), a.hash)
	}
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		return nil, errors.New("envelope: the key's signature cannot be read")
	}
	out := make([]byte, 2*a.size)
	sig.R.FillBytes(out[:a.size])
	sig.S.FillBytes(out[a.size:])
	return out, nil
}

func (a signing) verify(pub crypto.PublicKey, input, sig []byte) bool {
	p, ok := pub.(*ecdsa.PublicKey)
	if !ok || len(sig) != 2*a.size {
		return false
	}
	h := a.hash.New()
	h.Write(input)
	return ecdsa.Verify(p, h.Sum(nil), new(big.Int).SetBytes(sig[:a.size]), new(big.Int).SetBytes(sig[a.size:]))
}
