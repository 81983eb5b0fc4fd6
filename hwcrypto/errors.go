package hwcrypto

import (
	"context"
	"errors"
)

// The errors that callers tell apart. All of them come wrapped, with the chip and the key named.
var (
	ErrNoKey       = errors.New("no such key")
	ErrKeyExists   = errors.New("the key exists already")
	ErrAmbiguous   = errors.New("more than one key matches")
	ErrNoToken     = errors.New("the chip is not there")
	ErrPIN         = errors.New("wrong PIN")          // it is not tried a second time
	ErrLocked      = errors.New("the chip is locked") // after too many wrong PINs or authorizations
	ErrUnsupported = errors.New("the chip cannot do that")
	ErrTimeout     = errors.New("the chip did not answer in time")
	ErrBusy        = errors.New("the chip's queue is full")
	ErrNotSealed   = errors.New("not sealed by this key, or changed since")
)

type userKey struct{}

// WithUser names the listener or connector for which chips work. Their queues are fair between the users.
func WithUser(ctx context.Context, user string) context.Context {
	return context.WithValue(ctx, userKey{}, user)
}

// User gives the name that WithUser has set, or "".
func User(ctx context.Context) string {
	u, _ := ctx.Value(userKey{}).(string)
	return u
}

// hinted carries what a person should do beside what is wrong.
type hinted struct {
	error
	hint string
}

func (h hinted) Hint() string  { return h.hint }
func (h hinted) Unwrap() error { return h.error }

// WithHint adds to an error what to do about it. errors.As with interface{ Hint() string } finds it.
func WithHint(err error, hint string) error { return hinted{err, hint} }
