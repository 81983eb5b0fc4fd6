package mqtt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/northbound"
)

// Bearer shows the access token of one [token.NAME] for a connector.
type Bearer struct {
	tokens northbound.Tokens
	name   string

	mu      sync.Mutex
	shown   string // guarded by mu
	refused bool   // guarded by mu: the last log-in was
}

// NewBearer makes one. tokens may be nil: then there is no token.
func NewBearer(tokens northbound.Tokens, name string) *Bearer {
	return &Bearer{tokens: tokens, name: name}
}

// Token gives the token to show, and when it ends.
func (b *Bearer) Token(ctx context.Context) (string, time.Time, error) {
	if b.tokens == nil {
		return "", time.Time{}, msg.Permanent(fmt.Errorf("token %s: the gateway has no token sources", b.name))
	}
	token, expires, err := b.tokens.Token(ctx, b.name)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("token %s: %w", b.name, err)
	}
	b.show(token)
	return token, expires, nil
}

// Do has an HTTP request sent that shows the token, with the proof where it is bound to a key; without a token, as it is. It has it sent again where
// the answer says what the proof lacks.
func (b *Bearer) Do(r *http.Request, send func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	if b.name == "" {
		return send(r)
	}
	p, proves := b.tokens.(northbound.Provers)
	if !proves {
		token, _, err := b.Token(r.Context())
		if err != nil {
			return nil, err
		}
		r.Header.Set("Authorization", "Bearer "+token)
		return send(r)
	}
	for again := false; ; again = true {
		token, err := p.Authorize(r.Context(), b.name, r)
		if err != nil {
			return nil, fmt.Errorf("token %s: %w", b.name, err)
		}
		b.show(token)
		answer, err := send(r)
		if err != nil || !p.Answered(b.name, r, answer) || again || r.GetBody == nil {
			return answer, err
		}
		io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10))
		answer.Body.Close()
		if r.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
	}
}

func (b *Bearer) show(token string) {
	b.mu.Lock()
	b.shown = token
	b.mu.Unlock()
}

// Judge looks at how a log-in with the token ended, and gives its error. A token that was refused is not shown again; only
// when the next is refused as well has a person to mend it.
func (b *Bearer) Judge(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.refused = false
		return nil
	}
	if b.shown == "" || !msg.IsPermanent(err) {
		return err
	}
	b.tokens.Reject(b.name, b.shown)
	b.shown = ""
	if b.refused {
		return err
	}
	b.refused = true
	return errors.New(err.Error())
}
