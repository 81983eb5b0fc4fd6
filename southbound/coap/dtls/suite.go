package dtls

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"slices"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/drawbridge/drawbridge/hwcrypto/aead"
)

type keyExchange uint8

const (
	psk keyExchange = iota + 1
	ecdhePSK
	ecdheECDSA
	ecdheRSA
)

// Suite is a cipher suite of DTLS 1.2.
type Suite struct {
	ID     uint16
	Name   string // the name of IANA's registry
	kx     keyExchange
	hash   func() hash.Hash // of the PRF and the transcript
	keyLen int
	ivLen  int // fixed part of the nonce
	macLen int // CBC only
	aead   func(key []byte) (cipher.AEAD, error)
}

// UsesPSK tells whether the suite authenticates by a pre-shared key.
func (s *Suite) UsesPSK() bool { return s.kx == psk || s.kx == ecdhePSK }

// PSKInChip tells whether the suite's master secret is computed from the pre-shared key by HMAC-SHA-256 alone, which chips can. ECDHE_PSK mixes in what is
// agreed on in each handshake, and that would have to be a part of the HMAC's key.
func (s *Suite) PSKInChip() bool { return s.kx == psk && s.hash().Size() == sha256.Size }

func (s *Suite) ephemeral() bool { return s.kx != psk }

// explicitNonce is the number of octets of the nonce that each record carries.
func (s *Suite) explicitNonce() int {
	if s.ivLen == 4 {
		return 8
	}
	return 0
}

func aesGCM(key []byte) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

func aesCCM(tag int) func([]byte) (cipher.AEAD, error) {
	return func(key []byte) (cipher.AEAD, error) { return aead.AESCCM(key, tag) }
}

// Suites lists the suites of this package in the order in which it prefers them: pre-shared keys before certificates (a client that
// offers a PSK has one), forward secrecy before none, and among those what hardware does fast.
func Suites() []*Suite { return slices.Clone(suites()) }

// suites is Suites' own list, which nobody changes.
var suites = sync.OnceValue(func() []*Suite {
	sha2, sha3 := sha256.New, sha512.New384
	var list []*Suite
	add := func(id uint16, kx keyExchange, cipherName string, h func() hash.Hash, keyLen, ivLen int, protect func([]byte) (cipher.AEAD, error)) {
		prefix := [...]string{psk: "TLS_PSK_WITH_", ecdhePSK: "TLS_ECDHE_PSK_WITH_", ecdheECDSA: "TLS_ECDHE_ECDSA_WITH_", ecdheRSA: "TLS_ECDHE_RSA_WITH_"}
		s := &Suite{ID: id, Name: prefix[kx] + cipherName, kx: kx, hash: h, keyLen: keyLen, ivLen: ivLen, aead: protect}
		if protect == nil {
			s.macLen = sha256.Size
		}
		list = append(list, s)
	}
	add(0xd001, ecdhePSK, "AES_128_GCM_SHA256", sha2, 16, 4, aesGCM)
	add(0xd002, ecdhePSK, "AES_256_GCM_SHA384", sha3, 32, 4, aesGCM)
	add(0xccac, ecdhePSK, "CHACHA20_POLY1305_SHA256", sha2, 32, 12, chacha20poly1305.New)
	add(0xd005, ecdhePSK, "AES_128_CCM_SHA256", sha2, 16, 4, aesCCM(16))
	add(0xd003, ecdhePSK, "AES_128_CCM_8_SHA256", sha2, 16, 4, aesCCM(8))
	add(0xc037, ecdhePSK, "AES_128_CBC_SHA256", sha2, 16, 0, nil)
	add(0x00a8, psk, "AES_128_GCM_SHA256", sha2, 16, 4, aesGCM)
	add(0x00a9, psk, "AES_256_GCM_SHA384", sha3, 32, 4, aesGCM)
	add(0xccab, psk, "CHACHA20_POLY1305_SHA256", sha2, 32, 12, chacha20poly1305.New)
	add(0xc0a4, psk, "AES_128_CCM", sha2, 16, 4, aesCCM(16))
	add(0xc0a5, psk, "AES_256_CCM", sha2, 32, 4, aesCCM(16))
	add(0xc0a8, psk, "AES_128_CCM_8", sha2, 16, 4, aesCCM(8))
	add(0xc0a9, psk, "AES_256_CCM_8", sha2, 32, 4, aesCCM(8))
	add(0xc06a, psk, "ARIA_128_GCM_SHA256", sha2, 16, 4, aead.ARIAGCM)
	add(0xc06b, psk, "ARIA_256_GCM_SHA384", sha3, 32, 4, aead.ARIAGCM)
	add(0x00ae, psk, "AES_128_CBC_SHA256", sha2, 16, 0, nil)
	add(0xc02b, ecdheECDSA, "AES_128_GCM_SHA256", sha2, 16, 4, aesGCM)
	add(0xc02c, ecdheECDSA, "AES_256_GCM_SHA384", sha3, 32, 4, aesGCM)
	add(0xcca9, ecdheECDSA, "CHACHA20_POLY1305_SHA256", sha2, 32, 12, chacha20poly1305.New)
	add(0xc0ac, ecdheECDSA, "AES_128_CCM", sha2, 16, 4, aesCCM(16))
	add(0xc0ad, ecdheECDSA, "AES_256_CCM", sha2, 32, 4, aesCCM(16))
	add(0xc0ae, ecdheECDSA, "AES_128_CCM_8", sha2, 16, 4, aesCCM(8))
	add(0xc0af, ecdheECDSA, "AES_256_CCM_8", sha2, 32, 4, aesCCM(8))
	add(0xc05c, ecdheECDSA, "ARIA_128_GCM_SHA256", sha2, 16, 4, aead.ARIAGCM)
	add(0xc05d, ecdheECDSA, "ARIA_256_GCM_SHA384", sha3, 32, 4, aead.ARIAGCM)
	add(0xc023, ecdheECDSA, "AES_128_CBC_SHA256", sha2, 16, 0, nil)
	add(0xc02f, ecdheRSA, "AES_128_GCM_SHA256", sha2, 16, 4, aesGCM)
	add(0xc030, ecdheRSA, "AES_256_GCM_SHA384", sha3, 32, 4, aesGCM)
	return list
})

// SuiteByName finds a suite by IANA's name; nil where there is none.
func SuiteByName(name string) *Suite {
	all := suites()
	if i := slices.IndexFunc(all, func(s *Suite) bool { return s.Name == name }); i >= 0 {
		return all[i]
	}
	return nil
}

func suiteByID(id uint16) *Suite {
	all := suites()
	if i := slices.IndexFunc(all, func(s *Suite) bool { return s.ID == id }); i >= 0 {
		return all[i]
	}
	return nil
}
