// Package aead gives the ciphers that the standard library lacks: ARIA (RFC 5794) and LEA (KS X 3246, ISO/IEC 29192-2) in GCM, and
// ARIA and AES in CCM (RFC 3610), each for keys of 128, 192 and 256 bits.
//
// What always holds: nonces have 12 octets, but for CCM where RFC 3610 leaves 7 to 13; Open gives back nothing of a message that is
// not authentic, and never panics on what comes from outside.
package aead

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"

	"github.com/RyuaNerin/go-krypto/aria"
	"github.com/RyuaNerin/go-krypto/kipher"
	"github.com/RyuaNerin/go-krypto/lea"
	"github.com/pion/dtls/v3/pkg/crypto/ccm"
)

// NonceSize is the octets of a nonce.
const NonceSize = 12

// ARIAGCM is ARIA in GCM with a tag of 16 octets.
func ARIAGCM(key []byte) (cipher.AEAD, error) {
	b, err := block(aria.NewCipher, key)
	if err != nil {
		return nil, err
	}
	return kipher.NewGCM(b)
}

// LEAGCM is LEA in GCM with a tag of 16 octets.
func LEAGCM(key []byte) (cipher.AEAD, error) {
	b, err := block(lea.NewCipher, key)
	if err != nil {
		return nil, err
	}
	return kipher.NewGCM(b)
}

// ARIACCM is ARIA in CCM with a tag of 8 or 16 octets.
func ARIACCM(key []byte, tag int) (cipher.AEAD, error) {
	b, err := block(aria.NewCipher, key)
	if err != nil {
		return nil, err
	}
	return CCM(b, tag, NonceSize)
}

// AESCCM is AES in CCM with a tag of 8 or 16 octets.
func AESCCM(key []byte, tag int) (cipher.AEAD, error) {
	b, err := block(aes.NewCipher, key)
	if err != nil {
		return nil, err
	}
	return CCM(b, tag, NonceSize)
}

// CCM is a block cipher of 16 octets in CCM: tags of 8 or 16 octets, nonces of 7 to 13.
func CCM(b cipher.Block, tag, nonce int) (cipher.AEAD, error) {
	if tag != 8 && tag != 16 {
		return nil, fmt.Errorf("CCM: tag of %d octets: want 8 or 16", tag)
	}
	c, err := ccm.NewCCM(b, tag, nonce)
	if err != nil {
		return nil, fmt.Errorf("CCM: %w", err)
	}
	return ccmAEAD{c}, nil
}

// block refuses the lengths of keys for which libraries panic or pad.
func block(make func([]byte) (cipher.Block, error), key []byte) (cipher.Block, error) {
	switch len(key) {
	case 16, 24, 32:
		return make(key)
	}
	return nil, fmt.Errorf("key of %d octets: want 16, 24 or 32", len(key))
}

// ccmAEAD keeps what is too short for a tag away from the library.
type ccmAEAD struct{ cipher.AEAD }

var errOpen = errors.New("message is not authentic")

func (c ccmAEAD) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	if len(sealed) < c.Overhead() {
		return nil, errOpen
	}
	return c.AEAD.Open(dst, nonce, sealed, aad)
}
