package auth

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
)

// IssuerUnreachable is the problem of an [issuer] whose keys cannot be fetched.
var IssuerUnreachable = health.Code{Name: "issuer-unreachable", Title: "the issuer of tokens cannot be asked for its keys", Severity: health.Degraded,
	Hint: "drawbridge doctor; devices that log in by its tokens are refused until it answers", After: 10 * time.Second}

const (
	issuerTimeout  = 10 * time.Second
	issuerPause    = 5 * time.Second // between two requests for the same URL
	maxToken       = 16 << 10
	maxTokenGroups = 64
)

// algorithms are those of public keys alone: a token "signed" with a secret or with none proves nothing.
var algorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA,
}

// issuer verifies the tokens of one [issuer]. It is discovered when the first of them comes, and its keys are kept through its outages.
type issuer struct {
	name   string
	cfg    config.Issuer
	ca     string // content of the CA file
	now    func() time.Time
	health *health.Reporter
	client *http.Client
	wire   *http.Transport // of client
	paced  *paced          // over wire

	life   context.Context // of requests for keys, which several log-ins wait for
	cancel context.CancelFunc

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier // guarded by mu; nil until discovered
	finding  chan struct{}         // guarded by mu; closed when the discovery that runs has ended
	failed   error                 // guarded by mu; of the last discovery
	failedAt time.Time             // guarded by mu
}

func (r *Realm) newIssuer(ctx context.Context, name string, cfg *config.Issuer) (*issuer, error) {
	i := &issuer{name: name, cfg: *cfg, now: r.o.Now}
	if r.o.Health != nil {
		i.health = r.o.Health.For("issuer " + name)
	}
	tlsConfig, ca, err := trust(cfg.CA, r.o.Now)
	if err != nil {
		return nil, fmt.Errorf("issuer %q: %w", name, err)
	}
	i.ca = ca
	i.wire = wireTo(tlsConfig)
	i.paced = &paced{next: r.o.Clock.Transport(i.wire), now: r.o.Now, last: map[string]time.Time{}}
	i.client = &http.Client{Timeout: issuerTimeout, Transport: i.paced}
	i.life, i.cancel = context.WithCancel(oidc.ClientContext(context.WithoutCancel(ctx), i.client))
	return i, nil
}

// same tells whether cfg would make the same issuer.
func (i *issuer) same(cfg *config.Issuer) bool {
	a, b := i.cfg, *cfg
	a.Pos, b.Pos = config.Pos{}, config.Pos{}
	if a != b {
		return false
	}
	if cfg.CA == "" {
		return true
	}
	ca, err := os.ReadFile(string(cfg.CA))
	return err == nil && string(ca) == i.ca
}

func (i *issuer) close() {
	i.cancel()
	i.wire.CloseIdleConnections()
	i.health.ClearAll()
}

// away reports that the issuer cannot be asked, unless that is because nobody asks any more.
func (i *issuer) away(err error) {
	if i.life.Err() == nil {
		i.health.Fail(&IssuerUnreachable, err)
	}
}

// trust makes the TLS configuration of a client that believes the CA file, or the system where there is none, and gives what is in the
// file, by which it is seen that another one is there.
func trust(ca config.Path, now func() time.Time) (c *tls.Config, content string, err error) {
	if ca != "" { // before it is read as certificates: what is there by then is seen the next time
		b, err := os.ReadFile(string(ca))
		if err != nil {
			return nil, "", fmt.Errorf("ca: %w", err)
		}
		content = string(b)
	}
	roots, err := ca.CertPool()
	return &tls.Config{MinVersion: tls.VersionTLS12, Time: now, RootCAs: roots}, content, err
}

// paced lets one request a URL through per issuerPause: a token with an unknown key makes its verifier ask the issuer again, and
// whoever sends such tokens is not to lead us in flooding it.
type paced struct {
	next http.RoundTripper
	now  func() time.Time

	mu   sync.Mutex
	last map[string]time.Time // guarded by mu
	err  error                // guarded by mu; of the last request, for go-oidc tells of that of keys in text alone
}

func (p *paced) RoundTrip(req *http.Request) (*http.Response, error) {
	url := req.URL.String()
	now := p.now()
	p.mu.Lock()
	wait := justNow(p.last[url], now)
	if !wait {
		p.last[url] = now
	}
	p.mu.Unlock()
	if wait {
		return nil, errPaced
	}
	res, err := p.next.RoundTrip(req)
	res, err = found(req, res, err)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
	return res, err
}

func (p *paced) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// justNow tells whether then is less than issuerPause before now; a clock that has been set back does not make it so.
func justNow(then, now time.Time) bool {
	d := now.Sub(then)
	return d >= 0 && d < issuerPause
}

var errPaced = errors.New("the issuer was asked a moment ago")

// ready gives the verifier, after discovery where that is still to be done.
func (i *issuer) ready(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	for {
		i.mu.Lock()
		switch {
		case i.verifier != nil:
			defer i.mu.Unlock()
			return i.verifier, nil
		case i.finding == nil && i.failed != nil && justNow(i.failedAt, i.now()):
			defer i.mu.Unlock()
			return nil, i.failed
		}
		mine := i.finding == nil
		if mine {
			i.finding = make(chan struct{})
		}
		done := i.finding
		i.mu.Unlock()
		if !mine {
			select {
			case <-done:
				continue
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		provider, err := oidc.NewProvider(i.life, i.cfg.URL)
		i.mu.Lock()
		if err != nil {
			err = fmt.Errorf("discovery: %w", clipped{err})
			i.failed, i.failedAt = fmt.Errorf("issuer %q: %w", i.name, err), i.now()
			i.away(err)
		} else {
			i.failed = nil
			i.verifier = provider.VerifierContext(i.life, &oidc.Config{ClientID: i.cfg.Audience, SupportedSigningAlgs: algorithms, Now: i.now})
			i.health.Clear(&IssuerUnreachable)
		}
		i.finding = nil
		close(done)
		i.mu.Unlock()
	}
}

// issuerOf reads, without believing it, which issuer a token names.
func issuerOf(token string) (string, bool) {
	_, rest, ok := strings.Cut(token, ".")
	body, _, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 {
		return "", false
	}
	data, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil {
		return "", false
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	return claims.Issuer, json.Unmarshal(data, &claims) == nil
}

// token checks a JSON web token that was given as the password. The user name proves nothing and is not looked at.
func (r *Realm) token(ctx context.Context, c *Credentials) (Identity, error) {
	if len(c.Password) > maxToken {
		return Identity{}, ErrUnknown
	}
	raw := string(c.Password)
	url, ok := issuerOf(raw)
	t := r.now.Load()
	i := t.issuers[url]
	if !ok || i == nil {
		return Identity{}, ErrUnknown
	}
	verifier, err := i.ready(ctx)
	if err != nil {
		return Identity{}, err
	}
	token, err := verifier.Verify(ctx, raw)
	if err != nil {
		if strings.Contains(err.Error(), "fetching keys") { // go-oidc's only mark of it
			if !strings.Contains(err.Error(), errPaced.Error()) {
				if failed := i.paced.failure(); failed != nil {
					err = fmt.Errorf("keys: %w", failed)
				}
				i.away(clipped{err})
			}
			return Identity{}, fmt.Errorf("issuer %q: its keys cannot be fetched", i.name)
		}
		return Identity{}, fmt.Errorf("%w: token: %w", ErrUnknown, Blame(err, raw, i.name, i.cfg, i.now()))
	}
	i.health.Clear(&IssuerUnreachable)
	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		return Identity{}, ErrUnknown
	}
	name, _ := claims[i.cfg.DeviceClaim].(string)
	if !config.ValidDevice(name) {
		return Identity{}, fmt.Errorf("%w: the token's claim %q names no device", ErrUnknown, i.cfg.DeviceClaim)
	}
	p := &proof{issuer: url, groups: words(claims[i.cfg.GroupsClaim])}
	d := t.devices[name]
	return Identity{
		Device: name, Groups: merged(d, p.groups), Method: "jwt", Credential: i.name + " " + name, Expires: token.Expiry,
		Sleepy: d != nil && d.cfg.Sleepy, proof: p,
	}, nil
}

// words reads a claim that lists words: an array, or one text with blanks between them.
func words(claim any) []string {
	var list []string
	switch c := claim.(type) {
	case string:
		list = strings.Fields(c)
	case []any:
		for _, v := range c {
			if s, ok := v.(string); ok && s != "" {
				list = append(list, s)
			}
		}
	}
	return list[:min(len(list), maxTokenGroups)]
}
