package coap

import (
	"context"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// reloading is an authenticator that lets something happen, once, when it has looked a device up.
type reloading struct {
	auth.Authenticator
	auth.Refresher
	meanwhile func()
}

func (r reloading) PSK(ctx context.Context, identity string) (auth.Identity, []byte, error) {
	id, key, err := r.Authenticator.PSK(ctx, identity)
	r.meanwhile()
	return id, key, err
}

func (r reloading) Certificate(ctx context.Context, listener string, chain []*x509.Certificate) (auth.Identity, error) {
	id, err := r.Authenticator.Certificate(ctx, listener, chain)
	r.meanwhile()
	return id, err
}

func TestReloadWhileADeviceShakesHands(t *testing.T) {
	for name, d := range map[string]southtest.Driver{"DTLS": driver(), "TLS": tlsDriver(t)} {
		t.Run(name, func(t *testing.T) {
			var b *southtest.Bench
			reload := sync.OnceFunc(func() {
				b.RemoveDevice("th-1")
				b.Listener.(southbound.PolicyChanged).PolicyChanged()
			})
			kind := d.Kind()
			d.Kind = func() southbound.Kind {
				k := kind
				k.Open = func(env southbound.Env, cfg any) (southbound.Listener, error) {
					env.Auth = reloading{env.Auth, env.Auth.(auth.Refresher), reload}
					return kind.Open(env, cfg)
				}
				return k
			}
			b = southtest.Start(t, d)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			counters := b.Listener.(southbound.Counters)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				if dev, err := d.Dial(ctx, b.Site, b.Addr, "th-1", b.Secret("th-1")); err == nil {
					dev.Close()
				}
			}()
			for counters.Counters()["handshakes_ok"]+counters.Counters()["handshakes_failed"] == 0 && ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			if f := counters.Counters(); f["handshakes_ok"] != 0 || f["handshakes_failed"] == 0 {
				t.Errorf("a device that was removed came in: %v", f)
			}
			cancel()
			<-ended
		})
	}
}
