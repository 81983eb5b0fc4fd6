package auth

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/drawbridge/drawbridge/config"
)

const (
	assertionLife = 2 * time.Minute
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	grantJWT      = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantDevice   = "urn:ietf:params:oauth:grant-type:device_code"
	typeJWT       = "urn:ietf:params:oauth:token-type:jwt"
	skewMatters   = 5 * time.Second // the Date header knows seconds, and answers take some
)

var errNonce = errors.New("the issuer wants a nonce in the proof")

// TokenError is an issuer's refusal (RFC 6749 section 5.2).
type TokenError struct {
	Status      int
	Code        string // "invalid_client", ...; empty where the issuer gave none
	Description string
	RetryAfter  time.Duration

	entra  int           // Entra's own number of the error; zero: none
	skew   time.Duration // by which the issuer's clock is ahead of ours
	asked  config.Token  // what was asked for, as the file has it
	source string        // [token.NAME]
	table  string        // of the file, where it is another than that
}

func (e *TokenError) Error() string {
	s := "the issuer answered"
	if e.Status != 0 {
		s += " " + strconv.Itoa(e.Status)
	}
	if e.Code != "" {
		s += " " + e.Code
	}
	if e.Description != "" {
		s += ": " + e.Description
	}
	return s
}

// endpoints is what an issuer has told of itself.
type endpoints struct {
	token  string
	device string
}

// granted is what an issuer gives.
type granted struct {
	value, kind, refresh string
	life                 time.Duration // zero: it did not say
}

// connect makes the HTTP client.
func (s *Source) connect() error {
	tlsConfig, ca, err := trust(s.cfg.CA, s.t.o.Now)
	if err != nil {
		return err
	}
	s.ca = ca
	if s.cfg.ClientAuth == "tls" {
		tlsConfig.GetClientCertificate = func(req *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return s.t.o.Keys.Certificate(req.Context(), s.cfg.Key)
		}
	}
	s.wire = wireTo(tlsConfig)
	s.wire.DialContext = s.t.o.Dial
	var transport http.RoundTripper = &dated{s, s.t.o.Clock.Transport(s.wire)}
	if s.cfg.DPoP {
		s.dpop = &dpop{s: s, nonces: map[string]string{}}
		transport = &proving{s.dpop, transport}
	}
	s.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return nil
}

// dated learns from each answer by how much the issuer's clock differs from ours.
type dated struct {
	s    *Source
	next http.RoundTripper
}

func (d *dated) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := d.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if date, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		skew := date.Sub(d.s.t.o.Now())
		if skew.Abs() < skewMatters {
			skew = 0
		}
		d.s.mu.Lock()
		d.s.skew = skew
		d.s.mu.Unlock()
	}
	return found(req, res, nil)
}

// now gives the time by the issuer's clock, as far as it has been seen.
func (s *Source) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.t.o.Now().Add(s.skew)
}

func (s *Source) skewed() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.skew
}

// find gives the endpoints, discovered where that is needed (and once).
func (s *Source) find(ctx context.Context) (*endpoints, error) {
	if s.cfg.TokenURL != "" {
		return &endpoints{token: s.cfg.TokenURL}, nil
	}
	s.mu.Lock()
	points := s.points
	s.mu.Unlock()
	if points != nil {
		return points, nil
	}
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, s.client), s.cfg.Issuer)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", clipped{err})
	}
	var more struct {
		Device  string            `json:"device_authorization_endpoint"`
		Aliases map[string]string `json:"mtls_endpoint_aliases"` // RFC 8705 section 5
	}
	if err := provider.Claims(&more); err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	points = &endpoints{token: provider.Endpoint().TokenURL, device: more.Device}
	if s.cfg.ClientAuth == "tls" {
		if a := more.Aliases["token_endpoint"]; a != "" {
			points.token = a
		}
		if a := more.Aliases["device_authorization_endpoint"]; a != "" {
			points.device = a
		}
	}
	if !strings.HasPrefix(points.token, "https://") || points.device != "" && !strings.HasPrefix(points.device, "https://") {
		return nil, fmt.Errorf("discovery: the endpoint %q is not https", points.token)
	}
	s.mu.Lock()
	s.points = points
	s.mu.Unlock()
	return points, nil
}

// obtain asks the issuer for a token by the grant of the file.
func (s *Source) obtain(ctx context.Context) (granted, error) {
	points, err := s.find(ctx)
	if err != nil {
		return granted{}, err
	}
	got, err := s.request(ctx, points, s.grant)
	if err != nil {
		if e, ok := errors.AsType[*TokenError](err); ok && e.Code == "invalid_grant" {
			s.forget()
		}
		return granted{}, err
	}
	if s.cfg.Grant == "refresh_token" {
		// A disk that does not take it is a problem of its own; the token serves all the same.
		_ = s.keep(ctx, got.refresh)
	}
	return got, nil
}

// request asks once, and once more where the issuer wanted a nonce, or where its answer showed that the clocks differ.
func (s *Source) request(ctx context.Context, points *endpoints, params func(context.Context, *endpoints) (url.Values, error)) (granted, error) {
	before := s.skewed()
	got, err := s.once(ctx, points, params)
	if err != nil && (errors.Is(err, errNonce) || (s.skewed()-before).Abs() >= skewMatters && refused(err)) {
		got, err = s.once(ctx, points, params)
	}
	return got, err
}

func refused(err error) bool {
	e, ok := errors.AsType[*TokenError](err)
	return ok && e.Status < 500
}

func (s *Source) once(ctx context.Context, points *endpoints, params func(context.Context, *endpoints) (url.Values, error)) (granted, error) {
	form, err := params(ctx, points)
	if err != nil {
		return granted{}, err
	}
	c := &clientcredentials.Config{TokenURL: points.token, Scopes: s.cfg.Scopes, EndpointParams: form, AuthStyle: oauth2.AuthStyleInParams}
	if err := s.authenticate(ctx, points, c); err != nil {
		return granted{}, err
	}
	for k, v := range s.cfg.Params {
		form.Set(k, v)
	}
	token, err := c.Token(context.WithValue(ctx, oauth2.HTTPClient, s.client))
	if err != nil {
		return granted{}, s.plain(err)
	}
	got := granted{value: token.AccessToken, kind: token.Type(), refresh: token.RefreshToken}
	if strings.EqualFold(got.kind, "dpop") {
		got.kind = "DPoP"
	} else if s.cfg.DPoP {
		return granted{}, errors.New("the issuer gave a token that is not bound to the key")
	}
	switch life := token.Extra("expires_in").(type) {
	case float64:
		got.life = time.Duration(min(max(life, 0), 10*365*24*3600)) * time.Second
	case string:
		if n, err := strconv.ParseUint(life, 10, 31); err == nil {
			got.life = time.Duration(n) * time.Second
		}
	}
	return got, nil
}

// plain gives the refusal without the answer's body, which may hold anything.
func (s *Source) plain(err error) error {
	if errors.Is(err, errNonce) {
		return errNonce
	}
	r, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		return err
	}
	e := refusal(r, s.cfg)
	e.skew, e.source = s.skewed(), s.name
	return e
}

// clip makes foreign text fit for a line of a log.
func clip(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// grant gives the parameters of the file's grant.
func (s *Source) grant(ctx context.Context, points *endpoints) (url.Values, error) {
	switch s.cfg.Grant {
	case "jwt_bearer":
		subject := s.cfg.Subject
		if subject == "" {
			subject = s.cfg.ClientID
		}
		issuer := s.cfg.ClientID
		if issuer == "" {
			issuer = subject
		}
		a, err := s.assertion(ctx, points, issuer, subject)
		return url.Values{"grant_type": {grantJWT}, "assertion": {a}}, err
	case "token_exchange":
		token, err := s.other(ctx, s.cfg.SubjectToken)
		return url.Values{"grant_type": {grantExchange}, "subject_token": {token}, "subject_token_type": {typeJWT}}, err
	case "refresh_token":
		token, err := s.kept(ctx)
		return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}, err
	}
	return url.Values{}, nil
}

// other gives the token of another source.
func (s *Source) other(ctx context.Context, name string) (string, error) {
	source, err := s.t.Source(name)
	if err != nil {
		return "", err
	}
	token, err := source.Token(ctx)
	return token.Value, err
}

// authenticate adds to the request who the client is.
func (s *Source) authenticate(ctx context.Context, points *endpoints, c *clientcredentials.Config) error {
	c.ClientID = s.cfg.ClientID
	switch s.cfg.ClientAuth {
	case "client_secret_basic", "client_secret_post":
		secret, err := s.t.o.Keys.Secret(ctx, string(s.cfg.ClientSecret))
		if err != nil {
			return err
		}
		c.ClientSecret = string(secret)
		clear(secret)
		if s.cfg.ClientAuth == "client_secret_basic" {
			c.AuthStyle = oauth2.AuthStyleInHeader
		}
	case "private_key_jwt":
		a, err := s.assertion(ctx, points, s.cfg.ClientID, s.cfg.ClientID)
		if err != nil {
			return err
		}
		c.EndpointParams.Set("client_assertion_type", assertionType)
		c.EndpointParams.Set("client_assertion", a)
	case "token":
		token, err := s.other(ctx, s.cfg.ClientToken)
		if err != nil {
			return err
		}
		c.EndpointParams.Set("client_assertion_type", assertionType)
		c.EndpointParams.Set("client_assertion", token)
	}
	return nil
}

// assertion signs who we are in the chip (RFC 7523 section 3), anew for each request.
func (s *Source) assertion(ctx context.Context, points *endpoints, issuer, subject string) (string, error) {
	key, err := s.t.o.Keys.Signer(ctx, s.cfg.Key)
	if err != nil {
		return "", err
	}
	header := map[jose.HeaderKey]any{jose.HeaderType: "JWT"}
	switch {
	case s.cfg.X5T:
		cert, err := s.t.o.Keys.Certificate(ctx, s.cfg.Key)
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256(cert.Certificate[0])
		header["x5t#S256"] = base64.RawURLEncoding.EncodeToString(sum[:])
	case s.cfg.KeyID != "":
		header["kid"] = s.cfg.KeyID
	default:
		kid, err := Thumbprint(key.Public())
		if err != nil {
			return "", err
		}
		header["kid"] = kid
	}
	audience := s.cfg.Audience
	if audience == "" {
		audience = points.token
	}
	now := s.now()
	return signJWT(key, false, header, map[string]any{
		"iss": issuer, "sub": subject, "aud": audience, "jti": tokenID(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
}
