package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
)

// AuthenticatorUnreachable is the problem of an [authenticator] that gives no answer.
var AuthenticatorUnreachable = health.Code{Name: "authenticator-unreachable", Title: "the authenticator cannot be asked", Severity: health.Degraded,
	Hint: "devices that only it knows are refused until it answers", After: 10 * time.Second}

const (
	maxAnswer   = 64 << 10
	answersKept = 16384
	asksAtOnce  = 64
)

// Question is the JSON object that is sent to the authenticator by POST.
type Question struct {
	Listener    string `json:"listener"`
	User        string `json:"user,omitempty"`
	Password    string `json:"password,omitempty"`
	ClientID    string `json:"client_id,omitempty"`
	Remote      string `json:"remote"`                // address and port
	Certificate string `json:"certificate,omitempty"` // PEM, where one was shown
}

// Answer is the JSON object that the authenticator gives with status 200. Status 401, 403 or 404 is a no; any other is no answer.
type Answer struct {
	Device  string    `json:"device"`
	Groups  []string  `json:"groups,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
}

// authenticator asks somebody outside, over HTTPS.
type authenticator struct {
	cfg    config.Authenticator
	client *http.Client
	now    func() time.Time
	health *health.Reporter
	slots  chan struct{}

	gone atomic.Bool // a reload has dropped it

	mu    sync.Mutex
	known map[string]remembered // guarded by mu; by MAC of the question
}

type remembered struct {
	answer Answer
	until  time.Time
}

func (r *Realm) newAuthenticator(cfg *config.Authenticator) (*authenticator, error) {
	tlsConfig, _, err := trust(cfg.CA, r.o.Now)
	if err != nil {
		return nil, fmt.Errorf("authenticator: %w", err)
	}
	if cfg.Key != "" {
		tlsConfig.GetClientCertificate = func(req *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return r.o.Certificate(req.Context(), cfg.Key)
		}
	}
	a := &authenticator{
		cfg: *cfg, now: r.o.Now, slots: make(chan struct{}, asksAtOnce), known: map[string]remembered{},
		client: &http.Client{
			Transport:     &http.Transport{TLSClientConfig: tlsConfig, Proxy: http.ProxyFromEnvironment, OnProxyConnectResponse: health.ProxyAnswer, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: asksAtOnce, IdleConnTimeout: time.Minute},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // passwords go nowhere else
		},
	}
	if r.o.Health != nil {
		a.health = r.o.Health.For("authenticator")
	}
	return a, nil
}

func (a *authenticator) close() {
	a.gone.Store(true)
	a.client.CloseIdleConnections()
	a.health.ClearAll()
}

// external asks the authenticator.
func (r *Realm) external(ctx context.Context, c *Credentials) (Identity, error) {
	t := r.now.Load()
	if t.ask == nil {
		return Identity{}, errors.New("there is no [authenticator]")
	}
	q := Question{Listener: c.Listener, User: c.User, Password: string(c.Password), ClientID: c.ClientID, Remote: c.Remote.String()}
	var fingerprint []byte
	if len(c.Chain) > 0 {
		sum := sha256.Sum256(c.Chain[0].Raw)
		fingerprint = sum[:]
		q.Certificate = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Chain[0].Raw}))
	}
	// The port changes with every connection and tells nothing.
	mark := string(r.peppered([]byte(q.Listener), []byte(q.User), c.Password, []byte(q.ClientID), []byte(c.Remote.Addr().String()), fingerprint))
	answer, ok := t.ask.recall(mark)
	if !ok {
		who := attempt{c.User + "\x00" + c.ClientID, network(c.Remote.Addr())}
		if !r.back.begin(who) {
			return Identity{}, ErrBackoff
		}
		var err error
		if answer, err = t.ask.ask(ctx, mark, &q); !errors.Is(err, ErrUnknown) {
			r.back.succeeded(who)
		}
		if err != nil {
			return Identity{}, err
		}
	}
	if !config.ValidDevice(answer.Device) {
		return Identity{}, fmt.Errorf("%w: the authenticator named no device", ErrUnknown)
	}
	d := t.devices[answer.Device]
	p := &proof{groups: answer.Groups[:min(len(answer.Groups), maxTokenGroups)]}
	id := Identity{Device: answer.Device, Groups: merged(d, p.groups), Method: "http", Credential: q.User, Expires: answer.Expires, proof: p}
	id.Sleepy = d != nil && d.cfg.Sleepy
	if id.Credential == "" && fingerprint != nil {
		id.Credential = hex.EncodeToString(fingerprint)
	}
	return id, nil
}

// recall gives the answer that is remembered.
func (a *authenticator) recall(mark string) (Answer, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok := a.known[mark]
	return m.answer, ok && a.now().Before(m.until)
}

// ask gets an answer, and remembers a yes.
func (a *authenticator) ask(ctx context.Context, mark string, q *Question) (Answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.cfg.Timeout.Std(), errors.New("the authenticator gave no answer in time"))
	defer cancel()
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		return Answer{}, context.Cause(ctx)
	}
	answer, err := a.post(ctx, q)
	switch {
	case err == nil:
		a.health.Clear(&AuthenticatorUnreachable)
		a.remember(mark, answer)
	case errors.Is(err, ErrUnknown):
		a.health.Clear(&AuthenticatorUnreachable)
	case !a.gone.Load():
		a.health.Fail(&AuthenticatorUnreachable, err)
	}
	return answer, err
}

func (a *authenticator) remember(mark string, answer Answer) {
	now := a.now()
	until := now.Add(a.cfg.Cache.Std())
	if !answer.Expires.IsZero() && answer.Expires.Before(until) {
		until = answer.Expires
	}
	if !now.Before(until) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= answersKept {
		for k, m := range a.known {
			if !now.Before(m.until) || len(a.known) >= answersKept {
				delete(a.known, k)
			}
		}
	}
	a.known[mark] = remembered{answer, until}
}

func (a *authenticator) post(ctx context.Context, q *Question) (Answer, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return Answer{}, ErrUnknown // a user name that is not UTF-8 becomes one that is; nothing else can happen
	}
	defer clear(body)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.cfg.URL, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := a.client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		io.Copy(io.Discard, io.LimitReader(res.Body, maxAnswer))
		return Answer{}, ErrUnknown
	default:
		return Answer{}, fmt.Errorf("the authenticator: %w", &health.Answer{Status: res.StatusCode})
	}
	var answer Answer
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&answer); err != nil {
		return Answer{}, fmt.Errorf("the authenticator's answer: %w", err)
	}
	if !answer.Expires.IsZero() && !a.now().Before(answer.Expires) {
		return Answer{}, ErrUnknown
	}
	return answer, nil
}
