package mqtt

import (
	"slices"
	"strings"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"
)

func expiresIn(seconds uint32) func(*packets5.Connect) {
	return func(c *packets5.Connect) { c.Properties.SessionExpiryInterval = &seconds }
}

func comesBack(c *packets5.Connect) { c.CleanStart = false }

// interopV5 holds the checks of the suite for MQTT 5 alone.
var interopV5 = map[string]func(*testing.T, *interop){
	"session expiry": func(t *testing.T, x *interop) {
		dial := func(present bool, change ...func(*packets5.Connect)) *peer {
			t.Helper()
			p, ack := x.dial(t, "a", change...)
			if ack == nil || ack.ReasonCode != 0 || ack.SessionPresent != present {
				t.Fatalf("CONNACK %+v, want session present %v", ack, present)
			}
			return p
		}
		until := func(seconds uint32) *packets5.Properties {
			return &packets5.Properties{SessionExpiryInterval: &seconds}
		}
		dial(false, expiresIn(0)).leave(nil)
		dial(false, expiresIn(0), comesBack).leave(nil) // it has ended at once
		dial(false, expiresIn(600)).leave(nil)
		dial(true, expiresIn(1), comesBack).leave(nil)
		time.Sleep(4 * time.Second) // session expiry is in whole seconds of the real clock
		dial(false, expiresIn(1)).leave(until(600))
		time.Sleep(4 * time.Second)
		dial(true, expiresIn(600), comesBack).leave(until(0))
		dial(false, expiresIn(600), comesBack).leave(nil)
	},
	"user properties": func(t *testing.T, x *interop) {
		p := x.connect(t, "a")
		p.subscribe(nil, filterOf(x.topic(0), 2))
		inEveryQoS(p, false, someUser, nothing, x.topic(0))
		list := p.exactly(3)
		eachQoS(t, list)
		for _, m := range list {
			hasUser(t, x, m)
		}
	},
	"payload format and content type": func(t *testing.T, x *interop) {
		p := x.connect(t, "a")
		p.subscribe(nil, filterOf(x.topic(0), 2))
		inEveryQoS(p, false, func() *packets5.Properties {
			return &packets5.Properties{PayloadFormat: ptr(byte(1)), ContentType: "My name"}
		}, nothing, x.topic(0))
		list := p.exactly(3)
		eachQoS(t, list)
		for _, m := range list {
			if m.Properties.ContentType != "My name" || m.Properties.PayloadFormat == nil || *m.Properties.PayloadFormat != 1 {
				t.Errorf("heard %+v", m.Properties)
			}
		}
	},
	"messages that expire": func(t *testing.T, x *interop) {
		b := x.connect(t, "b", stays)
		b.subscribe(nil, filterOf(x.topic(0), 2))
		b.leave(nil)
		a := x.connect(t, "a")
		for _, expiry := range []uint32{1, 600} {
			for qos := byte(1); qos < 3; qos++ {
				a.publish(packets5.Publish{Topic: x.topic(0), QoS: qos, Properties: &packets5.Properties{MessageExpiry: &expiry}})
			}
		}
		time.Sleep(2500 * time.Millisecond) // expiry is in whole seconds of the real clock
		for _, m := range x.connect(t, "b", stays).exactly(2) {
			if e := m.Properties.MessageExpiry; e == nil || *e >= 600 {
				t.Errorf("the expiry does not count down: %v", e)
			}
		}
	},
	"no local": func(t *testing.T, x *interop) {
		a, b := x.connect(t, "a"), x.connect(t, "b")
		for _, p := range []*peer{a, b} {
			p.subscribe(nil, packets5.SubOptions{Topic: x.topic(0), QoS: 2, NoLocal: true})
		}
		a.publish(packets5.Publish{Topic: x.topic(0), Payload: []byte("noLocal test"), QoS: 1})
		b.exactly(1)
		a.exactly(0)
	},
	"retain as published": func(t *testing.T, x *interop) {
		a := x.connect(t, "a")
		a.subscribe(nil, packets5.SubOptions{Topic: x.topic(0), QoS: 2, RetainAsPublished: true})
		a.publish(packets5.Publish{Topic: x.topic(0), Payload: []byte("retain as published false"), QoS: 1})
		a.publish(packets5.Publish{Topic: x.topic(0), Payload: []byte("retain as published true"), QoS: 1, Retain: true})
		if list := a.exactly(2); list[0].Retain || !list[1].Retain {
			t.Errorf("heard with RETAIN %v and %v", list[0].Retain, list[1].Retain)
		}
	},
	"retain handling": func(t *testing.T, x *interop) {
		pub := x.connect(t, "pub")
		inEveryQoS(pub, true, nil, qosText, x.topic(1), x.topic(2), x.topic(3))
		for handling, want := range [][2]int{{3, 3}, {3, 0}, {0, 0}} {
			p := x.connect(t, "a")
			for _, n := range want {
				p.subscribe(nil, packets5.SubOptions{Topic: x.filter("+/+"), QoS: 2, RetainHandling: byte(handling)})
				if list := p.exactly(n); n > 0 {
					eachQoS(t, list)
				}
			}
			p.leave(nil)
		}
	},
	"an assigned client id": func(t *testing.T, x *interop) {
		if _, ack := x.dial(t, "", func(c *packets5.Connect) { c.ClientID = "" }); ack == nil || ack.Properties.AssignedClientID == "" {
			t.Errorf("CONNACK %+v", ack)
		}
	},
	"subscription identifiers": func(t *testing.T, x *interop) {
		a, b := x.connect(t, "a"), x.connect(t, "b")
		a.subscribe(&packets5.Properties{SubscriptionIdentifier: ptr(456789)}, filterOf(x.topic(0), 2))
		b.subscribe(&packets5.Properties{SubscriptionIdentifier: ptr(2)}, filterOf(x.topic(0), 2))
		b.subscribe(&packets5.Properties{SubscriptionIdentifier: ptr(3)}, filterOf(x.topic(0)+"/#", 2))
		b.publish(packets5.Publish{Topic: x.topic(0), Payload: []byte("sub identifier test"), QoS: 1})
		if id := a.exactly(1)[0].Properties.SubscriptionIdentifier; id == nil || *id != 456789 {
			t.Errorf("identifier %v", id)
		}
		// The library keeps the last of several; which that is, is open.
		if id := b.exactly(1)[0].Properties.SubscriptionIdentifier; id == nil || *id != 2 && *id != 3 {
			t.Errorf("identifier %v", id)
		}
	},
	"request and response": func(t *testing.T, x *interop) {
		a, b := x.connect(t, "a"), x.connect(t, "b")
		for _, p := range []*peer{a, b} {
			p.subscribe(nil, packets5.SubOptions{Topic: x.topic(0), QoS: 2, NoLocal: true})
		}
		a.publish(packets5.Publish{Topic: x.topic(0), Payload: []byte("request"), QoS: 1, Properties: &packets5.Properties{
			ResponseTopic: x.topic(0), CorrelationData: []byte("334"),
		}})
		m := b.exactly(1)[0]
		if m.Properties.ResponseTopic != x.topic(0) || string(m.Properties.CorrelationData) != "334" {
			t.Errorf("heard %+v", m.Properties)
		}
		b.publish(packets5.Publish{Topic: m.Properties.ResponseTopic, Payload: []byte("response"), QoS: 1, Properties: &packets5.Properties{
			CorrelationData: m.Properties.CorrelationData,
		}})
		if m := a.exactly(1)[0]; string(m.Payload) != "response" || string(m.Properties.CorrelationData) != "334" {
			t.Errorf("heard %q with %q", m.Payload, m.Properties.CorrelationData)
		}
	},
	"the client sends with topic aliases": func(t *testing.T, x *interop) {
		alias := func(n uint16) *packets5.Properties { return &packets5.Properties{TopicAlias: &n} }
		a := x.connect(t, "a")
		a.post(packets5.Publish{Topic: x.topic(0), Payload: []byte("topic alias 0"), QoS: 1, Properties: alias(0)})
		if d := a.gone(); d == nil || d.ReasonCode < 0x80 {
			t.Errorf("alias 0: DISCONNECT %+v", d)
		}
		a, ack := x.dial(t, "a", stays, func(c *packets5.Connect) { c.CleanStart, c.Properties.TopicAliasMaximum = true, ptr(uint16(0)) })
		if ack.Properties.TopicAliasMaximum == nil || *ack.Properties.TopicAliasMaximum == 0 {
			t.Fatal("no aliases are taken")
		}
		a.subscribe(nil, filterOf(x.topic(0), 2))
		a.publish(packets5.Publish{Topic: x.topic(0), Payload: []byte("topic alias 1"), QoS: 1, Properties: alias(1)})
		a.publish(packets5.Publish{Payload: []byte("topic alias 2"), QoS: 1, Properties: alias(1)})
		for _, m := range a.exactly(2) {
			if m.Topic != x.topic(0) {
				t.Errorf("heard on %q", m.Topic)
			}
		}
		a.leave(nil)
		a = x.connect(t, "a", stays) // aliases end with the connection, subscriptions do not
		a.publish(packets5.Publish{Topic: x.topic(0), Payload: []byte("topic alias 3"), QoS: 1})
		a.exactly(1)
		a.post(packets5.Publish{Payload: []byte("topic alias 4"), QoS: 1, Properties: alias(1)})
		if d := a.gone(); d == nil || d.ReasonCode < 0x80 {
			t.Errorf("a forgotten alias: DISCONNECT %+v", d)
		}
	},
	"the server sends with topic aliases": func(t *testing.T, x *interop) {
		a := x.connect(t, "a", func(c *packets5.Connect) { c.Properties.TopicAliasMaximum = ptr(uint16(1)) })
		a.subscribe(nil, filterOf(x.topic(0), 2))
		inEveryQoS(a, false, nil, qosText, x.topic(0))
		for i, m := range a.exactly(3) {
			want := ""
			if i == 0 {
				want = x.topic(0)
			}
			if m.Topic != want || m.Properties.TopicAlias == nil || *m.Properties.TopicAlias != 1 {
				t.Errorf("message %d: topic %q, alias %v", i, m.Topic, m.Properties.TopicAlias)
			}
		}
	},
	"the server sends without topic aliases": func(t *testing.T, x *interop) {
		for _, change := range []func(*packets5.Connect){func(*packets5.Connect) {}, func(c *packets5.Connect) { c.Properties.TopicAliasMaximum = ptr(uint16(0)) }} {
			a := x.connect(t, "a", change)
			a.subscribe(nil, filterOf(x.topic(0), 2))
			inEveryQoS(a, false, nil, qosText, x.topic(0))
			for _, m := range a.exactly(3) {
				if m.Topic != x.topic(0) || m.Properties.TopicAlias != nil {
					t.Errorf("topic %q, alias %v", m.Topic, m.Properties.TopicAlias)
				}
			}
			a.leave(nil)
		}
	},
	"maximum packet size": func(t *testing.T, x *interop) {
		a, ack := x.dial(t, "a")
		if ack.Properties.MaximumPacketSize == nil {
			t.Fatal("the server states no maximum packet size")
		}
		a.post(packets5.Publish{Topic: x.topic(0), Payload: []byte(strings.Repeat(".", int(*ack.Properties.MaximumPacketSize)))})
		if d := a.gone(); d == nil || d.ReasonCode != 0x95 {
			t.Errorf("DISCONNECT %+v, want 0x95", d)
		}
		a = x.connect(t, "a", func(c *packets5.Connect) { c.Properties.MaximumPacketSize = ptr(uint32(64)) })
		a.subscribe(nil, filterOf(x.topic(0), 2))
		a.publish(packets5.Publish{Topic: x.topic(0), Payload: []byte(strings.Repeat(".", 32))})
		a.publish(packets5.Publish{Topic: x.topic(0), Payload: []byte(strings.Repeat(".", 64)), QoS: 1})
		a.exactly(1)
	},
	"server keep alive": func(t *testing.T, x *interop) {
		_, ack := x.dial(t, "a", func(c *packets5.Connect) { c.KeepAlive = 120 })
		if k := ack.Properties.ServerKeepAlive; k == nil || *k != 60 {
			t.Errorf("server keep alive %v, want 60", k)
		}
	},
	"the client's receive maximum": func(t *testing.T, x *interop) {
		a := x.connect(t, "a", func(c *packets5.Connect) { c.Properties.ReceiveMaximum = ptr(uint16(2)) })
		a.subscribe(nil, filterOf(x.topic(0), 2))
		a.mu.Lock()
		a.held = true
		a.mu.Unlock()
		b := x.connect(t, "b")
		for range 3 {
			b.publish(packets5.Publish{Topic: x.topic(0), Payload: []byte("message"), QoS: 1})
		}
		list := a.exactly(2) // the third waits
		a.send(&packets5.Puback{PacketID: list[0].PacketID, Properties: &packets5.Properties{}})
		list = append(list, a.exactly(1)...)
		for _, m := range list[1:] {
			a.send(&packets5.Puback{PacketID: m.PacketID, Properties: &packets5.Properties{}})
		}
		a.ping()
	},
	"more publishes than the maximum": func(t *testing.T, x *interop) {
		a, ack := x.dial(t, "a")
		if ack.Properties.ReceiveMaximum == nil {
			t.Fatal("the server states no receive maximum")
		}
		a.mu.Lock()
		a.held = true // no PUBREL
		a.mu.Unlock()
		for range int(*ack.Properties.ReceiveMaximum) + 1 {
			a.post(packets5.Publish{Topic: x.topic(0), Payload: []byte("message"), QoS: 2})
		}
		if d := a.gone(); d == nil || d.ReasonCode != 0x93 {
			t.Errorf("DISCONNECT %+v, want 0x93", d)
		}
	},
	"a will with a delay": func(t *testing.T, x *interop) {
		b := x.connect(t, "b")
		b.subscribe(nil, filterOf(x.topic(0), 2))
		a := x.connect(t, "a", expiresIn(600), withWill(x.topic(0), "test_will_delay will message", &packets5.Properties{WillDelayInterval: ptr(uint32(3))}))
		began := time.Now()
		a.drop()
		m := b.exactly(1)[0]
		if d := time.Since(began); d < 2*time.Second || string(m.Payload) != "test_will_delay will message" {
			t.Errorf("heard %q after %v", m.Payload, d)
		}
	},
	// The delay of these wills is longer than anybody waits.
	"a will goes with its session": func(t *testing.T, x *interop) {
		b := x.connect(t, "b")
		b.subscribe(nil, filterOf(x.topic(0), 2))
		for _, expiry := range []uint32{0, 2} {
			x.connect(t, "a", expiresIn(expiry), withWill(x.topic(0), "test_will_delay will message", &packets5.Properties{WillDelayInterval: ptr(uint32(600))})).drop()
			b.exactly(1)
		}
	},
	"shared subscriptions": func(t *testing.T, x *interop) {
		a, b := x.connect(t, "a"), x.connect(t, "b")
		for _, p := range []*peer{a, b} {
			if codes := p.subscribe(nil, filterOf("$share/sharename/"+x.filter("x"), 2), filterOf(x.topic(0), 2)); !slices.Equal(codes, []byte{2, 2}) {
				t.Errorf("SUBACK %v", codes)
			}
		}
		b.publish(packets5.Publish{Topic: x.topic(0), Payload: []byte("message 0")})
		a.exactly(1)
		b.exactly(1)
		b.publish(packets5.Publish{Topic: x.filter("x"), Payload: []byte("message 0")})
		a.ping()
		b.ping()
		if n := a.count() + b.count(); n != 1 {
			t.Errorf("heard %d times, want once", n)
		}
	},
}
