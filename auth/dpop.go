package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// dpop proves at each request that we hold the key to which tokens are bound (RFC 9449).
type dpop struct {
	s *Source

	mu     sync.Mutex
	nonces map[string]string // guarded by mu; the last that each origin has given
}

func origin(u *url.URL) string { return u.Scheme + "://" + u.Host }

// proof makes the value of a DPoP header. token is empty at the token endpoint.
func (d *dpop) proof(ctx context.Context, method string, u *url.URL, token string, now time.Time) (string, error) {
	key, err := d.s.t.o.Keys.Signer(ctx, d.s.cfg.Key)
	if err != nil {
		return "", err
	}
	claims := map[string]any{
		"jti": tokenID(), "htm": method, "htu": (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String(), "iat": now.Unix(),
	}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	d.mu.Lock()
	if n := d.nonces[origin(u)]; n != "" {
		claims["nonce"] = n
	}
	d.mu.Unlock()
	return signJWT(key, true, map[jose.HeaderKey]any{jose.HeaderType: "dpop+jwt"}, claims)
}

// learn keeps the nonce that an origin has given, and tells whether it is a new one.
func (d *dpop) learn(u *url.URL, res *http.Response) bool {
	n := res.Header.Get("DPoP-Nonce")
	if n == "" || len(n) > 1024 {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	fresh := d.nonces[origin(u)] != n
	d.nonces[origin(u)] = n
	return fresh
}

// proving is a transport that adds proofs to requests for tokens, and repeats one that wanted a nonce.
type proving struct {
	d    *dpop
	next http.RoundTripper
}

func (p *proving) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodPost {
		return p.next.RoundTrip(req)
	}
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		req.Body.Close()
	}
	send := func() (*http.Response, error) {
		proof, err := p.d.proof(req.Context(), req.Method, req.URL, "", p.d.s.now())
		if err != nil {
			return nil, err
		}
		r := req.Clone(req.Context())
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		r.Body, _ = r.GetBody()
		r.Header.Set("DPoP", proof)
		return p.next.RoundTrip(r)
	}
	res, err := send()
	if err != nil || !p.d.learn(req.URL, res) || res.StatusCode != http.StatusBadRequest && res.StatusCode != http.StatusUnauthorized {
		return res, err
	}
	io.Copy(io.Discard, io.LimitReader(res.Body, maxAnswer))
	res.Body.Close()
	// A client assertion is spent with the first request; who made this one makes another.
	if bytes.Contains(body, []byte("client_assertion=")) {
		return nil, errNonce
	}
	if res, err = send(); err == nil {
		p.d.learn(req.URL, res)
	}
	return res, err
}

// Authorize puts the token into a request to a cloud, with a proof where the token is bound by DPoP, and gives it.
func (s *Source) Authorize(ctx context.Context, req *http.Request) (Token, error) {
	token, err := s.Token(ctx)
	if err != nil {
		return Token{}, err
	}
	if s.dpop == nil || token.Type != "DPoP" {
		req.Header.Set("Authorization", "Bearer "+token.Value)
		return token, nil
	}
	proof, err := s.dpop.proof(ctx, req.Method, req.URL, token.Value, s.now())
	if err != nil {
		return Token{}, err
	}
	req.Header.Set("Authorization", "DPoP "+token.Value)
	req.Header.Set("DPoP", proof)
	return token, nil
}

// Answered takes from a cloud's answer to such a request the nonce for the next one; true: repeat the request, it wanted that.
func (s *Source) Answered(req *http.Request, res *http.Response) bool {
	return s.dpop != nil && s.dpop.learn(req.URL, res) && res.StatusCode == http.StatusUnauthorized
}
