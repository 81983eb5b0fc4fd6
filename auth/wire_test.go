package auth_test

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto/keyring"
)

// endpoint is a token endpoint that looks at what it is sent.
type endpoint struct {
	*httptest.Server
	issuer
	asked atomic.Int64
}

func newEndpoint(t *testing.T, answer http.HandlerFunc) *endpoint {
	t.Helper()
	e := &endpoint{}
	e.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.asked.Add(1)
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		answer(w, r)
	}))
	t.Cleanup(e.Close)
	e.issuer = issuer{t: t, url: e.URL, dir: t.TempDir(), chip: newChip(t)}
	e.write("ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate().Raw}))
	return e
}

func give(w http.ResponseWriter, token string, seconds int) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"access_token": %q, "token_type": "Bearer", "expires_in": %d}`, token, seconds)
}

// header reads the protected header of a JSON web token.
func header(t *testing.T, token string) map[string]any {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
	if err != nil {
		t.Fatal(err)
	}
	var h map[string]any
	if err := json.Unmarshal(data, &h); err != nil {
		t.Fatal(err)
	}
	return h
}

// The assertion is as Entra wants it: x5t#S256 of the certificate, the token endpoint as its audience, two minutes of life.
func TestAssertionWithCertificateThumbprint(t *testing.T) {
	var form atomic.Pointer[url.Values]
	e := newEndpoint(t, func(w http.ResponseWriter, r *http.Request) { form.Store(&r.PostForm); give(w, "t", 3600) })
	key := newKey(t)
	cert := newAuthority(t, time.Now()).issue(5, "gw1")[0]
	e.chip.keys["k"], e.chip.certs["k"] = key, &tls.Certificate{Certificate: [][]byte{cert.Raw}}
	g := newGateway(t, &e.issuer, t.TempDir(), map[string]*config.Token{
		"cloud": {TokenURL: e.URL + "/v2.0/token", ClientID: "app", ClientAuth: "private_key_jwt", Key: "k", X5T: true, Scopes: []string{"https://eg.example/.default"}},
	})
	if _, err := g.get("cloud"); err != nil {
		t.Fatal(err)
	}
	f := *form.Load()
	sum := sha256.Sum256(cert.Raw)
	assertion := f.Get("client_assertion")
	h, c := header(t, assertion), claims(t, assertion)
	if h["x5t#S256"] != base64.RawURLEncoding.EncodeToString(sum[:]) || h["alg"] != "ES256" || h["typ"] != "JWT" || h["kid"] != nil {
		t.Errorf("header: %v", h)
	}
	if c["iss"] != "app" || c["sub"] != "app" || c["aud"] != e.URL+"/v2.0/token" || c["exp"].(float64)-c["iat"].(float64) != 120 || len(c["jti"].(string)) < 20 {
		t.Errorf("claims: %v", c)
	}
	if f.Get("grant_type") != "client_credentials" || f.Get("client_id") != "app" || f.Get("scope") != "https://eg.example/.default" ||
		f.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" || f.Has("client_secret") {
		t.Errorf("form: %v", f)
	}
	jws, err := jose.ParseSignedCompact(assertion, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jws.Verify(key.Public()); err != nil {
		t.Error(err)
	}
}

// The token of one issuer is the client's assertion at another (workload identity federation).
func TestTokenAsClientAssertion(t *testing.T) {
	plant := newEndpoint(t, func(w http.ResponseWriter, r *http.Request) { give(w, "plants-own-token", 600) })
	cloud := newEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		if r.PostForm.Get("client_assertion") != "plants-own-token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		give(w, "cloud-token", 600)
	})
	both := &issuer{t: t, url: cloud.URL, dir: t.TempDir(), chip: newChip(t)}
	both.write("ca.crt", append(readAll(t, plant.dir), readAll(t, cloud.dir)...))
	both.chip.secrets["file:/s"] = "s"
	g := newGateway(t, both, t.TempDir(), map[string]*config.Token{
		"plant": {TokenURL: plant.URL, ClientID: "gw", ClientAuth: "client_secret_post", ClientSecret: "file:/s"},
		"cloud": {TokenURL: cloud.URL, ClientID: "app", ClientAuth: "token", ClientToken: "plant"},
	})
	if token, err := g.get("cloud"); err != nil || token.Value != "cloud-token" {
		t.Errorf("%v", err)
	}
}

func readAll(t *testing.T, dir string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A request to a cloud carries a proof for this method, this address and this token, and the nonce that the cloud last gave.
func TestRequestsWithProof(t *testing.T) {
	e := newEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token": "bound", "token_type": "DPoP", "expires_in": 300}`)
	})
	e.chip.keys["k"] = newKey(t)
	g := newGateway(t, &e.issuer, t.TempDir(), map[string]*config.Token{"cloud": {TokenURL: e.URL, ClientID: "gw", ClientAuth: "none", Key: "k", DPoP: true}})
	s, err := g.Source("cloud")
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest(http.MethodPut, "https://cloud.example/things/1?x=y", nil)
	if token, err := s.Authorize(t.Context(), req); err != nil || token.Value != "bound" {
		t.Fatal(err)
	}
	proof := req.Header.Get("DPoP")
	h, c := header(t, proof), claims(t, proof)
	jwk, _ := h["jwk"].(map[string]any)
	sum := sha256.Sum256([]byte("bound"))
	if req.Header.Get("Authorization") != "DPoP bound" || h["typ"] != "dpop+jwt" || jwk["kty"] != "EC" || jwk["d"] != nil || jwk["x"] == nil {
		t.Errorf("%v", h)
	}
	if c["htm"] != "PUT" || c["htu"] != "https://cloud.example/things/1" || c["ath"] != base64.RawURLEncoding.EncodeToString(sum[:]) || c["nonce"] != nil {
		t.Errorf("%v", c)
	}
	res := &http.Response{StatusCode: http.StatusUnauthorized, Header: http.Header{"Dpop-Nonce": {"n1"}}}
	if !s.Answered(req, res) || s.Answered(req, res) {
		t.Error("a new nonce asks for one more request, an old one for none")
	}
	if _, err := s.Authorize(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if c := claims(t, req.Header.Get("DPoP")); c["nonce"] != "n1" {
		t.Errorf("%v", c)
	}
}

func TestIssuersAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string // of the error; empty: a token
	}{
		"a refusal with a description": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error": "invalid_scope", "error_description": "no\nsuch scope"}`)
		}, "the issuer answered 400 invalid_scope: no such scope"},
		"a page of HTML": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(502)
			fmt.Fprint(w, "<html>secret things</html>")
		}, "the issuer answered 502"},
		"no token": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{}`)
		}, "missing access_token"},
		"a redirect": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(307)
		}, "the issuer answered 307"},
		"a life in quotes": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"access_token": "x", "expires_in": "120"}`)
		}, ""},
		"no life": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"access_token": "x"}`)
		}, ""},
		"a life that is over": {func(w http.ResponseWriter, _ *http.Request) { give(w, "x", -5) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEndpoint(t, c.answer)
			e.chip.secrets["file:/s"] = "s"
			g := newGateway(t, &e.issuer, t.TempDir(), map[string]*config.Token{"cloud": {TokenURL: e.URL, ClientID: "gw", ClientAuth: "client_secret_basic", ClientSecret: "file:/s"}})
			token, err := g.get("cloud")
			if c.want == "" {
				if err != nil || token.Value != "x" || token.Type != "Bearer" || token.Expires.After(g.now().Add(6*time.Minute)) {
					t.Errorf("%v, %v", token, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret things") {
				t.Errorf("%v", err)
			}
			for range 100 {
				g.get("cloud")
			}
			if n := e.asked.Load(); n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

// A day with tokens of five minutes, an issuer that is away one hour in four and whose clock drifts: there is a token whenever there can be
// one, and the issuer is not asked more often than it has to be.
func TestDayWithFailingIssuer(t *testing.T) {
	var at atomic.Int64 // simulated seconds
	e := newEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		hour := at.Load() / 3600
		w.Header().Set("Date", time.Now().Add(time.Duration(at.Load()%(24*3600)/144)*time.Second).UTC().Format(http.TimeFormat))
		if hour%4 == 3 {
			w.WriteHeader(503)
			return
		}
		give(w, fmt.Sprint(at.Load()), 300)
	})
	e.chip.keys["k"] = newKey(t)
	g := newGateway(t, &e.issuer, t.TempDir(), map[string]*config.Token{"cloud": {TokenURL: e.URL, ClientID: "gw", ClientAuth: "private_key_jwt", Key: "k"}})
	const step = 5 * time.Second
	without, stale := 0, 0
	for ; at.Load() < 24*3600; at.Add(int64(step / time.Second)) {
		token, err := g.get("cloud")
		switch hour, within := at.Load()/3600, at.Load()%3600; {
		case err != nil && hour%4 != 3 && within > 330:
			without++ // five minutes after the issuer is back at the latest
		case err == nil && !token.Expires.After(g.now()):
			stale++
		}
		g.advance(step)
	}
	if without > 0 || stale > 0 {
		t.Errorf("%d times no token although the issuer was there, %d times one that had ended", without, stale)
	}
	// 18 hours of tokens that live 210 to 255 s until renewal, 6 hours of retries at most 5 minutes apart.
	if n := e.asked.Load(); n < 18*3600/255 || n > 18*3600/210+6*40 {
		t.Errorf("the issuer was asked %d times", n)
	}
	t.Logf("asked %d times in a day", e.asked.Load())
}

var (
	_ auth.Keys = (*chip)(nil)
	_ auth.Keys = keyring.View{}
)
