package auth_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
)

// bench is a realm with its secrets in memory and its clock in hand.
type bench struct {
	t       *testing.T
	dir     string
	clock   atomic.Int64 // Unix seconds
	secrets map[string]string
	reads   atomic.Int64
	tracker *health.Tracker
	realm   *auth.Realm
}

type listener struct {
	DeviceCRL config.Path `toml:"device_crl"`
}

var kinds = config.Kinds{Listeners: map[string]func() any{"test": func() any { return &listener{} }}}

func newBench(t *testing.T, text string, secrets map[string]string) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), secrets: secrets}
	b.clock.Store(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC).Unix())
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	b.tracker = health.New(log, b.now)
	realm, err := auth.NewRealm(t.Context(), b.config(text), auth.Options{Secret: b.secret, Log: log, Health: b.tracker, Now: b.now})
	if err != nil {
		t.Fatal(err)
	}
	b.realm = realm
	t.Cleanup(func() { realm.Close() })
	return b
}

func (b *bench) now() time.Time          { return time.Unix(b.clock.Load(), 0).UTC() }
func (b *bench) advance(d time.Duration) { b.clock.Add(int64(d / time.Second)) }
func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }
func (b *bench) write(name string, data []byte) {
	b.t.Helper()
	if err := os.WriteFile(b.path(name), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) config(text string) *config.Config {
	b.t.Helper()
	text = "[gateway]\nid = \"gw\"\n" + strings.ReplaceAll(text, "DIR", b.dir)
	for name := range b.secrets {
		b.write(name, []byte(b.secrets[name]))
	}
	cfg, err := config.Parse(b.path("test.toml"), []byte(text), kinds)
	if err != nil {
		b.t.Fatal(err)
	}
	return cfg
}

func (b *bench) swap(text string) {
	b.t.Helper()
	if err := b.realm.Swap(b.t.Context(), b.config(text)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) secret(_ context.Context, ref string) ([]byte, error) {
	b.reads.Add(1)
	data, err := os.ReadFile(strings.TrimPrefix(ref, "file:"))
	return bytes.TrimSuffix(data, []byte("\n")), err
}

func (b *bench) problems() (names []string) {
	for _, p := range b.tracker.Problems() {
		names = append(names, p.Code)
	}
	return names
}

const pskFile = `
[device.th-17]
groups = ["thermostat", "attic"]
psk = "file:th-17.psk"
sleepy = true
[device.th-18]
psk = "file:th-18.psk"
psk_identity = "eighteen"
`

func TestPSK(t *testing.T) {
	b := newBench(t, pskFile, map[string]string{"th-17.psk": "hex:00ff10\n", "th-18.psk": "sesame\n"})
	id, key, err := b.realm.PSK(t.Context(), "th-17")
	if err != nil || hex.EncodeToString(key) != "00ff10" {
		t.Fatal(id, key, err)
	}
	if id.Device != "th-17" || !slices.Equal(id.Groups, []string{"attic", "thermostat"}) || id.Method != "psk" || !id.Sleepy {
		t.Errorf("%+v", id)
	}
	if id, key, err = b.realm.PSK(t.Context(), "eighteen"); err != nil || id.Device != "th-18" || string(key) != "sesame" {
		t.Error(id, key, err)
	}
	for _, identity := range []string{"th-18", "", "TH-17", "th-17\x00"} {
		before := b.reads.Load()
		if _, key, err := b.realm.PSK(t.Context(), identity); !errors.Is(err, auth.ErrUnknown) || key != nil {
			t.Errorf("%q: %v", identity, err)
		}
		if b.reads.Load() != before+1 {
			t.Errorf("%q: an unknown identity is cheaper than a known one", identity)
		}
	}
	b.write("th-17.psk", []byte("hex:zz"))
	if _, _, err := b.realm.PSK(t.Context(), "th-17"); err == nil || errors.Is(err, auth.ErrUnknown) || strings.Contains(err.Error(), "zz") {
		t.Errorf("a bad file: %v", err)
	}
}

func TestRefreshAfterReload(t *testing.T) {
	b := newBench(t, pskFile, map[string]string{"th-17.psk": "a", "th-18.psk": "b"})
	id, _, err := b.realm.PSK(t.Context(), "th-17")
	if err != nil {
		t.Fatal(err)
	}
	b.swap("[device.th-17]\ngroups = [\"cellar\"]\npsk = \"file:th-17.psk\"\n")
	if id, err = b.realm.Refresh(t.Context(), id); err != nil || !slices.Equal(id.Groups, []string{"cellar"}) || id.Sleepy {
		t.Errorf("%+v, %v", id, err)
	}
	b.swap("[device.th-17]\npsk = \"file:th-17.psk\"\npsk_identity = \"other\"\n")
	if _, err := b.realm.Refresh(t.Context(), id); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("its identity is gone: %v", err)
	}
	b.swap("")
	if _, err := b.realm.Refresh(t.Context(), id); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("the device is gone: %v", err)
	}
}

// authority is a test CA.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, now time.Time) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "devices CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(10000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1, 2, 3},
	}
	return &authority{t, key, sign(t, tmpl, tmpl, key.Public(), key)}
}

func sign(t *testing.T, tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issue makes a chain for a device.
func (a *authority) issue(serial int64, cn string, sans ...string) []*x509.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn}, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotBefore.Add(100 * time.Hour)}
	for _, s := range sans {
		if u, err := url.Parse(s); err == nil && u.Scheme != "" {
			tmpl.URIs = append(tmpl.URIs, u)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, s)
		}
	}
	return []*x509.Certificate{sign(a.t, tmpl, a.cert, key.Public(), a.key), a.cert}
}

func (a *authority) crl(number int64, next time.Time, serials ...int64) []byte {
	a.t.Helper()
	tmpl := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: a.cert.NotBefore, NextUpdate: next}
	for _, s := range serials {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: a.cert.NotBefore})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

const certFile = `
[device.press-3]
groups = ["press"]
[device.boiler]
cert = "boiler.plant7.example"
[device.pinned]
cert = "sha256:FINGERPRINT"
[device.keyed]
psk = "file:keyed.psk"
cert = "elsewhere"
[group.meter]
san = "*.meters.plant7.example"
[group.all-plant7]
san = "*.meters.plant7.example"
[group.pump]
cn = "pump-*"
`

func TestCertificates(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	ca := newAuthority(t, now)
	pinned := ca.issue(7, "whatever")
	sum := sha256.Sum256(pinned[0].Raw)
	b := newBench(t, strings.Replace(certFile, "FINGERPRINT", hex.EncodeToString(sum[:]), 1), map[string]string{"keyed.psk": "k"})
	for name, c := range map[string]struct {
		chain  []*x509.Certificate
		device string
		groups string
	}{
		"a device's name as the CN":                        {ca.issue(2, "press-3"), "press-3", "press"},
		"a device's name as a SAN":                         {ca.issue(2, "", "press-3"), "press-3", "press"},
		"a SAN that a device names":                        {ca.issue(2, "x", "boiler.plant7.example"), "boiler", ""},
		"DNS names in any case":                            {ca.issue(2, "x", "Boiler.Plant7.Example"), "boiler", ""},
		"the name of a device that names another":          {ca.issue(2, "boiler"), "", ""},
		"a pinned fingerprint":                             {pinned, "pinned", ""},
		"the name of a pinned device on another":           {ca.issue(2, "pinned"), "", ""},
		"a SAN that two groups take":                       {ca.issue(2, "x", "m1.meters.plant7.example"), "m1.meters.plant7.example", "all-plant7,meter"},
		"a SAN in capitals names the device in small":      {ca.issue(2, "x", "M1.meters.PLANT7.example"), "m1.meters.plant7.example", "all-plant7,meter"},
		"a star takes one label":                           {ca.issue(2, "x", "a.b.meters.plant7.example"), "", ""},
		"a star takes not nothing":                         {ca.issue(2, "x", ".meters.plant7.example"), "", ""},
		"a CN is no SAN":                                   {ca.issue(2, "m1.meters.plant7.example"), "", ""},
		"a CN that a group takes":                          {ca.issue(2, "pump-9"), "pump-9", "pump"},
		"a SAN is no CN":                                   {ca.issue(2, "", "pump-9"), "", ""},
		"a name with a slash is no device's":               {ca.issue(2, "pump-a/b"), "", ""},
		"names of two devices":                             {ca.issue(2, "press-3", "boiler.plant7.example"), "", ""},
		"a device that is in a group by its certificate":   {ca.issue(2, "press-3", "m2.meters.plant7.example"), "press-3", "all-plant7,meter,press"},
		"a group cannot give the name of a device":         {ca.issue(2, "x", "nobody"), "", ""},
		"the name of a device whose certificate is other":  {ca.issue(2, "keyed"), "", ""},
		"the name that such a device gives its credential": {ca.issue(2, "elsewhere"), "keyed", ""},
		"nothing at all":                                   {nil, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := b.realm.Certificate(t.Context(), "l", c.chain)
			if c.device == "" {
				if !errors.Is(err, auth.ErrUnknown) {
					t.Errorf("taken for %+v, %v", id, err)
				}
				return
			}
			if err != nil || id.Device != c.device || strings.Join(id.Groups, ",") != c.groups {
				t.Fatalf("%+v, %v", id, err)
			}
			if id.Method != "x509" || len(id.Credential) != 64 || !id.Expires.Equal(c.chain[0].NotAfter) {
				t.Errorf("%+v", id)
			}
			again, err := b.realm.Refresh(t.Context(), id)
			if err != nil || again.Device != id.Device || !slices.Equal(again.Groups, id.Groups) {
				t.Errorf("after a refresh: %+v, %v", again, err)
			}
		})
	}
	chain := ca.issue(2, "press-3")
	id, err := b.realm.Certificate(t.Context(), "l", chain)
	if err != nil {
		t.Fatal(err)
	}
	b.advance(200 * time.Hour)
	if _, err := b.realm.Certificate(t.Context(), "l", chain); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("an expired certificate: %v", err)
	}
	if _, err := b.realm.Refresh(t.Context(), id); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("a session whose certificate has expired: %v", err)
	}
}

func TestRevocation(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	ca, other := newAuthority(t, now), newAuthority(t, now)
	file := "[device.press-3]\n[listener.shop]\ntype = \"test\"\ndevice_crl = \"DIR/crl.pem\"\n"
	b := newBench(t, file, map[string]string{"crl.pem": string(ca.crl(1, now.Add(time.Hour), 99))})
	good, bad := ca.issue(2, "press-3"), ca.issue(99, "press-3")
	id, err := b.realm.Certificate(t.Context(), "shop", good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.realm.Certificate(t.Context(), "shop", bad); !errors.Is(err, auth.ErrUnknown) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("revoked: %v", err)
	}
	if _, err := b.realm.Certificate(t.Context(), "elsewhere", bad); err != nil {
		t.Errorf("another listener has no list: %v", err)
	}

	b.write("crl.pem", other.crl(2, now.Add(time.Hour), 2, 99))
	b.advance(11 * time.Second)
	if _, err := b.realm.Certificate(t.Context(), "shop", good); err != nil {
		t.Errorf("a list that another key has signed counts: %v", err)
	}
	b.write("crl.pem", append(ca.crl(3, now.Add(time.Hour), 2), "\n"...))
	b.advance(11 * time.Second)
	if _, err := b.realm.Refresh(t.Context(), id); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("a session whose certificate has been revoked: %v", err)
	}
	if p := b.problems(); len(p) > 0 {
		t.Errorf("problems: %v", p)
	}

	b.write("crl.pem", []byte("no list"))
	b.advance(11 * time.Second)
	if _, err := b.realm.Certificate(t.Context(), "shop", good); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("the last good list does not stay in force: %v", err)
	}
	if p := b.problems(); !slices.Contains(p, "crl-unreadable") {
		t.Errorf("problems: %v", p)
	}
	b.advance(time.Hour)
	if b.realm.Certificate(t.Context(), "shop", good); !slices.Contains(b.problems(), "crl-stale") {
		t.Errorf("problems: %v", b.problems())
	}
}

func from(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestPasswords(t *testing.T) {
	file := `
[device.plain]
password = "file:plain"
[device.argon]
password = "file:argon"
groups = ["press"]
[device.bcrypt]
password = "file:bcrypt"
[device.none]
`
	b := newBench(t, file, map[string]string{
		"plain":  "open sesame\n",
		"argon":  auth.HashPassword([]byte("tell nobody")) + "\n",
		"bcrypt": "$2y$05$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe",
	})
	login := func(user, password, remote string) (auth.Identity, error) {
		return b.realm.Login(t.Context(), []string{"x509", "password"}, auth.Credentials{User: user, Password: []byte(password), Remote: from(remote)})
	}
	for user, password := range map[string]string{"plain": "open sesame", "argon": "tell nobody", "bcrypt": "password"} {
		id, err := login(user, password, "10.0.0.1:1")
		if err != nil || id.Device != user || id.Method != "password" || id.Credential != user {
			t.Errorf("%s: %+v, %v", user, id, err)
		}
		for _, wrong := range []string{"", password + "\n", strings.ToUpper(password)} {
			if _, err := login(user, wrong, "10.0.0.2:1"); !errors.Is(err, auth.ErrUnknown) {
				t.Errorf("%s with %q: %v", user, wrong, err)
			}
		}
	}
	for _, user := range []string{"", "none", "nobody"} {
		if _, err := login(user, "open sesame", "10.0.0.3:1"); !errors.Is(err, auth.ErrUnknown) {
			t.Errorf("%q: %v", user, err)
		}
	}
}

func TestWrongPasswordsMakeWait(t *testing.T) {
	b := newBench(t, "[device.d]\npassword = \"file:p\"\n", map[string]string{"p": "right"})
	try := func(password, remote string) error {
		_, err := b.realm.Login(t.Context(), []string{"password"}, auth.Credentials{User: "d", Password: []byte(password), Remote: from(remote)})
		return err
	}
	for range 5 {
		if err := try("wrong", "[2001:db8::1]:5"); errors.Is(err, auth.ErrBackoff) || !errors.Is(err, auth.ErrUnknown) {
			t.Fatal(err)
		}
	}
	if err := try("right", "[2001:db8::2]:6"); !errors.Is(err, auth.ErrBackoff) {
		t.Errorf("the same network need not wait: %v", err)
	}
	if err := try("right", "[2001:db9::2]:6"); err != nil {
		t.Errorf("another network has to wait: %v", err)
	}
	b.advance(2 * time.Second)
	if err := try("wrong", "[2001:db8::2]:6"); errors.Is(err, auth.ErrBackoff) {
		t.Errorf("it waited: %v", err)
	}
	b.advance(time.Second)
	if err := try("right", "[2001:db8::2]:6"); !errors.Is(err, auth.ErrBackoff) {
		t.Errorf("the second wait is no longer than the first: %v", err)
	}
	b.advance(10 * time.Second)
	if err := try("right", "[2001:db8::2]:6"); err != nil {
		t.Error(err)
	}
	for range 4 {
		try("wrong", "[2001:db8::2]:6")
	}
	if err := try("right", "[2001:db8::2]:6"); err != nil {
		t.Errorf("the right password does not clear what was before: %v", err)
	}
}

func TestAnonymous(t *testing.T) {
	b := newBench(t, "[device.free]\ngroups = [\"g\"]\n[device.guarded]\npsk = \"file:p\"\n", map[string]string{"p": "k"})
	for name, c := range map[string]struct {
		client, remote, device string
	}{
		"a client id becomes the device":                    {"sensor-1", "127.0.0.1:9", "sensor-1"},
		"a device without a credential may be named":        {"free", "[::1]:9", "free"},
		"a device with a credential may not":                {"guarded", "127.0.0.1:9", ""},
		"nobody is anonymous from elsewhere":                {"sensor-1", "10.1.1.1:9", ""},
		"a client id that cannot be a level of a topic":     {"a/b", "127.0.0.1:9", ""},
		"a client id that would match other devices' rules": {"+", "127.0.0.1:9", ""},
		"none at all": {"", "127.0.0.1:9", ""},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := b.realm.Login(t.Context(), []string{"anonymous"}, auth.Credentials{ClientID: c.client, Remote: from(c.remote)})
			if (err == nil) != (c.device != "") || id.Device != c.device {
				t.Errorf("%+v, %v", id, err)
			}
		})
	}
}

func TestLookup(t *testing.T) {
	b := newBench(t, strings.Replace(certFile, "FINGERPRINT", strings.Repeat("ab", 32), 1), map[string]string{"keyed.psk": "k"})
	if id, ok := b.realm.Lookup("press-3"); !ok || !slices.Equal(id.Groups, []string{"press"}) {
		t.Errorf("%+v %v", id, ok)
	}
	if id, ok := b.realm.Lookup("m1.meters.plant7.example"); !ok || len(id.Groups) != 2 {
		t.Errorf("%+v %v", id, ok)
	}
	if id, ok := b.realm.Lookup("nobody"); ok {
		t.Errorf("%+v", id)
	}
}
