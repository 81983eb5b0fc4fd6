package tpm2

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/needs"
)

func parse(t *testing.T, s string) hwcrypto.URI {
	t.Helper()
	u, err := hwcrypto.ParseURI(s, "/")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func provider(t *testing.T, o Options) *Provider {
	t.Helper()
	p := New(t.Context(), o)
	t.Cleanup(func() { p.Close() })
	return p
}

func made(t *testing.T, p *Provider, uri string, alg hwcrypto.Algorithm) hwcrypto.Key {
	t.Helper()
	k, err := p.Generate(t.Context(), parse(t, uri), alg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(ctx context.Context, k hwcrypto.Key) error {
	_, err := k.(hwcrypto.ContextSigner).SignContext(ctx, make([]byte, 32), crypto.SHA256)
	return err
}

// transients are the objects that the TPM holds in its slots, as a tool of others' sees it once we have let go.
func transients(t *testing.T, chip *keytest.TPM) string {
	t.Helper()
	return tool(t, chip, "tpm2_getcap", "handles-transient")
}

func tool(t *testing.T, chip *keytest.TPM, name string, args ...string) string {
	t.Helper()
	path := needs.Program(t, name)
	out, err := exec.Command(path, append([]string{"-T", "swtpm:path=" + chip.Socket}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestTPMKilledAndRestarted(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	p := provider(t, Options{Dir: chip.Dir})
	k := made(t, p, chip.URI("a"), hwcrypto.ECDSAP256)
	if err := sign(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	chip.Kill()
	if err := sign(t.Context(), k); !errors.Is(err, hwcrypto.ErrNoToken) || !strings.Contains(err.Error(), chip.Socket) {
		t.Errorf("without its TPM: %v", err)
	}
	chip.Start()
	if err := sign(t.Context(), k); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	// Restarted between two operations, so that the connection is found dead.
	chip.Kill()
	chip.Start()
	if err := sign(t.Context(), k); err != nil {
		t.Errorf("after a quick restart: %v", err)
	}
}

func TestSlotsAreNotLeaked(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	p := provider(t, Options{Dir: chip.Dir})
	var keys []hwcrypto.Key
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		keys = append(keys, made(t, p, chip.URI(n), hwcrypto.ECDSAP256))
	}
	for range 5 {
		for _, k := range keys {
			if err := sign(t.Context(), k); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := keys[0].(hwcrypto.Attester).Attest(t.Context(), []byte("n")); err != nil {
		t.Fatal(err)
	}
	if out := transients(t, chip); strings.Contains(out, "0x") {
		t.Errorf("still loaded once we have let go:\n%s", out)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sign(t.Context(), keys[0]); err == nil {
		t.Error("signs after Close")
	}
}

// TestLostHandles takes the keys out of the TPM behind the link's back, and fills its slots with what nobody flushes.
func TestLostHandles(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	p := provider(t, Options{Dir: chip.Dir})
	k := made(t, p, chip.URI("a"), hwcrypto.ECDSAP256)
	other := made(t, p, chip.URI("b"), hwcrypto.ECDSAP256)
	c := p.chip(parse(t, chip.URI("a")))
	for range 3 {
		if err := sign(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		if _, err := call(t.Context(), c, func(l *link) (struct{}, error) {
			for _, s := range l.loaded {
				l.flush(s.h.Handle)
			}
			return struct{}{}, nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := sign(t.Context(), k); err != nil {
			t.Errorf("after its handle has gone: %v", err)
		}
		if _, err := call(t.Context(), c, func(l *link) (struct{}, error) {
			for range 2 {
				if _, err := l.load(other.(signer).obj); err != nil {
					return struct{}{}, err
				}
				l.loaded = nil // forgotten, not flushed
			}
			return struct{}{}, nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := sign(t.Context(), k); err != nil {
			t.Errorf("with the slots taken: %v", err)
		}
	}
}

func TestTwoGatewaysOnOneTPM(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	a, b := provider(t, Options{Dir: chip.Dir}), provider(t, Options{Dir: chip.Dir})
	ka := made(t, a, chip.URI("a"), hwcrypto.ECDSAP256)
	kb, err := b.Open(t.Context(), parse(t, chip.URI("a")))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for _, k := range []hwcrypto.Key{ka, kb} {
			if err := sign(t.Context(), k); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestLockoutDoesNotStopOurKeys(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	p := provider(t, Options{Dir: chip.Dir})
	k := made(t, p, chip.URI("a"), hwcrypto.ECDSAP256)
	m := made(t, p, chip.URI("m"), hwcrypto.HMACSHA256)
	sealed, err := k.(hwcrypto.Sealer).Seal(t.Context(), []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	// A key of somebody else's, without noDA, is tried with wrong passwords until the TPM locks.
	c := p.chip(parse(t, chip.URI("a")))
	tmpl := sealTemplate()
	tmpl.ObjectAttributes.NoDA = false
	_, err = call(t.Context(), c, func(l *link) (struct{}, error) {
		s, err := l.storage()
		if err != nil {
			return struct{}{}, err
		}
		r, err := tpm2.Create{ParentHandle: s.handle, InPublic: tpm2.New2B(tmpl), InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")}, Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: []byte("s")})}}}.Execute(l)
		if err != nil {
			return struct{}{}, err
		}
		h, err := l.load((&blob{oidSealed, s.handle.Handle, r.OutPublic, r.OutPrivate}).object())
		if err != nil {
			return struct{}{}, err
		}
		for range 100 {
			_, err = tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))}}.Execute(l)
			if errors.Is(err, tpm2.TPMRCLockout) {
				return struct{}{}, nil
			}
		}
		return struct{}{}, err
	})
	if err != nil {
		t.Fatalf("the TPM did not lock: %v", err)
	}
	if err := sign(t.Context(), k); err != nil {
		t.Errorf("sign: %v", err)
	}
	if _, err := m.(hwcrypto.MACer).MAC(t.Context(), []byte("x")); err != nil {
		t.Errorf("MAC: %v", err)
	}
	if _, err := k.(hwcrypto.Sealer).Unseal(t.Context(), sealed, nil); err != nil {
		t.Errorf("unseal: %v", err)
	}
	// And keys are loaded again after a new connection.
	chip.Kill()
	chip.Start()
	if err := sign(t.Context(), k); err != nil {
		t.Errorf("sign after a restart: %v", err)
	}
}

func TestBusyTPMIsAskedAgain(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	x := keytest.Behind(t, chip)
	p := provider(t, Options{Dir: chip.Dir})
	k := made(t, p, "tpm:name=a;device="+x.Device(), hwcrypto.ECDSAP256)
	x.Answer(uint32(tpm2.TPMRCRetry), uint32(tpm2.TPMRCTesting), uint32(tpm2.TPMRCYielded), uint32(tpm2.TPMRCRetry))
	if err := sign(t.Context(), k); err != nil {
		t.Error(err)
	}
	x.Answer(0x18b) // TPM_RC_HANDLE for the first handle: the key is not loaded any more
	if err := sign(t.Context(), k); err != nil {
		t.Errorf("a handle that is void: %v", err)
	}
}

func TestSilentTPM(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	x := keytest.Behind(t, chip)
	p := provider(t, Options{Dir: chip.Dir, Timeout: 1500 * time.Millisecond})
	k := made(t, p, "tpm:name=a;device="+x.Device(), hwcrypto.ECDSAP256)
	x.Silence(true)
	for range 6 {
		err := sign(t.Context(), k)
		if !errors.Is(err, hwcrypto.ErrTimeout) || !strings.Contains(err.Error(), x.Socket) {
			t.Error(err)
		}
	}
	x.Silence(false)
	begin := time.Now()
	for sign(t.Context(), k) != nil {
		if time.Since(begin) > 30*time.Second {
			t.Fatal("does not recover")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestSlowTPM(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	x := keytest.Behind(t, chip)
	p := provider(t, Options{Dir: chip.Dir})
	k := made(t, p, "tpm:name=a;device="+x.Device(), hwcrypto.ECDSAP256)
	if err := sign(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	x.Delay(5 * time.Second)
	defer x.Delay(0)
	if err := sign(t.Context(), k); err != nil {
		t.Errorf("five seconds are slow and no fault: %v", err)
	}
}

func TestKeyOfAnotherTPM(t *testing.T) {
	t.Parallel()
	one, two := keytest.SWTPM(t), keytest.SWTPM(t)
	p := provider(t, Options{Dir: one.Dir})
	made(t, p, one.URI("a"), hwcrypto.ECDSAP256)
	made(t, p, two.URI("b"), hwcrypto.ECDSAP256)
	_, err := p.Open(t.Context(), parse(t, two.URI("a")))
	if err == nil || errors.Is(err, hwcrypto.ErrNoKey) || !strings.Contains(err.Error(), "not of this TPM") {
		t.Error(err)
	}
}

func TestPersistentHandle(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	p := provider(t, Options{Dir: chip.Dir})
	uri := "tpm:handle=0x81010002;device=" + chip.Device()
	if _, err := p.Open(t.Context(), parse(t, uri)); !errors.Is(err, hwcrypto.ErrNoKey) {
		t.Fatal(err)
	}
	k := made(t, p, uri, hwcrypto.ECDSAP256)
	if err := sign(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Generate(t.Context(), parse(t, uri), hwcrypto.ECDSAP256); !errors.Is(err, hwcrypto.ErrKeyExists) {
		t.Fatal(err)
	}
	sealed, err := k.(hwcrypto.Sealer).Seal(t.Context(), []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.(hwcrypto.Sealer).Unseal(t.Context(), sealed, nil); err != nil {
		t.Fatal(err)
	}
	list, err := p.List(t.Context(), parse(t, uri))
	if err != nil || len(list) != 1 {
		t.Errorf("List: %+v, %v", list, err)
	}
	// A tool of others' confirms what we say of the key.
	out := tool(t, chip, "tpm2_readpublic", "-c", "0x81010002")
	if !strings.Contains(out, "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign") {
		t.Error(out)
	}
}

// TestAttestation checks a statement as a verifier would: signature, nonce, the key's name, and the endorsement certificate.
func TestAttestation(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	p := provider(t, Options{Dir: chip.Dir})
	k := made(t, p, chip.URI("a"), hwcrypto.ECDSAP256)
	a, err := k.(hwcrypto.Attester).Attest(t.Context(), []byte("my nonce"))
	if err != nil {
		t.Fatal(err)
	}
	ak, err := tpm2.Unmarshal[tpm2.TPM2BPublic](a.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	area, err := ak.Contents()
	if err != nil {
		t.Fatal(err)
	}
	point, err := area.Unique.ECC()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ecPublic(tpm2.TPMECCNistP256, point)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(a.Statement)
	if !ecdsa.VerifyASN1(pub, sum[:], a.Signature) {
		t.Error("the signature does not verify")
	}
	s, err := tpm2.Unmarshal[tpm2.TPMSAttest](a.Statement)
	if err != nil {
		t.Fatal(err)
	}
	certify, err := s.Attested.Certify()
	if err != nil {
		t.Fatal(err)
	}
	own := k.(signer)
	name, err := tpm2.ObjectName(&own.area)
	if err != nil {
		t.Fatal(err)
	}
	if string(s.ExtraData.Buffer) != "my nonce" || !bytes.Equal(certify.Name.Buffer, name.Buffer) {
		t.Errorf("%+v", s)
	}
	if len(a.EKChain) == 0 {
		t.Fatal("no endorsement certificate")
	}
	if _, err := x509.ParseCertificate(a.EKChain[0]); err != nil {
		t.Error(err)
	}
	if a.Attributes["fixedTPM"] != "true" {
		t.Errorf("%v", a.Attributes)
	}
	if _, err := k.(hwcrypto.Attester).Attest(t.Context(), make([]byte, 33)); err == nil {
		t.Error("takes a nonce that is too long")
	}
}

func TestForeignStorageKeyIsLeftAlone(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	dir := t.TempDir()
	ctx := filepath.Join(dir, "p.ctx")
	// A storage key under dictionary-attack protection at the usual place.
	tool(t, chip, "tpm2_createprimary", "-C", "o", "-G", "ecc", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt", "-c", ctx)
	tool(t, chip, "tpm2_evictcontrol", "-C", "o", "-c", ctx, "0x81000001")
	tool(t, chip, "tpm2_flushcontext", "-t")
	p := provider(t, Options{Dir: chip.Dir})
	k := made(t, p, chip.URI("a"), hwcrypto.ECDSAP256)
	if err := sign(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	if parent := k.(signer).obj.parent; parent != 0x81000db1 {
		t.Errorf("the key's parent is %#x", uint32(parent))
	}
}

func TestBlobsThatAreNotOurs(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	p := provider(t, Options{Dir: chip.Dir})
	made(t, p, chip.URI("a"), hwcrypto.ECDSAP256)
	for what, b := range map[string][]byte{"rubbish": []byte("rubbish"), "a certificate": []byte("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"), "too long": make([]byte, 1<<20)} {
		if err := os.WriteFile(filepath.Join(chip.Dir, "bad.tpm"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Open(t.Context(), parse(t, chip.URI("bad"))); err == nil || errors.Is(err, hwcrypto.ErrNoKey) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestUsersOfOneTPMAtOnce(t *testing.T) {
	t.Parallel()
	chip := keytest.SWTPM(t)
	p := provider(t, Options{Dir: chip.Dir})
	keys := []hwcrypto.Key{made(t, p, chip.URI("a"), hwcrypto.ECDSAP256), made(t, p, chip.URI("b"), hwcrypto.ECDSAP256), made(t, p, chip.URI("c"), hwcrypto.ECDSAP384)}
	var wg sync.WaitGroup
	for _, k := range keys[:2] {
		wg.Go(func() {
			for range 20 {
				if err := sign(t.Context(), k); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for range 10 {
			if _, err := keys[2].(hwcrypto.Sealer).Seal(t.Context(), []byte("x"), nil); err != nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Wait()
}
