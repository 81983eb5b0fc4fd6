package auth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
)

// idp is an OpenID provider as far as verifying its tokens goes, with a knob per fault.
type idp struct {
	*httptest.Server
	t       *testing.T
	mu      sync.Mutex
	keys    []*ecdsa.PrivateKey
	down    atomic.Bool
	fetches atomic.Int64
}

func newIDP(t *testing.T) *idp {
	t.Helper()
	p := &idp{t: t}
	p.rotate()
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			json.NewEncoder(w).Encode(map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/jwks", "id_token_signing_alg_values_supported": []string{"RS256"}})
		case "/jwks":
			p.fetches.Add(1)
			p.mu.Lock()
			defer p.mu.Unlock()
			set := jose.JSONWebKeySet{}
			for i, k := range p.keys[max(0, len(p.keys)-2):] {
				set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Public(), KeyID: keyID(max(0, len(p.keys)-2) + i), Algorithm: "ES256", Use: "sig"})
			}
			json.NewEncoder(w).Encode(set)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(p.Close)
	return p
}

func keyID(i int) string { return string(rune('a' + i)) }

func (p *idp) rotate() {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = append(p.keys, k)
}

func (p *idp) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})
}

func (p *idp) token(claims map[string]any) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.keys) - 1
	return signed(p.t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: p.keys[last], KeyID: keyID(last)}}, claims)
}

func signed(t *testing.T, key jose.SigningKey, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The test servers' certificates are of their own time, so these tests run at the present.
func newOutsideBench(t *testing.T, text string, files map[string]string) *bench {
	t.Helper()
	b := newBench(t, "", files)
	b.clock.Store(time.Now().Unix())
	b.swap(text)
	return b
}

func TestTokens(t *testing.T) {
	p := newIDP(t)
	b := newOutsideBench(t, `
[issuer.plant]
url = "`+p.URL+`"
audience = "drawbridge"
ca = "ca.pem"
[device.press-3]
groups = ["press"]
sleepy = true
`, map[string]string{"ca.pem": string(p.ca())})
	login := func(token string) (auth.Identity, error) {
		return b.realm.Login(t.Context(), []string{"jwt"}, auth.Credentials{User: "anybody", Password: []byte(token), Remote: from("10.0.0.1:1")})
	}
	claims := func(change map[string]any) map[string]any {
		c := map[string]any{"iss": p.URL, "aud": "drawbridge", "sub": "press-3", "exp": b.now().Add(time.Hour).Unix(), "groups": []string{"night", "press"}}
		for k, v := range change {
			c[k] = v
		}
		return c
	}
	id, err := login(p.token(claims(nil)))
	if err != nil || id.Device != "press-3" || !slices.Equal(id.Groups, []string{"night", "press"}) || id.Method != "jwt" || !id.Sleepy || id.Expires.IsZero() {
		t.Fatalf("%+v, %v", id, err)
	}
	if again, err := b.realm.Refresh(t.Context(), id); err != nil || !slices.Equal(again.Groups, id.Groups) {
		t.Errorf("%+v, %v", again, err)
	}
	if id, err := login(p.token(claims(map[string]any{"sub": "new-1", "groups": "a b"}))); err != nil || id.Device != "new-1" || len(id.Groups) != 2 {
		t.Errorf("a device that the file does not name: %+v, %v", id, err)
	}
	stranger := newIDP(t)
	secret := jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: []byte(strings.Repeat("k", 32)), KeyID: "a"}}
	for name, token := range map[string]string{
		"another audience":                p.token(claims(map[string]any{"aud": "other"})),
		"no audience":                     p.token(claims(map[string]any{"aud": nil})),
		"expired":                         p.token(claims(map[string]any{"exp": b.now().Add(-time.Second).Unix()})),
		"not yet":                         p.token(claims(map[string]any{"nbf": b.now().Add(time.Hour).Unix()})),
		"an issuer that is not ours":      stranger.token(claims(map[string]any{"iss": stranger.URL})),
		"our issuer, another's key":       stranger.token(claims(nil)),
		"signed with a secret":            signed(t, secret, claims(nil)),
		"signed with nothing":             "eyJhbGciOiJub25lIn0." + strings.Split(p.token(claims(nil)), ".")[1] + ".",
		"no device":                       p.token(claims(map[string]any{"sub": ""})),
		"a device that cannot be a level": p.token(claims(map[string]any{"sub": "a/b"})),
		"not a token":                     "password",
		"dots":                            "..",
		"nothing":                         "",
		"a changed claim":                 strings.Replace(p.token(claims(nil)), ".ey", ".ez", 1),
	} {
		if id, err := login(token); err == nil {
			t.Errorf("%s: taken for %+v", name, id)
		}
	}

	t.Run("keys are fetched anew when the issuer has changed them", func(t *testing.T) {
		p.rotate()
		token := p.token(claims(nil))
		if _, err := login(token); err == nil || errors.Is(err, auth.ErrUnknown) {
			t.Errorf("the issuer was asked a moment ago, for the tokens above: %v", err)
		}
		b.advance(10 * time.Second)
		// go-oidc may hand out the refusal above once more, until its own goroutine has come to its end.
		_, err := login(token)
		for give := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(give); _, err = login(token) {
			runtime.Gosched()
		}
		if err != nil {
			t.Error(err)
		}
		b.advance(10 * time.Second)
		before := p.fetches.Load()
		for range 50 {
			login(stranger.token(claims(nil)))
		}
		if n := p.fetches.Load() - before; n != 1 {
			t.Errorf("strangers' tokens led to %d requests", n)
		}
	})
	t.Run("an outage does not matter to keys that are known", func(t *testing.T) {
		p.down.Store(true)
		defer p.down.Store(false)
		if _, err := login(p.token(claims(nil))); err != nil {
			t.Error(err)
		}
	})
	t.Run("a reload keeps the keys", func(t *testing.T) {
		p.down.Store(true)
		defer p.down.Store(false)
		b.swap("[issuer.plant]\nurl = \"" + p.URL + "\"\naudience = \"drawbridge\"\nca = \"ca.pem\"\n")
		if id, err := login(p.token(claims(nil))); err != nil || id.Sleepy {
			t.Error(id, err)
		}
		if _, err := b.realm.Refresh(t.Context(), id); err != nil {
			t.Error(err)
		}
		b.swap("")
		if _, err := b.realm.Refresh(t.Context(), id); !errors.Is(err, auth.ErrUnknown) {
			t.Errorf("the issuer is gone: %v", err)
		}
	})
}

func TestIssuerThatIsAway(t *testing.T) {
	p := newIDP(t)
	p.down.Store(true)
	b := newOutsideBench(t, "[issuer.plant]\nurl = \""+p.URL+"\"\naudience = \"a\"\nca = \"ca.pem\"\n", map[string]string{"ca.pem": string(p.ca())})
	_, err := b.realm.Login(t.Context(), []string{"password", "jwt"}, auth.Credentials{Password: []byte(p.token(map[string]any{"iss": p.URL})), Remote: from("10.0.0.1:1")})
	if err == nil || errors.Is(err, auth.ErrUnknown) {
		t.Errorf("what could not be asked is not a wrong credential: %v", err)
	}
	b.advance(time.Minute)
	if !slices.Contains(b.problems(), "issuer-unreachable") {
		t.Errorf("problems: %v", b.problems())
	}
}

// A device logs in by a token that a certified provider gave it.
func TestTokensOfProvider(t *testing.T) {
	p := startIssuer(t, newChip(t))
	g := newGateway(t, p, t.TempDir(), map[string]*config.Token{
		"device": {ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Scopes: []string{"iot"}, Params: map[string]string{"resource": "urn:iot"}},
	})
	token, expires, err := g.Token(t.Context(), "device")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(p.dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for audience, want := range map[string]bool{"urn:iot": true, "urn:other": false} {
		b := newOutsideBench(t, "[issuer.plant]\nurl = \""+p.url+"\"\naudience = \""+audience+"\"\ndevice_claim = \"client_id\"\nca = \"ca.pem\"\n", map[string]string{"ca.pem": string(ca)})
		id, err := b.realm.Login(t.Context(), []string{"password", "jwt"}, auth.Credentials{User: "x", Password: []byte(token), Remote: from("10.0.0.1:1")})
		if (err == nil) != want || want && (id.Device != "pkjwt" || id.Expires.Sub(expires).Abs() > 5*time.Second) {
			t.Errorf("for %s: %+v, %v", audience, id, err)
		}
	}
}

func TestAuthenticator(t *testing.T) {
	var asked atomic.Int64
	var status atomic.Int64
	var last atomic.Pointer[auth.Question]
	answer := atomic.Pointer[string]{}
	set := func(code int, body string) { status.Store(int64(code)); answer.Store(&body) }
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var q auth.Question
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %v", r.Method, err)
		}
		last.Store(&q)
		if status.Load() == 307 {
			w.Header().Set("Location", "http://127.0.0.1:1/")
		}
		w.WriteHeader(int(status.Load()))
		w.Write([]byte(*answer.Load()))
	}))
	defer srv.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	b := newOutsideBench(t, "[authenticator]\nurl = \""+srv.URL+"/device\"\nca = \"ca.pem\"\n[device.d7]\ngroups = [\"own\"]\n", map[string]string{"ca.pem": ca})
	login := func(password, remote string) (auth.Identity, error) {
		return b.realm.Login(t.Context(), []string{"http"}, auth.Credentials{Listener: "shop", User: "u", ClientID: "c", Password: []byte(password), Remote: from(remote)})
	}

	set(200, `{"device": "d7", "groups": ["theirs"]}`)
	id, err := login("pw", "10.0.0.1:1000")
	if err != nil || id.Device != "d7" || !slices.Equal(id.Groups, []string{"own", "theirs"}) || id.Method != "http" || id.Credential != "u" {
		t.Fatalf("%+v, %v", id, err)
	}
	if q := *last.Load(); q != (auth.Question{Listener: "shop", User: "u", Password: "pw", ClientID: "c", Remote: "10.0.0.1:1000"}) {
		t.Errorf("asked %+v", q)
	}
	set(401, "")
	if _, err := login("pw", "10.0.0.1:2000"); err != nil || asked.Load() != 1 {
		t.Errorf("a yes is not remembered: %v, asked %d times", err, asked.Load())
	}
	if _, err := login("pw", "10.0.0.2:2000"); !errors.Is(err, auth.ErrUnknown) || asked.Load() != 2 {
		t.Errorf("the yes for one address holds for another: %v", err)
	}
	b.advance(2 * time.Minute)
	if _, err := login("pw", "10.0.0.1:3000"); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("a yes is remembered for longer than a minute: %v", err)
	}
	for body, code := range map[string]int{`{"device": "a/b"}`: 200, `{}`: 200, `x`: 403} {
		set(code, body)
		if _, err := login("pw", "10.0.0.3:1"); !errors.Is(err, auth.ErrUnknown) {
			t.Errorf("%d %s: %v", code, body, err)
		}
	}
	set(200, `{"device": "d8", "expires": "2020-01-01T00:00:00Z"}`)
	if _, err := login("pw", "10.0.0.4:1"); !errors.Is(err, auth.ErrUnknown) {
		t.Errorf("an answer of the past: %v", err)
	}
	if p := b.problems(); len(p) > 0 {
		t.Errorf("problems: %v", p)
	}
	for body, code := range map[string]int{`no json`: 200, ``: 500, `x`: 307} {
		set(code, body)
		if _, err := login("pw", "10.0.0.5:1"); err == nil || errors.Is(err, auth.ErrUnknown) {
			t.Errorf("%d %s: %v", code, body, err)
		}
	}
	b.advance(time.Minute)
	if !slices.Contains(b.problems(), "authenticator-unreachable") {
		t.Errorf("problems: %v", b.problems())
	}
}
