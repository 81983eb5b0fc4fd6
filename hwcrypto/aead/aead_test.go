package aead

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"testing"

	"github.com/RyuaNerin/go-krypto/aria"
	"github.com/RyuaNerin/go-krypto/lea"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func TestBlocks(t *testing.T) {
	for name, c := range map[string]struct {
		make               func([]byte) (cipher.Block, error)
		key, plain, cipher string
	}{
		"ARIA-128, RFC 5794 A.1": {aria.NewCipher, "000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "d718fbd6ab644c739da95f3be6451778"},
		"ARIA-192, RFC 5794 A.2": {aria.NewCipher, "000102030405060708090a0b0c0d0e0f1011121314151617", "00112233445566778899aabbccddeeff", "26449c1805dbe7aa25a468ce263a9e79"},
		"ARIA-256, RFC 5794 A.3": {aria.NewCipher, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "00112233445566778899aabbccddeeff", "f92bd7c79fb72e2f2b8f80c1972d24fc"},
		"LEA-128, KS X 3246":     {lea.NewCipher, "0f1e2d3c4b5a69788796a5b4c3d2e1f0", "101112131415161718191a1b1c1d1e1f", "9fc84e3528c6c6185532c7a704648bfd"},
		"LEA-192, KS X 3246":     {lea.NewCipher, "0f1e2d3c4b5a69788796a5b4c3d2e1f0f0e1d2c3b4a59687", "202122232425262728292a2b2c2d2e2f", "6fb95e325aad1b878cdcf5357674c6f2"},
		"LEA-256, KS X 3246":     {lea.NewCipher, "0f1e2d3c4b5a69788796a5b4c3d2e1f0f0e1d2c3b4a5968778695a4b3c2d1e0f", "303132333435363738393a3b3c3d3e3f", "d651aff647b189c13a8900ca27f9e197"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := block(c.make, unhex(c.key))
			if err != nil {
				t.Fatal(err)
			}
			out := make([]byte, 16)
			b.Encrypt(out, unhex(c.plain))
			if hex.EncodeToString(out) != c.cipher {
				t.Errorf("encrypted to %x, want %s", out, c.cipher)
			}
			b.Decrypt(out, out)
			if hex.EncodeToString(out) != c.plain {
				t.Errorf("decrypted to %x, want %s", out, c.plain)
			}
		})
	}
}

// TestGCM holds the library's GCM against the standard library's over the same block cipher.
func TestGCM(t *testing.T) {
	for name, c := range map[string]struct {
		block func([]byte) (cipher.Block, error)
		gcm   func([]byte) (cipher.AEAD, error)
	}{"ARIA": {aria.NewCipher, ARIAGCM}, "LEA": {lea.NewCipher, LEAGCM}} {
		for _, size := range []int{16, 24, 32} {
			key, nonce := bytes.Repeat([]byte{7}, size), bytes.Repeat([]byte{9}, NonceSize)
			b, err := c.block(key)
			if err != nil {
				t.Fatal(err)
			}
			want, err := cipher.NewGCM(b)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.gcm(key)
			if err != nil {
				t.Fatal(err)
			}
			for n := range 300 {
				plain, aad := bytes.Repeat([]byte{1}, n), bytes.Repeat([]byte{2}, n%40)
				if a, b := want.Seal(nil, nonce, plain, aad), got.Seal(nil, nonce, plain, aad); !bytes.Equal(a, b) {
					t.Fatalf("%s-%d-GCM of %d octets: %x, want %x", name, 8*size, n, b, a)
				}
			}
		}
	}
}

// TestCCM is packet vector 1 of RFC 3610 section 8.
func TestCCM(t *testing.T) {
	b, err := aes.NewCipher(unhex("c0c1c2c3c4c5c6c7c8c9cacbcccdcecf"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := CCM(b, 8, 13)
	if err != nil {
		t.Fatal(err)
	}
	nonce, aad := unhex("00000003020100a0a1a2a3a4a5"), unhex("0001020304050607")
	plain := unhex("08090a0b0c0d0e0f101112131415161718191a1b1c1d1e")
	want := "588c979a61c663d2f066d0c2c0f989806d5f6b61dac38417e8d12cfdf926e0"
	if got := hex.EncodeToString(c.Seal(nil, nonce, plain, aad)); got != want {
		t.Errorf("sealed %s, want %s", got, want)
	}
}

var kinds = map[string]func([]byte) (cipher.AEAD, error){
	"ARIA-GCM": ARIAGCM, "LEA-GCM": LEAGCM,
	"ARIA-CCM":   func(k []byte) (cipher.AEAD, error) { return ARIACCM(k, 16) },
	"ARIA-CCM-8": func(k []byte) (cipher.AEAD, error) { return ARIACCM(k, 8) },
	"AES-CCM":    func(k []byte) (cipher.AEAD, error) { return AESCCM(k, 16) },
}

func TestKeyLengths(t *testing.T) {
	for name, f := range kinds {
		for n := range 40 {
			_, err := f(make([]byte, n))
			if want := n == 16 || n == 24 || n == 32; (err == nil) != want {
				t.Errorf("%s with a key of %d octets: %v", name, n, err)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte(nil), []byte(nil))
	f.Add(bytes.Repeat([]byte{1}, 40), []byte("aad"))
	f.Fuzz(func(t *testing.T, msg, aad []byte) {
		nonce := make([]byte, NonceSize)
		for name, make := range kinds {
			c, err := make(bytes.Repeat([]byte{3}, 16))
			if err != nil {
				t.Fatal(err)
			}
			if p, err := c.Open(nil, nonce, msg, aad); err == nil {
				t.Fatalf("%s opened what nobody has sealed: %x", name, p)
			}
			sealed := c.Seal(nil, nonce, msg, aad)
			if p, err := c.Open(nil, nonce, sealed, aad); err != nil || !bytes.Equal(p, msg) {
				t.Fatalf("%s: %v", name, err)
			}
			sealed[0] ^= 1
			if _, err := c.Open(nil, nonce, sealed, aad); err == nil {
				t.Fatalf("%s opened what was changed", name)
			}
		}
	})
}
