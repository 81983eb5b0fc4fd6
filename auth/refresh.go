package auth

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
)

// errNotEnrolled is returned where a refresh token is wanted and none was ever given.
var errNotEnrolled = errors.New("there is no refresh token yet")

// path gives the file of the refresh token, sealed by the chip of the source's key.
func (s *Source) path() string { return filepath.Join(s.t.o.State, s.name+".refresh") }

// bound is what the sealed file is bound to: one moved to another name, issuer or client does not open.
func (s *Source) bound() []byte {
	return fmt.Appendf(nil, "drawbridge refresh token v1\x00%s\x00%s%s\x00%s", s.name, s.cfg.Issuer, s.cfg.TokenURL, s.cfg.ClientID)
}

// kept gives the refresh token, from the disk where it has not been read yet.
func (s *Source) kept(ctx context.Context) (string, error) {
	s.mu.Lock()
	token, unkept := s.refresh, s.unkept
	s.mu.Unlock()
	if token != "" {
		if unkept {
			s.store(ctx, token)
		}
		return token, nil
	}
	sealed, err := os.ReadFile(s.path())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", unenrolled.Of(errNotEnrolled, health.Values{"token": s.name})
	case err != nil:
		return "", fmt.Errorf("refresh token: %w", err)
	}
	sealer, err := s.t.o.Keys.Sealer(ctx, s.cfg.Key)
	if err != nil {
		return "", err
	}
	plain, err := sealer.Unseal(ctx, sealed, s.bound())
	if err != nil {
		return "", fmt.Errorf("refresh token: %w", err)
	}
	token = string(plain)
	clear(plain)
	s.mu.Lock()
	s.refresh = token
	s.mu.Unlock()
	return token, nil
}

// forget drops a refresh token that the issuer does not take, so that the next attempt reads what an enrolment may have written since.
func (s *Source) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh, s.unkept = "", false
}

// keep takes the refresh token that came with an access token: it is on disk before either is used. Where the disk does not take it,
// it is used all the same, since the one on disk is spent, and a problem says so until it has been written.
func (s *Source) keep(ctx context.Context, token string) error {
	s.mu.Lock()
	known := s.refresh == token
	s.mu.Unlock()
	if known || token == "" {
		return nil
	}
	err := s.store(ctx, token)
	s.mu.Lock()
	s.refresh = token
	s.mu.Unlock()
	return err
}

// store writes the token; its error says only that this is not how it should be, see keep.
func (s *Source) store(ctx context.Context, token string) error {
	sealer, err := s.t.o.Keys.Sealer(ctx, s.cfg.Key)
	if err == nil {
		var sealed []byte
		if sealed, err = sealer.Seal(ctx, []byte(token), s.bound()); err == nil {
			err = hwcrypto.WriteFile(s.path(), sealed)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unkept = err != nil; s.unkept && !s.gone {
		s.health.Fail(&TokenUnkept, err)
	}
	if err != nil {
		return fmt.Errorf("refresh token: %w", err)
	}
	s.health.Clear(&TokenUnkept)
	return nil
}

// DevicePrompt is what a person has to do so that the gateway is given a token (RFC 8628 section 3.3).
type DevicePrompt struct {
	URL     string // where to go
	Code    string // what to type there
	Direct  string // URL with the code in it, for a QR code; may be empty
	Expires time.Time
}

// Enroll obtains the first refresh token of [token.NAME] by the device flow, and keeps it sealed. prompt is called once.
func (t *Tokens) Enroll(ctx context.Context, name string, prompt func(DevicePrompt)) error {
	s, err := t.Source(name)
	if err != nil {
		return err
	}
	if s.cfg.Grant != "refresh_token" {
		return fmt.Errorf("token %q: its grant is %q, which needs no enrolment", name, s.cfg.Grant)
	}
	points, err := s.find(ctx)
	if err != nil {
		return fmt.Errorf("token %q: %w", name, err)
	}
	if points.device == "" {
		return fmt.Errorf("token %q: the issuer has no device authorization endpoint", name)
	}
	if err := s.enroll(ctx, points, prompt); err != nil {
		return fmt.Errorf("token %q: %w", name, err)
	}
	return nil
}

func (s *Source) enroll(ctx context.Context, points *endpoints, prompt func(DevicePrompt)) error {
	answer, err := s.askDevice(ctx, points)
	if err != nil {
		return s.plain(err)
	}
	prompt(DevicePrompt{URL: answer.VerificationURI, Code: answer.UserCode, Direct: answer.VerificationURIComplete, Expires: answer.Expiry})
	pause := max(time.Duration(answer.Interval)*time.Second, time.Second)
	grant := func(context.Context, *endpoints) (url.Values, error) {
		return url.Values{"grant_type": {grantDevice}, "device_code": {answer.DeviceCode}}, nil
	}
	for {
		got, err := s.request(ctx, points, grant)
		e, _ := errors.AsType[*TokenError](err)
		switch {
		case err == nil && got.refresh == "":
			return noRefresh.Of(errors.New("the issuer gave no refresh token"), health.Values{"table": "[token." + s.name + "]"})
		case err == nil:
			return s.keep(ctx, got.refresh)
		case e != nil && e.Code == "slow_down":
			pause += 5 * time.Second
		case e == nil || e.Code != "authorization_pending":
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// askDevice sends the device authorization request, with the client's authentication.
func (s *Source) askDevice(ctx context.Context, points *endpoints) (*oauth2.DeviceAuthResponse, error) {
	who := &clientcredentials.Config{EndpointParams: url.Values{}, AuthStyle: oauth2.AuthStyleInParams}
	if err := s.authenticate(ctx, points, who); err != nil {
		return nil, err
	}
	client := *s.client
	var opts []oauth2.AuthCodeOption
	switch {
	case who.AuthStyle == oauth2.AuthStyleInHeader:
		client.Transport = &basic{url.QueryEscape(who.ClientID), url.QueryEscape(who.ClientSecret), client.Transport}
	case who.ClientSecret != "":
		opts = append(opts, oauth2.SetAuthURLParam("client_secret", who.ClientSecret))
	}
	for k := range who.EndpointParams {
		opts = append(opts, oauth2.SetAuthURLParam(k, who.EndpointParams.Get(k)))
	}
	for k, v := range s.cfg.Params {
		opts = append(opts, oauth2.SetAuthURLParam(k, v))
	}
	c := &oauth2.Config{ClientID: who.ClientID, Scopes: s.cfg.Scopes, Endpoint: oauth2.Endpoint{DeviceAuthURL: points.device}}
	return c.DeviceAuth(context.WithValue(ctx, oauth2.HTTPClient, &client), opts...)
}

// basic adds the client's secret to requests (RFC 6749 section 2.3.1).
type basic struct {
	user, password string
	next           http.RoundTripper
}

func (b *basic) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.SetBasicAuth(b.user, b.password)
	return b.next.RoundTrip(req)
}
