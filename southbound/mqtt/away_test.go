package mqtt

import (
	"context"
	"slices"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
	"github.com/fxamacker/cbor/v2"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

// willed gives a CONNECT a will.
func willed(topic, payload string, delay uint32) func(*packets5.Connect) {
	return func(c *packets5.Connect) {
		c.WillFlag, c.WillTopic, c.WillMessage, c.WillQOS = true, topic, []byte(payload), 1
		c.WillProperties = &packets5.Properties{WillDelayInterval: ptr(delay)}
	}
}

// reported gives the first n reports once they have come.
func reported(t *testing.T, b *southtest.Bench, n int) []msg.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return b.Up.Await(ctx, t, n)
}

// forbid lets the policy deny what is listed as "op resource", to one device.
func forbid(b *southtest.Bench, device string, rules ...string) {
	b.Allow(func(id *auth.Identity, op auth.Op, s string) bool {
		return id.Device != device || !slices.Contains(rules, string(op)+" "+s)
	})
}

func TestRulesThatChangeWhileADeviceIsAway(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	sub, _ := connect5(t, b, "sub", durable)
	sub.subscribe("secret", 1)
	sub.subscribe("open", 1)
	sub.goodbye()
	forbid(b, "sub", "subscribe secret", "command /secret")
	b.Listener.(southbound.PolicyChanged).PolicyChanged()
	pub, _ := connect5(t, b, "pub", nil)
	pub.publish("secret", "s", 1, 1, nil)
	pub.publish("open", "o", 1, 2, nil)
	sub, ack := connect5(t, b, "sub", durable)
	if !ack.SessionPresent {
		t.Fatal("the session is gone")
	}
	for {
		switch p, err := sub.read(patience); p := p.(type) {
		case *packets5.Publish:
			if p.Topic != "open" {
				t.Fatalf("heard %s, which no rule allows", p.Topic)
			}
			continue
		case *packets5.Disconnect:
			if p.ReasonCode != 0x87 {
				t.Errorf("DISCONNECT 0x%02x", p.ReasonCode)
			}
		default:
			t.Fatalf("heard %T, %v", p, err)
		}
		return
	}
}

func TestWillIsJudgedByTheRulesOfItsEnd(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	sub, _ := connect5(t, b, "sub", nil)
	sub.subscribe("gone", 1)
	w, _ := connect5(t, b, "w", willed("gone", "w", 0))
	forbid(b, "w", "publish gone", "report /gone")
	b.Listener.(southbound.PolicyChanged).PolicyChanged()
	w.nc.Close()
	other, _ := connect5(t, b, "other", willed("gone", "other", 0))
	other.nc.Close()
	sub.hears("gone", "other")
	if m := reported(t, b, 1); len(m) != 1 || m[0].Device != "other" {
		t.Errorf("the uplink was given %+v", m)
	}
}

func TestWillOfAFormerOwnerOfAClientID(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.ClientID, c.Auth = "free", []string{"password"} }))
	as := func(device string) func(*packets5.Connect) {
		return func(c *packets5.Connect) {
			c.UsernameFlag, c.Username, c.PasswordFlag, c.Password = true, device, true, b.Secret(device)
		}
	}
	_, _ = connect5(t, b, "x", func(c *packets5.Connect) {
		as("th-1")(c)
		willed("gone", "w", 0)(c)
	})
	_, _ = connect5(t, b, "x", as("th-2"))
	if m := reported(t, b, 1); m[0].Device != "th-1" {
		t.Errorf("the will of th-1 is reported as one of %s", m[0].Device)
	}
}

func TestOnlyAGoodbyeTakesTheWillBack(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	for n, code := range []byte{0x00, 0x04, 0x81} {
		w, _ := connect5(t, b, "w", willed("gone", string(rune('a'+code)), 0))
		w.send(&packets5.Disconnect{ReasonCode: code, Properties: &packets5.Properties{}})
		w.closed(0)
		reported(t, b, n) // before the next
	}
	if m := reported(t, b, 2); string(m[0].Payload) != string(rune('a'+0x04)) || string(m[1].Payload) != string(rune('a'+0x81)) {
		t.Errorf("wills: %+v", m)
	}
}

// TestPacketIdentifiersEndWithTheirSession: what a session that has become a passing one has taken by QoS 2 says nothing about a later session.
func TestPacketIdentifiersEndWithTheirSession(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	w, _ := connect5(t, b, "w", durable)
	w.publish("a", "1", 2, 5, nil) // and no PUBREL
	w.nc.Close()
	w, _ = connect5(t, b, "w", func(c *packets5.Connect) { c.CleanStart = false })
	w.goodbye()
	w, _ = connect5(t, b, "w", durable)
	w.subscribe("b", 1)
	restart(t, b)
	w, ack := connect5(t, b, "w", durable)
	if !ack.SessionPresent {
		t.Fatal("the session is gone")
	}
	w.publish("a", "2", 2, 5, nil)
	if m := reported(t, b, 2); string(m[1].Payload) != "2" {
		t.Errorf("the uplink was given %+v", m)
	}
}

// TestFormerConnectionLeavesTheNextSessionAlone: what a connection still has to say when its session has ended does not end up in the record
// of the session that has taken the place.
func TestFormerConnectionLeavesTheNextSessionAlone(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	former, _ := connect5(t, b, "w", durable)
	former.subscribe("a", 1)
	var late *conn
	b.Listener.(*listener).each(func(c *conn) { late = c })
	w, _ := connect5(t, b, "w", func(c *packets5.Connect) {
		durable(c)
		c.CleanStart = true
	})
	w.subscribe("b", 1)
	if err := late.unsubscribe([]byte("\x00\x01\x00\x00\x01a")); err != nil {
		t.Fatal(err)
	}
	stored := make(chan error, 1)
	late.l.store.sync(func(err error) { stored <- err })
	if err := <-stored; err != nil {
		t.Fatal(err)
	}
	var r sessionRecord
	if err := late.l.store.each(func(key, value []byte) error {
		if key[0] != ofSession {
			return nil
		}
		return cbor.Unmarshal(value, &r)
	}); err != nil || len(r.Subs) != 1 || r.Subs[0].Filter != "b" {
		t.Errorf("the record has %+v, %v", r.Subs, err)
	}
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

// reloading is an authenticator that lets something happen while a device logs in.
type reloading struct {
	auth.Authenticator
	auth.Refresher
	meanwhile func()
}

func (r reloading) Login(ctx context.Context, methods []string, c auth.Credentials) (auth.Identity, error) {
	id, err := r.Authenticator.Login(ctx, methods, c)
	r.meanwhile()
	return id, err
}

func TestReloadWhileADeviceLogsIn(t *testing.T) {
	reload := make(chan func(), 1)
	b := southtest.Start(t, within(plain(func(c *Config) { c.Auth = []string{"password"} }), func(env *southbound.Env) {
		env.Auth = reloading{env.Auth, env.Auth.(auth.Refresher), func() {
			select {
			case f := <-reload:
				f()
			default:
			}
		}}
	}))
	reload <- func() {
		b.RemoveDevice("th-1")
		b.Listener.(southbound.PolicyChanged).PolicyChanged()
	}
	secret := b.Secret("th-1")
	w, _ := connect5(t, b, "x", func(c *packets5.Connect) {
		c.UsernameFlag, c.Username, c.PasswordFlag, c.Password = true, "th-1", true, secret
	})
	w.closed(0x87)
}
