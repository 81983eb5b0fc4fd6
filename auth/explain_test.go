package auth_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
)

// means holds what an error is said to mean against what it must say.
func means(t *testing.T, err error, now time.Time, what, hint string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	text, advice := health.Words(err, now)
	if !strings.HasPrefix(text, what) || !strings.Contains(advice, hint) || hint == "" || strings.Contains(text+advice, "{") {
		t.Errorf("%v:\ngot  %s\nhint %s\nwant %s\nhint %s", err, text, advice, what, hint)
	}
}

// TestRefusalsOfAnIssuerAreExplained has each way in which a certified provider refuses.
func TestRefusalsOfAnIssuerAreExplained(t *testing.T) {
	i := startIssuer(t, newChip(t))
	i.chip.secrets["file:/wrong"] = "not the secret"
	for name, c := range map[string]struct {
		token      config.Token
		code       string
		what, hint string
	}{
		"a wrong secret": {config.Token{ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/wrong"}, "invalid_client",
			`the issuer does not know client "basic", or its secret is wrong or has ended (token "cloud": the issuer answered 401 invalid_client`,
			"compare `client_id` and `client_secret` of [token.cloud]"},
		"a client that there is not": {config.Token{ClientID: "nobody", ClientAuth: "client_secret_post", ClientSecret: "file:/secret"}, "invalid_client",
			`the issuer does not know client "nobody"`, "`client_id`"},
		"another key": {config.Token{ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "tls"}, "invalid_client",
			`the issuer does not know client "pkjwt", or does not take what the key tls has signed`, "register the public key of [key.tls]"},
		"another audience": {config.Token{ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Audience: "https://elsewhere.example"}, "invalid_client",
			`the issuer does not know client "pkjwt"`, "is `audience` what it wants"},
		"no certificate of its own": {config.Token{ClientID: "pkjwt", ClientAuth: "tls", Key: "tls"}, "invalid_client",
			`the issuer does not know client "pkjwt", or does not take the certificate of the key tls`, "register the certificate of [key.tls]"},
		"no proof at all": {config.Token{ClientID: "basic", ClientAuth: "none"}, "invalid_client",
			`the issuer does not know client "basic", or wants it to prove who it is`, "`client_auth`"},
		"a grant that the client may not use": {config.Token{ClientID: "post", ClientAuth: "client_secret_post", ClientSecret: "file:/secret", Grant: "jwt_bearer", Key: "ec"}, "invalid_request",
			"the issuer misses something in the request for a token, or takes exception to it", "look at `grant`"},
		"an assertion for somebody else": {config.Token{ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Grant: "jwt_bearer", Audience: "https://elsewhere.example"}, "invalid_client",
			`the issuer does not know client "pkjwt"`, "`audience`"},
		"a resource that is none": {config.Token{ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret", Params: map[string]string{"resource": "not a uri"}}, "invalid_target",
			`the issuer does not know the service for which client "basic" wants a token`, "params of [token.cloud]"},
		"a grant that the issuer does not have": {config.Token{ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret", Params: map[string]string{"grant_type": "moonlight"}}, "unsupported_grant_type",
			"the issuer does not know the grant client_credentials", "`grant` of [token.cloud]"},
		"a parameter that is missing": {config.Token{ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret", Params: map[string]string{"grant_type": ""}}, "invalid_request",
			"the issuer misses something in the request for a token", "`params` of [token.cloud]"},
		"a path that is none": {config.Token{TokenURL: i.url + "/tokens", ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret"}, "",
			"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, i, t.TempDir(), map[string]*config.Token{"cloud": &c.token})
			_, err := g.get("cloud")
			e, ok := errors.AsType[*auth.TokenError](err)
			if !ok {
				t.Fatalf("%v", err)
			}
			if c.what == "" { // the provider calls a path that it does not have a bad request
				c.what, c.hint = "the issuer misses something", "`params`"
				if e.Status == 404 && e.Code == "" {
					c.what, c.hint = "there is no token endpoint at this address", "`token_url` of [token.cloud]"
				}
			} else if e.Code != c.code {
				t.Errorf("code %q", e.Code)
			}
			means(t, err, g.now(), c.what, c.hint)
			p := problem(t, g.tracker, "token-missing")
			if !strings.HasPrefix(p.Detail, c.what) || !strings.Contains(p.Hint, c.hint) || strings.Contains(p.Detail+p.Hint, i.chip.secrets["file:/secret"]) || strings.Contains(p.Detail+p.Hint, "not the secret") {
				t.Errorf("%+v", p)
			}
		})
	}

	t.Run("an issuer that is down", func(t *testing.T) {
		i.turn("down?on=1")
		defer i.turn("down?on=0")
		g := newGateway(t, i, t.TempDir(), map[string]*config.Token{
			"found": {ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret"},
			"named": {TokenURL: i.url + "/token", ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret"},
		})
		_, err := g.get("found")
		means(t, err, g.now(), "the server has a fault of its own, or is overloaded (503)", "asked again")
		_, err = g.get("named")
		means(t, err, g.now(), "the issuer has a fault of its own, or is overloaded", "asked again")
	})

	t.Run("an issuer by another name", func(t *testing.T) {
		g := newGateway(t, i, t.TempDir(), map[string]*config.Token{"cloud": {Issuer: i.url + "/", ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret"}})
		_, err := g.get("cloud")
		means(t, err, g.now(), fmt.Sprintf("the issuer calls itself %q, and the file says %q", i.url, i.url+"/"), "last slash")
	})

	t.Run("a CA that is not trusted", func(t *testing.T) {
		g := newGateway(t, i, t.TempDir(), map[string]*config.Token{"cloud": {ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret"}})
		g.Close()
		other := newEndpoint(t, nil)
		c := config.Token{Issuer: i.url, Grant: "client_credentials", ClientID: "basic", ClientAuth: "client_secret_basic", ClientSecret: "file:/secret", CA: config.Path(filepath.Join(other.dir, "ca.crt"))}
		tokens, err := auth.NewTokens(t.Context(), map[string]*config.Token{"cloud": &c}, auth.TokenOptions{Keys: i.chip, State: t.TempDir(), Now: g.now})
		if err != nil {
			t.Fatal(err)
		}
		defer tokens.Close()
		_, _, err = tokens.Token(t.Context(), "cloud")
		means(t, err, g.now(), `the peer's certificate "CN=`, `ca = "FILE"`)
	})

	t.Run("a refresh token that was used before", func(t *testing.T) {
		c := &config.Token{ClientID: "pkjwt", ClientAuth: "private_key_jwt", Key: "ec", Grant: "refresh_token", Scopes: []string{"openid", "offline_access"}}
		g := newGateway(t, i, t.TempDir(), map[string]*config.Token{"cloud": c})
		_, err := g.get("cloud")
		if text, hint := health.Words(err, g.now()); hint != "`drawbridge enroll cloud`" && hint != "drawbridge enroll cloud" {
			t.Errorf("%s; %s", text, hint)
		}
	})
}

func problem(t *testing.T, tracker *health.Tracker, code string) health.Problem {
	t.Helper()
	list := tracker.Problems()
	n := slices.IndexFunc(list, func(p health.Problem) bool { return p.Code == code })
	if n < 0 {
		t.Fatalf("no problem %s among %+v", code, list)
	}
	return list[n]
}

// TestRefusalsOfOtherIssuersAreExplained has what the provider does not say: Entra's answers, in Entra's form, and codes of flows beside its own.
func TestRefusalsOfOtherIssuersAreExplained(t *testing.T) {
	entra := func(code string, number int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json; charset=utf-8")
			w.WriteHeader(map[bool]int{true: 401, false: 400}[code == "invalid_client"])
			json.NewEncoder(w).Encode(map[string]any{"error": code, "error_description": fmt.Sprintf("AADSTS%d: %s Trace ID: 1 Correlation ID: 2 Timestamp: 2026-11-22 04:00:00Z", number, text),
				"error_codes": []int{number}, "timestamp": "2026-11-22 04:00:00Z", "trace_id": "1", "correlation_id": "2"})
		}
	}
	says := func(status int, code string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			if code != "" {
				fmt.Fprintf(w, `{"error": %q}`, code)
			}
		}
	}
	secret := config.Token{ClientID: "gw", ClientAuth: "client_secret_post", ClientSecret: "file:/s", Scopes: []string{"https://eventgrid.azure.net/.default"}}
	key := config.Token{ClientID: "gw", ClientAuth: "private_key_jwt", Key: "ec", Scopes: secret.Scopes}
	for name, c := range map[string]struct {
		token      config.Token
		answer     http.HandlerFunc
		what, hint string
	}{
		"a secret that ended": {secret, entra("invalid_client", 7000222, "The provided client secret keys for app 'gw' are expired."),
			`the secret of the app registration "gw" has expired at Entra`, "`client_secret` of [token.cloud]"},
		"the id of a secret": {secret, entra("invalid_client", 7000215, "Invalid client secret provided."),
			`Entra does not take the secret of the app registration "gw"`, "the secret's value, not its id"},
		"no secret": {secret, entra("invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."),
			`Entra does not take the secret of the app registration "gw"`, "`client_secret`"},
		"a certificate that is not registered": {key, entra("invalid_client", 700027, "The certificate with identifier used to sign the client assertion is not registered on application."),
			"Entra does not know the certificate of the key ec, or it has ended", "`x5t = true` in [token.cloud]"},
		"a clock that is off": {key, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(-75*time.Hour).UTC().Format(http.TimeFormat))
			entra("invalid_client", 700024, "Client assertion is not within its valid time range.")(w, r)
		}, "for Entra the assertion is not valid now: it is " + time.Now().Add(-75*time.Hour).UTC().Format(time.DateOnly), "timedatectl"},
		"an app that there is not":            {secret, entra("unauthorized_client", 700016, "Application with identifier 'gw' was not found in the directory 'Plant'."), `there is no app registration "gw" in this Entra tenant`, "`client_id` of [token.cloud]"},
		"a tenant that there is not":          {secret, entra("invalid_request", 90002, "Tenant 'plant7' not found."), "there is no such Entra tenant", "`token_url` of [token.cloud]"},
		"a scope of a wrong form":             {secret, entra("invalid_scope", 70011, "The provided request must include a 'scope' input parameter."), `Entra does not take the scope "https://eventgrid.azure.net/.default"`, "/.default"},
		"a service that is not there":         {secret, entra("invalid_resource", 500011, "The resource principal named x was not found in the tenant."), "the Entra tenant knows no service of the scope", "consent"},
		"a federation that is not there":      {key, entra("invalid_client", 700213, "No matching federated identity record found for presented assertion subject."), `the app registration "gw" trusts no such token of another issuer`, "federated credential"},
		"an app that is disabled":             {secret, entra("unauthorized_client", 7000112, "Application 'gw' is disabled."), `the app registration "gw" is disabled in this Entra tenant`, "enable"},
		"a policy":                            {secret, entra("invalid_grant", 53003, "Access has been blocked by Conditional Access policies."), `a Conditional Access policy of the Entra tenant blocks client "gw"`, "sign-in log"},
		"consent is missing":                  {secret, says(400, "consent_required"), "the issuer wants a person to log in or to consent first", "administrator"},
		"a person said no":                    {secret, says(400, "access_denied"), `the issuer, or who was asked there, has denied client "gw" the token`, "drawbridge enroll cloud"},
		"a grant that the client may not use": {secret, says(400, "unauthorized_client"), `the issuer does not let client "gw" ask by the grant client_credentials`, "allow that grant type"},
		"a scope that there is not":           {secret, says(400, "invalid_scope"), `the issuer gives no such scope to client "gw": "https://eventgrid.azure.net/.default"`, "look at `scopes` of [token.cloud]"},
		"a grant that is refused":             {secret, says(400, "invalid_grant"), `the issuer does not take what client "gw" shows for a token`, "[token.cloud]"},
		"a proof that is refused":             {key, says(400, "invalid_dpop_proof"), "the issuer does not take the proof that this gateway holds the key ec", "`dpop`"},
		"an issuer that is overloaded":        {secret, says(400, "temporarily_unavailable"), "the issuer has a fault of its own, or is overloaded", "asked again"},
		"an issuer with a fault":              {secret, says(500, "server_error"), "the issuer has a fault of its own, or is overloaded", "asked again"},
		"a code that nobody knows":            {secret, says(429, "slow_your_horses"), "the issuer takes fewer requests than it gets", `do several gateways share client "gw"`},
		"401 and no more":                     {secret, says(401, ""), `the issuer does not take the proof of client "gw"`, "`client_auth`"},
		"403 and no more":                     {secret, says(403, ""), "the issuer forbids this gateway to ask", "addresses"},
		"404 and no more":                     {secret, says(404, ""), "there is no token endpoint at this address", "`token_url` of [token.cloud]"},
		"a redirect":                          {secret, says(307, ""), "the issuer sends this gateway elsewhere", "`token_url`"},
		"502 and no more":                     {secret, says(502, ""), "the issuer has a fault of its own, or is overloaded", "asked again"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEndpoint(t, c.answer)
			e.chip.secrets["file:/s"] = "s3cret-of-the-app"
			e.chip.keys["ec"] = newKey(t)
			token := c.token
			token.TokenURL = e.URL
			g := newGateway(t, &e.issuer, t.TempDir(), map[string]*config.Token{"cloud": &token})
			_, err := g.get("cloud")
			means(t, err, g.now(), c.what, c.hint)
			if text, hint := health.Words(err, g.now()); strings.Contains(text+hint, "s3cret-of-the-app") {
				t.Errorf("the secret is in %s", text)
			}
		})
	}

	t.Run("nobody listens", func(t *testing.T) {
		e := newEndpoint(t, nil)
		e.chip.secrets["file:/s"] = "x"
		e.Close()
		token := secret
		token.TokenURL = e.URL
		g := newGateway(t, &e.issuer, t.TempDir(), map[string]*config.Token{"cloud": &token})
		_, err := g.get("cloud")
		means(t, err, g.now(), "nothing listens at the peer's port", "is the peer running")
	})
	t.Run("a name that is not in the DNS", func(t *testing.T) {
		e := newEndpoint(t, nil)
		e.chip.secrets["file:/s"] = "x"
		token := secret
		token.Issuer = "https://issuer.invalid"
		g := newGateway(t, &e.issuer, t.TempDir(), map[string]*config.Token{"cloud": &token})
		_, err := g.get("cloud")
		if text, _ := health.Words(err, g.now()); !strings.HasPrefix(text, `there is no host "issuer.invalid"`) && !strings.HasPrefix(text, `no DNS server answers for "issuer.invalid"`) {
			t.Error(text)
		}
	})
}

// TestTokensThatDevicesBringAreExplained has each fault of a token that is shown to a listener.
func TestTokensThatDevicesBringAreExplained(t *testing.T) {
	p := newIDP(t)
	b := newOutsideBench(t, fmt.Sprintf("[issuer.plant]\nurl = %q\naudience = \"drawbridge\"\nca = \"ca.crt\"\n", p.URL), map[string]string{"ca.crt": string(p.ca())})
	now := time.Unix(b.clock.Load(), 0)
	good := map[string]any{"iss": p.URL, "sub": "th-1", "aud": "drawbridge", "exp": now.Add(time.Hour).Unix(), "iat": now.Unix()}
	but := func(change map[string]any) map[string]any {
		c := maps.Clone(good)
		maps.Copy(c, change)
		return c
	}
	forged := signed(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: newKey(t), KeyID: "stranger"}}, good)
	for name, c := range map[string]struct{ token, what, hint string }{
		"ended": {p.token(but(map[string]any{"exp": now.Add(-73 * time.Hour).Unix()})),
			"the token ended on " + now.Add(-73*time.Hour).UTC().Format(time.DateOnly) + ": it was not renewed, or its clock or ours is off by 3 days", "must fetch another"},
		"not begun": {p.token(but(map[string]any{"nbf": now.Add(5*time.Hour + 30*time.Minute).Unix()})),
			"the token begins on " + now.Add(5*time.Hour).UTC().Format(time.DateOnly) + ": its clock or ours is off by 5 hours", "timedatectl"},
		"for others":        {p.token(but(map[string]any{"aud": []string{"mail", "chat"}})), `the token is for ["mail" "chat"], not for "drawbridge"`, "`audience` of [issuer.plant]"},
		"of an unknown key": {forged, fmt.Sprintf(`no key of %q has signed the token; it names the key "stranger"`, p.URL), "`jwks_uri`"},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(b.clock.Add(10), 0) // the issuer is asked for keys once in five seconds
			_, err := b.realm.Login(t.Context(), []string{"jwt"}, auth.Credentials{Listener: "shop", User: "th-1", Password: []byte(c.token)})
			if !errors.Is(err, auth.ErrUnknown) {
				t.Fatal(err)
			}
			means(t, err, now, c.what, c.hint)
			if text, hint := health.Words(err, now); strings.Contains(text+hint, c.token) {
				t.Error("the token is shown")
			}
		})
	}
}

// TestLogInsOfPeopleAreExplained has what an issuer sends a browser back with, and what it says to the code.
func TestLogInsOfPeopleAreExplained(t *testing.T) {
	now := time.Now()
	means(t, auth.LogInRefused("access_denied", "no", "portal"), now, `the issuer, or who was asked there, has denied client "portal" the token (the issuer answered access_denied: no)`, "rules")
	means(t, auth.LogInRefused("unsupported_response_type", "", "portal"), now, "the issuer does not let the client log people in by a code", "authorization code flow")
	means(t, auth.LogInRefused("invalid_scope", "", "portal"), now, `the issuer gives no such scope to client "portal": "openid profile"`, "[status]")
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	_, err := http.Get(server.URL)
	means(t, auth.LogInError(err, "portal", true), now, "nothing listens at the peer's port", "is the peer running")
}
