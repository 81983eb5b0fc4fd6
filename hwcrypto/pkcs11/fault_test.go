//go:build cgo

package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

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

func made(t *testing.T, p *Provider, uri string) *signer {
	t.Helper()
	k, err := p.Generate(t.Context(), parse(t, uri), hwcrypto.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	return k.(*signer)
}

func sign(ctx context.Context, k hwcrypto.Key) error {
	_, err := k.(hwcrypto.ContextSigner).SignContext(ctx, make([]byte, 32), crypto.SHA256)
	return err
}

// recovers waits until signing goes again.
func recovers(t *testing.T, k hwcrypto.Key) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		err := sign(t.Context(), k)
		if err == nil {
			t.Logf("signing again after %v", time.Since(begin).Round(time.Millisecond))
			return
		}
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("after 30 s still: %v", err)
		}
	}
}

func TestLossesThatTheNextOperationMends(t *testing.T) {
	t.Parallel()
	k := made(t, provider(t, Options{}), keytest.SoftHSM(t).URI("a"))
	m := k.t.id.module
	for what, lose := range map[string]func() error{
		"all sessions are closed":       func() error { return m.ctx.CloseAllSessions(k.t.slot) },
		"somebody logs out":             func() error { return m.ctx.Logout(k.t.anchor) },
		"somebody finalizes the module": func() error { return m.ctx.Finalize() },
		"a session is closed":           func() error { k.t.mu.Lock(); defer k.t.mu.Unlock(); return m.ctx.CloseSession(k.t.free[0]) },
	} {
		if err := sign(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		if err := lose(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := sign(t.Context(), k); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := k.Describe(t.Context()); err != nil {
			t.Errorf("%s: Describe: %v", what, err)
		}
	}
}

func TestLossesUnderLoad(t *testing.T) {
	t.Parallel()
	k := made(t, provider(t, Options{}), keytest.SoftHSM(t).URI("a"))
	m := k.t.id.module
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := sign(t.Context(), k); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 10 {
		time.Sleep(20 * time.Millisecond)
		k.t.mu.Lock() // only those that nobody works in: SoftHSM2 does not bear the other
		for _, h := range append(slices.Clone(k.t.free), k.t.anchor) {
			_ = m.ctx.CloseSession(h) // the anchor may be lost since the last time
		}
		k.t.mu.Unlock()
	}
	close(stop)
	wg.Wait()
}

func TestTokenRemovedAndBack(t *testing.T) {
	t.Parallel()
	token := keytest.SoftHSM(t)
	p := provider(t, Options{})
	k := made(t, p, token.URI("a"))
	away := token.Dir + ".away"
	if err := os.Rename(token.Dir, away); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := sign(t.Context(), k); !errors.Is(err, hwcrypto.ErrNoToken) || !strings.Contains(err.Error(), token.Label) {
			t.Errorf("without its token: %v", err)
		}
	}
	if err := os.Rename(away, token.Dir); err != nil {
		t.Fatal(err)
	}
	recovers(t, k)
}

func TestTokenComesBackWhileAnotherIsAtWork(t *testing.T) {
	t.Parallel()
	first := keytest.SoftHSM(t)
	second := first.Another(t)
	p := provider(t, Options{})
	busy, k := made(t, p, first.URI("a")), made(t, p, second.URI("a"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := sign(t.Context(), busy); err != nil {
					t.Errorf("the other token: %v", err)
					return
				}
			}
		})
	}
	defer wg.Wait()
	defer close(stop)
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Rename(second.Dir, away); err != nil {
		t.Fatal(err)
	}
	if err := sign(t.Context(), k); !errors.Is(err, hwcrypto.ErrNoToken) {
		t.Errorf("without its token: %v", err)
	}
	if err := os.Rename(away, second.Dir); err != nil {
		t.Fatal(err)
	}
	recovers(t, k)
}

func TestTokenThatComesAfterTheStart(t *testing.T) {
	t.Parallel()
	token := keytest.SoftHSM(t)
	away := token.Dir + ".away"
	if err := os.Rename(token.Dir, away); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(token.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p := provider(t, Options{})
	if _, err := p.Open(t.Context(), parse(t, token.URI("a"))); !errors.Is(err, hwcrypto.ErrNoToken) || !strings.Contains(err.Error(), token.Label) {
		t.Fatal(err)
	}
	if err := os.Remove(token.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, token.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(t.Context(), parse(t, token.URI("a"))); !errors.Is(err, hwcrypto.ErrNoKey) {
		t.Fatal(err)
	}
}

func TestWrongPINIsTriedOnce(t *testing.T) {
	t.Parallel()
	token := keytest.Faulty(t)
	if err := os.WriteFile(token.PINFile, []byte("0000"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := provider(t, Options{})
	u := parse(t, token.URI("a"))
	for range 5 {
		if _, err := p.Open(t.Context(), u); !errors.Is(err, hwcrypto.ErrPIN) || strings.Contains(err.Error(), "0000") {
			t.Fatalf("Open: %v", err)
		}
	}
	if n := token.Logins(); n != 1 {
		t.Errorf("%d log-ins", n)
	}
	if err := os.WriteFile(token.PINFile, []byte(token.PIN), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sign(t.Context(), made(t, p, token.URI("a"))); err != nil {
		t.Errorf("with the right one: %v", err)
	}
	if n := token.Logins(); n != 2 {
		t.Errorf("%d log-ins", n)
	}
	if err := os.Chmod(token.PINFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := provider(t, Options{}).Open(t.Context(), u); err != nil {
		t.Errorf("the process is logged in, so the PIN's file is not asked for: %v", err)
	}
}

func TestPINOthersMayRead(t *testing.T) {
	t.Parallel()
	token := keytest.SoftHSM(t)
	if err := os.Chmod(token.PINFile, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := provider(t, Options{}).Open(t.Context(), parse(t, token.URI("a")))
	var h interface{ Hint() string }
	if err == nil || !errors.As(err, &h) || !strings.HasPrefix(h.Hint(), "chmod 600 ") {
		t.Fatal(err)
	}
}

func TestSlowAndHangingSignatures(t *testing.T) {
	t.Parallel()
	token := keytest.Faulty(t)
	k := made(t, provider(t, Options{Timeout: 2 * time.Second, Workers: 2}), token.URI("a"))
	token.Set("hang", "1")
	err := sign(t.Context(), k)
	if !errors.Is(err, hwcrypto.ErrTimeout) || !strings.Contains(err.Error(), token.Label) {
		t.Error(err)
	}
	// Another operation of the same token goes on in another session.
	if _, err := k.Describe(t.Context()); err != nil {
		t.Errorf("beside a call that hangs: %v", err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := sign(t.Context(), k); err == nil {
				t.Error("signed by a module that hangs")
			}
		})
	}
	wg.Wait()
	token.Set("hang", "")
	recovers(t, k)
}

func TestFiveSecondsAreSlowAndNoFault(t *testing.T) {
	t.Parallel()
	token := keytest.Faulty(t)
	k := made(t, provider(t, Options{}), token.URI("a"))
	token.Set("sleep", "5")
	if err := sign(t.Context(), k); err != nil {
		t.Error(err)
	}
}

func TestGeneralErrorIsNotTheLossOfTheToken(t *testing.T) {
	t.Parallel()
	token := keytest.Faulty(t)
	k := made(t, provider(t, Options{}), token.URI("a"))
	logins, epoch := token.Logins(), k.t.epoch
	token.Set("rv", "5")
	if err := sign(t.Context(), k); !is(err, pkcs11.CKR_GENERAL_ERROR) {
		t.Errorf("want CKR_GENERAL_ERROR, without a second try: %v", err)
	}
	if err := sign(t.Context(), k); err != nil {
		t.Error(err)
	}
	if k.t.epoch != epoch {
		t.Error("all sessions were dropped")
	}
	if n := token.Logins(); n-logins > 1 {
		t.Errorf("%d log-ins more", n-logins)
	}
	for what, rv := range map[string]string{"CKR_DEVICE_REMOVED": "32", "CKR_DEVICE_ERROR": "30", "CKR_TOKEN_NOT_PRESENT": "e0", "CKR_USER_NOT_LOGGED_IN": "101", "CKR_KEY_HANDLE_INVALID": "60"} {
		k.t.mu.Lock()
		k.t.lookAt = time.Time{} // it has been looked for a moment ago
		k.t.mu.Unlock()
		token.Set("rv", rv)
		if err := sign(t.Context(), k); err != nil {
			t.Errorf("once %s: %v", what, err)
		}
	}
}

func TestAmbiguousAndPartialMatches(t *testing.T) {
	t.Parallel()
	token := keytest.SoftHSM(t)
	p := provider(t, Options{})
	made(t, p, token.URI("one;id=%01"))
	made(t, p, token.URI("one;id=%02"))
	made(t, p, token.URI("two;id=%03"))
	for object, want := range map[string]error{
		"one": hwcrypto.ErrAmbiguous, "one;id=%01": nil, "one;id=%03": hwcrypto.ErrNoKey, "two;id=%01": hwcrypto.ErrNoKey, "two": nil,
		"two;type=secret-key": hwcrypto.ErrNoKey, "two;serial=0": hwcrypto.ErrNoToken,
	} {
		if _, err := p.Open(t.Context(), parse(t, token.URI(object))); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", object, err, want)
		}
	}
	if _, err := p.Generate(t.Context(), parse(t, token.URI("one")), hwcrypto.ECDSAP256); !errors.Is(err, hwcrypto.ErrKeyExists) {
		t.Errorf("Generate where two are: %v", err)
	}
	list, err := p.List(t.Context(), parse(t, token.URI("any")))
	if err != nil || len(list) != 3 {
		t.Errorf("List: %+v, %v", list, err)
	}
}

func TestWeakKeysSaySo(t *testing.T) {
	t.Parallel()
	token := keytest.SoftHSM(t)
	tool := needs.Program(t, "pkcs11-tool")
	out, err := exec.Command(tool, "--module", token.Module, "--token-label", token.Label, "--login", "--pin", token.PIN, "--keypairgen",
		"--key-type", "EC:prime256v1", "--label", "weak", "--id", "07", "--extractable", "--usage-sign").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p := provider(t, Options{})
	k, err := p.Open(t.Context(), parse(t, token.URI("weak")))
	if err != nil {
		t.Fatal(err)
	}
	i, err := k.(hwcrypto.Describer).Describe(t.Context())
	if err != nil || !i.Extractable || len(i.Weak) == 0 {
		t.Errorf("%+v, %v", i, err)
	}
	// And a tool of others' sees our keys as we say that they are.
	made(t, p, token.URI("ours"))
	out, err = exec.Command(tool, "--module", token.Module, "--token-label", token.Label, "--login", "--pin", token.PIN, "--list-objects", "--type", "privkey").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "sensitive, always sensitive, never extractable, local") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestTwoGatewaysOnOneToken(t *testing.T) {
	t.Parallel()
	token := keytest.SoftHSM(t)
	a, b := provider(t, Options{}), provider(t, Options{})
	ka := made(t, a, token.URI("shared"))
	kb, err := b.Open(t.Context(), parse(t, token.URI("shared")))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, k := range []hwcrypto.Key{ka, kb} {
		for range 4 {
			wg.Go(func() {
				for range 50 {
					if err := sign(t.Context(), k); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	sealed, err := ka.Seal(t.Context(), []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := kb.(hwcrypto.Sealer).Unseal(t.Context(), sealed, nil); err != nil || string(plain) != "x" {
		t.Errorf("%q, %v", plain, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sign(t.Context(), kb); err != nil {
		t.Errorf("after the other has gone: %v", err)
	}
}

func TestEverythingAtOnceInOneToken(t *testing.T) {
	t.Parallel()
	token := keytest.SoftHSM(t)
	p := provider(t, Options{})
	k := made(t, p, token.URI("a"))
	dh, err := p.Generate(t.Context(), parse(t, token.URI("dh")), hwcrypto.ECDHP256)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for what, f := range map[string]func() error{
		"sign": func() error { return sign(t.Context(), k) },
		"generate": func() error {
			_, err := p.Generate(t.Context(), parse(t, token.URI(rand.Text())), hwcrypto.ECDSAP256)
			return err
		},
		"import": func() error {
			_, err := p.Import(t.Context(), parse(t, token.URI(rand.Text())), []byte("s"))
			return err
		},
		"seal":     func() error { _, err := k.Seal(t.Context(), []byte("x"), nil); return err },
		"agree":    func() error { _, err := dh.(hwcrypto.Agreer).ECDH(t.Context(), peer.PublicKey()); return err },
		"list":     func() error { _, err := p.List(t.Context(), parse(t, token.URI("a"))); return err },
		"describe": func() error { _, err := k.Describe(t.Context()); return err },
		"open":     func() error { _, err := p.Open(t.Context(), parse(t, token.URI("a"))); return err },
	} {
		for range 2 {
			wg.Go(func() {
				for range 6 {
					if err := f(); err != nil {
						t.Errorf("%s: %v", what, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}
