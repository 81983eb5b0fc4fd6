package auth

import (
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
)

// refusals are what the error codes of an issuer mean: RFC 6749 sections 4.1.2.1 and 5.2, RFC 7523, RFC 8628 section 3.5, RFC 8707, RFC 9449,
// OpenID Connect Core section 3.1.2.6.
var refusals = map[string]*health.Meaning{
	"invalid_scope": {Name: "token-scope", Stays: true, What: "the issuer gives no such scope to client {client}: {scopes}",
		Hint: "look at `scopes` of {table}, and allow them for the client at the issuer"},
	"invalid_target": {Name: "token-target", Stays: true, What: "the issuer does not know the service for which client {client} wants a token",
		Hint: "look at `resource` or `audience` in the params of {table}, and let the client ask for that service at the issuer"},
	"unauthorized_client": {Name: "token-grant-forbidden", Stays: true, What: "the issuer does not let client {client} ask by the grant {grant}",
		Hint: "allow that grant type for the client at the issuer, or look at `grant` and `client_id` of {table}"},
	"unsupported_grant_type": {Name: "token-grant-unknown", Stays: true, What: "the issuer does not know the grant {grant}",
		Hint: "look at `grant` of {table}: its discovery document names those that it has"},
	"invalid_request": {Name: "token-request", Stays: true, What: "the issuer misses something in the request for a token, or takes exception to it",
		Hint: "its answer says what: look at `grant`, `scopes`, `client_auth` and `params` of {table}"},
	"invalid_dpop_proof": {Name: "token-proof", Stays: true, What: "the issuer does not take the proof that this gateway holds the key {key}",
		Hint: "look at `dpop` and `key` of {table}: the issuer wants an algorithm that it knows, ES256 at best, and a clock that is right"},
	"access_denied": {Name: "token-denied", Stays: true, What: "the issuer, or who was asked there, has denied client {client} the token",
		Hint: "look at the issuer's rules for the client; where a person said no by mistake: `drawbridge enroll {token}`"},
	"expired_token": {Name: "token-code-ended", Stays: true, What: "nobody allowed the gateway at the issuer's page in time",
		Hint: "begin anew: `drawbridge enroll {token}`"},
	"interaction_required": {Name: "token-consent", Stays: true, What: "the issuer wants a person to log in or to consent first",
		Hint: "have an administrator consent to the client's permissions at the issuer, or begin anew: `drawbridge enroll {token}`"},
	"server_error": {Name: "token-issuer-fault", What: "the issuer has a fault of its own, or is overloaded",
		Hint: "it is asked again; the issuer's log may say more"},
	"unsupported_response_type": {Name: "token-flow", Stays: true, What: "the issuer does not let the client log people in by a code",
		Hint: "allow the authorization code flow for the client at the issuer"},
}

// likewise are codes that mean what another means.
var likewise = map[string]string{
	"temporarily_unavailable": "server_error", "login_required": "interaction_required", "consent_required": "interaction_required",
	"account_selection_required": "interaction_required", "use_dpop_nonce": "invalid_dpop_proof", "unsupported_token_type": "invalid_request",
	"request_not_supported": "invalid_request", "request_uri_not_supported": "invalid_request", "invalid_request_uri": "invalid_request",
	"invalid_request_object": "invalid_request", "registration_not_supported": "invalid_request",
}

// unknownClients are what "invalid_client" means, by client_auth.
var unknownClients = map[string]*health.Meaning{
	"client_secret": {Name: "token-client-secret", Stays: true, What: "the issuer does not know client {client}, or its secret is wrong or has ended",
		Hint: "compare `client_id` and `client_secret` of {table} with what the issuer has, and see there whether the secret has ended"},
	"private_key_jwt": {Name: "token-client-key", Stays: true, What: "the issuer does not know client {client}, or does not take what the key {key} has signed",
		Hint: "compare `client_id` of {table}, and register the public key of [key.{key}] at the issuer with the kid of `key_id`; is `audience` what it wants?"},
	"tls": {Name: "token-client-certificate", Stays: true, What: "the issuer does not know client {client}, or does not take the certificate of the key {key}",
		Hint: "compare `client_id` of {table}, and register the certificate of [key.{key}], or its subject, at the issuer"},
	"token": {Name: "token-client-token", Stays: true, What: "the issuer does not know client {client}, or does not take the token {other} as its proof",
		Hint: "compare `client_id` of {table}, and have the issuer trust the issuer, subject and audience of [token.{other}]"},
	"none": {Name: "token-client-none", Stays: true, What: "the issuer does not know client {client}, or wants it to prove who it is",
		Hint: "compare `client_id` of {table}, and look at `client_auth`"},
}

// spentGrants are what "invalid_grant" means, by grant.
var spentGrants = map[string]*health.Meaning{
	"refresh_token": {Name: "token-refresh-spent", Stays: true, What: "the issuer does not take the refresh token any more: it has ended, was revoked, or was used before",
		Hint: "get another: `drawbridge enroll {token}`"},
	"jwt_bearer": {Name: "token-assertion", Stays: true, What: "the issuer does not take the assertion that the key {key} has signed for {subject}",
		Hint: "look at `subject`, `audience` and `key` of {table}: the issuer must know the key, and know the subject"},
	"token_exchange": {Name: "token-exchange", Stays: true, What: "the issuer does not take the token {other} in exchange",
		Hint: "have it trust the issuer and audience of [token.{other}], which `subject_token` of {table} names"},
	"authorization_code": {Name: "token-code", Stays: true, What: "the issuer does not take the code of this log-in any more",
		Hint: "log in anew; does the browser reach this page by the address that the issuer has as redirect URI?"},
	"client_credentials": {Name: "token-grant-refused", Stays: true, What: "the issuer does not take what client {client} shows for a token",
		Hint: "its answer says why: look at {table} and at the client's registration"},
}

// entraErrors are the numbers AADSTS… of Microsoft Entra that gateways meet.
var entraErrors = map[int]*health.Meaning{
	7000222: {Name: "entra-secret-ended", Stays: true, What: "the secret of the app registration {client} has expired at Entra",
		Hint: "make another under Certificates & secrets and put it where `client_secret` of {table} points; a key in a chip (`client_auth = \"private_key_jwt\"`) does not end so"},
	7000215: {Name: "entra-secret-wrong", Stays: true, What: "Entra does not take the secret of the app registration {client}",
		Hint: "`client_secret` of {table} must hold the secret's value, not its id, without a blank around it"},
	700027: {Name: "entra-certificate", Stays: true, What: "Entra does not know the certificate of the key {key}, or it has ended",
		Hint: "upload the certificate of [key.{key}] to the app registration under Certificates & secrets, and set `x5t = true` in {table}"},
	700024: {Name: "entra-time", Stays: true, What: "for Entra the assertion is not valid now: it is {theirs} there, and {now} by this clock",
		Hint: "set this machine's clock with `timedatectl`; Entra takes assertions of a few minutes at most"},
	700016: {Name: "entra-client", Stays: true, What: "there is no app registration {client} in this Entra tenant",
		Hint: "look at `client_id` of {table}, and at the tenant in `issuer` or `token_url`: is it the one where the app was registered?"},
	90002: {Name: "entra-tenant", Stays: true, What: "there is no such Entra tenant",
		Hint: "look at the tenant's id in `issuer` or `token_url` of {table}; is it that of another national cloud?"},
	70011: {Name: "entra-scope", Stays: true, What: "Entra does not take the scope {scopes}",
		Hint: "`scopes` of {table} must be one resource with /.default at its end, as \"https://eventgrid.azure.net/.default\""},
	500011: {Name: "entra-resource", Stays: true, What: "the Entra tenant knows no service of the scope {scopes}",
		Hint: "look at `scopes` of {table}; the service must have been used in that tenant, or an administrator must consent to it once"},
	700213: {Name: "entra-federation", Stays: true, What: "the app registration {client} trusts no such token of another issuer",
		Hint: "make a federated credential there with the issuer, subject and audience of [token.{other}], which `client_token` of {table} names"},
	7000112: {Name: "entra-disabled", Stays: true, What: "the app registration {client} is disabled in this Entra tenant",
		Hint: "enable its enterprise application there"},
	53003: {Name: "entra-policy", Stays: true, What: "a Conditional Access policy of the Entra tenant blocks client {client}",
		Hint: "look at the sign-in log of the service principal, and allow this machine's address in the policy"},
}

// entraLike are numbers that mean what another means.
var entraLike = map[int]int{1002012: 70011, 70003: 70011, 500012: 500011, 650057: 500011, 7000218: 7000215, 900023: 90002, 90013: 70011, 700211: 700213, 700212: 700213, 700023: 700213}

// statuses are what answers without a code mean.
var statuses = []struct {
	from, to int
	health.Meaning
}{
	{300, 399, health.Meaning{Name: "token-moved", Stays: true, What: "the issuer sends this gateway elsewhere, where it does not follow",
		Hint: "look at `issuer` or `token_url` of {table}: is it the address after the redirect?"}},
	{401, 401, health.Meaning{Name: "token-unauthorized", Stays: true, What: "the issuer does not take the proof of client {client}",
		Hint: "look at `client_id`, `client_auth` and the secret or key of {table}"}},
	{403, 403, health.Meaning{Name: "token-forbidden", Stays: true, What: "the issuer forbids this gateway to ask, or a firewall before it does",
		Hint: "look at the issuer's rules for addresses and for client {client}"}},
	{404, 405, health.Meaning{Name: "token-nowhere", Stays: true, What: "there is no token endpoint at this address",
		Hint: "look at `issuer` or `token_url` of {table}"}},
	{429, 429, health.Meaning{Name: "token-too-often", What: "the issuer takes fewer requests than it gets",
		Hint: "it is asked again later; do several gateways share client {client}?"}},
	{500, 599, *refusals["server_error"]},
}

// Explain is health.Explainer's.
func (e *TokenError) Explain(now time.Time) (health.Explanation, bool) {
	c := &e.asked
	v := health.Values{"token": e.source, "table": cmp.Or(e.table, "[token."+e.source+"]"), "client": strconv.Quote(c.ClientID), "scopes": strconv.Quote(strings.Join(c.Scopes, " ")), "grant": c.Grant, "key": c.Key,
		"subject": strconv.Quote(cmp.Or(c.Subject, c.ClientID)), "other": cmp.Or(c.SubjectToken, c.ClientToken), "now": now.UTC().Format(time.DateTime), "theirs": now.Add(e.skew).UTC().Format(time.DateTime)}
	m := entraErrors[cmp.Or(entraLike[e.entra], e.entra)]
	if m == nil {
		switch code := cmp.Or(likewise[e.Code], e.Code); code {
		case "invalid_client":
			m = unknownClients[strings.TrimSuffix(strings.TrimSuffix(c.ClientAuth, "_basic"), "_post")]
		case "invalid_grant":
			m = spentGrants[c.Grant]
		default:
			m = refusals[code]
		}
	}
	for i := range statuses {
		if s := &statuses[i]; m == nil && s.from <= e.Status && e.Status <= s.to {
			m = &s.Meaning
		}
	}
	return health.Explanation{Meaning: m, Values: v}, m != nil
}

// refusal makes the error of a refusal without the answer's body, which may hold anything. asked is what was asked for.
func refusal(r *oauth2.RetrieveError, asked config.Token) *TokenError {
	e := &TokenError{Code: clip(r.ErrorCode, 64), Description: clip(r.ErrorDescription, 200), asked: asked}
	if r.Response != nil {
		e.Status = r.Response.StatusCode
		if n, err := strconv.ParseUint(r.Response.Header.Get("Retry-After"), 10, 31); err == nil {
			e.RetryAfter = time.Duration(n) * time.Second
		}
	}
	var entra struct {
		Codes []int `json:"error_codes"`
	}
	if json.Unmarshal(r.Body, &entra) == nil && len(entra.Codes) > 0 {
		e.entra = entra.Codes[0]
	}
	return e
}

// LogInError gives an error of the log-in of a person at an issuer as one that can be explained. secret tells whether the client has one.
func LogInError(err error, clientID string, secret bool) error {
	if r, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		return loggingIn(refusal(r, config.Token{}), clientID, secret)
	}
	return clipped{err}
}

// LogInRefused is the error with which an issuer sends a browser back (RFC 6749 section 4.1.2.1).
func LogInRefused(code, description, clientID string) error {
	return loggingIn(&TokenError{Code: clip(code, 64), Description: clip(description, 200)}, clientID, true)
}

func loggingIn(e *TokenError, clientID string, secret bool) *TokenError {
	e.table, e.asked = "[status]", config.Token{ClientID: clientID, Grant: "authorization_code", ClientAuth: "none", Scopes: []string{"openid", "profile"}}
	if secret {
		e.asked.ClientAuth = "client_secret_basic"
	}
	return e
}

// What is wrong with tokens that others bring, and with what an issuer tells of itself.
var (
	tokenEnded = health.Meaning{Name: "brought-token-ended", What: "the token ended on {end}: it was not renewed, or its clock or ours is off by {gap}",
		Hint: "the device must fetch another from {issuer}; this clock says {now}: if that is wrong, set it with `timedatectl`"}
	tokenEarly = health.Meaning{Name: "brought-token-early", What: "the token begins on {begin}: its clock or ours is off by {gap}",
		Hint: "this clock says {now}: if that is wrong, set it with `timedatectl`; else the clock of {issuer} is"}
	tokenAudience = health.Meaning{Name: "brought-token-audience", What: "the token is for {audience}, not for {wanted}",
		Hint: "have the device ask {issuer} for a token for this gateway, or look at `audience` of [issuer.{name}]"}
	tokenKey = health.Meaning{Name: "brought-token-key", What: "no key of {issuer} has signed the token; it names the key {kid}",
		Hint: "is it a token of that issuer, and of this week? `jwks_uri` in its discovery document lists the keys that it has"}
	unenrolled = health.Meaning{Name: "token-unenrolled", What: "nobody has allowed this gateway at the issuer yet", Hint: "drawbridge enroll {token}"}
	noRefresh  = health.Meaning{Name: "token-no-refresh", Stays: true, What: "the issuer gave no refresh token",
		Hint: "ask for one in {table}: `scopes = [\"openid\", \"offline_access\"]`; the client must be allowed the grant type refresh_token"}
	issuerName = health.Meaning{Name: "issuer-name", Stays: true, What: "the issuer calls itself {discovered}, and the file says {provided}",
		Hint: "write it in the file as the issuer does, to the last slash"}
)

// Blame gives the error with which a token of the issuer did not pass its meaning. Nothing in the token is believed.
func Blame(err error, raw, name string, issuer config.Issuer, now time.Time) error {
	head, rest, _ := strings.Cut(raw, ".")
	body, _, _ := strings.Cut(rest, ".")
	var header struct {
		KeyID string `json:"kid"`
	}
	var claims struct {
		Audience  any   `json:"aud"`
		NotBefore int64 `json:"nbf"`
	}
	if !decoded(head, &header) || !decoded(body, &claims) {
		return err
	}
	begin, audience := time.Unix(claims.NotBefore, 0), words(claims.Audience)
	v := health.Values{"name": name, "issuer": strconv.Quote(issuer.URL), "now": now.UTC().Format(time.DateTime)}
	m := &tokenKey
	switch ended, is := errors.AsType[*oidc.TokenExpiredError](err); {
	case is:
		m, v["end"], v["gap"] = &tokenEnded, ended.Expiry.UTC().Format(time.DateOnly), now.Sub(ended.Expiry)
	case now.Before(begin):
		m, v["begin"], v["gap"] = &tokenEarly, begin.UTC().Format(time.DateOnly), begin.Sub(now)
	case !slices.Contains(audience, issuer.Audience):
		m, v["audience"], v["wanted"] = &tokenAudience, clip(fmt.Sprintf("%q", audience), 200), strconv.Quote(issuer.Audience)
	default:
		v["kid"] = strconv.Quote(clip(header.KeyID, 100))
	}
	return m.Of(err, v)
}

func decoded(part string, into any) bool {
	data, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && json.Unmarshal(data, into) == nil
}

// clipped is an error that may quote a page, of which the beginning is enough.
type clipped struct{ error }

func (c clipped) Error() string { return clip(c.error.Error(), 200) }
func (c clipped) Unwrap() error { return c.error }

// Explain is health.Explainer's.
func (c clipped) Explain(now time.Time) (health.Explanation, bool) {
	if e, ok := errors.AsType[*oidc.IssuerMismatchError](c.error); ok {
		return health.Explanation{Meaning: &issuerName, Values: health.Values{"discovered": strconv.Quote(clip(e.Discovered, 100)), "provided": strconv.Quote(e.Provided)}}, true
	}
	return health.Explain(c.error, now)
}

// wireTo makes a transport to an issuer.
func wireTo(c *tls.Config) *http.Transport {
	return &http.Transport{TLSClientConfig: c, Proxy: http.ProxyFromEnvironment, OnProxyConnectResponse: health.ProxyAnswer, ForceAttemptHTTP2: true,
		MaxIdleConns: 1, IdleConnTimeout: time.Minute}
}

// found makes of an answer to GET that is not 200 an error with the status, and without the page. What is posted is answered with more than that.
func found(req *http.Request, res *http.Response, err error) (*http.Response, error) {
	if err != nil || req.Method != http.MethodGet || res.StatusCode == http.StatusOK {
		return res, err
	}
	res.Body.Close()
	return nil, &health.Answer{Status: res.StatusCode}
}
