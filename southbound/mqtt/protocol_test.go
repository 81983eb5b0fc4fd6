package mqtt

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/auth"
	"github.com/drawbridge/drawbridge/config"
	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

func TestProtocol(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) {
		c.ReceiveMaximum, c.MaxTopicLevels, c.MaxSubscriptions, c.MaxPacket = 5, 8, 20, 4096
		c.MaxKeepAlive = config.Duration(time.Minute)
	}))
	for name, check := range map[string]func(*testing.T){
		"CONNACK carries the limits": func(t *testing.T) {
			_, ack := connect5(t, b, "", func(c *packets5.Connect) {
				c.KeepAlive = 120
				c.Properties.SessionExpiryInterval = ptr(uint32(1 << 31))
			})
			p := ack.Properties
			if !strings.HasPrefix(p.AssignedClientID, "auto-") || *p.ServerKeepAlive != 60 || *p.ReceiveMaximum != 5 || *p.MaximumPacketSize != 4096 ||
				*p.TopicAliasMaximum == 0 || *p.SessionExpiryInterval != 7*24*3600 {
				t.Errorf("CONNACK %+v", p)
			}
		},
		"a second connection takes the session over": func(t *testing.T) {
			first, _ := connect5(t, b, "twin", durable)
			first.subscribe("twin/#", 1)
			second, ack := connect5(t, b, "twin", durable)
			if !ack.SessionPresent {
				t.Error("the session is not present")
			}
			first.closed(0x8e)
			second.publish("twin/x", "1", 1, 1, nil)
			second.hears("twin/x", "1")
		},
		"no local, retain as published and subscription identifiers": func(t *testing.T) {
			w, _ := connect5(t, b, "opts", nil)
			w.subscribeWith(packets5.SubOptions{Topic: "opts/mine", QoS: 1, NoLocal: true}, nil)
			w.subscribeWith(packets5.SubOptions{Topic: "opts/+", QoS: 0, RetainAsPublished: true}, &packets5.Properties{SubscriptionIdentifier: ptr(300)})
			w.send(&packets5.Publish{Topic: "opts/mine", Payload: []byte("x"), Retain: true, Properties: &packets5.Properties{}})
			p := w.hears("opts/mine", "x")
			if !p.Retain || *p.Properties.SubscriptionIdentifier != 300 {
				t.Errorf("heard %+v", p)
			}
			w.silence()
		},
		"retain handling": func(t *testing.T) {
			w, _ := connect5(t, b, "handling", nil)
			w.send(&packets5.Publish{Topic: "handling", Payload: []byte("x"), Retain: true, Properties: &packets5.Properties{}})
			w.subscribeWith(packets5.SubOptions{Topic: "handling", RetainHandling: 2}, nil)
			w.silence()
			w.subscribeWith(packets5.SubOptions{Topic: "handling", RetainHandling: 1}, nil)
			w.silence()
			w.subscribeWith(packets5.SubOptions{Topic: "handling"}, nil)
			w.hears("handling", "x")
		},
		"a shared subscription gives each message to one": func(t *testing.T) {
			one, _ := connect5(t, b, "share1", nil)
			two, _ := connect5(t, b, "share2", nil)
			one.subscribe("$share/g/share/+", 1)
			two.subscribe("$share/g/share/+", 1)
			pub, _ := connect5(t, b, "share3", nil)
			for i := range 4 {
				pub.publish("share/x", numbered(i), 1, 1, nil)
			}
			heard := map[string]bool{}
			for _, w := range []*wire{one, one, two, two} {
				heard[string(w.take().Payload)] = true
			}
			if len(heard) != 4 {
				t.Errorf("heard %v", heard)
			}
			one.silence()
			two.silence()
		},
		"the client's receive maximum is kept": func(t *testing.T) {
			w, _ := connect5(t, b, "slow", func(c *packets5.Connect) { c.Properties.ReceiveMaximum = ptr(uint16(2)) })
			w.subscribe("slow", 1)
			pub, _ := connect5(t, b, "slow-pub", nil)
			for i := range 5 {
				pub.publish("slow", numbered(i), 1, 1, nil)
			}
			first, second := expect[*packets5.Publish](w), expect[*packets5.Publish](w)
			w.silence()
			w.send(&packets5.Puback{PacketID: first.PacketID, Properties: &packets5.Properties{}})
			w.send(&packets5.Puback{PacketID: second.PacketID, Properties: &packets5.Properties{}})
			for i := 2; i < 5; i++ {
				w.hears("slow", numbered(i))
			}
		},
		"our receive maximum is kept": func(t *testing.T) {
			w, _ := connect5(t, b, "greedy", nil)
			b.Up.HandOver("greedy", func(*msg.Message, func(error)) {})
			for i := range 6 {
				w.send(&packets5.Publish{Topic: "greedy", QoS: 1, PacketID: uint16(i + 1), Properties: &packets5.Properties{}})
			}
			w.closed(0x93)
		},
		"topic aliases, both ways": func(t *testing.T) {
			w, _ := connect5(t, b, "alias", func(c *packets5.Connect) { c.Properties.TopicAliasMaximum = ptr(uint16(1)) })
			w.subscribe("alias/#", 0)
			w.publish("alias/a", "1", 0, 0, &packets5.Properties{TopicAlias: ptr(uint16(3))})
			w.publish("", "2", 0, 0, &packets5.Properties{TopicAlias: ptr(uint16(3))})
			w.publish("alias/b", "3", 0, 0, nil)
			if p := w.hears("alias/a", "1"); *p.Properties.TopicAlias != 1 {
				t.Errorf("heard alias %d", *p.Properties.TopicAlias)
			}
			if p := w.hears("", "2"); *p.Properties.TopicAlias != 1 {
				t.Errorf("heard alias %d", *p.Properties.TopicAlias)
			}
			w.hears("alias/b", "3")
			w.publish("", "4", 0, 0, &packets5.Properties{TopicAlias: ptr(uint16(4))})
			w.closed(0x94)
		},
		"the client's packet size is kept": func(t *testing.T) {
			w, _ := connect5(t, b, "small", func(c *packets5.Connect) { c.Properties.MaximumPacketSize = ptr(uint32(60)) })
			w.subscribe("small", 1)
			w.publish("small", strings.Repeat("x", 100), 1, 1, nil)
			w.publish("small", "y", 1, 1, nil)
			w.hears("small", "y")
		},
		"our packet size is kept": func(t *testing.T) {
			w, _ := connect5(t, b, "large", nil)
			w.raw("\x30\x80\x80\x01")
			w.closed(0x95)
		},
		"properties and expiry go through": func(t *testing.T) {
			w, _ := connect5(t, b, "props", nil)
			w.subscribe("props", 1)
			w.publish("props", "{}", 1, 1, &packets5.Properties{
				PayloadFormat: ptr(byte(1)), ContentType: "application/json", ResponseTopic: "r", CorrelationData: []byte{1},
				MessageExpiry: ptr(uint32(60)), User: []packets5.User{{Key: "a", Value: "1"}, {Key: "a", Value: "2"}},
			})
			p := w.hears("props", "{}").Properties
			if p.ContentType != "application/json" || p.ResponseTopic != "r" || len(p.CorrelationData) != 1 || len(p.User) != 2 || *p.MessageExpiry > 60 ||
				*p.PayloadFormat != 1 {
				t.Errorf("heard %+v", p)
			}
		},
		"a will is published, unless the client says goodbye": func(t *testing.T) {
			sub, _ := connect5(t, b, "heir", nil)
			sub.subscribe("will/+", 1)
			will := func(id string) *wire {
				w, _ := connect5(t, b, id, func(c *packets5.Connect) {
					c.WillFlag, c.WillTopic, c.WillMessage, c.WillQOS = true, "will/"+id, []byte("x"), 1
					c.WillProperties = &packets5.Properties{}
				})
				return w
			}
			will("polite").goodbye()
			will("abrupt").nc.Close()
			sub.hears("will/abrupt", "x")
			w := will("asking")
			w.send(&packets5.Disconnect{ReasonCode: 4, Properties: &packets5.Properties{}})
			sub.hears("will/asking", "x")
			sub.silence()
		},
		"a delayed will is cancelled by coming back": func(t *testing.T) {
			sub, _ := connect5(t, b, "patient", nil)
			sub.subscribe("delayed", 1)
			for range 2 {
				w, _ := connect5(t, b, "back", func(c *packets5.Connect) {
					durable(c)
					c.WillFlag, c.WillTopic, c.WillMessage = true, "delayed", []byte("x")
					c.WillProperties = &packets5.Properties{WillDelayInterval: ptr(uint32(2))}
				})
				w.nc.Close()
			}
			sub.hears("delayed", "x")
			sub.silence()
		},
		"more subscriptions than allowed": func(t *testing.T) {
			w, _ := connect5(t, b, "many", nil)
			for i := range 21 {
				code := w.subscribe(fmt.Sprintf("many/%d", i), 0)
				if want := byte(0x97); (code == want) != (i == 20) {
					t.Errorf("subscription %d: 0x%02x", i, code)
				}
			}
		},
		"filters and topics with too many levels or of the wrong form": func(t *testing.T) {
			w, _ := connect5(t, b, "deep", nil)
			for _, f := range []string{"a/b/c/d/e/f/g/h/i", "a/#/b", "a+", "$share//x"} {
				if code := w.subscribe(f, 0); code != 0x8f {
					t.Errorf("%q: 0x%02x", f, code)
				}
			}
			w.publish("a/b/c/d/e/f/g/h/i", "", 0, 0, nil)
			w.closed(0x90)
		},
		"a payload that is not the UTF-8 it is said to be": func(t *testing.T) {
			w, _ := connect5(t, b, "utf8", nil)
			w.publish("utf8", "\xff", 0, 0, &packets5.Properties{PayloadFormat: ptr(byte(1))})
			w.closed(0x99)
		},
		"keep alive is enforced": func(t *testing.T) {
			began := time.Now()
			w, _ := connect5(t, b, "quiet", func(c *packets5.Connect) { c.KeepAlive = 1 })
			w.closed(0x8d)
			if d := time.Since(began); d < 1400*time.Millisecond {
				t.Errorf("closed after %v", d)
			}
		},
		"unsubscribing": func(t *testing.T) {
			w, _ := connect5(t, b, "unsub", nil)
			w.subscribe("unsub", 0)
			w.send(&packets5.Unsubscribe{PacketID: 2, Topics: []string{"unsub", "never"}, Properties: &packets5.Properties{}})
			if r := expect[*packets5.Unsuback](w).Reasons; r[0] != 0 || r[1] != 0x11 {
				t.Errorf("UNSUBACK %v", r)
			}
			w.publish("unsub", "x", 0, 0, nil)
			w.silence()
		},
		"MQTT 3.1 and MQTT 6 are turned away": func(t *testing.T) {
			w := open(t, b)
			w.raw("\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x00")
			var got [4]byte
			if _, err := w.nc.Read(got[:]); err != nil || string(got[:]) != "\x20\x02\x00\x01" {
				t.Errorf("heard %q, %v", got, err)
			}
			w = open(t, b)
			w.raw("\x10\x0c\x00\x04MQTT\x06\x02\x00\x3c\x00\x00")
			if ack := expect[*packets5.Connack](w); ack.ReasonCode != 0x84 {
				t.Errorf("CONNACK 0x%02x", ack.ReasonCode)
			}
		},
		"enhanced authentication that is not offered": func(t *testing.T) {
			_, ack := connect5(t, b, "auth", func(c *packets5.Connect) { c.Properties.AuthMethod = "SCRAM-SHA-1" })
			if ack.ReasonCode != 0x8c {
				t.Errorf("CONNACK 0x%02x", ack.ReasonCode)
			}
		},
	} {
		t.Run(name, check)
	}
}

func TestPolicy(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	deny := func(rules ...string) {
		b.Allow(func(id *auth.Identity, op auth.Op, s string) bool {
			return !slices.Contains(rules, string(op)+" "+s) && !slices.Contains(rules, string(op)) && !slices.Contains(rules, id.Device)
		})
	}
	deny("publish sensors/temp", "report /local", "report /none", "publish none", "subscribe others", "command /others", "subscribe mine")
	w, _ := connect5(t, b, "w", nil)
	if code := w.subscribe("others", 1); code != 0x87 {
		t.Errorf("forbidden subscription: 0x%02x", code)
	}
	if code := w.subscribe("mine", 1); code != 1 {
		t.Errorf("subscription for commands: 0x%02x", code)
	}
	w.subscribe("local", 1)
	w.subscribe("sensors/#", 1)
	if code := w.publish("mine", "from another", 1, 1, nil); code != 0 {
		t.Errorf("publish to others: 0x%02x", code)
	}
	if code := w.publish("none", "", 1, 1, nil); code != 0x87 {
		t.Errorf("forbidden publish: 0x%02x", code)
	}
	if code := w.publish("none", "", 2, 1, nil); code != 0x87 {
		t.Errorf("forbidden publish with QoS 2: 0x%02x", code)
	}
	if code := w.publish("sensors/temp", "report", 1, 1, nil); code != 0 {
		t.Errorf("report: 0x%02x", code)
	}
	w.send(&packets5.Publish{Topic: "local", Payload: []byte("x"), QoS: 1, PacketID: 5, Properties: &packets5.Properties{}})
	for range 2 { // PUBACK and the message, in either order
		if _, err := w.next(patience); err != nil {
			t.Fatal(err)
		}
	}
	w.silence() // neither the report nor what is on a topic for commands
	got := b.Up.Messages()
	if len(got) != 2 || got[0].Resource != "/mine" || got[1].Resource != "/sensors/temp" {
		t.Errorf("the uplink was given %+v", got)
	}
	m := setpoint("w", "on", false)
	m.Resource = "/mine"
	go func() { _, _ = b.Listener.Deliver(t.Context(), m) }()
	w.hears("mine", "on")
	// A reload takes the subscription away.
	deny("subscribe", "command")
	b.Listener.(southbound.PolicyChanged).PolicyChanged()
	w.closed(0x87)
	deny("w")
	if _, ack := connect5(t, b, "w", func(c *packets5.Connect) {
		c.WillFlag, c.WillTopic = true, "x"
		c.WillProperties = &packets5.Properties{}
	}); ack.ReasonCode != 0x87 {
		t.Errorf("forbidden will: CONNACK 0x%02x", ack.ReasonCode)
	}
}

// TestNoYesThatIsUntrue: a client of 3.1.1 whose publish is refused loses its connection and hears no PUBACK.
func TestNoYesThatIsUntrue(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	b.Up.Refuse(&msg.Refusal{Reason: msg.Full, RetryAfter: time.Second})
	w := open(t, b)
	w.raw("\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03old")
	var ack [4]byte
	if _, err := w.nc.Read(ack[:]); err != nil || string(ack[:]) != "\x20\x02\x00\x00" {
		t.Fatalf("heard %q, %v", ack, err)
	}
	began := time.Now()
	w.raw("\x32\x07\x00\x01a\x00\x01hi")
	w.closed(0)
	if d := time.Since(began); d < 900*time.Millisecond {
		t.Errorf("closed after %v: the client would come back at once", d)
	}
}
