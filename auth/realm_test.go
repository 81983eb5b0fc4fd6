package auth_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
	if err := os.Remove(b.path("p")); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := try("right", "[2001:db8::2]:6"); err == nil || errors.Is(err, auth.ErrUnknown) {
			t.Fatalf("a file that is away is not a wrong password: %v", err)
		}
	}
	b.write("p", []byte("right"))
	if err := try("right", "[2001:db8::2]:6"); err != nil {
		t.Errorf("the right password does not clear what was before: %v", err)
	}
}

// Devices log in while the file is taken over again and again: each sees one file or the other, whole.
func TestReloadUnderLoad(t *testing.T) {
	old := "[device.d]\ngroups = [\"a\"]\npsk = \"file:k\"\npassword = \"file:p\"\n[[allow]]\ngroups = [\"a\"]\nop = \"report\"\nresources = [\"/a\"]\n"
	fresh := strings.NewReplacer(`"a"`, `"b"`, `"/a"`, `"/b"`).Replace(old)
	b := newBench(t, old, map[string]string{"k": "key", "p": "right"})
	files := []*config.Config{b.config(old), b.config(fresh)}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				id, key, err := b.realm.PSK(t.Context(), "d")
				if err != nil || string(key) != "key" {
					t.Errorf("%v", err)
					return
				}
				if id, err = b.realm.Login(t.Context(), []string{"password"}, auth.Credentials{User: "d", Password: []byte("right"), Remote: from("10.0.0.1:1")}); err != nil {
					t.Errorf("%v", err)
					return
				}
				if a := b.realm.Explain(&id, auth.Report, "", "/"+id.Groups[0]); a != nil && a.Groups[0] != id.Groups[0] {
					t.Errorf("%v by the rule for %v", id.Groups, a.Groups)
				}
			}
		})
	}
	for i := range 200 {
		if err := b.realm.Swap(t.Context(), files[i%2]); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
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

// Who is named on a listener that asks for no credential is in the groups that the file puts that name in.
func TestNobodyProven(t *testing.T) {
	b := newBench(t, "[device.free]\ngroups = [\"g\"]\nsleepy = true\n[device.guarded]\ngroups = [\"g\"]\npsk = \"file:p\"\n", map[string]string{"p": "k"})
	for device, want := range map[string]auth.Identity{
		"free":      {Groups: []string{"g"}, Sleepy: true},
		"guarded":   {Groups: []string{"g"}},
		"anonymous": {},
	} {
		id, err := b.realm.Refresh(t.Context(), auth.Identity{Device: device, Method: "none"})
		if err != nil || id.Device != device || !slices.Equal(id.Groups, want.Groups) || id.Sleepy != want.Sleepy {
			t.Errorf("%s: %+v, %v", device, id, err)
		}
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
