package coap

import (
	"context"
	"crypto/x509"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

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

// within gives the driver of a listener in another environment.
func within(d southtest.Driver, change func(*southbound.Env)) southtest.Driver {
	kind := d.Kind()
	d.Kind = func() southbound.Kind {
		k := kind
		k.Open = func(env southbound.Env, cfg any) (southbound.Listener, error) {
			change(&env)
			return kind.Open(env, cfg)
		}
		return k
	}
	return d
}

func TestReloadWhileADeviceShakesHands(t *testing.T) {
	for name, d := range map[string]southtest.Driver{"DTLS": driver(), "TLS": tlsDriver(t)} {
		t.Run(name, func(t *testing.T) {
			var b *southtest.Bench
			reload := sync.OnceFunc(func() {
				b.RemoveDevice("th-1")
				b.Listener.(southbound.PolicyChanged).PolicyChanged()
			})
			b = southtest.Start(t, within(d, func(env *southbound.Env) { env.Auth = reloading{env.Auth, env.Auth.(auth.Refresher), reload} }))
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

// TestGroupsThatAReloadTakesAwayDoNotComeBackWithTheNextStart: an association is kept with the groups of its device as they are.
func TestGroupsThatAReloadTakesAwayDoNotComeBackWithTheNextStart(t *testing.T) {
	b := southtest.Start(t, within(driver(), func(env *southbound.Env) { env.Keys = sealingKeys{env.Keys} }))
	b.AddDevice("th-1", southtest.Account{Secret: b.Secret("th-1"), Groups: []string{"few", "many"}})
	b.Device(t.Context(), t, "th-1")
	b.AddDevice("th-1", southtest.Account{Secret: b.Secret("th-1"), Groups: []string{"many"}})
	b.Listener.(southbound.PolicyChanged).PolicyChanged()
	l := b.Listener.(*listener)
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, record := range l.file.All {
		var k kept
		if err := cbor.Unmarshal(record, &k); err != nil {
			t.Fatal(err)
		}
		if n++; !slices.Equal(k.Groups, []string{"many"}) {
			t.Errorf("kept in the groups %q", k.Groups)
		}
	}
	if n != 1 {
		t.Errorf("%d associations are kept", n)
	}
}
