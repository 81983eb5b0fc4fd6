package aws

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/health"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

const (
	freshFor   = 5 * time.Minute // credentials that live no longer are renewed before they are used
	answerMax  = 64 << 10
	answerTime = 15 * time.Second
)

// vault keeps the role's credentials while they live.
type vault struct {
	mu   sync.Mutex
	kept credentials // guarded by mu
}

// credentials gives credentials that live for a while yet.
func (c *Connector) credentials(ctx context.Context) (credentials, error) {
	c.vault.mu.Lock()
	defer c.vault.mu.Unlock()
	if c.vault.kept.accessKey != "" && c.env.Now().Add(freshFor).Before(c.vault.kept.expires) {
		return c.vault.kept, nil
	}
	fetch := c.byCertificate
	if c.cfg.Token != "" {
		fetch = c.byToken
	}
	fresh, err := fetch(ctx)
	if err != nil {
		if c.vault.kept.accessKey != "" && c.env.Now().Before(c.vault.kept.expires) && !msg.IsPermanent(err) {
			return c.vault.kept, nil // the last minutes of what there is are better than nothing
		}
		return credentials{}, err
	}
	c.vault.kept = fresh
	return fresh, nil
}

// byToken exchanges the token for credentials of the role (STS AssumeRoleWithWebIdentity).
func (c *Connector) byToken(ctx context.Context) (credentials, error) {
	token, _, err := c.bearer.Token(ctx)
	if err != nil {
		return credentials{}, err
	}
	at := c.cfg.STS
	if at == "" {
		at = "https://sts." + c.cfg.Region + ".amazonaws.com/"
	}
	form := url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {c.cfg.RoleARN},
		"RoleSessionName": {sessionName(c.clientID())}, "WebIdentityToken": {token},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, strings.NewReader(form.Encode()))
	if err != nil {
		return credentials{}, fmt.Errorf("sts: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	status, body, err := c.fetch(req, nil)
	if err != nil {
		return credentials{}, fmt.Errorf("sts: %w", err)
	}
	got, err := readSTS(status, body)
	if err != nil {
		err = northbound.Explain(err, hints())
	}
	return got, c.bearer.Judge(err)
}

// sessionName is a RoleSessionName: 2 to 64 of [\w+=,.@-].
func sessionName(id string) string {
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_+=,.@-", r)) {
			return r
		}
		return '-'
	}, "drawbridge-"+id)
	return name[:min(len(name), 64)]
}

// refusal is the answer of a service that gives no credentials.
type refusal struct{ service, code, text string }

func (r *refusal) Error() string { return fmt.Sprintf("%s: %s: %q", r.service, r.code, r.text) }

// readSTS reads the answer by names: their order is not fixed.
func readSTS(status int, body []byte) (credentials, error) {
	var a struct {
		Result struct {
			Credentials struct {
				AccessKeyID     string `xml:"AccessKeyId"`
				SecretAccessKey string
				SessionToken    string
				Expiration      time.Time
			}
		} `xml:"AssumeRoleWithWebIdentityResult"`
		Error struct{ Code, Message string }
	}
	err := xml.Unmarshal(body, &a)
	if status != http.StatusOK {
		if a.Error.Code == "" {
			return credentials{}, fmt.Errorf("sts: %w", &health.Answer{Status: status})
		}
		refused := &refusal{"sts", a.Error.Code, a.Error.Message}
		switch a.Error.Code {
		case "AccessDenied", "ExpiredTokenException", "IDPRejectedClaim", "InvalidIdentityToken", "MalformedPolicyDocument", "PackedPolicyTooLarge", "RegionDisabledException", "ValidationError":
			return credentials{}, msg.Permanent(refused)
		}
		return credentials{}, refused
	}
	k := a.Result.Credentials
	if err != nil || k.AccessKeyID == "" || k.SecretAccessKey == "" || k.Expiration.IsZero() {
		return credentials{}, errors.New("sts: the answer holds no credentials")
	}
	return credentials{k.AccessKeyID, k.SecretAccessKey, k.SessionToken, k.Expiration}, nil
}

// byCertificate gets credentials of the role alias from the IoT credentials provider.
func (c *Connector) byCertificate(ctx context.Context) (credentials, error) {
	at := &url.URL{Scheme: "https", Host: c.cfg.Credentials, Path: "/role-aliases/" + c.cfg.RoleAlias + "/credentials"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return credentials{}, fmt.Errorf("credentials provider: %w", err)
	}
	if c.cfg.Thing != "" {
		req.Header.Set("x-amzn-iot-thingname", c.cfg.Thing)
	}
	cert, err := c.env.Keys.Certificate(ctx, c.cfg.Key)
	if err != nil {
		return credentials{}, fmt.Errorf("key %s: %w", c.cfg.Key, err)
	}
	status, body, err := c.fetch(req, cert)
	if err != nil {
		return credentials{}, fmt.Errorf("credentials provider: %w", err)
	}
	got, err := readProvider(status, body)
	if err != nil {
		err = northbound.Explain(err, hints())
	}
	return got, err
}

func readProvider(status int, body []byte) (credentials, error) {
	var a struct {
		Credentials struct {
			AccessKeyID     string    `json:"accessKeyId"`
			SecretAccessKey string    `json:"secretAccessKey"`
			SessionToken    string    `json:"sessionToken"`
			Expiration      time.Time `json:"expiration"`
		} `json:"credentials"`
		Message string `json:"message"`
	}
	err := json.Unmarshal(body, &a)
	switch {
	case status == http.StatusForbidden:
		return credentials{}, msg.Permanent(&refusal{"credentials provider", "refused", a.Message})
	case status != http.StatusOK:
		return credentials{}, fmt.Errorf("credentials provider: %w: %q", &health.Answer{Status: status}, a.Message)
	case err != nil || a.Credentials.AccessKeyID == "" || a.Credentials.SecretAccessKey == "" || a.Credentials.Expiration.IsZero():
		return credentials{}, errors.New("credentials provider: the answer holds no credentials")
	}
	k := a.Credentials
	return credentials{k.AccessKeyID, k.SecretAccessKey, k.SessionToken, k.Expiration}, nil
}

// fetch sends one request over TLS, with a client certificate where there is one.
func (c *Connector) fetch(req *http.Request, cert *tls.Certificate) (status int, body []byte, err error) {
	config, err := c.tls()
	if err != nil {
		return 0, nil, err
	}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	transport := &http.Transport{DialContext: c.env.Dial, TLSClientConfig: config, DisableKeepAlives: true, ForceAttemptHTTP2: false}
	client := &http.Client{
		Transport: transport, Timeout: answerTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("it redirects") },
	}
	answer, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err = io.ReadAll(io.LimitReader(answer.Body, answerMax))
	return answer.StatusCode, body, err
}
