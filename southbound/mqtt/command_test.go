package mqtt

import (
	"context"
	"errors"
	"testing"
	"time"

	packets5 "github.com/eclipse/paho.golang/packets"

	"github.com/drawbridge/drawbridge/internal/msg"
	"github.com/drawbridge/drawbridge/southbound"
	"github.com/drawbridge/drawbridge/southbound/southtest"
)

type outcomeOf struct {
	reply msg.Reply
	err   error
}

func deliver(ctx context.Context, b *southtest.Bench, m msg.Message) <-chan outcomeOf {
	c := make(chan outcomeOf, 1)
	go func() {
		r, err := b.Listener.Deliver(ctx, m)
		c <- outcomeOf{r, err}
	}()
	return c
}

func TestCommandOnTheWire(t *testing.T) {
	b := southtest.Start(t, plain(nil))
	w, _ := connect5(t, b, "w", durable)
	if r, err := b.Listener.Deliver(t.Context(), setpoint("w", "1", false)); err != nil || r.Code != "not-subscribed" {
		t.Errorf("before SUBSCRIBE: %+v, %v", r, err)
	}
	for qos := range byte(3) {
		w.subscribe("actuators/#", qos)
		m := setpoint("w", "21", true)
		done := deliver(t.Context(), b, m)
		p := w.take()
		if p.QoS != qos || p.Properties.ResponseTopic != replyPrefix+m.ID.String() || string(p.Properties.CorrelationData) != string(m.ID[:]) ||
			p.Properties.ContentType != "text/plain" || p.Properties.User[0].Value != "PUT" {
			t.Errorf("QoS %d: heard %+v", qos, p)
		}
		w.publish(p.Properties.ResponseTopic, "ok", 1, 9, &packets5.Properties{ContentType: "text/x"})
		if o := <-done; o.err != nil || o.reply.Status != msg.Done || string(o.reply.Payload) != "ok" || o.reply.Type != "text/x" {
			t.Errorf("QoS %d: %+v", qos, o)
		}
	}
	w.silence()

	// A device may refuse by the code of its acknowledgement.
	done := deliver(t.Context(), b, setpoint("w", "22", false))
	p := expect[*packets5.Publish](w)
	w.send(&packets5.Pubrec{PacketID: p.PacketID, ReasonCode: 0x83, Properties: &packets5.Properties{}})
	if o := <-done; o.err != nil || o.reply.Status != msg.Refused || o.reply.Code != "implementation-specific-error" {
		t.Errorf("%+v", o)
	}

	// Another device cannot answer in its place, and a reply that nobody waits for goes nowhere.
	m := setpoint("w", "23", true)
	done = deliver(t.Context(), b, m)
	p = expect[*packets5.Publish](w)
	other, _ := connect5(t, b, "other", nil)
	other.publish(p.Properties.ResponseTopic, "mine", 1, 1, nil)
	w.publish(p.Topic+replySuffix, "late but true", 1, 9, nil)
	if o := <-done; string(o.reply.Payload) != "late but true" {
		t.Errorf("%+v", o)
	}

	// A connection that ends before it acknowledges leaves the outcome open, and the command is not sent again by itself.
	done = deliver(t.Context(), b, setpoint("w", "24", false))
	expect[*packets5.Publish](w)
	w.nc.Close()
	if o := <-done; !errors.Is(o.err, errLost) {
		t.Errorf("%+v", o)
	}
	w, ack := connect5(t, b, "w", durable)
	if !ack.SessionPresent {
		t.Error("the session is gone")
	}
	w.silence()
	if _, err := b.Listener.Deliver(t.Context(), setpoint("nobody", "", false)); !errors.Is(err, southbound.ErrNotHere) {
		t.Errorf("%v", err)
	}

	// Nobody waits longer than ctx.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if o := <-deliver(ctx, b, setpoint("w", "25", false)); !errors.Is(o.err, context.DeadlineExceeded) {
		t.Errorf("%+v", o)
	}
}

func TestCommandToASleepyDeviceWaitsForItsSubscription(t *testing.T) {
	b := southtest.Start(t, plain(func(c *Config) { c.Auth = []string{"password"} }))
	b.AddDevice("th-1", southtest.Account{Secret: []byte("x"), Sleepy: true})
	w, _ := connect5(t, b, "w", func(c *packets5.Connect) {
		c.UsernameFlag, c.Username, c.PasswordFlag, c.Password = true, "th-1", true, []byte("x")
	})
	if len(b.Awoken()) != 0 {
		t.Error("a device without a subscription is called awake")
	}
	if _, err := b.Listener.Deliver(t.Context(), setpoint("th-1", "", false)); !errors.Is(err, southbound.ErrNotHere) {
		t.Errorf("%v", err)
	}
	w.subscribe("actuators/#", 1)
	w.publish("sensors/temp", "", 1, 1, nil)
	if len(b.Awoken()) == 0 {
		t.Error("a device with a subscription is not called awake")
	}
}
