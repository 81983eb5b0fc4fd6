package envelope

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/go-jose/go-jose/v4"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/hwcrypto/pkcs11"
	"github.com/drawbridge/drawbridge/hwcrypto/tpm2"
	"github.com/drawbridge/drawbridge/internal/msg"
)

var payload = []byte(`{"temp":21.5}`)

// said is a payload with all that can be said of it.
var said = msg.Envelope{ID: "a-1", Issuer: "gw1", Subject: "th-17/sensors/temp", Audience: "plant", Time: time.Unix(1800000000, 0),
	Expires: time.Unix(1800000600, 0), Type: "application/json", Payload: payload}

func same(a, b msg.Envelope) bool { return reflect.DeepEqual(a, b) }

// soft is an HMAC key in memory.
type soft []byte

func (s soft) MAC(_ context.Context, b []byte) ([]byte, error) {
	m := hmac.New(sha256.New, s)
	m.Write(b)
	return m.Sum(nil), nil
}

func chips(t *testing.T, f func(t *testing.T, make func(name string, alg hwcrypto.Algorithm) hwcrypto.Key)) {
	token, chip := keytest.SoftHSM(t), keytest.SWTPM(t)
	p11, tpm := pkcs11.New(t.Context(), pkcs11.Options{}), tpm2.New(t.Context(), tpm2.Options{Dir: chip.Dir})
	defer p11.Close()
	defer tpm.Close()
	for what, c := range map[string]struct {
		p   hwcrypto.Generator
		uri func(string) string
	}{"pkcs11": {p11, token.URI}, "tpm": {tpm, chip.URI}} {
		t.Run(what, func(t *testing.T) {
			f(t, func(name string, alg hwcrypto.Algorithm) hwcrypto.Key {
				u, err := hwcrypto.ParseURI(c.uri(name), "/")
				if err != nil {
					t.Fatal(err)
				}
				k, err := c.p.Generate(t.Context(), u, alg)
				if err != nil {
					t.Fatal(err)
				}
				return k
			})
		})
	}
}

func TestWithKeysInChips(t *testing.T) {
	chips(t, func(t *testing.T, make func(string, hwcrypto.Algorithm) hwcrypto.Key) {
		for _, alg := range []hwcrypto.Algorithm{hwcrypto.ECDSAP256, hwcrypto.ECDSAP384} {
			k := make(string(alg), alg)
			jws, err := SignJWS(t.Context(), k, "gw1", said)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := VerifyJWS(k.Public(), jws); err != nil || !same(got, said) {
				t.Errorf("JWS: %v", err)
			}
			// Another's library reads it too.
			o, err := jose.ParseSignedCompact(string(jws), []jose.SignatureAlgorithm{jose.ES256, jose.ES384})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := o.Verify(k.Public()); err != nil || !bytes.Equal(got, payload) {
				t.Errorf("go-jose: %v", err)
			}
			cose, err := SignCOSE(t.Context(), k, "gw1", said)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := VerifyCOSE(k.Public(), cose); err != nil || !same(got, said) {
				t.Errorf("COSE: %v", err)
			}
		}
		m := make("shared", hwcrypto.HMACSHA256).(hwcrypto.MACer)
		for _, c := range []Cipher{AES, ARIA, LEA} {
			jwe, err := EncryptJWE(t.Context(), m, c, "k1", said)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := DecryptJWE(t.Context(), m, jwe); err != nil || !same(got, said) {
				t.Errorf("JWE %s: %v", c, err)
			}
			cose, err := EncryptCOSE(t.Context(), m, c, "k1", said)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := DecryptCOSE(t.Context(), m, cose); err != nil || !same(got, said) {
				t.Errorf("COSE %s: %v", c, err)
			}
		}
	})
}

// TestJWEByAnotherLibrary opens a JWE as somebody would who has read the package's documentation and has HKDF and JOSE.
func TestJWEByAnotherLibrary(t *testing.T) {
	secret := soft("a key that both ends have")
	msg, err := EncryptJWE(t.Context(), secret, AES, "k1", said)
	if err != nil {
		t.Fatal(err)
	}
	o, err := jose.ParseEncryptedCompact(string(msg), []jose.KeyAlgorithm{jose.DIRECT}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		t.Fatal(err)
	}
	salt, err := b64.DecodeString(o.Header.ExtraHeaders["salt"].(string))
	if err != nil || o.Header.KeyID != "k1" {
		t.Fatal(err, o.Header)
	}
	key, err := hkdf.Expand(sha256.New, secret, "drawbridge envelope v1\x00A256GCM\x00"+string(salt), 32)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := o.Decrypt(key); err != nil || !bytes.Equal(got, payload) {
		t.Error(err)
	}
}

// TestCOSEShape looks at a message with a CBOR decoder of its own: tag, three parts, and a private algorithm in the protected header.
func TestCOSEShape(t *testing.T) {
	msg, err := EncryptCOSE(t.Context(), soft("k"), ARIA, "k1", said)
	if err != nil {
		t.Fatal(err)
	}
	var tag cbor.RawTag
	if err := cbor.Unmarshal(msg, &tag); err != nil || tag.Number != 16 {
		t.Fatal(err, tag.Number)
	}
	var parts []any
	if err := cbor.Unmarshal(tag.Content, &parts); err != nil || len(parts) != 3 {
		t.Fatal(err, parts)
	}
	if !bytes.HasPrefix(parts[0].([]byte), []byte{0xa3, 0x01, 0x3a, 0x00, 0x01, 0x11, 0x70, 0x03}) { // {1: -70001, 3: ...
		t.Errorf("protected: %x", parts[0])
	}
	// A message without its tag is read too.
	if got, err := DecryptCOSE(t.Context(), soft("k"), tag.Content); err != nil || !same(got, said) {
		t.Error(err)
	}
}

func TestNothingOfAForgeryComesThrough(t *testing.T) {
	secret := soft("a key that both ends have")
	jwe, err := EncryptJWE(t.Context(), secret, LEA, "k1", said)
	if err != nil {
		t.Fatal(err)
	}
	cose, err := EncryptCOSE(t.Context(), secret, AES, "k1", said)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		msg  []byte
		open func(context.Context, hwcrypto.MACer, []byte) (msg.Envelope, error)
	}{"JWE": {jwe, DecryptJWE}, "COSE": {cose, DecryptCOSE}} {
		for i := range c.msg {
			bad := bytes.Clone(c.msg)
			bad[i] ^= 0x08
			if got, err := c.open(t.Context(), secret, bad); err == nil && !(what == "COSE" && unprotectedKid(c.msg, i)) {
				t.Errorf("%s with octet %d changed opens as %+v", what, i, got)
			}
		}
		if _, err := c.open(t.Context(), soft("another key"), c.msg); !errors.Is(err, ErrOpen) {
			t.Errorf("%s under another key: %v", what, err)
		}
	}
	if _, err := EncryptJWE(t.Context(), secret, "A128GCM", "", said); err == nil {
		t.Error("an unknown cipher is taken")
	}
	none, _ := json.Marshal(map[string]any{"alg": "none"})
	if _, err := VerifyJWS(pubKey(), []byte(b64.EncodeToString(none)+".e30.")); err == nil {
		t.Error("alg none is taken")
	}
}

// unprotectedKid: the key id is a hint that COSE_Encrypt0 does not protect.
func unprotectedKid(msg []byte, i int) bool {
	at := bytes.Index(msg, []byte("k1"))
	return i >= at-2 && i < at+2 // with its label
}

func FuzzOpen(f *testing.F) {
	secret := soft("k")
	for _, c := range []Cipher{AES, ARIA} {
		jwe, err := EncryptJWE(f.Context(), secret, c, "k", said)
		if err != nil {
			f.Fatal(err)
		}
		cose, err := EncryptCOSE(f.Context(), secret, c, "k", said)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(jwe)
		f.Add(cose)
	}
	f.Add([]byte("eyJhbGciOiJFUzI1NiJ9.e30.AAAA"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		// A key that the corpus' messages were not made with: nothing may open.
		other := soft("another key")
		if _, err := DecryptJWE(t.Context(), other, msg); err == nil {
			t.Error("JWE opened")
		}
		if _, err := DecryptCOSE(t.Context(), other, msg); err == nil {
			t.Error("COSE opened")
		}
		pub := pubKey()
		if _, err := VerifyJWS(pub, msg); err == nil {
			t.Error("JWS verified")
		}
		if _, err := VerifyCOSE(pub, msg); err == nil {
			t.Error("COSE verified")
		}
	})
}

// TestRFC9052Signature is the example of RFC 9052 appendix C.2.1, made by the key "11" of appendix C.7.1.
func TestRFC9052Signature(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), unhex("04bac5b11cad8f99f9c72b05cf4b9e26d244dc189f745228255a219a86d6a09eff"+
		"20138bf82dc1b6d562be0fa54ab7804a3a64b6d72ccfed6b6fb6ed28bbfc117e"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := VerifyCOSE(pub, unhex("d28443a10126a10442313154546869732069732074686520636f6e74656e742e58408eb33e4ca31d1c465ab05aac34cc6b23d58fef5c083106c4d25a91aef0b0117e"+
		"2af9a291aa32e14ab834dc56ed2a223444547e01f11d3b0916e5a4c345cacb36"))
	if err != nil || string(got.Payload) != "This is the content." {
		t.Errorf("%+v, %v", got, err)
	}
}

// FuzzHeaders reads headers as they may stand in what is authentic: whoever shares the key may still write them wrongly.
func FuzzHeaders(f *testing.F) {
	f.Add([]byte(`{"alg":"dir","iat":1800000000,"exp":1e300,"jti":"x"}`))
	f.Add([]byte(`{"iat":-1}`))
	f.Add([]byte{0xa3, 0x01, 0x26, 0x03, 0x18, 0x32, 0x0f, 0xa2, 0x06, 0x1a, 0x6b, 0x49, 0xd2, 0x00, 0x04, 0xfb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, open := range []func() (msg.Envelope, error){
			func() (msg.Envelope, error) {
				var h joseHeader
				if json.Unmarshal(b, &h) != nil {
					return msg.Envelope{}, ErrOpen
				}
				return h.open(nil)
			},
			func() (msg.Envelope, error) {
				var h protected
				if !decode(b, &h) {
					return msg.Envelope{}, ErrOpen
				}
				return h.open(nil)
			},
		} {
			e, err := open()
			for _, at := range []time.Time{e.Time, e.Expires} {
				if err == nil && !at.IsZero() && (at.Before(time.Unix(0, 0)) || at.UTC().Year() > 9999) {
					t.Errorf("%v", at)
				}
			}
		}
	})
}
