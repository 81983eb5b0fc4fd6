package mqtt

import (
	"context"
	"errors"
	"fmt"
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
	b.mu.Lock()
	b.shown = token
	b.mu.Unlock()
	return token, expires, nil
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
