package hwcrypto

import "context"

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
