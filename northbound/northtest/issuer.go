package northtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
)

// Issuer gives tokens for client credentials to the client "gw1", who proves itself by private_key_jwt (RFC 7523). What trusts its tokens
// has its clock, which may differ from everybody else's. It is an http.Handler.
type Issuer struct {
	Life time.Duration // of tokens

	ca     CA
	key    *ecdsa.PrivateKey
	client crypto.PublicKey

	mu     sync.Mutex
	url    string        // guarded by mu: the audience of assertions
	ahead  time.Duration // guarded by mu: of the clock of gateway and issuer
	skew   time.Duration // guarded by mu: of the issuer's clock before the gateway's
	down   bool          // guarded by mu
	asked  int           // guarded by mu
	issued int           // guarded by mu
}

// NewIssuer makes one that nobody can reach yet.
func NewIssuer(t testing.TB, ca CA, client crypto.PublicKey) *Issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &Issuer{Life: 5 * time.Minute, ca: ca, key: key, client: client}
}

// Now is the gateway's clock.
func (i *Issuer) Now() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return time.Now().Add(i.ahead)
}

// Advance lets time pass for the gateway and the issuer.
func (i *Issuer) Advance(d time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ahead += d
}

// Drift sets by how much the issuer's clock is ahead of the gateway's.
func (i *Issuer) Drift(d time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.skew = d
}

// Down says whether the issuer is away from now on.
func (i *Issuer) Down(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// Counts tells how often the issuer was asked for a token, and how many it gave.
func (i *Issuer) Counts() (asked, issued int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked, i.issued
}

// Good tells whether a token is one of the issuer's, and has not ended.
func (i *Issuer) Good(token string) bool {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return false
	}
	var c jwt.Claims
	if parsed.Claims(i.key.Public(), &c) != nil {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return c.Expiry.Time().After(time.Now().Add(i.ahead + i.skew))
}

// ServeHTTP is the token endpoint.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.asked++
	down, url, now := i.down, i.url, time.Now().Add(i.ahead+i.skew)
	i.mu.Unlock()
	w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
	w.Header().Set("Content-Type", "application/json")
	if down {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if err := i.check(r, url, now); err != nil {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"error":"invalid_client","error_description":%q}`, err)
		return
	}
	i.mu.Lock()
	i.issued++
	id := fmt.Sprint(i.issued)
	i.mu.Unlock()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		panic(err)
	}
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: url, Subject: "gw1", Audience: jwt.Audience{"localhost"}, ID: id,
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(i.Life)),
	}).Serialize()
	if err != nil {
		panic(err)
	}
	json.NewEncoder(w).Encode(map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": int(i.Life / time.Second)})
}

// check verifies the client's assertion.
func (i *Issuer) check(r *http.Request, url string, now time.Time) error {
	if r.FormValue("grant_type") != "client_credentials" || r.FormValue("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
		return fmt.Errorf("grant %q, assertion of type %q", r.FormValue("grant_type"), r.FormValue("client_assertion_type"))
	}
	parsed, err := jwt.ParseSigned(r.FormValue("client_assertion"), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return err
	}
	var c jwt.Claims
	if err := parsed.Claims(i.client, &c); err != nil {
		return err
	}
	return c.ValidateWithLeeway(jwt.Expected{Issuer: "gw1", Subject: "gw1", AnyAudience: jwt.Audience{url}, Time: now}, 10*time.Second)
}

// Listen serves over TLS on loopback until the test ends.
func (i *Issuer) Listen(t testing.TB) {
	t.Helper()
	s := httptest.NewUnstartedServer(i)
	i.serve(t, s)
	i.at(s.URL)
}

// ListenOn serves over TLS on l, which clients know as host.
func (i *Issuer) ListenOn(t testing.TB, l net.Listener, host string) {
	t.Helper()
	i.serve(t, &httptest.Server{Listener: l, Config: &http.Server{Handler: i}})
	i.at("https://" + host)
}

func (i *Issuer) serve(t testing.TB, s *httptest.Server) {
	s.TLS = i.ca.Server(t)
	s.TLS.ClientAuth = 0
	s.StartTLS()
	t.Cleanup(s.Close)
}

func (i *Issuer) at(url string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.url = strings.TrimSuffix(url, "/") + "/token"
}

// Tokens makes the gateway's own source of the issuer's tokens, as [token.id] with the key "client" of keys. dial may be nil.
func (i *Issuer) Tokens(t testing.TB, keys auth.Keys, dial func(ctx context.Context, network, address string) (net.Conn, error)) *auth.Tokens {
	t.Helper()
	i.mu.Lock()
	url := i.url
	i.mu.Unlock()
	tokens, err := auth.NewTokens(t.Context(), map[string]*config.Token{"id": {
		TokenURL: url, Grant: "client_credentials", ClientID: "gw1", ClientAuth: "private_key_jwt", Key: "client", CA: config.Path(i.ca.File(t)),
	}}, auth.TokenOptions{Keys: keys, State: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: i.Now, Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tokens.Close() })
	return tokens
}
