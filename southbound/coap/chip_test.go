package coap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	piondtls "github.com/pion/dtls/v3"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/coap/dtls/dtlstest"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// chipRing makes a ring whose key "identity" is in a chip.
func chipRing(t *testing.T, uri func(string) string, state string) *keyring.Ring {
	t.Helper()
	ring, err := keyring.New(t.Context(), keyring.Options{State: state, BaseDir: state,
		Keys: map[string]*config.Key{"identity": {URI: uri("identity")}, "th-1-psk": {URI: uri("th-1-psk")}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ring.Close() })
	if _, _, err := ring.New(t.Context(), "identity", hwcrypto.ECDSAP256); err != nil {
		t.Fatal(err)
	}
	return ring
}

// done counts what the ring's chips have done.
func done(ring *keyring.Ring) (n uint64) {
	for _, q := range ring.Queues() {
		n += q.Done
	}
	return n
}

// chips calls f for each kind of chip.
func chips(t *testing.T, f func(t *testing.T, uri func(string) string, state string)) {
	t.Run("SoftHSM2", func(t *testing.T) {
		t.Parallel()
		f(t, keytest.SoftHSM(t).URI, t.TempDir())
	})
	t.Run("swtpm", func(t *testing.T) {
		t.Parallel()
		chip := keytest.SWTPM(t)
		f(t, chip.URI, filepath.Dir(chip.Dir)) // the ring keeps blobs in its folder "keys"
	})
}

// inEnv has a driver's listener open in a changed environment.
func inEnv(d southtest.Driver, change func(*southbound.Env)) southtest.Driver {
	d.Kind = func() southbound.Kind {
		k := Kind()
		open := k.Open
		k.Open = func(env southbound.Env, cfg any) (southbound.Listener, error) {
			change(&env)
			return open(env, cfg)
		}
		return k
	}
	return d
}

// TestPSKsStayInTheChip has th-1's key in a chip and th-2's in a file.
func TestPSKsStayInTheChip(t *testing.T) {
	chips(t, func(t *testing.T, uri func(string) string, state string) {
		ring := chipRing(t, uri, state)
		secrets := map[string][]byte{"th-1": []byte("southtest-secret-of-th-1"), "th-2": []byte("southtest-secret-of-th-2")}
		premaster, err := hwcrypto.PSKPremaster(secrets["th-1"])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ring.Import(t.Context(), "th-1-psk", premaster); err != nil {
			t.Fatal(err)
		}
		var read atomic.Int32
		realm, err := auth.NewRealm(t.Context(), &config.Config{Devices: map[string]*config.Device{
			"th-1": {PSK: "key:th-1-psk", PSKIdentity: "th-1"}, "th-2": {PSK: "file:/th-2", PSKIdentity: "th-2"},
		}}, auth.Options{
			MAC: ring.For("pre-shared keys").MAC, Log: slog.New(slog.DiscardHandler), Now: time.Now,
			Secret: func(_ context.Context, ref string) ([]byte, error) {
				read.Add(1)
				if ref != "file:/th-2" {
					return nil, errors.New("there is no such secret")
				}
				return bytes.Clone(secrets["th-2"]), nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer realm.Close()
		b := southtest.Start(t, inEnv(driver(), func(env *southbound.Env) { env.Auth = realm }))
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()

		before := done(ring)
		dev := b.Device(ctx, t, "th-1") // pion's client, with the extended master secret
		if code, err := dev.Report(ctx, "/a", "", nil); err != nil || code != "2.04" {
			t.Fatalf("%s, %v", code, err)
		}
		for _, client := range []string{"coap-client-openssl", "coap-client-gnutls"} { // with all their suites, ECDHE_PSK among them
			out := run(t, client, "-v", "6", "-B", "10", "-u", "th-1", "-k", string(secrets["th-1"]), "-m", "post", "-e", "1", fmt.Sprintf("coaps://%s/a", b.Addr))
			if !strings.Contains(out, "2.04") {
				t.Errorf("%s: %s", client, out)
			}
		}
		if n := done(ring) - before; n < 3*4 {
			t.Errorf("the chip has computed %d HMACs for 3 handshakes", n)
		}
		if n := read.Load(); n != 0 {
			t.Errorf("a secret was read %d times", n)
		}
		if out := run(t, "coap-client-openssl", "-v", "6", "-B", "10", "-u", "th-2", "-k", string(secrets["th-2"]), "-m", "post", "-e", "1", fmt.Sprintf("coaps://%s/b", b.Addr)); !strings.Contains(out, "2.04") || read.Load() == 0 {
			t.Errorf("a device whose key is in a file: %s", out)
		}
		for _, m := range b.Up.Messages() {
			if want := map[string]string{"/a": "th-1", "/b": "th-2"}[m.Resource]; m.Device != want {
				t.Errorf("%s came from %q", m.Resource, m.Device)
			}
		}

		// What the chip cannot do is refused, and so is a wrong key.
		for _, c := range []struct {
			identity, secret string
			suite            piondtls.CipherSuiteID
			count            string
		}{
			{"th-1", string(secrets["th-1"]), piondtls.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256, "handshakes_failed_suite"},
			{"th-1", "wrong", piondtls.TLS_PSK_WITH_AES_128_CCM_8, "handshakes_failed_psk"},
			{"nobody", "wrong", piondtls.TLS_PSK_WITH_AES_128_CCM_8, "handshakes_failed_psk"},
		} {
			was := figures(b)[c.count]
			if _, err := dialPSK(ctx, b.Addr, c.identity, []byte(c.secret), piondtls.WithCipherSuites(c.suite)); err == nil {
				t.Errorf("%s is let in with %v", c.identity, c.suite)
			}
			if figures(b)[c.count] != was+1 {
				t.Errorf("%s with %v: %v", c.identity, c.suite, figures(b))
			}
		}
	})
}

// agreeing are the site's keys, with a chip that makes ephemeral ones.
type agreeing struct {
	southbound.Keys
	southbound.EphemeralKeys
}

func TestECDHEInTheChip(t *testing.T) {
	chips(t, func(t *testing.T, uri func(string) string, state string) {
		ring := chipRing(t, uri, state)
		d := inEnv(driver(), func(env *southbound.Env) { env.Keys = agreeing{env.Keys, ring.For("listener field")} })
		with := d.Configure
		d.Configure = func(s *southtest.Site, cfg any, listen string) {
			with(s, cfg, listen)
			cfg.(*Config).ECDHE = inChip
			cfg.(*Config).HandshakeTimeout = config.Duration(5 * time.Second)
		}
		b := southtest.Start(t, d)
		for _, security := range []string{"psk", "x509"} {
			for _, client := range []string{"coap-client-openssl", "coap-client-gnutls"} {
				before := done(ring)
				out := run(t, client, append(credentials(t, b, security, "th-1"), "-v", "6", "-B", "10", "-m", "post", "-e", "1", fmt.Sprintf("coaps://%s/a", b.Addr))...)
				if !strings.Contains(out, "2.04") {
					t.Errorf("%s with %s: %s", client, security, out)
				}
				if n := done(ring) - before; security == "x509" && n < 2 {
					t.Errorf("%s with %s: the chip was asked %d times", client, security, n)
				}
			}
		}
		// What the chip holds for a client that goes away in the middle is let go of.
		before := done(ring)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		c, err := net.Dial("udp", b.Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := dtlstest.Leave(ctx, c, dtlstest.Options{Suite: "TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8", Roots: b.Roots}); err != nil {
			t.Fatal(err)
		}
		want := before + 1 // that it was made
		if strings.HasPrefix(uri(""), "pkcs11:") {
			want++ // that it was destroyed
		}
		for done(ring) < want && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
		if f := figures(b); ctx.Err() != nil || f["handshakes_failed_timeout"] != 1 && want > before+1 {
			t.Errorf("the chip was asked %d times; %v", done(ring)-before, f)
		}
	})
}
