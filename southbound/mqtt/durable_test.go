package mqtt

import (
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/southbound/southtest"
)

func TestSessionOutlivesTheGateway(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	sub, ack := connect5(t, b, "sub", durable)
	if ack.SessionPresent {
		t.Error("a new session is said to be present")
	}
	if code := sub.subscribe("a/+", 2); code != 2 {
		t.Fatalf("SUBACK 0x%02x", code)
	}
	sub.goodbye()
	pub, _ := connect5(t, b, "pub", nil)
	for i := range 20 {
		pub.publish("a/b", numbered(i), byte(1+i%2), uint16(i+1), nil)
		if i%2 == 1 {
			pub.release(uint16(i + 1))
		}
	}
	restart(t, b)
	sub, ack = connect5(t, b, "sub", durable)
	if !ack.SessionPresent {
		t.Error("the session is gone")
	}
	for i := range 20 {
		if p := sub.hears("a/b", numbered(i)); p.QoS != byte(1+i%2) {
			t.Errorf("message %d came with QoS %d", i, p.QoS)
		}
	}
	sub.silence()
	sub.goodbye()
	restart(t, b)
	sub, _ = connect5(t, b, "sub", durable)
	sub.silence() // what was acknowledged is gone
}

func TestQoS2IsTakenOnceAcrossARestart(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	sub, _ := connect5(t, b, "sub", durable)
	sub.subscribe("a", 2)
	pub, _ := connect5(t, b, "pub", durable)
	pub.publish("a", "once", 2, 7, nil)
	sub.hears("a", "once")
	expect[*packets5.Pubrel](sub) // the broker knows that it was heard; else it would be right to send it again
	restart(t, b)
	sub, _ = connect5(t, b, "sub", durable)
	pub, ack := connect5(t, b, "pub", durable)
	if !ack.SessionPresent {
		t.Fatal("the publisher's session is gone")
	}
	pub.send(&packets5.Publish{Topic: "a", Payload: []byte("once"), QoS: 2, PacketID: 7, Duplicate: true, Properties: &packets5.Properties{}})
	if r := expect[*packets5.Pubrec](pub); r.ReasonCode != 0 {
		t.Errorf("PUBREC 0x%02x", r.ReasonCode)
	}
	if code := pub.release(7); code != 0 {
		t.Errorf("PUBCOMP 0x%02x", code)
	}
	if code := pub.release(7); code != 0x92 {
		t.Errorf("PUBCOMP 0x%02x for an identifier that is free", code)
	}
	sub.silence()
	if n := len(b.Up.Messages()); n != 1 {
		t.Errorf("the uplink was given %d messages", n)
	}
	pub.publish("a", "twice", 2, 7, nil) // the identifier is free for another
	sub.hears("a", "twice")
}

func TestSubscriberOfQoS2HearsOnceAcrossARestart(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	sub, _ := connect5(t, b, "sub", durable)
	sub.subscribe("a", 2)
	pub, _ := connect5(t, b, "pub", nil)
	pub.publish("a", "1", 2, 1, nil)
	p := expect[*packets5.Publish](sub)
	restart(t, b) // before PUBREC
	sub, _ = connect5(t, b, "sub", durable)
	again := expect[*packets5.Publish](sub)
	if !again.Duplicate || again.PacketID != p.PacketID {
		t.Errorf("sent again as %+v, first %+v", again, p)
	}
	sub.send(&packets5.Pubrec{PacketID: p.PacketID, Properties: &packets5.Properties{}})
	expect[*packets5.Pubrel](sub)
	restart(t, b) // before PUBCOMP
	sub, _ = connect5(t, b, "sub", durable)
	if r := expect[*packets5.Pubrel](sub); r.PacketID != p.PacketID {
		t.Errorf("PUBREL for %d, want %d", r.PacketID, p.PacketID)
	}
	sub.send(&packets5.Pubcomp{PacketID: p.PacketID, Properties: &packets5.Properties{}})
	sub.silence()
}

func TestRetainedMessagesOutliveTheGateway(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	pub, _ := connect5(t, b, "pub", nil)
	retain := func(topic, payload string, expiry uint32) {
		p := &packets5.Properties{ContentType: "text/plain"}
		if expiry > 0 {
			p.MessageExpiry = &expiry
		}
		pub.send(&packets5.Publish{Topic: topic, Payload: []byte(payload), QoS: 1, PacketID: 9, Retain: true, Properties: p})
		expect[*packets5.Puback](pub)
	}
	retain("r/1", "one", 0)
	retain("r/2", "two", 3600)
	retain("r/3", "three", 0)
	retain("r/3", "", 0)
	retain("r/4", "four", 1)
	time.Sleep(1100 * time.Millisecond) // expiry is in whole seconds of the real clock
	restart(t, b)
	sub, _ := connect5(t, b, "sub", nil)
	sub.subscribe("r/#", 1)
	heard := map[string]string{}
	for range 2 {
		p := sub.take()
		heard[p.Topic] = string(p.Payload)
		if !p.Retain || p.Properties.ContentType != "text/plain" {
			t.Errorf("heard %+v", p)
		}
		if p.Topic == "r/2" && (p.Properties.MessageExpiry == nil || *p.Properties.MessageExpiry >= 3600) {
			t.Errorf("the expiry does not count down: %v", p.Properties.MessageExpiry)
		}
	}
	if len(heard) != 2 || heard["r/1"] != "one" || heard["r/2"] != "two" {
		t.Errorf("heard %v", heard)
	}
	sub.silence()
}

func TestWillOfASessionThatIsNotThereAfterARestart(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	sub, _ := connect5(t, b, "sub", durable)
	sub.subscribe("gone", 1)
	_, _ = connect5(t, b, "pub", func(c *packets5.Connect) {
		durable(c)
		c.WillFlag, c.WillTopic, c.WillMessage, c.WillQOS = true, "gone", []byte("pub"), 1
		c.WillProperties = &packets5.Properties{WillDelayInterval: ptr(uint32(1))}
	})
	restart(t, b)
	sub, _ = connect5(t, b, "sub", durable)
	sub.hears("gone", "pub")
	if m := b.Up.Messages(); len(m) != 1 || m[0].Resource != "/gone" || m[0].Device != "pub" {
		t.Errorf("the uplink was given %+v", m)
	}
}

func TestSessionsEnd(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	short := func(c *packets5.Connect) {
		c.CleanStart = false
		c.Properties.SessionExpiryInterval = ptr(uint32(1))
	}
	sub, _ := connect5(t, b, "sub", short)
	sub.subscribe("a", 1)
	sub.drop()
	time.Sleep(1700 * time.Millisecond) // session expiry is in whole seconds of the real clock
	if _, ack := connect5(t, b, "sub", short); ack.SessionPresent {
		t.Error("the session has not expired")
	}
	if _, ack := connect5(t, b, "sub", nil); ack.SessionPresent {
		t.Error("clean start kept the session")
	}
	restart(t, b)
	if _, ack := connect5(t, b, "sub", durable); ack.SessionPresent {
		t.Error("the session is back after a clean start without expiry")
	}
}
