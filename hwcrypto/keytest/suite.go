package keytest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/drawbridge/drawbridge/hwcrypto"
)

// Subject is a provider under test.
type Subject struct {
	Provider hwcrypto.Provider
	URI      func(name string) string // of a key that is not there yet
	Base     string                   // directory for relative paths
	Hardware bool
	Makes    []hwcrypto.Algorithm // what it makes
	Refuses  []hwcrypto.Algorithm // what it refuses rightly
	HashFree bool                 // an ECDSA key signs digests of any hash
}

func (s Subject) uri(t testing.TB, name string) hwcrypto.URI {
	t.Helper()
	u, err := hwcrypto.ParseURI(s.URI(name), s.Base)
	check(t, err)
	return u
}

func (s Subject) make(t testing.TB, name string, alg hwcrypto.Algorithm) hwcrypto.Key {
	t.Helper()
	k, err := s.Provider.(hwcrypto.Generator).Generate(t.Context(), s.uri(t, name), alg)
	check(t, err)
	t.Cleanup(func() { k.Close() })
	return k
}

// Run is the suite.
func Run(t *testing.T, s Subject) {
	t.Run("a key that is not there is ErrNoKey", func(t *testing.T) {
		if _, err := s.Provider.Open(t.Context(), s.uri(t, "nobody")); !errors.Is(err, hwcrypto.ErrNoKey) {
			t.Fatalf("Open: %v", err)
		}
	})
	for _, alg := range s.Makes {
		t.Run("makes "+string(alg), func(t *testing.T) { s.testKind(t, alg) })
	}
	for _, alg := range s.Refuses {
		t.Run("refuses "+string(alg), func(t *testing.T) {
			u := s.uri(t, "refused")
			if _, err := s.Provider.(hwcrypto.Generator).Generate(t.Context(), u, alg); !errors.Is(err, hwcrypto.ErrUnsupported) {
				t.Fatalf("Generate: %v", err)
			}
			if _, err := s.Provider.Open(t.Context(), u); !errors.Is(err, hwcrypto.ErrNoKey) {
				t.Fatalf("Open after a refusal: %v", err)
			}
		})
	}
	t.Run("imports secrets of any length as HMAC keys", s.testImport)
	t.Run("many sign at once", s.testParallel)
	if s.Hardware {
		t.Run("makes keys for one agreement", s.testEphemeral)
	}
	t.Run("mutual TLS", s.testTLS)
	t.Run("openssl accepts a request", s.testCSR)
}

func (s Subject) testKind(t *testing.T, alg hwcrypto.Algorithm) {
	name := "a-" + string(alg)
	made := s.make(t, name, alg)
	u := s.uri(t, name)
	if _, err := s.Provider.(hwcrypto.Generator).Generate(t.Context(), u, alg); !errors.Is(err, hwcrypto.ErrKeyExists) {
		t.Fatalf("a second Generate: %v, want ErrKeyExists", err)
	}
	k, err := s.Provider.Open(t.Context(), u)
	check(t, err)
	if a, b := hwcrypto.Fingerprint(made.Public()), hwcrypto.Fingerprint(k.Public()); a != b {
		t.Fatalf("opened key %s, made %s", b, a)
	}
	i, err := k.(hwcrypto.Describer).Describe(t.Context())
	check(t, err)
	if i.Algorithm != alg || i.Hardware != s.Hardware || i.Extractable == s.Hardware || s.Hardware != (len(i.Weak) == 0) {
		t.Errorf("Describe: %+v", i)
	}
	switch alg {
	case hwcrypto.HMACSHA256:
		testMAC(t, k, nil)
	case hwcrypto.ECDHP256:
		s.testECDH(t, k)
	default:
		s.testSign(t, k)
	}
	for what, has := range map[string]bool{"MACer": is[hwcrypto.MACer](k), "Agreer": is[hwcrypto.Agreer](k), "ContextSigner": is[hwcrypto.ContextSigner](k)} {
		want := what == "ContextSigner"
		if alg == hwcrypto.HMACSHA256 {
			want = what == "MACer"
		} else if alg == hwcrypto.ECDHP256 {
			want = what == "Agreer"
		}
		if has != want {
			t.Errorf("a key for %s is a %s: %v", alg, what, has)
		}
	}
	if !is[hwcrypto.ContextSigner](k) {
		if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil {
			t.Error("a key that does not sign has signed")
		}
	}
	testSeal(t, k)
	if is[hwcrypto.EphemeralMaker](k) != (s.Hardware && is[hwcrypto.ContextSigner](k)) {
		t.Errorf("a key for %s makes keys for one agreement: %v", alg, is[hwcrypto.EphemeralMaker](k))
	}
	if r, ok := k.(hwcrypto.Random); ok != s.Hardware {
		t.Errorf("it gives random octets: %v", ok)
	} else if ok {
		a, b := make([]byte, 100), make([]byte, 100)
		if _, err := io.ReadFull(r.Rand(), a); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r.Rand(), b); err != nil || bytes.Equal(a, b) || bytes.Equal(a[:50], a[50:]) {
			t.Errorf("random octets: %x, %x, %v", a, b, err)
		}
	}
	if a, ok := k.(hwcrypto.Attester); ok {
		at, err := a.Attest(t.Context(), []byte("nonce"))
		check(t, err)
		if len(at.Signature) == 0 || !bytes.Contains(at.Statement, []byte("nonce")) && !strings.Contains(string(at.Statement), "bm9uY2U=") {
			t.Errorf("attestation: %+v", at)
		}
	}
}

func is[T any](k hwcrypto.Key) bool { _, ok := k.(T); return ok }

func (s Subject) testSign(t *testing.T, k hwcrypto.Key) {
	d256, d384, d512 := sha256.Sum256([]byte("m")), sha512.Sum384([]byte("m")), sha512.Sum512([]byte("m"))
	type c struct {
		digest []byte
		opts   crypto.SignerOpts
	}
	var cases []c
	switch pub := k.Public().(type) {
	case *ecdsa.PublicKey:
		cases = []c{{d256[:], crypto.SHA256}, {d384[:], crypto.SHA384}, {d512[:], crypto.SHA512}}
		if !s.HashFree {
			cases = cases[:1]
			if pub.Params().BitSize == 384 {
				cases = []c{{d384[:], crypto.SHA384}}
			}
		}
	case *rsa.PublicKey:
		pss := func(h crypto.Hash) crypto.SignerOpts {
			return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
		}
		cases = []c{{d256[:], crypto.SHA256}, {d384[:], crypto.SHA384}, {d256[:], pss(crypto.SHA256)}, {d384[:], pss(crypto.SHA384)}}
		if !s.HashFree {
			cases = []c{{d256[:], crypto.SHA256}, {d256[:], pss(crypto.SHA256)}}
		}
	}
	for _, c := range cases {
		sig, err := k.Sign(rand.Reader, c.digest, c.opts)
		if err == nil {
			err = verify(k.Public(), c.digest, sig, c.opts)
		}
		if err != nil {
			t.Errorf("%v, %T: %v", c.opts.HashFunc(), c.opts, err)
		}
	}
	if _, err := k.Sign(rand.Reader, []byte("short"), crypto.SHA256); err == nil {
		t.Error("signed a digest of the wrong length")
	}
	for _, h := range boundTo(k) {
		if !slices.Contains([]crypto.Hash{crypto.SHA256, crypto.SHA384}, h) {
			t.Errorf("bound to %v", h)
		}
	}
}

func boundTo(k hwcrypto.Key) []crypto.Hash {
	if b, ok := k.(hwcrypto.HashBound); ok {
		return b.Hashes()
	}
	return nil
}

func verify(pub crypto.PublicKey, digest, sig []byte, opts crypto.SignerOpts) error {
	switch p := pub.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(p, digest, sig) {
			return nil
		}
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(p, pss.Hash, digest, sig, pss)
		}
		return rsa.VerifyPKCS1v15(p, opts.HashFunc(), digest, sig)
	}
	return errors.New("the signature does not verify")
}

func testMAC(t *testing.T, k hwcrypto.Key, secret []byte) {
	t.Helper()
	m, ok := k.(hwcrypto.MACer)
	if !ok {
		t.Fatalf("%T is no MACer", k)
	}
	for _, n := range []int{0, 1, 100, 1024, 1025, 5000} {
		data := bytes.Repeat([]byte("d"), n)
		a, err := m.MAC(t.Context(), data)
		if err != nil {
			t.Fatalf("MAC of %d octets: %v", n, err)
		}
		if len(a) != sha256.Size {
			t.Errorf("MAC of %d octets", len(a))
		}
		if secret != nil {
			h := hmac.New(sha256.New, secret)
			h.Write(data)
			if !bytes.Equal(a, h.Sum(nil)) {
				t.Errorf("MAC of %d octets with a key of %d is wrong", n, len(secret))
			}
		}
	}
}

func (s Subject) testImport(t *testing.T) {
	for _, n := range []int{1, 16, 32, 33, 64, 65, 128} {
		secret := make([]byte, n)
		rand.Read(secret)
		u := s.uri(t, "imported-"+string(rune('a'+n%26))+"-"+strings.Repeat("x", n%7))
		k, err := s.Provider.(hwcrypto.Importer).Import(t.Context(), u, secret)
		if err != nil {
			t.Fatalf("Import of %d octets: %v", n, err)
		}
		testMAC(t, k, secret)
		if _, err := s.Provider.(hwcrypto.Importer).Import(t.Context(), u, secret); !errors.Is(err, hwcrypto.ErrKeyExists) {
			t.Errorf("a second Import: %v, want ErrKeyExists", err)
		}
		k, err = s.Provider.Open(t.Context(), u)
		check(t, err)
		testMAC(t, k, secret)
	}
	if _, err := s.Provider.(hwcrypto.Importer).Import(t.Context(), s.uri(t, "empty"), nil); err == nil {
		t.Error("an empty secret is taken")
	}
}

func (s Subject) testECDH(t *testing.T, k hwcrypto.Key) {
	mine, err := ecdh.P256().GenerateKey(rand.Reader)
	check(t, err)
	z, err := k.(hwcrypto.Agreer).ECDH(t.Context(), mine.PublicKey())
	check(t, err)
	theirs, err := k.Public().(*ecdsa.PublicKey).ECDH()
	check(t, err)
	want, err := mine.ECDH(theirs)
	check(t, err)
	if !bytes.Equal(z, want) {
		t.Error("the shared secrets differ")
	}
	other, err := ecdh.X25519().GenerateKey(rand.Reader)
	check(t, err)
	if _, err := k.(hwcrypto.Agreer).ECDH(t.Context(), other.PublicKey()); err == nil {
		t.Error("agreed with a key on another curve")
	}
}

// testEphemeral agrees with more keys at a time than a TPM has slots.
func (s Subject) testEphemeral(t *testing.T) {
	m := s.make(t, "maker", hwcrypto.ECDSAP256).(hwcrypto.EphemeralMaker)
	before := s.count(t)
	var all []hwcrypto.Ephemeral
	for range 8 {
		e, err := m.Ephemeral(t.Context())
		check(t, err)
		all = append(all, e)
	}
	mine, err := ecdh.P256().GenerateKey(rand.Reader)
	check(t, err)
	seen := map[string]bool{}
	for _, e := range all {
		z, err := e.ECDH(t.Context(), mine.PublicKey())
		check(t, err)
		want, err := mine.ECDH(e.PublicKey())
		check(t, err)
		if !bytes.Equal(z, want) || seen[string(z)] {
			t.Error("the shared secrets differ from each other, or not from one key to the next")
		}
		seen[string(z)] = true
		check(t, e.Close(t.Context()))
	}
	if after := s.count(t); after != before {
		t.Errorf("the token holds %d keys, before it held %d", after, before)
	}
}

func (s Subject) count(t testing.TB) int {
	t.Helper()
	list, err := s.Provider.(hwcrypto.Lister).List(t.Context(), s.uri(t, "maker"))
	check(t, err)
	return len(list)
}

func testSeal(t *testing.T, k hwcrypto.Key) {
	s, ok := k.(hwcrypto.Sealer)
	if !ok {
		t.Fatalf("%T is no Sealer", k)
	}
	for _, n := range []int{0, 1, 100, 10000} {
		plain := bytes.Repeat([]byte("p"), n)
		a, err := s.Seal(t.Context(), plain, []byte("aad"))
		check(t, err)
		b, err := s.Seal(t.Context(), plain, []byte("aad"))
		check(t, err)
		if bytes.Equal(a, b) || n >= 100 && bytes.Contains(a, plain[:20]) {
			t.Error("sealing the same twice gives the same, or shows it")
		}
		got, err := s.Unseal(t.Context(), a, []byte("aad"))
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("Unseal of %d octets: %v", n, err)
		}
		for what, try := range map[string]func() ([]byte, []byte){
			"another aad": func() ([]byte, []byte) { return a, []byte("dad") },
			"a changed octet": func() ([]byte, []byte) {
				c := bytes.Clone(a)
				c[len(c)-1] ^= 1
				return c, []byte("aad")
			},
			"cut short": func() ([]byte, []byte) { return a[:len(a)-1], []byte("aad") },
			"nothing":   func() ([]byte, []byte) { return nil, []byte("aad") },
		} {
			c, aad := try()
			if _, err := s.Unseal(t.Context(), c, aad); !errors.Is(err, hwcrypto.ErrNotSealed) {
				t.Errorf("Unseal of %s: %v, want ErrNotSealed", what, err)
			}
		}
	}
}

func (s Subject) testParallel(t *testing.T) {
	k := s.make(t, "parallel", hwcrypto.ECDSAP256)
	digest := sha256.Sum256([]byte("m"))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			ctx := hwcrypto.WithUser(context.WithoutCancel(t.Context()), "listener test")
			for range 8 {
				sig, err := k.(hwcrypto.ContextSigner).SignContext(ctx, digest[:], crypto.SHA256)
				if err == nil {
					err = verify(k.Public(), digest[:], sig, crypto.SHA256)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
