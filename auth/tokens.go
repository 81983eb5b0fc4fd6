package auth

import (
	"context"
	"crypto"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/hwcrypto"
	"github.com/drawbridge/drawbridge/internal/health"
)

// Keys is what token sources ask of the key ring. Private keys stay in the chip.
type Keys interface {
	Certificate(ctx context.Context, name string) (*tls.Certificate, error)
	Signer(ctx context.Context, name string) (crypto.Signer, error)
	Sealer(ctx context.Context, name string) (hwcrypto.Sealer, error)
	Secret(ctx context.Context, ref string) ([]byte, error)
}

// TokenOptions is what token sources need besides the file.
type TokenOptions struct {
	Keys   Keys
	State  string // a directory for them alone, existing, mode 0700: refresh tokens, sealed
	Log    *slog.Logger
	Health *health.Tracker
	Now    func() time.Time // the trusted clock
	Clock  *Clock           // the same, where answers may tell it the time; nil: they do not

	// Dial reaches issuers; nil: the net package's own. Through a Dial of its own what goes over the wire can be counted, or go another way.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Tokens holds a Source for each [token.NAME]. All who name the same share it.
type Tokens struct {
	o    TokenOptions
	life context.Context // of requests, which several wait for
	end  context.CancelFunc

	starting sync.Mutex
	closed   bool           // guarded by starting
	requests sync.WaitGroup // waited for once closed

	mu      sync.Mutex
	sources map[string]*Source // guarded by mu
}

// NewTokens makes the sources. It asks nobody yet. ctx lends its values only; Close ends what runs.
func NewTokens(ctx context.Context, cfg map[string]*config.Token, o TokenOptions) (*Tokens, error) {
	t := &Tokens{o: o, sources: map[string]*Source{}}
	t.life, t.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := t.Swap(cfg); err != nil {
		t.end()
		return nil, err
	}
	return t, nil
}

// Swap replaces the sources by those of cfg, or none where it returns an error. A source that stays as it was keeps its token.
func (t *Tokens) Swap(cfg map[string]*config.Token) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	fresh := map[string]*Source{}
	for _, name := range slices.Sorted(maps.Keys(cfg)) {
		if old := t.sources[name]; old != nil && old.same(cfg[name]) {
			fresh[name] = old
			continue
		}
		s, err := t.newSource(name, cfg[name])
		if err != nil {
			return fmt.Errorf("token %q: %w", name, err)
		}
		fresh[name] = s
	}
	for name, s := range t.sources {
		if fresh[name] != s {
			s.close()
		}
	}
	t.sources = fresh
	return nil
}

// Source gives the source of [token.NAME].
func (t *Tokens) Source(name string) (*Source, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sources[name]
	if s == nil {
		return nil, fmt.Errorf("there is no token %q", name)
	}
	return s, nil
}

// Token gives the access token of [token.NAME] and when it ends.
func (t *Tokens) Token(ctx context.Context, name string) (token string, expires time.Time, err error) {
	s, err := t.Source(name)
	if err != nil {
		return "", time.Time{}, err
	}
	got, err := s.Token(ctx)
	return got.Value, got.Expires, err
}

// Authorize puts the token of [token.NAME] into a request to a cloud; see Source.Authorize.
func (t *Tokens) Authorize(ctx context.Context, name string, req *http.Request) (token string, err error) {
	s, err := t.Source(name)
	if err != nil {
		return "", err
	}
	got, err := s.Authorize(ctx, req)
	return got.Value, err
}

// Answered takes a cloud's answer to such a request; see Source.Answered.
func (t *Tokens) Answered(name string, req *http.Request, res *http.Response) bool {
	s, err := t.Source(name)
	return err == nil && s.Answered(req, res)
}

// Reject tells that a cloud does not take a token of [token.NAME], though its time has not come; see Source.Reject.
func (t *Tokens) Reject(name, token string) {
	if s, err := t.Source(name); err == nil {
		s.Reject(Token{Value: token})
	}
}

// TokenStatus is what can be shown of a token.
type TokenStatus struct {
	Name    string        `json:"name"`
	Expires time.Time     `json:"expires,omitzero"` // zero: there is none now
	Renew   time.Time     `json:"renew,omitzero"`
	Skew    time.Duration `json:"skew_ns"` // by which the issuer's clock is ahead of ours
	Error   string        `json:"error,omitempty"`
}

// Status lists the tokens by name. It asks nobody.
func (t *Tokens) Status() []TokenStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]TokenStatus, 0, len(t.sources))
	for _, name := range slices.Sorted(maps.Keys(t.sources)) {
		list = append(list, t.sources[name].status())
	}
	return list
}

// start runs a request that Close waits for; false once it has been called.
func (t *Tokens) start(request func()) bool {
	t.starting.Lock()
	defer t.starting.Unlock()
	if !t.closed {
		t.requests.Go(request)
	}
	return !t.closed
}

// Close ends the requests that run and waits for them.
func (t *Tokens) Close() error {
	t.end()
	t.starting.Lock()
	t.closed = true
	t.starting.Unlock()
	t.requests.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sources {
		s.close()
	}
	return nil
}

// Token is an access token. It is not printed: its String tells when it ends.
type Token struct {
	Value   string
	Type    string    // "Bearer" or "DPoP"
	Expires time.Time // by the trusted clock
	Renew   time.Time // from then on Source gives another one as soon as it has it
}

// String tells when the token ends.
func (t Token) String() string { return "token until " + t.Expires.UTC().Format(time.RFC3339) }

// GoString is String.
func (t Token) GoString() string { return t.String() }

// LogValue is String.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }
