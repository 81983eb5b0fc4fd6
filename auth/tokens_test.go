package auth_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
	"github.com/drawbridge/drawbridge/hwcrypto/keytest"
	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/needs"
)

// gateway has the token sources of a gateway, and its clock in hand.
type gateway struct {
	*auth.Tokens
	t       *testing.T
	state   string
	began   time.Time    // its clock stands at this
	ahead   atomic.Int64 // and so many nanoseconds
	tracker *health.Tracker
}

func (g *gateway) now() time.Time          { return g.began.Add(time.Duration(g.ahead.Load())) }
func (g *gateway) advance(d time.Duration) { g.ahead.Add(int64(d)) }

func newGateway(t *testing.T, i *issuer, state string, tokens map[string]*config.Token) *gateway {
	t.Helper()
	g := &gateway{t: t, state: state, began: time.Now()}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	g.tracker = health.New(log, g.now)
	for _, c := range tokens {
		c.CA = config.Path(filepath.Join(i.dir, "ca.crt"))
		if c.Issuer == "" && c.TokenURL == "" {
			c.Issuer = i.url
		}
		if c.Grant == "" {
			c.Grant = "client_credentials"
		}
	}
	var err error
	g.Tokens, err = auth.NewTokens(t.Context(), tokens, auth.TokenOptions{Keys: i.chip, State: state, Log: log, Health: g.tracker, Now: g.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func (g *gateway) get(name string) (auth.Token, error) {
	s, err := g.Source(name)
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), 30*time.Second)
	defer cancel()
	return s.Token(ctx)
}

// claims reads the payload of a JSON web token without checking it.
func claims(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("no JSON web token: %d parts", len(parts))
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestIssuer holds every grant and every way to show who one is against a certified provider.
func TestIssuer(t *testing.T) {
	i := startIssuer(t, newChip(t))
	resource := map[string]string{"resource": "urn:iot"}
	iot := []string{"iot"}
	tokens := map[string]*config.Token{
		"basic":    {ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret", Scopes: iot, Params: resource},
		"post":     {ClientID: "post", ClientAuth: "client_secret_post", ClientSecret: "file:/secret"},
		"pkjwt":    {ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Scopes: iot, Params: resource},
		"audience": {ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Audience: i.url},
		"url":      {TokenURL: i.url + "/token", ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec"},
		"ps256":    {ClientID: "ps256", ClientAuth: "private_key_jwt", Key: "rsa"},
		"tls":      {ClientID: "tls", ClientAuth: "tls", Key: "tls", Scopes: iot, Params: resource},
		"dpop":     {ClientID: "dpop", ClientAuth: "private_key_jwt", Key: "ec", DPoP: true, Scopes: iot, Params: resource},
		"bearer":   {ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Grant: "jwt_bearer", Subject: "plant7"},
		"exchange": {ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret", Grant: "token_exchange", SubjectToken: "pkjwt"},
		"wrong":    {ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "tls"},
		"other":    {ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Audience: "https://elsewhere.example"},
	}
	thumbprint := func(key string) string {
		s, err := auth.Thumbprint(i.chip.keys[key].Public())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}

	t.Run("every kind of client gets a token", func(t *testing.T) {
		g := newGateway(t, i, t.TempDir(), tokens)
		for _, name := range []string{"basic", "post", "pkjwt", "audience", "url", "ps256", "tls", "dpop", "bearer", "exchange"} {
			token, err := g.get(name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			left := token.Expires.Sub(g.now())
			if left < 250*time.Second || left > 301*time.Second || !token.Renew.Before(token.Expires) || strings.Contains(fmt.Sprintf("%v %+v %#v", token, token, token), token.Value) {
				t.Errorf("%s: %v, renewed at %v", name, token, token.Renew)
			}
			switch name {
			case "pkjwt", "basic":
				if c := claims(t, token.Value); c["aud"] != "urn:iot" || c["client_id"] != name {
					t.Errorf("%s: %v", name, c)
				}
			case "tls":
				cnf, _ := claims(t, token.Value)["cnf"].(map[string]any)
				if cnf["x5t#S256"] == nil {
					t.Errorf("the token is not bound to the certificate: %v", cnf)
				}
			case "dpop":
				cnf, _ := claims(t, token.Value)["cnf"].(map[string]any)
				if cnf["jkt"] != thumbprint("ec") || token.Type != "DPoP" {
					t.Errorf("the token is not bound to the key: %v %s", cnf, token.Type)
				}
			case "bearer":
				if token.Value != "pkjwt:plant7" {
					t.Errorf("%s: %s", name, token.Value)
				}
			}
		}
		for _, name := range []string{"wrong", "other"} {
			_, err := g.get(name)
			if e, ok := errors.AsType[*auth.TokenError](err); !ok || e.Code != "invalid_client" {
				t.Errorf("%s: %v", name, err)
			}
		}
	})

	t.Run("a nonce that is wanted is given", func(t *testing.T) {
		i.turn("nonce?on=1")
		defer i.turn("nonce?on=0")
		g := newGateway(t, i, t.TempDir(), tokens)
		if token, err := g.get("dpop"); err != nil || token.Type != "DPoP" {
			t.Error(err)
		}
	})

	t.Run("an issuer whose clock differs", func(t *testing.T) {
		for _, seconds := range []int{-600, 600, 40 * 365 * 24 * 3600} {
			i.turn(fmt.Sprintf("skew?seconds=%d", seconds))
			g := newGateway(t, i, t.TempDir(), tokens)
			for _, name := range []string{"pkjwt", "dpop", "bearer"} {
				if token, err := g.get(name); err != nil {
					t.Errorf("%d s, %s: %v", seconds, name, err)
				} else if left := token.Expires.Sub(g.now()); left < 250*time.Second || left > 301*time.Second {
					t.Errorf("%d s, %s: the token is taken to live %v", seconds, name, left)
				}
			}
		}
		i.turn("skew?seconds=0")
	})

	t.Run("one request serves all, and the token lasts through an outage", func(t *testing.T) {
		g := newGateway(t, i, t.TempDir(), tokens)
		var wg sync.WaitGroup
		var mu sync.Mutex
		seen := map[string]bool{}
		for range 50 {
			wg.Go(func() {
				token, err := g.get("pkjwt")
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				seen[token.Value] = true
				mu.Unlock()
			})
		}
		wg.Wait()
		if len(seen) != 1 {
			t.Fatalf("%d tokens", len(seen))
		}
		first, _ := g.get("pkjwt")
		i.turn("down?on=1")
		g.advance(260 * time.Second) // due, and 40 s are left
		if token, err := g.get("pkjwt"); err != nil || token.Value != first.Value {
			t.Errorf("it does not last: %v", err)
		}
		wait(t, func() bool { return hasProblem(g.tracker, "token-late") })
		g.advance(41 * time.Second)
		if _, err := g.get("pkjwt"); err == nil {
			t.Error("a token that has ended is given")
		}
		wait(t, func() bool { return hasProblem(g.tracker, "token-missing") })
		for _, st := range g.Status() {
			if missing := st.Name == "pkjwt"; missing != (st.Error != "") || missing && strings.Contains(st.Error, first.Value) {
				t.Errorf("%+v", st)
			}
		}
		i.turn("down?on=0")
		if _, err := g.get("pkjwt"); err == nil {
			t.Error("the issuer is asked again at once")
		}
		g.advance(10 * time.Second)
		token, err := g.get("pkjwt")
		if err != nil || token.Value == first.Value {
			t.Errorf("after the outage: %v", err)
		}
		if list := g.tracker.Problems(); len(list) > 0 {
			t.Errorf("problems: %v", list)
		}
	})

	t.Run("a token is renewed ahead of its end while the present one serves", func(t *testing.T) {
		g := newGateway(t, i, t.TempDir(), tokens)
		first, err := g.get("pkjwt")
		if err != nil {
			t.Fatal(err)
		}
		g.advance(256 * time.Second)
		if token, err := g.get("pkjwt"); err != nil || token.Value != first.Value {
			t.Errorf("one has to wait for the renewal: %v", err)
		}
		wait(t, func() bool { token, err := g.get("pkjwt"); return err == nil && token.Value != first.Value })
	})

	t.Run("a token that the cloud rejects is replaced, ever more slowly", func(t *testing.T) {
		g := newGateway(t, i, t.TempDir(), tokens)
		s, err := g.Source("pkjwt")
		if err != nil {
			t.Fatal(err)
		}
		first, err := g.get("pkjwt")
		if err != nil {
			t.Fatal(err)
		}
		s.Reject(first)
		s.Reject(first)
		second, err := g.get("pkjwt")
		if err != nil || second.Value == first.Value {
			t.Fatal(err)
		}
		s.Reject(second)
		if _, err := g.get("pkjwt"); err == nil {
			t.Error("replaced at once the second time too")
		}
		g.advance(2 * time.Second)
		if _, err := g.get("pkjwt"); err != nil {
			t.Error(err)
		}
	})

	t.Run("enrolment by the device flow, and rotation of what it gives", func(t *testing.T) {
		for client, c := range map[string]*config.Token{
			"pkjwt": {ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Grant: "refresh_token", Scopes: []string{"openid", "offline_access"}},
			"basic": {ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret", Key: "ec", Grant: "refresh_token", Scopes: []string{"openid", "offline_access"}},
		} {
			t.Run(client, func(t *testing.T) { enrolAndRotate(t, i, c) })
		}
	})
}

// TestIssuerWithChips does it with keys that no one can take out: assertions, proofs and TLS are signed in the chip, and the refresh token
// is sealed by it.
func TestIssuerWithChips(t *testing.T) {
	for name, uri := range map[string]func(t *testing.T) func(string) string{
		"SoftHSM2": func(t *testing.T) func(string) string { return keytest.SoftHSM(t).URI },
		"swtpm":    func(t *testing.T) func(string) string { return keytest.SWTPM(t).URI },
	} {
		t.Run(name, func(t *testing.T) {
			needs.Program(t, "node")
			in := uri(t)
			keys := map[string]*config.Key{"ec": {URI: in("ec")}, "tls": {URI: in("tls")}, "rsa": {URI: in("rsa")}}
			ring, err := keyring.New(t.Context(), keyring.Options{Keys: keys, BaseDir: t.TempDir(), State: t.TempDir(), Now: time.Now})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ring.Close() })
			c := newChip(t)
			for name := range keys {
				alg := hwcrypto.ECDSAP256
				if name == "rsa" {
					alg = hwcrypto.RSA2048
				}
				if _, _, err := ring.New(t.Context(), name, alg); err != nil {
					t.Fatal(err)
				}
				if c.keys[name], err = ring.Signer(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
			if c.sealer, err = ring.Sealer(t.Context(), "ec"); err != nil {
				t.Fatal(err)
			}
			i := startIssuer(t, c)
			resource, iot := map[string]string{"resource": "urn:iot"}, []string{"iot"}
			g := newGateway(t, i, t.TempDir(), map[string]*config.Token{
				"pkjwt":    {ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Scopes: iot, Params: resource},
				"ps256":    {ClientID: "ps256", ClientAuth: "private_key_jwt", Key: "rsa"},
				"dpop":     {ClientID: "dpop", ClientAuth: "private_key_jwt", Key: "ec", DPoP: true, Scopes: iot, Params: resource},
				"tls":      {ClientID: "tls", ClientAuth: "tls", Key: "tls", Scopes: iot, Params: resource},
				"bearer":   {ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Grant: "jwt_bearer", Subject: "plant7"},
				"exchange": {ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret", Grant: "token_exchange", SubjectToken: "pkjwt"},
			})
			for _, name := range []string{"pkjwt", "ps256", "dpop", "tls", "bearer", "exchange"} {
				if _, _, err := g.Token(t.Context(), name); err != nil {
					t.Error(err)
				}
			}
			jkt, err := auth.Thumbprint(c.keys["ec"].Public())
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(c.certs["tls"].Certificate[0])
			for name, want := range map[string]string{"dpop": jkt, "tls": base64.RawURLEncoding.EncodeToString(sum[:])} {
				token, _, err := g.Token(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				cnf, _ := claims(t, token)["cnf"].(map[string]any)
				if cnf["jkt"] != want && cnf["x5t#S256"] != want {
					t.Errorf("%s: the token is not bound to the chip's key: %v", name, cnf)
				}
			}
			t.Run("DPoP with a nonce", func(t *testing.T) {
				i.turn("nonce?on=1")
				defer i.turn("nonce?on=0")
				g := newGateway(t, i, t.TempDir(), map[string]*config.Token{"dpop": {ClientID: "dpop", ClientAuth: "private_key_jwt", Key: "ec", DPoP: true}})
				if _, _, err := g.Token(t.Context(), "dpop"); err != nil {
					t.Error(err)
				}
			})
			t.Run("device flow, and rotation of the sealed refresh token", func(t *testing.T) {
				kept := map[string]*config.Token{
					"kept": {ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Grant: "refresh_token", Scopes: []string{"openid", "offline_access"}},
				}
				state, seen := t.TempDir(), map[string]bool{}
				g := newGateway(t, i, state, kept)
				if err := g.Enroll(t.Context(), "kept", func(p auth.DevicePrompt) { i.turn("approve?user_code=" + p.Code) }); err != nil {
					t.Fatal(err)
				}
				for range 3 { // each time as after a restart
					g.Close()
					g = newGateway(t, i, state, kept)
					if _, _, err := g.Token(t.Context(), "kept"); err != nil {
						t.Fatal(err)
					}
					sealed, err := os.ReadFile(filepath.Join(state, "kept.refresh"))
					if err != nil || seen[string(sealed)] {
						t.Fatalf("not rotated: %v", err)
					}
					seen[string(sealed)] = true
				}
			})
		})
	}
}

func enrolAndRotate(t *testing.T, i *issuer, c *config.Token) {
	state := t.TempDir()
	g := newGateway(t, i, state, map[string]*config.Token{"cloud": c})
	_, err := g.get("cloud")
	if hint, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); !ok || hint.Hint() != "drawbridge enroll cloud" {
		t.Fatalf("before enrolment: %v", err)
	}
	err = g.Enroll(t.Context(), "cloud", func(p auth.DevicePrompt) {
		if !strings.HasPrefix(p.URL, i.url) || p.Code == "" || !strings.Contains(p.Direct, p.Code) {
			t.Errorf("%+v", p)
		}
		i.turn("approve?user_code=" + p.Code)
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(state, "cloud.refresh")
	kept := func() string {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	enrolled := kept()
	g.Close()

	// Each time as after a restart: what was rotated is what is on disk.
	last := enrolled
	for range 3 {
		g := newGateway(t, i, state, map[string]*config.Token{"cloud": c})
		if _, err := g.get("cloud"); err != nil {
			t.Fatal(err)
		}
		if kept() == last {
			t.Fatal("the refresh token was not rotated, or not kept")
		}
		last = kept()
		g.Close()
	}

	// The disk fails once; the token in memory serves, and is written when the disk is back.
	g = newGateway(t, i, state, map[string]*config.Token{"cloud": c})
	i.chip.setFail(errors.New("no room"))
	if _, err := g.get("cloud"); err != nil {
		t.Error(err)
	}
	if !hasProblem(g.tracker, "token-unkept") {
		t.Error("nothing says that the refresh token is not on disk")
	}
	i.chip.setFail(nil)
	g.advance(301 * time.Second)
	if _, err := g.get("cloud"); err != nil {
		t.Error(err)
	}
	if hasProblem(g.tracker, "token-unkept") || kept() == last {
		t.Error("it was not written when the disk was back")
	}
	g.Close()

	// A token that was spent before revokes the whole family (RFC 9700 section 4.14): an old copy of the state ends it.
	if err := hwcrypto.WriteFile(file, []byte(enrolled)); err != nil {
		t.Fatal(err)
	}
	g = newGateway(t, i, state, map[string]*config.Token{"cloud": c})
	if e, ok := errors.AsType[*auth.TokenError](second(g.get("cloud"))); !ok || e.Code != "invalid_grant" {
		t.Errorf("a spent token: %v", e)
	}

	// The file of another name, issuer or client does not open.
	if err := os.Rename(file, filepath.Join(state, "moved.refresh")); err != nil {
		t.Fatal(err)
	}
	g = newGateway(t, i, state, map[string]*config.Token{"moved": c})
	if _, err := g.get("moved"); err == nil || !strings.Contains(err.Error(), "bound") {
		t.Errorf("a file that was moved: %v", err)
	}
}

func second[A any](_ A, err error) error { return err }

func hasProblem(t *health.Tracker, code string) bool {
	for _, p := range t.Problems() {
		if p.Code == code {
			return true
		}
	}
	return false
}

// wait waits for what another goroutine is about to do.
func wait(t *testing.T, done func() bool) {
	t.Helper()
	for give := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(give) {
			t.Fatal("it does not happen")
		}
	}
}
