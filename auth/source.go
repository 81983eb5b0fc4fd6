package auth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"reflect"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/health"
)

// What can be wrong with a token.
var (
	TokenLate = health.Code{Name: "token-late", Title: "the access token cannot be renewed", Severity: health.Degraded,
		Hint: "the present one serves until it ends; drawbridge doctor"}
	TokenMissing = health.Code{Name: "token-missing", Title: "there is no access token", Severity: health.Failing,
		Hint: "drawbridge doctor; the detail is the issuer's answer"}
	TokenUnkept = health.Code{Name: "token-unkept", Title: "the refresh token cannot be written to disk", Severity: health.Failing,
		Hint: "after a restart `drawbridge enroll` would be needed; make room in the state directory"}
)

const (
	tokenTimeout  = 30 * time.Second // of one renewal, chip and network
	firstRetry    = time.Second
	longestRetry  = 5 * time.Minute
	assumedLife   = 5 * time.Minute // of a token that says nothing of it
	longestMargin = 30 * time.Second
)

// Source gives one access token to all who ask, and renews it ahead of its end, at a moment that chance spreads.
//
// While the issuer is away the present token serves until it ends; requests to the issuer are at most one at a time, and after a failure
// 1 s to 5 min apart, however many ask.
type Source struct {
	name   string
	cfg    config.Token
	ca     string
	t      *Tokens
	health *health.Reporter
	client *http.Client
	wire   *http.Transport // of client
	dpop   *dpop           // nil where tokens are not bound so

	mu       sync.Mutex
	token    Token         // guarded by mu, as all below
	came     time.Time     // when token came
	life     time.Duration // of token, from then
	flight   chan struct{} // closed when the request that runs has ended
	err      error         // of the last request, or why the token was rejected
	failures int           // of requests, since one went well
	rejects  int           // of tokens, since one was good for longer than longestRetry
	retry    time.Time     // no request before
	gone     bool          // a reload has dropped the source
	skew     time.Duration
	points   *endpoints
	refresh  string // the refresh token, where there is one
	unkept   bool   // it is not on disk
}

func (t *Tokens) newSource(name string, cfg *config.Token) (*Source, error) {
	s := &Source{name: name, cfg: *cfg, t: t}
	if t.o.Health != nil {
		s.health = t.o.Health.For("token " + name)
	}
	if err := s.connect(); err != nil {
		return nil, err
	}
	return s, nil
}

// same tells whether cfg would make the same source.
func (s *Source) same(cfg *config.Token) bool {
	a, b := s.cfg, *cfg
	a.Pos, b.Pos = config.Pos{}, config.Pos{}
	a.Params, b.Params = nil, nil
	if !reflect.DeepEqual(a, b) || !maps.Equal(s.cfg.Params, cfg.Params) {
		return false
	}
	if cfg.CA == "" {
		return true
	}
	ca, err := os.ReadFile(string(cfg.CA))
	return err == nil && string(ca) == s.ca
}

func (s *Source) close() {
	s.mu.Lock()
	s.gone = true
	s.mu.Unlock()
	s.wire.CloseIdleConnections()
	s.health.ClearAll()
}

// Token gives the access token: at once while there is one, else when the issuer has given it.
func (s *Source) Token(ctx context.Context) (Token, error) {
	s.mu.Lock()
	now := s.t.o.Now()
	valid := s.token.Value != "" && now.Before(s.token.Expires.Add(-min(s.life/10, longestMargin)))
	wanted := !valid || !now.Before(s.token.Renew)
	may := !now.Before(s.retry) || !valid && s.err == nil
	if wanted && may && s.flight == nil {
		s.flight = make(chan struct{})
		if !s.t.start(s.renew) {
			s.flight, s.err = nil, errStopped
		}
	}
	token, flight, err := s.token, s.flight, s.err
	s.mu.Unlock()
	switch {
	case valid:
		return token, nil
	case flight == nil:
		return Token{}, err
	}
	select {
	case <-flight:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.token, s.err
	case <-ctx.Done():
		return Token{}, context.Cause(ctx)
	}
}

var (
	errStopped  = errors.New("the gateway stops")
	errRejected = errors.New("the cloud does not take the token")
)

// Reject tells that a cloud does not take the token, though its time has not come: the next call of Token asks for another one,
// the later the more often this happens.
func (s *Source) Reject(token Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if token.Value == "" || s.token.Value != token.Value {
		return // another one is there already
	}
	now := s.t.o.Now()
	if now.Sub(s.came) > longestRetry {
		s.rejects = 0
	}
	s.token, s.err = Token{}, fmt.Errorf("token %q: %w", s.name, errRejected)
	s.retry = now.Add(min(firstRetry<<min(s.rejects, 16)-firstRetry, longestRetry))
	s.rejects++
}

func (s *Source) status() TokenStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := TokenStatus{Name: s.name, Expires: s.token.Expires, Renew: s.token.Renew, Skew: s.skew}
	if s.err != nil {
		st.Error = s.err.Error()
	}
	return st
}

// renew asks the issuer once.
func (s *Source) renew() {
	ctx, cancel := context.WithTimeoutCause(s.t.life, tokenTimeout, errors.New("the issuer gave no token in time"))
	defer cancel()
	began := time.Now()
	got, err := s.obtain(ctx)

	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(s.flight)
	s.flight = nil
	now := s.t.o.Now()
	asked := now.Add(-time.Since(began)) // the answer may have set the clock
	if err != nil {
		s.failed(now, fmt.Errorf("token %q: %w", s.name, err))
		return
	}
	life := got.life
	if life == 0 {
		life = assumedLife
	}
	s.token = Token{Value: got.value, Type: got.kind, Expires: asked.Add(life), Renew: asked.Add(spread(life, 0.70, 0.85))}
	s.came, s.life, s.err, s.failures, s.retry = now, life, nil, 0, now.Add(firstRetry)
	s.health.Clear(&TokenLate)
	s.health.Clear(&TokenMissing)
}

// failed notes that there is no new token, and when to ask again.
func (s *Source) failed(now time.Time, err error) {
	s.err = err
	pause := min(firstRetry<<min(s.failures, 16), longestRetry)
	if e, ok := errors.AsType[*TokenError](err); ok {
		if health.Stays(e) {
			pause = longestRetry
		}
		pause = max(pause, min(e.RetryAfter, time.Hour))
	}
	s.failures++
	s.retry = now.Add(spread(pause, 0.5, 1))
	if s.gone {
		return
	}
	if s.token.Value != "" && now.Before(s.token.Expires) {
		s.health.Fail(&TokenLate, err)
		return
	}
	s.token = Token{}
	s.health.Clear(&TokenLate)
	s.health.Fail(&TokenMissing, err)
}

// spread gives a random time between two parts of d.
func spread(d time.Duration, from, to float64) time.Duration {
	return time.Duration(float64(d) * (from + rand.Float64()*(to-from)))
}
